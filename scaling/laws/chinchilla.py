"""Chinchilla's law: L(N, D) as data and functions, and its optimum along a compute budget.

A law is a tuple of parameters, each one number or an array of draws [R]; every function here
broadcasts, so one call answers for a whole bootstrap. N counts parameters, D tokens, C FLOPs, L is
in nats per token.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Chinchilla(NamedTuple):
  """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv:2203.15556, eq. 2)."""

  E: np.ndarray  # each a number or [R]; the floor: the entropy of the text [nats per token]
  A: np.ndarray  # [nats per token x parameters^alpha]
  B: np.ndarray  # [nats per token x tokens^beta]
  alpha: np.ndarray
  beta: np.ndarray


def loss(law: Chinchilla, N: ArrayLike, D: ArrayLike) -> np.ndarray:
  """Evaluates L(N, D) [nats per token]."""
  return law.E + law.A * np.power(N, -law.alpha) + law.B * np.power(D, -law.beta)


def exponents(law: Chinchilla) -> tuple[np.ndarray, np.ndarray]:
  """Computes (a, b): N_opt grows as C^a, D_opt as C^b (Hoffmann et al. 2022, eq. 4)."""
  total = law.alpha + law.beta
  return law.beta / total, law.alpha / total


def bound_names(mask: np.ndarray) -> list[str]:
  """Names the parameters at the edge of their range, from a mask [5]."""
  return [name for name, at in zip(Chinchilla._fields, mask, strict=True) if at]


def unbounded(at_bound: Sequence[str]) -> tuple[str, ...]:
  """Selects, of the parameters at the edge of their range, those that set the optimum: not E."""
  return tuple(name for name in at_bound if name != "E")


def at_edge(names: Sequence[str]) -> str:
  """Says of parameters that ended at the edge of their range that the runs do not determine it."""
  return f"{', '.join(names)} ended at the edge of what is allowed: the runs do not determine it"


@dataclasses.dataclass(frozen=True)
class Compute:
  """What a token costs: k N + q sqrt(N) training FLOPs.

  The textbook is C = 6 N D, which is k = 6, q = 0. What exact FLOPs add to that (attention's
  scores) and what a count with embeddings takes from it both grow with the model's width, as the
  square root of N at a given depth; so the correction fades as models grow, and C = k N D is the
  limit.

  Attributes:
    k: FLOPs per parameter and token, in the limit of large N.
    q: FLOPs per token and square root of a parameter.
    error: relative RMS error over the runs from which k and q were estimated.
  """

  k: float = 6.0
  q: float = 0.0
  error: float = 0.0

  def flops_per_token(self, N: ArrayLike) -> np.ndarray:
    """Computes the FLOPs per training token of a model of N parameters."""
    return self.k * np.asarray(N, float) + self.q * np.sqrt(N)

  def elasticity(self, N: ArrayLike) -> np.ndarray:
    """Computes d log(FLOPs per token) / d log(N); it is 1 for C = k N D."""
    return 1 - 0.5 * self.q * np.sqrt(N) / self.flops_per_token(N)

  def tokens(self, N: ArrayLike, C: ArrayLike) -> np.ndarray:
    """Computes D: the tokens on which N parameters train for C FLOPs."""
    return np.asarray(C, float) / self.flops_per_token(N)

  def params(self, C: ArrayLike, tokens_per_param: ArrayLike) -> np.ndarray:
    """Computes the N that trains for C FLOPs on tokens_per_param x N tokens."""
    per_ratio = np.asarray(C, float) / np.asarray(tokens_per_param, float)
    log_n = 0.5 * np.log(per_ratio / self.k)
    for _ in range(30):  # C = flops_per_token(N) x ratio x N, by Newton's method in log N
      n = np.exp(log_n)
      excess = np.log(self.flops_per_token(n) * n / per_ratio)
      log_n = log_n - excess / (1 + self.elasticity(n))
    return np.exp(log_n)


def estimate_compute(N: np.ndarray, D: np.ndarray, C: np.ndarray) -> Compute:
  """Estimates FLOPs per token from the FLOPs of some runs, by least relative squares."""
  per_param = C / (N * D)
  if np.ptp(per_param) <= 1e-6 * per_param.mean() or np.ptp(N) == 0:
    return Compute(k=float(per_param.mean()))
  design = np.stack([np.ones_like(N), 1 / np.sqrt(N)], axis=1) / per_param[:, None]
  k, q = np.linalg.lstsq(design, np.ones_like(N), rcond=None)[0]
  # N may be extrapolated downwards too: a correction larger than the law itself is not one.
  if k <= 0 or k + 2 * q / np.sqrt(N.min()) <= 0:
    k, q = float(np.exp(np.log(per_param).mean())), 0.0
  error = (k + q / np.sqrt(N)) / per_param - 1
  return Compute(k=float(k), q=float(q), error=float(np.sqrt(np.mean(error**2))))


class Optimum(NamedTuple):
  """The best use of a budget: N_opt [parameters], D_opt [tokens], loss_opt [nats per token]."""

  N: np.ndarray
  D: np.ndarray
  loss: np.ndarray


def optimum(law: Chinchilla, C: ArrayLike, compute: Compute = Compute()) -> Optimum:
  """Finds the N and D that minimise the loss at C FLOPs.

  For C = k N D this is Hoffmann et al. 2022, eq. 4: N = G (C/k)^a, D = (C/k)^b / G, with
  G = (alpha A / beta B)^(1 / (alpha + beta)). Elsewhere the stationarity condition along the curve
  of equal compute, alpha A N^-alpha = beta B D^-beta elasticity(N), is solved from there. N stays
  between one parameter and one token.
  """
  log_c = np.log(np.asarray(C, float) / compute.k)
  least = 2 * np.log(-2 * compute.q / compute.k) if compute.q < 0 else 0.0  # a token has a cost
  balance = np.log(law.alpha * law.A) - np.log(law.beta * law.B)
  log_n = np.clip((balance + law.beta * log_c) / (law.alpha + law.beta), least, log_c)
  for _ in range(50 if compute.q else 0):
    n = np.exp(log_n)
    slope = compute.elasticity(n)
    gap = balance - law.alpha * log_n + law.beta * np.log(compute.tokens(n, C)) - np.log(slope)
    log_n = np.clip(log_n + gap / (law.alpha + law.beta * slope), least, log_c)
  n = np.exp(log_n)
  d = compute.tokens(n, C)
  return Optimum(N=n, D=d, loss=loss(law, n, d))
