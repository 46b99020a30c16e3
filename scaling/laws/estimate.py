"""The parametric estimator: Huber's loss on log loss, minimised from many starts at once.

Hoffmann et al. 2022 (Approach 3) minimise sum_i Huber(log L(N_i, D_i) - log L_i). Published fits
went wrong by stopping early, because in the raw parameters the valley is long and narrow. Here
log N and log D are centred and scaled, so that (E, A', B') are the three shares of the loss at the
centre of the runs; Newton's method with exact second derivatives goes through the valley, many
starts or resamples at once, and says of each whether it has converged.
"""

import dataclasses
import hashlib

import numpy as np

from configs.errors import ConfigError
from scaling.laws.chinchilla import Chinchilla

# Of E, log A', log B' (in units of the loss), alpha, beta: E may vanish, the powers may not.
LOWER = np.array([0.0, np.log(1e-6), np.log(1e-6), 1e-3, 1e-3])
UPPER = np.array([np.inf, np.inf, np.inf, 4.0, 4.0])
START_EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.3, 2.0)  # of the grid of starts
LEAST_SQUARES = 10.0  # Huber's threshold on log loss: beyond every residual
LEAST_ABSOLUTE = 1e-8  # likewise: below every residual
COARSE = 1e-4  # least threshold at which all starts are tried; the best then goes on to delta
MANY = 20_000  # of more runs a random part decides between the starts
KINKS = (1e-7, 1e-6, 1e-5)  # thresholds where rounding stops Newton's steps at kinks of sum |r|
MOST_KEPT = 8  # minima: a report asks for the same ones from several sides
BANDWIDTH = 0.3  # of the median |r|: least half-width of residuals that tell a cost's curvature


@dataclasses.dataclass(frozen=True)
class Design:
  """Runs [n] in the solver's coordinates.

  x = (log N - x0) / sx, z = (log D - z0) / sz, y = log L - y0.
  """

  x: np.ndarray
  z: np.ndarray
  y: np.ndarray
  x0: float
  z0: float
  y0: float
  sx: float
  sz: float

  @property
  def bounds(self) -> tuple[np.ndarray, np.ndarray]:
    """The box of theta = (E, log A', log B', alpha sx, beta sz), each [5]."""
    scale = np.array([1, 1, 1, self.sx, self.sz])
    return LOWER * scale, UPPER * scale


def design(N: np.ndarray, D: np.ndarray, loss: np.ndarray) -> Design:
  """Returns runs [n] in the solver's coordinates."""
  x, z, y = np.log(N), np.log(D), np.log(loss)
  x0, z0, y0, sx, sz = x.mean(), z.mean(), y.mean(), x.std(), z.std()
  return Design((x - x0) / sx, (z - z0) / sz, y - y0, x0, z0, y0, sx, sz)


def to_law(runs: Design, theta: np.ndarray) -> Chinchilla:
  """Returns the law of the solver's parameters [..., 5]."""
  e, a, b, alpha, beta = np.moveaxis(theta, -1, 0)
  unit, alpha, beta = np.exp(runs.y0), alpha / runs.sx, beta / runs.sz
  scale_a, scale_b = np.exp(a + alpha * runs.x0), np.exp(b + beta * runs.z0)
  return Chinchilla(e * unit, scale_a * unit, scale_b * unit, alpha, beta)


def from_law(runs: Design, law: Chinchilla) -> np.ndarray:
  """Returns the solver's parameters [5] of a law: the inverse of `to_law`."""
  scale_a = np.log(law.A) - law.alpha * runs.x0 - runs.y0
  scale_b = np.log(law.B) - law.beta * runs.z0 - runs.y0
  return np.array(
    [law.E * np.exp(-runs.y0), scale_a, scale_b, law.alpha * runs.sx, law.beta * runs.sz]
  )


def starts(runs: Design) -> np.ndarray:
  """Returns a grid of starts [49, 5]: given the exponents, E, A' and B' by linear least squares."""
  low, high = runs.bounds
  grid = []
  for alpha in np.array(START_EXPONENTS) * runs.sx:
    for beta in np.array(START_EXPONENTS) * runs.sz:
      columns = np.stack([np.ones_like(runs.x), np.exp(-alpha * runs.x), np.exp(-beta * runs.z)])
      shares = np.linalg.lstsq((columns / np.exp(runs.y)).T, np.ones_like(runs.y), rcond=None)[0]
      e, a, b = np.maximum(shares, 0.02)
      grid.append([e, np.log(a), np.log(b), alpha, beta])
  return np.clip(np.array(grid), low, high)


def _evaluate(runs, theta):
  """Returns the terms in N and in D, the loss and the residual of log loss, each [S, n]."""
  e, a, b, alpha, beta = (theta[:, i : i + 1] for i in range(5))
  in_n = np.exp(a - alpha * runs.x)
  in_d = np.exp(b - beta * runs.z)
  f = e + in_n + in_d
  return in_n, in_d, f, np.log(f) - runs.y


def _cost(residual, weights, delta):
  size = np.abs(residual)
  clipped = np.minimum(size, delta)
  return np.sum(weights * clipped * (size - 0.5 * clipped), axis=1)


def _derivatives(runs, weights, delta, state, bandwidth=None):
  """Returns the cost's gradient [S, 5], Hessian [S, 5, 5] and a positive diagonal [S, 5].

  With a bandwidth, the Hessian is that of the expected cost: of |r| < bandwidth, each run bends the
  cost by the chance that it lies within delta.
  """
  in_n, in_d, f, r = state
  one, x, z = np.ones_like(runs.x), runs.x, runs.z
  size = np.abs(r)
  inside = size < delta if bandwidth is None else (size < bandwidth) * (delta / bandwidth)
  psi = weights * np.clip(r, -delta, delta)
  phi = psi / f  # of the first derivatives, and of the law's own curvature
  omega = (weights * inside - psi) / f**2  # of the outer product of the law's gradient
  major = weights * np.minimum(1, delta / np.maximum(size, 1e-300)) / f**2  # Huber's majoriser

  powers_x, powers_z = np.stack([one, x, x**2], 1), np.stack([one, z, z**2], 1)  # [n, 3]
  p_n, p_d = phi * in_n @ powers_x, phi * in_d @ powers_z
  gradient = np.stack([phi.sum(1), p_n[:, 0], p_d[:, 0], -p_n[:, 1], -p_d[:, 1]], axis=1)
  o_n, o_d = omega * in_n, omega * in_d
  e_n, e_d = o_n @ np.stack([one, x], 1), o_d @ np.stack([one, z], 1)
  nn = o_n * in_n @ powers_x + p_n
  dd = o_d * in_d @ powers_z + p_d
  nd = o_n * in_d @ np.stack([one, x, z, x * z], 1)
  h = np.empty((len(r), 5, 5))
  h[:, 0, 0] = omega.sum(1)
  h[:, 0, 1], h[:, 0, 3] = e_n[:, 0], -e_n[:, 1]
  h[:, 0, 2], h[:, 0, 4] = e_d[:, 0], -e_d[:, 1]
  h[:, 1, 1], h[:, 1, 3], h[:, 3, 3] = nn[:, 0], -nn[:, 1], nn[:, 2]
  h[:, 2, 2], h[:, 2, 4], h[:, 4, 4] = dd[:, 0], -dd[:, 1], dd[:, 2]
  h[:, 1, 2], h[:, 1, 4], h[:, 2, 3], h[:, 3, 4] = nd[:, 0], -nd[:, 2], -nd[:, 1], nd[:, 3]
  h = np.triu(h) + np.triu(h, 1).swapaxes(1, 2)
  m_n, m_d = major * in_n**2, major * in_d**2
  diagonal = np.stack([major.sum(1), m_n.sum(1), m_d.sum(1), m_n @ x**2, m_d @ z**2], 1)
  return gradient, h, diagonal


def _projected(runs, theta, weights, delta, state, held):
  """Returns the derivatives with parameters that press against the box held, and which do."""
  low, high = runs.bounds
  gradient, hessian, diagonal = _derivatives(runs, weights, delta, state)
  fixed = held | (theta <= low) & (gradient > 0) | (theta >= high) & (gradient < 0)
  scale = diagonal + 1e-12 * diagonal.max(1, keepdims=True)
  hessian *= ~(fixed[:, :, None] | fixed[:, None, :])
  hessian[:, range(5), range(5)] += fixed * scale
  return gradient * ~fixed, hessian, scale, fixed


@dataclasses.dataclass(frozen=True)
class Solution:
  """Local minima: theta [S, 5], cost [S], converged [S], at_bound [S, 5]."""

  theta: np.ndarray
  cost: np.ndarray
  converged: np.ndarray
  at_bound: np.ndarray


@np.errstate(all="ignore")  # a trial that overflows costs inf or nan, and is not taken
def minimise(
  runs: Design,
  weights: np.ndarray,
  theta: np.ndarray,
  delta: float,
  max_iterations: int = 100,
  held: int | None = None,
) -> Solution:
  """Minimises sum_i weights_i Huber_delta(log L(N_i, D_i) - log L_i) from each of S starts.

  Damped Newton steps, projected on the box of the design. For a small delta the cost is nearly
  sum |r|, whose kinks trap descent; so each start first meets a wide Huber threshold, which shrinks
  to delta as it settles.

  Args:
    runs: the design, n runs.
    weights: how often each run counts [S, n].
    theta: starts [S, 5].
    delta: Huber's threshold on log loss.
    max_iterations: at most so many steps.
    held: a parameter that stays where it starts (a profile over it), by its place in theta.

  Returns:
    One local minimum per start. It has converged when the cost is convex there and a full Newton
    step would lower it by less than 1e-9 of itself.
  """
  low, high = runs.bounds
  stays = np.arange(5) == held
  theta = theta.copy()
  rows, w = np.arange(len(theta)), weights  # those still moving
  state = list(_evaluate(runs, theta))
  damping = np.full(len(theta), 1e-3)
  width = np.maximum(delta, 3 * np.sqrt((w * state[3] ** 2).sum(1) / w.sum(1)))
  for _ in range(max_iterations):
    now, threshold = theta[rows], width[:, None]
    gradient, hessian, scale, _ = _projected(runs, now, w, threshold, state, stays)
    hessian[:, range(5), range(5)] += damping[:, None] * scale
    step = -np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
    trial = np.clip(now + step, low, high)
    moved = np.abs(trial - now).max(1)
    trial_state = _evaluate(runs, trial)
    better = _cost(trial_state[3], w, threshold) <= _cost(state[3], w, threshold)
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
  state = _evaluate(runs, theta)
  cost = np.nan_to_num(_cost(state[3], weights, delta), nan=np.inf)
  gradient, hessian, scale, fixed = _projected(runs, theta, weights, delta, state, stays)
  root = np.sqrt(scale)
  scaled = hessian / (root[:, :, None] * root[:, None, :])
  scaled[~np.isfinite(scaled).all(axis=(1, 2))] = -np.eye(5)  # not convex, not converged
  curvature, axes = np.linalg.eigh(scaled)
  along = np.einsum("sij,si->sj", axes, gradient / root)
  decrease = (along**2 / np.maximum(curvature, 1e-9)).sum(1)
  converged = (curvature[:, 0] > -1e-6) & (decrease <= 1e-9 * cost + 1e-20)
  return Solution(theta, cost, converged, fixed)


_minima: dict[tuple[float, bytes], tuple[Solution, Solution]] = {}  # the newest last


def minimum(runs: Design, delta: float) -> tuple[Solution, Solution]:
  """Finds the global minimum of the Huber loss; what was found last is kept.

  Args:
    runs: the design, n runs.
    delta: Huber's threshold on log loss; 1e-8 is least absolute deviations, 10 least squares.

  Returns:
    Where each start ended at a threshold of `COARSE` or more, and the best of them taken to delta;
    where rounding forbids that, to the least k of `KINKS` that it allows: there sum |r| is within
    n k / 2 of its least.

  Raises:
    ConfigError: no start found a minimum.
  """
  bits = b"".join(np.asarray(value).tobytes() for value in vars(runs).values())
  key = delta, hashlib.sha256(bits).digest()
  if key not in _minima:
    if len(_minima) >= MOST_KEPT:
      _minima.pop(next(iter(_minima)))
    _minima[key] = _minimum(runs, delta)
  return _minima[key]


def _minimum(runs: Design, delta: float) -> tuple[Solution, Solution]:
  some, n = runs, len(runs.y)
  if n > MANY:
    part = np.random.default_rng(0).choice(n, MANY, replace=False)
    some = dataclasses.replace(runs, x=runs.x[part], z=runs.z[part], y=runs.y[part])
  grid = starts(some)
  found = minimise(some, np.ones((len(grid), len(some.y))), grid, max(delta, COARSE))
  lowest = found.theta[[np.argmin(found.cost)]]
  ones = np.ones((1, n))
  best = minimise(runs, ones, lowest, delta, 3000)
  for kink in KINKS:
    if best.converged[0] or delta >= kink:
      continue
    best = minimise(runs, ones, lowest, kink, 3000)
    cost = _cost(_evaluate(runs, best.theta)[3], ones, delta)
    best = dataclasses.replace(best, cost=cost)
  if not best.converged[0]:
    raise ConfigError(
      f"fit.delta={delta}: no minimum found from {len(grid)} starts on {n} runs; "
      "look for outliers in loss, or raise delta"
    )
  return found, best


def scores(runs: Design, theta: np.ndarray, delta: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns each run's gradient of the cost at theta [5], [n, 5], and the cost's Hessian [5, 5].

  Few residuals lie within a small delta, so the Hessian counts those within a bandwidth: its
  estimate of the residuals' density at 0 is what the errors of a median hang on (Powell 1991).
  """
  weights = np.ones((1, len(runs.y)))
  state = _evaluate(runs, theta[None])
  bandwidth = max(delta, BANDWIDTH * float(np.median(np.abs(state[3]))))
  _, hessian, _ = _derivatives(runs, weights, delta, state, bandwidth)
  gradient, f, r = sensitivities(runs, theta)
  return (np.clip(r, -delta, delta) / f * gradient).T, hessian[0]


def sensitivities(runs: Design, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the loss's gradient by theta [5, n], the loss, and its log's residual, each [n]."""
  in_n, in_d, f, r = (part[0] for part in _evaluate(runs, theta[None]))
  return np.array([np.ones_like(f), in_n, in_d, -in_n * runs.x, -in_d * runs.z]), f, r
