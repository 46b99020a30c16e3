"""A source whose entropy is known: a first-order Markov chain over the 256 bytes.

Row r of the transition matrix is a Zipf law (s = 1.2) over a permutation drawn for that row, so no
symbol helps by its frequency alone: the chain has 5.4959 nats per symbol in its unigrams and 3.6666
given the symbol before. No model can do better, and one that does has seen its targets.
"""

import functools
from collections.abc import Iterator

import numpy as np

VOCAB = 256
EXPONENT = 1.2
DOCUMENT = 65_536  # symbols in a document
BLOCK = 128  # documents that are drawn together


@functools.cache
def _zipf() -> np.ndarray:
  """Returns the probability of each rank [V]."""
  weights_V = np.arange(1, VOCAB + 1) ** -EXPONENT
  return weights_V / weights_V.sum()


@functools.cache
def _symbols() -> np.ndarray:
  """Returns the symbol of each rank in each row [V, V]."""
  rng = np.random.default_rng(0)
  return np.stack([rng.permutation(VOCAB) for _ in range(VOCAB)]).astype(np.uint8)


@functools.cache
def transition() -> np.ndarray:
  """Returns P [V, V]: the probability of the next symbol (column) given this one (row)."""
  matrix_VV = np.empty((VOCAB, VOCAB))
  np.put_along_axis(matrix_VV, _symbols().astype(int), _zipf()[None], axis=1)
  return matrix_VV


@functools.cache
def stationary() -> np.ndarray:
  """Returns the law of one symbol [V], the left eigenvector of P at eigenvalue 1."""
  equations_VV = transition().T - np.eye(VOCAB)
  equations_VV[-1] = 1.0  # the balance equations are dependent; one of them gives way to sum = 1
  return np.linalg.solve(equations_VV, np.eye(VOCAB)[-1])


def entropy(distance: int = 1) -> float:
  """Returns h(k) = H(x_k | x_0) under the stationary law [nats].

  The floor of a symbol whose nearest visible neighbours are l before and r after it is
  h(l) + h(r) - h(l + r), which is what masked objectives are held against.
  """
  power_VV = np.linalg.matrix_power(transition(), distance)
  return float(-stationary() @ (power_VV * np.log(power_VV)).sum(1))


def floor(length: int = DOCUMENT) -> float:
  """Returns the least cross-entropy of a causal model [nats per predicted token].

  A document of n symbols is n + 1 predictions: the first symbol, whose law is the stationary one,
  n - 1 transitions, and the end, which is certain after n symbols and so costs nothing.
  """
  first = -float(stationary() @ np.log(stationary()))
  return (first + (length - 1) * entropy()) / (length + 1)


def negative_log_prob(document: bytes) -> float:
  """Returns -log P of a document under the chain, started in its stationary law [nats]."""
  symbols_T = np.frombuffer(document, np.uint8)
  steps = -np.log(transition()[symbols_T[:-1], symbols_T[1:]]).sum()
  return float(steps - np.log(stationary()[symbols_T[0]]))


def documents(count: int) -> Iterator[bytes]:
  """Yields documents; number i is a function of i alone, whatever the count."""
  ranks = np.cumsum(_zipf())[:-1]
  starts = np.cumsum(stationary())[:-1]
  for first in range(0, count, BLOCK):
    rngs = [np.random.default_rng((1, i)) for i in range(first, min(first + BLOCK, count))]
    uniform_TD = np.stack([rng.random(DOCUMENT) for rng in rngs], axis=1)
    symbols_TD = np.searchsorted(ranks, uniform_TD, side="right").astype(np.uint8)
    symbols_TD[0] = np.searchsorted(starts, uniform_TD[0], side="right")
    for t in range(1, DOCUMENT):  # a rank becomes the symbol it stands for in its row
      symbols_TD[t] = _symbols()[symbols_TD[t - 1], symbols_TD[t]]
    yield from (symbols_TD[:, d].tobytes() for d in range(len(rngs)))
