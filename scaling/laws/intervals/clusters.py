"""Runs that share their luck: which do, and how much of their scatter they have in common.

Cells of one trunk, checkpoints of one curve and repeats of one cell miss the law together. Their
common part is a random effect: its variance is estimated from the residuals, and resamples
(`bootstrap`) draw it anew for each cluster. Resampling whole clusters would need dozens of them;
sweeps have a handful of sizes, of which the law's terms in N take up three.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from scaling.laws.forms import MAD
from scaling.laws.tables.runs import Runs

CELL = "(N, D)"
CLIP = 5.0  # robust standard deviations: what a run farther off adds to a variance
MOST = 600  # clusters whose common part is estimated; more are resampled whole
FOLD = 32  # random sums in which predicted parts are drawn
LEAST_CUBE = 0.05  # of a chi-squared over its mean
LEAST_FREEDOM = 2.0  # of Student's law of a common part
LEAST_TOLD = 0.1  # share of a common part that the law's parameters leave to be seen
LONG = 8  # points of a training curve, at least
SMOOTH = 0.7  # of von Neumann's ratio, of which independent residuals have 2


class Clusters(NamedTuple):
  """A partition of the runs: what those of one part have in common, and the part of each [n]."""

  by: str
  group: np.ndarray


@dataclasses.dataclass(frozen=True)
class Effects:
  """The common parts of clusters, as estimated, in the unit of the residuals."""

  levels: tuple[Clusters, ...]  # the partitions
  variance: np.ndarray  # of the common part of each level
  freedom: np.ndarray  # degrees of freedom of its estimate
  within: float  # variance of what each run has to itself
  parts: tuple[np.ndarray, ...]  # the predicted common part of each cluster, by level
  # The predicted common part of each run, beside what the law's parameters take up [n].
  common: np.ndarray
  # Whether the law's parameters leave enough of the first level's common part to be seen.
  told: bool

  @property
  def correlation(self) -> float | None:
    """The intraclass correlation: the share of a residual's variance that the first level shares.

    None where there are too few clusters to tell.
    """
    return float(self.variance[0] / (self.variance.sum() + self.within)) if self.told else None

  def draw(self, size: int, seed: int) -> np.ndarray:
    """Draws other common parts [size, n], with Student's law for how well each SD is known.

    They are random combinations of the predicted ones: two arms that draw with one seed are as
    correlated as their parts are. Chi-squared is Wilson and Hilferty's (1931) of a normal draw.
    """
    rng, total = np.random.default_rng((seed, 4)), np.zeros((size, len(self.common)))
    for level, variance, freedom, part in zip(
      self.levels, self.variance, self.freedom, self.parts, strict=True
    ):
      folded = np.zeros(FOLD)  # of many parts: random sums of them
      np.add.at(folded, np.arange(len(part)) % FOLD, part * rng.choice([-1.0, 1.0], len(part)))
      direction = folded / max(float(np.linalg.norm(folded)), 1e-300)
      normal = rng.standard_normal((size, len(part), FOLD)) @ direction
      cube = 1 - 2 / (9 * freedom) + np.sqrt(2 / (9 * freedom)) * rng.standard_normal((size, 1))
      scale = np.sqrt(variance / np.maximum(cube, LEAST_CUBE) ** 3)
      total += (scale * normal)[:, level.group]
    return total


def find(runs: Runs) -> list[Clusters]:
  """Finds how runs repeat: by trunk, else by id, else by N; and by (N, D), where that differs."""
  trunk = runs.labels.get("trunk")
  names = np.arange(len(runs)).astype(str)
  partitions: dict[str, np.ndarray] = {
    "trunk": names if trunk is None else np.where(trunk == "", names, trunk),
    "id": np.array(runs.ids),
    "N": runs.N,
  }
  found: list[Clusters] = []
  for by, values in partitions.items():
    group = np.unique(values, return_inverse=True)[1]
    if not found and 1 < group.max() + 1 < len(runs):
      found.append(Clusters(by, group))
  cell = np.unique(runs.N + 1j * runs.D, return_inverse=True)[1]
  if found and cell.max() + 1 < len(runs) and not np.array_equal(cell, found[0].group):
    found.append(Clusters(CELL, cell))
  return found


def are_curves(runs: Runs, residuals: np.ndarray) -> bool:
  """Tells whether runs look like points along a few training curves: long, and too smooth."""
  steps = scatter = 0.0
  levels, points = find(runs), 0
  for part in range(levels[0].group.max() + 1 if levels else 0):
    of = np.flatnonzero(levels[0].group == part)
    if len(np.unique(runs.D[of])) >= LONG:
      along = residuals[of[np.argsort(runs.D[of], kind="stable")]]
      points += len(of)
      steps += np.sum(np.diff(along) ** 2)
      scatter += np.sum((along - along.mean()) ** 2)
  return 2 * points > len(runs) and steps < SMOOTH * scatter


def estimate(slopes: np.ndarray, r: np.ndarray, runs: Runs) -> Effects | None:
  """Estimates the variance of each level's common part from the residuals r [n] of a fit.

  Quadratic forms of the residuals are set equal to their expectations (MINQUE(0), Rao 1971), which
  know what the fitted parameters took up; a negative variance is 0, and so is one of which they
  leave nothing to be seen (three sizes); of points along training curves it is then as large as the
  rest. Degrees of freedom are Satterthwaite's, the common parts best linear predictions.

  `slopes` are those of the residuals by the fitted parameters [p, n].

  Returns:
    None where nothing repeats, or there are more than `MOST` clusters.
  """
  levels = [level for level in find(runs) if level.group.max() < MOST]
  if not levels or levels[0].by == CELL:
    return None
  curves = are_curves(runs, r)
  rest = max(1, len(r) - len(slopes))
  reach = CLIP * MAD * np.median(np.sort(np.abs(r))[-rest:])
  r = np.clip(r, -reach, reach)
  basis = np.linalg.qr(slopes.T)[0]
  sums = [_indicators(level.group) for level in levels]
  forms = [z - basis @ (basis.T @ z) for z in sums]  # what of each is left beside the parameters
  r = r - basis @ (basis.T @ r)
  k = len(levels)
  system, seen = np.empty((k + 1, k + 1)), np.empty(k + 1)
  for i in range(k):
    system[i, :k] = [np.sum((sums[i].T @ forms[j]) ** 2) for j in range(k)]
    system[i, k] = system[k, i] = np.sum(sums[i] * forms[i])
    seen[i] = np.sum((sums[i].T @ r) ** 2)
  system[k, k], seen[k] = rest, r @ r
  told = np.array([system[i, i] >= LEAST_TOLD * np.sum(sums[i].sum(0) ** 2) for i in range(k)])
  active = np.append(told, True)
  while True:
    variance = np.zeros(k + 1)
    part = np.flatnonzero(active)
    variance[part] = np.linalg.lstsq(system[np.ix_(part, part)], seen[part], rcond=1e-9)[0]
    if variance[:k].min(initial=0) >= 0:
      break
    active[np.argmin(variance[:k])] = False
  variance, within = variance[:k], max(variance[k], 1e-9 * (r @ r) / rest, 1e-300)
  if curves and not told[0]:
    variance[0] = within
  freedom = np.empty(k)
  for i, z in enumerate(sums):  # the covariance of the sums of each cluster's residuals
    halves = [z.T @ form for form in forms]
    spread = within * halves[i] + sum(v * h @ h.T for v, h in zip(variance, halves, strict=True))
    freedom[i] = np.trace(spread) ** 2 / max(np.sum(spread**2), 1e-300)
  z = np.concatenate([np.sqrt(v) * s for v, s in zip(variance, sums, strict=True)], axis=1)
  inner = z.T @ z + within * np.eye(z.shape[1])
  weights = np.linalg.solve(inner, z.T @ r)
  common, ends = z @ weights, np.cumsum([s.shape[1] for s in sums])[:-1]
  parts = [np.sqrt(v) * w for v, w in zip(variance, np.split(weights, ends), strict=True)]
  common -= basis @ (basis.T @ common)  # without it the fit is the same
  freedom = np.maximum(freedom, LEAST_FREEDOM)
  told_first = bool(told[0])
  return Effects(tuple(levels), variance, freedom, within, tuple(parts), common, told_first)


def _indicators(group: np.ndarray) -> np.ndarray:
  return np.eye(group.max() + 1)[group]
