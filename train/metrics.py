"""Rows of metrics.jsonl, fetched late so that the device never waits for the host."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from train.system import files


class Metrics:
  """Writes a row per interval of steps.

  Its losses are averages over `steps` of them, fewer after a stop. A row is fetched when the
  interval after it is complete: by then its steps are done, and the fetch does not stop the device.
  """

  def __init__(
    self, path: Path, first_step: int, last_step: int, describe: Callable[[int], dict[str, Any]]
  ):
    """Opens metrics.jsonl; drops the rows that will be made again.

    `describe` gives the other columns of a row, by the steps done.
    """
    rows = [row for row in files.read_rows(path) if row["step"] <= first_step]
    rows = [row for row in rows if row["step"] < last_step or "eval_loss" not in row]
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    self._file, self._path = path.open("a"), path
    self._describe = describe
    self._interval: list[dict] = []
    self._pending: list[tuple[int, list[dict]]] = []
    self.loss: float | None = None  # of the newest row [nats per token]

  @property
  def diverged(self) -> bool:
    """Whether the newest row's loss is not finite."""
    return self.loss is not None and not math.isfinite(self.loss)

  def add(self, metrics: dict) -> None:
    """Adds a step's metrics (`train.step.train_step`) to the interval, still on the device."""
    self._interval.append(metrics)

  def end_interval(self, step: int) -> None:
    """Ends the interval after `step` steps, and writes the row of the one before it."""
    if self._interval:
      self._pending.append((step, self._interval))
      self._interval = []
    self.flush(pending=1)

  def flush(self, pending: int = 0) -> None:
    """Writes rows until only so many intervals are pending."""
    while len(self._pending) > pending:
      step, interval = self._pending.pop(0)
      fetched = jax.device_get(interval)
      row = {"step": step, "steps": len(interval), **self._describe(step)}
      for name in fetched[0]["sums"]:
        total, weight = np.sum([metrics["sums"][name] for metrics in fetched], axis=0)
        row[f"train_{name}"] = float(total / max(1, weight))  # there may be nothing to predict
      self.loss = row["train_loss"]
      self.write(row | {"grad_norm": float(fetched[-1]["grad_norm"])})

  def write(self, row: dict) -> None:
    """Appends a row."""
    with files.named(self._path):
      self._file.write(json.dumps(files.finite(row), allow_nan=False) + "\n")
      self._file.flush()

  def close(self) -> None:
    """Closes the file, and lets go of the run, which holds this: both end without a collection."""
    self._file.close()
    del self._describe
