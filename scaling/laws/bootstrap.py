"""How sure: resamples of the runs, intervals, and the noise of seeds.

Runs are resampled, never checkpoints of one run: those share their luck.
"""

import dataclasses
from statistics import NormalDist

import numpy as np

from configs.errors import ConfigError
from scaling.laws import estimate
from scaling.laws.runs import Runs

SAME_BUDGET = 0.03  # budgets that differ by less (in log C) are one
WIDEST = 3 * SAME_BUDGET  # of one budget: more is a range of C, and is cut into steps
RESAMPLINGS = ("pairs", "stratified")
SHARPEST = 1e-5  # least threshold of Huber's loss for resamples
MOST_BIAS = 0.5  # bias corrections of an interval beyond so many standard errors are cut
FEWEST = 9  # distinct (N, D): resamples of fewer hold too few to scatter as the estimate does
FEWEST_DRAWS = 20  # resamples with an answer, for an interval
MOST_SHARE = 20.0  # log A' and log B' of a draw, in units of the loss


def budgets(C: np.ndarray) -> list[np.ndarray]:
  """Returns the positions of the runs [n] of each budget, smallest budget first.

  Runs at whatever C have no budgets; a range of them is cut into even steps of log C, each no wider
  than `WIDEST`.
  """
  return [step for group in isolated(C) for step in _steps(group, np.log(C[group]))]


def isolated(C: np.ndarray) -> list[np.ndarray]:
  """Returns the positions of the runs [n] between gaps in C, which may be a range of budgets."""
  order = np.argsort(C, kind="stable")
  return np.split(order, np.flatnonzero(np.diff(np.log(C[order])) > SAME_BUDGET) + 1)


def _steps(group: np.ndarray, log_c: np.ndarray) -> list[np.ndarray]:
  """Returns a group of runs in order of C, cut where it is too wide for one budget."""
  width = np.ptp(log_c) if len(group) else 0.0
  if width <= WIDEST:
    return [group]
  step = ((log_c - log_c[0]) / width * np.ceil(width / WIDEST)).astype(int)
  return np.split(group, np.flatnonzero(np.diff(step)) + 1)


def interval(draws: np.ndarray, level: float, value: float | None = None) -> list[float]:
  """Returns the central interval [low, high] of bootstrap draws [R].

  With the estimate itself, `value`, it is the bias-corrected percentile interval (Efron 1981, The
  Canadian Journal of Statistics 9:139): where the estimate is not the median of its resamples, the
  quantiles move by twice that distance. Like the plain one it commutes with monotone maps. Plain
  percentiles of pairs cover the exponents of small sweeps in 95 to 98 % of cases when 90 is asked.
  """
  z = np.array([-1.0, 1.0]) * NormalDist().inv_cdf((1 + level) / 2)
  if value is not None:
    below = np.mean(draws < value) + 0.5 * np.mean(draws == value)
    edge = NormalDist().cdf(MOST_BIAS)
    z = z + 2 * NormalDist().inv_cdf(float(np.clip(below, 1 - edge, edge)))
  low, high = np.quantile(draws, [NormalDist().cdf(end) for end in z])
  return [float(low), float(high)]


def seed_noise(runs: Runs) -> float | None:
  """Returns the pooled SD of log loss among repeats of the same (N, D); None without repeats."""
  _, group = np.unique(runs.N + 1j * runs.D, return_inverse=True)
  count = np.bincount(group)
  log_loss = np.log(runs.loss)
  mean = np.bincount(group, log_loss) / count
  freedom = (count - 1).sum()
  return float(np.sqrt(np.sum((log_loss - mean[group]) ** 2) / freedom)) if freedom else None


def resample(
  design: estimate.Design,
  runs: Runs,
  theta: np.ndarray,
  delta: float,
  size: int,
  seed: int,
  resampling: str = "pairs",
) -> estimate.Solution:
  """Fits the law to resamples of the runs, drawn with replacement.

  Args:
    design: the n runs in the solver's coordinates.
    runs: the runs.
    theta: the fit to all of them [5].
    delta: Huber's threshold on log loss.
    size: number of resamples R.
    seed: of the resampling.
    resampling: pairs (n of all runs), or stratified (as many of each budget as it has).

  Returns:
    R fits. Resamples with fewer than 3 sizes or token counts are redrawn. For more than
    `estimate.MANY` runs the fits are drawn from their asymptotic normal law, the sandwich
    covariance (Huber 1967): resampling estimates the same, and costs R times as much. Of `few` runs
    they are drawn from Student's law about theta: at nominal 90 % sweeps of 6 to 8 runs cover
    in 78 to 93 of 100, where resamples cover in 23 to 82.

  Raises:
    ConfigError: stratified, and budgets of one run each, which have nothing to draw from.
  """
  strata = [np.arange(len(runs))] if resampling == "pairs" else budgets(runs.C)
  if alone := sum(len(stratum) == 1 for stratum in strata):
    raise ConfigError(
      f"fit.resampling='stratified': {alone} of {len(strata)} budgets hold a single run; "
      "choose pairs"
    )
  rng = np.random.default_rng(seed)
  if few(runs):
    return _student(design, theta, size, rng)
  if len(runs) > estimate.MANY:
    return _sandwich(design, theta, delta, size, rng)
  weights = np.zeros((size, len(runs)))
  poor = np.ones(size, bool)
  while poor.any():
    for stratum in strata:
      share = np.full(len(stratum), 1 / len(stratum))
      weights[np.ix_(poor, stratum)] = rng.multinomial(len(stratum), share, size=poor.sum())
    poor = ~(three_levels(weights, runs.N) & three_levels(weights, runs.D))
  return refit(design, weights, theta, delta)


def three_levels(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Returns which resamples, of weights [R, n], hold three or more of the values [n]."""
  _, level = np.unique(values, return_inverse=True)
  if level.max() >= 64:  # three of so many are always there
    return np.ones(len(weights), bool)
  return ((weights @ np.eye(level.max() + 1)[level]) > 0).sum(axis=1) > 2


def refit(
  design: estimate.Design, weights: np.ndarray, theta: np.ndarray, delta: float
) -> estimate.Solution:
  """Returns the fits to runs that count `weights` [R, n] times, from theta [5] on.

  Huber's threshold is `SHARPEST` at least: far below the scatter of runs a smaller one changes no
  fit, and the kinks of a median would stop Newton's steps.
  """
  delta = max(delta, SHARPEST)
  rows = max(16, 60_000 // weights.shape[1])  # at once: what the cache holds
  parts = [
    estimate.minimise(design, w, np.tile(theta, (len(w), 1)), delta, 300)
    for w in np.split(weights, range(rows, len(weights), rows))
  ]
  return estimate.Solution(
    *(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(parts[0]))
  )


def _sandwich(design, theta, delta, size, rng) -> estimate.Solution:
  scores, hessian = estimate.scores(design, theta, delta)
  bread = np.linalg.pinv(hessian)
  draws = rng.multivariate_normal(theta, bread @ (scores.T @ scores) @ bread, size=size)
  return _drawn(draws, *design.bounds)


def _student(design, theta, size, rng) -> estimate.Solution:
  """Draws from the multivariate t of least squares: s^2 (J'J)^-1, with n - 5 degrees of freedom."""
  gradient, loss, r = estimate.sensitivities(design, theta)
  freedom = len(r) - len(theta)
  slopes = gradient / loss  # of log loss
  covariance = np.linalg.pinv(slopes @ slopes.T) * (r @ r) / freedom
  normal = rng.multivariate_normal(np.zeros(len(theta)), covariance, size=size)
  low, high = design.bounds
  most = np.array([np.inf, MOST_SHARE, MOST_SHARE, np.inf, np.inf])
  scale = np.sqrt(rng.chisquare(freedom, (size, 1)) / freedom)
  return _drawn(theta + normal / scale, low, np.minimum(high, most))


def _drawn(draws, low, high) -> estimate.Solution:
  """Returns draws [R, 5] as fits inside the box."""
  at_bound = (draws < low) | (draws > high)
  cost = np.full(len(draws), np.nan)
  return estimate.Solution(np.clip(draws, low, high), cost, np.ones(len(draws), bool), at_bound)


def few(runs: Runs) -> bool:
  """Returns whether runs are at too few distinct (N, D) to be resampled."""
  return len(set(zip(runs.N, runs.D, strict=True))) < FEWEST


def t_quantile(probability: float, freedom: int) -> float:
  """Returns Student's quantile, exact at 1 and 2 degrees of freedom, else to 1 % within 98 %.

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
