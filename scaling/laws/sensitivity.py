"""How far the answer moves: without a run (jackknife), under other choices.

A law depends on what N counts, what C counts, which runs were left out, and how outliers weigh.
Each of these is made otherwise, one at a time, and the law fitted again.
"""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from configs.errors import DataError, UserError
from scaling.laws import solve
from scaling.laws.chinchilla import estimate_compute
from scaling.laws.fitted import Fit, Options, problem_of
from scaling.laws.intervals import bootstrap, misfit
from scaling.laws.law import Law, at_edge, unbounded
from scaling.laws.solve import LEAST_ABSOLUTE, LEAST_SQUARES
from scaling.laws.tables.read import PARAMS, read_runs
from scaling.laws.tables.runs import Runs, check_identifiable, faults

MOST_LEFT_OUT = 2000  # runs of a jackknife: one fit each
HUBER = 1.345  # SDs of normal scatter, of which 95 % of the efficiency is kept (Huber 1964)
DELTAS = {"1e-2": 1e-2, "1e-3": 1e-3, "LAD": LEAST_ABSOLUTE, "MSE": LEAST_SQUARES}


def jackknife(fit: Fit, C: float | None = None) -> list[dict[str, Any]]:
  """Measures how the fit moves without each run, the most influential run first.

  `C` is the budget at which N_opt is looked at [FLOPs]; by default the largest.

  Returns:
    Per run its id, N, D and loss, a and N_opt without it, how far that moves them (`a_shift`;
    `N_opt_shift` in log N_opt), and `influence`: the latter's size in standard errors of log N_opt.
    A run without which there is no law has None for these, and comes first.

  Raises:
    DataError: more than 2,000 runs, of which none could matter alone.
  """
  runs, n = fit.runs, len(fit.runs)
  if n > MOST_LEFT_OUT:
    raise DataError(f"jackknife: {n} runs; it is for {MOST_LEFT_OUT} or fewer: leave it out")
  C, C_max = float(runs.C.max()) if C is None else C, float(runs.C.max())
  problem = fit.problem
  start, delta = problem.theta(fit.law.params), problem.huber(fit.options.delta)
  without = bootstrap.fit_weighted(problem, 1 - np.eye(n), start, delta)
  law = Law(fit.law.form, problem.natural(without.theta), fit.compute)
  n_opt, n_whole = (each.optimum(C).N for each in (law, fit.law))
  a, a_whole = (np.broadcast_to(each.exponents(C_max)[0], n) for each in (law, fit.law))
  shift = np.log(n_opt / n_whole)
  shift[[bool(faults(runs.subset(np.delete(np.arange(n), i)))) for i in range(n)]] = np.inf
  spread = max(float(np.std(np.log(fit.draws.optimum(C).N))), 1e-300)
  rows: list[dict[str, Any]] = []
  for i in np.argsort(-np.abs(shift), kind="stable"):
    moved = {
      "a": float(a[i]),
      "a_shift": float(a[i] - a_whole[i]),
      "N_opt": float(n_opt[i]),
      "N_opt_shift": float(shift[i]),
      "influence": float(abs(shift[i]) / spread),
    }
    row = {"id": runs.ids[i]} | {k: float(getattr(runs, k)[i]) for k in ("N", "D", "loss")}
    rows.append(row | (moved if np.isfinite(shift[i]) else dict.fromkeys(moved)))
  return rows


class Choices(Options, Protocol):
  """The fields of `config.fit` that are choices."""

  params: str
  flops: str
  loss: str


def vary_choices(
  path: str | os.PathLike,
  options: Choices,
  columns: str = "",
  where: Sequence[str] = (),
  exclude: Sequence[str] = (),
) -> list[dict[str, Any]]:
  """Fits the runs of a table as chosen, and again with one choice made otherwise at a time.

  Other counts of N and C are tried where the table has them: in our cells.csv. The arguments are
  those of `read_runs`, and `config.fit`.

  Returns:
    Rows, the first as chosen: the choice and its value, n_runs, a, b, and tokens_per_param at C,
    the largest budget of those runs; or the reason why there is no law.
  """
  chosen: dict[str, Any] = {
    "params": options.params,
    "flops": options.flops,
    "loss": options.loss,
    "where": where,
    "exclude": exclude,
  }

  def row(
    choice: str, value: str, delta: float = options.delta, reach: float = options.reach,
    **changed: Any,
  ) -> dict[str, Any]:  # fmt: skip
    head: dict[str, Any] = {"choice": choice, "value": value}
    try:
      runs_otherwise = read_runs(path, columns, **(chosen | changed)) if changed else runs
      return head | _summary(runs_otherwise, options, delta, reach)
    except UserError as error:
      return head | {"reason": str(error)}

  runs = read_runs(path, columns, **chosen)
  chosen_law = _summary(runs, options, options.delta, options.reach)
  rows = [{"choice": "as chosen", "value": ""} | chosen_law]
  if rows[0]["n_runs"] < len(runs):
    rows.append(row("runs far from the optimum", "kept", reach=0.0))
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
  problem = problem_of(runs, options)
  best = solve.minimum(problem, problem.huber(options.delta))[1]
  noise = solve.scatter(problem, best.theta[0]) / problem.huber(1.0)
  for name, delta in {"1.345 SD": HUBER * noise, **DELTAS}.items():
    if delta != options.delta:
      rows.append(row("delta", name, delta))
  return rows


def _summary(runs: Runs, options: Choices, delta: float, reach: float) -> dict[str, Any]:
  """Fits a law and says what a row of `vary_choices` says of it."""
  check_identifiable(runs)
  problem = problem_of(runs, options)
  runs, problem, _, best = misfit.solve_near(runs, problem, problem.huber(delta), reach)
  if bound := unbounded(problem.names(best.at_bound[0])):
    return {"n_runs": len(runs), "reason": at_edge(bound)}
  compute, C = estimate_compute(runs.N, runs.D, runs.C), float(runs.C.max())
  law = Law(problem.form, problem.natural(best.theta[0]), compute)
  (a, b), best_use = law.exponents(C), law.optimum(C)
  ratio = float(best_use.D / best_use.N)
  return {"n_runs": len(runs), "a": float(a), "b": float(b), "C": C, "tokens_per_param": ratio}
