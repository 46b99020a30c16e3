"""Progress on the terminal: one line per running cell; plain lines where there is no terminal."""

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scaling.formats import duration, printable

PLAIN_SECONDS = 10.0  # between lines of progress where there is no terminal


class Display:
  """What a sweep shows to the person who waits for it."""

  def __init__(self, title: str, stream: TextIO | None = None):
    """Writes to a stream (None: stderr); draws over its lines where that is a terminal."""
    self.title = title
    self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
    self._live = Live(console=self._console, refresh_per_second=4, transient=True)
    self._fancy = self._console.is_terminal
    self._began = time.monotonic()
    self.begin({}, set())

  def __enter__(self) -> "Display":
    if self._fancy:
      self._live.start()
    return self

  def __exit__(self, *_: object) -> None:
    if self._fancy:
      self._live.stop()

  def say(self, text: str) -> None:
    """Prints a line that stays, with the time since the start."""
    since = duration(time.monotonic() - self._began)
    self._console.print(Text(f"[{since:>9}] {printable(text)}"))

  def begin(self, costs: dict[str, float], finished: set[str]) -> None:
    """Begins a phase of tasks, by id, of which some are finished already."""
    self._costs, self._count = costs, len(finished)
    self._finished = self._resumed = sum(costs[name] for name in finished)  # by earlier starts
    self._phase_began = time.monotonic()

  def ended(self, name: str, outcome: str, loss: float | None) -> None:
    """Prints that a task has ended: its status or error, or its loss."""
    if outcome in ("done", "diverged"):
      self._finished += self._costs[name]
      self._count += 1
    what = outcome if loss is None else f"loss {loss:.4f}"
    left = self._seconds_left(self._finished)
    self.say(f"{self._count}/{len(self._costs)} {name}: {what}; {left} left in this phase")

  def update(self, running: Mapping[str, dict]) -> None:
    """Draws the running cells."""
    if not self._fancy:
      return
    table = Table.grid(padding=(0, 2))
    finished = self._finished
    for name, progress in running.items():
      if not progress:
        table.add_row(name, ProgressBar(1, 0, width=20), "starting")
        continue
      step, steps = progress["step"], progress["steps"]
      finished += step / steps * self._costs.get(name, 0.0)
      bar, left = ProgressBar(steps, step, width=20), duration(progress["seconds_left"])
      loss = f"loss {progress['loss']:.3f}"
      table.add_row(name, bar, f"step {step:,}/{steps:,}", loss, f"{left} left")
    count = f"{self._count}/{len(self._costs)} runs, {self._seconds_left(finished)} left"
    self._live.update(Group(Text(f"{self.title}: {count}", style="bold"), table))

  def update_one(self, progress: dict) -> None:
    """Shows the progress of a single run."""
    self.show(
      f"step {progress['step']:,}/{progress['steps']:,}, loss {progress['loss']:.4f}, "
      f"{duration(progress['seconds_left'])} left"
    )

  def show(self, text: str) -> None:
    """Shows a line that the next one draws over; without a terminal, one every ten seconds."""
    text = f"{self.title}: {text}"
    if self._fancy:
      self._live.update(Text(text))
    elif time.monotonic() - self._phase_began > PLAIN_SECONDS:
      self._phase_began = time.monotonic()
      self.say(text)

  def _seconds_left(self, finished: float) -> str:
    total, new = sum(self._costs.values()), finished - self._resumed
    if new <= 0 or total <= 0:
      return "?"
    return duration((time.monotonic() - self._phase_began) * (total - finished) / new)
