"""Chinchilla's law in closed form: its loss, optima, derivatives; few data; what a token costs.

A law is a tuple of parameters, each one number or an array of draws [R]; every function here
broadcasts. N counts parameters, D tokens, C FLOPs, L is in nats per token.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

POINTS = 81  # of the grid of a search, which closes in on the lowest point
ROUNDS = 4  # of closing in, each to the neighbours of the lowest point
# Muennighoff et al. 2023 (arXiv:2305.16264), appendix A: how fast repeated tokens and parameters in
# excess of what the unique tokens deserve lose their worth. Their values, not fitted here.
REPEATED_TOKENS = 15.387756
EXCESS_PARAMS = 5.309743
SATURATED = 1e-4  # of the least loss that so many unique tokens allow: closer to it nothing is told
START_EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.3, 2.0)  # of the grid of starts


@dataclasses.dataclass(frozen=True)
class Compute:
  """What a token costs: k N + q sqrt(N) training FLOPs.

  The textbook is C = 6 N D, which is k = 6, q = 0. What exact FLOPs add to that (attention's
  scores) and what a count with embeddings takes from it both grow with the model's width, as the
  square root of N at a given depth; so the correction fades as models grow, and C = k N D is the
  limit.
  """

  k: float = 6.0  # FLOPs per parameter and token, in the limit of large N
  q: float = 0.0  # FLOPs per token and square root of a parameter
  error: float = 0.0  # relative RMS error over the runs from which k and q were estimated

  @property
  def log_least(self) -> float:
    """The log N below which a token would cost next to nothing: no model is that small."""
    return 2 * np.log(-2 * self.q / self.k) if self.q < 0 else 0.0

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

  def params_on_tokens(self, C: float, D: float) -> np.ndarray:
    """Computes the N that trains for C FLOPs on D tokens: k N + q sqrt(N) = C / D."""
    root = np.sqrt(self.q**2 + 4 * self.k * C / D)
    return ((root - self.q) / (2 * self.k)) ** 2


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
  """The best use of a budget: N [parameters], D [tokens], loss [nats per token]."""

  N: np.ndarray
  D: np.ndarray
  loss: np.ndarray


@np.errstate(invalid="ignore", divide="ignore")  # inf - inf, where a cost has no bound
def lowest_interior(
  cost: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray
) -> np.ndarray:
  """Finds the lowest local minimum of a function of x [..., 1] between low and high.

  A grid closes in on it, and a parabola through its last three points ends the search, to 1e-8. An
  end is no minimum, however low; where there is no other, it is the lower end.
  """
  grid = np.linspace(0, 1, POINTS)
  for turn in range(ROUNDS):
    x = low + (high - low) * grid
    y = cost(x)
    x = np.broadcast_to(x, y.shape)
    middle = y[..., 1:-1]
    interior = np.where((middle <= y[..., :-2]) & (middle <= y[..., 2:]), middle, np.inf)
    i = 1 + np.argmin(interior, axis=-1)[..., None]
    if turn == 0:
      none = ~np.isfinite(interior).any(axis=-1, keepdims=True)
      end = np.where(y[..., :1] < y[..., -1:], x[..., :1], x[..., -1:])
    (low, at, high), costs = (
      [np.take_along_axis(v, i + k, -1) for k in (-1, 0, 1)] for v in (x, y)
    )
  rise, bend = costs[2] - costs[0], costs[2] - 2 * costs[1] + costs[0]
  shift = np.where(bend > 0, -0.5 * rise / bend, 0.0)
  return np.where(none, end, at + np.nan_to_num(np.clip(shift, -1, 1)) * (high - at))


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


def optimum(law: Chinchilla, C: ArrayLike, compute: Compute = Compute()) -> Optimum:
  """Finds the N and D that minimise the loss at C FLOPs.

  For C = k N D this is Hoffmann et al. 2022, eq. 4: N = G (C/k)^a, D = (C/k)^b / G, with
  G = (alpha A / beta B)^(1 / (alpha + beta)). Elsewhere the stationarity condition along the curve
  of equal compute, alpha A N^-alpha = beta B D^-beta elasticity(N), is solved from there. N stays
  between one parameter and one token.
  """
  log_c = np.log(np.asarray(C, float) / compute.k)
  balance = np.log(law.alpha * law.A) - np.log(law.beta * law.B)
  log_n = np.clip((balance + law.beta * log_c) / (law.alpha + law.beta), compute.log_least, log_c)
  for _ in range(50 if compute.q else 0):
    n = np.exp(log_n)
    slope = compute.elasticity(n)
    gap = balance - law.alpha * log_n + law.beta * np.log(compute.tokens(n, C)) - np.log(slope)
    log_n = np.clip(log_n + gap / (law.alpha + law.beta * slope), compute.log_least, log_c)
  n = np.exp(log_n)
  d = compute.tokens(n, C)
  return Optimum(N=n, D=d, loss=loss(law, n, d))


def cheapest(
  law: Chinchilla, loss: ArrayLike, compute: Compute = Compute(), inference_tokens: float = 0.0
) -> Optimum:
  """Finds the N and D that reach a loss at the least compute, of training and of inference.

  With f(N) the training FLOPs per token and a third of it (a forward pass) for a token served, it
  minimises f(N) (D + inference_tokens / 3) subject to L(N, D) = loss: for f = 6 N, Sardana et al.
  2024 (arXiv:2401.00448), eq. 3. Without inference, it is `optimum`, inverted. N and D are inf
  where no compute reaches the loss.

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
  n, d = (np.where(reached, x, np.inf) for x in (n, d))
  return Optimum(n, d, np.where(reached, loss, np.nan))


def effective(unique: ArrayLike, used: ArrayLike, decay: float) -> np.ndarray:
  """Computes how many new ones the `used` are worth, of which only `unique` are new.

  U + U R* (1 - exp(-R / R*)) with R = used / U - 1 repetitions (Muennighoff et al. 2023, eq. 5).
  """
  used, unique = np.asarray(used, float), np.asarray(unique, float)
  repeats = np.maximum(0.0, used / unique - 1)
  return np.minimum(unique, used) - unique * decay * np.expm1(-repeats / decay)


def base_params(law: Chinchilla, tokens: ArrayLike, compute: Compute = Compute()) -> np.ndarray:
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
  compute: Compute = Compute(),
) -> np.ndarray:
  """Computes the loss of N parameters on D tokens of which `unique` are new [nats per token].

  Muennighoff et al. 2023, eqs. 5 and 6: both repeated tokens, and parameters beyond those that the
  unique tokens deserve, are worth less than new ones. The law's own parameters, their two decay
  constants, which they fitted with alpha = beta.
  """
  n = effective(base_params(law, np.minimum(unique, D), compute), N, EXCESS_PARAMS)
  return loss(law, n, effective(unique, D, REPEATED_TOKENS))


def data_constrained(
  law: Chinchilla, C: float, unique: float, compute: Compute = Compute()
) -> Optimum:
  """Finds the best use of C FLOPs when there are only so many unique tokens."""
  column = _column(law)

  def along(log_n):
    n = np.exp(log_n)
    return repeated_loss(column, n, compute.tokens(n, C), unique, compute)

  center = np.log(optimum(column, C, compute).N)
  log_n = lowest_interior(along, center - 10, center + 10)
  n = np.exp(log_n)
  return Optimum(N=n[..., 0], D=compute.tokens(n, C)[..., 0], loss=along(log_n)[..., 0])


def _column(law: Chinchilla) -> Chinchilla:
  """Makes room for a grid beside the draws: parameters [R, 1]."""
  return Chinchilla(*(np.asarray(value, float)[..., None] for value in law))


def least_loss(law: Chinchilla, unique: float, compute: Compute = Compute()) -> np.ndarray:
  """Computes the loss that no compute gets below, if only `unique` tokens are repeated for ever."""
  n = base_params(law, unique, compute) * (1 + EXCESS_PARAMS)
  return loss(law, n, unique * (1 + REPEATED_TOKENS))


def saturation(law: Chinchilla, unique: float, compute: Compute = Compute()) -> np.ndarray:
  """Finds the least C that comes within `SATURATED` of `least_loss`: more does not help."""
  loss = least_loss(law, unique, compute) * (1 + SATURATED)
  best = cheapest_constrained(law, loss, unique, compute)
  return compute.flops_per_token(best.N) * best.D


@np.errstate(all="ignore")  # what is not reached is nan on the way, and inf in the end
def cheapest_constrained(
  law: Chinchilla, loss: ArrayLike, unique: float, compute: Compute = Compute()
) -> Optimum:
  """Finds the N and D that reach a loss at the least compute, of only so many unique tokens.

  It inverts `data_constrained`. Where the unconstrained optimum needs no more tokens than there
  are, it is the answer; else every token is used, and `repeated_loss` solved for D at each N. N and
  D are inf where no compute reaches the loss.
  """
  free = cheapest(law, loss, compute)
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
  n, d = (np.where(reached, np.where(few, *x), np.inf) for x in ((n, free.N), (d, free.D)))
  return Optimum(n, d, np.where(reached, loss, np.nan))


# For the solver: theta = (E, log A, log B, alpha, beta), with E, A and B the three shares of the
# loss at the centre of the runs. See `forms.Derivatives`.


def starts(logs: Mapping[str, np.ndarray], y: np.ndarray) -> np.ndarray:
  """Makes a grid of starts [49, 5]: given the exponents, E, A and B by linear least squares."""
  grid = []
  for alpha, beta in itertools.product(START_EXPONENTS, repeat=2):
    shapes = np.stack([np.ones_like(y), np.exp(-alpha * logs["N"]), np.exp(-beta * logs["D"])])
    shares = np.linalg.lstsq((shapes / np.exp(y)).T, np.ones_like(y), rcond=None)[0]
    e, a, b = np.maximum(shares, 0.02)
    grid.append([e, np.log(a), np.log(b), alpha, beta])
  return np.array(grid)


def terms(logs: Mapping[str, np.ndarray], theta_S5: np.ndarray) -> tuple[np.ndarray, ...]:
  """Computes the terms in N and in D, and the loss, each [S, n]."""
  e, a, b, alpha, beta = theta_S5.T[:, :, None]
  in_n = np.exp(a - alpha * logs["N"])
  in_d = np.exp(b - beta * logs["D"])
  return in_n, in_d, e + in_n + in_d


def gradient(logs: Mapping[str, np.ndarray], terms: tuple[np.ndarray, ...]) -> np.ndarray:
  """Computes the loss's gradient by theta [S, 5, n], from its terms."""
  in_n, in_d, f = terms
  return np.stack([np.ones_like(f), in_n, in_d, -in_n * logs["N"], -in_d * logs["D"]], axis=1)


def contract(logs, terms, phi, omega, major):
  """Sums the derivatives over the runs; of f, the second ones are of one term each."""
  slopes = gradient(logs, terms)
  hessian = (slopes * omega[:, None]) @ slopes.swapaxes(1, 2)
  for term, x, factor, power in ((terms[0], logs["N"], 1, 3), (terms[1], logs["D"], 2, 4)):
    weighted = phi * term
    hessian[:, factor, factor] += weighted.sum(1)
    hessian[:, [factor, power], [power, factor]] -= (weighted @ x)[:, None]
    hessian[:, power, power] += weighted @ x**2
  return np.einsum("spn,sn->sp", slopes, phi), hessian, np.einsum("spn,sn->sp", slopes**2, major)
