"""Trains tasks in worker processes on this machine, each on a core of its own.

A run whose worker was asked to leave goes on in another. Two workers with a core each train two
small models in less time than one worker with both cores trains them in turn.
"""

import contextlib
import json
import os
import selectors
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.errors import RunError
from scaling.launch import base, child
from scaling.launch.queue import Failure, Pack, Queue
from scaling.progress import Display
from train.system import files, process


class Worker(base.Worker):
  """A worker process, what it was given, and what it has compiled."""

  def __init__(self, index: int, core: int | None, log: Path, env: dict[str, str]):
    """Starts the process; a `core` of None: on all cores."""
    super().__init__()
    self.index = index
    self.core = core
    self.env = env
    self.pack: Pack | None = None  # what it was given last
    self.programs: set = set()
    self.ready: dict[str, Any] = {}  # once it is: its devices
    self.rate: float | None = 0.0  # steps per second; None: not measured yet
    self.buffer = b""
    with files.named(log):
      self.log = log.open("ab")
    self.process = subprocess.Popen(
      child.command("scaling.launch.worker", "--serve", "any" if core is None else str(core)),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self.log,
      env=env,
      start_new_session=True,  # a Ctrl-C reaches the launcher only, which asks the worker to stop
    )
    assert self.process.stdin is not None
    assert self.process.stdout is not None
    self.input, self.output = self.process.stdin, self.process.stdout

  def send(self, message: dict) -> None:
    """Sends a message; that a worker is dead is seen at its output."""
    with contextlib.suppress(BrokenPipeError):
      self.input.write((json.dumps(message) + "\n").encode())
      self.input.flush()

  def stop(self) -> None:
    """Asks it to save its runs and leave."""
    self.send({"stop": True})

  def give(self, pack: Pack, following: Pack | None, preflight: int) -> None:
    """Gives it a pack to train, and another whose program it compiles meanwhile."""
    self.pack = pack
    self.hold(pack)
    self.programs |= {some.program for some in (pack, following) if some}
    ahead = following and {"config": following.tasks[0].config, "slots": following.slots}
    self.send(pack.describe(preflight) | {"next": ahead})

  def events(self) -> list[dict] | None:
    """Reads the events that it has sent; None: it is dead."""
    chunk = os.read(self.output.fileno(), 1 << 16)
    if not chunk:
      return None
    *lines, self.buffer = (self.buffer + chunk).split(b"\n")
    return [json.loads(line) for line in lines]

  def close(self) -> None:
    """Ends the process."""
    with contextlib.suppress(BrokenPipeError):
      self.input.close()
    self.process.wait()
    self.output.close()
    self.log.close()


class Pool(base.Launcher):
  """Worker processes that live as long as the sweep."""

  def __init__(
    self,
    workdir: Path,
    workers: int,
    display: Display,
    should_stop: Callable[[], bool],
    tick: Callable[[], None] = lambda: None,
    each_core: bool = True,
  ):
    """Starts so many workers; 0: one per core, or one where there is an accelerator.

    Of 0 workers on a CPU without `each_core`, it starts one, on all cores.
    """
    super().__init__(display, should_stop, tick)
    cores: Sequence[int | None] = process.cores()
    if process.has_accelerator():
      cores = [None] * max(1, workers)
    elif workers:
      cores = [cores[i % len(cores)] for i in range(workers)]
    elif not each_core:
      cores = [None]
    self._log = workdir / "workers.log"
    self.workers: list[Worker] = []
    self.restart(cores)

  def __len__(self) -> int:
    return len(self.workers)

  def restart(self, cores: Sequence[int | None]) -> None:
    """Starts a worker on each of these cores instead of those there are; None: on all cores."""
    self.close()
    env = child.worker_environment(len(cores))
    self.workers = [Worker(i, core, self._log, env) for i, core in enumerate(cores)]

  def close(self) -> None:
    """Ends the workers."""
    for worker in self.workers:
      worker.close()

  def setting(self) -> dict[str, Any]:
    """Returns what runs are trained on: kind and number of a worker's devices, and the workers."""
    self._wait_until(lambda: any(worker.ready for worker in self.workers))
    ready = next(worker.ready for worker in self.workers if worker.ready)
    return ready | {"workers": len(self)}

  def rate(self, config: dict, slots: int, seconds: float) -> float:
    """Measures the steps per second of all workers at once, each with `slots` runs together."""
    for duration in (0.0, seconds):  # compiled by all before one of them is measured
      for worker in self.workers:
        worker.rate = None
        worker.send({"rate": config, "slots": slots, "seconds": duration})
      self._wait_until(lambda: all(worker.rate is not None for worker in self.workers))
    return sum(worker.rate or 0.0 for worker in self.workers)

  def _wait_until(self, holds: Callable[[], bool]) -> None:
    while not holds():
      self._tick()
      self.receive(Queue([]))
      if self._should_stop():
        raise KeyboardInterrupt

  def hand_out(self, queue: Queue) -> None:
    """Gives each idle worker a pack, and on an accelerator the program that comes next."""
    for worker in self.workers:
      if worker.ready and not worker.tasks and (pack := queue.pop()):
        # A worker of an accelerator trains on while the next program is compiled; on a CPU that
        # would take the core from the training.
        known = worker.programs | {pack.program}
        following = queue.another(known) if process.has_accelerator() else None
        worker.give(pack, following, len(self))

  def receive(self, queue: Queue) -> None:
    """Reads the events of the workers, and replaces those that have died."""
    with selectors.DefaultSelector() as selector:
      for worker in self.workers:
        selector.register(worker.output, selectors.EVENT_READ, worker)
      for key, _ in selector.select(timeout=0.2):
        events = key.data.events()
        if events is None:
          self._replace(key.data, queue)
        for event in events or ():
          if "ready" in event:
            key.data.ready = event["ready"]
          elif "rate" in event:
            key.data.rate = event["rate"]
          else:
            self.take_in(event, key.data, queue)

  def _replace(self, worker: Worker, queue: Queue) -> None:
    """Takes a dead worker's tasks off it and starts another in its place.

    One that was asked to leave, by a SIGTERM to it alone, has saved its runs and ends with code 0.
    """
    code = worker.process.wait()
    worker.close()
    place = self.workers.index(worker)
    if self._stopping:
      del self.workers[place]
      return
    if worker.tasks and worker.pack and code == 0:
      queue.put_back(worker.pack._replace(tasks=list(worker.tasks.values())))
    elif worker.tasks:
      failure = Failure(f"its worker died ({'signal' if code < 0 else 'exit code'} {abs(code)})")
      for task in worker.tasks.values():
        self.fail(task, failure, queue)
    elif not worker.ready:
      raise RunError(f"a worker could not start (exit code {code}); see {self._log}")
    self.workers[place] = Worker(worker.index, worker.core, self._log, worker.env)
