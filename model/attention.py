"""Attention: projections, what a query may see, and the one function that attends."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from model import flash, ops
from model.layers import Linear, Norm
from model.positions import Rotation, rotate

HALVED_FROM = 128  # queries from which on a CPU leaves out what a causal first half does not see

KeysValues = tuple[Array, Array]  # each BSGK


class AttentionMask(NamedTuple):
  """What the queries of an attention see, as far as all of these allow."""

  causal: bool  # a query sees no later key
  mask_BTS: Array | None = None  # True where a query may see a key; None: everywhere
  bias_BHTS: Array | None = None  # added to the scores; its B may be 1
  segments: flash.Segments | None = None  # a query sees the keys of its own; None: all are one
  right_padded: bool = False  # segments only tell padding: 1, and then 0 to the end of the row

  def dense(self) -> "AttentionMask":
    """Returns the same with the segments in `mask_BTS`."""
    if self.segments is None:
      return self
    segments_BT, segments_BS = self.segments
    mask_BTS = segments_BT[:, :, None] == segments_BS[:, None, :]
    if self.mask_BTS is not None:
      mask_BTS = self.mask_BTS & mask_BTS
    return self._replace(mask_BTS=mask_BTS, segments=None)


def segment_mask(
  causal: bool, queries_BT: Array | None, keys_BS: Array | None, right_padded: bool
) -> AttentionMask:
  """Returns the mask of these segments.

  Where only one side has segments, the other is segment 1, and does not see padding.
  """
  if queries_BT is None and keys_BS is None:
    return AttentionMask(causal)
  ones = jnp.ones((1, 1), int)
  segments = ones if queries_BT is None else queries_BT, ones if keys_BS is None else keys_BS
  mask = AttentionMask(causal, segments=segments, right_padded=right_padded)
  return mask.dense() if ops.platform() == "cpu" else mask  # once for all blocks, not in each


def attend(
  q_BTHK, k_BSGK, v_BSGK, mask: AttentionMask, scale: float, dtype, use_flash: bool = True
) -> Array:
  """Returns softmax(scale q k + bias) v, y_BTHK in the dtype of q; `dtype` is the operands'.

  On a CPU by `ops.attention`, elsewhere by flash attention where that serves (`model.flash`), or by
  XLA's. Each of the G heads of keys serves H / G heads of queries (Ainslie et al. 2023).
  """
  platform, result_dtype = ops.platform(), q_BTHK.dtype
  if platform == "cpu":
    return _attend_on_cpu(q_BTHK, k_BSGK, v_BSGK, mask, scale, dtype).astype(result_dtype)
  q_BTHK, k_BSGK, v_BSGK = (x.astype(dtype) for x in (q_BTHK, k_BSGK, v_BSGK))
  if use_flash and mask.mask_BTS is None and mask.bias_BHTS is None:
    segments, shapes = mask.segments is not None, (q_BTHK.shape, k_BSGK.shape)
    if kernel := flash.choose(platform, *shapes, dtype, segments, mask.right_padded):
      y_BTHK = flash.attend(kernel, q_BTHK, k_BSGK, v_BSGK, scale, mask.causal, mask.segments)
      return y_BTHK.astype(result_dtype)
  mask_BTS = mask.dense().mask_BTS
  y_BTHK = jax.nn.dot_product_attention(
    q_BTHK,
    k_BSGK,
    v_BSGK,
    bias=mask.bias_BHTS,
    mask=None if mask_BTS is None else mask_BTS[:, None],
    scale=scale,
    is_causal=mask.causal,
  )
  return y_BTHK.astype(result_dtype)


def _attend_on_cpu(q_BTHK, k_BSGK, v_BSGK, mask, scale, dtype) -> Array:
  """Attends by `ops.attention`, where it is causal in two halves of the queries.

  The first half sees no key of the second, a quarter of the products: 16 to 30 % of attention's
  time (T=128 to 512, K=32 and 64; at T=64 nothing).
  """
  q_BTHK, k_BSGK, v_BSGK = (x.astype(jnp.float32) for x in (q_BTHK, k_BSGK, v_BSGK))
  T, S = q_BTHK.shape[1], k_BSGK.shape[1]
  mask_BTS = mask.dense().mask_BTS
  if mask.causal:
    causal_1TS = jnp.tril(jnp.ones((1, T, S), bool))
    mask_BTS = causal_1TS if mask_BTS is None else causal_1TS & mask_BTS
  mask_B1TS = None if mask_BTS is None else mask_BTS[:, None]
  repeats = q_BTHK.shape[2] // k_BSGK.shape[2]
  if repeats > 1:
    k_BSGK, v_BSGK = (jnp.repeat(x, repeats, axis=2) for x in (k_BSGK, v_BSGK))
  q_BHTK, k_BHSK, v_BHSK = (x.swapaxes(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
  parts = [(0, T, S)]  # first query, end of the queries, keys that they see
  if mask.causal and T == S >= HALVED_FROM:
    parts = [(0, T // 2, T // 2), (T // 2, T, T)]
  y_BHTK = [
    ops.attention(
      q_BHTK[:, :, first:end],
      k_BHSK[:, :, :seen],
      v_BHSK[:, :, :seen],
      None if mask_B1TS is None else mask_B1TS[:, :, first:end, :seen],
      None if mask.bias_BHTS is None else mask.bias_BHTS[:, :, first:end, :seen],
      scale,
      dtype,
    )
    for first, end, seen in parts
  ]
  return jnp.concatenate(y_BHTK, axis=2).swapaxes(1, 2)


class Attention(nnx.Module):
  """Multi-head attention, of a sequence to itself or to another one."""

  def __init__(self, c: ConfigDict, residual: float, *, rngs: nnx.Rngs):
    K = c.head_width
    self.heads, self.kv_heads, self.flash = c.heads, c.kv_heads, c.flash
    # Scores that are not scaled are made so by the query's weights (Raffel et al. 2020).
    query_scale = 1.0 if c.scale_attention else 1 / K
    biases = {"biases": c.biases or c.attention_biases}
    linear = functools.partial(Linear, ConfigDict(dict(c) | biases), rngs=rngs)
    self.query = linear(c.width, c.heads * K, scale=query_scale)
    self.key = linear(c.width, c.kv_heads * K)
    self.value = linear(c.width, c.kv_heads * K)
    self.out = linear(c.heads * K, c.width, scale=residual)
    self.query_norm = Norm(c, K) if c.qk_norm else None
    self.key_norm = Norm(c, K) if c.qk_norm else None
    power = 1.0 if c.width_scaling == "mup" else 0.5  # mup: q and k align, their product grows as K
    self.scale = K**-power if c.scale_attention else 1.0

  def keys_values(self, x_BSD: Array, rotation: Rotation | None = None) -> KeysValues:
    """Returns the keys and values of a sequence, the keys rotated to their positions."""
    k_BSGK, v_BSGK = (
      f(x_BSD).reshape(*x_BSD.shape[:2], self.kv_heads, -1) for f in (self.key, self.value)
    )
    if self.key_norm is not None:
      k_BSGK = self.key_norm(k_BSGK)
    return (k_BSGK if rotation is None else rotate(k_BSGK, rotation)), v_BSGK

  def __call__(
    self,
    x_BTD: Array,
    keys_values: KeysValues,
    mask: AttentionMask,
    rotation: Rotation | None = None,
  ) -> Array:
    """Returns y_BTD; `rotation` is that of the queries."""
    q_BTHK = self.query(x_BTD).reshape(*x_BTD.shape[:2], self.heads, -1)
    if self.query_norm is not None:
      q_BTHK = self.query_norm(q_BTHK)
    if rotation is not None:
      q_BTHK = rotate(q_BTHK, rotation)
    y_BTHK = attend(q_BTHK, *keys_values, mask, self.scale, self.out.dtype, self.flash)
    return self.out(y_BTHK.reshape(*x_BTD.shape[:2], -1))
