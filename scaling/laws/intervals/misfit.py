"""Do the runs leave the form, and to which side: tests on its residuals, and the remedy."""

import dataclasses

import numpy as np

from configs.errors import UserError
from scaling.laws import solve
from scaling.laws.chinchilla import estimate_compute
from scaling.laws.intervals import clusters
from scaling.laws.law import Law
from scaling.laws.tables.budgets import check_enough
from scaling.laws.tables.runs import FAR, Runs

MOST = 2000  # runs whose bend is tested
BENT = 0.05  # a chance of so large a bend: a wrong form that is not told of costs more than a doubt
ROUNDING = 1e-6  # of log loss: a smaller bend is the solver's
DRAWN_IN = 2.0  # robust standard deviations: runs farther off, of whatever cause, hide no bend


def f_test(first: float, freedom: int, second: float, other: int) -> dict[str, float]:
  """Tests a sum of squares against another: F, and `p` by 100,000 draws."""
  ratio = (first / freedom) / max(second / other, 1e-300)
  chance = np.random.default_rng(0).f(freedom, other, 100_000) > ratio
  return {"F": ratio, "p": float((1 + chance.sum()) / (1 + len(chance)))}


def bend(problem: solve.Problem, theta: np.ndarray, runs: Runs) -> dict[str, float] | None:
  """Tests whether runs bend away from a law, theta [p], as no parameters of its form would let it.

  It is the score test of (log N)^2, log N log D and (log D)^2 beside the form, on the residuals of
  least squares less what clusters share (`clusters.estimate`); runs beyond `DRAWN_IN` are drawn in,
  and copies of a run count once.

  Returns:
    `F` and `p` as in `lack_of_fit`, and `misses`, the rms of what the three explain [log loss];
    None of too few runs, of thousands, and of runs that the law goes through.
  """
  apart = np.unique(np.stack([runs.N, runs.D, runs.loss]), axis=1, return_index=True)[1]
  problem, runs = problem.subset(apart), runs.subset(apart)
  n, p = len(runs), int(problem.free.sum())
  if not p + 3 < n <= MOST:
    return None
  slopes, r = solve.slopes(problem, theta)
  reach = DRAWN_IN * solve.scatter(problem, theta)
  x, z = problem.logs["N"], problem.logs["D"]
  columns = np.stack([*slopes[problem.free], x * x, x * z, z * z, np.clip(r, -reach, reach)], 1)
  parts = np.linalg.qr(columns).R[p:, -1]  # of the residuals: along the three, and the rest
  misses = float(np.sqrt(np.sum(parts[:-1] ** 2) / n))
  if misses < ROUNDING:
    return None
  if effects := clusters.estimate(slopes[problem.free], r, runs):
    covariance = effects.within * np.eye(n)
    for variance, (_, group) in zip(effects.variance, effects.levels, strict=True):
      covariance += variance * (group[:, None] == group)
    columns = np.linalg.solve(np.linalg.cholesky(covariance), columns)
    parts = np.linalg.qr(columns).R[p:, -1]
  return f_test(np.sum(parts[:-1] ** 2), 3, parts[-1] ** 2, n - p - 3) | {"misses": misses}


def solve_near(
  runs: Runs, problem: solve.Problem, delta: float, reach: float
) -> tuple[Runs, solve.Problem, solve.Solution, solve.Solution]:
  """Fits a form to runs; where they bend away from it, to those near the optimum alone.

  Near the best size for their compute a wrong form is right enough, until runs far from it bend it.
  What is left out, sizes more than `reach` times from the best (0: none), is named in `excluded`;
  nothing is where the rest would not identify the law.

  Returns:
    The runs that count, their problem, and what `solve.minimum` says of it.
  """
  ends, best = solve.minimum(problem, delta)
  if reach and set(problem.form.variables) == {"N", "D"}:
    law = Law(
      problem.form, problem.natural(best.theta[0]), estimate_compute(runs.N, runs.D, runs.C)
    )
    far = np.abs(np.log(runs.N / law.optimum(runs.C).N)) > np.log(reach)
    test = bend(problem, best.theta[0], runs) if far.any() else None
    near = runs.subset(np.flatnonzero(~far))
    if test and test["p"] < BENT and _enough(problem, near):
      out = tuple((name, FAR) for name, is_far in zip(runs.ids, far, strict=True) if is_far)
      runs = dataclasses.replace(near, excluded=runs.excluded + out, whole=runs)
      problem = problem.subset(np.flatnonzero(~far))
      ends, best = solve.minimum(problem, delta)
  return runs, problem, ends, best


def _enough(problem: solve.Problem, runs: Runs) -> bool:
  try:
    check_enough(problem.form, int(problem.free.sum()), runs)
  except UserError:
    return False
  return True
