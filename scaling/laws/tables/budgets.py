"""Groups runs by the compute that they were given."""

import numpy as np

from scaling.laws.forms import Form
from scaling.laws.tables.runs import Runs, UnidentifiableError, check_identifiable

MAX_CUTS = 8  # budgets at which a fit is tried on the runs above
SAME_BUDGET = 0.03  # budgets that differ by less (in log C) are one
WIDEST = 3 * SAME_BUDGET  # of one budget: more is a range of C, and is cut into steps


def budgets(C: np.ndarray) -> list[np.ndarray]:
  """Groups the positions of the runs [n] by budget, smallest budget first.

  Runs at whatever C have no budgets; a range of them is cut into even steps of log C, each no wider
  than `WIDEST`.
  """
  return [step for group in isolated(C) for step in _steps(group, np.log(C[group]))]


def isolated(C: np.ndarray) -> list[np.ndarray]:
  """Groups the positions of the runs [n] between gaps in C, which may be a range of budgets."""
  order = np.argsort(C, kind="stable")
  return np.split(order, np.flatnonzero(np.diff(np.log(C[order])) > SAME_BUDGET) + 1)


def cuts(runs: Runs) -> list[tuple[np.ndarray, np.ndarray]]:
  """Splits the positions of the runs at a budget, up to it and above, for up to `MAX_CUTS`."""
  groups = budgets(runs.C)
  last = len(groups) - 1
  at = np.unique(np.linspace(1, last, min(last, MAX_CUTS)).round().astype(int))
  return [(np.sort(np.concatenate(groups[:i])), np.concatenate(groups[i:])) for i in at]


def _steps(group: np.ndarray, log_c: np.ndarray) -> list[np.ndarray]:
  """Cuts a group of runs in order of C where it is too wide for one budget."""
  width = np.ptp(log_c) if len(group) else 0.0
  if width <= WIDEST:
    return [group]
  step = ((log_c - log_c[0]) / width * np.ceil(width / WIDEST)).astype(int)
  return np.split(group, np.flatnonzero(np.diff(step)) + 1)


def profiles(runs: Runs) -> list[np.ndarray]:
  """Selects the runs of each isoFLOP profile, by position."""
  return [
    group
    for group in isolated(runs.C)
    if len(np.unique(runs.N[group])) > 2 and np.ptp(np.log(runs.C[group])) <= WIDEST
  ]


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
      f"form={form.name}: {len(runs)} runs for {size} parameters; {size + 1} are needed: train "
      "more (sweep.sizes, sweep.budgets), or choose a fit.form of fewer parameters"
    )
