"""Seals a prediction before it is tested: prediction.json."""

from pathlib import Path

from ml_collections import ConfigDict

from configs.errors import UsageError
from scaling.laws import fit
from scaling.laws.tables import runs
from scaling.sweep import plan
from train.system import files

VERSION = 1  # of prediction.json


def check_runs(workdir: Path, config: ConfigDict) -> None:
  """Raises UsageError where a prediction is sealed on other runs than the folder has now."""
  if sealed := files.read_json(workdir / "prediction.json"):
    counting = config.fit.params, config.fit.flops
    _check_hash(workdir, sealed, runs.read_runs(workdir, "", *counting))


def _check_hash(workdir: Path, sealed: dict, fitted: runs.Runs) -> None:
  input_hash = runs.input_hash(fitted)
  if sealed["input_hash"] != input_hash:
    raise UsageError(
      f"{workdir}/prediction.json: sealed on other runs (hash {sealed['input_hash'][:12]}, now "
      f"{input_hash[:12]}); a sealed prediction is not replaced: use another workdir"
    )


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
    _check_hash(workdir, sealed, law.runs)
    return sealed, plan.sealed_cells(config, vocab_size, sealed)
  budget = plan.heldout_budget(config, cells)
  fit.check_sealable(law, budget)
  best = fit.optimum(law, budget)
  corpus = vocab_size, train_tokens
  heldout, passed_over = plan.heldout_cells(config, *corpus, best["N_opt"], budget)
  loss, interval = fit.predict_loss(law, best["N_opt"], best["D_opt"])
  sealed = {
    "version": VERSION,
    "input_hash": runs.input_hash(law.runs),
    "n_runs": len(law.runs.N),
    "level": law.options.level,
    "C": budget,
    "N": best["N_opt"],
    "N_interval": best["N_opt_interval"],
    "D": best["D_opt"],
    "D_interval": best["D_opt_interval"],
    "tokens_per_param": best["tokens_per_param"],
    "tokens_per_param_interval": best["tokens_per_param_interval"],
    "loss": loss,
    "interval": interval,
    "cells": [_predict(law, cell, cell.params(config.fit.params)) for cell in heldout],
    "passed_over": passed_over,
  }
  files.write_json(workdir / "prediction.json", sealed)
  return sealed, heldout


def _predict(law: fit.Fit, cell: plan.Cell, n: int) -> dict:
  loss, interval = fit.predict_loss(law, n, cell.D)
  return {
    "cell": cell.id,
    "N": n,
    "D": cell.D,
    "C": cell.C,
    "predicted_loss": loss,
    "interval": interval,
  }
