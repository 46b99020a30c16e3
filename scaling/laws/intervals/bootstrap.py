"""How sure: resamples of the runs, intervals, and the noise of seeds."""

import dataclasses
from statistics import NormalDist

import numpy as np

from scaling.laws import solve
from scaling.laws.forms import FLAGS, SCALE
from scaling.laws.intervals import clusters
from scaling.laws.tables.runs import Runs

RESAMPLINGS = ("auto", "pairs")
SHARPEST = 1e-5  # least threshold of Huber's loss for resamples
MOST_BIAS = 0.5  # bias corrections of an interval beyond so many standard errors are cut
FEWEST = 9  # distinct (N, D): resamples of fewer hold too few to scatter as the estimate does
FEWEST_DRAWS = 20  # resamples with an answer, for an interval
RESTARTS = 4  # other starts, of resamples that have not converged from the fit to all runs
MOST_SHARE = 20.0  # the log of a scale, in a draw, in units of the loss
MANY_BY_JAX = 2000  # runs of a form without derivatives of its own: of more, none are resampled


def interval(draws: np.ndarray, level: float, value: float | None = None) -> list[float]:
  """Computes the central interval [low, high] of bootstrap draws [R].

  With the estimate itself, `value`, it is the bias-corrected percentile interval (Efron 1981, The
  Canadian Journal of Statistics 9:139): where the estimate is not the median of its resamples, the
  quantiles move by twice that distance. Like the plain one it commutes with monotone maps. Plain
  percentiles of pairs cover the exponents of small sweeps in 95 to 98 % of cases at a level of 90.
  Where resamples are so lopsided that this still leaves the estimate out, it is the nearer end.
  """
  z = np.array([-1.0, 1.0]) * NormalDist().inv_cdf((1 + level) / 2)
  if value is not None:
    below = np.mean(draws < value) + 0.5 * np.mean(draws == value)
    edge = NormalDist().cdf(MOST_BIAS)
    z = z + 2 * NormalDist().inv_cdf(float(np.clip(below, 1 - edge, edge)))
  low, high = np.quantile(draws, [NormalDist().cdf(end) for end in z])
  return holding([float(low), float(high)], value)


def holding(ends: list[float], value: float | None) -> list[float]:
  """Widens an interval, where it must be, to hold the estimate itself."""
  if value is None or np.isnan(ends).any():
    return ends
  return [min(ends[0], value), max(ends[1], value)]


def seed_noise(runs: Runs) -> float | None:
  """Pools the SD of log loss over repeats of the same (N, D); None without repeats."""
  _, group = np.unique(runs.N + 1j * runs.D, return_inverse=True)
  count = np.bincount(group)
  log_loss = np.log(runs.loss)
  mean = np.bincount(group, log_loss) / count
  freedom = (count - 1).sum()
  return float(np.sqrt(np.sum((log_loss - mean[group]) ** 2) / freedom)) if freedom else None


def resample(
  problem: solve.Problem,
  runs: Runs,
  theta: np.ndarray,
  delta: float,
  size: int,
  seed: int,
  resampling: str = "auto",
) -> solve.Solution:
  """Fits a form to resamples of the runs, drawn with replacement.

  `theta` is the fit to all of them [p], `delta` in the residuals' unit, `size` the number of
  resamples R. `resampling` is pairs (n of all runs), or auto: pairs less what their clusters have
  in common (`clusters.estimate`), which is drawn anew; of more than `clusters.MOST` clusters,
  whole ones.

  Returns:
    R fits. Resamples with fewer than 3 values of a variable that has more are redrawn, and fits
    that do not converge from any start are replaced by ones that did (and counted). For more
    than `solve.MANY` runs the fits are drawn from their asymptotic normal law, the sandwich
    covariance (Huber 1967; by cluster if auto): resampling estimates the same, and costs R times
    as much. Of `few` runs they are drawn from Student's law about theta: at nominal 90 % sweeps of
    6 to 8 runs cover in 78 to 93 of 100, where resamples cover in 23 to 82.
  """
  draws = _resample(problem, runs, theta, delta, size, seed, resampling)
  if not problem.floor.sd:
    return draws
  prior = problem.spread * np.random.default_rng((seed, 5)).normal(size=(size, 1))
  moved = prior * problem.pull(delta) @ np.linalg.pinv(solve.curvature(problem, theta, delta))
  both = _drawn(problem, draws.theta + moved, *problem.box)
  at_bound = both.at_bound | draws.at_bound
  return dataclasses.replace(both, at_bound=at_bound, converged=draws.converged)


def _resample(problem, runs, theta, delta, size, seed, resampling) -> solve.Solution:
  rng = np.random.default_rng(seed)
  levels = clusters.find(runs) if resampling == "auto" else []
  effects = estimate_effects(problem, theta, runs) if levels else None
  if few(runs):
    return _student(problem, theta, size, rng, effects)
  if len(runs) > (solve.MANY if problem.form.name in solve.BY_HAND else MANY_BY_JAX):
    return _sandwich(problem, theta, delta, size, rng, levels)
  measured = [x for name, x in problem.logs.items() if name not in FLAGS and len(np.unique(x)) > 2]
  whole = levels[0].group if levels and levels[0].group.max() >= clusters.MOST else None
  parts = len(runs) if whole is None else whole.max() + 1
  drawn, poor = np.zeros((size, parts)), np.ones(size, bool)
  while poor.any():
    drawn[poor] = rng.multinomial(parts, np.full(parts, 1 / parts), size=poor.sum())
    weights = drawn if whole is None else drawn[:, whole]
    poor = ~np.all([three_levels(weights, x) for x in measured], axis=0)
  if not effects or not effects.variance.any():
    return _without_lost(fit_weighted(problem, weights, theta, delta))
  apart = _without_lost(fit_weighted(problem, weights, theta, delta, effects.common[None]))
  shift = effects.common + effects.draw(size, seed)
  every = np.ones_like(weights)
  common = _without_lost(fit_weighted(problem, every, theta, delta, shift))
  # Both lie about the fit to runs less their common part: where Huber's loss clips, not theta.
  center = fit_weighted(problem, every[:1], theta, delta, effects.common[None]).theta
  both = _drawn(problem, apart.theta + common.theta + theta - 2 * center, *problem.box)
  at_bound = both.at_bound | apart.at_bound | common.at_bound
  return dataclasses.replace(both, at_bound=at_bound, converged=apart.converged & common.converged)


def estimate_effects(
  problem: solve.Problem, theta: np.ndarray, runs: Runs
) -> clusters.Effects | None:
  """Estimates what clusters of the runs have in common from a fit at theta [p]; None: nothing."""
  slopes, r = solve.slopes(problem, theta)
  return clusters.estimate(slopes[problem.free], r, runs)


def three_levels(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Tells which resamples, of weights [R, n], hold three or more of the values [n]."""
  _, level = np.unique(values, return_inverse=True)
  if level.max() >= 64:  # three of so many are always there
    return np.ones(len(weights), bool)
  return ((weights @ np.eye(level.max() + 1)[level]) > 0).sum(axis=1) > 2


def fit_weighted(
  problem: solve.Problem,
  weights: np.ndarray,
  theta: np.ndarray,
  delta: float,
  shift: np.ndarray | None = None,
) -> solve.Solution:
  """Fits a form to runs that count `weights` [R, n] times, from theta [p] on.

  Huber's threshold is `SHARPEST` at least: far below the scatter of runs a smaller one changes no
  fit, and the kinks of a median would stop Newton's steps. What has not converged starts again from
  where others ended. A `shift` [R, n] is taken from the residuals.
  """
  delta = max(delta, SHARPEST)
  shift = np.zeros((1, 1)) if shift is None else shift
  shift = np.broadcast_to(shift, (len(weights), shift.shape[1]))

  def solved(rows: np.ndarray, start: np.ndarray) -> solve.Solution:
    starts = np.tile(start, (len(rows), 1))
    return solve.minimise(problem, weights[rows], starts, delta, 300, shift=shift[rows])

  at_once = max(16, solve.IN_CACHE // weights.shape[1])
  blocks = np.split(np.arange(len(weights)), range(at_once, len(weights), at_once))
  parts = [solved(rows, theta) for rows in blocks]
  solution = solve.Solution(
    *(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(parts[0]))
  )
  ended = solution.theta[solution.converged]
  for start in ended[np.linspace(0, len(ended) - 1, min(RESTARTS, len(ended))).astype(int)]:
    lost = np.flatnonzero(~solution.converged)
    if len(lost):
      again = solved(lost, start)
      for f in dataclasses.fields(solution):
        getattr(solution, f.name)[lost[again.converged]] = getattr(again, f.name)[again.converged]
  return solution


def _without_lost(solution: solve.Solution) -> solve.Solution:
  """Puts converged fits, evenly, in the places of those that have not: intervals leave them out.

  `converged` still counts them.
  """
  kept, lost = np.flatnonzero(solution.converged), np.flatnonzero(~solution.converged)
  if not len(kept) or not len(lost):
    return solution
  instead = kept[np.linspace(0, len(kept) - 1, len(lost)).astype(int)]
  theta, at_bound = solution.theta.copy(), solution.at_bound.copy()
  theta[lost], at_bound[lost] = theta[instead], at_bound[instead]
  return dataclasses.replace(solution, theta=theta, at_bound=at_bound)


def _sandwich(problem, theta, delta, size, rng, levels) -> solve.Solution:
  slopes, r = solve.slopes(problem, theta)
  scores = np.clip(r, -delta, delta) * slopes
  scale = 1.0
  if levels:  # the scores of a cluster add up (Liang and Zeger 1986)
    scores = np.stack([np.bincount(levels[0].group, row) for row in scores])
    freedom = scores.shape[1] - 1
    scale = np.sqrt((freedom + 1) / rng.chisquare(freedom, (size, 1)))
  fitted = np.outer(problem.free, problem.free)
  bread = np.linalg.pinv(solve.curvature(problem, theta, delta) * fitted)
  normal = _normal(bread @ (scores @ scores.T) @ bread, size, rng)
  return _drawn(problem, theta + normal * scale, *problem.box)


def _student(problem, theta, size, rng, effects) -> solve.Solution:
  """Draws from the multivariate t of least squares: s^2 (J'J)^-1, with n - p degrees of freedom.

  Where clusters of the runs have something in common, it is part of the variance, and as few
  degrees of freedom count as tell it.
  """
  slopes, r = solve.slopes(problem, theta)
  freedom = len(r) - problem.free.sum()
  moved = np.linalg.pinv(slopes @ slopes.T + np.diag(problem.pull(solve.LEAST_SQUARES))) @ slopes
  covariance = moved @ moved.T * (r @ r) / freedom
  if effects and effects.variance.any():
    freedom, covariance = min(freedom, effects.freedom.min()), moved @ moved.T * effects.within
    for level, common in zip(effects.levels, effects.variance, strict=True):
      sums = moved @ np.eye(level.group.max() + 1)[level.group]
      covariance += common * sums @ sums.T
  normal = _normal(covariance, size, rng)
  low, high = problem.box
  most = [MOST_SHARE if kind is SCALE else np.inf for kind in problem.form.kinds.values()]
  scale = np.sqrt(rng.chisquare(freedom, (size, 1)) / freedom)
  return _drawn(problem, theta + normal / scale, low, np.minimum(high, most))


def _normal(covariance, size, rng):
  """Draws from a normal law [size, p], in units of its standard deviations."""
  unit = np.sqrt(np.diag(covariance))
  correlation = covariance / np.maximum(np.outer(unit, unit), 1e-300)
  return unit * rng.multivariate_normal(np.zeros(len(unit)), correlation, size=size)


def _drawn(problem, draws, low, high) -> solve.Solution:
  """Takes draws [R, p] for fits, brought into the box."""
  at_bound = ((draws < low) | (draws > high)) & problem.reported
  cost = np.full(len(draws), np.nan)
  return solve.Solution(np.clip(draws, low, high), cost, np.ones(len(draws), bool), at_bound)


def few(runs: Runs) -> bool:
  """Tells whether runs are at too few distinct (N, D) to be resampled."""
  return len(set(zip(runs.N, runs.D, strict=True))) < FEWEST


def t_quantile(probability: float, freedom: int) -> float:
  """Computes Student's quantile, exact at 1 and 2 degrees of freedom, else to 1 % within 98 %.

  It is the expansion of Abramowitz and Stegun, 26.7.5.
  """
  if freedom < 3:
    side = 2 * probability - 1
    cauchy = np.tan(np.pi * side / 2)
    return float(cauchy if freedom == 1 else side / np.sqrt((1 - side**2) / 2))
  z = NormalDist().inv_cdf(probability)
  first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
  third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
  return z + first / freedom + second / freedom**2 + third / freedom**3
