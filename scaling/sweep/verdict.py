"""Says whether a sealed prediction held: verification.json."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from scaling.laws import fit
from scaling.sweep import plan, store
from train.system import files

VERSION = 1  # of verification.json


def judge(
  config: ConfigDict, workdir: Path, law: fit.Fit, sealed: dict, heldout: list[plan.Cell]
) -> dict:
  """Compares the trained held-out cells with the sealed prediction; writes verification.json.

  The loss is compared at the trained rung nearest to N*, with the prediction for that rung's own N
  and D. The minimum is that of the parabola in log N through the trained cells.
  """
  records = {cell.id: store.outcome(workdir, cell) for cell in heldout}
  compared = []
  for predicted in sealed["cells"]:
    record = records[predicted["cell"]]
    if record["status"] == "done" and math.isfinite(record["loss"]):
      low, high = predicted["interval"]
      compared.append(
        predicted
        | {
          "trained_loss": record["loss"],
          "loss_stderr": record["loss_stderr"],
          "inside": low <= record["loss"] <= high,
          "relative_error": record["loss"] / predicted["predicted_loss"] - 1,
        }
      )
  result: dict[str, Any] = {"version": VERSION, "inside": None, "cells": []}
  if compared:
    result = _verdict(config, law, sealed, compared)
  else:
    result["verdict"] = "No held-out cell trained."
  files.write_json(workdir / "verification.json", result)
  return result


def _verdict(
  config: ConfigDict, law: fit.Fit, sealed: dict, compared: list[dict]
) -> dict[str, Any]:
  at_optimum = min(compared, key=lambda c: abs(math.log(c["N"] / sealed["N"])))
  minimum = trained_minimum(compared)
  where = where_minimum(compared, at_optimum, minimum, sealed)
  ratio = config.fit.target_tokens_per_param
  cost = fit.ratio_cost(law, sealed["C"], ratio)
  of_optimum = ("predicted_loss", "interval", "trained_loss", "inside", "relative_error")
  result = {
    "version": VERSION,
    "C": sealed["C"],
    **{key: at_optimum[key] for key in of_optimum},
    "n_inside": sum(c["inside"] for c in compared),
    "minimum_where_predicted": where,
    "trained_minimum_N": minimum,
    "predicted_N": sealed["N"],
    "predicted_N_interval": sealed["N_interval"],
    "tokens_per_param": sealed["tokens_per_param"],
    "tokens_per_param_interval": sealed["tokens_per_param_interval"],
    "target_tokens_per_param": ratio,
    "cost_of_target": cost,
    f"cost_of_{ratio:g}_tokens_per_param": cost["excess"],
    "cells": compared,
  }
  result["verdict"] = sentence(result, sealed)
  return result


def trained_minimum(compared: list[dict]) -> float | None:
  """Returns the N at the minimum of the parabola in log N; None where there is none inside."""
  if len(compared) < 3:
    return None
  log_n = np.log([c["N"] for c in compared])
  center = log_n.mean()
  c2, c1, _ = np.polyfit(log_n - center, [c["trained_loss"] for c in compared], 2)
  vertex = center - c1 / (2 * c2) if c2 > 0 else math.inf
  return float(np.exp(vertex)) if log_n.min() <= vertex <= log_n.max() else None


def where_minimum(
  compared: list[dict], at_optimum: dict, minimum: float | None, sealed: dict
) -> bool | None:
  """Tells whether the minimum lies where it was predicted; None where the cells do not show it.

  It does where the cell at N* is the best of those trained, or where the minimum of the parabola
  through them is inside the interval of N*. Fewer than three cells do not show it, nor do cells
  whose best is at an end beyond which the interval reaches.
  """
  if len(compared) < 3:
    return None
  best = min(compared, key=lambda c: c["trained_loss"])
  low, high = sealed["N_interval"]
  if best is at_optimum or (minimum is not None and low <= minimum <= high):
    return True
  sizes = [c["N"] for c in compared]
  beyond = best["N"] == min(sizes) > low or best["N"] == max(sizes) < high
  return None if minimum is None and beyond else False


def sentence(result: dict, sealed: dict) -> str:
  """Puts the verdict in words."""
  low, high = result["interval"]
  held = "held" if result["inside"] else "did NOT hold"
  low_r, high_r = sealed["tokens_per_param_interval"]
  minimum = {
    True: "the minimum lies where it was predicted",
    False: "the minimum does NOT lie where it was predicted",
    None: "the held-out cells do not tell where the minimum lies",
  }[result["minimum_where_predicted"]]
  return (
    f"The prediction {held}: at {result['C']:.2e} FLOPs the loss was predicted as "
    f"{result['predicted_loss']:.4f} [{low:.4f}, {high:.4f}] and trained to "
    f"{result['trained_loss']:.4f} ({result['relative_error']:+.2%}); {minimum}; the optimum here "
    f"is {sealed['tokens_per_param']:.1f} [{low_r:.1f}, {high_r:.1f}] tokens per parameter, and "
    f"choosing {result['target_tokens_per_param']:g} would cost "
    f"{result['cost_of_target']['excess']:+.4f} nats."
  )
