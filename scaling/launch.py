"""Runs tasks in local worker processes, each on a core of its own, longest chain first.

A failing run does not take the others with it: its error is recorded in its run.json, and the next
start tries it again. Two workers with a core each train two small models in less time than one
worker with both cores trains them in turn.
"""

import contextlib
import dataclasses
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scaling.display import Display
from train import files, host, preflight


@dataclasses.dataclass(frozen=True)
class Task:
  """One run to train, or to look at before."""

  id: str
  folder: Path
  config: dict[str, Any]
  cost: float  # estimate of its time, in FLOPs
  needs: str | None = None  # the task that must be done before
  shape: Any = None  # runs of one shape share a compiled program
  pack: int = 1  # how many of its shape a worker may train together, a power of two
  preflight: bool = False  # only find out whether it fits

  @property
  def record(self) -> Path:
    """Where its outcome stands."""
    return self.folder / (preflight.RECORD if self.preflight else "run.json")

  def done(self) -> bool:
    """Returns whether there is nothing left to do."""
    record = files.read_json(self.record)
    return record is not None and record["status"] in ("done", "diverged")


class _Worker:
  """A worker process, what it does, and what it has compiled."""

  def __init__(self, index: int, core: int | None, log: Path):
    self.index = index
    self.core = core
    self.tasks: dict[str, Task] = {}  # by id
    self.progress: dict[str, dict] = {}
    self.shapes: set = set()
    self.ready = False
    self.buffer = b""
    self.log = log.open("ab")
    self.process = subprocess.Popen(
      [sys.executable, "-m", "scaling.worker", "any" if core is None else str(core)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self.log,
      start_new_session=True,  # a Ctrl-C reaches the launcher only, which asks the worker to stop
    )

  def send(self, message: dict) -> None:
    assert self.process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # its death is seen at its output
      self.process.stdin.write((json.dumps(message) + "\n").encode())
      self.process.stdin.flush()

  def events(self) -> list[dict] | None:
    """Returns what the worker said, or None when it is dead."""
    assert self.process.stdout is not None
    chunk = os.read(self.process.stdout.fileno(), 1 << 16)
    if not chunk:
      return None
    *lines, self.buffer = (self.buffer + chunk).split(b"\n")
    return [json.loads(line) for line in lines]

  def close(self) -> None:
    assert self.process.stdin is not None
    assert self.process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.close()
    self.process.wait()
    self.process.stdout.close()
    self.log.close()


class Pool:
  """Worker processes that live as long as the sweep."""

  def __init__(self, workdir: Path, workers: int):
    """Starts the workers; 0: one per core, or a single one where there is an accelerator."""
    cores: Sequence[int | None] = host.cores()
    if host.has_accelerator():
      cores = [None] * max(1, workers)
    elif workers:
      cores = [cores[i % len(cores)] for i in range(workers)]
    self._log = workdir / "workers.log"
    self._workers = [_Worker(i, core, self._log) for i, core in enumerate(cores)]

  def __len__(self) -> int:
    return len(self._workers)

  def close(self) -> None:
    """Ends the workers."""
    for worker in self._workers:
      worker.close()

  def run(
    self, tasks: Sequence[Task], display: Display, should_stop: Callable[[], bool]
  ) -> dict[str, str]:
    """Trains every task; returns the errors of those that failed, by id.

    Raises:
      KeyboardInterrupt: `should_stop` said so; every running task has saved its state.
    """
    errors: dict[str, str] = {}
    finished = {task.id for task in tasks if task.done()}
    waiting = [task for task in tasks if task.id not in finished]
    display.begin(tasks, finished)
    chain = {task.id: task.cost for task in tasks}
    for task in tasks:
      if task.needs in chain:
        chain[task.needs] += task.cost
    while waiting or any(worker.tasks for worker in self._workers):
      stopping = should_stop()
      if stopping:
        waiting = []
        for worker in self._workers:
          if worker.tasks:
            worker.send({"stop": True})
      for worker in self._workers:
        if worker.ready and not worker.tasks and not stopping:
          self._hand_out(worker, waiting, finished, chain, display)
      if waiting and not any(worker.tasks or not worker.ready for worker in self._workers):
        for task in waiting:  # what they need has failed
          errors[task.id] = f"{task.needs} did not finish"
        waiting = []
      self._receive(finished, errors, display, stopping)
      running = ((worker, name) for worker in self._workers for name in worker.tasks)
      display.update({name: worker.progress.get(name, {}) for worker, name in running})
    if should_stop():
      raise KeyboardInterrupt
    return errors

  def _hand_out(
    self,
    worker: _Worker,
    waiting: list[Task],
    finished: set[str],
    chain: dict[str, float],
    display: Display,
  ) -> None:
    ready = [task for task in waiting if task.needs is None or task.needs in finished]
    if not ready:
      return
    first = max(ready, key=lambda task: (chain[task.id], task.shape in worker.shapes))
    same = [task for task in ready if (task.shape, task.pack) == (first.shape, first.pack)]
    count = power_of_two(min(first.pack, len(same)))
    together = sorted(same, key=lambda task: -chain[task.id])[:count]
    worker.tasks, worker.progress = {task.id: task for task in together}, {}
    worker.shapes.add(first.shape)
    worker.send(
      {
        "tasks": [
          {"id": task.id, "config": task.config, "folder": str(task.folder)} for task in together
        ],
        "preflight": len(self) if first.preflight else 0,
      }
    )
    for task in together:
      waiting.remove(task)
      display.started(task)

  def _receive(
    self, finished: set[str], errors: dict[str, str], display: Display, stopping: bool
  ) -> None:
    """Waits a moment for the workers and takes in what they say."""
    with selectors.DefaultSelector() as selector:
      for worker in self._workers:
        assert worker.process.stdout is not None
        selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
      for key, _ in selector.select(timeout=0.2):
        worker = key.data
        events = worker.events()
        if events is None:
          self._replace(worker, errors, display, stopping)
          continue
        for event in events:
          if event.get("ready"):
            worker.ready = True
          elif "finished" in event:
            task = worker.tasks.pop(event["id"])
            if event["finished"] == "failed":
              _record_failure(task, event["error"])
              errors[task.id] = event["error"]
            elif event["finished"] != "interrupted":
              finished.add(task.id)
            display.ended(task, event["finished"], event.get("loss"), event.get("error"))
          else:
            worker.progress[event["id"]] = event

  def _replace(
    self, worker: _Worker, errors: dict[str, str], display: Display, stopping: bool
  ) -> None:
    """Takes a dead worker's tasks off it and starts another in its place."""
    code = worker.process.wait()
    if worker.tasks and not stopping:
      error = f"its worker died ({'signal' if code < 0 else 'exit code'} {abs(code)})"
      for task in worker.tasks.values():
        _record_failure(task, error)
        errors[task.id] = error
        display.ended(task, "failed", None, error)
    elif not worker.ready and not stopping:
      raise RuntimeError(f"a worker could not start (exit code {code}); see {self._log}")
    worker.close()
    i = self._workers.index(worker)
    if stopping:
      worker.tasks = {}
      self._workers.remove(worker)
    else:
      self._workers[i] = _Worker(worker.index, worker.core, self._log)


def power_of_two(count: int) -> int:
  """Returns the largest power of two that is not above `count`, which is at least 1."""
  return 1 << (count.bit_length() - 1)


def _record_failure(task: Task, error: str) -> None:
  """Keeps a failed run on record; a new start of the sweep continues it from its checkpoint."""
  task.folder.mkdir(parents=True, exist_ok=True)
  record = files.read_json(task.record) or {"config": task.config}
  failed = {"status": "failed", "error": error, "failed_at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
  files.write_json(task.record, record | failed)
