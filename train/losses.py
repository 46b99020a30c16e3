"""The loss of a batch, in jax: one function for every objective.

A loss is a (sum, weight) pair over the predicted positions, and is divided once, after every sum
over microbatches and devices.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from model.transformer import Source

Batch = Mapping[str, jax.Array]


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns -log softmax(logits)[target], per position [nats], and log Z.

  The label's logit is read by comparison instead of a gather: its gradient is then a fused
  subtraction, where a gather's is a scatter (slow on a CPU).
  """
  log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  vocab_11V = jnp.arange(logits_BTV.shape[-1])[None, None, :]
  hit_BTV = targets_BT[..., None] == vocab_11V
  return log_z_BT - jnp.sum(jnp.where(hit_BTV, logits_BTV, 0.0), axis=-1), log_z_BT


def token_losses(
  model: Callable[..., jax.Array], batch: Batch, segments: bool, keys_B: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns the loss of every position, of which those with `weights_BT` 0 are to be ignored.

  Args:
    model: a transformer, called as `model.transformer.Transformer`.
    batch: see `train.objectives`.
    segments: attention stays inside a segment. False: all that it could see is one segment.
    keys_B: of the dropout; None: there is none.

  Returns:
    nll_BT [nats], and log_z_BT, the log of the softmax's denominator.
  """

  def part(name: str) -> jax.Array | None:
    return batch.get(name) if segments or "segments" not in name else None

  source = None
  if "source_BS" in batch:
    source = Source(batch["source_BS"], part("source_segments_BS"), part("source_positions_BS"))
  logits_BTV = model(
    batch["inputs_BT"],
    part("segments_BT"),
    part("positions_BT"),
    prefix_BT=part("prefix_BT"),
    source=source,
    keys_B=keys_B,
  )
  return cross_entropy(logits_BTV, batch["targets_BT"])


def sums(nll_BT: jax.Array, weights_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the loss of a batch as (sum, weight)."""
  return jnp.sum(nll_BT * weights_BT), jnp.sum(weights_BT)
