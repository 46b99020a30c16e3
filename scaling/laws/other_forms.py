"""Other forms than Chinchilla's: fitted, compared by held-out error, and fitted along one line."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from configs.errors import ConfigError, DataError
from scaling.laws import bootstrap, solve
from scaling.laws.bootstrap import budgets, cuts, interval
from scaling.laws.fitted import Options
from scaling.laws.forms import FORMS, Form, evaluate
from scaling.laws.tables.runs import MIN_SPREAD, Runs, faults, identifiability

MOST_RESAMPLED = 5000  # runs of a bootstrap
DEFAULT = ("chinchilla", "cross", "kaplan_nd", "power_law_c")  # forms that are compared
STARTS = 24  # of each, at each budget
MAX_STEPS = 200  # of the solver, from each start
MOST_COMPARED = 2000  # runs
LEAST = 6  # distinct values: of fewer, resamples hold too few to scatter as the estimate does
LEAST_RANGE = 0.5  # of log C: a narrower one is one budget, along which the loss is no law in C


@dataclasses.dataclass(frozen=True)
class FormFit:
  """A form fitted to runs.

  Attributes:
    form: the form.
    params: its parameters by name, in natural units.
    draws: of each bootstrap resample, arrays [R]; empty without resamples.
    residuals: log of observed over fitted loss [n].
    costs: where each start ended [S].
    converged: whether it is a minimum there [S].
    at_bound: parameters that ended at the edge of what is allowed.
  """

  form: Form
  params: dict[str, float]
  draws: dict[str, np.ndarray]
  residuals: np.ndarray
  costs: np.ndarray
  converged: np.ndarray
  at_bound: tuple[str, ...]


def fit_form(
  form: Form,
  variables: Mapping[str, ArrayLike],
  loss: ArrayLike,
  delta: float = 1e-3,
  resamples: int = 0,
  seed: int = 0,
) -> FormFit:
  """Fits any form to runs.

  Args:
    form: one of `forms.FORMS`, or your own.
    variables: arrays [n] by name, those of `form.variables` at least.
    loss: of the runs [n, nats per token].
    delta: Huber's threshold on log loss.
    resamples: of a bootstrap over the runs.
    seed: of starts and resamples.

  Raises:
    UserError: a variable is missing, not positive and finite or of another length; fewer runs than
      parameters; delta is not positive; resamples of too many runs; or no start found a minimum.
  """
  problem = solve.make_problem(form, variables, loss)
  n, size = len(problem.y), len(form.kinds)
  if n <= size:
    raise DataError(f"form={form.name}: {n} runs for {size} parameters; train more")
  if not delta > 0:
    raise ConfigError(f"fit.delta={delta}: must be a positive number, 1e-3 for instance")
  if n > MOST_RESAMPLED and resamples:
    raise DataError(
      f"resamples={resamples}: for {MOST_RESAMPLED} runs at most, not {n}; choose 0 or a part"
    )
  rng = np.random.default_rng(seed)
  ends, best = solve.search(problem, delta, rng)
  draws = {}
  if resamples:
    weights = rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    refitted = bootstrap.fit_weighted(problem, weights, best.theta[0], delta)
    draws = problem.natural(refitted.theta)
  params = {name: float(value) for name, value in problem.natural(best.theta[0]).items()}
  return FormFit(
    form=form,
    params=params,
    draws=draws,
    residuals=-solve.residuals(problem, best.theta)[0],
    costs=ends.cost,
    converged=ends.converged,
    at_bound=tuple(n for n, at in zip(form.kinds, best.at_bound[0], strict=True) if at),
  )


def compare_forms(
  runs: Runs, forms: Sequence[str] = DEFAULT, delta: float = 1e-3, seed: int = 0
) -> list[dict[str, Any]]:
  """Measures how well each form, fitted to the runs up to each budget, predicts those above.

  Args:
    runs: the runs; forms of more than N, D and C find the rest in `runs.extra`. Of more than 2,000,
      a random part.
    forms: names out of `forms.FORMS`.
    delta: Huber's threshold on log loss.
    seed: of the starts.

  Returns:
    Per form and budget: `form`, `C` (the budget), `fitted` and `heldout` (numbers of runs),
    `rms_error` and `bias` (root mean square and mean of log observed / predicted loss, held out),
    `converged`, and `reason`: why there is no error (runs that do not tell the parameters, or no
    minimum).

  Raises:
    DataError: an unknown form, or one whose variables the runs lack, or runs of one budget.
  """
  for name in forms:
    if name not in FORMS:
      raise DataError(f"form={name!r}: unknown; choose from {', '.join(sorted(FORMS))}")
  if len(runs) > MOST_COMPARED:
    part = np.random.default_rng(seed).choice(len(runs), MOST_COMPARED, replace=False)
    runs = runs.subset(np.sort(part))
  if not cuts(runs):
    raise DataError(
      f"compare_forms: {len(runs)} runs at one budget C leave none above it to be held out; train "
      "at another budget too"
    )
  variables = {"N": runs.N, "D": runs.D, "C": runs.C} | dict(runs.extra)
  return [row for name in forms for row in _rows(runs, name, variables, delta, seed)]


def _rows(runs, name, variables, delta, seed) -> list[dict[str, Any]]:
  """Makes the rows of one form; all its starts at all K budgets are solved at once."""
  form, splits = FORMS[name], cuts(runs)
  problem = solve.make_problem(form, variables, runs.loss)
  starts = solve.draw_starts(form, STARTS, np.random.default_rng(seed))
  weights_KSn = np.zeros((len(splits), STARTS, len(runs)))
  for weights_Sn, (below, _) in zip(weights_KSn, splits, strict=True):
    weights_Sn[:, below] = 1
  ends = solve.minimise(
    problem, weights_KSn.reshape(-1, len(runs)), np.tile(starts, (len(splits), 1)), delta, MAX_STEPS
  )
  cost_KS = np.where(ends.converged, ends.cost, np.inf).reshape(len(splits), STARTS)
  theta_KSp = ends.theta.reshape(len(splits), STARTS, -1)
  theta_Kp = theta_KSp[np.arange(len(splits)), np.argmin(cost_KS, axis=1)]
  error_Kn = -solve.residuals(problem, theta_Kp)  # log of observed over predicted loss
  rows = []
  for (below, above), cost_S, error_n in zip(splits, cost_KS, error_Kn, strict=True):
    converged = bool(np.isfinite(cost_S).any())
    reason = _fault(form, runs.subset(below))
    if not (reason or converged):
      reason = f"none of {STARTS} starts found a minimum"
    rows.append(
      {
        "form": name,
        "C": float(runs.C[below].max()),
        "fitted": len(below),
        "heldout": len(above),
        "rms_error": None if reason else float(np.sqrt(np.mean(error_n[above] ** 2))),
        "bias": None if reason else float(np.mean(error_n[above])),
        "converged": converged,
        "reason": reason,
      }
    )
  return rows


def _fault(form: Form, runs: Runs) -> str | None:
  """Says why runs cannot tell a form's parameters; None where they may."""
  if len(runs) <= len(form.kinds):
    return f"{len(runs)} runs for {len(form.kinds)} parameters"
  if {"N", "D"} <= set(form.variables):
    return next((reason for _, reason, _ in faults(runs)), None)
  if len(form.variables) == 1 and hasattr(runs, name := form.variables[0]):
    levels = len(budgets(getattr(runs, name)))
    if levels < len(form.kinds):
      return f"{levels} distinct {name} for {len(form.kinds)} parameters"
  return None


def along(runs: Runs, options: Options) -> dict[str, Any] | None:
  """Fits L(N) at one token count, L(D) at one size, or L(C) where D follows N, with a floor.

  Returns:
    refused: what the runs cannot tell, with the reason. form, variable, range (of the variable),
    params and intervals of E + A / X^alpha, by a bootstrap over runs; n_runs, and rows: X, loss and
    its interval at the runs' own X, and at three times the largest. None where the runs lie on no
    such line, or are too few to say.

  Raises:
    UserError: too many runs.
  """
  if len(runs) < LEAST:
    return None
  x, z = np.log(runs.N), np.log(runs.D)
  if np.ptp(x) == 0:
    variable = "D"
  elif np.ptp(z) == 0:
    variable = "N"
  elif np.std(z - np.polyval(np.polyfit(x, z, 1), x)) < MIN_SPREAD:
    if np.ptp(np.log(runs.C)) < LEAST_RANGE:  # one budget
      return None
    variable = "C"
  else:
    return None
  values, form = getattr(runs, variable), FORMS[f"power_law_{variable.lower()}"]
  if len(np.unique(values)) < LEAST:
    return None
  law = fit_form(
    form, {variable: values}, runs.loss, options.delta, resamples=options.bootstraps,
    seed=options.seed,
  )  # fmt: skip
  rows = []
  for at in (*np.geomspace(values.min(), values.max(), 4), 3 * values.max()):
    draws = law.draws["E"] + law.draws["A"] * at ** -law.draws["alpha"]
    value = float(evaluate(form, law.params, {variable: at}))
    ends = interval(draws, options.level, value)
    rows.append({variable: float(at), "loss": value, "loss_interval": ends})
  return {
    "refused": {name: reason for name, reason in identifiability(runs).items() if reason},
    "form": form.name,
    "variable": variable,
    "range": [float(values.min()), float(values.max())],
    "params": law.params,
    "intervals": {
      name: interval(draws, options.level, law.params[name]) for name, draws in law.draws.items()
    },
    "n_runs": len(runs),
    "rows": rows,
  }


def line_text(record: dict[str, Any]) -> str:
  """Renders what `along` found, for a terminal."""
  x, lines = record["variable"], []
  by_reason: dict[str, list[str]] = {}
  for name, reason in record["refused"].items():
    by_reason.setdefault(reason, []).append(name)
  lines += [f"Refused: {', '.join(names)} ({reason})." for reason, names in by_reason.items()]
  params = ", ".join(
    f"{name} = {value:.4g} [{low:.4g}, {high:.4g}]"
    for (name, value), (low, high) in zip(
      record["params"].items(), record["intervals"].values(), strict=True
    )
  )
  lines += [f"What {record['n_runs']} runs tell: L({x}) = E + A / {x}^alpha, {params}.", ""]
  lines += [f"{x:>10}  loss"]
  for row in record["rows"]:
    low, high = row["loss_interval"]
    mark = " *" if row[x] > record["range"][1] * 1.001 else ""
    lines.append(f"{row[x]:>10.3g}  {row['loss']:.4f} [{low:.4f}, {high:.4f}]{mark}")
  return "\n".join([*lines, "* beyond the runs"])
