"""The next cells of a sweep: which would tell most, what was chosen, and in which rounds.

`adaptive.json` in the sweep's folder holds the compute for such cells and every round of them. A
round is written down before it trains, so that a sweep that was stopped goes on with the same one.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs.errors import ConfigError, UsageError
from model import accounting
from scaling.formats import flops, si, text_table
from scaling.laws import fit, next_run
from scaling.laws.intervals import predictions
from scaling.laws.tables import runs
from scaling.sweep import plan
from scaling.sweep.plan import Cell
from train.system import files

VERSION = 1  # of adaptive.json
MOST_RUNS = 8  # that are proposed beside those of a table


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
  """Proposes the cells that would shrink the interval of N_opt most, at the farthest budget.

  That is the farthest held-out one. As `next_run.propose` does, within a `budget` [FLOPs]; `law` is
  the fit to the `cells` that there are.
  """
  options = plan.next_cells(config, vocab_size, cells, train_tokens)
  n = np.array([cell.params(config.fit.params) for cell in options], float)
  d, cost, isoflop = (
    np.array([getattr(cell, name) for cell in options], float) for name in ("D", "C", "budget")
  )
  C = plan.heldout_budgets(config, cells)[-1]
  chosen = next_run.propose(law, C, n, d, isoflop, cost, budget)
  return [Proposal(options[i], shrink, reason) for i, shrink, reason in chosen]


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
          "target": plan.heldout_budgets(config, cells)[-1],
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
  rows = [
    (cell.id, cell.params(config.fit.params), cell.D, cell.C, shrink, why)
    for cell, shrink, why in proposals
  ]
  return text(law, plan.heldout_budgets(config, cells)[-1], rows, budget)


def table_of_runs(law: fit.Fit, C: float, budget: float) -> str:
  """Makes the table of runs proposed beside those of any table, for N_opt at C FLOPs.

  A budget of 0 is what the largest run cost.

  Raises:
    UnidentifiableError: the runs tell too little for a choice.
  """
  if law.unbounded:
    raise runs.UnidentifiableError(f"plan: undetermined: {predictions.undetermined(law)[0]}")
  budget = budget or float(law.runs.C.max())
  n, d, cost = next_run.candidates(law, budget)
  chosen = next_run.propose(law, C, n, d, cost, cost, budget, MOST_RUNS)
  rows = [
    (f"run {k}", n[i], d[i], cost[i], shrink, why)
    for k, (i, shrink, why) in enumerate(chosen, start=1)
  ]
  return text(law, C, rows, budget)


def text(law: fit.Fit, C: float, rows: Sequence[tuple], budget: float) -> str:
  """Formats proposed runs: name, N, D, C, the width of log N_opt(C) after them, and the reason."""
  target = predictions.optimum(law, C)
  low, high = target["N_opt_interval"]
  reasons = predictions.undetermined(law, C)
  value = f"{si(target['N_opt'])} [{si(low)}, {si(high)}]"
  value = f"undetermined ({reasons[0]})" if reasons else value
  at = f"N_opt at {flops(C)} FLOPs is {value}"
  if not rows:
    return f"{at}; no run can be had for {flops(budget)} FLOPs: raise --next_flops"
  columns = ("cell", "N", "D", "C [FLOPs]", "width of log N_opt", "reason")
  spent = sum(row[3] for row in rows)
  return (
    f"{at}; its interval in log N would shrink to {rows[-1][4]:.0%} of what it is, for "
    f"{flops(spent)} FLOPs = {accounting.petaflop_s_days(spent):.2e} petaflop/s-days:\n\n"
    + text_table(
      columns,
      [(name, si(n), si(d), flops(c), f"{width:.3f}", why) for name, n, d, c, width, why in rows],
    )
  )
