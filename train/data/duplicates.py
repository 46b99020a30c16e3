"""Near copies among documents, and held-out text that stands in the training text.

Both compare windows of 40 bytes, white space aside. Of these, one in eight stands for all, chosen
by its hash: the windows of a copy are chosen wherever the original's are.
"""

from collections.abc import Iterable, Sequence

import numpy as np

WINDOW = 40  # [bytes]
SAMPLED = 3  # bits of its hash that are 0 where a window is compared: one in 2^3
BANDS, ROWS = 21, 3  # of a sketch: documents meet where all rows of a band are equal
SIMILAR = 0.5  # share of windows in common (Jaccard) from which on documents are near copies
_PRIME = 0x9E3779B97F4A7C15


def _windows(document: bytes) -> np.ndarray:
  """Returns hashes of the document's sampled windows, or of all its text if it has none."""
  text = b" ".join(document.split())
  x_N = np.frombuffer(text.ljust(WINDOW), np.uint8).astype(np.uint64)
  eights_N = x_N  # hashes of 8 bytes from each on, then of 32: polynomials modulo 2^64
  for size in (1, 2, 4, 8, 16):
    x_N = x_N[:-size] * np.uint64(pow(_PRIME, size, 2**64)) + x_N[size:]
    eights_N = x_N if size == 4 else eights_N
  x_N = x_N[:-8] * np.uint64(pow(_PRIME, 8, 2**64)) + eights_N[32:]
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # as SplitMix64 mixes
    x_N = (x_N ^ (x_N >> np.uint64(shift))) * np.uint64(factor)
  sampled_N = x_N[x_N >> np.uint64(64 - SAMPLED) == 0]
  return sampled_N if len(sampled_N) else np.bitwise_xor.reduce(x_N, keepdims=True)


def sketch(document: bytes) -> np.ndarray:
  """Computes the MinHash of a document's windows (Broder 1997): uint32 [BANDS * ROWS]."""
  from datasketch import MinHash

  minhash = MinHash(BANDS * ROWS, seed=1, hashfunc=int, scheme="affine32")
  minhash.update_batch((_windows(document) & np.uint64(2**32 - 1)).tolist())
  return minhash.hashvalues


def groups(sketches: Sequence[np.ndarray]) -> np.ndarray:
  """Numbers the group of each document: near copies, and near copies of these, share one."""
  from scipy.sparse import coo_array, csgraph

  hashes_XH, n = np.stack(sketches), len(sketches)
  factors_R = np.array([1, _PRIME, 0xBF58476D1CE4E5B9], np.uint64)
  pairs = []
  for band_XR in np.split(hashes_XH, BANDS, axis=1):
    band_X = (band_XR * factors_R).sum(axis=1, dtype=np.uint64)
    _, first, place_X = np.unique(band_X, return_index=True, return_inverse=True)
    first_X = first[place_X]
    near_X = np.mean(hashes_XH == hashes_XH[first_X], axis=1) >= SIMILAR
    pairs.append(np.stack([np.flatnonzero(near_X), first_X[near_X]]))
  edges_2E = np.concatenate(pairs, axis=1)
  graph = coo_array((np.ones(edges_2E.shape[1], bool), edges_2E), shape=(n, n))
  return csgraph.connected_components(graph, directed=False)[1]


def overlap(training: Iterable[bytes], held_out: Iterable[bytes]) -> float:
  """Measures the share of the held-out text's windows that stand in the training text."""
  windows_N = np.concatenate([_windows(document) for document in held_out])
  wanted_W, place_N = np.unique(windows_N, return_inverse=True)
  seen_W = np.zeros(len(wanted_W), bool)
  low, may_be = np.uint64(2**24 - 1), np.zeros(2**24, bool)  # a look-up rules out nearly all
  may_be[wanted_W & low] = True
  for document in training:
    hashes = _windows(document)
    hashes = hashes[may_be[hashes & low]]
    place = np.minimum(np.searchsorted(wanted_W, hashes), len(wanted_W) - 1)
    seen_W[place[wanted_W[place] == hashes]] = True
  return float(seen_W[place_N].mean())
