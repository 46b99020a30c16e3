"""A fitted law, as data: what estimators, intervals and predictions begin from."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from scaling.laws import chinchilla, solve
from scaling.laws.chinchilla import Chinchilla
from scaling.laws.forms import FORMS
from scaling.laws.tables.runs import Runs


class Options(Protocol):
  """The fields of `config.fit` that a fit reads."""

  delta: float
  bootstraps: int
  level: float
  seed: int
  resampling: str


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted law and all that its intervals need.

  Attributes:
    runs: what it was fitted to.
    law: the parameters, numbers.
    draws: the parameters of each bootstrap resample, arrays [R].
    compute: FLOPs as a function of N and D, estimated from the runs.
    residuals: log of observed over fitted loss [n].
    delta: Huber's threshold on log loss.
    level: probability content of every interval.
    seed: of the resampling.
    form_error: by how much the log loss of extrapolated runs missed, per e-fold of compute outside
      the fitted runs; None where there are too few budgets to tell. See `forecast_error`.
    convergence: of the starts and of the resamples.
    resampling: of the runs, one of `bootstrap.RESAMPLINGS`.
  """

  runs: Runs
  law: Chinchilla
  draws: Chinchilla
  compute: chinchilla.Compute
  residuals: np.ndarray
  delta: float
  level: float
  seed: int
  form_error: float | None
  convergence: Mapping[str, Any]
  resampling: str

  @property
  def unbounded(self) -> tuple[str, ...]:
    """Parameters at the edge of their range without which no optimum can be told: not E."""
    return chinchilla.unbounded(self.convergence["at_bound"])

  def outside(self, C: float, N: float, D: float) -> float:
    """Computes how many times C, N, D or D/N, whichever is farthest, lies outside the runs; else 1.

    Above the largest of the runs or below the smallest.
    """
    runs = self.runs
    N, D = max(N, 1.0), max(D, 1.0)  # an absurd law may ask for less
    pairs = ((C, runs.C), (N, runs.N), (D, runs.D), (D / N, runs.D / runs.N))
    return float(max(1.0, *(max(x / seen.max(), seen.min() / x) for x, seen in pairs)))


def chinchilla_problem(runs: Runs) -> solve.Problem:
  """Brings runs into the solver's coordinates, for Chinchilla's form."""
  return solve.make_problem(FORMS["chinchilla"], {"N": runs.N, "D": runs.D}, runs.loss)


def to_law(problem: solve.Problem, theta: np.ndarray) -> Chinchilla:
  """Turns the solver's parameters [..., 5] into a law, or into draws of one."""
  return Chinchilla(**problem.natural(theta))
