"""Which form forecasts best: fitted up to a budget, asked for the runs above it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.errors import DataError
from scaling.laws import solve
from scaling.laws.bootstrap import budgets
from scaling.laws.fit import cuts
from scaling.laws.forms import FORMS, Form
from scaling.laws.runs import Runs, faults

DEFAULT = ("chinchilla", "cross", "kaplan_nd", "power_law_c")
STARTS = 24
MAX_STEPS = 200  # of the solver, from each start
MOST_COMPARED = 2000  # runs


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
