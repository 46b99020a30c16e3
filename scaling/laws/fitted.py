"""A fitted law, as data: what estimators, intervals and predictions begin from."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from configs.floor import read_floor
from scaling.laws import solve
from scaling.laws.chinchilla import Compute
from scaling.laws.forms import FORMS, Form
from scaling.laws.intervals.errors import Errors
from scaling.laws.law import Law, unbounded
from scaling.laws.tables.runs import Runs

OPTIONS = ("form", "response", "delta", "reach", "bootstraps", "level", "seed", "resampling")


class Options(Protocol):
  """The fields of `config.fit` that a fit reads."""

  form: str
  response: str
  E: str
  delta: float
  reach: float
  bootstraps: int
  level: float
  seed: int
  resampling: str


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted law and all that its intervals need."""

  runs: Runs  # what it was fitted to
  problem: solve.Problem  # the runs and the form, as the solver sees them
  law: Law  # with the fitted parameters, numbers
  draws: Law  # with those of each bootstrap resample, arrays [R]
  residuals: np.ndarray  # log of observed over fitted loss [n]
  errors: Errors  # what the law misses that its draws do not show
  convergence: Mapping[str, Any]  # of the starts and of the resamples
  options: Options  # that it was fitted with

  @property
  def form(self) -> str:
    """The form's name."""
    return self.law.form.name

  @property
  def params(self) -> dict[str, float]:
    """The fitted parameters, by name."""
    return dict(self.law.params)

  @property
  def compute(self) -> Compute:
    """FLOPs as a function of N and D, estimated from the runs."""
    return self.law.compute

  @property
  def freedom(self) -> int:
    """Degrees of freedom: runs beyond the fitted parameters."""
    return len(self.runs) - int(self.problem.free.sum())

  @property
  def unbounded(self) -> tuple[str, ...]:
    """Parameters at the edge of their range without which no optimum can be told: not E."""
    return unbounded(self.convergence["at_bound"])

  def outside(self, C: float, N: float, D: float) -> float:
    """Computes how many times C, N, D or D/N, whichever is farthest, lies outside the runs; else 1.

    Above the largest of the runs or below the smallest.
    """
    runs = self.runs
    N, D = max(N, 1.0), max(D, 1.0)  # an absurd law may ask for less
    pairs = ((C, runs.C), (N, runs.N), (D, runs.D), (D / N, runs.D / runs.N))
    return float(max(1.0, *(max(x / seen.max(), seen.min() / x) for x, seen in pairs)))


def problem_of(runs: Runs, options: Options, form: Form | None = None) -> solve.Problem:
  """Brings runs into the solver's coordinates, for `options.form` or another.

  A prior of E is weighed against the scatter of the runs about the law that they make without it.
  """
  form, floor = form or FORMS[options.form], read_floor(options.E)
  problem = solve.make_problem(form, runs.variables, runs.loss, options.response == "raw")
  if floor.sd:
    best = solve.minimum(problem, problem.huber(solve.HOFFMANN))[1]
    floor = floor._replace(scatter=solve.scatter(problem, best.theta[0]))
  return dataclasses.replace(problem, floor=floor)
