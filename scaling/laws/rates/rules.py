"""Published rules for learning rate and batch size, and what each loses on a grid of runs.

C is 6 N D. N counts what the table's N counts: Step Law's and DeepSeek's leave out the embedding.
A rule that is published as a ratio is anchored: its constant is the optimum of one fitted cell.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.interpolate import LinearNDInterpolator

from configs.errors import DataError
from scaling.laws.rates import surface
from scaling.laws.rates.grid import WINDOW, Grid

MARGIN = 2e-4  # of loss: another model of level and curvature must lose less by more than this
MODELS = (("cell", "shared"), ("smooth", "shared"), ("cell", "power"))
FAR = 2.0  # windows above the bottom, beyond which a cell's runs are interpolated


class Rule(NamedTuple):
  """A rule: as people write it, its source, and (k, n, d) of k N^n D^d for each factor.

  Those that are published as ratios have none: see `anchored`.
  """

  formula: str
  source: str
  powers: Mapping[str, tuple[float, float, float]] = {}

  def factors(self, N: float, D: float) -> dict[str, float]:
    """Computes learning rate and batch [tokens]."""
    return {name: k * N**n * D**d for name, (k, n, d) in self.powers.items()}


RULES: dict[str, Rule] = {
  "step_law": Rule(
    "lr = 1.79 N^-0.713 D^0.307, B = 0.58 D^0.571",
    "Li et al. 2025, arXiv:2503.04715",
    {"lr": (1.79, -0.713, 0.307), "batch": (0.58, 0.0, 0.571)},
  ),
  "deepseek": Rule(
    "lr = 0.3118 C^-0.1250, B = 0.2920 C^0.3271",
    "DeepSeek-AI 2024, arXiv:2401.02954",
    {"lr": (0.3118 * 6**-0.125, -0.125, -0.125), "batch": (0.292 * 6**0.3271, 0.3271, 0.3271)},
  ),
  "porian": Rule(
    "lr = 0.0047 (N / 108M)^(-1/3), B = 160 x 2048 (N / 108M)^(2/3)",
    "Porian et al. 2024, arXiv:2406.19146",
    {
      "lr": (0.0047 * 108e6 ** (1 / 3), -1 / 3, 0.0),
      "batch": (160 * 2048 / 108e6 ** (2 / 3), 2 / 3, 0.0),
    },
  ),
  "delphi": Rule(
    "lr = lr0 (B / B0)^(1/2) (D0 / D)^0.3, B as measured",
    "Marin 2026, openathena.ai/blog/delphi",
  ),
  "mup": Rule("lr = lr0 width0 / width, B as measured", "Yang et al. 2022, arXiv:2203.03466"),
}


def anchored(
  grid: Grid, cell: int, reference: int, best: Mapping[str, float], measured: dict[str, float]
) -> dict[str, dict[str, float]]:
  """Computes what the rules of ratios choose at a cell, from the best factors of a reference cell.

  They name no batch, and take the measured one. Where widths are unknown they go as N^(1/3), as in
  models of one shape.
  """
  (N, D), (N0, D0) = grid.cells[cell], grid.cells[reference]
  growth = (N / N0) ** (1 / 3)
  if grid.width is not None:
    growth = grid.width[grid.cell == cell][0] / grid.width[grid.cell == reference][0]
  root = math.sqrt(measured["batch"] / best["batch"]) if "batch" in best else 1.0
  rates = {"delphi": best["lr"] * root * (D0 / D) ** 0.3, "mup": best["lr"] / growth}
  return {name: measured | {"lr": float(rate)} for name, rate in rates.items()}


class Judge:
  """A cell's own surface, from its runs alone: what any rate and batch lose against its best."""

  def __init__(self, grid: Grid, cell: int, window: float = WINDOW):
    alone = grid.of(cell)
    self.law = surface.fit(alone, window, errors=False)
    self.window, self.bottom = window, math.exp(self.law.level[0])
    self.N, self.D = alone.cells[0].tolist()
    self.best = self.law.best(self.N, self.D)
    done = np.isfinite(alone.loss)
    self.x, self.loss = alone.logs[done], alone.loss[done]

  def lost(self, factors: Mapping[str, float]) -> float:
    """Computes the share of loss lost: by the parabola near the bottom, else between the runs.

    It is inf outside the grid, and where training diverged.
    """
    near = self.law.loss_lost(self.N, self.D, factors)
    if near <= FAR * self.window:
      return near
    x = np.log([factors[name] for name in self.law.names])
    if len(x) == 1:
      order = np.argsort(self.x[:, 0])
      loss = np.interp(x[0], self.x[order, 0], self.loss[order], np.nan, np.nan)
    else:
      loss = LinearNDInterpolator(self.x, self.loss)(x).item()
    return float(loss / self.bottom - 1) if np.isfinite(loss) else math.inf


def judges(grid: Grid, window: float = WINDOW) -> dict[int, Judge]:
  """Fits each cell's own surface, of those that have one."""
  fitted = {}
  for cell in range(len(grid.cells)):
    try:
      fitted[cell] = Judge(grid, cell, window)
    except DataError:  # its best is at an edge, or its runs have no minimum
      continue
  return fitted


def splits(grid: Grid) -> dict[str, list[list[int]]]:
  """Lists what is held out: the largest N, the largest fifth of D, and each cell in its turn."""
  N, D = grid.cells.T
  largest = np.argsort(-D, kind="stable")[: -(-len(D) // 5)]
  return {
    "largest N": [np.flatnonzero(N.max() == N).tolist()],
    "largest D": [largest.tolist()],
    "each cell": [[c] for c in range(len(N))],
  }


class HeldOut(NamedTuple):
  """A held-out cell: where, what its own runs say is best, and what each rule loses there."""

  split: str
  N: float
  D: float
  best: dict[str, float]
  rule: dict[str, float]
  lost: dict[str, float]


def held_out(
  grid: Grid, window: float = WINDOW, level: str = "cell", curvature: str = "shared",
  own: Mapping[int, Judge] | None = None,
) -> list[HeldOut]:  # fmt: skip
  """Fits without some cells, and asks what each rule loses there: the measured one and `RULES`."""
  own = judges(grid, window) if own is None else own
  rows = []
  for split, groups in splits(grid).items():
    for group in groups:
      rest = np.setdiff1d(np.arange(len(grid.cells)), group)
      try:
        law = surface.fit(grid.of(rest), window, level, curvature, False)
      except DataError:  # the rest does not determine it
        continue
      known = [cell for cell in rest.tolist() if cell in own]
      for cell in set(group) & own.keys():
        N, D = grid.cells[cell].tolist()
        chosen = {"measured": law.best(N, D)}
        chosen |= {name: rule.factors(N, D) for name, rule in RULES.items() if rule.powers}
        if known:
          smallest = min(known, key=lambda cell: np.prod(grid.cells[cell]))
          chosen |= anchored(grid, cell, smallest, own[smallest].best, chosen["measured"])
        lost = {name: own[cell].lost(chosen["measured"] | x) for name, x in chosen.items()}
        rows.append(HeldOut(split, N, D, own[cell].best, chosen["measured"], lost))
  return rows


def mean_lost(rows: list[HeldOut], split: str, rule: str = "measured") -> float:
  """Averages what a rule loses over the held-out cells of a split; nan without any."""
  lost = [row.lost[rule] for row in rows if row.split == split and rule in row.lost]
  return float(np.mean(lost)) if lost else math.nan


def choose(grid: Grid, window: float = WINDOW) -> tuple[tuple[str, str], dict[str, float]]:
  """Chooses how level and curvature are modelled, by what the rule loses at held-out cells.

  Returns:
    (level, curvature): the first of `MODELS`, unless another loses `MARGIN` less on average over
    the splits; and the average of each.
  """
  own, scores = judges(grid, window), {}
  for model in MODELS:
    rows = held_out(grid, window, *model, own)
    means = [mean_lost(rows, split) for split in splits(grid)]
    scores[model] = float(np.mean([m for m in means if not math.isnan(m)] or [math.inf]))
  best = min(scores, key=lambda model: scores[model] + MARGIN * (model != MODELS[0]))
  return best, {" level, ".join(model) + " curvature": score for model, score in scores.items()}
