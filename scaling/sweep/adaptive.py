"""The next cells of a sweep: which would tell most, what was chosen, and in which rounds.

`adaptive.json` in the sweep's folder holds the compute for such cells and every round of them. A
round is written down before it trains, so that a sweep that was stopped goes on with the same one.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs.errors import ConfigError, UsageError
from scaling.claims import integrity
from scaling.formats import flops, pf_days, si, text_table
from scaling.laws import fit, next_run
from scaling.laws.intervals import predictions
from scaling.laws.tables import read, runs
from scaling.sweep import plan, store
from scaling.sweep.plan import Cell
from scaling.tune.rule import with_lr_rule
from train.system import files

VERSION = 1  # of adaptive.json
MOST_RUNS = 8  # that are proposed beside those of a table


def propose(
  config: ConfigDict, cells: Sequence[Cell], law: fit.Fit, corpus: plan.Corpus, budget: float
) -> list[tuple[Cell, float, str]]:
  """Proposes the cells for a `budget` [FLOPs] that shrink the interval of N_opt most.

  It is N_opt at the farthest held-out budget; `law` is the fit to the `cells` that there are. Each
  comes with the width of that interval in log N, once it and those before it are trained, over what
  it is now, and with the reason (`next_run.propose`).
  """
  options = plan.next_cells(config, corpus, cells)
  n = np.array([cell.params(config.fit.params) for cell in options], float)
  d, cost, isoflop = (
    np.array([getattr(cell, name) for cell in options], float) for name in ("D", "C", "budget")
  )
  C = plan.heldout_budgets(config, cells)[-1]
  chosen = next_run.propose(law, C, n, d, isoflop, cost, budget)
  return [(options[i], shrink, reason) for i, shrink, reason in chosen]


def begin(config: ConfigDict, workdir: Path, adapt: bool) -> None:
  """Writes down, where `adapt`, that a sweep has adaptive rounds and how much they may spend."""
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
  config: ConfigDict, workdir: Path, cells: Sequence[Cell], law: fit.Fit, corpus: plan.Corpus
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
    if proposals := propose(config, cells, law, corpus, budget):
      chosen, shrink, reasons = map(list, zip(*proposals, strict=True))
      record["rounds"].append({
        "input_hash": runs.input_hash(law.runs),
        "target": plan.heldout_budgets(config, cells)[-1],
        "cells": [dataclasses.asdict(cell) for cell in chosen],
        "shrink": shrink,
        "reasons": reasons,
      })  # fmt: skip
      files.write_json(workdir / "adaptive.json", files.with_digests(record))
      return chosen
  return []


def _read(workdir: Path) -> dict[str, Any]:
  empty = {"version": VERSION, "flops": 0.0, "rounds": []}
  return files.read_record(workdir / "adaptive.json") or empty


def table(config: ConfigDict, workdir: Path, budget: float) -> str:
  """Makes the table of the cells that would tell most, beside those of the sweep in a folder.

  They may cost `budget` together [FLOPs]; 0: as much as the sweep's largest cell.
  """
  integrity.check_cells(workdir)
  head, stored = store.read_sweep(workdir)
  config = with_lr_rule(config, head.get("lr_rule"))
  f, corpus = config.fit, (head["corpus"]["vocab_size"], head["corpus"]["train_tokens"])
  trained = read.read_runs(workdir / "cells.csv", params=f.params, flops=f.flops, loss=f.loss)
  law = fit.fit_runs(trained, f)
  cells = [cell for cell in stored if cell.kind == "fit"]
  budget = budget or max(cell.C for cell in cells)
  proposals = propose(config, cells, law, corpus, budget)
  rows = [
    (cell.id, cell.params(f.params), cell.D, cell.C, shrink, why) for cell, shrink, why in proposals
  ]
  return text(law, plan.heldout_budgets(config, cells)[-1], rows, budget)


def table_of_runs(config: ConfigDict, path: str, reading: dict[str, Any], budget: float) -> str:
  """Makes the table of runs that would tell most, beside those of any table of runs.

  They may cost `budget` together [FLOPs]; 0: as much as the largest run.
  """
  f = config.fit
  table_runs = read.read_runs(path, params=f.params, flops=f.flops, loss=f.loss, **reading)
  law = fit.fit_runs(table_runs, f)
  if law.unbounded:
    raise runs.UnidentifiableError(f"plan: undetermined: {predictions.undetermined(law)[0]}")
  largest = float(law.runs.C.max())
  C, budget = config.sweep.heldout_budgets[-1] * largest, budget or largest
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
  if reasons:
    value = f"undetermined ({reasons[0]})"
  at = f"N_opt at {flops(C)} FLOPs is {value}"
  if not rows:
    return f"{at}; no run can be had for {flops(budget)} FLOPs: raise --next_flops"
  columns = ("cell", "N", "D", "C [FLOPs]", "width of log N_opt", "reason")
  cells = [(name, si(n), si(d), flops(c), f"{x:.3f}", why) for name, n, d, c, x, why in rows]
  spent = sum(row[3] for row in rows)
  return (
    f"{at}; its interval in log N would shrink to {rows[-1][4]:.0%} of what it is, for "
    f"{flops(spent)} FLOPs = {pf_days(spent):.2e} petaflop/s-days:\n\n"
    f"{text_table(columns, cells)}"
  )
