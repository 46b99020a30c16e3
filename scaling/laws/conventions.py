"""The choices behind a fit, and how far each of them moves the answer.

A law depends on what N counts, what C counts, which runs were left out, and how outliers weigh.
Each of these is made otherwise, one at a time, and the law fitted again.
"""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from configs.errors import UserError
from scaling.laws import chinchilla, estimate
from scaling.laws.chinchilla import at_edge, bound_names, unbounded
from scaling.laws.runs import PARAMS, Runs, check_identifiable, read_runs

DELTAS = {"1e-2": 1e-2, "1e-3": 1e-3, "LAD": 1e-8, "MSE": 10.0}  # Huber's threshold on log loss


class Options(Protocol):
  """The fields of `config.fit` that are choices."""

  params: str
  flops: str
  delta: float


def choices(
  path: str | os.PathLike,
  options: Options,
  columns: str = "",
  where: Sequence[str] = (),
  exclude: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Fits the runs of a table as chosen, and again with one choice made otherwise at a time.

  Other counts of N and C are tried where the table has them: in our cells.csv.

  Args:
    path: the table, with `columns`, `where` and `exclude` as in `scaling.laws.runs.read_runs`.
    options: `config.fit`.
    columns: names that differ.
    where: conditions that every run meets.
    exclude: conditions that no run meets.

  Returns:
    Rows, the first as chosen: the choice and its value, n_runs, a, b, and tokens_per_param at C,
    the largest budget of those runs; or the reason why there is no law.
  """
  chosen = {"params": options.params, "flops": options.flops, "where": where, "exclude": exclude}

  def row(choice: str, value: str, delta: float = options.delta, **changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"choice": choice, "value": value}
    try:
      other = read_runs(path, columns, **(chosen | changed)) if changed else runs
      return found | _law(other, delta)
    except UserError as error:
      return found | {"reason": str(error)}

  runs = read_runs(path, columns, options.params, options.flops, where, exclude)
  rows = [{"choice": "as chosen", "value": ""} | _law(runs, options.delta)]
  ours = runs.params != "given"
  for params in PARAMS if ours else ():
    if params != options.params:
      rows.append(row("N counts", params, params=params))
  textbook = np.allclose(runs.C, 6 * runs.N * runs.D, rtol=1e-6)
  if runs.flops == "exact" and not textbook:
    rows.append(row("C counts", "6nd", flops="6nd"))
  elif runs.flops == "6nd" and ours:
    rows.append(row("C counts", "exact", flops="exact"))
  if runs.filters:
    rows.append(row("exclusions", "none", where=(), exclude=()))
  for name, delta in DELTAS.items():
    if delta != options.delta:
      rows.append(row("delta", name, delta))
  return rows


def _law(runs: Runs, delta: float) -> dict[str, Any]:
  check_identifiable(runs)
  design = estimate.design(runs.N, runs.D, runs.loss)
  _, best = estimate.minimum(design, delta)
  if bound := unbounded(bound_names(best.at_bound[0])):
    return {"n_runs": len(runs), "reason": at_edge(bound)}
  law, C = estimate.to_law(design, best.theta[0]), float(runs.C.max())
  a, b = chinchilla.exponents(law)
  optimum = chinchilla.optimum(law, C, chinchilla.estimate_compute(runs.N, runs.D, runs.C))
  ratio = float(optimum.D / optimum.N)
  return {"n_runs": len(runs), "a": float(a), "b": float(b), "C": C, "tokens_per_param": ratio}
