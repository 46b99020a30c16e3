"""The content of tune.json: the fitted law, what it rests on, and what each rule loses."""

import hashlib
from typing import Any

import numpy as np

from scaling import formats
from scaling.laws.rates import optimum, rules, surface
from scaling.laws.rates.grid import Grid
from scaling.laws.rates.surface import Surface
from train.system import files

VERSION = 1
UNITS = {
  "lr": "learning rate",
  "batch": "batch [tokens]",
  "timescale": "weight-decay timescale [tokens]",
}


def grid_hash(grid: Grid) -> str:
  """Computes the SHA-256 of the runs' N, D, loss and factors, whatever their order."""
  table = np.stack([grid.N, grid.D, grid.loss, *grid.factors.values()], axis=1).astype("<f8")
  order = np.lexsort(table.T)
  return hashlib.sha256(np.ascontiguousarray(table[order]).tobytes()).hexdigest()


def make(grid: Grid, window: float, level: float, model: tuple[str, str] | None = None) -> dict:
  """Fits the law and holds cells out; returns the content of tune.json.

  `window` is of loss above a cell's lowest, `level` the intervals' probability content, `model`
  of level and curvature; None: the one that loses least at held-out cells.

  Raises:
    DataError: the runs determine no law.
  """
  surface.fit(grid, window, errors=False)  # refuses what no choice of model helps
  scores: dict[str, float] = {}
  if model is None:
    model, scores = rules.choose(grid, window)
  law = surface.fit(grid, window, *model)
  own = rules.judges(grid, window)
  rows = rules.held_out(grid, window, *model, own)
  ends = law.intervals(level)
  names = ("constant", "N", "D")
  best: dict[str, Any] = {}
  for i, name in enumerate(law.names):
    best[name] = dict(zip(names, law.optimum[i].tolist(), strict=True))
    if ends is not None:
      best[name]["intervals"] = dict(zip(names, ends[:, i].T.tolist(), strict=True))
  return {
    "version": VERSION,
    "rests_on": grid_hash(grid),
    "level": level,
    "options": law.options,
    "models": scores,
    "runs": len(grid.loss),
    "used": int(law.used.sum()),
    "diverged": int(np.isinf(grid.loss).sum()),
    "sd": law.sd,
    "best": best,
    "law": law.to_json(),
    "cells": [_cell(grid, law, own, c, level) for c in range(len(grid.cells))],
    "heldout": [row._asdict() | {"lost": files.finite(row.lost)} for row in rows],
    "rules": {
      name: {
        "formula": rule.formula if rule else "",
        "source": rule.source if rule else "these runs",
        "lost": files.finite({x: rules.mean_lost(rows, x, name) for x in rules.splits(grid)}),
      }
      for name, rule in {"measured": None, **rules.RULES}.items()
    },
  }  # fmt: skip


def _cell(grid: Grid, law: Surface, own: dict[int, rules.Judge], c: int, level: float) -> dict:
  N, D = grid.cells[c].tolist()
  some, best = grid.cell == c, law.best(N, D)
  cell = {
    "N": N, "D": D, "runs": int(some.sum()), "used": int((law.used & some).sum()),
    "edge": law.edges.get(c, []), "own": own[c].best if c in own else None,
    "law": best, "interval": law.best_interval(N, D, level), "lowest": float(grid.lowest[c]),
  }  # fmt: skip
  burst = some & np.isinf(grid.loss)
  if "batch" in law.names and burst.any():  # at the batch nearest to the best
    off = np.abs(np.log(grid.factors["batch"] / best["batch"]))
    burst &= off == off[some].min()
  if burst.any():
    cell["lowest_diverged"] = float(grid.factors["lr"][burst].min())
  return cell


def _percent(share: float | None) -> str:
  return formats.DASH if share is None else f"{100 * share:.3f}"


def text(record: dict) -> str:
  """Renders tune.json for the terminal."""
  law, options = optimum.load(record), record["options"]
  head = (
    f"{record['used']} of {record['runs']} runs are near the bottom of their (N, D): within "
    f"{100 * options['window']:g} %, or a few more where those are few; {record['diverged']} "
    f"diverged. {len(record['cells'])} (N, D), {options['level']} level, {options['curvature']} "
    "curvature."
  )
  lines = [head, "", _optima(record), ""]
  if "batch" in law.names:
    slope = -law.curvature[0, 1] / law.curvature[0, 0]
    lines += [
      f"At another batch B than the best, B*, the rate is to be (B / B*)^{slope:.2f} as large.",
      "",
    ]
  return "\n".join([*lines, _cells(record, law.names), "", *_doubts(record), _lost(record)])


def _optima(record: dict) -> str:
  rows = []
  for name, c in record["best"].items():
    row = [UNITS[name], f"{np.exp(c['constant']):.3g}"]
    for x in "ND":
      row.append(f"{c[x]:.3f} {formats.bracket(c.get('intervals', {}).get(x), formats.exponent)}")
    rows.append(row)
  share = f"{100 * record['level']:g} %"
  return formats.text_table(["best", "constant", f"exponent of N, {share}", "of D"], rows)


def _cells(record: dict, names: tuple[str, ...]) -> str:
  rows = []
  for cell in record["cells"]:
    own = [f"{cell['own'][x]:.3g}" if cell["own"] else formats.DASH for x in names]
    of_law = [f"{cell['law'][x]:.3g}" for x in names]
    rows.append([formats.si(cell["N"]), formats.si(cell["D"]), *own, *of_law])
  head = [f"{x} of {whose}" for whose in ("its runs", "the law") for x in names]
  return formats.text_table(["N", "D", *head], rows)


def _doubts(record: dict) -> list[str]:
  """Lists cells that are left out, and those where the law asks for a rate that diverged."""
  lines = []
  for cell in record["cells"]:
    where = f"N = {formats.si(cell['N'])}, D = {formats.si(cell['D'])}"
    if edge := " and ".join(cell["edge"]):
      lines.append(f"{where}: left out, its best is at the edge of its grid in {edge}.")
    if cell["law"]["lr"] >= cell.get("lowest_diverged", np.inf):
      lowest = f"{cell['lowest_diverged']:.3g}"
      lines.append(f"{where}: the law's rate is not below {lowest}, which diverged.")
  return [*lines, ""] if lines else []


def _lost(record: dict) -> str:
  splits = list(record["rules"]["measured"]["lost"])
  held = [row["split"] for row in record["heldout"]]
  rows = [
    [name, *(_percent(rule["lost"][x]) for x in splits), rule["formula"] or "fitted to the rest"]
    for name, rule in record["rules"].items()
  ]
  columns = [f"{split} ({held.count(split)})" for split in splits]
  return formats.text_table(["loss lost [%] at held-out:", *columns, "rule"], rows)
