"""Forms held against each other by held-out error, and laws of runs along one line."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.errors import DataError, UserError
from scaling.laws import solve
from scaling.laws.fit import fit_runs
from scaling.laws.fitted import Options
from scaling.laws.forms import FORMS, evaluate
from scaling.laws.intervals.bootstrap import interval
from scaling.laws.intervals.forecast import forecasts
from scaling.laws.tables.budgets import cuts
from scaling.laws.tables.runs import MIN_SPREAD, Runs, identifiability

DEFAULT = ("chinchilla", "cross", "kaplan_nd", "power_law_c")  # forms that are compared
MOST_COMPARED = 2000  # runs
LEAST = 6  # distinct values: of fewer, resamples hold too few to scatter as the estimate does
LEAST_RANGE = 0.5  # of log C: a narrower one is one budget, along which the loss is no law in C


def compare_forms(
  runs: Runs, forms: Sequence[str] = DEFAULT, delta: float = solve.HOFFMANN
) -> list[dict[str, Any]]:
  """Measures how well each form, fitted to the runs up to each budget, predicts those above.

  Forms, of `forms.FORMS`, of more than N, D and C find the rest in `runs.extra`. Of more than
  2,000 runs a random part counts. `delta` is Huber's threshold on log loss.

  Returns:
    Per form and budget: `form`, `C` (the budget), `fitted` and `heldout` (numbers of runs),
    `rms_error` and `bias` (root mean square and mean of log observed / predicted loss, held out),
    and `reason`: why there is no error (runs that do not tell the parameters, or no minimum).

  Raises:
    DataError: an unknown form, or one whose variables the runs lack, or runs of one budget.
  """
  if len(runs) > MOST_COMPARED:
    part = np.random.default_rng(0).choice(len(runs), MOST_COMPARED, replace=False)
    runs = runs.subset(np.sort(part))
  if not cuts(runs):
    raise DataError(
      f"compare_forms: {len(runs)} runs at one budget C leave none above it to be held out; train "
      "at another budget too"
    )
  rows: list[dict[str, Any]] = []
  for name in forms:
    if name not in FORMS:
      raise DataError(f"form={name!r}: unknown; choose from {', '.join(sorted(FORMS))}")
    problem = solve.make_problem(FORMS[name], runs.variables, runs.loss)
    for below, above, theta in forecasts(problem, runs, delta):
      row: dict[str, Any] = {
        "form": name,
        "C": float(runs.C[below].max()),
        "fitted": len(below),
        "heldout": len(above),
      }
      if isinstance(theta, UserError):
        row |= {"rms_error": None, "bias": None, "converged": False, "reason": str(theta)}
      else:
        error = -solve.log_residuals(problem, theta[None])[0, above]
        rms = float(np.sqrt(np.mean(error**2)))
        row |= {"rms_error": rms, "bias": float(error.mean()), "converged": True, "reason": None}
      rows.append(row)
  return rows


def along(runs: Runs, options: Options) -> dict[str, Any] | None:
  """Fits L(N) at one token count, L(D) at one size, or L(C) where D follows N, with a floor.

  Returns:
    refused: what the runs cannot tell, with the reason. form, variable, range (of the variable),
    params and intervals of E + A / X^alpha, by a bootstrap over runs; n_runs, and rows: X, loss and
    its interval at the runs' own X, and at three times the largest. None where the runs lie on no
    such line, or are too few to say.
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
  fit, rows = fit_runs(runs, options, form), []
  for at in (*np.geomspace(values.min(), values.max(), 4), 3 * values.max()):
    value, draws = (evaluate(form, law.params, {variable: at}) for law in (fit.law, fit.draws))
    ends = interval(draws, options.level, float(value))
    rows.append({variable: float(at), "loss": float(value), "loss_interval": ends})
  return {
    "refused": {name: reason for name, reason in identifiability(runs).items() if reason},
    "form": form.name,
    "variable": variable,
    "range": [float(values.min()), float(values.max())],
    "params": fit.params,
    "intervals": {
      name: interval(draws, options.level, fit.params[name])
      for name, draws in fit.draws.params.items()
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
