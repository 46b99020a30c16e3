"""The losses that a sweep's unfinished cells are expected to end with, from all curves so far."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from configs import base
from configs.errors import DataError
from scaling.laws.curves import curve_law
from scaling.laws.curves.curve_law import Expected, RunCurve
from scaling.laws.tables.curves import train_losses
from scaling.sweep import store
from scaling.sweep.plan import Cell
from train import optim

UNFINISHED = ("planned", "running")


def final_losses(workdir: Path, head: dict[str, Any], cells: Sequence[Cell]) -> dict[str, Expected]:
  """Forecasts the unfinished cells of which enough is seen, by id; {} with too few finished ones.

  A cell that has not begun is seen as far as the trunk that it will branch from.
  """
  curves = read_curves(workdir, head, cells)
  expected: dict[int, Expected] = {}
  with suppress(DataError):
    expected = curve_law.forecast(list(curves.values()), head["config"]["fit"]["level"])
  names = list(curves)
  return {names[i]: row for i, row in expected.items()}


def read_curves(workdir: Path, head: dict[str, Any], cells: Sequence[Cell]) -> dict[str, RunCurve]:
  """Reads the curves of the cells that are done or may yet be, by id; probes have other rates."""
  curves = {}
  for cell in cells:
    outcome = store.outcome(workdir, cell, head["config"]["fit"].get("loss", ""))
    if cell.kind == "probe" or outcome["status"] not in ("done", *UNFINISHED):
      continue
    tokens, loss = train_losses(workdir / "cells" / cell.id)
    if cell.trunk:
      trunk, trunk_loss = train_losses(workdir / "trunks" / cell.trunk)
      before = trunk <= cell.branch_step * cell.tokens_per_step
      tokens = np.concatenate([trunk[before], tokens])
      loss = np.concatenate([trunk_loss[before], loss])
    S, Z = areas(head["config"]["optim"], cell)
    at = np.rint(tokens / cell.tokens_per_step).astype(int) - 1
    final = outcome["loss"] if outcome["status"] == "done" else float("nan")
    end = float(S[-1]), float(Z[-1])
    curves[cell.id] = RunCurve(cell.N, S[at], Z[at], loss, end, final, cell.trunk or "")
  return curves


def areas(options: dict[str, Any], cell: Cell) -> tuple[np.ndarray, np.ndarray]:
  """Computes S and Z [steps] of a cell's schedule, in tokens; its warmup counts as constant."""
  config = base.get_config().optim
  config.update(options)
  config.warmup_tokens = 0
  per_step = cell.tokens_per_step
  rate = [
    optim.learning_rate(config, 1.0, step, cell.steps, per_step) for step in range(cell.steps)
  ]
  return np.cumsum(rate) * per_step, np.cumsum(1 - np.array(rate)) * per_step
