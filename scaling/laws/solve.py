"""Minimises Huber's loss of the residuals over a form's parameters, from many starts at once.

The cost is sum_i w_i Huber_delta(log L(x_i) - log L_i), as in Approach 3 of Hoffmann et al. 2022;
`Problem.raw` leaves out the logarithms. Published fits went wrong by stopping early, because in
the raw parameters the valley is long and narrow. Here variables and losses are about one, and
Newton's method with exact second derivatives goes through the valley, many starts or resamples at
once, and says of each whether it has converged.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from configs.errors import ConfigError, DataError
from configs.floor import UNKNOWN, Floor
from scaling.laws import chinchilla
from scaling.laws.derivatives import by_jax
from scaling.laws.forms import FLAGS, MAD, Derivatives, Form, draw_starts, robust_scale

BY_HAND: dict[str, Any] = {"chinchilla": chinchilla}  # derivatives and starts of forms

STEPS = 200  # at most, from each start
STARTS = 48  # of a form without a grid of its own
COARSE = 1e-4  # least threshold at which all starts are tried; the best then goes on to delta
MANY = 20_000  # of more runs a random part decides between the starts
IN_CACHE = 60_000  # rows x runs that are solved at once: what the cache holds
KINKS = (1e-7, 1e-6, 1e-5)  # thresholds where rounding stops Newton's steps at kinks of sum |r|
MOST_KEPT = 8  # minima: a report asks for the same ones from several sides
BANDWIDTH = 0.3  # of the median |r|: least half-width of residuals that tell a cost's curvature
LEAST_SQUARES = 10.0  # Huber's threshold: beyond every residual of log loss
LEAST_ABSOLUTE = 1e-8  # below every residual
HOFFMANN = 1e-3  # Hoffmann et al. 2022


@dataclasses.dataclass(frozen=True)
class Problem:
  """Runs and a form, as the solver sees them: variables and losses of about one."""

  form: Form
  logs: dict[str, np.ndarray]  # of its variables by name, in `units` [n]; -inf where a flag is 0
  y: np.ndarray  # log loss, in its unit [n]
  units: dict[str, float]  # of each variable, and of L: their geometric means
  raw: bool = False  # whether residuals are of the loss (in its unit), not of its logarithm
  floor: Floor = UNKNOWN  # what is known of E beforehand

  @functools.cached_property
  def free(self) -> np.ndarray:
    """Tells which parameters are fitted [p]."""
    return np.array([not (name == "E" and self.floor.fixed) for name in self.form.kinds])

  @property
  def reported(self) -> np.ndarray:
    """Tells of which parameters an end of their range is not the user's choice [p]."""
    return np.array([not (name == "E" and self.floor.bounded) for name in self.form.kinds])

  @functools.cached_property
  def box(self) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest parameters [p], as they move."""
    bounds = [kind.moved((kind.low, kind.high)) for kind in self.form.kinds.values()]
    low, high = np.where(self._is_E[:, None], np.divide(self.floor[:2], self.units["L"]), bounds).T
    return low, high

  @functools.cached_property
  def center(self) -> np.ndarray:
    """The means of the parameters' priors [p], as they move; 0 of those that have none."""
    return self._is_E * self.floor.mean / self.units["L"]

  @property
  def spread(self) -> np.ndarray:
    """The standard deviations of the parameters' priors [p]."""
    return self._is_E * self.floor.sd / self.units["L"]

  def pull(self, delta: float) -> np.ndarray:
    """Computes the curvature of the cost by the parameters' priors [p]."""
    return self._is_E * self.floor.pull(delta) * self.units["L"] ** 2

  def huber(self, delta: float) -> float:
    """Turns Huber's threshold, of log loss or of loss, into the residuals' unit."""
    return delta / self.units["L"] if self.raw else delta

  @property
  def derivatives(self) -> Any:
    """The form's `Derivatives`: by hand, or compiled."""
    if hand := BY_HAND.get(self.form.name, self.form.derivatives):
      return hand
    return Derivatives(*by_jax(self.form.loss, tuple(self.form.kinds.items())))

  def subset(self, index: np.ndarray) -> "Problem":
    """Selects the runs at some positions [m]."""
    logs = {name: values[index] for name, values in self.logs.items()}
    return dataclasses.replace(self, logs=logs, y=self.y[index])

  def names(self, mask: np.ndarray) -> list[str]:
    """Names parameters, from a mask [p]."""
    return [name for name, at in zip(self.form.kinds, mask, strict=True) if at]

  def natural(self, theta: np.ndarray) -> dict[str, np.ndarray]:
    """Turns parameters as they move [..., p] into parameters by name, in natural units."""
    kinds = self.form.kinds.items()
    values = {
      name: np.exp(theta[..., i]) if kind.log else theta[..., i]
      for i, (name, kind) in enumerate(kinds)
    }
    units = self._units_of(values)
    return {name: value * units.get(name, 1.0) for name, value in values.items()}

  def theta(self, params: Mapping[str, Any]) -> np.ndarray:
    """Turns parameters in natural units into parameters as they move: the inverse of `natural`."""
    units, kinds = self._units_of(params), self.form.kinds.items()
    return np.stack([kind.moved(params[name] / units.get(name, 1.0)) for name, kind in kinds], -1)

  @functools.cached_property
  def _is_E(self) -> np.ndarray:
    return np.array([name == "E" for name in self.form.kinds])

  def _units_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
    return self.form.units(SimpleNamespace(**params), SimpleNamespace(**self.units))


def make_problem(
  form: Form, variables: Mapping[str, ArrayLike], loss: ArrayLike, raw: bool = False
) -> Problem:
  """Brings variables [n] and losses [n] into units of their geometric means; see `Problem`.

  Raises:
    DataError: a variable is missing, not positive and finite, or of another length.
  """
  columns = {"loss": np.asarray(loss, float)}
  for name in form.variables:
    if name not in variables:
      raise DataError(
        f"form={form.name}: needs {', '.join(form.variables)}, and there is no {name}; give it"
      )
    columns[name] = np.asarray(variables[name], float)
    if columns[name].shape != columns["loss"].shape:
      raise DataError(
        f"form={form.name}: {columns[name].size} values of {name} for {columns['loss'].size} losses"
      )
  for name, values in columns.items():
    bad = np.flatnonzero(~(np.isfinite(values) & ((values > 0) | (values == 0) & (name in FLAGS))))
    if len(bad):
      raise DataError(
        f"form={form.name}, run {bad[0]}, {name}: {values[bad[0]]} is not a positive finite number"
      )
  with np.errstate(divide="ignore"):  # of flags
    logs = {name: np.log(values) for name, values in columns.items()}
  unscaled = {*FLAGS, *form.unscaled}
  means = {name: 0.0 if name in unscaled else float(x.mean()) for name, x in logs.items()}
  if "U" in means:  # unique tokens are tokens
    means["U"] = means["D"]
  y = logs.pop("loss") - means["loss"]
  units = {"L" if name == "loss" else name: math.exp(mean) for name, mean in means.items()}
  logs = {name: values - means[name] for name, values in logs.items()}
  return Problem(form, logs, y, units, raw)


def _evaluate(problem: Problem, theta: np.ndarray, shift: Any = 0.0) -> list[np.ndarray]:
  """Computes the form's terms at theta [S, p], then the residual less its shift, each [S, n]."""
  *terms, f = problem.derivatives.terms(problem.logs, theta)
  return [*terms, f, (f - np.exp(problem.y) if problem.raw else np.log(f) - problem.y) - shift]


def log_residuals(problem: Problem, theta: np.ndarray) -> np.ndarray:
  """Computes log of fitted over observed loss [S, n] at theta [S, p]."""
  return np.log(problem.derivatives.terms(problem.logs, theta)[-1]) - problem.y


def slopes(problem: Problem, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Computes the gradient of the residuals by theta [p, n], 0 by what is fixed, and them [n]."""
  *terms, r = _evaluate(problem, theta[None])
  gradient = problem.derivatives.gradient(problem.logs, terms)[0] * problem.free[:, None]
  return gradient if problem.raw else gradient / terms[-1], r[0]


def scatter(problem: Problem, theta: np.ndarray) -> float:
  """Estimates the SD of one run about a fit at theta [p], which may go through p of the runs."""
  _, r = slopes(problem, theta)
  return MAD * float(np.median(np.sort(np.abs(r))[-max(1, len(r) - problem.free.sum()) :]))


def _cost(residual, weights, delta):
  size = np.abs(residual)
  clipped = np.minimum(size, delta)
  return np.sum(weights * clipped * (size - 0.5 * clipped), axis=1)


def _penalty(problem, theta, pull):
  return 0.5 * (theta - problem.center) ** 2 @ pull


def _derivatives(problem, weights, delta, state, bandwidth=None):
  """Computes the cost's gradient [S, p], Hessian [S, p, p] and a positive diagonal [S, p].

  With a bandwidth, the Hessian is that of the expected cost: each run of |r| < bandwidth bends it
  by the chance that it lies within delta.
  """
  *terms, r = state
  f, size = terms[-1], np.abs(r)
  inside = size < delta if bandwidth is None else (size < bandwidth) * (delta / bandwidth)
  psi = weights * np.clip(r, -delta, delta)
  majoriser = weights * np.minimum(1, delta / np.maximum(size, 1e-300))
  outer = weights * inside
  if not problem.raw:  # r = log f - y
    psi, outer, majoriser = psi / f, (outer - psi) / f**2, majoriser / f**2
  return problem.derivatives.contract(problem.logs, terms, psi, outer, majoriser)


def _projected(problem, theta, weights, delta, state, pull):
  """Computes the derivatives with parameters that press against the box held, and which do."""
  low, high = problem.box
  gradient, hessian, diagonal = _derivatives(problem, weights, delta, state)
  gradient, hessian = gradient + pull * (theta - problem.center), hessian + np.diag(pull)
  diagonal = diagonal + pull
  fixed = (theta <= low) & (gradient > 0) | (theta >= high) & (gradient < 0)
  scale = diagonal + 1e-12 * diagonal.max(1, keepdims=True) + 1e-300
  hessian = np.where(fixed[:, :, None] | fixed[:, None, :], 0.0, hessian)
  hessian += _diagonal(fixed * scale)
  return np.where(fixed, 0.0, gradient), hessian, scale, fixed


def _diagonal(values):
  """Makes diagonal matrices [S, p, p] of values [S, p]."""
  return values[:, :, None] * np.eye(values.shape[1])


@dataclasses.dataclass(frozen=True)
class Solution:
  """Local minima: theta [S, p], cost [S], converged [S], at_bound [S, p]."""

  theta: np.ndarray
  cost: np.ndarray
  converged: np.ndarray
  at_bound: np.ndarray


@np.errstate(all="ignore")  # a trial that overflows costs inf or nan, and is not taken
def minimise(
  problem: Problem,
  weights: np.ndarray,
  theta: np.ndarray,
  delta: float,
  max_steps: int = 100,
  shift: np.ndarray | None = None,
) -> Solution:
  """Minimises sum_i weights_i Huber_delta(residual_i) from each of S starts.

  Damped Newton steps, projected on the box of the parameters. For a small delta the cost is nearly
  sum |r|, whose kinks trap descent; so each start first meets a wide Huber threshold, which shrinks
  to delta as it settles.

  Of each start, `weights` [S, n] are how often each run counts, and `shift` [S, n] is taken from
  the residuals; theta [S, p] are parameters as they move, delta is in the residuals' unit.

  Returns:
    One local minimum per start. It has converged when the cost is convex there and a full Newton
    step would lower it by less than 1e-9 of itself.
  """
  low, high = problem.box
  theta = np.clip(theta, low, high)
  rows, w = np.arange(len(theta)), weights  # those still moving
  shift = np.zeros((len(theta), 1)) if shift is None else shift
  pull = problem.pull(delta)
  state = _evaluate(problem, theta, shift)
  damping = np.full(len(theta), 1e-3)
  width = np.maximum(delta, 3 * robust_scale(np.abs(state[-1]), w))
  for _ in range(max_steps):
    now, threshold = theta[rows], width[:, None]
    gradient, hessian, scale, _ = _projected(problem, now, w, threshold, state, pull)
    damped = hessian + _diagonal(damping[:, None] * scale)
    step = -np.linalg.solve(damped, gradient[:, :, None])[:, :, 0]
    trial = np.clip(now + step, low, high)
    moved = np.abs(trial - now).max(1)
    trial_state = _evaluate(problem, trial, shift[rows])
    before = _cost(state[-1], w, threshold) + _penalty(problem, now, pull)
    better = _cost(trial_state[-1], w, threshold) + _penalty(problem, trial, pull) <= before
    theta[rows[better]] = trial[better]
    for old, new in zip(state, trial_state, strict=True):
      old[better] = new[better]
    damping = np.where(better, np.maximum(damping * 0.1, 1e-12), np.maximum(damping, 1e-6) * 8)
    keep = (width > delta) | (moved > 1e-10)
    width = np.where(better & (moved < 0.05), np.maximum(delta, width / 4), width)
    if not keep.all():
      rows, w, damping, width = rows[keep], w[keep], damping[keep], width[keep]
      state = [s[keep] for s in state]
    if not len(rows):
      break
  state = _evaluate(problem, theta, shift)
  cost = _cost(state[-1], weights, delta) + _penalty(problem, theta, pull)
  cost = np.nan_to_num(cost, nan=np.inf)
  gradient, hessian, scale, fixed = _projected(problem, theta, weights, delta, state, pull)
  root = np.sqrt(scale)
  scaled = hessian / (root[:, :, None] * root[:, None, :])
  scaled[~np.isfinite(scaled).all(axis=(1, 2))] = -np.eye(theta.shape[1])  # not converged
  curvature, axes = np.linalg.eigh(scaled)
  along = np.einsum("sij,si->sj", axes, gradient / root)
  decrease = (along**2 / np.maximum(curvature, 1e-9)).sum(1)
  converged = (curvature[:, 0] > -1e-6) & (decrease <= 1e-9 * cost + 1e-20)
  return Solution(theta, cost, converged, fixed & problem.reported)


_minima: dict[tuple, tuple[Solution, Solution]] = {}  # the newest last


def minimum(problem: Problem, delta: float) -> tuple[Solution, Solution]:
  """Calls `search`, and keeps the minima that were found last."""
  runs = np.stack([problem.y, *problem.logs.values()]).tobytes()
  key = problem.form.loss, hashlib.sha256(runs).digest(), problem.raw, problem.floor, delta
  if key not in _minima:
    if len(_minima) >= MOST_KEPT:
      _minima.pop(next(iter(_minima)))
    _minima[key] = search(problem, delta)
  return _minima[key]


def ends_of_starts(problem: Problem, delta: float, counts: np.ndarray) -> list[Solution]:
  """Follows every start to where it ends, for each of K counts of the runs [K, n]: many at once."""
  n, some, part = len(problem.y), problem, np.arange(len(problem.y))
  if n > MANY:
    part = np.random.default_rng(0).choice(n, MANY, replace=False)
    some = problem.subset(part)
  if make := getattr(BY_HAND.get(problem.form.name), "starts", problem.form.starts):
    starts = make(some.logs, some.y)
  else:
    starts = draw_starts(problem.form, STARTS, np.random.default_rng(0))
  size, solutions = len(starts), list[Solution]()
  at_once = max(1, IN_CACHE // (size * len(part)))
  for block in np.split(counts[:, part], range(at_once, len(counts), at_once)):
    rows, tiled = np.repeat(block, size, axis=0), np.tile(starts, (len(block), 1))
    ends = minimise(some, rows, tiled, max(delta, COARSE), STEPS)
    parts = [np.split(getattr(ends, f.name), len(block)) for f in dataclasses.fields(ends)]
    solutions += [Solution(*part) for part in zip(*parts, strict=True)]
  return solutions


def search(
  problem: Problem,
  delta: float,
  counts: np.ndarray | None = None,
  ends: Solution | None = None,
) -> tuple[Solution, Solution]:
  """Finds the global minimum of the Huber loss.

  Each run counts `counts` [n] times, or once; `ends` are those of these counts, if they are known.

  Returns:
    Where each start ended, at a threshold of `COARSE` or more, and the best of them taken to delta;
    where rounding forbids that, to the least k of `KINKS` that it allows: there sum |r| is within
    n k / 2 of its least.

  Raises:
    ConfigError: no start found a minimum.
  """
  counts = np.ones(len(problem.y)) if counts is None else counts
  ends = ends or ends_of_starts(problem, delta, counts[None])[0]
  lowest = ends.theta[[np.argmin(ends.cost)]]
  best = minimise(problem, counts[None], lowest, delta, 3000)
  for kink in KINKS:
    if best.converged[0] or delta >= kink:
      continue
    best = minimise(problem, counts[None], lowest, kink, 3000)
    cost = _cost(_evaluate(problem, best.theta)[-1], counts[None], delta)
    best = dataclasses.replace(best, cost=cost)
  if not best.converged[0]:
    raise ConfigError(
      f"fit.delta={delta}: no minimum found from {len(ends.cost)} starts on {len(counts)} runs; "
      "look for outliers in loss, or raise delta"
    )
  return ends, best


def curvature(problem: Problem, theta: np.ndarray, delta: float) -> np.ndarray:
  """Estimates the expected cost's Hessian [p, p] at theta [p].

  It counts residuals within a bandwidth: a median's errors hang on their density (Powell 1991).
  """
  state = _evaluate(problem, theta[None])
  bandwidth = max(delta, BANDWIDTH * float(np.median(np.abs(state[-1]))))
  hessian = _derivatives(problem, np.ones((1, len(problem.y))), delta, state, bandwidth)[1][0]
  return hessian + np.diag(problem.pull(delta))
