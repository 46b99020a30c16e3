"""The law of the training curve, which knows the schedule: a run's final loss from its beginning.

  L = E + A / N^alpha + B / S^beta - G N^kappa Z^gamma

S is the area under the learning rate over its peak [tokens], Z the area that its decay leaves out:
S + Z = D. After Tissue et al. 2024 (arXiv:2408.11029), where gamma = 1 and the gain of a step fades
instead; in our sweeps a cooldown gains what Z^0.4 says (docs/tried.md). A validation loss is the
train loss times e^gap. Of one sweep the runs see the same batches and differ in N and D alone, so
that curves say more about each other than the beginning of one says about its end: the law is
fitted to all curves at once, those of unfinished runs among them.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from configs.errors import DataError
from scaling.laws import solve
from scaling.laws.forms import FLOOR, POWER, SCALE, SLOPE, Form, evaluate
from scaling.laws.intervals.bootstrap import t_quantile

BIN, DECAY_BIN = 0.15, 0.045  # width in log tokens of the bins over which a curve is averaged
TRANSIENT = 0.75  # of the tokens of the shortest run: what is before is no power law yet
FINALS = 4.0  # weight of all final losses, over that of all that led to them
DELTA = 0.01  # Huber's threshold, of log loss
CONSTANT = 1e-9  # Z / S at a constant rate
TRAIN, VALIDATION = 1.0, float(np.e)  # `kind` of a loss
ROWS = 256  # points are filled up to a multiple, without weight: each number compiles anew
FEWEST_RUNS = 8  # finished, to fit a law to
LEAST_SEEN = 0.25  # share of a run beyond which its final loss is forecast


class RunCurve(NamedTuple):
  """A run as the law sees it."""

  N: float  # parameters
  S: np.ndarray  # the areas at each row of its curve [t], in tokens
  Z: np.ndarray  # likewise
  loss: np.ndarray  # mean train loss since the row before [t]
  end: tuple[float, float]  # (S, Z) at its planned end
  final: float = float("nan")  # validation loss there; nan: it has not come so far
  trunk: str = ""  # the constant-rate run that it shares its beginning with; "": none

  @property
  def last(self) -> tuple[float, float]:
    """S and Z / S at its planned end, as the law takes them."""
    return self.end[0], max(self.end[1] / self.end[0], CONSTANT)

  @property
  def finished(self) -> bool:
    """Whether its final loss is known."""
    return bool(np.isfinite(self.final))

  def until(self, share: float) -> "RunCurve":
    """Cuts it off at a share of its tokens, and forgets how it ended."""
    tokens = self.S + self.Z
    S, Z, loss = (x[tokens <= share * sum(self.end)] for x in (self.S, self.Z, self.loss))
    return self._replace(S=S, Z=Z, loss=loss, final=float("nan"))


def _loss(p, x):
  """(E + A / N^alpha + B / S^beta - G N^kappa Z^gamma) e^gap: Tissue et al. 2024, of N and Z^gamma.

  `decay` is Z / S, and `kind` is e of a validation loss, 1 of a train loss, which has no gap.
  """
  import jax.numpy as jnp

  gain = p.G * x.N**p.kappa * (x.S * x.decay) ** p.gamma
  train = p.E + p.A * x.N**-p.alpha + p.B * x.S**-p.beta - gain
  return jnp.maximum(train, 1e-3 * p.B * x.S**-p.beta) * x.kind**p.gap  # of a start far off


def _units(p: Any, u: Any) -> dict[str, Any]:
  gain = u.L * u.N**-p.kappa * u.S**-p.gamma
  return {"E": u.L, "A": u.L * u.N**p.alpha, "B": u.L * u.S**p.beta, "G": gain}


def _starts(_: Mapping[str, np.ndarray], __: np.ndarray) -> np.ndarray:
  """Makes a grid of starts [8, 9]: of the floor and of both exponents."""
  grid = itertools.product((0.3, 0.6), (0.3, 0.7), (0.3, 0.8))
  rest = np.log(0.2), 0.1, 0.4, 0.05
  return np.array([[E, np.log(0.15), np.log(0.85 - E), *powers, *rest] for E, *powers in grid])


FORM = Form(
  "curve", ("N", "S", "decay", "kind"),
  {"E": FLOOR, "A": SCALE, "B": SCALE, "alpha": POWER, "beta": POWER,
   "G": SCALE, "kappa": SLOPE, "gamma": POWER, "gap": SLOPE},
  _loss, _units, str(_loss.__doc__), unscaled=("decay", "kind"), starts=_starts,
)  # fmt: skip


def points(curves: Sequence[RunCurve], start: float) -> dict[str, np.ndarray]:
  """Averages curves over bins, from `start` tokens on: the form's variables, loss, weight, [n].

  A trunk that several curves share is there once.
  """
  rows, trunks = [], set[str]()
  for curve in sorted(curves, key=lambda curve: -len(curve.loss)):
    tokens = curve.S + curve.Z
    width = np.diff(tokens, prepend=0.0)
    decays, late = curve.Z > 0, tokens > start
    taken = late & (decays | (curve.trunk not in trunks))
    trunks |= {curve.trunk} - {""}
    bins = np.floor(np.log(tokens / start) / np.where(decays, DECAY_BIN, BIN))
    bins = np.where(decays, -1 - bins, bins)
    for i in np.unique(bins[taken]):
      at = taken & (bins == i)
      S, Z, loss = (np.average(x[at], weights=width[at]) for x in (curve.S, curve.Z, curve.loss))
      rows.append((curve.N, S, max(Z / S, CONSTANT), TRAIN, loss, 1.0))
  finals = [curve for curve in curves if curve.finished]
  weight = FINALS * len(rows) / max(1, len(finals))
  rows += [(c.N, *c.last, VALIDATION, c.final, weight) for c in finals]
  rows += [(*rows[-1][:-1], 0.0)] * (-len(rows) % ROWS)
  return dict(zip((*FORM.variables, "loss", "weight"), np.array(rows).T, strict=True))


def fit(curves: Sequence[RunCurve]) -> dict[str, float]:
  """Fits the law to curves, finished and not; returns its parameters in natural units.

  Raises:
    DataError: too few of them are finished.
  """
  finished = [curve for curve in curves if curve.finished]
  if len(finished) < FEWEST_RUNS or len({curve.N for curve in finished}) < 2:
    raise DataError(
      f"{len(finished)} finished runs: a law of their curves needs {FEWEST_RUNS}, of two sizes"
    )
  table = points(curves, TRANSIENT * min(sum(curve.end) for curve in finished))
  problem = solve.make_problem(FORM, table, table["loss"])
  _, best = solve.search(problem, DELTA, table["weight"])
  return {name: float(value[0]) for name, value in problem.natural(best.theta).items()}


def final_loss(params: Mapping[str, float], curve: RunCurve) -> float:
  """Computes the validation loss at a run's planned end."""
  values = (curve.N, *curve.last, VALIDATION)
  return float(evaluate(FORM, params, dict(zip(FORM.variables, values, strict=True))))


def past_errors(curves: Sequence[RunCurve]) -> np.ndarray:
  """Forecasts the third of the finished runs that is largest from the others; returns its misses.

  The misses [n] are log of predicted over trained loss, with `LEAST_SEEN` of each run known.
  """
  finished = sorted((c for c in curves if c.finished), key=lambda c: c.N * sum(c.end))
  smaller = len(finished) - len(finished) // 3
  larger = finished[smaller:]
  params = fit([*finished[:smaller], *(curve.until(LEAST_SEEN) for curve in larger)])
  return np.array([np.log(final_loss(params, curve) / curve.final) for curve in larger])


def forecast(
  curves: Sequence[RunCurve], level: float
) -> dict[int, tuple[float, tuple[float, float]]]:
  """Forecasts the final loss, with its interval, of the runs of which `LEAST_SEEN` is there.

  Theirs are the places among the curves. The interval holds the loss with probability `level` if
  the misses to come are like the past ones.

  Raises:
    DataError: too few runs are finished.
  """
  unfinished = {i: c for i, c in enumerate(curves) if not c.finished}
  begun = [i for i, c in unfinished.items() if len(c.until(LEAST_SEEN).loss) < len(c.loss)]
  if not begun:
    return {}
  errors, params = past_errors(curves), fit(curves)
  width = t_quantile((1 + level) / 2, len(errors)) * float(np.sqrt(np.mean(errors**2)))
  losses = {i: final_loss(params, curves[i]) for i in begun}
  return {i: (x, (x * np.exp(-width), x * np.exp(width))) for i, x in losses.items()}
