"""Approach 3: L(N, D) fitted to runs, with what its intervals need, and what it predicts.

Everything is float64 and a function of the runs and the options: neither the order of the runs nor
the time of day enters, so a fit is recomputed rather than stored.
"""

import math
from typing import Any

import numpy as np

from configs.errors import ConfigError, DataError, UserError
from scaling.laws import bootstrap, chinchilla, solve
from scaling.laws.bootstrap import cuts, interval, seed_noise
from scaling.laws.fitted import Fit, Options, chinchilla_problem, to_law
from scaling.laws.tables.runs import Runs, check_identifiable

FAR = 10.0  # times outside the fitted runs: beyond it an extrapolation is marked
STUDENTS = 99  # quantiles that stand for the scatter of a run, where few runs tell it
OPEN = [math.nan, math.nan]  # an interval of which neither end is known


def check_options(options: Options) -> None:
  """Refuses options of a fit that are out of range."""
  known = ", ".join(bootstrap.RESAMPLINGS)
  for name, valid, remedy in (
    ("delta", options.delta > 0, "a positive number, 1e-3 for instance"),
    ("bootstraps", options.bootstraps >= 100, "100 or more, 1000 for instance"),
    ("level", 0 < options.level < 1, "a number between 0 and 1, 0.9 for instance"),
    ("resampling", options.resampling in bootstrap.RESAMPLINGS, f"one of {known}"),
  ):
    if not valid:
      raise ConfigError(f"fit.{name}={getattr(options, name)}: must be {remedy}")


def check_sealable(fit: Fit) -> None:
  """Refuses a fit whose runs determine no optimum that could be sealed."""
  if fit.unbounded:
    raise DataError(
      f"fit: {chinchilla.at_edge(fit.unbounded)}: there is no optimum to seal; train cells at more "
      "sizes or budgets"
    )


def fit_runs(runs: Runs, options: Options) -> Fit:
  """Fits the Chinchilla law by Approach 3 of Hoffmann et al. 2022, with a bootstrap over runs.

  Args:
    runs: the runs.
    options: `config.fit`, or anything with the fields of `Options`. A delta of 1e-3 is Hoffmann et
      al.'s, 10 is least squares of log loss, 1e-8 least absolute deviations.

  Raises:
    UserError: the runs do not identify the law, or an option is out of range.
  """
  check_options(options)
  check_identifiable(runs)
  problem = chinchilla_problem(runs)
  ends, best = solve.minimum(problem, options.delta)
  draws = bootstrap.resample(
    problem, runs, best.theta[0], options.delta, options.bootstraps, options.seed,
    options.resampling,
  )  # fmt: skip
  law = to_law(problem, best.theta[0])
  residuals = np.log(runs.loss) - np.log(chinchilla.loss(law, runs.N, runs.D))
  return Fit(
    runs=runs,
    law=law,
    draws=to_law(problem, draws.theta),
    compute=chinchilla.estimate_compute(runs.N, runs.D, runs.C),
    residuals=residuals,
    delta=options.delta,
    level=options.level,
    seed=options.seed,
    form_error=forecast_error(runs, options.delta, np.sum(residuals**2) / (len(runs) - len(law))),
    convergence={
      "starts": len(ends.cost),
      "starts_converged": int(ends.converged.sum()),
      "starts_at_optimum": int((ends.cost <= ends.cost.min() * (1 + 1e-6) + 1e-20).sum()),
      "start_converged": ends.converged.tolist(),
      "start_cost": [float(cost) if np.isfinite(cost) else None for cost in ends.cost],
      "cost": float(best.cost[0]),
      "at_bound": chinchilla.bound_names(best.at_bound[0]),
      "resamples_converged": float(draws.converged.mean()),
      "resamples_at_bound": float(draws.at_bound.any(axis=1).mean()),
    },
    resampling=options.resampling,
  )


def forecast_error(runs: Runs, delta: float, scatter: float) -> float | None:
  """Estimates the error of the law's own extrapolations [log loss per e-fold of compute].

  The law is fitted again to the runs up to each budget and asked for the runs above it (a forecast
  from a rolling origin, Tashman 2000). What their squared errors hold beyond the scatter of a run
  grows with the distance: e^2 = scatter + (form_error log(C / C_fitted))^2, in the mean.

  Args:
    runs: all runs; of more than `solve.MANY` a random part.
    delta: Huber's threshold.
    scatter: variance of one run's log loss about the law.

  Returns:
    The error; None where no budget leaves a law below it and runs above it.
  """
  if len(runs) > solve.MANY:
    part = np.random.default_rng(0).choice(len(runs), solve.MANY, replace=False)
    runs = runs.subset(np.sort(part))
  excess, distance = 0.0, 0.0
  for below, above in cuts(runs):
    try:
      check_identifiable(some := runs.subset(below))
      problem = chinchilla_problem(some)
      law = to_law(problem, solve.minimum(problem, delta)[1].theta[0])
    except UserError:
      continue
    error = np.log(runs.loss[above] / chinchilla.loss(law, runs.N[above], runs.D[above]))
    excess += np.sum(error**2 - scatter)
    distance += np.sum(np.log(runs.C[above] / some.C.max()) ** 2)
  return float(np.sqrt(max(0.0, excess) / distance)) if distance else None


def new_run_noise(fit: Fit) -> np.ndarray:
  """Samples what separates the log loss of one new run from the law [n].

  It is the residuals, inflated by sqrt(n / (n - 5)) because five parameters were fitted to them,
  and further where repeats of a cell show that seeds alone scatter more. Of few runs, most of which
  the law goes through, it is `STUDENTS` quantiles of Student's law.
  """
  n, freedom = len(fit.runs), len(fit.runs) - len(fit.law)
  noise = fit.residuals * np.sqrt(n / freedom)
  rms = np.sqrt(np.mean(noise**2))
  if bootstrap.few(fit.runs):
    at = (np.arange(STUDENTS) + 0.5) / STUDENTS
    noise = rms * np.array([bootstrap.t_quantile(p, freedom) for p in at])
  return noise * max(1.0, (seed_noise(fit.runs) or 0.0) / max(rms, 1e-12))


def predict_loss(fit: Fit, N: float, D: float) -> tuple[float, list[float]]:
  """Predicts the loss of one run that is yet to be trained.

  Returns:
    The law's loss [nats per token], and its prediction interval. It holds the uncertainty of the
    parameters (bootstrap), the scatter of one run about the law (`new_run_noise`), and, outside the
    fitted runs, the error that the law's form made when smaller budgets had to
    predict larger ones (`forecast_error`).
  """
  rng = np.random.default_rng((fit.seed, 1))
  noise = rng.choice(new_run_noise(fit), size=len(fit.draws.E))
  C = float(fit.compute.flops_per_token(N) * D)
  draws = chinchilla.loss(fit.draws, N, D) * np.exp(noise + form_noise(fit, C, N, D))
  return float(chinchilla.loss(fit.law, N, D)), interval(draws, fit.level)


def form_noise(fit: Fit, C: float, N: float, D: float) -> np.ndarray:
  """Draws the error of the law's form there [R, log loss]; 0 within the runs."""
  distance = np.log(fit.outside(C, N, D))
  normal = np.random.default_rng((fit.seed, 2)).normal(size=len(fit.draws.E))
  return (fit.form_error or 0.0) * distance * normal


def optimum(fit: Fit, C: float) -> dict[str, Any]:
  """Computes the best use of C FLOPs: N_opt, D_opt, tokens_per_param and loss, each with interval.

  The interval of the loss here is that of the law at its optimum, its form's error included; for
  that of a run see `predict_loss`. `extrapolation` is how many times the optimum lies outside the
  fitted runs (`Fit.outside`; 1: within), and `extrapolated` marks the rows beyond ten times.
  Where a parameter ended at the edge of its range (`Fit.unbounded`), the runs determine no optimum:
  the intervals of N_opt, D_opt and their ratio are [nan, nan].
  """
  best = chinchilla.optimum(fit.law, C, fit.compute)
  draws = chinchilla.optimum(fit.draws, C, fit.compute)
  at = float(C), float(best.N), float(best.D)
  row: dict[str, Any] = {"C": float(C), "extrapolation": fit.outside(*at)}
  row["extrapolated"] = far(row["extrapolation"])
  for name, value, sample in (
    ("N_opt", best.N, draws.N),
    ("D_opt", best.D, draws.D),
    ("tokens_per_param", best.D / best.N, draws.D / draws.N),
    ("loss", best.loss, draws.loss * np.exp(form_noise(fit, *at))),
  ):
    row[name] = float(value)
    known = name == "loss" or not fit.unbounded
    row[f"{name}_interval"] = interval(sample, fit.level, float(value)) if known else OPEN
  return row


def known(row: dict[str, Any]) -> dict[str, Any]:
  """Puts None in place of a row's intervals that are open: JSON has no nan."""
  return {key: None if value is OPEN else value for key, value in row.items()}


def far(extrapolation: float) -> bool:
  """Tells whether so many times outside the runs is to be marked."""
  return extrapolation > FAR * (1 + 1e-9)


def ratio_cost(fit: Fit, C: float, tokens_per_param: float) -> dict[str, Any]:
  """Computes what a fixed ratio D/N costs at C FLOPs: N, D, loss, its excess over the optimum.

  The interval of the loss is that of the law, its form's error included, as in `optimum`.
  """

  def loss_at_ratio(law):
    n = fit.compute.params(C, tokens_per_param)
    return chinchilla.loss(law, n, fit.compute.tokens(n, C))

  n = float(fit.compute.params(C, tokens_per_param))
  d = float(fit.compute.tokens(n, C))
  value = float(loss_at_ratio(fit.law))
  excess = value - float(chinchilla.optimum(fit.law, C, fit.compute).loss)
  draws = loss_at_ratio(fit.draws)
  return {
    "C": float(C),
    "tokens_per_param": float(tokens_per_param),
    "N": n,
    "D": d,
    "loss": value,
    "loss_interval": interval(draws * np.exp(form_noise(fit, C, n, d)), fit.level, value),
    "excess": excess,
    "excess_interval": interval(
      draws - chinchilla.optimum(fit.draws, C, fit.compute).loss, fit.level
    ),
  }
