"""Seals a prediction before it is tested, and says afterwards whether it held."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs.errors import UsageError
from scaling.laws import fit, runs
from scaling.sweep import plan, refit, store
from train.system import files

VERSION = 1  # of prediction.json and verification.json


def check(workdir: Path, options: refit.Options) -> None:
  """Refuses to fit a sweep anew whose prediction is sealed on other runs than it has now.

  Raises:
    UsageError: the runs differ.
  """
  if sealed := files.read_json(workdir / "prediction.json"):
    _refuse_other(sealed, workdir, runs.read_runs(workdir, "", options.params, options.flops))


def _refuse_other(sealed: dict, workdir: Path, found: runs.Runs) -> None:
  input_hash = runs.input_hash(found)
  if sealed["input_hash"] != input_hash:
    raise UsageError(
      f"{workdir}/prediction.json: sealed on other runs (hash {sealed['input_hash'][:12]}, now "
      f"{input_hash[:12]}); a sealed prediction is not replaced: use another workdir"
    )


def sealed_cells(config: ConfigDict, vocab_size: int, sealed: dict) -> list[plan.Cell]:
  """Returns the held-out cells of a sealed prediction, whatever the law says today."""
  options = {cell.id: cell for cell in plan.heldout_options(config, vocab_size, sealed["C"])}
  return [options[predicted["cell"]] for predicted in sealed["cells"]]


def seal(
  config: ConfigDict,
  workdir: Path,
  law: fit.Fit,
  cells: list[plan.Cell],
  vocab_size: int,
  train_tokens: int,
) -> tuple[dict, list[plan.Cell]]:
  """Writes prediction.json, once, and returns it with the held-out cells that will test it.

  A prediction that is already sealed stays, and is returned with its own cells, as long as the runs
  that it was fitted on are the same.

  Args:
    config: the sweep's config.
    workdir: the sweep's folder.
    law: the fit to the runs below the held-out budget.
    cells: the fitted cells.
    vocab_size: V.
    train_tokens: of the corpus.

  Raises:
    UsageError: a prediction was sealed on other runs, these determine no optimum, or too few cells
      could test this one.
  """
  if sealed := files.read_json(workdir / "prediction.json"):
    _refuse_other(sealed, workdir, law.runs)
    return sealed, sealed_cells(config, vocab_size, sealed)
  fit.check_sealable(law)
  budget = plan.heldout_budget(config, cells)
  best = fit.optimum(law, budget)
  wanted = config, vocab_size, train_tokens, best["N_opt"], budget
  heldout = plan.heldout_cells(*wanted)
  predictions = []
  for cell in heldout:
    loss, interval = fit.predict_loss(law, cell.params(config.fit.params), cell.D)
    predictions.append(
      {
        "cell": cell.id,
        "N": cell.params(config.fit.params),
        "D": cell.D,
        "C": cell.C,
        "predicted_loss": loss,
        "interval": interval,
      }
    )
  loss, interval = fit.predict_loss(law, best["N_opt"], best["D_opt"])
  sealed = {
    "version": VERSION,
    "input_hash": runs.input_hash(law.runs),
    "n_runs": len(law.runs.N),
    "level": law.level,
    "C": budget,
    "N": best["N_opt"],
    "N_interval": best["N_opt_interval"],
    "D": best["D_opt"],
    "D_interval": best["D_opt_interval"],
    "tokens_per_param": best["tokens_per_param"],
    "tokens_per_param_interval": best["tokens_per_param_interval"],
    "loss": loss,
    "interval": interval,
    "cells": predictions,
    "passed_over": plan.passed_over(*wanted, heldout),
  }
  files.write_json(workdir / "prediction.json", sealed)
  return sealed, heldout


def verdict(
  config: ConfigDict, workdir: Path, law: fit.Fit, sealed: dict, heldout: list[plan.Cell]
) -> dict:
  """Compares the trained held-out cells with the sealed prediction; writes verification.json.

  The loss is compared at the trained rung nearest to N*, with the prediction for that rung's own N
  and D. The minimum is that of the parabola in log N through the trained cells.
  """
  results = {cell.id: store.outcome(workdir, cell) for cell in heldout}
  compared = []
  for predicted in sealed["cells"]:
    result = results[predicted["cell"]]
    if not store.usable(result):
      continue
    low, high = predicted["interval"]
    compared.append(
      predicted
      | {
        "trained_loss": result["loss"],
        "loss_stderr": result["loss_stderr"],
        "inside": low <= result["loss"] <= high,
        "relative_error": result["loss"] / predicted["predicted_loss"] - 1,
      }
    )
  if not compared:
    value: dict[str, Any] = {
      "version": VERSION,
      "inside": None,
      "cells": [],
      "verdict": "No held-out cell trained.",
    }
    files.write_json(workdir / "verification.json", value)
    return value
  at_optimum = min(compared, key=lambda c: abs(math.log(c["N"] / sealed["N"])))
  minimum = trained_minimum(compared)
  where = where_minimum(compared, at_optimum, minimum, sealed)
  ratio = config.fit.target_tokens_per_param
  rule = fit.ratio_cost(law, sealed["C"], ratio)
  value = {
    "version": VERSION,
    "C": sealed["C"],
    "predicted_loss": at_optimum["predicted_loss"],
    "interval": at_optimum["interval"],
    "trained_loss": at_optimum["trained_loss"],
    "inside": at_optimum["inside"],
    "relative_error": at_optimum["relative_error"],
    "n_inside": sum(c["inside"] for c in compared),
    "minimum_where_predicted": where,
    "trained_minimum_N": minimum,
    "predicted_N": sealed["N"],
    "predicted_N_interval": sealed["N_interval"],
    "tokens_per_param": sealed["tokens_per_param"],
    "tokens_per_param_interval": sealed["tokens_per_param_interval"],
    "target_tokens_per_param": ratio,
    "cost_of_target": rule,
    f"cost_of_{ratio:g}_tokens_per_param": rule["excess"],
    "cells": compared,
  }
  value["verdict"] = sentence(value, sealed)
  files.write_json(workdir / "verification.json", value)
  return value


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
  """Returns whether the minimum lies where it was predicted; None where the cells cannot tell.

  It does when the cell at N* is the best of those trained, or when the minimum of the parabola
  through them is inside the interval of N*. Fewer than three cells cannot tell, nor can cells of
  which the last is the best at an end beyond which the interval reaches.
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


def sentence(value: dict, sealed: dict) -> str:
  """Returns the verdict in words."""
  low, high = value["interval"]
  held = "held" if value["inside"] else "did NOT hold"
  low_r, high_r = sealed["tokens_per_param_interval"]
  minimum = {
    True: "the minimum lies where it was predicted",
    False: "the minimum does NOT lie where it was predicted",
    None: "the held-out cells do not tell where the minimum lies",
  }[value["minimum_where_predicted"]]
  return (
    f"The prediction {held}: at {value['C']:.2e} FLOPs the loss was predicted as "
    f"{value['predicted_loss']:.4f} [{low:.4f}, {high:.4f}] and trained to "
    f"{value['trained_loss']:.4f} ({value['relative_error']:+.2%}); {minimum}; the optimum here is "
    f"{sealed['tokens_per_param']:.1f} [{low_r:.1f}, {high_r:.1f}] tokens per parameter, and "
    f"choosing {value['target_tokens_per_param']:g} would cost "
    f"{value['cost_of_target']['excess']:+.4f} nats."
  )
