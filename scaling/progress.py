"""Progress on the terminal: one line per running cell; plain lines where there is no terminal."""

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 10.0  # between lines of progress where there is no terminal


def duration(seconds: float) -> str:
  """Returns a time for people: 42 s, 3:07 min, 2:15 h."""
  if seconds < 60:
    return f"{seconds:.0f} s"
  if seconds < 3600:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"
  return f"{int(seconds) // 3600}:{int(seconds) % 3600 // 60:02d} h"


class Display:
  """What a sweep tells the person who waits for it."""

  def __init__(self, title: str, stream: TextIO = sys.stderr):
    """Writes to a stream; draws over its lines where that is a terminal."""
    self._console = Console(file=stream, highlight=False, soft_wrap=True)
    self._live = Live(console=self._console, refresh_per_second=4, transient=True)
    self._fancy = self._console.is_terminal
    self.title = title
    self._began = time.monotonic()
    self._total = self._finished = self._resumed = 0.0
    self._costs: dict[str, float] = {}
    self._count = 0
    self._phase_began = time.monotonic()

  def __enter__(self) -> "Display":
    if self._fancy:
      self._live.start()
    return self

  def __exit__(self, *_: object) -> None:
    if self._fancy:
      self._live.stop()

  def say(self, text: str) -> None:
    """Prints a line that stays, with the time since the start."""
    self._console.print(Text(f"[{duration(time.monotonic() - self._began):>9}] {text}"))

  def begin(self, tasks: Iterable[Any], finished: set[str]) -> None:
    """Takes in the tasks of a phase."""
    self._costs = {task.id: task.cost for task in tasks}
    self._total = sum(self._costs.values())
    self._finished = self._resumed = sum(self._costs[name] for name in finished)
    self._count = len(finished)
    self._phase_began = time.monotonic()

  def ended(self, task: Any, status: str, loss: float | None, error: str | None) -> None:
    """A task came back."""
    if status in ("done", "diverged"):
      self._finished += task.cost
      self._count += 1
    what = f"loss {loss:.4f}" if loss is not None else error or status
    left = self._seconds_left(self._finished)
    self.say(f"{self._count}/{len(self._costs)} {task.id}: {what}; {left} left in this phase")

  def update(self, running: Mapping[str, dict]) -> None:
    """Draws the running cells."""
    if not self._fancy:
      return
    table = Table.grid(padding=(0, 2))
    fraction = self._finished
    for name, progress in running.items():
      if progress:
        share = progress["step"] / max(1, progress["steps"])
        fraction += share * self._costs.get(name, 0.0)
        bar = "█" * int(20 * share) + "░" * (20 - int(20 * share))
        table.add_row(
          name,
          bar,
          f"step {progress['step']:,}/{progress['steps']:,}",
          f"loss {progress['loss']:.3f}",
          f"{duration(progress['seconds_left'])} left",
        )
      else:
        table.add_row(name, "░" * 20, "starting")
    done = (
      f"{self.title}: {self._count}/{len(self._costs)} runs, {self._seconds_left(fraction)} left"
    )
    self._live.update(Group(Text(done, style="bold"), table))

  def update_one(self, name: str, progress: dict) -> None:
    """Shows the progress of a single run: a line that is drawn over, or one every ten seconds."""
    text = (
      f"{name}: step {progress['step']:,}/{progress['steps']:,}, loss {progress['loss']:.4f}, "
      f"{duration(progress['seconds_left'])} left"
    )
    if self._fancy:
      self._live.update(Text(text))
    elif time.monotonic() - self._phase_began > PLAIN_SECONDS:
      self._phase_began = time.monotonic()
      self.say(text)

  def _seconds_left(self, finished: float) -> str:
    spent = time.monotonic() - self._phase_began
    new = finished - self._resumed
    if new <= 0 or self._total <= 0:
      return "?"
    return duration(spent * (self._total - finished) / new)
