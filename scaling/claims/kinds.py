"""The kinds of claims: how each is predicted from a law, and judged by the cells that test it."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from scaling.laws import fit
from scaling.laws.intervals import predictions

Trained = dict[str, Any]  # a cell: N, D, tokens_per_param, C, trained_loss


@dataclasses.dataclass(frozen=True)
class Claim:
  """What is said about cells before they are trained."""

  what: str  # one of KINDS
  at: dict[str, float]  # the N, D, C and budget of a cell, or a budget C
  predicted: float
  interval: list[float]
  level: float  # probability of the interval
  rests_on: str  # hash of the fitted runs
  tested_by: list[str]  # ids of cells


# What trained cells say of a claim: what was measured, and if it held; None: they do not tell.
Judgement = tuple[float | None, bool | None]


class Kind(NamedTuple):
  """One kind of claim."""

  of_each: Literal["cell", "budget"]  # one per held-out cell, or one of them together
  predict: Callable[[fit.Fit, Mapping[str, float]], tuple[float, list[float]]]  # with interval
  judge: Callable[[Claim, Sequence[Trained]], Judgement]  # by those of `tested_by` that trained


def minimum(trained: Sequence[Trained]) -> Trained | None:
  """Finds the minimum of the parabola in log N through cells of one budget; None: not inside."""
  if len(trained) < 3:
    return None
  cells = sorted(trained, key=lambda c: c["N"])
  log_n = np.log([c["N"] for c in cells])
  center = log_n.mean()
  parabola = np.polyfit(log_n - center, [c["trained_loss"] for c in cells], 2)
  c2, c1, _ = parabola
  vertex = center - c1 / (2 * c2) if c2 > 0 else math.inf
  if not log_n[0] <= vertex <= log_n[-1]:
    return None
  N = float(np.exp(vertex))
  D = float(np.exp(np.interp(vertex, log_n, np.log([c["D"] for c in cells]))))
  loss = float(np.polyval(parabola, vertex - center))
  return {"N": N, "D": D, "tokens_per_param": D / N, "trained_loss": loss}


def _judge_loss(claim: Claim, trained: Sequence[Trained]) -> Judgement:
  return _inside(claim, trained[0]["trained_loss"]) if trained else (None, None)


def _predict_least_loss(law: fit.Fit, at: Mapping[str, float]) -> tuple[float, list[float]]:
  best = predictions.optimum(law, at["C"])
  return predictions.predict_loss(law, best["N_opt"], best["D_opt"])


def _judge_least_loss(claim: Claim, trained: Sequence[Trained]) -> Judgement:
  lowest = minimum(trained)
  return _inside(claim, lowest["trained_loss"]) if lowest else (None, None)


def _predict_place(name: str, law: fit.Fit, at: Mapping[str, float]) -> tuple[float, list[float]]:
  best = predictions.optimum(law, at["C"])
  return best[name], best[f"{name}_interval"]


def _judge_place(column: str, claim: Claim, trained: Sequence[Trained]) -> Judgement:
  """Judges where the minimum lies, in a column of the cells.

  It lies where it was predicted where the cell nearest to that is the best of those trained, or the
  minimum of the parabola through them is inside the interval. Fewer than three cells do not show
  it, nor do cells whose best is at an end beyond which the interval reaches.
  """
  lowest = minimum(trained)
  measured: float | None = lowest[column] if lowest else None
  if len(trained) < 3:
    return measured, None
  low, high = claim.interval
  best = min(trained, key=lambda c: c["trained_loss"])
  nearest = min(trained, key=lambda c: abs(math.log(c[column] / claim.predicted)))
  if best is nearest or (measured is not None and low <= measured <= high):
    return measured, True
  values = [c[column] for c in trained]
  beyond = best[column] == min(values) > low or best[column] == max(values) < high
  return measured, None if measured is None and beyond else False


def _inside(claim: Claim, measured: float) -> Judgement:
  low, high = claim.interval
  return measured, low <= measured <= high


KINDS = {
  # nats per token, of one run
  "loss": Kind(
    "cell", lambda law, at: predictions.predict_loss(law, at["N"], at["D"]), _judge_loss
  ),
  "least_loss": Kind("budget", _predict_least_loss, _judge_least_loss),  # of a run at the optimum
  "N_opt": Kind("budget", partial(_predict_place, "N_opt"), partial(_judge_place, "N")),
  "D_opt": Kind("budget", partial(_predict_place, "D_opt"), partial(_judge_place, "D")),
  "tokens_per_param": Kind(
    "budget", partial(_predict_place, "tokens_per_param"), partial(_judge_place, "tokens_per_param")
  ),
}


def predict(
  what: str, at: dict[str, float], law: fit.Fit, rests_on: str, tested_by: list[str]
) -> Claim:
  """Makes the claim of a kind."""
  value, interval = KINDS[what].predict(law, at)
  return Claim(what, at, value, list(interval), law.options.level, rests_on, tested_by)


def judge(claim: Claim, trained: Mapping[str, Trained]) -> dict[str, Any]:
  """Judges a claim by the cells that trained, by id; returns it with `measured` and `held`."""
  cells = over_seeds(trained[name] for name in claim.tested_by if name in trained)
  measured, held = KINDS[claim.what].judge(claim, cells)
  return dataclasses.asdict(claim) | {"measured": measured, "held": held}


def over_seeds(trained: Iterable[Trained]) -> list[Trained]:
  """Averages the losses of runs of one N and D."""
  cells: dict[tuple[float, float], list[Trained]] = {}
  for run in trained:
    cells.setdefault((run["N"], run["D"]), []).append(run)
  return [
    runs[0] | {"trained_loss": math.fsum(run["trained_loss"] for run in runs) / len(runs)}
    for runs in cells.values()
  ]
