"""Published rules for learning rate and batch size, and what each loses on a grid of runs.

C is 6 N D. N counts what the table's N counts: Step Law's and DeepSeek's leave out the embedding.
A rule that is published as a ratio is anchored: its constant is the optimum of one fitted cell.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.interpolate import LinearNDInterpolator

from configs.errors import DataError
from scaling.laws.rates import surface
from scaling.laws.rates.grid import WINDOW, Grid

MARGIN = 2e-4  # of loss: another model of level and curvature must lose less by more than this
MODELS = (("cell", "shared"), ("smooth", "shared"), ("cell", "power"))
FAR = 2.0  # windows above the bottom, beyond which a cell's runs are interpolated


class Cell(NamedTuple):
  """Where a rule is asked: the model's size, its width if known, and the tokens of the run."""

  N: float
  D: float
  width: float | None


class Anchor(NamedTuple):
  """The smallest fitted cell, with its own best factors."""

  cell: Cell
  best: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Rule:
  """A rule: its formula, its source, and the factors that it names.

  Attributes:
    formula: as people write it.
    source: where it is from.
    factors: (cell, anchor, the measured law's best there) -> lr, batch [tokens].
  """

  formula: str
  source: str
  factors: Callable[[Cell, Anchor, Mapping[str, float]], dict[str, float]]


def _width_ratio(cell: Cell, anchor: Anchor) -> float:
  """Computes the ratio of widths; of N^(1/3), as of models of one shape, where they are unknown."""
  if cell.width and anchor.cell.width:
    return cell.width / anchor.cell.width
  return (cell.N / anchor.cell.N) ** (1 / 3)


def _delphi(cell: Cell, anchor: Anchor, measured: Mapping[str, float]) -> dict[str, float]:
  batch = measured.get("batch", 1.0)
  ratio = batch / anchor.best.get("batch", batch)
  lr = anchor.best["lr"] * math.sqrt(ratio) * (anchor.cell.D / cell.D) ** 0.3
  return {"lr": lr, "batch": batch}


RULES: dict[str, Rule] = {
  "step_law": Rule(
    "lr = 1.79 N^-0.713 D^0.307, B = 0.58 D^0.571", "Li et al. 2025, arXiv:2503.04715",
    lambda c, *_: {"lr": 1.79 * c.N**-0.713 * c.D**0.307, "batch": 0.58 * c.D**0.571},
  ),
  "deepseek": Rule(
    "lr = 0.3118 C^-0.1250, B = 0.2920 C^0.3271", "DeepSeek-AI 2024, arXiv:2401.02954",
    lambda c, *_: {
      "lr": 0.3118 * (6 * c.N * c.D) ** -0.125, "batch": 0.2920 * (6 * c.N * c.D) ** 0.3271
    },
  ),
  "porian": Rule(
    "lr = 0.0047 (N / 108M)^(-1/3), B = 160 x 2048 (N / 108M)^(2/3)",
    "Porian et al. 2024, arXiv:2406.19146",
    lambda c, *_: {
      "lr": 0.0047 * (c.N / 108e6) ** (-1 / 3), "batch": 160 * 2048 * (c.N / 108e6) ** (2 / 3)
    },
  ),
  "delphi": Rule(
    "lr = lr0 (B / B0)^(1/2) (D0 / D)^0.3, B as measured", "Marin 2026, openathena.ai/blog/delphi",
    _delphi,
  ),
  "mup": Rule(
    "lr = lr0 width0 / width, B as measured", "Yang et al. 2022, arXiv:2203.03466",
    lambda c, anchor, measured: dict(measured) | {
      "lr": anchor.best["lr"] / _width_ratio(c, anchor)
    },
  ),
}  # fmt: skip


class Judge:
  """A cell's own surface, from its runs alone: what any rate and batch lose against its best."""

  def __init__(self, grid: Grid, cell: int, window: float = WINDOW):
    alone = grid.of(cell)
    self.law = surface.fit(alone, window)
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
        law = surface.fit(grid.of(rest), window, level, curvature)
      except DataError:  # the rest does not determine it
        continue
      anchored = anchor(grid, own, rest)
      for cell in set(group) & own.keys():
        at = place(grid, cell)
        measured = law.best(at.N, at.D)
        chosen = {"measured": measured}
        if anchored:
          chosen |= {name: rule.factors(at, anchored, measured) for name, rule in RULES.items()}
        lost = {name: own[cell].lost(measured | factors) for name, factors in chosen.items()}
        rows.append(HeldOut(split, at.N, at.D, own[cell].best, measured, lost))
  return rows


def place(grid: Grid, cell: int) -> Cell:
  """Returns where a cell is."""
  width = None if grid.width is None else float(grid.width[grid.cell == cell][0])
  N, D = grid.cells[cell].tolist()
  return Cell(N, D, width)


def anchor(grid: Grid, own: Mapping[int, Judge], among: np.ndarray) -> Anchor | None:
  """Returns the cell of least N D that has a best of its own, of some; None: none has."""
  known = [cell for cell in among.tolist() if cell in own]
  if not known:
    return None
  smallest = min(known, key=lambda cell: np.prod(grid.cells[cell]))
  return Anchor(place(grid, smallest), own[smallest].best)


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
