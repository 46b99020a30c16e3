"""Sweeps of several objectives, side by side: one design, one law each.

Each objective of `config.sweep.objectives` is a whole sweep in a folder of its name. They are read
back from those folders and their laws fitted again, which gives the same laws: the bootstrap behind
an interval is not stored.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs import base
from scaling.laws import bootstrap, fit
from scaling.laws.fitted import OPTIONS
from scaling.laws.forms import POWER
from scaling.laws.law import Law
from scaling.laws.tables import runs
from scaling.report import records
from scaling.report.records import Record
from train.objectives import registry

VERSION = 1  # of comparison.json
DRAWS = 1000  # of each bootstrap, of which all pairs are formed
FIT_KEYS = ("params", "a", "b", "intervals", "level", "n_runs")
VERIFICATION_KEYS = (
  "C", "predicted_loss", "interval", "trained_loss", "inside", "relative_error",
  "minimum_where_predicted", "predicted_N", "predicted_N_interval", "trained_minimum_N",
)  # fmt: skip


class Comparison(NamedTuple):
  """Sweeps of several objectives, by objective, in the order of `config.sweep.objectives`."""

  sweeps: dict[str, Record]  # empty where a sweep has not begun
  laws: dict[str, fit.Fit]  # of the sweeps that are fitted
  numbers: dict[str, Any]  # the content of comparison.json


def compare_sweeps(record: Record) -> Comparison:
  """Reads the sweeps in a folder of several objectives, and compares their laws.

  Raises:
    UserError: a file in one of their folders is broken.
  """
  folders = {name: record.workdir / name for name in record.objectives}
  sweeps = {
    name: records.read(folder) if (folder / "sweep.json").exists() else Record(folder)
    for name, folder in folders.items()
  }
  laws = {name: _fit_again(sweep) for name, sweep in sweeps.items() if sweep.fit}
  budgets = _budgets(sweeps.values())
  numbers = {
    "version": VERSION,
    "objectives": list(sweeps),
    "complete": all(sweep.complete for sweep in sweeps.values()),
    "budgets": budgets,
    "sweeps": {
      name: {"complete": sweep.complete, "state": sweep.headline}
      | (_summary(sweep, laws[name], budgets) if name in laws else {})
      for name, sweep in sweeps.items()
    },
    "differences": [
      difference
      for first, second in itertools.combinations(laws.items(), 2)
      for difference in _differences(second, first, budgets)
    ],
  }
  return Comparison(sweeps, laws, numbers)


def _fit_again(record: Record) -> fit.Fit:
  stored = record.fit
  table = record.workdir / "cells.csv"
  trained = runs.read_runs(table, **stored["counting"], **stored.get("reading", {}))
  options = base.get_config().fit
  options.update({name: stored[name] for name in OPTIONS if name in stored})
  return fit.fit_runs(trained, options)


def _budgets(sweeps: Iterable[Record]) -> list[float]:
  """Collects every budget of a sweep, held-out ones included [FLOPs]."""
  budgets = set()
  for sweep in sweeps:
    budgets |= set(sweep.config.get("sweep", {}).get("budgets", ()))
    budgets |= {sweep.prediction["C"]} if sweep.prediction else set()
  return sorted(budgets)


def _summary(record: Record, law: fit.Fit, budgets: list[float]) -> dict[str, Any]:
  lengths = registry.lengths(ConfigDict(record.config))
  predicted = lengths.predicted / lengths.text
  verdict = {key: record.verification.get(key) for key in VERIFICATION_KEYS}
  return {key: record.fit[key] for key in FIT_KEYS} | {
    "input_hash": runs.input_hash(law.runs),
    "predicted_per_token": predicted,
    "optimum": [_optimum(law, C, predicted) for C in budgets],
    "verification": verdict if record.complete else None,
  }


def _optimum(law: fit.Fit, C: float, predicted: float) -> dict[str, Any]:
  """Finds the best use of C FLOPs: `fit.optimum`, and what it means for this objective.

  `predicted_tokens_per_param` are tokens_per_param of which the loss is the mean, and
  `flops_per_param_and_token` is C / (N D), the textbook's 6.
  """
  row = fit.optimum(law, C)
  low, high = row["tokens_per_param_interval"]
  return row | {
    "predicted_tokens_per_param": predicted * row["tokens_per_param"],
    "predicted_tokens_per_param_interval": [predicted * low, predicted * high],
    "flops_per_param_and_token": row["C"] / (row["N_opt"] * row["D_opt"]),
  }


def _differences(
  first: tuple[str, fit.Fit], second: tuple[str, fit.Fit], budgets: list[float]
) -> Iterator[dict[str, Any]]:
  """Yields how one law differs from another, with the interval of two independent bootstraps."""
  (of, law), (to, reference) = first, second
  level = min(law.options.level, reference.options.level)
  values = [_comparable(each.law, budgets) for each in (law, reference)]
  draws = [_comparable(each.draws, budgets) for each in (law, reference)]
  for quantity, C in values[0]:
    natural = np.exp if C else float  # ratios are differences of logarithms
    gaps = np.subtract.outer(*(each[quantity, C][:DRAWS] for each in draws))
    interval = bootstrap.interval(gaps, level)
    yield {
      "of": of, "to": to, "quantity": quantity, "C": C, "kind": "ratio" if C else "difference",
      "value": float(natural(values[0][quantity, C] - values[1][quantity, C])),
      "interval": [float(natural(end)) for end in interval],
      "differs": not interval[0] <= 0 <= interval[1],
    }  # fmt: skip


def _comparable(law: Law, budgets: list[float]) -> dict[tuple[str, float | None], np.ndarray]:
  """Computes what two laws can be compared in, by (quantity, C): exponents, log optimal D/N.

  Losses of two objectives cannot be compared, nor can E, A and B.
  """
  quantities: dict[tuple[str, float | None], np.ndarray] = {
    (name, None): law.params[name] for name, kind in law.form.kinds.items() if kind is POWER
  }
  quantities["a", None] = law.exponents(max(budgets))[0]
  for C in budgets:
    best = law.optimum(C)
    quantities["tokens_per_param", C] = np.log(best.D / best.N)
  return quantities
