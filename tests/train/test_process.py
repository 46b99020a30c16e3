"""What a process sets up before it trains, seen from the kernel."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SCRIPT = """
import json, resource, sys
from train.system import process

if sys.argv[1] == "set":
  process.use_huge_pages()
  process.keep_freed_pages()
import numpy as np

def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(1 << 23)  # 64 MiB, freed at once
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first, second = faults(), faults()
print(json.dumps({"first": first, "second": second}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these are settings of glibc")
def test_freed_pages_are_kept_and_are_huge():
  def faults(how):
    command = [sys.executable, "-c", SCRIPT, how]
    # NumPy makes large arrays huge by itself where they happen to be aligned.
    environment = os.environ | {"NUMPY_MADVISE_HUGEPAGE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)

  plain, ours = faults("plain"), faults("set")
  assert plain["second"] > 20  # the allocator gave them back, and they are faulted in anew
  assert ours["second"] < 5
  if THP.exists() and "[madvise]" in THP.read_text():  # with `always` they are huge in any case
    assert ours["first"] < plain["first"] / 4  # 2 MiB a fault, not 4 kiB
