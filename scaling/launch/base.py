"""What launchers share: a loop that hands out packs of tasks and takes in how they end."""

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scaling.launch.queue import Failure, Pack, Queue, Task, WorkerError
from scaling.progress import Display


class Worker(abc.ABC):
  """Somewhere that trains a pack of tasks, and sends events (see `worker`)."""

  def __init__(self) -> None:
    """Has no task yet."""
    self.tasks: dict[str, Task] = {}  # of its pack, those that have not ended, by id
    self.progress: dict[str, dict] = {}  # by id

  def hold(self, pack: Pack) -> None:
    """Takes in that it has a pack to train."""
    self.tasks, self.progress = {task.id: task for task in pack.tasks}, {}

  @abc.abstractmethod
  def stop(self) -> None:
    """Asks its runs to save their states and end; it may be asked again."""


class Launcher(abc.ABC):
  """Trains tasks on workers.

  A subclass says what its workers are. A failing run does not take the others with it: its error is
  recorded in its run.json, and the next start tries it again.
  """

  def __init__(
    self, display: Display, should_stop: Callable[[], bool], tick: Callable[[], None] = lambda: None
  ):
    """Has no workers yet; where `should_stop` is True they save their runs.

    `tick` is called several times a second while they are waited for.
    """
    self._display, self._should_stop, self._tick = display, should_stop, tick
    self._stopping = False
    self.workers: Sequence[Worker] = []  # that there are now

  @abc.abstractmethod
  def __len__(self) -> int:
    """Returns how many packs may be trained at once."""

  @abc.abstractmethod
  def setting(self) -> dict[str, Any]:
    """Describes what runs are trained on; where it changes, sizes are compiled and checked anew."""

  @abc.abstractmethod
  def hand_out(self, queue: Queue) -> None:
    """Gives packs of the queue to workers that are free."""

  @abc.abstractmethod
  def receive(self, queue: Queue) -> None:
    """Waits a moment for the workers; calls `take_in` for their events, and sees to dead ones."""

  @abc.abstractmethod
  def close(self) -> None:
    """Ends the workers."""

  def run(self, tasks: Sequence[Task]) -> dict[str, Failure]:
    """Trains every task; returns the failures, by id.

    Raises:
      KeyboardInterrupt: `should_stop` is True; every running task has saved its state.
      WorkerError: a worker came upon a bug outside of its runs.
    """
    queue = Queue(tasks)
    self._display.begin({task.id: task.cost for task in tasks}, queue.finished)
    while queue or self._busy():
      self._stopping = self._should_stop()
      if self._stopping:
        queue.clear()
        for worker in self._busy():
          worker.stop()
      self.hand_out(queue)
      if queue or self._busy():
        self._tick()
        self.receive(queue)
      running = ((worker, name) for worker in self.workers for name in worker.tasks)
      self._display.update({name: worker.progress.get(name, {}) for worker, name in running})
    if self._should_stop():
      raise KeyboardInterrupt
    return queue.failures

  def _busy(self) -> list[Worker]:
    return [worker for worker in self.workers if worker.tasks]

  def take_in(self, event: Mapping[str, Any], worker: Worker, queue: Queue) -> None:
    """Takes in an event of a worker."""
    match event:
      case {"message": text}:
        self._display.say(text)
      case {"bug": text}:
        raise WorkerError("a worker", Failure("a bug", "bug", text))
      case {"id": name, "finished": "interrupted"}:
        if self._stopping:
          del worker.tasks[name]  # else it stays with its worker, which is leaving
        self._display.ended(name, "interrupted", None)
      case {"id": name, "finished": "failed"}:
        self.fail(worker.tasks.pop(name), Failure(**event["failure"]), queue)
      case {"id": name, "finished": status}:
        queue.finish(worker.tasks.pop(name))
        self._display.ended(name, status, event["loss"])
      case {"id": name}:
        worker.progress[name] = dict(event)

  def fail(self, task: Task, failure: Failure, queue: Queue) -> None:
    """Takes in that a task has failed."""
    queue.fail(task, failure)
    self._display.ended(task.id, failure.error, None)
