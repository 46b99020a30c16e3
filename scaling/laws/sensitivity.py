"""How far the answer moves: without a run (jackknife), along an exponent, under other choices.

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
from scaling.laws.forms import POWER
from scaling.laws.intervals import bootstrap
from scaling.laws.law import Law, at_edge, unbounded
from scaling.laws.solve import LEAST_ABSOLUTE, LEAST_SQUARES
from scaling.laws.tables.read import PARAMS, read_runs
from scaling.laws.tables.runs import Runs, check_identifiable, faults

MOST_LEFT_OUT = 2000  # runs of a jackknife: one fit each
STEPS_TO_REACH = 12  # of a profile, to where a parabola would end
PROFILE_STEPS = 60  # at most: 25 times as far
HUBER = 1.345  # SDs of normal scatter, of which 95 % of the efficiency is kept (Huber 1964)
DELTAS = {"1e-2": 1e-2, "1e-3": 1e-3, "LAD": LEAST_ABSOLUTE, "MSE": LEAST_SQUARES}


def jackknife(fit: Fit, C: float | None = None) -> list[dict[str, Any]]:
  """Measures how the fit moves without each run, the most influential run first.

  Args:
    fit: the fit.
    C: budget at which N_opt is looked at [FLOPs]; by default the largest.

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


def profile_intervals(fit: Fit) -> dict[str, dict[str, Any]]:
  """Computes profile-likelihood intervals of the exponents, alpha and beta of Chinchilla's form.

  The likelihood is that of normal scatter, so its maximum is the least-squares fit whatever the
  fit's own delta: a second opinion that resamples nothing. With all else refitted at each value v
  of an exponent, v is inside while sqrt((S(v) / S - 1) (n - p)), S the sum of squares, stays below
  Student's quantile (Bates and Watts 1988, Nonlinear Regression, section 6.1).

  Returns:
    For each the least-squares `value`, the `interval`, and `open`: whether the low and the high end
    lie beyond what was searched, so that the runs do not bound the exponent there.
  """
  problem = fit.problem
  best = solve.minimum(problem, LEAST_SQUARES)[1]
  theta = best.theta[0]
  limit = bootstrap.t_quantile((1 + fit.options.level) / 2, fit.freedom)
  hessian = solve.curvature(problem, theta, LEAST_SQUARES)
  variance = np.linalg.pinv(hessian) * 2 * best.cost[0] / fit.freedom
  intervals = {}
  for index, (name, kind) in enumerate(problem.form.kinds.items()):
    if kind is not POWER:
      continue
    reach = limit * np.sqrt(max(variance[index, index], 1e-24))
    if len(fit.runs) > solve.MANY:  # there, the profile is a parabola
      ends, beyond = theta[index] + np.array([-reach, reach]), [False, False]
    else:
      allowed = limit**2 / fit.freedom
      ends, beyond = _profile(problem, theta, index, best.cost[0], allowed, reach)
    intervals[name] = {
      "value": float(theta[index]),
      "interval": [float(end) for end in ends],
      "open": beyond,
    }
  return intervals


def _profile(problem, theta, index, least, allowed, reach):
  """Walks from the minimum both ways until the cost exceeds least (1 + allowed); says where [2].

  And whether the walk ended at the box, or far out, before it did.
  """
  low, high = (bound[index] for bound in problem.box)
  at = np.tile(theta, (2, 1))
  ones = np.ones((2, len(problem.y)))
  values, distances = [at[:, index].copy()], [np.zeros(2)]
  for step in range(1, PROFILE_STEPS + 1):
    offset = reach * (step / STEPS_TO_REACH) ** 2
    at[:, index] = np.clip(theta[index] + np.array([-offset, offset]), low, high)
    solved = solve.minimise(problem, ones, at, LEAST_SQUARES, held=index)
    at = solved.theta
    values.append(at[:, index].copy())
    distances.append(np.sqrt(np.maximum(solved.cost / max(least, 1e-300) - 1, 0)))
    if np.all((distances[-1] > np.sqrt(allowed)) | (values[-1] <= low) | (values[-1] >= high)):
      break
  way = np.maximum.accumulate(np.array(distances))
  ends = [np.interp(np.sqrt(allowed), way[:, i], np.array(values)[:, i]) for i in (0, 1)]
  return np.array(ends), [bool(end <= np.sqrt(allowed)) for end in way[-1]]


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

  def row(choice: str, value: str, delta: float = options.delta, **changed: Any) -> dict[str, Any]:
    head: dict[str, Any] = {"choice": choice, "value": value}
    try:
      runs_otherwise = read_runs(path, columns, **(chosen | changed)) if changed else runs
      return head | _summary(runs_otherwise, options, delta)
    except UserError as error:
      return head | {"reason": str(error)}

  runs = read_runs(path, columns, **chosen)
  rows = [{"choice": "as chosen", "value": ""} | _summary(runs, options, options.delta)]
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


def _summary(runs: Runs, options: Choices, delta: float) -> dict[str, Any]:
  """Fits a law and says what a row of `vary_choices` says of it."""
  check_identifiable(runs)
  problem = problem_of(runs, options)
  best = solve.minimum(problem, problem.huber(delta))[1]
  if bound := unbounded(problem.names(best.at_bound[0])):
    return {"n_runs": len(runs), "reason": at_edge(bound)}
  compute, C = estimate_compute(runs.N, runs.D, runs.C), float(runs.C.max())
  law = Law(problem.form, problem.natural(best.theta[0]), compute)
  (a, b), best_use = law.exponents(C), law.optimum(C)
  ratio = float(best_use.D / best_use.N)
  return {"n_runs": len(runs), "a": float(a), "b": float(b), "C": C, "tokens_per_param": ratio}
