"""Sweeps of several objectives, side by side: one specification, one law each.

Every objective of `config.sweep.objectives` is a whole sweep in a folder of its name. What is set
side by side here is read back from those folders; their laws are fitted again, which gives the same
law, because the bootstrap behind an interval is not stored.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from scaling.laws import chinchilla, fit, runs
from scaling.report import records
from scaling.report.records import Record
from train.objectives import registry

VERSION = 1  # of comparison.json
EXPONENTS = ("alpha", "beta", "a")  # what can be compared: losses of two objectives cannot


@dataclasses.dataclass(frozen=True)
class Side:
  """One objective's sweep, as far as it has come."""

  objective: str
  record: Record  # empty where it has not begun
  law: fit.Fit | None  # None: nothing is fitted yet
  predicted: float  # tokens predicted per text token

  @property
  def title(self) -> str:
    """The objective and its family of models."""
    family = self.record.sweep.get("config", {}).get("model", {}).get("family")
    return f"{self.objective} ({family.replace('_', '-')})" if family else self.objective

  @property
  def state(self) -> str:
    """How far it has come, in a sentence."""
    return self.record.headline if self.record.sweep else "Not begun."

  @property
  def complete(self) -> bool:
    """Whether it has come to a verdict."""
    return self.record.verification.get("trained_loss") is not None


def read(record: Record) -> list[Side]:
  """Returns the sweeps of a folder, in the order of `sweep.objectives`.

  Raises:
    ConfigError: a record in one of their folders is broken.
  """
  return [_side(name, record.workdir / name) for name in record.objectives]


def _side(name: str, folder: Path) -> Side:
  if not (folder / "sweep.json").exists():
    return Side(name, Record(folder, {}, [], {}, {}, {}), None, math.nan)
  record = records.read(folder)
  length = registry.lengths(ConfigDict(record.sweep["config"]))
  law = None
  if found := record.fit:
    trained = runs.read_runs(folder / "cells.csv", **found["counting"], **found.get("reading", {}))
    options = ("delta", "bootstraps", "level", "seed", "resampling")
    law = fit.fit_runs(trained, SimpleNamespace(**{key: found[key] for key in options}))
  return Side(name, record, law, length.predicted / length.text)


def budgets(sides: Iterable[Side]) -> list[float]:
  """Returns the compute at which the sweeps are compared: every budget that one of them has."""
  found = set()
  for record in (side.record for side in sides if side.record.sweep):
    found |= set(record.sweep["config"]["sweep"]["budgets"])
    found |= {record.prediction["C"]} if record.prediction else set()
  return sorted(found)


def to_json(sides: list[Side]) -> dict[str, Any]:
  """Returns the content of comparison.json: the laws, their optima, and where they differ."""
  every = budgets(sides)
  fitted = [side for side in sides if side.law]
  return {
    "version": VERSION,
    "objectives": [side.objective for side in sides],
    "complete": all(side.complete for side in sides),
    "budgets": every,
    "sweeps": {side.objective: _sweep(side, every) for side in sides},
    "differences": [
      row for one, other in itertools.combinations(fitted, 2) for row in _differ(other, one, every)
    ],
  }


def _sweep(side: Side, every: list[float]) -> dict[str, Any]:
  found: dict[str, Any] = {"complete": side.complete, "state": side.state}
  if not side.law:
    return found
  stored, v = side.record.fit, side.record.verification
  found |= {key: stored[key] for key in ("params", "a", "b", "intervals", "level", "n_runs")}
  found["input_hash"] = runs.input_hash(side.law.runs)
  found["predicted_per_token"] = side.predicted
  found["optimum"] = [optimum(side, C) for C in every]
  names = ("C", "predicted_loss", "interval", "trained_loss", "inside", "relative_error",
           "minimum_where_predicted", "predicted_N", "predicted_N_interval",
           "trained_minimum_N")  # fmt: skip
  found["verification"] = {key: v.get(key) for key in names} if side.complete else None
  return found


def optimum(side: Side, C: float) -> dict[str, Any]:
  """Returns the best use of C FLOPs: `fit.optimum`, and what it means for this objective.

  `predicted_tokens_per_param` are tokens_per_param of which the loss is the mean, and
  `flops_per_param_and_token` is C / (N D), the textbook's 6.
  """
  assert side.law is not None
  row = fit.optimum(side.law, C)
  low, high = row["tokens_per_param_interval"]
  return row | {
    "predicted_tokens_per_param": side.predicted * row["tokens_per_param"],
    "predicted_tokens_per_param_interval": [side.predicted * low, side.predicted * high],
    "flops_per_param_and_token": row["C"] / (row["N_opt"] * row["D_opt"]),
  }


def _differ(one: Side, other: Side, every: list[float]) -> Iterable[dict[str, Any]]:
  """Yields how `one` differs from `other`, each with the interval of two independent bootstraps."""
  assert one.law is not None
  assert other.law is not None
  level = min(one.law.level, other.law.level)

  def row(quantity: str, C: float | None, kind: str, values: Any, draws: Any) -> dict[str, Any]:
    turn = np.exp if kind == "ratio" else float
    gap = np.subtract.outer(*(sample[:1000] for sample in draws))  # all pairs: independent
    interval = fit.interval(gap, level)
    return {
      "of": one.objective, "to": other.objective, "quantity": quantity, "C": C, "kind": kind,
      "value": float(turn(values[0] - values[1])),
      "interval": [float(turn(end)) for end in interval],
      "differs": not interval[0] <= 0 <= interval[1],
    }  # fmt: skip

  both = (one.law, other.law)

  for name in EXPONENTS:
    values = [_exponent(fitted.law, name) for fitted in both]
    yield row(name, None, "difference", values, [_exponent(f.draws, name) for f in both])
  for C in every:
    values = [_log_ratio(fitted.law, C, fitted.compute) for fitted in both]
    draws = [_log_ratio(fitted.draws, C, fitted.compute) for fitted in both]
    yield row("tokens_per_param", C, "ratio", values, draws)


def _exponent(law: chinchilla.Chinchilla, name: str) -> np.ndarray:
  return chinchilla.exponents(law)[0] if name == "a" else getattr(law, name)


def _log_ratio(law: chinchilla.Chinchilla, C: float, compute: chinchilla.Compute) -> np.ndarray:
  best = chinchilla.optimum(law, C, compute)
  return np.log(best.D / best.N)
