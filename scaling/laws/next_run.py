"""Which run to train next: the one that would tell most about N_opt at the budget that matters.

Near the fitted law, log L is linear in its parameters; so the runs so far give them a covariance,
a further run of any N and D makes it smaller by a known amount, whatever its loss will be, and
the delta method carries it to log N_opt(C) (c-optimal design: Atkinson et al. 2007, ch. 10).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scaling.laws import solve
from scaling.laws.estimators import isoflop_profiles
from scaling.laws.fitted import Fit
from scaling.laws.law import Law

MANY = 10**9  # runs that are chosen: no limit
SIZES = 25  # of the candidates at each budget
BEYOND = 3.0  # times the sizes, and the D/N, of the runs: as far as candidates go
SAME_BUDGET = 0.1  # of log C, between a candidate's budget and a profile's
STEP = 1e-5  # of the central difference in the parameters as they move


@dataclasses.dataclass(frozen=True)
class Information:
  """What the runs so far say about log N_opt(C), in units of one run's scatter."""

  fit: Fit
  free: np.ndarray  # [p], which parameters the runs determine: one that ended at its bound is held
  covariance: np.ndarray  # [q, q], of those, over the variance of one run's log loss
  gradient: np.ndarray  # [q], of log N_opt(C) in them

  @property
  def variance(self) -> float:
    """The variance of log N_opt(C), over that of one run's log loss."""
    return float(self.gradient @ self.covariance @ self.gradient)

  def sd_relative_to(self, start: "Information") -> float:
    """Divides the standard deviation of log N_opt(C) by that at the start."""
    return float(np.sqrt(self.variance / start.variance))

  def shrink(self, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Predicts by how much one more run of N [m] and D [m] divides the SD of log N_opt(C) [m].

    It is 1 for a run that tells nothing, and 0 for one that would tell all.
    """
    j_mq = jacobian(self.fit, N, D)[:, self.free]
    cj_mq = j_mq @ self.covariance
    gain = (cj_mq @ self.gradient) ** 2 / (1 + np.sum(cj_mq * j_mq, axis=1))
    return np.sqrt(np.maximum(0.0, 1 - gain / self.variance))

  def after(self, N: float, D: float) -> "Information":
    """Returns the information with one more run of N and D."""
    j_q = jacobian(self.fit, np.array([N]), np.array([D]))[0, self.free]
    cj_q = self.covariance @ j_q
    covariance = self.covariance - np.outer(cj_q, cj_q) / (1 + j_q @ cj_q)
    return dataclasses.replace(self, covariance=covariance)


def jacobian(fit: Fit, N: np.ndarray, D: np.ndarray) -> np.ndarray:
  """Differentiates log L at N [m], D [m] in the parameters as they move [m, p]."""
  problem, new = fit.problem, {"N": N, "D": D}
  logs = {name: np.log(new[name] / problem.units[name]) for name in problem.logs}
  there = dataclasses.replace(problem, logs=logs, y=np.zeros(len(N)), raw=False)
  return solve.slopes(there, problem.theta(fit.params))[0].T


def information(fit: Fit, C: float) -> Information:
  """Measures what the fitted runs say about log N_opt(C)."""
  problem = fit.problem
  free = problem.free & [name not in fit.convergence["at_bound"] for name in problem.form.kinds]
  theta = problem.theta(fit.params)
  steps = theta + STEP * np.concatenate([np.eye(len(theta)), -np.eye(len(theta))])
  log_n = np.log(Law(problem.form, problem.natural(steps), fit.compute).optimum(C).N)
  up, down = np.split(log_n, 2)
  j_nq = jacobian(fit, fit.runs.N, fit.runs.D)[:, free]
  return Information(
    fit=fit,
    free=free,
    covariance=np.linalg.inv(j_nq.T @ j_nq),
    gradient=((up - down) / (2 * STEP))[free],
  )


def propose(
  law: Fit, C: float, N: np.ndarray, D: np.ndarray, isoflop: np.ndarray, cost: np.ndarray,
  budget: float, most: int = MANY,
) -> list[tuple[int, float, str]]:  # fmt: skip
  """Proposes the runs that would shrink the interval of N_opt(C) most.

  An isoFLOP profile whose lowest loss is at the edge of its sizes asks for the run beyond it first;
  what is left of the `budget` goes to the c-optimal choice of `most` runs. Candidates are of N [m],
  D [m] and `cost` [FLOPs, m], each on the `isoflop` budget [FLOPs, m] (0: none). See `choose`.

  Returns:
    (candidate, SD of log N_opt(C) once it and those before it are trained over now's, the reason).
  """
  start = now = information(law, C)
  proposals, left = list[tuple[int, float, str]](), budget
  taken = np.zeros(len(N), bool)
  for at, edge, side in open_edges(isoflop_profiles(law.runs, law.compute)["profiles"]):
    same = np.abs(np.log(np.maximum(isoflop, 1.0) / at)) < SAME_BUDGET
    near = same & (side * (N - edge) > 0.01 * edge)
    i = int(np.argmin(np.where(near, np.abs(np.log(N / edge)), np.inf))) if near.any() else -1
    if i >= 0 and cost[i] <= left:
      now, left, taken[i] = now.after(N[i], D[i]), left - cost[i], True
      power = f"{at:.2e}".replace("e+", "e")
      reason = f"the lowest loss at {power} is at its {'largest' if side > 0 else 'smallest'} N"
      proposals.append((i, now.sd_relative_to(start), reason))
  free, so_far = np.flatnonzero(~taken), now.sd_relative_to(start)
  for i, shrink in choose(now, N[free], D[free], cost[free], left, most):
    proposals.append((int(free[i]), so_far * shrink, "tells most about N_opt"))
  return proposals


def candidates(law: Fit, budget: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Makes candidates N [m], D [m] of C [m] FLOPs: on the runs' budgets, and on that of `budget`.

  Their sizes and ratios D/N are those of the runs, and up to `BEYOND` times beyond.
  """
  runs = law.runs
  at = [profile["C"] for profile in isoflop_profiles(runs, law.compute)["profiles"]]
  if len(at) < 2:  # a grid of N and D
    at = np.geomspace(runs.C.min(), runs.C.max(), 8).tolist()
  at += [budget] if budget > (1 + SAME_BUDGET) * max(at) else []
  sizes = np.geomspace(runs.N.min() / BEYOND, runs.N.max() * BEYOND, SIZES)
  n, C = (axis.ravel() for axis in np.meshgrid(sizes, at))
  d, ratios = law.compute.tokens(n, C), runs.D / runs.N
  kept = (d / n >= ratios.min() / BEYOND) & (d / n <= ratios.max() * BEYOND) & (d >= 1)
  return n[kept], d[kept], C[kept]


def choose(
  start: Information,
  N: np.ndarray,
  D: np.ndarray,
  cost: np.ndarray,
  budget: float,
  most: int = MANY,
) -> list[tuple[int, float]]:
  """Chooses among candidate runs those that shrink the SD of log N_opt(C) most within a budget.

  Three times over, the best of those that can still be paid is taken until none can: the best by
  what it tells, by what it tells for its cost, and for the root of it; the best list is returned. A
  candidate is taken once.

  `N`, `D` and `cost` [FLOPs] are of the candidates [m]; `most` are chosen.

  Returns:
    (candidate, SD once it is trained too over the SD at the start), in the order of their choice.
  """
  lists = []
  for price in (np.ones_like(cost), np.sqrt(cost), cost):
    now, left, chosen = start, budget, list[tuple[int, float]]()
    open_m = np.ones(len(N), bool)
    while len(chosen) < most and (affordable := open_m & (cost <= left * (1 + 1e-9))).any():
      gain = -np.log(np.maximum(now.shrink(N, D), 1e-9)) / price
      i = int(np.argmax(np.where(affordable, gain, -1.0)))
      now, left = now.after(N[i], D[i]), left - cost[i]
      chosen.append((i, now.sd_relative_to(start)))
      open_m[i] = False
    lists.append(chosen)
  return min(lists, key=lambda chosen: chosen[-1][1] if chosen else 1.0)


def open_edges(profiles: Sequence[dict[str, Any]]) -> list[tuple[float, float, int]]:
  """Selects the isoFLOP profiles whose lowest loss is at the edge: (C, N there, -1 | +1 beyond)."""
  edges = []
  for profile in profiles:
    n, loss = np.array(profile["N"]), np.array(profile["loss"])
    lowest = n[np.argmin(loss)]
    if not profile["inside"] and lowest in (n.min(), n.max()):
      edges.append((float(profile["C"]), float(lowest), -1 if lowest == n.min() else 1))
  return edges
