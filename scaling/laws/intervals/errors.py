"""What is known of the size of an error, and errors drawn from it."""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

OFF_EDGE = 0.2  # of the range of log C


@dataclasses.dataclass(frozen=True)
class Scale:
  """What is known of a standard deviation, in logs: draws from its posterior [R].

  Drawing an error is drawing a scale and then a normal of it: with few observations the tails are
  wider than a normal's, as Student's are.
  """

  draws: np.ndarray  # [R]
  told_by: float  # observations; of 0 it is what sweeps of others show

  @property
  def value(self) -> float:
    """The root mean square of the draws."""
    return float(np.sqrt(np.mean(self.draws**2)))

  def sample(self, seed: int) -> np.ndarray:
    """Draws errors [R] of a standard deviation that is known this well."""
    return self.draws * np.random.default_rng(seed).normal(size=len(self.draws))


@dataclasses.dataclass(frozen=True)
class Line:
  """The straight line through minima, log N* by log C, with draws of it [R]."""

  center: float  # log C
  offset: float  # log N* there
  slope: float
  offsets: np.ndarray  # [R]
  slopes: np.ndarray  # [R]

  def log_n(self, C: float) -> float:
    """Reads log N* at C FLOPs off the line."""
    return self.offset + self.slope * (np.log(C) - self.center)

  def draws(self, C: float) -> np.ndarray:
    """Draws log N* there [R], as far as the minima tell the line."""
    return self.offsets + self.slopes * (np.log(C) - self.center)


@dataclasses.dataclass(frozen=True)
class Errors:
  """What a law's answers miss that resamples of its runs do not show, in logs."""

  place: Scale  # of N* within the fitted budgets
  place_growth: Scale  # of N*, per e-fold of compute beyond them
  loss: Scale  # of the loss at N* within the fitted budgets
  loss_growth: Scale  # of any loss, per e-fold beyond the fitted runs
  line: Line | None  # the line that N* is read from in place of the law, where it forecast better
  # RMS error of log N* of larger budgets, of the law and of a line through the minima, each from
  # the smaller budgets; {} where nothing tells.
  heldout: dict[str, float]


def posterior(
  errors: ArrayLike,
  variances: ArrayLike,
  distances: ArrayLike,
  typical: float,
  size: int,
  seed: int,
  independent: float | None = None,
) -> Scale:
  """Learns how errors grow: e_i is normal, with variance v_i + (s d_i)^2; the scale s is unknown.

  Before any error is seen, s is half-normal about `typical`. Errors that share a cause are not as
  many observations: all together count as `independent` ones, those of forecasts as the budgets
  that were forecast.
  """
  grid = typical * np.concatenate([[0.0], np.geomspace(1e-3, 30, 150)])
  log_p = np.log(np.gradient(grid)) - 0.5 * (grid / typical) ** 2
  e, v, d = (np.asarray(values, float) for values in (errors, variances, distances))
  count = len(e) if independent is None else independent
  if len(e):
    variance = v + (grid[:, None] * d) ** 2 + 1e-20
    log_p -= count / len(e) * 0.5 * np.sum(np.log(variance) + e**2 / variance, axis=1)
  p = np.exp(log_p - log_p.max())
  p /= p.sum()
  draws = np.interp((np.arange(size) + 0.5) / size, np.cumsum(p) - p / 2, grid)
  return Scale(np.random.default_rng(seed).permutation(draws), count if len(e) else 0.0)


def off_edge(C: np.ndarray) -> float:
  """Computes how far below the largest budget [e-folds] the loss of a wrong form is still right.

  A law is anchored in the middle of its runs; simulated ones of a wrong form are right about a
  fifth of the range of log C below its end (docs/coverage.md), and err linearly from there on.
  """
  return OFF_EDGE * float(np.log(C.max() / C.min()))
