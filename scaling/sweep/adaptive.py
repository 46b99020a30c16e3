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
from scaling.laws import fit, next_run, runs
from scaling.sweep import plan
from scaling.sweep.plan import Cell
from train.system import files

VERSION = 1  # of adaptive.json


class Proposal(NamedTuple):
  """A cell that is proposed.

  Attributes:
    cell: what would be trained, alone.
    shrink: the SD of log N_opt at the target once it and those before it are trained, over today's.
    reason: why.
  """

  cell: Cell
  shrink: float
  reason: str


def propose(
  config: ConfigDict,
  cells: Sequence[Cell],
  law: fit.Fit,
  vocab_size: int,
  train_tokens: int,
  budget: float,
) -> list[Proposal]:
  """Returns the cells that would shrink the interval of N_opt at the held-out budget most.

  An isoFLOP profile whose lowest loss is at the edge of its sizes asks for the cell beyond it
  first; what is left of the budget goes to the c-optimal choice (`design.choose`).

  Args:
    config: the sweep's config, with its learning-rate rule.
    cells: the fit cells that there are.
    law: the fit to them.
    vocab_size: V.
    train_tokens: of the corpus.
    budget: what may be spent [FLOPs].
  """
  options = plan.next_cells(config, vocab_size, cells, train_tokens)
  n, d, cost = (
    np.array([value(cell) for cell in options], float)
    for value in (lambda c: c.params(config.fit.params), lambda c: c.D, lambda c: c.C)
  )
  target, runs = plan.heldout_budget(config, cells), law.runs
  held = law.convergence["at_bound"]
  start = now = next_run.information(law.law, runs.N, runs.D, target, law.compute, held)
  found, left = [], budget
  for C, edge, side in next_run.open_edges(fit.isoflop_profiles(runs, law.compute)["profiles"]):
    near = [
      i for i, cell in enumerate(options)
      if cell.budget and abs(math.log(cell.budget / C)) < 0.1 and side * (n[i] - edge) > 0.01 * edge
    ]  # fmt: skip
    i = min(near, key=lambda i: abs(math.log(n[i] / edge)), default=None)
    if i is not None and cost[i] <= left:
      now, left = now.after(n[i], d[i]), left - cost[i]
      shrink = math.sqrt(now.variance / start.variance)
      reason = f"the lowest loss at {flops(C)} is at its {'largest' if side > 0 else 'smallest'} N"
      found.append(Proposal(options[i], shrink, reason))
  taken = [proposal.cell for proposal in found]
  free = np.array([i for i, cell in enumerate(options) if cell not in taken], int)
  so_far = math.sqrt(now.variance / start.variance)
  for i, shrink in next_run.choose(now, n[free], d[free], cost[free], left):
    found.append(Proposal(options[free[i]], so_far * shrink, "tells most about N_opt"))
  return found


def check(config: ConfigDict, workdir: Path, asked: bool) -> None:
  """Refuses adaptive rounds, if they are asked for, that cannot be.

  Raises:
    UserError: there is no compute for them, or the sweep's prediction is sealed already.
  """
  allowed = config.sweep.adaptive_flops
  if asked and not allowed > 0:
    raise ConfigError(
      f"sweep.adaptive_flops={allowed:g}: --adaptive needs compute to spend; set it, to 1e12 for "
      "instance"
    )
  if asked and _read(workdir)["flops"] != allowed and (workdir / "prediction.json").exists():
    raise UsageError(
      f"workdir={workdir}: its prediction is sealed, on the cells that there are; adaptive cells "
      "come before that: use another workdir"
    )


def begin(config: ConfigDict, workdir: Path, asked: bool) -> None:
  """Writes down that a sweep has adaptive rounds, if that is asked, and how much they may spend.

  Raises:
    UserError: see `check`.
  """
  check(config, workdir, asked)
  if asked:
    flops = config.sweep.adaptive_flops
    files.write_json(workdir / "adaptive.json", _read(workdir) | {"flops": flops})


def next_round(
  config: ConfigDict,
  workdir: Path,
  cells: Sequence[Cell],
  law: fit.Fit,
  vocab_size: int,
  train_tokens: int,
) -> list[Cell]:
  """Returns the cells of the next round, [] after the last one.

  A round that is written down and not among `cells` comes first. A new one spends half of what is
  left, or all of it where half buys nothing, and is written down here.

  Args:
    config: the sweep's config, with its learning-rate rule.
    workdir: the sweep's folder.
    cells: the fit cells so far, those of earlier rounds included.
    law: the fit to them.
    vocab_size: V.
    train_tokens: of the corpus.
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
    if found := propose(config, cells, law, vocab_size, train_tokens, budget):
      record["rounds"].append(
        {
          "input_hash": runs.input_hash(law.runs),
          "target": plan.heldout_budget(config, cells),
          "cells": [dataclasses.asdict(proposal.cell) for proposal in found],
          "shrink": [proposal.shrink for proposal in found],
          "reasons": [proposal.reason for proposal in found],
        }
      )
      files.write_json(workdir / "adaptive.json", record)
      return [proposal.cell for proposal in found]
  return []


def _read(workdir: Path) -> dict[str, Any]:
  return files.read_json(workdir / "adaptive.json") or {
    "version": VERSION,
    "flops": 0.0,
    "rounds": [],
  }


def table(config: ConfigDict, corpus: dict, cells: Sequence[Cell], law: fit.Fit, budget: float):
  """Returns what `isoflop plan --next` prints: the proposed cells and what they would tell.

  Args:
    config: the sweep's config, with its learning-rate rule.
    corpus: of sweep.json: its vocab_size and train_tokens.
    cells: the fit cells that there are.
    law: the fit to them.
    budget: what may be spent [FLOPs]; 0: as much as its largest cell cost.
  """
  budget = budget or max(cell.C for cell in cells)
  found = propose(config, cells, law, corpus["vocab_size"], corpus["train_tokens"], budget)
  target = fit.optimum(law, plan.heldout_budget(config, cells))
  low, high = target["N_opt_interval"]
  at = f"N_opt at {flops(target['C'])} FLOPs is {si(target['N_opt'])} [{si(low)}, {si(high)}]"
  if not found:
    return f"{at}; no cell can be had for {flops(budget)} FLOPs: raise --next_flops"
  rows = [
    (p.cell.id, si(p.cell.params(config.fit.params)), si(p.cell.D), flops(p.cell.C),
     f"{p.shrink:.3f}", p.reason)
    for p in found
  ]  # fmt: skip
  names = ("cell", "N", "D", "C [FLOPs]", "width of log N_opt", "reason")
  spent = sum(p.cell.C for p in found)
  return (
    f"{at}; its interval in log N would shrink to {found[-1].shrink:.0%} of what it is, for "
    f"{flops(spent)} FLOPs = {accounting.petaflop_s_days(spent):.2e} petaflop/s-days:\n\n"
    + text_table(names, rows)
  )
