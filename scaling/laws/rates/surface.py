"""Fits the loss over learning rate, batch size and weight-decay timescale, for all (N, D) at once.

In x, the logarithms of the factors,

  log L = level(N, D) + s (x - x*)' A (x - x*),   x* = c0 + c1 log N + c2 log D,   s = N^p D^q,

with a level for each (N, D) that nothing constrains, one matrix A and s = 1 unless told otherwise.
Multiplied out it is linear in x x', x, x log N and x log D: what is left, s x*' A x*, is a function
of N and D and so part of the level. Huber's cost of a linear form is convex: it has one minimum.
Off A's diagonal stands how the best rate moves with the batch size.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from configs.errors import DataError
from scaling.laws import solve
from scaling.laws.forms import FACTOR, Derivatives, Form
from scaling.laws.intervals import bootstrap
from scaling.laws.rates import grid as grids
from scaling.laws.rates.grid import Grid
from scaling.laws.rates.optimum import Optimum

DELTA = 1e-3  # Huber's threshold, of log loss
POWERS = (-0.5, -0.25, 0.0, 0.25, 0.5)  # of N and of D, that curvature is tried to grow by


@dataclasses.dataclass(frozen=True)
class Surface(Optimum):
  """A fitted law, and what it was fitted to."""

  level: np.ndarray  # log loss at the bottom of each cell [cells]; nan where it was left out
  options: dict[str, str | float]  # how it was fitted: window, level and curvature
  used: np.ndarray  # which runs it rests on [n]
  # Cells left out since their lowest run is at an edge of the grid, and of which factors.
  edges: dict[int, list[str]]
  sd: float  # of the residuals of log loss


def fit(
  grid: Grid,
  window: float = grids.WINDOW,
  level: str = "cell",
  curvature: str = "shared",
  errors: bool = True,
) -> Surface:
  """Fits the law to the runs near the bottom of each cell.

  The covariance of the optimum is the jackknife's over cells, with the degrees of freedom
  that its coefficients leave of them: at nominal 90 % Student's intervals cover 91 to 98 in 100
  exponents of 4 to 16 cells, where a bootstrap of cells covers 61 to 89.

  `level` is "cell" (free), or "smooth": of second degree in log N and log D, which needs fewer
  runs; `curvature` is "shared", or "power": it grows with those `POWERS` of N and D that fit
  best. Without `errors` no covariance is estimated.

  Raises:
    DataError: the cells do not determine the law, or it has no minimum.
  """
  edges = grids.at_edge(grid)
  used = grids.near_bottom(grid, window) & ~np.isin(grid.cell, list(edges))
  points = np.log(np.delete(grid.cells, list(edges), axis=0))
  terms = np.ptp(np.log(grid.cells), axis=0) > 1e-9
  if _rank(points, terms) < 1 + terms.sum():
    left = f"; {len(edges)} are left out, whose best is at an edge of their grid" if edges else ""
    raise DataError(
      f"tune: {len(points)} (N, D) cannot tell how the optimum grows{left}: train at more sizes "
      "and tokens, or rates and batches beyond the edges"
    )
  powers = [(p, q) for p in POWERS for q in POWERS] if curvature == "power" else [(0.0, 0.0)]
  designs = [_Design(grid, used, terms, level, pair) for pair in powers]
  solved = [design.solve(np.ones((1, used.sum()))) for design in designs]
  at = int(np.argmin([solution.cost[0] for solution in solved]))
  design, theta = designs[at], solved[at].theta[0]
  A, optimum = design.read(theta)
  if np.linalg.eigvalsh(A)[0] <= 0:
    raise DataError(
      f"tune: the loss has no minimum in {' and '.join(grid.factors)} within {100 * window:g} % of "
      "the lowest of each (N, D); train farther from the best, or widen --window"
    )
  residuals = solve.log_residuals(design.problem, theta[None])[0]
  off = grid.logs[used] - design.points @ optimum.T
  bottom = np.full(len(grid.cells), np.nan)  # the fitted loss less what the factors add to it
  bottom[grid.cell[used]] = (
    residuals + np.log(grid.loss[used]) - design.scale * np.einsum("nk,kl,nl->n", off, A, off)
  )
  covariance, freedom = design.jackknife() if errors else (None, 0)
  return Surface(
    tuple(grid.factors), optimum, covariance, freedom, A, powers[at], design.centre,
    bottom, {"window": window, "level": level, "curvature": curvature}, used, edges,
    float(np.sqrt(np.mean(residuals**2))),
  )  # fmt: skip


def _rank(points: np.ndarray, terms: np.ndarray) -> int:
  """Counts the coefficients of an optimum that cells at (log N, log D) determine [cells, 2]."""
  if not len(points):
    return 0
  return int(
    np.linalg.matrix_rank(np.c_[np.ones(len(points)), (points - points.mean(0))[:, terms]])
  )


class _Design:
  """The law as a linear form of the runs in use: columns of squares, of slopes and of levels."""

  def __init__(
    self, grid: Grid, used: np.ndarray, terms: np.ndarray, level: str, powers: Sequence[float]
  ):
    cells, self.cell = np.unique(grid.cell[used], return_inverse=True)
    self.terms, self.cells = terms, np.log(grid.cells[cells])
    self.points = np.c_[np.ones(used.sum()), self.cells[self.cell]]
    self.centre = self.cells.mean(0)
    at = self.points[:, 1:] - self.centre
    self.scale = np.exp(at @ np.asarray(powers))
    self.middle = grid.logs[used].mean(0)
    x, u = grid.logs[used] - self.middle, np.c_[np.ones(len(at)), at[:, terms]]
    self.rows, self.columns = np.triu_indices(x.shape[1])
    squares = x[:, self.rows] * x[:, self.columns]
    slopes = (x[:, :, None] * u[:, None, :]).reshape(len(x), -1)
    levels = np.eye(len(cells))[self.cell]
    if level == "smooth":
      i, j = np.triu_indices(u.shape[1])
      levels = u[:, i] * u[:, j]
    self.X = np.c_[self.scale[:, None] * np.c_[squares, slopes], levels]
    y = np.log(grid.loss[used])
    form = Form(
      "surface", (), {f"column_{i}": FACTOR for i in range(self.X.shape[1])},
      lambda p, x: None, lambda p, u: {}, "", derivatives=self._derivatives(),
    )  # fmt: skip
    self.problem = solve.Problem(form, {}, y - y.mean(), {"L": float(np.exp(y.mean()))})

  def _derivatives(self) -> Derivatives:
    X = self.X

    def contract(logs, terms, phi, omega, major):
      f = terms[-1]
      bends = (X.T * (omega * f**2 + phi * f)[:, None, :]) @ X
      return (phi * f) @ X, bends, (major * f**2) @ X**2

    return Derivatives(
      lambda logs, theta: (theta, np.exp(theta @ X.T)),
      lambda logs, terms: terms[-1][:, None, :] * X.T,
      contract,
    )

  def solve(self, weights: np.ndarray) -> solve.Solution:
    """Minimises Huber's cost of runs that count `weights` [R, n], from least squares on."""
    start = np.linalg.lstsq(self.X, self.problem.y, rcond=None)[0]
    return bootstrap.fit_weighted(self.problem, weights, start, DELTA)

  def read(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turns coefficients of the linear form into A [k, k] and the optimum [k, 3]."""
    k, squares = len(self.middle), len(self.rows)
    A = np.zeros((k, k))
    A[self.rows, self.columns] = theta[:squares] / 2
    A += A.T
    slopes = theta[squares : squares + k * (1 + self.terms.sum())].reshape(k, -1)
    optimum = np.zeros((k, 3))
    optimum[:, np.r_[True, self.terms]] = -0.5 * np.linalg.pinv(A) @ slopes
    optimum[:, 0] += self.middle - optimum[:, 1:] @ self.centre
    return A, optimum

  def jackknife(self) -> tuple[np.ndarray | None, int]:
    """Estimates the covariance of the optimum [3k, 3k] from what each cell changes of it.

    Returns:
      It, and its degrees of freedom; None where one cell cannot be spared.
    """
    count, needed = len(self.cells), 1 + int(self.terms.sum())
    apart = [np.delete(self.cells, c, axis=0) for c in range(count)]
    if count <= needed or min(_rank(points, self.terms) for points in apart) < needed:
      return None, 0
    weights = (self.cell != np.arange(count)[:, None]).astype(float)
    without = np.array([self.read(theta)[1].ravel() for theta in self.solve(weights).theta])
    shift = without - without.mean(0)
    return shift.T @ shift * (count - 1) / count, count - needed
