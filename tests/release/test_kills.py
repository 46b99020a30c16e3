"""Kills by the hundred: runs, their workers and processes are killed or stopped anywhere.

Each test begins runs, and again what it has ended, until it has done so often enough ($KILLS, by a
generator that $KILLS_SEED seeds). Every run then comes to what one comes to that nobody disturbs,
bit for bit, and leaves nothing behind. `--basetemp=/dev/shm/kills` puts the runs into memory: most
of their time are saves. Commands are forks of this process, which has imported what they need.
"""

import contextlib
import ctypes
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import jax
import pytest
import test_distributed
import test_sweep
import tiny_sweep
import written

from scaling import main
from scaling.report import document  # noqa: F401 -- imported once for all forks
from scaling.sweep import run as _  # noqa: F401
from train import pack  # noqa: F401
from train.system import files

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")

OFTEN = ["--config.train.checkpoint_every_seconds=0.05", "--config.train.log_every_steps=1"]
DEADLINE = 600.0  # for a run to come to a moment, or to its end [s]
# Until when a command is let alone: until such a file is written; "": so many seconds at most.
MOMENTS = {
  "train": ["", "checkpoints/*tmp*", "checkpoints/*", "metrics.jsonl", "run.json"],
  "processes": ["", "checkpoints/*tmp*", "checkpoints/*", "processes/1/metrics.jsonl"],
  "sweep": ["", "*/*/checkpoints/*tmp*", "trunks/*/metrics.jsonl", "cells/*/metrics.jsonl"],
  "sealed": ["", ".*.[0-9]*", "fit.json", "prediction.json", "verification.json", "figures/*"],
}


def commands(kind, folder, corpus):
  """Returns the commands of a run in FOLDER/run, with a cache of its text beside it."""
  cache, workdir = f"--config.data.cache={folder}/cache", f"--workdir={folder}/run"
  if kind == "sealed":  # with the cache that a sweep began with
    return [["sweep", *tiny_sweep.flags(corpus, probe="0,"), *test_sweep.FLAGS, workdir]]
  if kind == "sweep":
    flags = tiny_sweep.flags(corpus, sizes="0,1", budgets="3e8,5e8,7e8")
    often = "--config.train.checkpoint_every_seconds=0.2"
    return [["sweep", *flags, "--config.sweep.seed_sizes=()", often, cache, workdir]]
  command = ["train", *test_distributed.flags(corpus, "zero1"), cache, *OFTEN, workdir]
  command.append("--config.train.tokens=25600")
  if kind == "train":
    return [command]
  with socket.create_server(("127.0.0.1", 0)) as free:
    place = [f"--coordinator=127.0.0.1:{free.getsockname()[1]}", "--join_seconds=30"]
  return [[*command, *place, "--processes=2", f"--process={i}"] for i in range(2)]


class Tree:
  """The processes of a run, and all that they started, which are children of this one at last."""

  def __init__(self, argvs, errors):
    """Starts commands."""
    self.errors, self.codes = errors, {}
    self.first = [self._fork(argv) for argv in argvs]

  def _fork(self, argv):
    if pid := os.fork():
      return pid
    try:
      code = 99
      with open(os.devnull, "r+") as nothing, self.errors.open("a", buffering=1) as errors:
        for number, file in enumerate((nothing, nothing, errors)):
          os.dup2(file.fileno(), number)
        sys.stdin, sys.stdout, sys.stderr = nothing, nothing, errors
        try:
          code = main.main(argv)
          jax.distributed.shutdown()  # as jax does where a process exits
        except BaseException:
          traceback.print_exc()
    finally:
      os._exit(code)

  def _reap(self):
    with contextlib.suppress(ChildProcessError):
      while (ended := os.waitpid(-1, os.WNOHANG))[0]:
        self.codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])

  def alive(self):
    """Returns the ids of the processes that live."""
    self._reap()
    found = [os.getpid()]
    for pid in found:  # grows meanwhile
      with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
          found += map(int, (thread / "children").read_text().split())
    return [pid for pid in found[1:] if test_sweep.alive(pid)]

  def over(self):
    """Returns whether the commands have ended."""
    self._reap()
    return self.codes.keys() >= set(self.first)

  def end(self, silent=True):
    """Waits until nothing is left of it; returns the exit codes of the commands."""
    deadline = time.monotonic() + DEADLINE
    while (left := self.alive()) or not self.codes.keys() >= set(self.first):
      assert time.monotonic() < deadline, [Path(f"/proc/{p}/cmdline").read_text() for p in left]
      time.sleep(0.05)
    said = self.errors.read_text()
    assert not silent or "Traceback" not in said, said
    return [self.codes[pid] for pid in self.first]


def written_at(folder, pattern):
  found = set()
  with contextlib.suppress(FileNotFoundError):
    for path in folder.glob(pattern):
      found.add((path, path.stat().st_mtime_ns))
  return found


def strike(kind, folder, tree, rng):
  """Waits for a moment and ends some of a tree's processes; says what it did, or None: too late.

  A sweep goes on after the end of a worker, of which it is told too.
  """
  pattern = rng.choice(MOMENTS[kind])
  deadline = time.monotonic() + (DEADLINE if pattern else rng.uniform(0, 15))
  before = written_at(folder, pattern) if pattern else set()
  while time.monotonic() < deadline and not (pattern and written_at(folder, pattern) - before):
    if tree.over():
      return None, True
    time.sleep(0.01)
  time.sleep(rng.choice((0, rng.uniform(0, 0.05), rng.uniform(0, 1))))
  alive, number = tree.alive(), rng.choice((signal.SIGKILL, signal.SIGTERM))
  if tree.over():
    return None, True
  others = [pid for pid in alive if pid not in tree.first] or tree.first
  victims = rng.choice((tree.first[:1], [rng.choice(others)], [rng.choice(others)], alive))
  sweep, whole = kind not in ("train", "processes"), bool(set(victims) & set(tree.first))
  if sweep and not whole and number == signal.SIGKILL:  # a run that fails twice is given up
    records = (files.read_json(path) for path in folder.glob("*/*/run.json"))
    number = signal.SIGTERM if any(x and "failures" in x for x in records) else number
  for victim in victims:
    with contextlib.suppress(ProcessLookupError):
      os.kill(victim, number)
  what = "all" if victims == alive else "commands" if whole else "another"
  return f"{number.name} to {what} of {len(alive)} ({pattern or 'any time'})", whole or not sweep


def numbers(run):
  """Returns what a run has come to: tables, losses, and the checksums of all that it has saved."""
  found = {}
  for path in run.rglob("run.json"):
    record = json.loads(path.read_text())
    found[path] = [record.get(name) for name in ("status", "loss", "bits_per_byte", "steps")]
  for path in run.rglob("metrics.jsonl"):  # a stop adds a row where it comes
    found[path] = [row["eval_loss"] for row in files.read_rows(path) if "eval_loss" in row]
  for path in [*run.rglob("checksums/metadata"), *run.glob("*.json")]:
    if path.name in ("metadata", "fit.json", "prediction.json", "verification.json"):
      found[path] = path.read_text()
  if (run / "cells.csv").exists():
    found[run / "cells.csv"] = test_sweep.table(run)
  return {str(path.relative_to(run)): value for path, value in found.items()}


def left_behind(folder):
  """Returns what nobody should find after a run."""
  temporary = re.compile(r"\..+\.\d+|.*(tmp|partial).*")
  return [path for path in folder.rglob("*") if temporary.fullmatch(path.name)]


@pytest.fixture(scope="module")
def undisturbed(cache, corpus, tmp_path_factory):
  """Trains a kind of run, once, that nobody disturbs: its folder, numbers and exit codes."""
  ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what loses its parent becomes ours
  done = {}

  def run(kind):
    if kind not in done:
      folder = tmp_path_factory.mktemp(kind)
      if kind == "sealed":  # so small a sweep determines no law: it is given the losses of one
        Tree(commands(kind, folder, corpus), folder / "errors").end()
        written.give_losses(folder / "run")
        shutil.copytree(folder / "run", folder / "before")
      codes = Tree(commands(kind, folder, corpus), folder / "errors").end()
      assert set(codes) <= ({0, 2} if kind == "sweep" else {0})
      assert {"cells.csv", "run.json"} & set(os.listdir(folder / "run"))
      done[kind] = folder, numbers(folder / "run"), codes
    return done[kind]

  return run


@pytest.mark.parametrize("kind", MOMENTS)
def test_what_is_killed_comes_to_the_same(undisturbed, corpus, tmp_path, kind, monkeypatch):
  wanted, seed = int(os.environ.get("KILLS", "40")), os.environ.get("KILLS_SEED", "0")
  origin, whole, codes = undisturbed(kind)
  rng, done, runs = random.Random(f"{kind} {seed}"), 0, 0
  monkeypatch.setenv("TMPDIR", str(tmp_path))
  while done < wanted:
    runs += 1
    folder = tmp_path / str(runs)
    folder.mkdir()
    if kind == "sealed":
      shutil.copytree(origin / "before", folder / "run")
    while True:
      tree, over = Tree(commands(kind, folder, corpus), folder / "errors"), done >= wanted
      while not over:
        struck, over = strike(kind, folder / "run", tree, rng)
        done += bool(struck)
        print(f"{time.strftime('%X')} {kind} {runs}, {done}: {struck}", flush=True)
        over = over or done >= wanted
      if tree.end() == codes and (folder / "run").is_dir():
        break
    assert numbers(folder / "run") == whole
    assert not left_behind(folder)
    shutil.rmtree(folder)
  assert not [*tmp_path.iterdir()]
