"""The arms of a sweep, side by side: one design, one law each.

Each arm of `config.sweep.arms` is a whole sweep in a folder of its name. They are read back from
those folders and their laws fitted again, which gives the same laws: the bootstrap behind an
interval is not stored.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import base
from scaling.laws import fit
from scaling.laws.fitted import OPTIONS
from scaling.laws.forms import POWER
from scaling.laws.intervals import bootstrap, predictions
from scaling.laws.law import Law
from scaling.laws.tables import read, runs
from scaling.report import sweep_results
from scaling.report.sweep_results import Results

VERSION = 3  # of comparison.json
DRAWS = 1000  # of each bootstrap, of which all pairs are formed
MOST = 1e6  # times the compute, beyond which it is not told how many
FIT_KEYS = ("params", "a", "b", "intervals", "level", "n_runs")
VERIFICATION_KEYS = (
  "C", "held", "least_loss", "N", "D",
  "predicted_loss", "interval", "trained_loss", "inside", "relative_error",
  "minimum_where_predicted", "predicted_N", "predicted_N_interval", "trained_minimum_N",
)  # fmt: skip


def compare_sweeps(
  results: Results,
) -> tuple[dict[str, Results], dict[str, fit.Fit], dict[str, Any]]:
  """Reads the sweeps in a folder of several arms, and compares their laws.

  Returns:
    The sweeps by name, empty where one has not begun; the laws of those that are fitted; and the
    content of comparison.json.
  """
  folders = {name: results.workdir / name for name in results.arms}
  sweeps = {
    name: sweep_results.read(folder) if (folder / "sweep.json").exists() else Results(folder)
    for name, folder in folders.items()
  }
  laws = {name: _fit_again(sweep) for name, sweep in sweeps.items() if sweep.determined}
  for name, sweep in sweeps.items():
    if name in laws and (reasons := predictions.undetermined(laws[name])):  # fit.json may be old
      sweeps[name] = dataclasses.replace(sweep, fit=sweep.fit | {"undetermined": reasons})
      del laws[name]
  every = set[float]()  # held-out budgets included
  for sweep in sweeps.values():
    every |= set(sweep.config.get("sweep", {}).get("budgets", ()))
    every |= {budget["C"] for budget in sweep.prediction.get("budgets", ())}
  budgets = sorted(every)
  summaries: dict[str, Any] = {}
  differences, gains = list[dict[str, Any]](), list[dict[str, Any]]()
  for name, sweep in sweeps.items():
    summaries[name] = {"complete": sweep.complete, "state": sweep.headline}
    if name in laws:
      summaries[name] |= _summary(sweep, laws[name], budgets)
  for (to, reference), (of, law) in itertools.combinations(laws.items(), 2):
    differences += _differences((of, law), (to, reference), budgets)
    other_runs = runs.input_hash(law.runs) != runs.input_hash(reference.runs)  # else one arm's
    if other_runs and _same_losses(sweeps[of], sweeps[to]):
      for C in budgets:
        gains += _gains((of, law), (to, reference), C)
  numbers = {
    "version": VERSION,
    "arms": list(sweeps),
    "complete": all(sweep.complete for sweep in sweeps.values()),
    "budgets": budgets,
    "sweeps": summaries,
    "differences": differences + gains,
  }
  return sweeps, laws, numbers


def _fit_again(results: Results) -> fit.Fit:
  stored = results.fit
  table = results.workdir / "cells.csv"
  trained = read.read_runs(table, **stored["counting"], **stored.get("reading", {}))
  options = base.get_config().fit
  options.update({name: stored[name] for name in OPTIONS if name in stored})
  options.E = stored.get("known_E", "")
  return fit.fit_runs(trained, options)


def _summary(results: Results, law: fit.Fit, budgets: list[float]) -> dict[str, Any]:
  from train.objectives import registry  # imports jax: only where sweeps are compared

  lengths = registry.lengths(ConfigDict(results.config))
  predicted = lengths.predicted / lengths.text
  verdicts = [{key: row.get(key) for key in VERIFICATION_KEYS} for _, row in results.judged]
  return {key: results.fit[key] for key in FIT_KEYS} | {
    "input_hash": runs.input_hash(law.runs),
    "predicted_per_token": predicted,
    "optimum": [_optimum(law, C, predicted) for C in budgets],
    "verification": verdicts if results.complete else None,  # of each held-out budget
  }


def _optimum(law: fit.Fit, C: float, predicted: float) -> dict[str, Any]:
  """Finds the best use of C FLOPs, also in tokens of which the loss is the mean, and C / (N D)."""
  row = predictions.optimum(law, C)
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
    if (quantity, C) not in values[1]:  # laws of different forms
      continue
    natural = np.exp if C else float  # ratios are differences of logarithms
    gaps = np.subtract.outer(*(each[quantity, C][:DRAWS] for each in draws))
    value = float(values[0][quantity, C] - values[1][quantity, C])
    interval = bootstrap.holding(bootstrap.interval(gaps, level), value)
    yield {
      "of": of, "to": to, "quantity": quantity, "C": C, "kind": "ratio" if C else "difference",
      "value": float(natural(value)),
      "interval": [float(natural(end)) for end in interval],
      "differs": not interval[0] <= 0 <= interval[1],
    }  # fmt: skip


def _same_losses(first: Results, second: Results) -> bool:
  """Tells whether the losses of two arms are of the same tokens of the same text."""

  def measured(results: Results) -> list:
    config, corpus = results.config, results.sweep.get("corpus", {})
    of_data = ("tokenizer", "seq_len", "isolate_documents", "validation_percent")
    return [
      config["objective"],
      config["corruption"],
      config["train"]["eval_tokens"],
      config["fit"]["flops"],  # at equal compute
      [config["data"][name] for name in of_data],
      [corpus.get(name) for name in ("fingerprint", "tokenizer_hash")],
    ]

  return measured(first) == measured(second)


def _gains(
  first: tuple[str, fit.Fit], second: tuple[str, fit.Fit], C: float
) -> Iterator[dict[str, Any]]:
  """Yields what one arm's best model of C FLOPs gains over that of another.

  "gain" is by how much its loss is lower [nats], and "compute" how many times C the other needs to
  reach that loss, within `MOST`. Where the arms have the same cells, a cell counts as often in the
  resamples of both: what the two runs of a cell have in common, as its seed and its data, cancels.
  """
  (of, law), (to, reference) = first, second
  paired = _are_paired(law, reference)
  count = min(_count(law), _count(reference))
  draws = _rows(law.draws, np.arange(count))
  others = _rows(reference.draws, np.roll(np.arange(count), 0 if paired else count // 2))
  gain, compute = _gain(law.law, reference.law, C)
  gains, computes = _gain(draws, others, C)
  level = min(law.options.level, reference.options.level)
  for quantity, kind, value, sample, same in (
    ("gain", "difference", gain, gains, 0.0),
    ("compute", "ratio", compute, computes, 1.0),
  ):
    low, high = bootstrap.holding(bootstrap.interval(sample, level), float(value))
    yield {
      "of": of, "to": to, "quantity": quantity, "C": C, "kind": kind, "value": float(value),
      "interval": [low, high], "differs": not low <= same <= high, "paired": paired,
    }  # fmt: skip


def _gain(law: Law, reference: Law, C: float) -> tuple[np.ndarray, np.ndarray]:
  """Computes the gain in loss and in compute of laws, or draws, over others at C FLOPs."""
  loss = law.optimum(C).loss
  gain = reference.optimum(C).loss - loss
  with np.errstate(invalid="ignore", over="ignore"):  # inf where no compute reaches the loss
    best = reference.cheapest(loss)
    needed = reference.compute.flops_per_token(best.N) * best.D
  return gain, np.clip(np.nan_to_num(needed / C, nan=MOST), 1 / MOST, MOST)


def _are_paired(first: fit.Fit, second: fit.Fit) -> bool:
  """Tells whether the draws of two laws are of the same resamples of the same cells."""
  a, b = first.runs, second.runs
  if bootstrap.few(a) or len(a) > bootstrap.MANY_BY_JAX:  # whose draws may be of no resamples
    return False
  options = [(law.options.seed, law.options.resampling, _count(law)) for law in (first, second)]
  same_cells = sorted(a.ids) == sorted(b.ids) and np.array_equal([a.N, a.D], [b.N, b.D])
  return same_cells and options[0] == options[1]


def _count(law: fit.Fit) -> int:
  return len(next(iter(law.draws.params.values())))


def _rows(draws: Law, rows: np.ndarray) -> Law:
  """Selects some draws of a law."""
  params = {name: np.asarray(values)[rows] for name, values in draws.params.items()}
  return dataclasses.replace(draws, params=params)


def _comparable(law: Law, budgets: list[float]) -> dict[tuple[str, float | None], np.ndarray]:
  """Computes what two laws can be compared in, by (quantity, C): exponents, log optimal D/N.

  Losses of two objectives cannot be compared, nor can E, A and B; those of one are in `_gains`.
  """
  quantities: dict[tuple[str, float | None], np.ndarray] = {
    (name, None): law.params[name] for name, kind in law.form.kinds.items() if kind is POWER
  }
  quantities["a", None] = law.exponents(max(budgets))[0]
  for C in budgets:
    best = law.optimum(C)
    quantities["tokens_per_param", C] = np.log(best.D / best.N)
  return quantities
