"""How text is hidden: masks, spans and suffixes, as numpy functions of the text and of chance.

Chance comes in as numbers in [0, 1), some for each sequence (`uniform`), so that every function
here is pure and works on a whole batch at once.
"""

import functools

import numpy as np


def uniform(seed: int, split: int, first: int, rows: int, count: int) -> np.ndarray:
  """Draws numbers in [0, 1) for the sequences `first` to `first + rows - 1` [rows, count].

  Those of a sequence depend on (seed, split, its number) only. Philox is a function of a counter
  (Salmon et al. 2011), so that any host can start at its own rows. `split` numbers the streams of a
  seed (`train.data.batches`).
  """
  if not count:  # causal models draw none, and a generator takes a tenth of their batch's time
    return np.empty((rows, 0))
  blocks = -(-count // 4)  # a step of the counter gives four numbers
  # As uint64: a list with a number above 2^63 would become floats, and neighbouring seeds equal.
  generator = np.random.Philox(key=np.array([seed % 2**64, split], np.uint64))
  generator.advance(first * blocks)
  return np.random.Generator(generator).random((rows, 4 * blocks))[:, :count]


# --------------------------------------------------------------------------------------- masks


def mask_tokens(
  tokens_BT,
  real_BT,
  uniform_BU,
  rate: float,
  mask_share: float,
  random_share: float,
  vocab_size: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Hides int(rate n + u) of a sequence's n real tokens, at places drawn without replacement.

  Of these `mask_share` become [MASK] (id V), `random_share` a random token, and the rest stay.
  Devlin et al. 2018 (arXiv:1810.04805), section 3.1; drawn anew each time a text is seen: Liu et
  al. 2019 (arXiv:1907.11692), section 4.1.

  A random token is one of 0 to V - 2, so never a special one. `real_BT` is True where a token may
  be chosen; U = 2 T + 1; the second result is True where a token is predicted.
  """
  T = tokens_BT.shape[1]
  place_BT, fate_BT, extra_B = uniform_BU[:, :T], uniform_BU[:, T:-1], uniform_BU[:, -1]
  counts_B = (rate * real_BT.sum(axis=1) + extra_B).astype(int)
  order_BT = np.argsort(np.where(real_BT, place_BT, 2.0), axis=1)
  chosen_BT = np.zeros(tokens_BT.shape, bool)
  np.put_along_axis(chosen_BT, order_BT, np.arange(T) < counts_B[:, None], axis=1)
  # Where the token becomes a random one, its fate is uniform on an interval of that length.
  rank_BT = (fate_BT - mask_share) / max(random_share, 1e-9)
  random_BT = (np.clip(rank_BT, 0, 1 - 1e-9) * (vocab_size - 1)).astype(np.int32)
  hidden_BT = np.where(fate_BT < mask_share + random_share, random_BT, tokens_BT)
  hidden_BT[fate_BT < mask_share] = vocab_size
  return np.where(chosen_BT, hidden_BT, tokens_BT), chosen_BT


# --------------------------------------------------------------------------------------- spans


def span_counts(length: int, density: float, span_length: float) -> tuple[int, int]:
  """Counts (hidden tokens, spans) of a text of `length` tokens, as T5 does.

  Raffel et al. 2019 (arXiv:1910.10683), section 3.1.4. No more spans than there is text to keep
  them apart.
  """
  length = max(length, 2)
  noise = min(max(round(length * density), 1), length - 1)
  return noise, min(max(round(noise / span_length), 1), noise, length - noise)


def span_lengths(length: int, density: float, span_length: float) -> tuple[int, int]:
  """Computes the lengths of (inputs, targets) of a text of `length` tokens, each with its eos."""
  noise, spans = span_counts(length, density, span_length)
  return length - noise + spans + 1, noise + spans + 1


@functools.cache
def text_length(input_length: int, density: float, span_length: float) -> int:
  """Finds the longest text [tokens] whose inputs are no longer than `input_length`."""
  length = 1
  while span_lengths(length + 1, density, span_length)[0] <= input_length:
    length += 1
  return length


def composition(uniform_BM: np.ndarray, parts: int) -> np.ndarray:
  """Cuts M + 1 items into parts of at least one, every way equally likely: lengths [B, parts]."""
  B, M = uniform_BM.shape
  cuts_BK = np.sort(np.argsort(uniform_BM, axis=1)[:, : parts - 1], axis=1) + 1
  return np.diff(np.pad(cuts_BK, ((0, 0), (1, 1)), constant_values=(0, M + 1)), axis=1)


def corrupt_spans(
  text_BN, uniform_BU, density: float, span_length: float, sentinel: int, eos: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts spans out of a text: kept k0 s0 k1 s1 ... eos, hidden s0 h0 s1 h1 ... eos.

  The text is cut into as many kept as hidden pieces, in turn and starting with a kept one, their
  lengths drawn by `composition`. A single span lies anywhere, as where UL2 rolls its masks. The
  sentinel of span i is `sentinel - i`. U >= N - 2. Returns inputs_BS and targets_BT.
  """
  B, N = text_BN.shape
  noise, spans = span_counts(N, density, span_length)
  tail_B1 = np.zeros((B, 1), int)  # what is kept after the last span
  hidden_BK = composition(uniform_BU[:, : noise - 1], spans)
  kept_BK = composition(uniform_BU[:, noise - 1 : N - 2], spans)
  if spans == 1 < N - noise:  # else it would be the end of each text; `hidden_BK` drew nothing
    kept_BK = (uniform_BU[:, :1] * (N - noise + 1)).astype(int)
    tail_B1 = N - noise - kept_BK
  lengths_BK2 = np.stack([kept_BK, hidden_BK], axis=2)
  lengths_BM = np.append(lengths_BK2.reshape(B, 2 * spans), tail_B1, axis=1)
  pattern_M = np.append(np.tile([False, True], spans), False)
  noise_BN = np.repeat(np.tile(pattern_M, B), lengths_BM.ravel()).reshape(B, N)
  starts_BK = np.cumsum(lengths_BM, axis=1)[:, 0:-1:2]
  first_BN = np.zeros((B, N), bool)
  np.put_along_axis(first_BN, starts_BK, True, axis=1)
  marked_BN = text_BN.copy()
  np.put_along_axis(marked_BN, starts_BK, sentinel - np.arange(spans)[None], axis=1)
  # Every row keeps equally many places, so what is selected is a rectangle again.
  inputs_BS = marked_BN[first_BN | ~noise_BN].reshape(B, N - noise + spans)
  both_BN2 = np.stack([marked_BN, text_BN], axis=2)
  targets_BT = both_BN2[np.stack([first_BN, noise_BN], axis=2)].reshape(B, noise + spans)
  end_B1 = np.full((B, 1), eos, text_BN.dtype)
  return np.append(inputs_BS, end_B1, axis=1), np.append(targets_BT, end_B1, axis=1)


def cut_suffix(
  text_BN: np.ndarray, uniform_B: np.ndarray, shortest: int, longest: int, sentinel: int, eos: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Cuts off the end of a text: kept s0 eos, suffix: s0 suffix eos; eos fills both up.

  Every length of a suffix from `shortest` to `longest` [tokens] is equally likely. Inputs and
  targets are (B, N + 2); the third result is the length of each suffix.
  """
  N = text_BN.shape[1]
  suffix_B = shortest + (uniform_B * (longest - shortest + 1)).astype(int)
  start_B1 = N - suffix_B[:, None]
  index_1M = np.arange(N + 2)[None]
  padded_BM = np.pad(text_BN, ((0, 0), (0, 2)), constant_values=eos)
  inputs_BM = np.where(index_1M < start_B1, padded_BM, eos)
  np.put_along_axis(inputs_BM, start_B1, sentinel, axis=1)
  targets_BM = np.take_along_axis(padded_BM, np.minimum(start_B1 + index_1M - 1, N), axis=1)
  targets_BM[:, 0] = sentinel
  return inputs_BM, targets_BM, suffix_B
