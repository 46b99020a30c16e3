"""The losses of a batch, in jax.

An objective's loss is a dict of entries, each a value and a weight for every position (or every
sequence). Their (sum, weight) pairs are divided once, after every sum over microbatches and
devices.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from model import ops
from model.transformer import Head, Source, Transformer

Batch = Mapping[str, Array]
Entries = dict[str, tuple[Array, Array]]  # (value, weight) of each BT, or of each B
Sums = dict[str, tuple[Array, Array]]  # (sum, weight)

LOSS = "loss"  # the entry that is minimised [nats per predicted token]


def cross_entropy(logits_XV: Array, targets_X: Array) -> tuple[Array, Array]:
  """Computes -log softmax(logits)[target] at each position [nats], and log Z."""
  log_z_X = jax.nn.logsumexp(logits_XV, axis=-1)
  target_logits_X = jnp.sum(jnp.where(_is_target(targets_X, logits_XV), logits_XV, 0.0), axis=-1)
  return log_z_X - target_logits_X, log_z_X


def cross_entropy_in_one_pass(logits_XV: Array, targets_X: Array) -> tuple[Array, Array]:
  """Computes `cross_entropy` with one read of the logits; it has no derivative.

  The maximum, the sum of exponentials relative to it, and the target's logit are one reduction
  (Milakov & Gimelshein 2018, arXiv:1805.02867); XLA reads the logits three times for them.
  """

  def merge(a, b):
    (max_a, sum_a, target_a), (max_b, sum_b, target_b) = a, b
    top = jnp.maximum(max_a, max_b)
    total = sum_a * jnp.exp(max_a - top) + sum_b * jnp.exp(max_b - top)
    return top, total, target_a + target_b

  target_logits_XV = jnp.where(_is_target(targets_X, logits_XV), logits_XV, 0.0)
  lowest, zero = jnp.float32(jnp.finfo(jnp.float32).min), jnp.float32(0)
  max_X, sum_X, target_logits_X = jax.lax.reduce(
    (logits_XV, jnp.ones_like(logits_XV), target_logits_XV),
    (lowest, zero, zero),
    merge,
    (logits_XV.ndim - 1,),
  )
  log_z_X = max_X + jnp.log(sum_X)
  return log_z_X - target_logits_X, log_z_X


def _is_target(targets_X: Array, logits_XV: Array) -> Array:
  """Compares each id with the target, XV: a gather's gradient would be a scatter, slow on a CPU."""
  shape = logits_XV.shape
  return targets_X[..., None] == jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)


def chunked_cross_entropy(
  x_ND: Array, kernel_DV: Array, bias_V, targets_N: Array, dtype, num_chunks: int
) -> tuple[Array, Array]:
  """Computes `cross_entropy` of the logits x W + b, one chunk of the tokens at a time.

  The backward pass computes the logits of each chunk again instead of keeping them, and sums the
  gradients of W and b over chunks in float32: a third more products of the head, for 1/num_chunks
  of the memory of its logits. `num_chunks` need not divide N.
  """
  N, D = x_ND.shape
  x_ND = x_ND.astype(jnp.float32)  # and so its gradient
  padding = -N % num_chunks  # is given no cotangent, and so adds nothing to the gradients
  x_XND = jnp.pad(x_ND, ((0, padding), (0, 0))).reshape(num_chunks, -1, D)
  targets_XN = jnp.pad(targets_N, (0, padding)).reshape(num_chunks, -1)
  nll_XN, log_z_XN = _chunked(x_XND, kernel_DV, bias_V, targets_XN, dtype)
  return nll_XN.reshape(-1)[:N], log_z_XN.reshape(-1)[:N]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunked(x_XND, kernel_DV, bias_V, targets_XN, dtype):
  return _chunked_forward(x_XND, kernel_DV, bias_V, targets_XN, dtype)[0]


def _chunked_forward(x_XND, kernel_DV, bias_V, targets_XN, dtype):
  x_XND, operand_DV = x_XND.astype(dtype), kernel_DV.astype(dtype)

  def losses_of(chunk):
    x_ND, targets_N = chunk
    losses = cross_entropy if ops.platform() == "cpu" else cross_entropy_in_one_pass
    return losses(ops.logits(x_ND, operand_DV, bias_V, dtype), targets_N)

  nll_XN, log_z_XN = jax.lax.map(losses_of, (x_XND, targets_XN))
  return (nll_XN, log_z_XN), (x_XND, kernel_DV, bias_V, targets_XN, log_z_XN)


def _chunked_backward(dtype, residuals, cotangents):
  x_XND, kernel_DV, bias_V, targets_XN, log_z_XN = residuals
  operand_DV = kernel_DV.astype(dtype)

  def add_gradients(sums, chunk):
    x_ND, targets_N, log_z_N, dnll_N, dlog_z_N = chunk
    operands = jax.tree.map(lambda x: x.astype(jnp.float32), (x_ND, operand_DV, bias_V))
    logits_NV, pull = jax.vjp(lambda x, w, b: ops.logits(x, w, b, dtype), *operands)
    p_NV = jnp.exp(logits_NV - log_z_N[:, None])
    dtarget_NV = jnp.where(_is_target(targets_N, p_NV), dnll_N[:, None], 0.0)
    dx_ND, *grads = pull((dnll_N + dlog_z_N)[:, None] * p_NV - dtarget_NV)
    return jax.tree.map(jnp.add, sums, tuple(grads)), dx_ND

  weights = (kernel_DV, bias_V)
  zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
  sums, dx_XND = jax.lax.scan(add_gradients, zeros, (x_XND, targets_XN, log_z_XN, *cotangents))
  dkernel_DV, dbias_V = jax.tree.map(lambda w, g: g.astype(w.dtype), weights, sums)
  return dx_XND, dkernel_DV, dbias_V, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def language_model_loss(
  model: Transformer, batch: Batch, keys_B, segments: str, coefficients: Mapping[str, float]
) -> Entries:
  """Computes the cross-entropy of every target, and the z-loss where it has a coefficient.

  z_loss is log^2 Z, which keeps logits from drifting (Chowdhery et al. 2022, arXiv:2204.02311).
  """
  nll_BT, log_z_BT = token_losses(model, batch, segments, keys_B)
  entries = {LOSS: (nll_BT, batch["weights_BT"])}
  if "z_loss" in coefficients:
    entries["z_loss"] = jnp.square(log_z_BT), batch["weights_BT"]
  return entries


def token_losses(
  model: Transformer, batch: Batch, segments: str, keys_B: Array | None = None
) -> tuple[Array, Array]:
  """Computes nll_BT [nats], and log_z_BT, the log of the softmax's denominator.

  `segments` says what attention stays inside of: "documents", "text" (only padding is hidden, which
  ends a row), or "" (everything is one segment).
  """
  read = {name: x for name, x in batch.items() if segments or "segments" not in name}
  source = None
  if "source_BS" in read:
    optional = (read.get(f"source_{name}_BS") for name in ("segments", "positions"))
    source = Source(read["source_BS"], *optional)
  x_BTD = model.hidden(
    read["inputs_BT"],
    read.get("segments_BT"),
    read.get("positions_BT"),
    prefix_BT=read.get("prefix_BT"),
    source=source,
    keys_B=keys_B,
    right_padded=segments == "text",
  )
  table_VD = model.embedding.table[...]
  return head_losses(model.head, x_BTD, table_VD, batch["targets_BT"], model.logits_at_once)


def head_losses(
  head: Head, x_BTD: Array, table_VD: Array, targets_BT: Array, logits_at_once: int
) -> tuple[Array, Array]:
  """Computes nll_BT and log_z_BT of the head's logits, at most `logits_at_once` at a time."""
  num_chunks = ops.loss_chunks(targets_BT.size, table_VD.shape[0], logits_at_once)
  if num_chunks == 1:
    return cross_entropy(head(x_BTD, table_VD), targets_BT)
  operands = head.operands(x_BTD, table_VD)
  nll_N, log_z_N = chunked_cross_entropy(*operands, targets_BT.reshape(-1), head.dtype, num_chunks)
  return nll_N.reshape(targets_BT.shape), log_z_N.reshape(targets_BT.shape)


def sums(entries: Entries) -> Sums:
  """Sums entries over the batch."""
  return {name: (jnp.sum(x * weight), jnp.sum(weight)) for name, (x, weight) in entries.items()}


def sequence_sums(entries: Entries) -> Sums:
  """Sums entries over the positions of each sequence: sum_B and weight_B."""

  def sum_B(x: Array) -> Array:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))

  return {name: (sum_B(x * weight), sum_B(weight)) for name, (x, weight) in entries.items()}
