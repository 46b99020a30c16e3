"""Where a sweep's time goes: costs.json, from the start of the command to the verdict.

The sweep's process is at every moment in one part (`PARTS`), so its parts add up to the wall time
of all its starts. While it runs its workers (`run`), the time is split by what they did.
"""

import contextlib
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from configs.errors import UserError
from train.system import files

RECORD = "costs.json"
TICK_SECONDS = 2.0  # what a killed sweep may lose of the part in which it runs its workers
PARTS = {
  "start": "imports; in runs: initialise or restore",
  "data": "corpus and tokenizer; in runs: batches, beside the step before on a shared core",
  "preflight": "workers come up, every size is compiled and checked for memory",
  "compile": "in runs: compile, or load what was compiled",
  "train": "in runs: steps",
  "evaluate": "in runs: validation",
  "checkpoint": "in runs: saving",
  "unsplit": "in runs: not split by their records",
  "idle": "workers wait: for work, for another to finish, between runs",
  "fit": "fits, intervals, prediction, verdict",
  "records": "plans and tables",
  "report": "figures",
}


class SweepClock:
  """Wall time of the sweep's process by part, kept in costs.json over all starts of the sweep."""

  def __init__(
    self, workdir: Path, began: float | None = None, now: Callable[[], float] = time.perf_counter
  ):
    """Opens the account of a folder; `began` is since when its part is `start` (None: now)."""
    self._now = now
    self.open(workdir, began)

  def open(self, workdir: Path, began: float | None = None) -> None:
    """Goes on with the account of a folder, an arm's for instance, from its earlier starts."""
    self._path = workdir / RECORD
    stored: dict[str, Any] = {}
    with contextlib.suppress(UserError):  # a damaged account is begun anew
      stored = files.read_record(self._path) or {}
    self._wall: dict[str, float] = stored.get("wall", {})
    self._worker_seconds = stored.get("worker_seconds", 0.0)
    self._part, self._workers = "start", 0
    self._since = self._now() if began is None else began

  def __call__(self, part: str, workers: int = 0) -> None:
    """Ends the present part and begins another; `workers`: how many there are, in `run`."""
    now = self._now()
    self._wall[self._part] = self._wall.get(self._part, 0.0) + now - self._since
    self._worker_seconds += (now - self._since) * self._workers
    self._part, self._workers, self._since = part, workers, now
    self._write()

  def tick(self) -> None:
    """Writes the present part so far, unless that was done within `TICK_SECONDS`."""
    if self._now() - self._since >= TICK_SECONDS:
      self(self._part, self._workers)

  def finish(self, records: Iterable[dict]) -> float:
    """Ends the present part, writes the split by the runs' records, returns the whole time [s]."""
    self(self._part)
    parts = split(self._wall, self._worker_seconds, records)
    self._write(parts=parts)
    return sum(parts.values())

  def _write(self, **more: Any) -> None:
    record = {"wall": self._wall, "worker_seconds": self._worker_seconds} | more
    files.write_json(self._path, files.with_digests(record))


def split(
  wall: dict[str, float], worker_seconds: float, records: Iterable[dict]
) -> dict[str, float]:
  """Splits the wall time of the sweep's process into parts that add up to it [s].

  In the part `run`, in which all workers together work for `worker_seconds`, a second of one of w
  workers is charged as 1/w of a second. What the runs' records do not account for is `idle`:
  workers that wait, and runs that were killed or failed. What a record's `times` leave out of its
  `seconds` is `unsplit`.
  """
  parts = dict.fromkeys(PARTS, 0.0) | {k: v for k, v in wall.items() if k != "run"}
  run = wall.get("run", 0.0)
  workers = worker_seconds / run if run else 1.0
  accounted = 0.0
  for record in records:
    times = record.get("times", {})
    rest = max(0.0, record.get("seconds", 0.0) - sum(times.values()))
    for part, seconds in (times | {"unsplit": rest}).items():
      parts[part] += seconds / workers
      accounted += seconds / workers
  parts["idle"] += run - accounted
  return parts
