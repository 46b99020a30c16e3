"""Batches, each a pure function of (seed, step), and the fixed validation set."""

import functools
import itertools
from collections.abc import Generator, Iterator
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs.errors import ConfigError
from train.data.dataset import TokenData
from train.objectives import corruption, registry
from train.objectives.objective import Batch

# Streams of random numbers of one seed (see `corruption.uniform`); from SHUFFLE on, one an epoch.
TRAINING, VALIDATION, SHUFFLE = 0, 1, 2


def check_tokens(config: ConfigDict, data: TokenData) -> None:
  """Refuses a run that its data cannot feed.

  Raises:
    ConfigError: a sequence is longer than the training split, nothing is left to evaluate, or D
      repeats the data more than `data.max_epochs` times.
  """
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

  Raises:
    ConfigError: n does not divide B.
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
  """Yields the validation set: the first tokens of the validation stream, always in this order.

  There are `eval_token_count` tokens of text, whatever the batch and the sequence length; what
  fills up the last batch has weight 0. What is hidden of them is the same for every seed.
  """
  size = config.train.eval_batch_size
  rows = _rows("train.eval_batch_size", size, process_index, process_count)
  windows = _windows(data, data.validation_tokens, config, eval_token_count(data, config))
  for first in range(0, len(windows.starts_W) - 1, size):
    windows_B = np.arange(first + rows.start, first + rows.stop)
    chance = (0, VALIDATION, first + rows.start)
    yield _batch(windows, windows_B, config, data.vocab_size, chance)


def eval_token_count(data: TokenData, config: ConfigDict) -> int:
  """Returns the tokens of text that are evaluated: `train.eval_tokens`, or all if there are fewer.

  Raises:
    ConfigError: the objective evaluates whole windows, and they are not enough for one.
  """
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
  windows: Windows,
  windows_B: np.ndarray,
  config: ConfigDict,
  vocab_size: int,
  chance: tuple[int, int, int],
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
