"""What runs along one line tell, where L(N, D) is refused: a law in the variable that varies."""

from typing import Any

import numpy as np

from scaling.laws.bootstrap import interval
from scaling.laws.fit import Options, fit_form
from scaling.laws.forms import FORMS, evaluate
from scaling.laws.runs import MIN_SPREAD, Runs, identifiability

LEAST = 6  # distinct values: of fewer, resamples hold too few to scatter as the estimate does
LEAST_RANGE = 0.5  # of log C: a narrower one is one budget, along which the loss is no law in C


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


def text(record: dict[str, Any]) -> str:
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
