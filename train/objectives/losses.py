"""The loss of a batch, in jax: one function for every objective.

A loss is a (sum, weight) pair over the predicted positions, and is divided once, after every sum
over microbatches and devices.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from model import accounting, layers, transformer
from model.transformer import Head, Source, Transformer

Batch = Mapping[str, jax.Array]


def cross_entropy(logits_XV: jax.Array, targets_X: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns -log softmax(logits)[target], per position [nats], and log Z.

  The label's logit is read by comparison instead of a gather: its gradient is then a fused
  subtraction, where a gather's is a scatter (slow on a CPU).
  """
  log_z_X = jax.nn.logsumexp(logits_XV, axis=-1)
  hit_XV = _hits(targets_X, logits_XV.shape)
  return log_z_X - jnp.sum(jnp.where(hit_XV, logits_XV, 0.0), axis=-1), log_z_X


def cross_entropy_in_a_pass(
  logits_XV: jax.Array, targets_X: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns what `cross_entropy` does, reading the logits once; it has no derivative.

  The maximum, the sum of exponentials relative to it, and the label's logit are one reduction
  (Milakov & Gimelshein 2018, arXiv:1805.02867); XLA reads the logits three times for them.
  """
  ones_XV = jnp.ones_like(logits_XV)
  labels_XV = jnp.where(_hits(targets_X, logits_XV.shape), logits_XV, 0.0)

  def merged(a, b):
    (max_a, sum_a, label_a), (max_b, sum_b, label_b) = a, b
    top = jnp.maximum(max_a, max_b)
    total = sum_a * jnp.exp(max_a - top) + sum_b * jnp.exp(max_b - top)
    return top, total, label_a + label_b

  lowest, zero = jnp.float32(jnp.finfo(jnp.float32).min), jnp.float32(0)
  top_X, total_X, label_X = jax.lax.reduce(
    (logits_XV, ones_XV, labels_XV), (lowest, zero, zero), merged, (logits_XV.ndim - 1,)
  )
  log_z_X = top_X + jnp.log(total_X)
  return log_z_X - label_X, log_z_X


def _hits(targets_X: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns where the vocabulary's ids are the targets', XV."""
  return targets_X[..., None] == jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)


def cross_entropy_in_turn(
  x_ND: jax.Array,
  kernel_DV: jax.Array,
  bias_V: jax.Array | None,
  targets_N: jax.Array,
  dtype: jnp.dtype,
  turns: int,
) -> tuple[jax.Array, jax.Array]:
  """Returns what `cross_entropy` does of the logits x W + b, which never exist all at once.

  Tokens take turns. The backward pass makes the logits of each turn again, instead of keeping them,
  and sums the gradients of W and b over turns in float32: a third more products of the head, for
  room of 1/turns of its logits.

  Args:
    x_ND: see `transformer.Head.operands`, as for the next two.
    kernel_DV: W.
    bias_V: b, or None.
    targets_N: ids.
    dtype: of the products' operands.
    turns: how many; the tokens need not divide.
  """
  N, D = x_ND.shape
  x_ND = x_ND.astype(jnp.float32)  # and so its gradient
  padding = -N % turns  # is given no cotangent, and so adds nothing to the gradients
  x_XND = jnp.pad(x_ND, ((0, padding), (0, 0))).reshape(turns, -1, D)
  targets_XN = jnp.pad(targets_N, (0, padding)).reshape(turns, -1)
  nll_XN, log_z_XN = _in_turn(x_XND, kernel_DV, bias_V, targets_XN, dtype)
  return nll_XN.reshape(-1)[:N], log_z_XN.reshape(-1)[:N]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _in_turn(x_XND, kernel_DV, bias_V, targets_XN, dtype):
  return _in_turn_forward(x_XND, kernel_DV, bias_V, targets_XN, dtype)[0]


def _in_turn_forward(x_XND, kernel_DV, bias_V, targets_XN, dtype):
  x_XND, operand_DV = x_XND.astype(dtype), kernel_DV.astype(dtype)

  def turn(part):
    x_ND, targets_N = part
    losses = cross_entropy if layers.platform() == "cpu" else cross_entropy_in_a_pass
    return losses(transformer.logits(x_ND, operand_DV, bias_V, dtype), targets_N)

  nll_XN, log_z_XN = jax.lax.map(turn, (x_XND, targets_XN))
  return (nll_XN, log_z_XN), (x_XND, kernel_DV, bias_V, targets_XN, log_z_XN)


def _in_turn_backward(dtype, residuals, cotangents):
  x_XND, kernel_DV, bias_V, targets_XN, log_z_XN = residuals
  operand_DV = kernel_DV.astype(dtype)
  wide = functools.partial(jax.tree.map, lambda x: x.astype(jnp.float32))  # and so the gradients

  def turn(sums, part):
    x_ND, targets_N, log_z_N, dnll_N, dlog_z_N = part
    logits_NV, pull = jax.vjp(
      lambda x, w, b: transformer.logits(x, w, b, dtype), *wide((x_ND, operand_DV, bias_V))
    )
    p_NV = jnp.exp(logits_NV - log_z_N[:, None])
    hit_NV = _hits(targets_N, p_NV.shape)
    dlogits_NV = (dnll_N + dlog_z_N)[:, None] * p_NV - jnp.where(hit_NV, dnll_N[:, None], 0.0)
    dx_ND, *grads = pull(dlogits_NV)
    return jax.tree.map(jnp.add, sums, tuple(grads)), dx_ND

  weights = (kernel_DV, bias_V)
  zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
  sums, dx_XND = jax.lax.scan(turn, zeros, (x_XND, targets_XN, log_z_XN, *cotangents))
  dkernel_DV, dbias_V = jax.tree.map(lambda w, g: g.astype(w.dtype), weights, sums)
  return dx_XND, dkernel_DV, dbias_V, None


_in_turn.defvjp(_in_turn_forward, _in_turn_backward)


def token_losses(
  model: Transformer, batch: Batch, segments: str, keys_B: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns the loss of every position, of which those with `weights_BT` 0 are to be ignored.

  Args:
    model: whose `logits_at_once` decides whether tokens take turns.
    batch: see `train.objectives.registry`.
    segments: what attention is kept inside of: "documents", "text" (only padding is hidden, which
      ends a row), or "" (all that it could see is one segment).
    keys_B: of the dropout; None: there is none.

  Returns:
    nll_BT [nats], and log_z_BT, the log of the softmax's denominator.
  """

  def part(name: str) -> jax.Array | None:
    return batch.get(name) if segments or "segments" not in name else None

  source = None
  if "source_BS" in batch:
    source = Source(batch["source_BS"], part("source_segments_BS"), part("source_positions_BS"))
  x_BTD = model.hidden(
    batch["inputs_BT"],
    part("segments_BT"),
    part("positions_BT"),
    prefix_BT=part("prefix_BT"),
    source=source,
    keys_B=keys_B,
    tail=segments == "text",
  )
  table_VD = model.embedding.table[...]
  return head_losses(model.head, x_BTD, table_VD, batch["targets_BT"], model.logits_at_once)


def head_losses(
  head: Head, x_BTD: jax.Array, table_VD: jax.Array, targets_BT: jax.Array, logits_at_once: int
) -> tuple[jax.Array, jax.Array]:
  """Returns nll_BT and log_z_BT of what the head makes of x, with so many logits at a time."""
  turns = accounting.head_turns(targets_BT.size, table_VD.shape[0], logits_at_once)
  if turns == 1:
    return cross_entropy(head(x_BTD, table_VD), targets_BT)
  operands = head.operands(x_BTD, table_VD)
  losses = cross_entropy_in_turn(*operands, targets_BT.reshape(-1), head.dtype, turns)
  nll_BT, log_z_BT = (x_N.reshape(targets_BT.shape) for x_N in losses)
  return nll_BT, log_z_BT


def sums(nll_BT: jax.Array, weights_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the loss of a batch as (sum, weight)."""
  return jnp.sum(nll_BT * weights_BT), jnp.sum(weights_BT)
