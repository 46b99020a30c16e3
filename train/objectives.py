"""What a model is trained to predict.

An objective maps a model and a batch to one negative log-likelihood per position, in nats. A loss
is then a (sum, weight) pair, and is divided once, after every sum over microbatches and devices.

A batch is a dict: `inputs_BT`, `targets_BT`, `segments_BT`, `positions_BT` (int32) and `weights_BT`
(float32, 0 where nothing is predicted).
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

Batch = Mapping[str, jax.Array]
Objective = Callable[[Callable[..., jax.Array], Batch, FrozenConfigDict], jax.Array]


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
  """Returns -log softmax(logits)[target], per position [nats].

  The label's logit is read by comparison instead of a gather: its gradient is then a fused
  subtraction, where a gather's is a scatter (slow on a CPU).
  """
  log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  vocab_11V = jnp.arange(logits_BTV.shape[-1])[None, None, :]
  hit_BTV = targets_BT[..., None] == vocab_11V
  return log_z_BT - jnp.sum(jnp.where(hit_BTV, logits_BTV, 0.0), axis=-1)


def clm(model: Callable[..., jax.Array], batch: Batch, data: FrozenConfigDict) -> jax.Array:
  """Causal language modelling: every token from those before it in its document.

  Args:
    model: maps (tokens_BT, segments_BT, positions_BT) to logits_BTV.
    batch: see the module's docstring; `inputs_BT` is `targets_BT` shifted right.
    data: `config.data`; without `isolate_documents` attention crosses document boundaries.

  Returns:
    nll_BT [nats].
  """
  segments_BT = batch["segments_BT"] if data.isolate_documents else None
  logits_BTV = model(batch["inputs_BT"], segments_BT, batch["positions_BT"])
  return cross_entropy(logits_BTV, batch["targets_BT"])


OBJECTIVES: dict[str, Objective] = {"clm": clm}


def get(name: str) -> Objective:
  """Returns the objective of that name.

  Raises:
    ValueError: there is none.
  """
  if name not in OBJECTIVES:
    raise ValueError(f"objective={name!r}: unknown; choose one of {sorted(OBJECTIVES)}")
  return OBJECTIVES[name]
