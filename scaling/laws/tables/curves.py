"""Training curves of a sweep's cells, read from its folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from train.system import files


def read_curves(
  workdir: Path, ids: Sequence[str], N: np.ndarray, D: np.ndarray, C: np.ndarray
) -> Iterator[tuple[str, float, np.ndarray, np.ndarray, np.ndarray]]:
  """Yields the curve of each of some runs [n]: id, N, and tokens, FLOPs, loss, arrays [t].

  A cell that was branched from a trunk begins with the trunk's curve up to its branch.
  """
  sweep = files.read_json(workdir / "sweep.json") or {}
  trunks = {cell["id"]: cell.get("trunk") for cell in sweep.get("cells", [])}
  for name, n, d, c in zip(ids, N, D, C, strict=True):
    curve = train_losses(workdir / "cells" / name)
    if trunks.get(name):
      curve = join(train_losses(workdir / "trunks" / trunks[name]), curve)
    if curve.size:
      yield name, n, curve[0], curve[0] * c / d, curve[1]


def train_losses(folder: Path) -> np.ndarray:
  """Reads (tokens, train_loss) [2, t] of a run."""
  rows = files.read_rows(folder / "metrics.jsonl")
  pairs = [(r["tokens"], r["train_loss"]) for r in rows if r.get("train_loss") is not None]
  curve = np.array(pairs, float).reshape(-1, 2).T
  return curve[:, np.isfinite(curve[1]) & (curve[0] > 0)]


def join(trunk: np.ndarray, cooldown: np.ndarray) -> np.ndarray:
  """Prepends a trunk's curve [2, s] to that of a cell [2, t]; an empty cell stays empty."""
  if not cooldown.size:
    return cooldown
  return np.concatenate([trunk[:, trunk[0] < cooldown[0, 0]], cooldown], axis=1)
