"""Trains tasks through a command of the user's: a shell, ssh, a batch system.

Each pack of tasks has a folder in tasks/, at the path that its first run has in the sweep's folder:
task.json, which a worker trains from; events.jsonl, in which it says how far it is; log, what the
command printed. All paths must be the same wherever the command runs.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from scaling.launch import child
from scaling.launch.base import Launcher, Worker
from scaling.launch.queue import Failure, Pack, Queue
from scaling.progress import Display
from train.system import files

POLL_SECONDS = 0.2


def fill(template: str, **values: str) -> list[str]:
  """Splits a template into words as a shell does, and fills {command}, {folder} and {id} in.

  Raises:
    ConfigError: it cannot be filled in, or would not say what to run.
  """
  problem = "name {command}, what a worker is started with, or {folder}, which has its task.json"
  try:
    words = [word.format(**values) for word in shlex.split(template)]
    if "{command}" in template or "{folder}" in template:
      return words
  except (ValueError, KeyError, IndexError) as error:
    problem = f"cannot be read ({error!r}); write {{{{ for a brace"
  raise ConfigError(f"sweep.command={template!r}: {problem}, as in 'bash -c {{command}}'")


class Job(Worker):
  """A pack of tasks, and the command that trains it."""

  def __init__(self, pack: Pack, folder: Path, template: str):
    """Writes the pack to task.json and starts the command."""
    super().__init__()
    self.hold(pack)
    self._stopped, self._offset = False, 0
    folder.mkdir(parents=True, exist_ok=True)
    self._events, self.log = folder / "events.jsonl", folder / "log"
    self._events.unlink(missing_ok=True)  # of an earlier start
    files.write_json(folder / "task.json", pack.describe())
    python_path = f"PYTHONPATH={child.environment().get('PYTHONPATH', '')}"
    worker = child.command("scaling.launch.worker", str(folder / "task.json"))
    line = shlex.join(["env", python_path, *worker])
    with self.log.open("ab") as log:
      self.process = subprocess.Popen(
        fill(template, command=line, folder=str(folder), id=pack.tasks[0].id),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,  # a Ctrl-C reaches the launcher only
      )

  def stop(self) -> None:
    """Sends SIGTERM to the command and all that it started; a worker saves its runs then."""
    if not self._stopped:
      self._stopped = True
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self.process.pid, signal.SIGTERM)

  def events(self) -> list[dict]:
    """Reads the events that are new."""
    rows = files.read_rows(self._events)
    new, self._offset = rows[self._offset :], len(rows)
    return new

  def ended(self) -> bool:
    """Returns whether nothing of the command runs any more."""
    if self.process.poll() is None:
      return False
    try:
      os.killpg(self.process.pid, 0)  # a shell may end before what it has started
    except ProcessLookupError:
      return True
    return False


class Command(Launcher):
  """Starts a command for each pack of tasks, so many at a time."""

  def __init__(
    self,
    workdir: Path,
    template: str,
    workers: int,
    display: Display,
    should_stop: Callable[[], bool],
    tick: Callable[[], None] = lambda: None,
  ):
    """Starts nothing yet; 0 `workers`: one at a time. ConfigError: the template is no command."""
    super().__init__(display, should_stop, tick)
    fill(template, command="", folder="", id="")
    self._workdir, self._template = workdir, template
    self._count = max(1, workers)
    self.workers: list[Job] = []

  def __len__(self) -> int:
    return self._count

  def setting(self) -> dict[str, Any]:
    """Returns the template: what it leads to is not known here."""
    return {"command": self._template}

  def hand_out(self, queue: Queue) -> None:
    """Starts commands for packs that wait for nothing."""
    while len(self.workers) < self._count and (pack := queue.pop()):
      folder = pack.tasks[0].folder.relative_to(self._workdir)
      self.workers.append(Job(pack, self._workdir.absolute() / "tasks" / folder, self._template))

  def receive(self, queue: Queue) -> None:
    """Reads events; of a command that has ended, the records of the runs decide."""
    time.sleep(POLL_SECONDS)
    for job in [*self.workers]:
      ended = job.ended()  # before its last events are read
      for event in job.events():
        self.take_in(event, job, queue)
      if not ended and job.tasks:
        continue
      self.workers.remove(job)
      for task in job.tasks.values():
        if task.done():
          queue.finish(task)
          self._display.ended(task.id, "done", None)
        elif not self._stopping:
          code = job.process.returncode
          error = f"its command ended with exit code {code} before the run did; see {job.log}"
          self.fail(task, Failure(error), queue)

  def close(self) -> None:
    """Stops the commands that run."""
    for job in self.workers:
      job.stop()
    for job in self.workers:
      job.process.wait()
