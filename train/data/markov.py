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
MEMORY = 64  # from this distance on two symbols are independent, to 1e-9 nats [symbols]


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


@functools.cache
def _entropies(symbols: int) -> np.ndarray:
  """Computes h(k) for k = 0 ... MEMORY [nats]."""
  power_VV, h = np.eye(symbols), [0.0]
  for _ in range(MEMORY):
    power_VV = power_VV @ transition(symbols)
    h.append(float(-stationary(symbols) @ (power_VV * np.log(power_VV)).sum(1)))
  return np.array(h)


def entropy(distance: int = 1, symbols: int = 256) -> float:
  """Returns h(k) = H(x_k | x_0) under the stationary law [nats]."""
  return float(_entropies(symbols)[min(distance, MEMORY)])


# ------------------------------------------------------------------------------------------ floors


def causal_floor(symbols: int = 256, length: int = DOCUMENT) -> float:
  """Computes the least loss of a causal model [nats per predicted token].

  A document of n symbols is n + 1 predictions: the first symbol, whose law is the stationary one,
  n - 1 transitions, and the end, which is certain after n symbols and so costs nothing.
  """
  law_V = stationary(symbols)
  return (-float(law_V @ np.log(law_V)) + (length - 1) * entropy(1, symbols)) / (length + 1)


def masked_floor(rate: float, length: int | None = None, symbols: int = 256) -> float:
  """Computes the least loss where hidden symbols show nothing but that they are hidden.

  Args:
    rate: share of the symbols that is hidden.
    length: of the window, of which int(rate n + u) symbols are hidden, u uniform in [0, 1); None:
      it has no end, and the gaps are geometric.
    symbols: V.

  Returns:
    nats per predicted token, exact within a document.
  """
  if length is None:
    gaps_G = np.arange(1, 4 * MEMORY)
    chance_G = (1 - rate) * rate ** (gaps_G - 1)
    chance_GG = chance_G[:, None] * chance_G[None, :]
    return float(np.sum(chance_GG * _between(gaps_G[:, None], gaps_G[None, :], symbols)))
  low = int(rate * length)
  shares = {low: 1 - (rate * length - low), low + 1: rate * length - low}
  nats = sum(p * _hidden_nats(k, length, symbols) for k, p in shares.items() if k and p > 1e-12)
  return nats / (rate * length)


def _between(left: np.ndarray, right: np.ndarray, symbols: int) -> np.ndarray:
  """Computes the entropy of a symbol whose nearest visible neighbours are this far away."""
  left, right, both = (np.minimum(k, MEMORY) for k in (left, right, left + right))
  h = _entropies(symbols)
  return h[left] + h[right] - h[both]


def _hidden_nats(hidden: int, length: int, symbols: int) -> float:
  """Computes the expected entropy of `hidden` symbols among `length`, summed over them."""
  log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, length + 1)))])

  def chance(masked: np.ndarray, seen: int) -> np.ndarray:
    """Probability that beside a hidden symbol `masked` given ones are hidden, `seen` are not."""
    n, k = length - 1 - masked - seen, hidden - 1 - masked
    possible = (k >= 0) & (n >= k)
    n, k = np.where(possible, n, 0), np.where(possible, k, 0)
    log_ways = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
    all_ways = log_factorial[[length - 1, hidden - 1, length - hidden]] @ [1, -1, -1]
    return np.where(possible, np.exp(log_ways - all_ways), 0.0)

  left, right = np.arange(1, hidden + 1)[:, None], np.arange(1, hidden + 1)[None, :]
  places = np.maximum(length - left - right, 0)
  nats = np.sum(places * chance(left + right - 2, 2) * _between(left, right, symbols))
  # Nothing visible on one side, `right - 1` symbols there: all of them are hidden. H(x_0 | x_k) is
  # h(k) too, as the law is stationary.
  nats += 2 * np.sum(chance(left + right - 2, 1) * _entropies(symbols)[np.minimum(left, MEMORY)])
  if hidden == length:
    nats += length * entropy(MEMORY, symbols)
  return float(hidden / length * nats)


# --------------------------------------------------------------------------------------- the source


def negative_log_prob(document: bytes, symbols: int = 256) -> float:
  """Computes -log P of a document under the chain, started in its stationary law [nats]."""
  symbols_T = np.frombuffer(document, np.uint8)
  steps = -np.log(transition(symbols)[symbols_T[:-1], symbols_T[1:]]).sum()
  return float(steps - np.log(stationary(symbols)[symbols_T[0]]))


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
