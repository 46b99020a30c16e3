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

  The prediction held where what was sealed of the loss did: the claim on the least loss at the
  budget, if the cells tell it, and that on the loss of the trained cell nearest to N*. A seal of an
  earlier version may be of a law that is `undetermined`: it has no verdict, whatever was trained.
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
  result: dict[str, Any] = {"version": VERSION, "inside": None, "held": None, "cells": []}
  result |= {"claims": claims, "undetermined": predictions.undetermined(law, sealed["C"])}
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
  """Returns what the report shows: the least loss, the cell nearest to N*, the rule of thumb."""
  cells = []
  for claim in claims:
    if claim["what"] == "loss" and claim["measured"] is not None:
      error = claim["measured"] / claim["predicted"] - 1
      cell = trained[claim["tested_by"][0]]
      cells.append(cell | {"inside": claim["held"], "relative_error": error})
  nearest = min(cells, key=lambda c: abs(math.log(c["N"] / sealed["N"])))
  of_cell = ("N", "D", "predicted_loss", "interval", "trained_loss", "inside", "relative_error")
  least, place = (
    next(claim for claim in claims if claim["what"] == what) for what in ("least_loss", "N_opt")
  )
  return {
    "C": sealed["C"],
    "held": nearest["inside"] and least["held"] is not False,
    **{key: nearest[key] for key in of_cell},
    "least_loss": {key: least[key] for key in ("predicted", "interval", "measured", "held")},
    "minimum_where_predicted": place["held"],
    "trained_minimum_N": place["measured"],
    "predicted_N": sealed["N"],
    "predicted_N_interval": sealed["N_interval"],
    "tokens_per_param": sealed["tokens_per_param"],
    "tokens_per_param_interval": sealed["tokens_per_param_interval"],
    "target_tokens_per_param": config.fit.target_tokens_per_param,
    "cost_of_target": predictions.ratio_cost(law, sealed["C"], config.fit.target_tokens_per_param),
    "cells": cells,
  }


def sentence(result: dict) -> str:
  """Puts the verdict in words: each claim under the name of what it is of."""

  def compared(predicted: float, ends: list[float], trained: float) -> str:
    return (
      f"predicted as {predicted:.4f} [{ends[0]:.4f}, {ends[1]:.4f}] and trained to {trained:.4f} "
      f"({trained / predicted - 1:+.2%})"
    )

  cell = f"that of N = {si(result['N'])} on {si(result['D'])} tokens was " + compared(
    result["predicted_loss"], result["interval"], result["trained_loss"]
  )
  at, least = f"at {result['C']:.2e} FLOPs", result["least_loss"]
  if reasons := result["undetermined"]:
    return f"No verdict, as the law is undetermined: {'; '.join(reasons)}. The loss {at}: {cell}."
  held = "held" if result["held"] else "did NOT hold"
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
  }[result["minimum_where_predicted"]]
  low, high = result["tokens_per_param_interval"]
  return (
    f"The prediction {held}: {at} {optimum}; {cell}; {minimum}; the optimum there is predicted at "
    f"{result['tokens_per_param']:.1f} [{low:.1f}, {high:.1f}] tokens per parameter, and choosing "
    f"{result['target_tokens_per_param']:g} would cost {result['cost_of_target']['excess']:+.4f} "
    "nats."
  )
