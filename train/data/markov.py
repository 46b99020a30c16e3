"""A source whose entropy is known: a first-order Markov chain over up to 256 bytes.

Row r of the transition matrix is a Zipf law (s = 1.2) over a permutation drawn for that row, so no
symbol helps by its frequency alone: the chain of 256 symbols has 5.4959 nats per symbol in its
unigrams and 3.6666 given the symbol before. No model can do better, and one that does has seen its
targets.
"""

import functools
from collections.abc import Iterator

import numpy as np

EXPONENT = 1.2
DOCUMENT = 65_536  # symbols in a document
BLOCK = 128  # documents that are drawn together


@functools.cache
def _zipf(symbols: int) -> np.ndarray:
  """Computes the probability of each rank [V]."""
  weights_V = np.arange(1, symbols + 1) ** -EXPONENT
  return weights_V / weights_V.sum()


@functools.cache
def _permutations(symbols: int) -> np.ndarray:
  """Draws the symbol of each rank in each row [V, V]."""
  rng = np.random.default_rng(0)
  return np.stack([rng.permutation(symbols) for _ in range(symbols)]).astype(np.uint8)


@functools.cache
def transition(symbols: int = 256) -> np.ndarray:
  """Makes P [V, V]: the probability of the next symbol (column) given this one (row)."""
  matrix_VV = np.empty((symbols, symbols))
  np.put_along_axis(matrix_VV, _permutations(symbols).astype(int), _zipf(symbols)[None], axis=1)
  return matrix_VV


@functools.cache
def stationary(symbols: int = 256) -> np.ndarray:
  """Solves for the law of one symbol [V], the left eigenvector of P at eigenvalue 1."""
  equations_VV = transition(symbols).T - np.eye(symbols)
  equations_VV[-1] = 1.0  # the balance equations are dependent; one of them gives way to sum = 1
  return np.linalg.solve(equations_VV, np.eye(symbols)[-1])


def entropy(symbols: int = 256) -> float:
  """Computes H(x_t | x_t-1) [nats]: every row is the same law, in another order."""
  p_V = _zipf(symbols)
  return -float(p_V @ np.log(p_V))


def causal_floor(symbols: int = 256, length: int = DOCUMENT) -> float:
  """Computes the least loss of a causal model [nats per predicted token].

  A document of n symbols is n + 1 predictions: the first symbol, whose law is the stationary one,
  n - 1 transitions, and the end, which is certain after n symbols and so costs nothing.
  """
  law_V = stationary(symbols)
  return (-float(law_V @ np.log(law_V)) + (length - 1) * entropy(symbols)) / (length + 1)


def documents(count: int, symbols: int = 256) -> Iterator[bytes]:
  """Yields documents; number i is a function of i alone, whatever the count."""
  ranks = np.cumsum(_zipf(symbols))[:-1]
  starts = np.cumsum(stationary(symbols))[:-1]
  next_VV = _permutations(symbols)
  for first in range(0, count, BLOCK):
    rngs = [np.random.default_rng((1, i)) for i in range(first, min(first + BLOCK, count))]
    uniform_TD = np.stack([rng.random(DOCUMENT) for rng in rngs], axis=1)
    symbols_TD = np.searchsorted(ranks, uniform_TD, side="right").astype(np.uint8)
    symbols_TD[0] = np.searchsorted(starts, uniform_TD[0], side="right")
    for t in range(1, DOCUMENT):  # a rank becomes the symbol it stands for in its row
      symbols_TD[t] = next_VV[symbols_TD[t - 1], symbols_TD[t]]
    yield from (symbols_TD[:, d].tobytes() for d in range(len(rngs)))
