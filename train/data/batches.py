"""Batches, each a pure function of (seed, step), and the fixed validation set."""

import bisect
import functools
import itertools
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs.errors import ConfigError, DataError
from train.data.dataset import TokenData
from train.objectives import corruption, registry
from train.objectives.objective import Batch

# Streams of random numbers of one seed (see `corruption.uniform`); from SHUFFLE on, one an epoch.
TRAINING, VALIDATION, SHUFFLE = 0, 1, 2

SHARE = 0.02  # the largest part of an evaluation that one document may be
GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, lie evenly in [0, 1)


def check_tokens(config: ConfigDict, data: TokenData) -> None:
  """Raises ConfigError where the data cannot feed a run."""
  text, count = registry.lengths(config).text, data.train_token_count
  if not 0 < text <= count:
    raise ConfigError(
      f"data.seq_len={config.data.seq_len:,}: must be 1 to {count:,}, the training tokens of "
      f"{data.source}"
    )
  eval_token_count(data, config)
  epochs = config.train.tokens / count
  if epochs > config.data.max_epochs:
    raise ConfigError(
      f"train.tokens={config.train.tokens:,}: {epochs:.1f} epochs of the {count:,} training tokens "
      f"of {data.source}, more than data.max_epochs={config.data.max_epochs:g}; "
      "train on fewer tokens or add text"
    )


def check_predictions(data: TokenData, config: ConfigDict, train: bool = True) -> None:
  """Raises DataError where nothing is predicted: evaluated, or trained in the first 1000 steps."""
  parts = {"evaluated": validation_batches(data, config)}
  if train:
    parts["trained"] = itertools.islice(train_batches(data, config), 1000)
  for what, batches in parts.items():
    if not any(batch["weights_BT"].any() for batch in batches):
      raise DataError(
        f"objective={config.objective!r}: nothing is predicted in the text that is {what} on, of "
        f"{data.source}; are its prompts longer than data.seq_len={config.data.seq_len}, or is "
        "what the objective hides (corruption.*) too little?"
      )


def train_batches(
  data: TokenData,
  config: ConfigDict,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Generator[Batch, None, None]:
  """Yields the batch of each step from `start_step` on, without end.

  The stream is cut into windows, one a sequence, which are shuffled anew in each epoch. Process i
  of n gets rows [i B/n, (i+1) B/n) of what the objective makes of a step's B windows.
  """
  batch_size = config.data.batch_size
  rows = _rows("data.batch_size", batch_size, process_index, process_count)
  count = data.train_token_count // registry.lengths(config).text
  windows = _windows(data, data.train_tokens, config, data.train_token_count)

  @functools.lru_cache(maxsize=1)
  def order(epoch: int) -> np.ndarray:  # 8 bytes a window
    uniform_1W = corruption.uniform(config.seed, SHUFFLE + epoch, 0, 1, count)
    return np.argsort(uniform_1W[0], kind="stable")

  def batch(step: int) -> Batch:
    first = step * batch_size + rows.start
    epochs_B, index_B = np.divmod(first + np.arange(rows.stop - rows.start), count)
    parts = [order(epoch)[index_B[epochs_B == epoch]] for epoch in np.unique(epochs_B).tolist()]
    chance = (config.seed, TRAINING, first)
    return _batch(windows, np.concatenate(parts), config, data.vocab_size, chance)

  return (batch(step) for step in itertools.count(start_step))


def validation_batches(
  data: TokenData, config: ConfigDict, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
  """Yields the validation set: excerpts of the held-out documents, always in this order.

  They are the same tokens of text, whatever the batch and the sequence length (of objectives that
  evaluate whole sequences: about the same); what fills up the last batch has weight 0. What is
  hidden of them is the same for every seed.
  """
  size = config.train.eval_batch_size
  rows = _rows("train.eval_batch_size", size, process_index, process_count)
  windows = _validation_windows(data, config)[0]
  for first in range(0, len(windows.starts_W) - 1, size):
    windows_B = np.arange(first + rows.start, first + rows.stop)
    chance = (0, VALIDATION, first + rows.start)
    yield _batch(windows, windows_B, config, data.vocab_size, chance)


def validation_documents(data: TokenData, config: ConfigDict) -> np.ndarray:
  """Numbers the document in which each sequence of the validation set begins [S]."""
  documents_W = _validation_windows(data, config)[1]
  return np.pad(documents_W, (0, -len(documents_W) % config.train.eval_batch_size))


def largest_share(data: TokenData, config: ConfigDict) -> float:
  """Returns the largest share of a document in the validation set."""
  if data.pair_length:
    return 1 / len(_validation_windows(data, config)[1])
  lengths = np.diff(_excerpts(data, eval_token_count(data, config)), axis=0)[0]
  return float(lengths.max() / lengths.sum())


def _validation_windows(data: TokenData, config: ConfigDict) -> tuple["Windows", np.ndarray]:
  """Cuts the excerpts into windows; returns them, and the document in which each begins."""
  count = eval_token_count(data, config)
  if data.pair_length:
    windows = _windows(data, data.validation_tokens, config, count)
    return windows, np.arange(len(windows.starts_W) - 1)
  stream, text = data.validation_tokens, registry.lengths(config).text
  starts_D, ends_D = _excerpts(data, count)
  first_R = np.flatnonzero(np.append(True, starts_D[1:] != ends_D[:-1]))  # documents follow on
  starts_R, ends_R = starts_D[first_R], np.append(ends_D[first_R[1:] - 1], ends_D[-1])
  counts_R = -(-(ends_R - starts_R) // text)
  if registry.OBJECTIVES[config.objective].whole_windows:  # which may run into the next document
    counts_R = np.diff(np.cumsum(ends_R - starts_R) // text, prepend=0)
    counts_R[-1] += not counts_R.any()
    ends_R = np.full(len(ends_R), len(stream) - 1)
    starts_R = np.minimum(starts_R, ends_R - counts_R * text)
  nth_W = np.arange(counts_R.sum()) - np.repeat(np.cumsum(counts_R) - counts_R, counts_R)
  starts_W = np.repeat(starts_R, counts_R) + nth_W * text
  ends_W = np.repeat(ends_R, counts_R)
  windows = Windows(stream, np.append(starts_W, ends_W[-1]), np.append(ends_W, ends_W[-1]))
  return windows, np.searchsorted(starts_D, starts_W, "right") - 1


def _excerpts(data: TokenData, limit: int) -> np.ndarray:
  """Chooses what is evaluated of the held-out documents: [2, D], first inputs and last targets.

  Documents are taken in turn until `limit` tokens are. None is more than 2 % of them: of a longer
  one an excerpt is taken, at a place that differs from document to document. If the documents are
  too short for that, fewer tokens are taken, down to half; if they are too few, more of each.
  """
  edges = np.flatnonzero(data.validation_tokens == data.eos)
  lengths_D = np.diff(edges)

  def lacks(limit: float, share: float) -> bool:
    return np.minimum(lengths_D, share * limit).sum() < limit

  shares = [SHARE, *np.arange(SHARE, 1.0, 0.001), 1.0]
  share = next(share for share in shares if not lacks(limit / 2, share))
  limit = bisect.bisect_left(range(1, limit + 1), True, key=lambda x: lacks(x, share))
  taken_D = np.minimum(lengths_D, max(1, int(share * limit)))
  taken_D = np.diff(np.minimum(np.cumsum(taken_D), limit), prepend=0)
  taken_D = taken_D[taken_D > 0]
  lengths_D = lengths_D[: len(taken_D)]
  place_D = np.arange(len(taken_D)) * GOLDEN % 1
  starts_D = edges[: len(taken_D)] + ((lengths_D - taken_D) * place_D).astype(int)
  return np.stack([starts_D, starts_D + taken_D])


def eval_token_count(data: TokenData, config: ConfigDict) -> int:
  """Returns the most tokens of text that are evaluated: `train.eval_tokens`, or all there are."""
  count = min(config.train.eval_tokens, data.validation_token_count)
  if not registry.OBJECTIVES[config.objective].whole_windows:
    return count
  text = registry.lengths(config).text
  if count < text:
    raise ConfigError(
      f"train.eval_tokens={config.train.eval_tokens}: of {data.validation_token_count:,} there "
      f"are, and objective={config.objective!r} evaluates whole sequences of {text:,}; "
      "allow more, hold out more, or shorten data.seq_len"
    )
  return count - count % text


def _rows(field: str, batch_size: int, process_index: int, process_count: int) -> slice:
  """Returns this process's contiguous rows of a batch."""
  if batch_size < 1 or batch_size % process_count:
    raise ConfigError(f"{field}={batch_size}: must be a positive multiple of {process_count} hosts")
  share = batch_size // process_count
  return slice(process_index * share, (process_index + 1) * share)


class Windows(NamedTuple):
  """Where the sequences of a stream lie; after the last comes one without text."""

  stream: np.ndarray
  starts_W: np.ndarray  # the first input of each
  ends_W: np.ndarray  # the last target that it may have


def _windows(data: TokenData, stream: np.ndarray, config: ConfigDict, tokens: int) -> Windows:
  """Cuts the first tokens of a stream into windows; pairs into one each."""
  text = registry.lengths(config).text
  if data.pair_length:
    edges_W = np.flatnonzero(stream == data.eos)[: tokens // text + 1]
    return Windows(stream, edges_W, np.append(edges_W[1:], edges_W[-1]))
  starts_W = np.append(np.arange(0, tokens, text), tokens)
  return Windows(stream, starts_W, np.full(len(starts_W), tokens))


def _batch(
  windows: Windows, windows_B, config, vocab_size: int, chance: tuple[int, int, int]
) -> Batch:
  """Makes the objective's batch of windows, by number; those beyond the last have no text.

  The token after a window is its last target. `chance` is the seed, the stream of random numbers
  and the number of the first sequence.
  """
  objective, text = registry.OBJECTIVES[config.objective], registry.lengths(config).text
  windows_B1 = np.minimum(windows_B, len(windows.starts_W) - 1)[:, None]
  index_BN1 = windows.starts_W[windows_B1] + np.arange(text + 1)
  ends_B1 = windows.ends_W[windows_B1]
  text_BN1 = np.asarray(windows.stream)[np.minimum(index_BN1, ends_B1)].astype(np.int32)
  uniform_BU = corruption.uniform(*chance, len(windows_B), objective.draws(text))
  return objective.batch(text_BN1, index_BN1[:, 1:] <= ends_B1, uniform_BU, config, vocab_size)
