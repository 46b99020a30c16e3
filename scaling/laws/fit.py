"""A form fitted to runs, with what its intervals need, and what it predicts.

Everything is float64 and a function of the runs and the options: neither the order of the runs nor
the time of day enters, so a fit is recomputed rather than stored.
"""

import numpy as np

from configs.errors import ConfigError
from configs.floor import UNKNOWN, read_floor
from scaling.laws import solve
from scaling.laws.chinchilla import estimate_compute
from scaling.laws.fitted import Fit, Options, problem_of
from scaling.laws.forms import FORMS, Form, no_surface, surfaces
from scaling.laws.intervals import bootstrap
from scaling.laws.intervals.forecast import measure_errors
from scaling.laws.intervals.misfit import solve_near
from scaling.laws.law import Law
from scaling.laws.tables.budgets import check_enough
from scaling.laws.tables.runs import Runs


def check_options(options: Options) -> None:
  """Refuses options of a fit that are out of range, or a form that is no surface L(N, D)."""
  known = ", ".join(bootstrap.RESAMPLINGS)
  choices = f"one of {', '.join(surfaces())}"
  if options.form in FORMS and options.form not in surfaces():
    choices += f": {no_surface(FORMS[options.form])}"
  for name, valid, remedy in (
    ("form", options.form in surfaces(), choices),
    ("response", options.response in ("log", "raw"), "one of log, raw"),
    ("delta", options.delta > 0, "a positive number, 1e-3 for instance"),
    ("reach", options.reach == 0 or options.reach > 1, "above 1, 4 for instance, or 0: keep all"),
    ("bootstraps", options.bootstraps >= 100, "100 or more, 1000 for instance"),
    ("level", 0 < options.level < 1, "a number between 0 and 1, 0.9 for instance"),
    ("resampling", options.resampling in bootstrap.RESAMPLINGS, f"one of {known}"),
  ):
    if not valid:
      raise ConfigError(f"fit.{name}={getattr(options, name)}: must be {remedy}")
  if read_floor(options.E) != UNKNOWN and "E" not in FORMS[options.form].kinds:
    raise ConfigError(f"fit.E={options.E}: fit.form={options.form} has no E; leave it at ''")


def count_free(form: Form, options: Options) -> int:
  """Counts the parameters of a form that are fitted."""
  return len(form.kinds) - ("E" in form.kinds and read_floor(options.E).fixed)


def fit_runs(runs: Runs, options: Options, form: Form | None = None) -> Fit:
  """Fits a form by Approach 3 of Hoffmann et al. 2022, with a bootstrap over runs.

  Where the runs bend away from the form, those far from the optimum are left out (`solve_near`).

  `options` is `config.fit`, or anything with the fields of `Options`: a delta of 1e-3 is Hoffmann
  et al.'s, 10 is least squares, 1e-8 least absolute deviations. `form` is one of any variables
  that the runs have, instead of `options.form`.

  Raises:
    UserError: the runs do not identify the law, or an option is out of range.
  """
  check_options(options)
  form = form or FORMS[options.form]
  check_enough(form, count_free(form, options), runs)
  problem = problem_of(runs, options, form)
  delta = problem.huber(options.delta)
  runs, problem, ends, best = solve_near(runs, problem, delta, options.reach)
  draws = bootstrap.resample(
    problem, runs, best.theta[0], delta, options.bootstraps, options.seed, options.resampling
  )
  compute = estimate_compute(runs.N, runs.D, runs.C)
  params = {name: float(value) for name, value in problem.natural(best.theta[0]).items()}
  residuals = -solve.log_residuals(problem, best.theta)[0]
  not_E = np.array([name != "E" for name in form.kinds])
  law = Law(problem.form, params, compute)
  return Fit(
    runs=runs,
    problem=problem,
    law=law,
    draws=Law(problem.form, problem.natural(draws.theta), compute),
    residuals=residuals,
    errors=measure_errors(problem, runs, law, delta, residuals, options.bootstraps, options.seed),
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
