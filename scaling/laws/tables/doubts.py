"""What makes a table of runs doubtful: units that cannot be, groups that were pooled."""

import numpy as np

from scaling.laws.tables.runs import Runs

RANGES = {  # of what there ever was, at the median of the runs; and what is common
  "N": (1e3, 1e15, 1e8),
  "D/N": (0.1, 10_000.0, 20.0),
  "C/(N D)": (2.0, 12.0, 6.0),
}
UNITS = {"thousands": 1e3, "millions": 1e6, "billions": 1e9}
UNITS_OF_C = UNITS | {"teraflop/s-days": 1e12 * 86400, "petaflop/s-days": 1e15 * 86400}
MOST_LOSS = 13.0  # nats: above the log of any vocabulary's size
MOST_NOISE = 0.05  # SD of log loss over repeats: seeds scatter by 0.1 to 1 %
SEPARATES = 0.5  # share of the scatter that is left, at most, once each group has its own level
SCATTER = 0.02  # least SD of log loss about a smooth surface for which a column is looked for


def doubts(runs: Runs, noise: float | None) -> list[str]:
  """Lists what speaks against reading the runs as one law, one sentence each.

  `noise` is the SD of log loss over repeats of the same (N, D); None without repeats.
  """
  sentences = _units(runs) if runs.params == "given" else []  # a sweep counts for itself
  if (middle := float(np.median(runs.loss))) > MOST_LOSS:
    sentences.append(
      f"The median loss is {middle:.4g}, above the log of any vocabulary's size: if these are "
      "perplexities, give their logarithms, in nats per token."
    )
  sentences += [
    f"{text!r} leaves runs out by their loss: this truncates what is fitted, and biases the law."
    for text in runs.by_loss
  ]
  column, scatter = _separating(runs)
  if column or (noise or 0.0) > MOST_NOISE:
    scattered = f"Runs scatter by {scatter:.0%} (SD) about any smooth law"
    if (noise or 0.0) > MOST_NOISE:
      scattered = f"Repeats of the same (N, D) scatter by {noise:.0%} (SD), far more than seeds do"
    remedy = "if several groups are in this table, fit each by itself, with --by or --where."
    if column:
      name = column if column.isidentifier() else f"`{column}`"
      value = runs.labels[column][0].item()
      shown = f'"{value}"' if isinstance(value, str) else value  # backquotes need the single quotes
      by = column if column.isidentifier() else f"'{column}'"
      one = f"--where='{name} == {shown}'"
      remedy = f"the column {column} separates them: fit each, --by={by}, or one group, {one}."
    sentences.append(f"{scattered}: {remedy}")
  return sentences


def _units(runs: Runs) -> list[str]:
  """Says which columns and ratios of them cannot be, and which unit would explain it."""
  values = {"N": runs.N, "D/N": runs.D / runs.N, "C/(N D)": runs.C / runs.N / runs.D}
  powers = {"N": {"N": 1}, "D/N": {"D": 1, "N": -1}, "C/(N D)": {"C": 1, "N": -1, "D": -1}}
  sentences: list[str] = []
  for name, (low, high, common) in RANGES.items():
    value = float(np.median(values[name]))
    if low <= value <= high or (name == "C/(N D)" and runs.flops == "6nd"):
      continue
    if name == "C/(N D)" and not sentences:  # N and D fit each other
      powers[name] = {"C": 1, "N and D": -2}
    readings = {}  # by how far from common they are
    for column, power in powers[name].items():
      for unit, factor in (UNITS_OF_C if column == "C" else UNITS).items():
        if low <= (right := value * factor**power) <= high:
          number = f"{factor:.4g}".replace("e+0", "e").replace("e+", "e")
          readings[abs(np.log(right / common))] = f"{column} in {unit}? Multiply by {number}"
    guess = readings[min(readings)] if readings else "no unit explains it: check the columns"
    sentences.append(
      f"{name} is {value:.2g} at the median, and {low:g} to {high:g} can be: {guess}."
    )
  return sentences


def _separating(runs: Runs) -> tuple[str, float]:
  """Finds the text column of whose groups each has a level of its own; "" if there is none.

  Also returns the SD of log loss about a quadratic in log N and log D without such levels.
  """
  x, y = np.log(runs.N), np.log(runs.D)
  surface = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y])
  scatter = _scatter(surface, runs)
  left = {}
  for name, column in runs.labels.items():
    groups, group = np.unique(column, return_inverse=True)
    if name != "trunk" and scatter > SCATTER and 2 <= len(groups) <= len(runs) / 3:
      left[name] = _scatter(np.concatenate([surface, np.eye(len(groups))[group].T[1:]]), runs)
  best = min(left, key=left.__getitem__, default="")
  return (best if best and left[best] < SEPARATES * scatter else ""), scatter


def _scatter(regressors: np.ndarray, runs: Runs) -> float:
  """Computes the SD of log loss about its regression on some variables [p, n]; inf if n <= p."""
  if (freedom := len(runs) - len(regressors)) < 1:
    return np.inf
  log_loss = np.log(runs.loss)
  fitted = regressors.T @ np.linalg.lstsq(regressors.T, log_loss, rcond=None)[0]
  return float(np.sqrt(np.sum((log_loss - fitted) ** 2) / freedom))
