"""The loss on the held-out tokens, which are the same for every run."""

import math

import jax
import numpy as np
from ml_collections import ConfigDict

from train.data import dataset
from train.data.batches import validation_batches
from train.objectives import registry
from train.step import Program, TrainState
from train.system import distributed


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
  for batch in validation_batches(tokens, config, jax.process_index(), jax.process_count()):
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
