"""What a law is worth beyond its runs: fits of the smaller budgets, asked for the larger ones."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from configs.errors import UserError
from scaling.laws import solve
from scaling.laws.forms import MAD, Form
from scaling.laws.tables.budgets import budgets, cuts
from scaling.laws.tables.runs import Runs, UnidentifiableError, check_identifiable

OUTLIER = 10.0  # robust standard deviations off the law: such a run says nothing of its form


def check_enough(form: Form, size: int, runs: Runs) -> None:
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
      check_enough(problem.form, int(problem.free.sum()), runs.subset(below))
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
