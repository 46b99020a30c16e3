"""Optima of a law beside that of a budget: for a loss, for a model that is served, on few data.

Each function takes one law or a bootstrap of laws [R], and answers for all of them.
"""

import numpy as np
from numpy.typing import ArrayLike

from scaling.laws import chinchilla
from scaling.laws.chinchilla import Chinchilla, Compute, Optimum

TEXTBOOK = Compute()  # C = 6 N D
# Muennighoff et al. 2023 (arXiv:2305.16264), appendix A: how fast repeated tokens and parameters in
# excess of what the unique tokens deserve lose their worth. Their values, not fitted here.
REPEATED_TOKENS = 15.387756
EXCESS_PARAMS = 5.309743
SATURATED = 1e-4  # of the least loss that so many unique tokens allow: closer to it nothing is told


def cheapest(
  law: Chinchilla,
  loss: ArrayLike,
  compute: Compute = TEXTBOOK,
  inference_tokens: float = 0.0,
) -> Optimum:
  """Finds the N and D that reach a loss at the least compute, of training and of inference.

  With f(N) the training FLOPs per token and a third of it (a forward pass) for a token served, it
  minimises f(N) (D + inference_tokens / 3) subject to L(N, D) = loss: for f = 6 N, Sardana et al.
  2024 (arXiv:2401.00448), eq. 3. Without inference, this is the least compute that reaches the loss
  (`laws.optimum`, inverted). N and D are inf where no compute reaches it.

  With t = log(N / N_min), where N_min would need infinite data, the sum is convex in t; its slope,
  elasticity(N) + dlog(D)/dt D / (D + inference_tokens / 3), is brought to 0 by bisection.
  """
  room = np.asarray(loss - law.E, float)
  room = np.where(room > 0, room, np.nan)
  floor = (np.log(law.A) - np.log(room)) / law.alpha
  low, high = np.zeros_like(floor), np.log1p(2 * law.alpha / law.beta) / law.alpha + 0 * floor

  def at(t):
    gap = -np.expm1(-law.alpha * t)  # share of the room that is left to the term in D
    return np.exp(floor + t), np.exp((np.log(law.B) - np.log(room * gap)) / law.beta), gap

  for _ in range(100):
    middle = (low + high) / 2
    n, d, gap = at(middle)
    fall = law.alpha * (1 - gap) / (law.beta * gap) * d / (d + inference_tokens / 3)
    rising = compute.elasticity(n) > fall
    low, high = np.where(rising, low, middle), np.where(rising, middle, high)
  n, d, _ = at((low + high) / 2)
  reached = np.isfinite(room)
  return Optimum(
    N=np.where(reached, n, np.inf),
    D=np.where(reached, d, np.inf),
    loss=np.where(reached, loss, np.nan),
  )


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
  """Finds the best use of C FLOPs when there are only so many unique tokens.

  The minimum over N is found on a grid that closes in on its lowest point, for every law [R].
  """
  column = Chinchilla(*(np.asarray(value, float)[..., None] for value in law))

  def loss(n):
    return repeated_loss(column, n, compute.tokens(n, C), unique, compute)

  n = _cheapest_n(loss, chinchilla.optimum(column, C, compute).N, width=10.0, steps=40, rounds=7)
  return Optimum(N=n[..., 0], D=compute.tokens(n, C)[..., 0], loss=loss(n)[..., 0])


def _cheapest_n(cost, n, width: float, steps: int, rounds: int) -> np.ndarray:
  """Minimises a cost of N from n [..., 1] on, on a grid of log N that closes in on its least."""
  for _ in range(rounds):
    grid = np.log(n) + np.linspace(-width, width, 2 * steps + 1)
    lowest = np.argmin(cost(np.exp(grid)), axis=-1)[..., None]
    n, width = np.exp(np.take_along_axis(grid, lowest, -1)), width / 20
  return n


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
  are, it is the answer; else every token is used, and `repeated_loss` solved for D at each N of a
  grid that closes in on the cheapest. N and D are inf where no compute reaches the loss.
  """
  free = cheapest(law, loss, compute)
  reached = least_loss(law, unique, compute) < loss
  column = Chinchilla(*(np.asarray(value, float)[..., None] for value in law))
  target, base = np.asarray(loss, float)[..., None], base_params(column, unique, compute)

  def tokens(n):  # of which n parameters reach the loss; nan: none do
    room = target - column.E - column.A * effective(base, n, EXCESS_PARAMS) ** -column.alpha
    worth = (column.B / np.where(room > 0, room, np.nan)) ** (1 / column.beta)
    repeats = -REPEATED_TOKENS * np.log1p(-np.maximum(0, worth / unique - 1) / REPEATED_TOKENS)
    return unique * (1 + repeats)

  def cost(n):
    return np.nan_to_num(compute.flops_per_token(n) * tokens(n), nan=np.inf)

  n = _cheapest_n(cost, base, width=20.0, steps=80, rounds=8)
  n, d = n[..., 0], tokens(n)[..., 0]
  few = unique < free.D
  return Optimum(
    N=np.where(reached, np.where(few, n, free.N), np.inf),
    D=np.where(reached, np.where(few, d, free.D), np.inf),
    loss=np.where(reached, loss, np.nan),
  )


def params_for(C: float, tokens: float, compute: Compute = TEXTBOOK) -> np.ndarray:
  """Computes the N that trains on so many tokens for C FLOPs: k N + q sqrt(N) = C / tokens."""
  root = np.sqrt(compute.q**2 + 4 * compute.k * C / tokens)
  return ((root - compute.q) / (2 * compute.k)) ** 2
