"""Which run to train next: the one that would tell most about N_opt at the budget that matters.

Near the fitted law, log L is linear in its parameters; so the runs so far give them a covariance,
a further run of any N and D makes it smaller by a known amount, whatever its loss will be, and
the delta method carries it to log N_opt(C) (c-optimal design: Atkinson et al. 2007, ch. 10).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scaling.laws import chinchilla

STEP = 1e-5  # of the central difference in log parameters


@dataclasses.dataclass(frozen=True)
class Information:
  """What the runs so far say about log N_opt(C), in units of one run's scatter."""

  law: chinchilla.Chinchilla
  free: np.ndarray  # [5], which parameters the runs determine: one that ended at its bound is held
  covariance: np.ndarray  # [p, p], of their logarithms, over the variance of one run's log loss
  gradient: np.ndarray  # [p], of log N_opt(C) in them

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
    j_mp = jacobian(self.law, N, D)[:, self.free]
    cj_mp = j_mp @ self.covariance
    gain = (cj_mp @ self.gradient) ** 2 / (1 + np.sum(cj_mp * j_mp, axis=1))
    return np.sqrt(np.maximum(0.0, 1 - gain / self.variance))

  def after(self, N: float, D: float) -> "Information":
    """Returns the information with one more run of N and D."""
    j_p = jacobian(self.law, np.array([N]), np.array([D]))[0, self.free]
    cj_p = self.covariance @ j_p
    covariance = self.covariance - np.outer(cj_p, cj_p) / (1 + j_p @ cj_p)
    return dataclasses.replace(self, covariance=covariance)


def jacobian(law: chinchilla.Chinchilla, N: np.ndarray, D: np.ndarray) -> np.ndarray:
  """Differentiates log L at N [m], D [m] in the logarithms of E, A, B, alpha, beta."""
  in_n, in_d = law.A * N**-law.alpha, law.B * D**-law.beta
  columns = (law.E, in_n, in_d, -law.alpha * np.log(N) * in_n, -law.beta * np.log(D) * in_d)
  return np.stack(np.broadcast_arrays(*columns), axis=1) / chinchilla.loss(law, N, D)[:, None]


def information(
  law: chinchilla.Chinchilla,
  N: np.ndarray,
  D: np.ndarray,
  C: float,
  compute: chinchilla.Compute,
  held: Sequence[str] = (),
) -> Information:
  """Measures what runs of N [n] and D [n] say about log N_opt(C).

  The law is the one fitted to them; of `held`, its parameters at a bound, the runs say nothing.
  """
  free = np.array([name not in held for name in law._fields])
  logs = np.log(np.maximum(np.array(law), 1e-300))
  steps = logs[:, None] + STEP * np.concatenate([np.eye(5), -np.eye(5)], axis=1)
  log_n = np.log(chinchilla.optimum(chinchilla.Chinchilla(*np.exp(steps)), C, compute).N)
  j_np = jacobian(law, N, D)[:, free]
  return Information(
    law=law,
    free=free,
    covariance=np.linalg.inv(j_np.T @ j_np),
    gradient=((log_n[:5] - log_n[5:]) / (2 * STEP))[free],
  )


def choose(
  start: Information, N: np.ndarray, D: np.ndarray, cost: np.ndarray, budget: float
) -> list[tuple[int, float]]:
  """Chooses among candidate runs those that shrink the SD of log N_opt(C) most within a budget.

  Twice over, the best of those that can still be paid is taken until none can: the best by what it
  tells, and by what it tells for its cost; the better of the two lists is returned. A candidate is
  taken once.

  Args:
    start: what is known so far.
    N: parameters of the candidates [m].
    D: their tokens [m].
    cost: of each [FLOPs, m].
    budget: of all that are chosen [FLOPs].

  Returns:
    (candidate, SD once it is trained too over the SD at the start), in the order of their choice.
  """
  lists = []
  for price in (np.ones_like(cost), cost):
    now, left, chosen = start, budget, list[tuple[int, float]]()
    open_m = np.ones(len(N), bool)
    while (affordable := open_m & (cost <= left * (1 + 1e-9))).any():
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
