"""A law: a form with its numbers, and its optima along compute, in closed form or numerically."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scaling.laws import chinchilla
from scaling.laws.chinchilla import Compute, Optimum, lowest_interior
from scaling.laws.forms import Form, evaluate

RATIOS = (1e-4, 1e6)  # tokens per parameter among which a numeric optimum is sought
LARGEST = 1e15  # parameters: the largest model that may be the cheapest
HALVINGS = 50  # of the tokens at which a model reaches a loss
STEP = 0.01  # of log C, for local exponents
# Forms that are known in closed form; of one without beta it is alpha.
CLOSED: dict[str, Any] = {"chinchilla": chinchilla, "chinchilla_equal": chinchilla}


@dataclasses.dataclass(frozen=True)
class Law:
  """A form with its parameters, each a number or draws [R]; every method broadcasts over them."""

  form: Form  # of N and D, except where only `params` is read
  params: Mapping[str, Any]  # by name, in natural units
  compute: Compute = Compute()  # what a token costs

  def loss(self, N: ArrayLike, D: ArrayLike) -> np.ndarray:
    """Evaluates L(N, D) [nats per token]."""
    if self._closed:
      return self._closed.loss(self.numbers, N, D)
    return evaluate(self.form, self.params, {"N": N, "D": D})

  def optimum(self, C: ArrayLike) -> Optimum:
    """Finds the N and D that minimise the loss at C FLOPs.

    Without a closed form it is the lowest minimum inside `RATIOS`; where there is none, the better
    of its ends (see `at_end`).
    """
    if self._closed:
      return self._closed.optimum(self.numbers, C, self.compute)
    column, C = self._column(), np.asarray(C, float)[..., None]
    with np.errstate(invalid="ignore"):  # of fewer parameters than any model has
      low, high = (np.log(self.compute.params(C, ratio)) for ratio in RATIOS[::-1])
    low = np.fmax(low, self.compute.log_least)

    def loss(log_n):
      n = np.exp(log_n)
      return column.loss(n, self.compute.tokens(n, C))

    n = np.exp(lowest_interior(loss, low, high))
    d = self.compute.tokens(n, C)
    return Optimum(n[..., 0], d[..., 0], column.loss(n, d)[..., 0])

  def at_end(self, best: Optimum) -> bool:
    """Tells whether an optimum, of one number, is where the search ended: there is none."""
    low, high = RATIOS
    return not (self._closed or low * 1.01 < best.D / best.N < high / 1.01)

  def exponents(self, C: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Computes (a, b), the slopes of log N_opt and log D_opt by log C: of some forms at any C."""
    if self._closed:
      return self._closed.exponents(self.numbers)
    below, above = (self.optimum(np.asarray(C) * np.exp(step)) for step in (-STEP, STEP))
    a, b = (np.log(above[i] / below[i]) / (2 * STEP) for i in (0, 1))
    return a, b

  def cheapest(self, loss: ArrayLike, inference_tokens: float = 0.0) -> Optimum:
    """Finds the N and D that reach a loss at the least compute, of training and of inference.

    A token served costs a third of one trained on. N and D are inf where no compute reaches it, or
    none at `RATIOS`.
    """
    if self._closed:
      return self._closed.cheapest(self.numbers, loss, self.compute, inference_tokens)
    column, target = self._column(), np.asarray(loss, float)[..., None]

    def tokens(n):  # the least D of which n parameters reach the loss; inf: of none do they
      low, high = (np.log(n * ratio) for ratio in RATIOS)
      # Reached with next to no tokens: there the form tells nothing.
      too_few = column.loss(n, np.exp(low)) <= target
      reached = column.loss(n, np.exp(high)) <= target
      low, high = low + 0 * target, high + 0 * target
      for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = column.loss(n, np.exp(middle)) <= target
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
      return np.where(too_few, np.nan, np.where(reached, np.exp(high), np.inf))

    def cost(log_n):
      n = np.exp(log_n)
      return self.compute.flops_per_token(n) * (tokens(n) + inference_tokens / 3)

    n = np.exp(lowest_interior(cost, np.array([self.compute.log_least]), np.log([LARGEST])))
    d = tokens(n)
    reached = np.isfinite(d)
    best = (np.where(reached, n, np.inf), d, np.where(reached, target, np.nan))
    return Optimum(*(value[..., 0] for value in best))

  @property
  def _closed(self) -> Any:
    return CLOSED.get(self.form.name)

  @property
  def numbers(self) -> chinchilla.Chinchilla:
    """The parameters of a law in closed form."""
    return chinchilla.Chinchilla(**{"beta": self.params.get("alpha"), **self.params})

  def _column(self) -> "Law":
    """Makes room for a grid beside the draws: parameters [R, 1]."""
    params = {name: np.asarray(value, float)[..., None] for name, value in self.params.items()}
    return dataclasses.replace(self, params=params)


def unbounded(at_bound: Sequence[str]) -> tuple[str, ...]:
  """Selects, of the parameters at the edge of their range, those that set the optimum: not E."""
  return tuple(name for name in at_bound if name != "E")


def at_edge(names: Sequence[str]) -> str:
  """Says of parameters that ended at the edge of their range that the runs do not determine it."""
  return f"{', '.join(names)} ended at the edge of what is allowed: the runs do not determine it"
