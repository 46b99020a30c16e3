"""Optima of Chinchilla's law on few data, which are repeated (Muennighoff et al. 2023).

Each function takes one law or a bootstrap of laws [R], and answers for all of them.
"""

import numpy as np
from numpy.typing import ArrayLike

from scaling.laws import chinchilla
from scaling.laws.chinchilla import Chinchilla, Compute, Optimum
from scaling.laws.law import lowest_interior

TEXTBOOK = Compute()  # C = 6 N D
# Muennighoff et al. 2023 (arXiv:2305.16264), appendix A: how fast repeated tokens and parameters in
# excess of what the unique tokens deserve lose their worth. Their values, not fitted here.
REPEATED_TOKENS = 15.387756
EXCESS_PARAMS = 5.309743
SATURATED = 1e-4  # of the least loss that so many unique tokens allow: closer to it nothing is told


def effective(unique: ArrayLike, used: ArrayLike, decay: float) -> np.ndarray:
  """Computes how many new ones the `used` are worth, of which only `unique` are new.

  U + U R* (1 - exp(-R / R*)) with R = used / U - 1 repetitions (Muennighoff et al. 2023, eq. 5).
  """
  used, unique = np.asarray(used, float), np.asarray(unique, float)
  repeats = np.maximum(0.0, used / unique - 1)
  return np.minimum(unique, used) - unique * decay * np.expm1(-repeats / decay)


def base_params(law: Chinchilla, tokens: ArrayLike, compute: Compute = TEXTBOOK) -> np.ndarray:
  """Finds the N for which so many tokens are compute-optimal."""
  log_n = (np.log(law.alpha * law.A / (law.beta * law.B)) + law.beta * np.log(tokens)) / law.alpha
  n = np.exp(log_n)
  for _ in range(50 if compute.q else 0):
    n = np.exp(log_n - np.log(compute.elasticity(n)) / law.alpha)
  return n


def repeated_loss(
  law: Chinchilla,
  N: ArrayLike,
  D: ArrayLike,
  unique: float,
  compute: Compute = TEXTBOOK,
) -> np.ndarray:
  """Computes the loss of N parameters on D tokens of which `unique` are new [nats per token].

  Muennighoff et al. 2023, eq. 6: both repeated tokens, and parameters beyond those that the unique
  tokens deserve, are worth less than new ones. The law's own parameters, their two decay constants.
  """
  n = effective(base_params(law, np.minimum(unique, D), compute), N, EXCESS_PARAMS)
  return chinchilla.loss(law, n, effective(unique, D, REPEATED_TOKENS))


def data_constrained(
  law: Chinchilla, C: float, unique: float, compute: Compute = TEXTBOOK
) -> Optimum:
  """Finds the best use of C FLOPs when there are only so many unique tokens."""
  column = _column(law)

  def loss(log_n):
    n = np.exp(log_n)
    return repeated_loss(column, n, compute.tokens(n, C), unique, compute)

  center = np.log(chinchilla.optimum(column, C, compute).N)
  log_n = lowest_interior(loss, center - 10, center + 10)
  n = np.exp(log_n)
  return Optimum(N=n[..., 0], D=compute.tokens(n, C)[..., 0], loss=loss(log_n)[..., 0])


def _column(law: Chinchilla) -> Chinchilla:
  """Makes room for a grid beside the draws: parameters [R, 1]."""
  return Chinchilla(*(np.asarray(value, float)[..., None] for value in law))


def least_loss(law: Chinchilla, unique: float, compute: Compute = TEXTBOOK) -> np.ndarray:
  """Computes the loss that no compute gets below, if only `unique` tokens are repeated for ever."""
  n = base_params(law, unique, compute) * (1 + EXCESS_PARAMS)
  return chinchilla.loss(law, n, unique * (1 + REPEATED_TOKENS))


def saturation(law: Chinchilla, unique: float, compute: Compute = TEXTBOOK) -> np.ndarray:
  """Finds the least C that comes within `SATURATED` of `least_loss`: more does not help."""
  loss = least_loss(law, unique, compute) * (1 + SATURATED)
  best = cheapest_constrained(law, loss, unique, compute)
  return compute.flops_per_token(best.N) * best.D


@np.errstate(all="ignore")  # what is not reached is nan on the way, and inf in the end
def cheapest_constrained(
  law: Chinchilla, loss: ArrayLike, unique: float, compute: Compute = TEXTBOOK
) -> Optimum:
  """Finds the N and D that reach a loss at the least compute, of only so many unique tokens.

  It inverts `data_constrained`. Where the unconstrained optimum needs no more tokens than there
  are, it is the answer; else every token is used, and `repeated_loss` solved for D at each N. N and
  D are inf where no compute reaches the loss.
  """
  free = chinchilla.cheapest(law, loss, compute)
  reached = least_loss(law, unique, compute) < loss
  column = _column(law)
  target, base = np.asarray(loss, float)[..., None], base_params(column, unique, compute)

  def tokens(n):  # of which n parameters reach the loss; nan: none do
    room = target - column.E - column.A * effective(base, n, EXCESS_PARAMS) ** -column.alpha
    worth = (column.B / np.where(room > 0, room, np.nan)) ** (1 / column.beta)
    repeats = -REPEATED_TOKENS * np.log1p(-np.maximum(0, worth / unique - 1) / REPEATED_TOKENS)
    return unique * (1 + repeats)

  def cost(log_n):
    n = np.exp(log_n)
    return np.nan_to_num(compute.flops_per_token(n) * tokens(n), nan=np.inf)

  n = np.exp(lowest_interior(cost, np.log(base) - 20, np.log(base) + 20))
  n, d = n[..., 0], tokens(n)[..., 0]
  few = unique < free.D
  return Optimum(
    N=np.where(reached, np.where(few, n, free.N), np.inf),
    D=np.where(reached, np.where(few, d, free.D), np.inf),
    loss=np.where(reached, loss, np.nan),
  )
