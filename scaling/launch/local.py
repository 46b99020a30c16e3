"""Runs tasks in local worker processes, each on a core of its own, longest chain first.

A failing run does not take the others with it: its error is recorded in its run.json, and the next
start tries it again; a run whose worker was asked to leave goes on in another. Two workers with a
core each train two small models in less time than one worker with both cores trains them in turn.
"""

import contextlib
import dataclasses
import heapq
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import RunError
from scaling.launch.worker import environment
from scaling.progress import Display
from train import fitting, pack
from train.system import files, process


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
  failures: int = 0  # starts at which it has failed before

  @property
  def record(self) -> Path:
    """Where its outcome stands."""
    return self.folder / (fitting.RECORD if self.preflight else "run.json")

  def done(self) -> bool:
    """Returns whether there is nothing left to do."""
    record = files.read_json(self.record)
    return record is not None and record["status"] in ("done", "diverged")


class Pack(NamedTuple):
  """Tasks that a worker trains together."""

  tasks: list[Task]
  slots: int  # of the program that trains them, a power of two
  chain: float  # cost of the longest of them, with all that needs it [FLOPs]

  @property
  def program(self) -> tuple:
    """What tells its program from those of other packs."""
    return self.tasks[0].shape, self.slots


def packs(tasks: Sequence[Task]) -> list[Pack]:
  """Returns who is trained with whom: tasks of a shape, the longest chains first.

  That depends on the plan alone, and not on what is done or ready: a sweep that is started again
  trains each run in as many slots as before, and its numbers are the same.
  """
  chain = {task.id: task.cost for task in tasks}
  for task in tasks:
    if task.needs in chain:
      chain[task.needs] += task.cost
  kinds: dict[Any, list[Task]] = {}
  for task in sorted(tasks, key=lambda task: -chain[task.id]):
    kinds.setdefault((task.shape, task.pack, task.needs is None), []).append(task)
  found = []
  for (_, most, _), same in kinds.items():
    for start in range(0, len(same), most):
      members = same[start : start + most]
      found.append(Pack(members, pack.width(len(members)), chain[members[0].id]))
  return found


class Queue:
  """Packs that wait, and what has become of their tasks."""

  def __init__(self, tasks: Sequence[Task]):
    """Leaves out what is done."""
    self.finished = {task.id for task in tasks if task.done()}
    self.errors: dict[str, str] = {}
    self._ready: list[tuple[float, int]] = []  # a heap
    self._needs: dict[int, set[str]] = {}  # by pack: what has not ended yet
    self._needed: dict[str, list[int]] = {}  # by task: the packs that need it
    self._packs = packs(tasks)
    open_ids = {task.id for task in tasks} - self.finished
    for i, own in enumerate(self._packs):
      left = [task for task in own.tasks if task.id in open_ids]
      self._packs[i] = own._replace(tasks=left)
      if left:
        self._needs[i] = {task.needs for task in left if task.needs in open_ids}
        for name in self._needs[i]:
          self._needed.setdefault(name, []).append(i)
        self._offer(i)

  def __bool__(self) -> bool:
    return bool(self._needs)

  def clear(self) -> None:
    """Forgets what waits."""
    self._needs, self._ready = {}, []

  def pop(self) -> Pack | None:
    """Returns the ready pack of the longest chain; tasks whose needs have failed become errors."""
    while self._ready:
      i = heapq.heappop(self._ready)[1]
      del self._needs[i]
      tasks = []
      for task in self._packs[i].tasks:
        if task.needs is None or task.needs in self.finished:
          tasks.append(task)
        else:
          error = f"{task.needs} did not finish: {self.errors.get(task.needs, 'it failed')}"
          _record_failure(task, error)
          self.end(task.id, error)
      if tasks:
        return self._packs[i]._replace(tasks=tasks)
    return None

  def put_back(self, own: Pack) -> None:
    """Takes back what was popped and has not ended."""
    self._packs.append(own)
    self._needs[len(self._packs) - 1] = set()
    self._offer(len(self._packs) - 1)

  def another(self, known: set) -> Pack | None:
    """Returns a pack that waits and has a program that is not among these."""
    waiting = (self._packs[i] for i in self._needs)
    return next((other for other in waiting if other.program not in known), None)

  def end(self, name: str, error: str = "") -> None:
    """Takes in that a task has ended: with an error, or finished."""
    if error:
      self.errors[name] = error
    else:
      self.finished.add(name)
    for i in self._needed.pop(name, ()):
      if i in self._needs:
        self._needs[i].remove(name)
        self._offer(i)

  def _offer(self, i: int) -> None:
    if not self._needs[i]:
      heapq.heappush(self._ready, (-self._packs[i].chain, i))


class _Worker:
  """A worker process, what it does, and what it has compiled."""

  def __init__(self, index: int, core: int | None, log: Path, env: dict[str, str]):
    self.index = index
    self.core = core
    self.env = env
    self.pack: Pack | None = None  # what it was handed last
    self.tasks: dict[str, Task] = {}  # of it, those that have not ended, by id
    self.progress: dict[str, dict] = {}
    self.programs: set = set()
    self.ready: dict[str, Any] = {}  # once it is: its devices
    self.rate: float | None = 0.0  # measured; None: not yet
    self.buffer = b""
    self.log = log.open("ab")
    self.process = subprocess.Popen(
      [sys.executable, "-m", "scaling.launch.worker", "any" if core is None else str(core)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self.log,
      env=env,
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

  def __init__(
    self,
    workdir: Path,
    workers: int,
    each_core: bool = True,
    tick: Callable[[], None] = lambda: None,
  ):
    """Starts the workers.

    Args:
      workdir: the sweep's.
      workers: how many; 0: one per core, or a single one where there is an accelerator.
      each_core: on a CPU; False: of 0 workers there is one, on all cores.
      tick: called several times a second while the workers are waited for.
    """
    cores: Sequence[int | None] = process.cores()
    if process.has_accelerator():
      cores = [None] * max(1, workers)
    elif workers:
      cores = [cores[i % len(cores)] for i in range(workers)]
    elif not each_core:
      cores = [None]
    self._log = workdir / "workers.log"
    self._workers: list[_Worker] = []
    self._tick = tick
    self.restart(cores)

  def __len__(self) -> int:
    return len(self._workers)

  def restart(self, cores: Sequence[int | None]) -> None:
    """Has a worker on each of these cores; None: on all of them."""
    self.close()
    env = environment(len(cores))
    self._workers = [_Worker(i, core, self._log, env) for i, core in enumerate(cores)]

  def close(self) -> None:
    """Ends the workers."""
    for worker in self._workers:
      worker.close()

  def setting(self, display: Display, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Returns what runs are trained on: kind and number of a worker's devices, and the workers.

    Raises:
      KeyboardInterrupt: `should_stop` said so.
    """
    while not any(worker.ready for worker in self._workers):
      self._receive(Queue([]), display, stopping=False)
      if should_stop():
        raise KeyboardInterrupt
    found = next(worker.ready for worker in self._workers if worker.ready)
    return found | {"workers": len(self)}

  def rate(
    self,
    config: dict,
    slots: int,
    seconds: float,
    display: Display,
    should_stop: Callable[[], bool],
  ) -> float:
    """Returns the steps in a second of all workers at once, each with so many runs together.

    Raises:
      KeyboardInterrupt: `should_stop` said so.
    """
    for taking in (0.0, seconds):  # compiled by all before one of them is measured
      for worker in self._workers:
        worker.rate = None
        worker.send({"rate": config, "slots": slots, "seconds": taking})
      while any(worker.rate is None for worker in self._workers):
        self._receive(Queue([]), display, stopping=False)
        if should_stop():
          raise KeyboardInterrupt
    return sum(worker.rate or 0.0 for worker in self._workers)

  def run(
    self, tasks: Sequence[Task], display: Display, should_stop: Callable[[], bool]
  ) -> dict[str, str]:
    """Trains every task; returns the errors of those that failed, by id.

    Raises:
      KeyboardInterrupt: `should_stop` said so; every running task has saved its state.
    """
    queue = Queue(tasks)
    display.begin(tasks, queue.finished)
    while queue or any(worker.tasks for worker in self._workers):
      stopping = should_stop()
      if stopping:
        queue.clear()
        for worker in self._workers:
          if worker.tasks:
            worker.send({"stop": True})
      for worker in self._workers:
        if worker.ready and not worker.tasks and (own := queue.pop()):
          # One worker of an accelerator trains on while the next program is compiled; on a CPU that
          # would take the core from the training.
          worker.programs.add(own.program)
          following = queue.another(worker.programs) if process.has_accelerator() else None
          self._hand_out(worker, own, following)
      if queue or any(worker.tasks for worker in self._workers):
        self._receive(queue, display, stopping)
      running = ((worker, name) for worker in self._workers for name in worker.tasks)
      display.update({name: worker.progress.get(name, {}) for worker, name in running})
    if should_stop():
      raise KeyboardInterrupt
    return queue.errors

  def _hand_out(self, worker: _Worker, own: Pack, following: Pack | None) -> None:
    if following:
      worker.programs.add(following.program)
    worker.pack, worker.progress = own, {}
    worker.tasks = {task.id: task for task in own.tasks}
    worker.send(
      {
        "tasks": [
          {"id": task.id, "config": task.config, "folder": str(task.folder)} for task in own.tasks
        ],
        "slots": own.slots,
        "preflight": len(self) if own.tasks[0].preflight else 0,
        "next": following and {"config": following.tasks[0].config, "slots": following.slots},
      }
    )

  def _receive(self, queue: Queue, display: Display, stopping: bool) -> None:
    """Waits a moment for the workers and takes in what they say."""
    self._tick()
    with selectors.DefaultSelector() as selector:
      for worker in self._workers:
        assert worker.process.stdout is not None
        selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
      for key, _ in selector.select(timeout=0.2):
        worker = key.data
        events = worker.events()
        if events is None:
          self._replace(worker, queue, display, stopping)
          continue
        for event in events:
          if "ready" in event:
            worker.ready = event["ready"]
          elif "rate" in event:
            worker.rate = event["rate"]
          elif "said" in event:
            display.say(event["said"])
          elif "finished" in event:
            task = worker.tasks[event["id"]]
            if event["finished"] == "failed":
              _record_failure(task, event["error"])
            if event["finished"] != "interrupted":
              queue.end(task.id, event.get("error", ""))
            if event["finished"] != "interrupted" or stopping:
              del worker.tasks[task.id]  # else it stays with its worker, which is leaving
            display.ended(task, event["finished"], event.get("loss"), event.get("error"))
          else:
            worker.progress[event["id"]] = event

  def _replace(self, worker: _Worker, queue: Queue, display: Display, stopping: bool) -> None:
    """Takes a dead worker's tasks off it and starts another in its place.

    One that was asked to leave, by a SIGTERM to it alone, has saved its runs and ends with code 0.
    """
    code = worker.process.wait()
    if worker.tasks and worker.pack and code == 0 and not stopping:
      queue.put_back(worker.pack._replace(tasks=list(worker.tasks.values())))
    elif worker.tasks and not stopping:
      error = f"its worker died ({'signal' if code < 0 else 'exit code'} {abs(code)})"
      for task in worker.tasks.values():
        _record_failure(task, error)
        queue.end(task.id, error)
        display.ended(task, "failed", None, error)
    elif not worker.ready and not stopping:
      raise RunError(f"a worker could not start (exit code {code}); see {self._log}")
    worker.close()
    i = self._workers.index(worker)
    if stopping:
      worker.tasks = {}
      self._workers.remove(worker)
    else:
      self._workers[i] = _Worker(worker.index, worker.core, self._log, worker.env)


def power_of_two(count: int) -> int:
  """Returns the largest power of two that is not above `count`, which is at least 1."""
  return 1 << (count.bit_length() - 1)


def _record_failure(task: Task, error: str) -> None:
  """Keeps a failed run on record; a new start of the sweep continues it from its checkpoint."""
  task.folder.mkdir(parents=True, exist_ok=True)
  record = files.read_json(task.record) or {"config": task.config}
  failed = {
    "status": "failed",
    "error": error,
    "failed_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "failures": task.failures + 1,
  }
  files.write_json(task.record, record | failed)
