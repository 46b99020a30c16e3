"""Where a run's time goes: seconds by phase, each second in one of them.

jax reports what it spends on tracing, lowering and compiling (or on loading a program from the
cache on disk), wherever that happens; it is `compile`, whatever phase it happens in.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import jax

PHASES = ("start", "compile", "data", "train", "evaluate", "checkpoint")


class Clock:
  """Seconds by phase, of one run. It runs within its with-blocks only."""

  def __init__(self) -> None:
    self._seconds = dict.fromkeys(PHASES, 0.0)
    self._phase: str | None = None
    self._since = 0.0

  @contextmanager
  def __call__(self, phase: str) -> Iterator[None]:
    """Charges the time in the block to a phase, without that of blocks within it."""
    before = self._switch(phase)
    try:
      yield
    finally:
      self._switch(before)

  def add(self, clock: "Clock", share: float) -> None:
    """Adds a share of the time on another clock, which stands still."""
    for phase, seconds in clock._seconds.items():  # noqa: SLF001 -- of the same class
      self._seconds[phase] += share * seconds

  def times(self) -> dict[str, float]:
    """Returns the seconds of each phase until now; their sum is the run's."""
    self._switch(self._phase)
    return {phase: round(seconds, 3) for phase, seconds in self._seconds.items()}

  def _switch(self, phase: str | None) -> str | None:
    now, before = time.perf_counter(), self._phase
    if before:
      compiling = sum(end - start for start, end in _spans() if start >= self._since)
      self._seconds["compile"] += compiling
      self._seconds[before] += now - self._since - compiling
    _spans().clear()
    self._phase, self._since = phase, now
    return before


_thread = threading.local()  # a compilation in another thread takes none of this one's time


def _spans() -> deque[tuple[float, float]]:
  """Returns when jax compiled in this thread: disjoint (start, end), in order [s]."""
  if not hasattr(_thread, "spans"):
    _thread.spans = deque(maxlen=1000)
  return _thread.spans


def _add_span(event: str, duration_secs: float, **_: str | int) -> None:
  """Adds what jax reports. Functions are traced within others, and reported before them."""
  if event.startswith("/jax/core/compile/"):
    end, spans = time.perf_counter(), _spans()
    while spans and spans[-1][0] >= end - duration_secs:
      spans.pop()
    spans.append((end - duration_secs, end))


jax.monitoring.register_event_duration_secs_listener(_add_span)
