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
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from configs.errors import ConfigError, DataError
from scaling.laws import chinchilla
from scaling.laws.forms import FLAGS, Derivatives, Form, Kind, draw_starts, robust_scale

BY_HAND: dict[str, Any] = {"chinchilla": chinchilla}  # derivatives and starts of forms

STEPS = 200  # at most, from each start
STARTS = 48  # of a form without a grid of its own
COARSE = 1e-4  # least threshold at which all starts are tried; the best then goes on to delta
MANY = 20_000  # of more runs a random part decides between the starts
KINKS = (1e-7, 1e-6, 1e-5)  # thresholds where rounding stops Newton's steps at kinks of sum |r|
MOST_KEPT = 8  # minima: a report asks for the same ones from several sides
BANDWIDTH = 0.3  # of the median |r|: least half-width of residuals that tell a cost's curvature
LEAST_SQUARES = 10.0  # Huber's threshold: beyond every residual of log loss
LEAST_ABSOLUTE = 1e-8  # below every residual
JAX_ROWS = (1, 8, 64)  # starts or resamples in one call of a compiled derivative: each compiles
JAX_VALUES = 320_000  # rows x runs of it, at most: what memory holds


@dataclasses.dataclass(frozen=True)
class Problem:
  """Runs and a form, as the solver sees them: variables and losses of about one.

  Attributes:
    form: the form.
    logs: of its variables by name, in `units` [n]; -inf where a flag is 0.
    y: log loss, in its unit [n].
    units: of each variable, and of L: their geometric means.
    raw: whether residuals are of the loss (in its unit), not of its logarithm.
    fixed_E: the floor, if it is not fitted [nats per token]; 0: it is.
  """

  form: Form
  logs: dict[str, np.ndarray]
  y: np.ndarray
  units: dict[str, float]
  raw: bool = False
  fixed_E: float = 0.0

  @property
  def free(self) -> np.ndarray:
    """Tells which parameters are fitted [p]."""
    return np.array([not (name == "E" and self.fixed_E) for name in self.form.kinds])

  @property
  def box(self) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest parameters [p], as they move."""
    low, high = np.transpose(
      [kind.moved((kind.low, kind.high)) for kind in self.form.kinds.values()]
    )
    fixed = self.fixed_E / self.units["L"]
    return np.where(self.free, low, fixed), np.where(self.free, high, fixed)

  def huber(self, delta: float) -> float:
    """Turns Huber's threshold, of log loss or of loss, into the residuals' unit."""
    return delta / self.units["L"] if self.raw else delta

  @property
  def derivatives(self) -> Any:
    """The form's `Derivatives`: by hand, or compiled."""
    if self.form.name in BY_HAND:
      return BY_HAND[self.form.name]
    return self.form.derivatives or by_jax(self.form.loss, tuple(self.form.kinds.items()))

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

  def _units_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
    return self.form.units(SimpleNamespace(**params), SimpleNamespace(**self.units))


def make_problem(
  form: Form,
  variables: Mapping[str, ArrayLike],
  loss: ArrayLike,
  raw: bool = False,
  fixed_E: float = 0.0,
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
  return Problem(form, logs, y, units, raw, fixed_E)


@functools.cache
def by_jax(loss: Callable[[Any, Any], Any], kinds: tuple[tuple[str, Kind], ...]) -> Derivatives:
  """Differentiates and compiles a form's loss: for one row of theta, then for many."""
  import jax
  import jax.numpy as jnp

  def value(logs, theta):
    p = {n: jnp.exp(theta[i]) if kind.log else theta[i] for i, (n, kind) in enumerate(kinds)}
    x = {name: jnp.exp(log) for name, log in logs.items()}
    return loss(SimpleNamespace(**p), SimpleNamespace(**x))

  def slopes(logs, theta):
    return jax.jacfwd(value, 1)(logs, theta)  # [n, p]

  def sums(logs, theta, phi, omega, major):
    slope = slopes(logs, theta)
    bend = jax.hessian(lambda theta: phi @ value(logs, theta))(theta)
    return phi @ slope, (slope.T * omega) @ slope + bend, major @ slope**2

  # Compiled plainly: a fit runs for less long than its optimisation by the compiler takes.
  plain = {"xla_backend_optimization_level": "0"}
  values = jax.jit(jax.vmap(value, (None, 0)), compiler_options=plain)
  gradient = jax.jit(jax.vmap(slopes, (None, 0)), compiler_options=plain)
  contract = jax.jit(jax.vmap(sums, (None, 0, 0, 0, 0)), compiler_options=plain)
  return Derivatives(
    lambda logs, theta: (theta, _in_blocks(values, logs, theta)),
    lambda logs, terms: _in_blocks(gradient, logs, terms[0]).swapaxes(1, 2),
    lambda logs, terms, *weights: _in_blocks(contract, logs, terms[0], *weights),
  )


def _in_blocks(compiled, logs, *arrays):
  """Calls a compiled function on rows of arrays [S, ...], in blocks of one shape."""
  import jax

  rows, runs = len(arrays[0]), len(next(iter(logs.values())))
  block = next(size for size in JAX_ROWS if rows <= size or size == JAX_ROWS[-1])
  size = max(1, min(block, JAX_VALUES // runs))
  index = np.minimum(np.arange(-(-rows // size) * size), rows - 1).reshape(-1, size)
  with jax.enable_x64(True):
    blocks = jax.device_get([compiled(logs, *(a[block] for a in arrays)) for block in index])
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:rows], *blocks)


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


def _cost(residual, weights, delta):
  size = np.abs(residual)
  clipped = np.minimum(size, delta)
  return np.sum(weights * clipped * (size - 0.5 * clipped), axis=1)


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


def _projected(problem, theta, weights, delta, state, held):
  """Computes the derivatives with parameters that press against the box held, and which do."""
  low, high = problem.box
  gradient, hessian, diagonal = _derivatives(problem, weights, delta, state)
  fixed = held | (theta <= low) & (gradient > 0) | (theta >= high) & (gradient < 0)
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
  held: int | None = None,
  shift: np.ndarray | None = None,
) -> Solution:
  """Minimises sum_i weights_i Huber_delta(residual_i) from each of S starts.

  Damped Newton steps, projected on the box of the parameters. For a small delta the cost is nearly
  sum |r|, whose kinks trap descent; so each start first meets a wide Huber threshold, which shrinks
  to delta as it settles.

  Args:
    problem: a form and n runs.
    weights: how often each run counts [S, n]; 0 leaves it out.
    theta: starts [S, p], as they move.
    delta: Huber's threshold, in the residuals' unit.
    max_steps: at most so many.
    held: a parameter that stays where it starts (a profile over it), by its place in theta.
    shift: of the residuals of each start [S, n], taken from them; None: 0.

  Returns:
    One local minimum per start. It has converged when the cost is convex there and a full Newton
    step would lower it by less than 1e-9 of itself.
  """
  low, high = problem.box
  stays = np.arange(theta.shape[1]) == held
  theta = np.clip(theta, low, high)
  rows, w = np.arange(len(theta)), weights  # those still moving
  shift = np.zeros((len(theta), 1)) if shift is None else shift
  state = _evaluate(problem, theta, shift)
  damping = np.full(len(theta), 1e-3)
  width = np.maximum(delta, 3 * robust_scale(np.abs(state[-1]), w))
  for _ in range(max_steps):
    now, threshold = theta[rows], width[:, None]
    gradient, hessian, scale, _ = _projected(problem, now, w, threshold, state, stays)
    damped = hessian + _diagonal(damping[:, None] * scale)
    step = -np.linalg.solve(damped, gradient[:, :, None])[:, :, 0]
    trial = np.clip(now + step, low, high)
    moved = np.abs(trial - now).max(1)
    trial_state = _evaluate(problem, trial, shift[rows])
    better = _cost(trial_state[-1], w, threshold) <= _cost(state[-1], w, threshold)
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
  cost = np.nan_to_num(_cost(state[-1], weights, delta), nan=np.inf)
  gradient, hessian, scale, fixed = _projected(problem, theta, weights, delta, state, stays)
  root = np.sqrt(scale)
  scaled = hessian / (root[:, :, None] * root[:, None, :])
  scaled[~np.isfinite(scaled).all(axis=(1, 2))] = -np.eye(theta.shape[1])  # not converged
  curvature, axes = np.linalg.eigh(scaled)
  along = np.einsum("sij,si->sj", axes, gradient / root)
  decrease = (along**2 / np.maximum(curvature, 1e-9)).sum(1)
  converged = (curvature[:, 0] > -1e-6) & (decrease <= 1e-9 * cost + 1e-20)
  return Solution(theta, cost, converged, fixed & problem.free)


_minima: dict[tuple, tuple[Solution, Solution]] = {}  # the newest last


def minimum(problem: Problem, delta: float) -> tuple[Solution, Solution]:
  """Calls `search`, and keeps the minima that were found last."""
  runs = np.stack([problem.y, *problem.logs.values()]).tobytes()
  key = problem.form.loss, hashlib.sha256(runs).digest(), problem.raw, problem.fixed_E, delta
  if key not in _minima:
    if len(_minima) >= MOST_KEPT:
      _minima.pop(next(iter(_minima)))
    _minima[key] = search(problem, delta)
  return _minima[key]


def search(
  problem: Problem, delta: float, counts: np.ndarray | None = None
) -> tuple[Solution, Solution]:
  """Finds the global minimum of the Huber loss.

  Args:
    problem: a form and n runs.
    delta: Huber's threshold, in the residuals' unit; `LEAST_ABSOLUTE` and `LEAST_SQUARES` are its
      ends.
    counts: how often each run counts [n]; None: once.

  Returns:
    Where each start ended, at a threshold of `COARSE` or more, and the best of them taken to delta;
    where rounding forbids that, to the least k of `KINKS` that it allows: there sum |r| is within
    n k / 2 of its least.

  Raises:
    ConfigError: no start found a minimum.
  """
  n = len(problem.y)
  counts = np.ones(n) if counts is None else counts
  some, part = problem, np.arange(n)
  if n > MANY:
    part = np.random.default_rng(0).choice(n, MANY, replace=False)
    logs = {name: values[part] for name, values in problem.logs.items()}
    some = dataclasses.replace(problem, logs=logs, y=problem.y[part])
  if make := getattr(BY_HAND.get(problem.form.name), "starts", problem.form.starts):
    starts = make(some.logs, some.y)
  else:
    starts = draw_starts(problem.form, STARTS, np.random.default_rng(0))
  many = np.tile(counts[part], (len(starts), 1))
  ends = minimise(some, many, starts, max(delta, COARSE), STEPS)
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
      f"fit.delta={delta}: no minimum found from {len(starts)} starts on {n} runs; "
      "look for outliers in loss, or raise delta"
    )
  return ends, best


def curvature(problem: Problem, theta: np.ndarray, delta: float) -> np.ndarray:
  """Estimates the expected cost's Hessian [p, p] at theta [p].

  Few residuals lie within a small delta, so it counts those within a bandwidth: its estimate of the
  residuals' density at 0 is what the errors of a median hang on (Powell 1991).
  """
  state = _evaluate(problem, theta[None])
  bandwidth = max(delta, BANDWIDTH * float(np.median(np.abs(state[-1]))))
  return _derivatives(problem, np.ones((1, len(problem.y))), delta, state, bandwidth)[1][0]
