"""The loss on the held-out tokens, which are the same for every run."""

import itertools
import math
from collections.abc import Iterable

import jax
import numpy as np
from ml_collections import ConfigDict

from train.data import dataset
from train.data.batches import eval_token_count, validation_batches
from train.objectives import registry
from train.objectives.registry import Batch
from train.step import Program, TrainState
from train.system import distributed

KEPT_BYTES = 256 << 20  # of validation batches that are kept from run to run

_kept: dict[str, list[Batch]] = {}  # the newest validation set, by all that decides it


def validation_set(
  tokens: dataset.TokenData, config: ConfigDict, process_index: int = 0, process_count: int = 1
) -> Iterable[Batch]:
  """Makes the validation batches; small sets are kept for the next run of the process."""
  train = config.train
  decides = (config.objective, config.data, config.corruption, config.model.family)
  evaluated = (tokens.fingerprint, tokens.tokenizer_hash, train.eval_tokens, train.eval_batch_size)
  key = repr((*decides, *evaluated, process_index, process_count))
  if key not in _kept:
    batches = validation_batches(tokens, config, process_index, process_count)
    first = next(batches)
    windows = eval_token_count(tokens, config) / registry.lengths(config).text
    n_bytes = sum(x.nbytes for x in first.values()) * windows / train.eval_batch_size
    if n_bytes > KEPT_BYTES:
      return itertools.chain([first], batches)
    _kept.clear()
    _kept[key] = [first, *batches]
  return _kept[key]


def evaluate(
  functions: Program, state: TrainState, tokens: dataset.TokenData, config: ConfigDict
) -> dict[str, float]:
  """Evaluates a state on the fixed held-out tokens.

  Returns:
    loss [nats per predicted token], its standard error (over sequences), bits_per_byte (of the
    predicted tokens' text; special ids have none), eval_tokens (predicted).
  """
  nll, weight, n_bytes = [], [], 0
  bytes_V = np.zeros(registry.vocab_size(config, tokens.vocab_size), int)
  bytes_V[: tokens.vocab_size] = tokens.token_bytes_V
  for batch in validation_set(tokens, config, jax.process_index(), jax.process_count()):
    nll_B, weight_B = functions.evaluate(state.params, functions.place(batch))
    nll.append(nll_B)
    weight.append(weight_B)
    n_bytes += int(np.sum(bytes_V[batch["targets_BT"]] * batch["weights_BT"]))  # of this host
  nll_S = np.concatenate([np.asarray(x, np.float64) for x in nll])
  weight_S = np.concatenate([np.asarray(x, np.float64) for x in weight])
  nll_S, weight_S = nll_S[weight_S > 0], weight_S[weight_S > 0]
  loss, n_bytes = nll_S.sum() / weight_S.sum(), distributed.sum_over_processes(n_bytes)
  n = len(nll_S)
  variance = np.sum((nll_S - loss * weight_S) ** 2) * n / max(1, n - 1)
  return {
    "loss": float(loss),
    "loss_stderr": float(np.sqrt(variance) / weight_S.sum()),
    "bits_per_byte": float(nll_S.sum() / math.log(2) / max(1, n_bytes)),
    "eval_tokens": int(weight_S.sum()),
  }
