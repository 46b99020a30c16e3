"""Says whether a sealed prediction held: verification.json."""

import math
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from scaling.claims import kinds
from scaling.formats import si
from scaling.laws import fit
from scaling.laws.intervals import predictions
from scaling.sweep import plan, store
from train.system import files

VERSION = 2  # of verification.json


def judge(
  config: ConfigDict, workdir: Path, law: fit.Fit, sealed: dict, heldout: list[plan.Cell]
) -> dict:
  """Judges each sealed claim by the held-out cells that trained; writes verification.json.

  The headline is the claim on the loss of the trained cell nearest to N*, at that cell's N and D.
  """
  records = {cell.id: store.outcome(workdir, cell, config.fit.loss) for cell in heldout}
  trained = {}
  for cell in sealed["cells"]:
    record = records[cell["cell"]]
    if record["status"] == "done" and math.isfinite(record["loss"]):
      trained[cell["cell"]] = cell | {
        "tokens_per_param": cell["D"] / cell["N"],
        "trained_loss": record["loss"],
        "loss_stderr": record["loss_stderr"],
      }
  claims = [kinds.judge(kinds.Claim(**claim), trained) for claim in sealed["claims"]]
  result: dict[str, Any] = {"version": VERSION, "inside": None, "claims": claims, "cells": []}
  if trained:
    result |= _headline(config, law, sealed, claims, trained)
    result["verdict"] = sentence(result)
  else:
    result["verdict"] = "No held-out cell trained."
  files.write_json(workdir / "verification.json", files.with_digests(result))
  return result


def _headline(
  config: ConfigDict,
  law: fit.Fit,
  sealed: dict,
  claims: list[dict],
  trained: dict[str, kinds.Trained],
) -> dict[str, Any]:
  """Returns what the report shows: the cell nearest to N*, the minimum, the rule of thumb."""
  cells = []
  for claim in claims:
    if claim["what"] == "loss" and claim["measured"] is not None:
      error = claim["measured"] / claim["predicted"] - 1
      cell = trained[claim["tested_by"][0]]
      cells.append(cell | {"inside": claim["held"], "relative_error": error})
  nearest = min(cells, key=lambda c: abs(math.log(c["N"] / sealed["N"])))
  of_cell = ("N", "D", "predicted_loss", "interval", "trained_loss", "inside", "relative_error")
  place = next(claim for claim in claims if claim["what"] == "N_opt")
  ratio = config.fit.target_tokens_per_param
  cost = predictions.ratio_cost(law, sealed["C"], ratio)
  return {
    "C": sealed["C"],
    **{key: nearest[key] for key in of_cell},
    "minimum_where_predicted": place["held"],
    "trained_minimum_N": place["measured"],
    "predicted_N": sealed["N"],
    "predicted_N_interval": sealed["N_interval"],
    "tokens_per_param": sealed["tokens_per_param"],
    "tokens_per_param_interval": sealed["tokens_per_param_interval"],
    "target_tokens_per_param": ratio,
    "cost_of_target": cost,
    f"cost_of_{ratio:g}_tokens_per_param": cost["excess"],
    "cells": cells,
  }


def sentence(result: dict) -> str:
  """Puts the verdict in words."""
  low, high = result["interval"]
  held = "held" if result["inside"] else "did NOT hold"
  low_r, high_r = result["tokens_per_param_interval"]
  minimum = {
    True: "the minimum lies where it was predicted",
    False: "the minimum does NOT lie where it was predicted",
    None: "the held-out cells do not tell where the minimum lies",
  }[result["minimum_where_predicted"]]
  return (
    f"The prediction {held}: at {result['C']:.2e} FLOPs the loss of N = {si(result['N'])} on "
    f"{si(result['D'])} tokens was predicted as {result['predicted_loss']:.4f} [{low:.4f}, "
    f"{high:.4f}] and trained to {result['trained_loss']:.4f} ({result['relative_error']:+.2%}); "
    f"{minimum}; the optimum here is {result['tokens_per_param']:.1f} [{low_r:.1f}, {high_r:.1f}] "
    f"tokens per parameter, and choosing {result['target_tokens_per_param']:g} would cost "
    f"{result['cost_of_target']['excess']:+.4f} nats."
  )
