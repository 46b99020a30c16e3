"""The losses that a sweep's unfinished cells are expected to end with, from all curves so far."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from configs import base
from configs.errors import UserError
from scaling.laws.curves import curve_law
from scaling.laws.curves.curve_law import RunCurve
from scaling.laws.tables.curves import train_losses
from scaling.sweep import store
from scaling.sweep.plan import Cell
from train import optim

UNFINISHED = ("planned", "running")
GRID = 4000  # steps of a schedule
Losses = dict[str, tuple[float, tuple[float, float]]]  # by cell, each with its interval


def final_losses(workdir: Path, head: dict[str, Any], cells: Sequence[Cell]) -> Losses:
  """Forecasts the unfinished cells of which enough is seen; {} where no law can be fitted.

  A cell that has not begun is seen as far as the trunk that it will branch from.
  """
  if all(store.outcome(workdir, cell)["status"] not in UNFINISHED for cell in cells):
    return {}
  curves = read_curves(workdir, head, cells)
  with suppress(UserError):
    rows = curve_law.forecast([*curves.values()], head["config"]["fit"]["level"])
    return {[*curves][i]: row for i, row in rows.items()}
  return {}


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
    steps = np.append(tokens / cell.tokens_per_step, cell.steps)
    S, Z = areas(head["config"]["optim"], cell, steps)
    final = outcome["loss"] if outcome["status"] == "done" else float("nan")
    end = float(S[-1]), float(Z[-1])
    curves[cell.id] = RunCurve(cell.N, S[:-1], Z[:-1], loss, end, final, cell.trunk or "")
  return curves


def areas(options: dict[str, Any], cell: Cell, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Computes S and Z of a cell's schedule after some steps [t], in tokens.

  Its warmup counts as constant. A schedule of more than `GRID` steps is read at so many of them.
  """
  config = base.get_config().optim
  config.update(options)
  config.warmup_tokens = 0
  total, tokens = cell.steps, cell.tokens_per_step
  edges = np.rint(np.linspace(0, total, min(total, GRID) + 1)).astype(int)
  rate = np.array([optim.learning_rate(config, 1.0, int(i), total, tokens) for i in edges[:-1]])
  S, Z = (np.cumsum(x * np.diff(edges)) * tokens for x in (rate, 1 - rate))
  return np.interp(steps, edges, [0.0, *S]), np.interp(steps, edges, [0.0, *Z])
