"""Says whether a sealed prediction held: verification.json."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from scaling.claims import kinds
from scaling.formats import si
from scaling.laws import fit
from scaling.laws.intervals import predictions
from scaling.laws.tables.runs import Runs
from scaling.sweep import plan, store
from train.system import files

VERSION = 3  # of verification.json


def judge(
  config: ConfigDict, workdir: Path, law: fit.Fit, sealed: dict, heldout: list[plan.Cell]
) -> dict:
  """Judges each sealed claim by the held-out cells that trained; writes verification.json.

  The prediction at a budget held where what was sealed of the loss did: the claim on the least loss
  there, if the cells tell it, and that on the loss of the trained cell nearest to N*; of several
  seeds the mean is judged.
  """
  losses = {cell.id: store.outcome(workdir, cell, config.fit.loss) for cell in heldout}
  trained = {
    cell["cell"]: cell | {"trained_loss": run["loss"], "loss_stderr": run["loss_stderr"]}
    for cell in sealed["cells"]
    for run in (losses[cell["cell"]],)
    if run["status"] == "done" and math.isfinite(run["loss"])
  }
  result = {"version": VERSION, "seal": sealed["sha256"]} | assess(sealed, trained)
  target = config.fit.target_tokens_per_param
  for budget in result["budgets"]:
    if budget["held"] is not None:
      budget["cost_of_target"] = predictions.ratio_cost(law, budget["C"], target)
  result |= conclude(result["budgets"], sealed)
  files.write_json(workdir / "verification.json", files.with_digests(result))
  return result


def addressed(
  sealed: dict, runs: Runs, tolerance: float
) -> tuple[dict[str, Any], dict[str, kinds.Trained]]:
  """Addresses the claims of a seal to the runs of a table that answer them.

  A run answers the claim on a cell whose N and D are its own within `tolerance`, whoever trained
  it. Returns the seal with those runs in `tested_by`, and the runs by that name.
  """
  trained: dict[str, kinds.Trained] = {}
  budgets = []
  for budget in sealed["budgets"]:
    of_cell: dict[str, list[str]] = {}
    for cell in {(row["N"], row["D"]): row for row in budget["cells"]}.values():
      near = np.abs(np.log([runs.N / cell["N"], runs.D / cell["D"]])).max(0) <= tolerance
      names = {f"{cell['cell']}, row {i}": float(runs.loss[i]) for i in np.flatnonzero(near)}
      trained |= {name: cell | {"cell": name, "trained_loss": x} for name, x in names.items()}
      of_cell |= {row["cell"]: [*names] for row in budget["cells"] if row["N"] == cell["N"]}
    claims = [
      claim | {"tested_by": [*dict.fromkeys(x for id in claim["tested_by"] for x in of_cell[id])]}
      for claim in budget["claims"]
    ]
    budgets.append(budget | {"claims": claims})
  return {**sealed, "budgets": budgets}, trained


def assess(sealed: dict, trained: Mapping[str, kinds.Trained]) -> dict[str, Any]:
  """Judges each sealed claim by runs of the cells that test it, by the cell's id.

  Returns `claims`, `cells` (each run beside what was said of it), and a headline per budget.
  """
  runs = []
  for cell in trained.values():
    (low, high), loss = cell["interval"], cell["trained_loss"]
    inside, error = low <= loss <= high, loss / cell["predicted_loss"] - 1
    ratio = {"tokens_per_param": cell["D"] / cell["N"]}
    runs.append(cell | ratio | {"inside": inside, "relative_error": error})
  by_id = {run["cell"]: run for run in runs}
  claims, budgets = [], []
  for budget in sealed["budgets"]:
    judged = [kinds.judge(kinds.Claim(**claim), by_id) for claim in budget["claims"]]
    claims += judged
    known = {key: budget[key] for key in ("C", "times") if key in budget}
    budgets.append(known | _headline(budget, judged, by_id))
  return {"claims": claims, "cells": runs, "budgets": budgets}


def _headline(
  sealed: dict, claims: list[dict], trained: Mapping[str, kinds.Trained]
) -> dict[str, Any]:
  """Returns what the report shows of a budget: the least loss, the cell nearest to N*, N*."""
  told = [x for x in claims if x["what"] == "loss" and x["measured"] is not None]
  if not told:
    return {"held": None}
  nearest = min(told, key=lambda claim: abs(math.log(claim["at"]["N"] / sealed["N"])))
  least, place = (
    next(claim for claim in claims if claim["what"] == what) for what in ("least_loss", "N_opt")
  )
  return {
    "held": nearest["held"] and least["held"] is not False,
    "N": nearest["at"]["N"],
    "D": nearest["at"]["D"],
    "predicted_loss": nearest["predicted"],
    "interval": nearest["interval"],
    "trained_loss": nearest["measured"],
    "seeds": [trained[x]["trained_loss"] for x in nearest["tested_by"] if x in trained],
    "inside": nearest["held"],
    "relative_error": nearest["measured"] / nearest["predicted"] - 1,
    "least_loss": {key: least[key] for key in ("predicted", "interval", "measured", "held")},
    "minimum_where_predicted": place["held"],
    "trained_minimum_N": place["measured"],
    "predicted_N": sealed["N"],
    "predicted_N_interval": sealed["N_interval"],
    "tokens_per_param": sealed["tokens_per_param"],
    "tokens_per_param_interval": sealed["tokens_per_param_interval"],
  }


def conclude(budgets: list[dict[str, Any]], sealed: dict) -> dict[str, Any]:
  """Puts the verdict in words, of each budget and of all.

  `farthest` is the farthest budget whose prediction held [FLOPs], and `held` whether all did.
  """
  for budget in budgets:
    budget["verdict"] = sentence(budget)
  told = [budget for budget in budgets if budget["held"] is not None]
  held = [budget for budget in told if budget["held"]]
  verdict = budgets[0]["verdict"]
  if told and (len(budgets) > 1 or sealed["refused"]):
    far = "No prediction held"
    if held:
      far = (
        f"The farthest prediction that held is at {held[-1]['times']:.3g} times the largest fitted "
        f"budget, {held[-1]['C']:.2e} FLOPs"
      )
    rows = sorted([*budgets, *sealed["refused"]], key=lambda row: row["C"])
    verdict = f"{far} ({'; '.join(map(_outcome, rows))})."
  return {
    "held": len(held) == len(told) if told else None,
    "farthest": held[-1]["C"] if held else None,
    "verdict": verdict,
  }


def _outcome(budget: dict[str, Any]) -> str:
  if budget.get("held") is None:
    return f"{budget['times']:.3g}x: {'not sealed' if 'reason' in budget else 'not tested'}"
  held = "held" if budget["held"] else "did NOT hold"
  return f"{budget['times']:.3g}x: {held}, {budget['relative_error']:+.2%}"


def sentence(budget: dict[str, Any]) -> str:
  """Puts the verdict on a budget in words: each claim under the name of what it is of."""
  if budget["held"] is None:
    return f"No held-out cell trained at {budget['C']:.2e} FLOPs."

  def compared(predicted: float, ends: list[float], trained: float) -> str:
    return (
      f"predicted as {predicted:.4f} [{ends[0]:.4f}, {ends[1]:.4f}] and trained to {trained:.4f} "
      f"({trained / predicted - 1:+.2%})"
    )

  cell = f"that of N = {si(budget['N'])} on {si(budget['D'])} tokens was " + compared(
    budget["predicted_loss"], budget["interval"], budget["trained_loss"]
  )
  if len(budget["seeds"]) > 1:
    seeds = ", ".join(f"{loss:.4f}" for loss in budget["seeds"])
    cell += f" as the mean of {len(budget['seeds'])} seeds, {seeds}"
  at, least = f"at {budget['C']:.2e} FLOPs", budget["least_loss"]
  held = "held" if budget["held"] else "did NOT hold"
  optimum = (
    "the loss at the optimum cannot be told from the held-out cells"
    if least["measured"] is None
    else "the loss at the optimum was "
    + compared(least["predicted"], least["interval"], least["measured"])
  )
  minimum = {
    True: "the minimum lies where it was predicted",
    False: "the minimum does NOT lie where it was predicted",
    None: "the held-out cells do not tell where the minimum lies",
  }[budget["minimum_where_predicted"]]
  low, high = budget["tokens_per_param_interval"]
  cost = budget.get("cost_of_target")
  rule = cost and (
    f", and choosing {cost['tokens_per_param']:g} would cost {cost['excess']:+.4f} nats"
  )
  return (
    f"The prediction {held}: {at} {optimum}; {cell}; {minimum}; the optimum there is predicted at "
    f"{budget['tokens_per_param']:.1f} [{low:.1f}, {high:.1f}] tokens per parameter{rule or ''}."
  )
