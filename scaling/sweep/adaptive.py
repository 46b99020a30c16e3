"""The next cells of a sweep: which would tell most, what was chosen, and in which rounds.

`adaptive.json` in the sweep's folder holds the compute for such cells and every round of them. A
round is written down before it trains, so that a sweep that was stopped goes on with the same one.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs.errors import ConfigError, UsageError
from model import accounting
from scaling.formats import flops, si, text_table
from scaling.laws import estimators, fit, next_run
from scaling.laws.intervals import predictions
from scaling.laws.tables import runs
from scaling.sweep import plan
from scaling.sweep.plan import Cell
from train.system import files

VERSION = 1  # of adaptive.json


class Proposal(NamedTuple):
  """A cell that is proposed."""

  cell: Cell  # alone, of no trunk
  shrink: float  # SD of log N_opt at the target once it and those before it are trained, over now's
  reason: str


def propose(
  config: ConfigDict,
  cells: Sequence[Cell],
  law: fit.Fit,
  vocab_size: int,
  train_tokens: int,
  budget: float,
) -> list[Proposal]:
  """Proposes the cells that would shrink the interval of N_opt at the held-out budget most.

  An isoFLOP profile whose lowest loss is at the edge of its sizes asks for the cell beyond it
  first; what is left of the `budget` [FLOPs] goes to the c-optimal choice (`next_run.choose`).
  `law` is the fit to the `cells` that there are.
  """
  options = plan.next_cells(config, vocab_size, cells, train_tokens)
  n = np.array([cell.params(config.fit.params) for cell in options], float)
  d, cost = (np.array([getattr(cell, name) for cell in options], float) for name in "DC")
  start = now = next_run.information(law, plan.heldout_budget(config, cells))
  proposals, left = list[Proposal](), budget
  taken = np.zeros(len(options), bool)
  profiles = estimators.isoflop_profiles(law.runs, law.compute)["profiles"]
  for C, edge, side in next_run.open_edges(profiles):
    near = [
      i for i, cell in enumerate(options)
      if cell.budget and abs(math.log(cell.budget / C)) < 0.1 and side * (n[i] - edge) > 0.01 * edge
    ]  # fmt: skip
    i = min(near, key=lambda i: abs(math.log(n[i] / edge)), default=None)
    if i is not None and cost[i] <= left:
      now, left, taken[i] = now.after(n[i], d[i]), left - cost[i], True
      reason = f"the lowest loss at {flops(C)} is at its {'largest' if side > 0 else 'smallest'} N"
      proposals.append(Proposal(options[i], now.sd_relative_to(start), reason))
  free, so_far = np.flatnonzero(~taken), now.sd_relative_to(start)
  for i, shrink in next_run.choose(now, n[free], d[free], cost[free], left):
    proposals.append(Proposal(options[free[i]], so_far * shrink, "tells most about N_opt"))
  return proposals


def begin(config: ConfigDict, workdir: Path, adapt: bool) -> None:
  """Writes down, where `adapt`, that a sweep has adaptive rounds and how much they may spend.

  Raises:
    UserError: there is nothing to spend, or the prediction is sealed.
  """
  if not adapt:
    return
  allowed, stored = config.sweep.adaptive_flops, _read(workdir)
  if not allowed > 0:
    raise ConfigError(
      f"sweep.adaptive_flops={allowed:g}: --adaptive needs compute to spend; set it, to 1e12 for "
      "instance"
    )
  if stored["flops"] != allowed and (workdir / "prediction.json").exists():
    raise UsageError(
      f"workdir={workdir}: its prediction is sealed, on the cells that there are; adaptive cells "
      "come before that: use another workdir"
    )
  files.write_json(workdir / "adaptive.json", files.with_digests(stored | {"flops": allowed}))


def next_round(
  config: ConfigDict,
  workdir: Path,
  cells: Sequence[Cell],
  law: fit.Fit,
  vocab_size: int,
  train_tokens: int,
) -> list[Cell]:
  """Chooses the cells of the next round, [] after the last one.

  A round that is written down and not among `cells` comes first. A new one spends half of what is
  left, or all of it where half buys nothing, and is written down here.
  """
  record, known = _read(workdir), {cell.id for cell in cells}
  for past in record["rounds"]:
    if not known & {cell["id"] for cell in past["cells"]}:
      return [Cell(**cell) for cell in past["cells"]]
  left = record["flops"] - sum(
    cell["flops_spent"] for past in record["rounds"] for cell in past["cells"]
  )
  if left <= 0 or (workdir / "prediction.json").exists():
    return []
  for budget in (left / 2, left):
    if proposals := propose(config, cells, law, vocab_size, train_tokens, budget):
      record["rounds"].append(
        {
          "input_hash": runs.input_hash(law.runs),
          "target": plan.heldout_budget(config, cells),
          "cells": [dataclasses.asdict(proposal.cell) for proposal in proposals],
          "shrink": [proposal.shrink for proposal in proposals],
          "reasons": [proposal.reason for proposal in proposals],
        }
      )
      files.write_json(workdir / "adaptive.json", files.with_digests(record))
      return [proposal.cell for proposal in proposals]
  return []


def _read(workdir: Path) -> dict[str, Any]:
  empty = {"version": VERSION, "flops": 0.0, "rounds": []}
  return files.read_record(workdir / "adaptive.json") or empty


def table(
  config: ConfigDict, corpus: dict, cells: Sequence[Cell], law: fit.Fit, budget: float
) -> str:
  """Makes the table of proposed cells and of what they would tell.

  A budget of 0 is what the sweep's largest cell cost.
  """
  budget = budget or max(cell.C for cell in cells)
  proposals = propose(config, cells, law, corpus["vocab_size"], corpus["train_tokens"], budget)
  target = predictions.optimum(law, C := plan.heldout_budget(config, cells))
  low, high = target["N_opt_interval"]
  reasons = predictions.undetermined(law, C)
  value = f"{si(target['N_opt'])} [{si(low)}, {si(high)}]"
  value = f"undetermined ({reasons[0]})" if reasons else value
  at = f"N_opt at {flops(C)} FLOPs is {value}"
  if not proposals:
    return f"{at}; no cell can be had for {flops(budget)} FLOPs: raise --next_flops"
  columns = ("cell", "N", "D", "C [FLOPs]", "width of log N_opt", "reason")
  rows = [
    (cell.id, si(cell.params(config.fit.params)), si(cell.D), flops(cell.C), f"{shrink:.3f}", why)
    for cell, shrink, why in proposals
  ]
  spent = sum(cell.C for cell, *_ in proposals)
  return (
    f"{at}; its interval in log N would shrink to {proposals[-1].shrink:.0%} of what it is, for "
    f"{flops(spent)} FLOPs = {accounting.petaflop_s_days(spent):.2e} petaflop/s-days:\n\n"
    + text_table(columns, rows)
  )
