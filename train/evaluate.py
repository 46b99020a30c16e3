"""The loss on the held-out tokens, which are the same for every run."""

import math

import jax
import numpy as np
from ml_collections import ConfigDict

from train.data import dataset
from train.data.batches import validation_batches
from train.objectives import registry
from train.objectives.losses import LOSS
from train.step import Program, TrainState, all_params
from train.system import distributed


def evaluate(
  functions: Program, state: TrainState, tokens: dataset.TokenData, config: ConfigDict
) -> dict[str, float]:
  """Evaluates a state on the fixed held-out tokens.

  Returns:
    each entry of the objective's loss by its name (`loss`: nats per predicted token), and its
    standard error over sequences, NAME_stderr; bits_per_byte (of the predicted tokens' text;
    special ids have none), eval_tokens (predicted).
  """
  params, parts, n_bytes = all_params(state), [], 0
  bytes_V = np.zeros(registry.vocab_size(config, tokens.vocab_size), int)
  bytes_V[: tokens.vocab_size] = tokens.token_bytes_V
  for batch in validation_batches(tokens, config, jax.process_index(), jax.process_count()):
    parts.append(functions.evaluate(params, functions.place(batch)))
    n_bytes += int(np.sum(bytes_V[batch["targets_BT"]] * batch["weights_BT"]))  # of this host
  sums = {
    name: np.concatenate([np.asarray(part[name], np.float64) for part in parts], axis=1)
    for name in parts[0]
  }
  result = {}
  for name, sums_2S in sums.items():
    result[name], result[f"{name}_stderr"] = ratio(*sums_2S)
  nats, predicted = sums[LOSS].sum(axis=1)
  n_bytes = distributed.sum_over_processes(n_bytes)
  return result | {
    "bits_per_byte": float(nats / math.log(2) / max(1, n_bytes)),
    "eval_tokens": int(predicted),
  }


def ratio(sum_S: np.ndarray, weight_S: np.ndarray) -> tuple[float, float]:
  """Divides a sum over sequences by its weight; returns the quotient and its standard error."""
  sum_S, weight_S = sum_S[weight_S > 0], weight_S[weight_S > 0]
  n, total = len(sum_S), weight_S.sum()
  quotient = sum_S.sum() / total
  variance = np.sum((sum_S - quotient * weight_S) ** 2) * n / max(1, n - 1)
  return float(quotient), float(np.sqrt(variance) / total)
