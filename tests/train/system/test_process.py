"""What a process sets up before it trains, seen from the kernel and by XLA; and its clock."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from train.system import clock, process

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


def test_compiling_is_a_phase_of_its_own_wherever_it_happens(monkeypatch):
  """By a clock that is set by hand: 3 s of the 5 s in a block within another are compilation."""
  now = [100.0]
  monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))

  def passes(seconds, compiling=()):
    now[0] += seconds
    for each in compiling:  # a function is reported before the one that it is traced within
      jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", each)

  spent = clock.Clock()
  with spent("train"):
    passes(1)
    with spent("evaluate"):
      passes(4, (2, 3))
      passes(1)
    passes(10)
  passes(100)  # it stands still
  nothing = dict.fromkeys(clock.PHASES, 0.0)
  assert spent.times() == nothing | {"train": 11.0, "evaluate": 2.0, "compile": 3.0}
  half = clock.Clock()
  half.add(spent, 0.5)
  assert half.times() == nothing | {"train": 5.5, "evaluate": 1.0, "compile": 1.5}


def test_the_users_xla_flags_win_and_a_cpu_has_none(monkeypatch):
  name = next(iter(process.XLA_FLAGS))
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x --{name}=false")
  process.use_xla_flags()
  assert os.environ["XLA_FLAGS"].count(name) == 1
  assert f"--{name}=false" in os.environ["XLA_FLAGS"]
  monkeypatch.setenv("XLA_FLAGS", "")
  process.use_xla_flags()
  process.use_xla_flags()  # a worker of a command that has called it
  assert os.environ["XLA_FLAGS"].split() == [f"--{n}={v}" for n, v in process.XLA_FLAGS.items()]
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  process.use_xla_flags()
  assert not os.environ["XLA_FLAGS"]


def test_xla_knows_every_flag():
  """It ends a process that has one it does not know."""
  flags = " ".join(f"--{name}={value}" for name, value in process.XLA_FLAGS.items())
  command = [sys.executable, "-c", "import jax; jax.devices()"]
  env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


CUT = """
import jax
from train.system import process

process.use_compile_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

@jax.jit
def double(x):
  return 2 * x

for _ in range(2):
  print(double(jax.numpy.ones(3)))
  (entry,) = (process.cache_folder() / "xla").glob("jit_double-*-cache")
  print(entry.stat().st_size)
  with entry.open("r+b") as file:
    file.truncate(entry.stat().st_size // 2)
  jax.clear_caches()
"""


def test_a_compiled_program_that_a_kill_cut_short_is_compiled_again_and_kept(tmp_path):
  environment = os.environ | {"ISOFLOP_CACHE": str(tmp_path)}
  command = [sys.executable, "-c", CUT]
  done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
  assert not done.stderr
  *first, second, size = done.stdout.splitlines()
  assert first == [second, size]
