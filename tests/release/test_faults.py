"""Faults by the hundred: files of a sweep that were damaged, and a disk that is full."""

import contextlib
import os
import subprocess
import sys

import pytest
from test_integrity import damaged_files_are_named, judged  # noqa: F401 -- a fixture


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 3 MB; needs the right to mount one."""
  folder = tmp_path / "disk"
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
  if subprocess.run(mount, check=False).returncode:
    pytest.skip("cannot mount a small file system here")
  yield folder
  subprocess.run(["umount", str(folder)], check=True)


def test_damaged_files_are_named(judged, tmp_path):  # noqa: F811
  assert damaged_files_are_named(judged, tmp_path, range(400)) > 200


def test_on_a_full_disk_a_command_ends_in_a_line_that_names_the_file(judged, small_disk):  # noqa: F811
  subprocess.run(["cp", "-r", *judged.glob("[!f]*"), judged / "fit.json", small_disk], check=True)
  before = {path: path.read_bytes() for path in small_disk.rglob("*.json")}
  with (small_disk / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
    for _ in range(1000):
      file.write(bytes(4096))
  for verb, name in (("report", "figures"), ("fit", "fit.json")):
    command = [sys.executable, "-m", "scaling.main", verb, f"--workdir={small_disk}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "No space left on device" in ended.stderr
    assert f"{small_disk}/{name}" in ended.stderr
  assert {path: path.read_bytes() for path in before} == before
  assert not [name for name in os.listdir(small_disk) if name.startswith(".") and name != ".lock"]
