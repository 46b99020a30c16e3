"""Faults by the hundred: files of a sweep that were damaged, full disks, and long service."""

import contextlib
import io
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
from test_integrity import damaged_files_are_named, judged  # noqa: F401 -- a fixture
from test_kills import (
  MOMENTS,
  Tree,
  commands,
  left_behind,
  numbers,
  undisturbed,  # noqa: F401 -- a fixture
  written_at,
)

from configs import ladders
from scaling.launch import child
from scaling.launch.local import Pool
from scaling.launch.queue import Task
from scaling.progress import Display

MOVES = int(os.environ.get("MOVES", "20"))
CELLS = int(os.environ.get("CELLS", "500"))


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


def remount(folder, what):
  subprocess.run(["mount", "-o", f"remount,{what}", str(folder)], check=True)


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize(
  ("kind", "limits"),
  [
    ("train", [f"nr_inodes={n}" for n in (15, 25, 35, 45, 55, 65, 75, 85)]),
    ("train", ["size=100k", "size=400k", "size=3m", "size=60m"]),
    ("sweep", [f"nr_inodes={n}" for n in (30, 60, 120, 240)]),
    ("sweep", ["size=400k", "size=60m"]),
  ],
  ids=["train, inodes", "train, bytes", "sweep, inodes", "sweep, bytes"],
)
def test_a_full_disk_ends_training_in_a_line_and_loses_nothing(
  undisturbed,  # noqa: F811
  corpus,
  small_disk,
  tmp_path,
  kind,
  limits,
):
  _, whole, codes = undisturbed(kind)
  for i, limit in enumerate(limits):
    remount(small_disk, f"size=1g,{limit}" if "size" not in limit else limit)
    tree = Tree(commands(kind, small_disk, corpus), tmp_path / str(i))
    (code,) = tree.end(silent=False)
    said = (tmp_path / str(i)).read_text()
    assert code in (1, 2), (limit, said)
    assert f'File "{child.ROOT}' not in said, said  # orbax's threads print some of their own
    line = said.splitlines()[-1]
    assert line.startswith("isoflop: "), said
    assert str(small_disk) in line
    assert "No space left on device" in said or "MiB free" in said, said
  remount(small_disk, "size=1g,nr_inodes=100000")
  assert Tree(commands(kind, small_disk, corpus), tmp_path / "last").end() == codes
  assert numbers(small_disk / "run") == whole
  assert not left_behind(small_disk)


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize("kind", ["train", "processes", "sweep"])
def test_a_workdir_moved_while_it_saves_ends_in_a_line_and_goes_on_where_it_is_put_back(
  undisturbed,  # noqa: F811
  corpus,
  tmp_path,
  kind,
):
  _, whole, codes = undisturbed(kind)
  rng, run, away = random.Random(kind), tmp_path / "run", tmp_path / "away"
  moved = 0
  while moved < MOVES:
    before = written_at(run, MOMENTS[kind][1])
    tree = Tree(commands(kind, tmp_path, corpus), tmp_path / f"said {moved}")
    while not (over := tree.over()) and not written_at(run, MOMENTS[kind][1]) - before:
      time.sleep(0.001)
    if over:  # nothing was left to be saved
      shutil.rmtree(run)
      continue
    time.sleep(rng.choice((0, rng.uniform(0, 0.01), rng.uniform(0, 0.1))))
    run.rename(away)
    ended = tree.end(silent=False)
    said = (tmp_path / f"said {moved}").read_text()
    print(kind, moved, ended, said.splitlines()[-1], flush=True)
    assert not run.exists(), [*run.rglob("*")]
    assert ended == codes or set(ended) == {1}, said
    assert f'File "{child.ROOT}' not in said, said
    if ended != codes:
      line = said.splitlines()[-1]
      assert re.fullmatch(rf"isoflop: (workdir=)?{run}\S*: (was moved or|is gone, and) .*", line)
    moved += ended != codes
    away.rename(run)
  assert Tree(commands(kind, tmp_path, corpus), tmp_path / "last").end() == codes
  assert numbers(run) == whole
  assert not left_behind(tmp_path)


def test_a_worker_that_trains_500_small_cells_needs_no_more_at_the_end(make_tiny, tmp_path):
  """Its memory (a median) and its open files (the most) in the second and the last quarter.

  The tokens of a run are open until they are collected: there are two more files or not.
  """
  config = make_tiny()
  config.train.tokens, config.optim.warmup_tokens = 4 * 4 * 32, 128
  config.train.keep_steps = (2,)
  tasks = []
  for seed in range(CELLS):
    config.seed = seed
    resolved = ladders.resolve(config).to_dict()
    tasks.append(Task(str(seed), tmp_path / str(seed), resolved, 1.0, shape=0))
  measured = []

  class Meter(Display):
    def ended(self, name, outcome, loss):
      assert outcome == "done", name
      proc = Path(f"/proc/{pool.workers[0].process.pid}")
      pages = int((proc / "statm").read_text().split()[1])
      measured.append((pages * os.sysconf("SC_PAGESIZE") / 2**20, len(os.listdir(proc / "fd"))))

  pool = Pool(tmp_path, 1, Meter("", io.StringIO()), lambda: False)
  try:
    assert not pool.run(tasks)
  finally:
    pool.close()
  quarter = CELLS // 4
  (before, files_before), (after, files_after) = (
    (median(mib for mib, _ in part), max(count for _, count in part))
    for part in (measured[quarter : 2 * quarter], measured[-quarter:])
  )
  print(f"second quarter of {CELLS} cells: {before} MiB, at most {files_before} open files")
  print(f"last quarter: {after} MiB, at most {files_after} open files")
  print("every tenth:", [f"{mib:.0f}/{count}" for mib, count in measured[:: CELLS // 10]])
  assert after < 1.02 * before
  assert files_after <= files_before


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
