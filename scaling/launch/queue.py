"""What workers train: tasks, packs of tasks that share a compiled shape, and the queue of packs."""

import bisect
import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from configs.errors import RunError
from train import aot
from train.pack import width
from train.system import files


@dataclasses.dataclass(frozen=True)
class Task:
  """One run to train, or to compile and measure."""

  id: str
  folder: Path
  config: dict[str, Any]
  cost: float  # estimate of its time [FLOPs]
  needs: str | None = None  # the task that must be done before
  shape: Any = None  # runs of one shape share a compiled program
  pack: int = 1  # runs of its shape that a worker may train together, a power of two
  preflight: bool = False  # compile it, and record what it needs of its device; train nothing
  failures: int = 0  # earlier starts of the sweep at which it failed

  @property
  def path(self) -> Path:
    """The file that holds its outcome."""
    return self.folder / (aot.RECORD if self.preflight else "run.json")

  def done(self) -> bool:
    """Returns whether there is nothing left to do."""
    record = files.read_json(self.path)
    return record is not None and record["status"] in ("done", "diverged")

  def record_failure(self, failure: "Failure") -> None:
    """Adds a failure to the task's record; a new start continues the run from its checkpoint."""
    failed = {
      "status": "failed",
      "error": failure.error,
      "failed_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
      "failures": self.failures + 1,
      "traceback": failure.traceback,
    }
    with contextlib.suppress(files.FolderInUseError, RunError):  # its record; its sweep was moved
      files.make_run_folder(self.folder)
      with files.owned(self.folder):
        record = files.read_json(self.path) or {"config": self.config}
        kept = {name: x for name, x in record.items() if name not in ("digests", "hash")}
        files.write_json(self.path, kept | failed)


class Failure(NamedTuple):
  """Why a task did not finish."""

  error: str  # one line; of an exception with its type, "TypeError: ..."
  kind: Literal["bug", "run", "user"] = "run"  # as `configs.errors.kind` tells them apart
  traceback: str = ""  # of a bug

  @property
  def message(self) -> str:
    """The error without the type of a user's error."""
    return self.error.partition(": ")[2] if self.kind == "user" else self.error


class WorkerError(Exception):
  """A bug that a worker came upon; its text has the worker's traceback."""

  def __init__(self, name: str, failure: Failure):
    super().__init__(f"{name} failed in a worker:\n\n{failure.traceback.rstrip()}")


def raise_bug(failures: Mapping[str, Failure]) -> None:
  """Raises WorkerError where one of these failures, by id of their task, is by a bug."""
  for name, failure in failures.items():
    if failure.traceback:
      raise WorkerError(name, failure)


class Pack(NamedTuple):
  """Tasks that a worker trains together."""

  tasks: list[Task]
  slots: int  # of the program that trains them, a power of two
  chain: float  # cost of the longest of them with all that depends on it [FLOPs]

  @property
  def program(self) -> tuple:
    """The key of its compiled program."""
    return self.tasks[0].shape, self.slots

  def describe(self, sharing: int = 1) -> dict[str, Any]:
    """Describes it for a worker; `sharing` is how many workers share a device's memory."""
    tasks = [
      {"id": x.id, "config": x.config, "folder": str(x.folder.absolute()), "needs": x.needs}
      for x in self.tasks
    ]
    preflight = sharing if self.tasks[0].preflight else 0
    return {"tasks": tasks, "slots": self.slots, "preflight": preflight}


def group(tasks: Sequence[Task]) -> list[Pack]:
  """Groups tasks that share a compiled shape, longest dependency chain first.

  The groups depend on the plan alone, and not on which tasks are done: a sweep that is started
  again trains each run in as many slots as before, so its numbers are the same.
  """
  chain = {task.id: task.cost for task in tasks}
  for task in tasks:
    if task.needs in chain:
      chain[task.needs] += task.cost
  alike: dict[Any, list[Task]] = {}
  for task in sorted(tasks, key=lambda task: -chain[task.id]):
    alike.setdefault((task.shape, task.pack, task.needs is None), []).append(task)
  packs = []
  for (_, size, _), members in alike.items():
    for start in range(0, len(members), size):
      part = members[start : start + size]
      packs.append(Pack(part, width(len(part)), chain[part[0].id]))
  return packs


class Queue:
  """The packs that wait to be trained, longest chain first."""

  def __init__(self, tasks: Sequence[Task]):
    """Groups all tasks, and leaves out those that are done."""
    self.finished = {task.id for task in tasks if task.done()}
    self.failures: dict[str, Failure] = {}  # by id of the task
    self._pending = {task.id for task in tasks} - self.finished
    self._waiting: list[Pack] = []
    for pack in group(tasks):
      left = [task for task in pack.tasks if task.id in self._pending]
      if left:
        self.put_back(pack._replace(tasks=left))

  def __bool__(self) -> bool:
    return bool(self._waiting)

  def put_back(self, pack: Pack) -> None:
    """Queues a pack, before those of shorter chains."""
    bisect.insort(self._waiting, pack, key=lambda pack: -pack.chain)

  def clear(self) -> None:
    """Drops all packs."""
    self._waiting = []

  def pop(self) -> Pack | None:
    """Takes out the first pack that waits for nothing; a task whose needs have failed fails too."""
    i = 0
    while i < len(self._waiting):
      if any(task.needs in self._pending for task in self._waiting[i].tasks):
        i += 1
        continue
      pack = self._waiting.pop(i)
      tasks = [task for task in pack.tasks if not self._fails_with_its_needs(task)]
      if tasks:
        return pack._replace(tasks=tasks)
    return None

  def _fails_with_its_needs(self, task: Task) -> bool:
    if task.needs is None or task.needs in self.finished:
      return False
    cause = self.failures.get(task.needs, Failure("it failed"))
    self.fail(task, Failure(f"{task.needs} did not finish: {cause.error}", cause.kind))
    return True

  def another(self, programs: set) -> Pack | None:
    """Returns a waiting pack whose program is not among these."""
    return next((pack for pack in self._waiting if pack.program not in programs), None)

  def finish(self, task: Task) -> None:
    """Takes in that a task has finished."""
    self._pending.discard(task.id)
    self.finished.add(task.id)

  def fail(self, task: Task, failure: Failure) -> None:
    """Takes in that a task has failed, also into its record."""
    self._pending.discard(task.id)
    self.failures[task.id] = failure
    task.record_failure(failure)


def power_of_two(count: int) -> int:
  """Returns the largest power of two that is not above `count`, which is at least 1."""
  return 1 << (count.bit_length() - 1)
