"""A form fitted to runs, with what its intervals need, and what it predicts.

Everything is float64 and a function of the runs and the options: neither the order of the runs nor
the time of day enters, so a fit is recomputed rather than stored.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from configs.errors import ConfigError, DataError, UserError
from scaling.laws import solve
from scaling.laws.chinchilla import estimate_compute
from scaling.laws.fitted import Fit, Options, problem_of
from scaling.laws.forms import FORMS, MAD, Form, surfaces
from scaling.laws.intervals import bootstrap
from scaling.laws.intervals.bootstrap import budgets, cuts, holding, interval, seed_noise
from scaling.laws.law import Law, at_edge
from scaling.laws.tables.runs import Runs, UnidentifiableError, check_identifiable

FAR = 10.0  # times outside the fitted runs: beyond it an extrapolation is marked
STUDENTS = 99  # quantiles that stand for the scatter of a run, where few runs tell it
OUTLIER = 10.0  # robust standard deviations off the law: such a run says nothing of its form
MOST_AT_EDGE = 0.8  # of the resamples: then nearly all of an interval is the edge's, not the runs'
LEAST_CONVERGED = 0.5  # of the resamples
NARROWEST = 2.5  # between the least and the greatest C: the error of an exponent is scatter / log
WIDEST = 100.0  # times the loss, either way: an end of its interval farther off predicts nothing
OPEN = [math.nan, math.nan]  # an interval of which neither end is known


def check_options(options: Options) -> None:
  """Refuses options of a fit that are out of range, or a form that is no surface L(N, D)."""
  known = ", ".join(bootstrap.RESAMPLINGS)
  choices = f"one of {', '.join(surfaces())}"
  if options.form in FORMS and options.form not in surfaces():
    choices += f": it is of {', '.join(FORMS[options.form].variables)}, and not of N and D"
  for name, valid, remedy in (
    ("form", options.form in surfaces(), choices),
    ("response", options.response in ("log", "raw"), "one of log, raw"),
    ("fixed_E", options.fixed_E >= 0, "a loss in nats per token, or 0: it is fitted"),
    ("delta", options.delta > 0, "a positive number, 1e-3 for instance"),
    ("bootstraps", options.bootstraps >= 100, "100 or more, 1000 for instance"),
    ("level", 0 < options.level < 1, "a number between 0 and 1, 0.9 for instance"),
    ("resampling", options.resampling in bootstrap.RESAMPLINGS, f"one of {known}"),
  ):
    if not valid:
      raise ConfigError(f"fit.{name}={getattr(options, name)}: must be {remedy}")
  if options.fixed_E and "E" not in FORMS[options.form].kinds:
    raise ConfigError(f"fit.fixed_E={options.fixed_E}: fit.form={options.form} has no E; leave 0")


def _check_determined(form: Form, size: int, runs: Runs) -> None:
  """Refuses runs from which a form's parameters, `size` of them fitted, cannot be told."""
  if {"N", "D"} <= set(form.variables):
    check_identifiable(runs)
  elif len(form.variables) == 1:
    (name,) = form.variables
    levels = len(budgets(runs.variables[name]))
    if levels < size:
      raise UnidentifiableError(f"form={form.name}: {levels} distinct {name} for {size} parameters")
  if len(runs) <= size:
    raise UnidentifiableError(
      f"form={form.name}: {len(runs)} runs for {size} parameters; train more"
    )


def fit_runs(runs: Runs, options: Options, form: Form | None = None) -> Fit:
  """Fits a form by Approach 3 of Hoffmann et al. 2022, with a bootstrap over runs.

  Args:
    runs: the runs.
    options: `config.fit`, or anything with the fields of `Options`. A delta of 1e-3 is Hoffmann et
      al.'s, 10 is least squares, 1e-8 least absolute deviations.
    form: one of any variables that the runs have, instead of `options.form`.

  Raises:
    UserError: the runs do not identify the law, or an option is out of range.
  """
  check_options(options)
  form = form or FORMS[options.form]
  _check_determined(form, len(form.kinds) - ("E" in form.kinds and options.fixed_E > 0), runs)
  problem = problem_of(runs, options, form)
  delta = problem.huber(options.delta)
  ends, best = solve.minimum(problem, delta)
  draws = bootstrap.resample(
    problem, runs, best.theta[0], delta, options.bootstraps, options.seed, options.resampling
  )
  compute = estimate_compute(runs.N, runs.D, runs.C)
  params = {name: float(value) for name, value in problem.natural(best.theta[0]).items()}
  residuals = -solve.log_residuals(problem, best.theta)[0]
  not_E = np.array([name != "E" for name in form.kinds])
  return Fit(
    runs=runs,
    problem=problem,
    law=Law(problem.form, params, compute),
    draws=Law(problem.form, problem.natural(draws.theta), compute),
    residuals=residuals,
    form_error=forecast_error(problem, runs, delta, residuals),
    convergence={
      "starts": len(ends.cost),
      "starts_converged": int(ends.converged.sum()),
      "starts_at_optimum": int((ends.cost <= ends.cost.min() * (1 + 1e-6) + 1e-20).sum()),
      "start_converged": ends.converged.tolist(),
      "start_cost": [float(cost) if np.isfinite(cost) else None for cost in ends.cost],
      "cost": float(best.cost[0]),
      "at_bound": problem.names(best.at_bound[0]),
      "resamples_converged": float(draws.converged.mean()),
      "resamples_at_bound": float(draws.at_bound.any(axis=1).mean()),
      "resamples_unbounded": float((draws.at_bound & not_E).any(axis=1).mean()),
    },
    options=options,
  )


def forecasts(
  problem: solve.Problem, runs: Runs, delta: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | UserError]]:
  """Fits the runs up to each budget and asks for those above (a rolling origin, Tashman 2000).

  Yields:
    Positions of the fitted and of the held-out runs, and the log of observed over predicted loss
    of the latter, or why there is no such fit.
  """
  for below, above in cuts(runs):
    counts = np.zeros(len(runs))
    counts[below] = 1
    try:
      _check_determined(problem.form, int(problem.free.sum()), runs.subset(below))
      theta = solve.search(problem, delta, counts)[1].theta
      yield below, above, -solve.log_residuals(problem, theta)[0, above]
    except UserError as error:
      yield below, above, error


def forecast_error(
  problem: solve.Problem, runs: Runs, delta: float, residuals: np.ndarray
) -> float | None:
  """Estimates the error of the law's own extrapolations [log loss per e-fold of compute].

  What the squared errors of `forecasts` hold beyond the scatter of a run grows with the distance:
  e^2 = scatter + (form_error log(C / C_fitted))^2, in the mean. A run that diverged lies far off
  any law (`OUTLIER`), and is not asked for.

  Args:
    problem: the form and the runs.
    runs: all runs; of more than `solve.MANY` a random part counts.
    delta: Huber's threshold.
    residuals: of the law fitted to all runs [n, log loss].

  Returns:
    The error; None where no budget leaves a law below it and runs above it.
  """
  freedom = len(runs) - problem.free.sum()
  rest = np.sort(np.abs(residuals))[-freedom:]  # a law may go through all others
  usual = np.abs(residuals) <= OUTLIER * MAD * np.median(rest)
  scatter = np.sum(residuals[usual] ** 2) / max(1, freedom - np.sum(~usual))
  if len(runs) > solve.MANY:
    part = np.sort(np.random.default_rng(0).choice(len(runs), solve.MANY, replace=False))
    logs = {name: values[part] for name, values in problem.logs.items()}
    problem, runs = dataclasses.replace(problem, logs=logs, y=problem.y[part]), runs.subset(part)
    usual = usual[part]
  excess, distance = 0.0, 0.0
  for below, above, error in forecasts(problem, runs, delta):
    if not isinstance(error, UserError):
      counted = usual[above]
      excess += np.sum((error**2 - scatter)[counted])
      distance += np.sum(np.log(runs.C[above] / runs.C[below].max())[counted] ** 2)
  return float(np.sqrt(max(0.0, excess) / distance)) if distance else None


def new_run_noise(fit: Fit) -> np.ndarray:
  """Samples what separates the log loss of one new run from the law [n].

  It is the residuals, inflated by sqrt(n / (n - p)) because p parameters were fitted to them, and
  further where repeats of a cell show that seeds alone scatter more. Of few runs, most of which the
  law goes through, it is `STUDENTS` quantiles of Student's law.
  """
  noise = fit.residuals * np.sqrt(len(fit.runs) / fit.freedom)
  rms = np.sqrt(np.mean(noise**2))
  if bootstrap.few(fit.runs):
    at = (np.arange(STUDENTS) + 0.5) / STUDENTS
    noise = rms * np.array([bootstrap.t_quantile(p, fit.freedom) for p in at])
  return noise * max(1.0, (seed_noise(fit.runs) or 0.0) / max(rms, 1e-12))


def predict_loss(fit: Fit, N: float, D: float) -> tuple[float, list[float]]:
  """Predicts the loss of one run that is yet to be trained.

  Returns:
    The law's loss [nats per token], and its prediction interval. It holds the uncertainty of the
    parameters (bootstrap), the scatter of one run about the law (`new_run_noise`), and, outside the
    fitted runs, the error that the law's form made when smaller budgets had to
    predict larger ones (`forecast_error`). It holds the law's loss: where the draws of a law that
    the runs hardly determine all lie on one side of it, it is widened (`undetermined` says so
    of such a law).
  """
  rng = np.random.default_rng((fit.options.seed, 1))
  noise = rng.choice(new_run_noise(fit), size=fit.options.bootstraps)
  C = float(fit.compute.flops_per_token(N) * D)
  draws = fit.draws.loss(N, D) * np.exp(noise + form_noise(fit, C, N, D))
  value = float(fit.law.loss(N, D))
  return value, holding(interval(draws, fit.options.level), value)


def form_noise(fit: Fit, C: float, N: float, D: float) -> np.ndarray:
  """Draws the error of the law's form there [R, log loss]; 0 within the runs."""
  distance = np.log(fit.outside(C, N, D))
  normal = np.random.default_rng((fit.options.seed, 2)).normal(size=fit.options.bootstraps)
  return (fit.form_error or 0.0) * distance * normal


def optimum(fit: Fit, C: float) -> dict[str, Any]:
  """Computes the best use of C FLOPs: N_opt, D_opt, tokens_per_param and loss, each with interval.

  The interval of the loss here is that of the law at its optimum, its form's error included; for
  that of a run see `predict_loss`. `extrapolation` is how many times the optimum lies outside the
  fitted runs (`Fit.outside`; 1: within), and `extrapolated` marks the rows beyond ten times.
  Where a parameter ended at the edge of its range (`Fit.unbounded`), the runs determine no optimum:
  the intervals of N_opt, D_opt and their ratio are [nan, nan].
  """
  best, draws = fit.law.optimum(C), fit.draws.optimum(C)
  at = float(C), float(best.N), float(best.D)
  determined = not (fit.unbounded or fit.law.at_end(best))
  row: dict[str, Any] = {"C": float(C), "extrapolation": fit.outside(*at)}
  row["extrapolated"] = far(row["extrapolation"])
  for name, value, sample in (
    ("N_opt", best.N, draws.N),
    ("D_opt", best.D, draws.D),
    ("tokens_per_param", best.D / best.N, draws.D / draws.N),
    ("loss", best.loss, draws.loss * np.exp(form_noise(fit, *at))),
  ):
    row[name] = float(value)
    known = name == "loss" or determined
    row[f"{name}_interval"] = interval(sample, fit.options.level, float(value)) if known else OPEN
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
  n = float(fit.compute.params(C, tokens_per_param))
  d = float(fit.compute.tokens(n, C))
  value, draws = float(fit.law.loss(n, d)), fit.draws.loss(n, d)
  level = fit.options.level
  return {
    "C": float(C),
    "tokens_per_param": float(tokens_per_param),
    "N": n,
    "D": d,
    "loss": value,
    "loss_interval": interval(draws * np.exp(form_noise(fit, C, n, d)), level, value),
    "excess": value - float(fit.law.optimum(C).loss),
    "excess_interval": interval(draws - fit.draws.optimum(C).loss, level),
  }


def undetermined(fit: Fit, C: float | None = None) -> list[str]:
  """Lists why the runs do not determine the law, each with what would; [] where they do.

  Args:
    fit: the fit.
    C: a budget beyond the runs that is asked of it as well [FLOPs].
  """
  reasons = [*_design(fit), *_edges(fit)]
  for budget in (C, float(fit.runs.C.max())):
    reasons += _at(fit, budget) if budget and not reasons else []
  return reasons


def check_sealable(fit: Fit, C: float) -> None:
  """Refuses a fit whose runs determine no optimum at C FLOPs that could be sealed."""
  if reasons := undetermined(fit, C):
    raise DataError(f"fit: undetermined: {reasons[0]}: there is nothing to seal")


def _design(fit: Fit) -> list[str]:
  """Finds what is wrong with the runs themselves."""
  runs, reasons = fit.runs, []
  span = runs.C.max() / runs.C.min()
  if span < NARROWEST:
    reasons.append(
      f"all runs are within {span:.2g}x in C; train at budgets at least {2 * NARROWEST:g}x apart"
    )
  groups = budgets(runs.C)
  best = np.array([runs.loss[group].min() for group in groups])
  if len(best) > 1 and _rank_correlation(best) >= 0:
    larger = (runs.loss <= 1).all() and np.ptp(best) > 0
    reasons.append(
      "the best loss does not fall with compute; "
      + (
        "these look like accuracies, of which larger is better: give losses, or 1 - accuracy"
        if larger
        else "train at larger budgets, or look for what went wrong in the larger runs"
      )
    )
  apart = [len(np.unique(runs.N[group])) > 1 for group in groups]
  if all(np.ptp(runs.loss[group]) == 0 for group in groups) and any(apart) and not reasons:
    reasons.append("at each budget all sizes reach the same loss; look whether it is the run's own")
  return reasons


def _rank_correlation(values: np.ndarray) -> float:
  """Correlates values with their order (Kendall): the sum of the signs of all their steps."""
  return float(np.sign(values[None, :] - values[:, None])[np.triu_indices(len(values), 1)].sum())


def _edges(fit: Fit) -> list[str]:
  """Finds parameters at the edge of their range, in the fit or in most resamples: not E.

  E = 0 is a law too, of losses still far above the floor, and its optimum is then judged by itself.
  """
  remedy = "train cells at more sizes or budgets"
  if fit.unbounded:
    return [f"{at_edge(fit.unbounded)}; {remedy}"]
  if (share := fit.convergence["resamples_unbounded"]) > MOST_AT_EDGE:
    what = "a parameter other than E ended at the edge of its range"
    return [f"in {share:.0%} of the resamples {what}; {remedy}"]
  if (share := fit.convergence["resamples_converged"]) < LEAST_CONVERGED:
    return [f"only {share:.0%} of the resamples converged; look for outliers, or {remedy}"]
  return []


def _at(fit: Fit, C: float) -> list[str]:
  """Finds what is undetermined of the optimum at C FLOPs."""
  if fit.law.at_end(fit.law.optimum(C)):
    return [f"fit.form={fit.form}: the fitted law has no optimum at {C:.3g} FLOPs; choose another"]
  row = optimum(fit, C)
  row["loss"], row["loss_interval"] = predict_loss(fit, row["N_opt"], row["D_opt"])
  n, low, high = row["N_opt"], fit.runs.N.min(), fit.runs.N.max()
  if n * FAR < low or n > FAR * high:
    side = "smaller" if n < low else "larger"
    return [
      f"N_opt at {C:.3g} FLOPs is {n:.3g}, far from the fitted sizes, {low:.3g} to {high:.3g}; "
      f"train {side} models"
    ]
  for name in ("N_opt", "tokens_per_param", "loss"):
    value, ends = row[name], row[f"{name}_interval"]
    if not np.isfinite([value, *ends]).all():
      return [f"{name} at {C:.3g} FLOPs is not finite; look for outliers in loss"]
    if name == "loss" and (ends[0] * WIDEST < value or ends[1] > value * WIDEST):
      return [
        f"{name} at {C:.3g} FLOPs is {value:.3g} [{ends[0]:.3g}, {ends[1]:.3g}], more than a factor"
        f" {WIDEST:g} either way; train more sizes at each budget, or a wider range of budgets"
      ]
  return []
