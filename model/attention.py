"""Attention: projections, what a query may see, positions, and the one function that attends."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from model import flash, layers
from model.layers import Dense, Norm, transposed

HALVED_FROM = 128  # queries from which on a CPU leaves out what a causal first half does not see
UNSEEN = -1e30  # a score; finite, so that a padding query that sees nothing gives no NaN

Rotation = tuple[jax.Array, jax.Array]


def rotation(positions_BT: jax.Array, head_width: int, base: float) -> Rotation:
  """Returns (cos, sin) of the rotary angles, each BT1K; the first half of the sines is negated."""
  rates_J = base ** -(jnp.arange(head_width // 2) * 2 / head_width)
  angles_BT1J = (positions_BT[..., None] * rates_J[None, None])[:, :, None]
  cos_BT1J, sin_BT1J = jnp.cos(angles_BT1J), jnp.sin(angles_BT1J)
  return jnp.concatenate([cos_BT1J] * 2, axis=-1), jnp.concatenate([-sin_BT1J, sin_BT1J], axis=-1)


def rotate(x_BTHK: jax.Array, rotation: Rotation) -> jax.Array:
  """Rotates the pairs (i, i + K/2) of each head by angles proportional to the position.

  The product of a rotated query and a rotated key depends on the difference of their positions
  (Su et al. 2021, arXiv:2104.09864; the half-split layout of Llama).
  """
  cos_BT1K, sin_BT1K = rotation
  y_BTHK = x_BTHK * cos_BT1K + jnp.roll(x_BTHK, x_BTHK.shape[-1] // 2, axis=-1) * sin_BT1K
  return y_BTHK.astype(x_BTHK.dtype)


def relative_bucket(distance: jax.Array, buckets: int, longest: int, causal: bool) -> jax.Array:
  """Returns the bucket of key position - query position (Raffel et al. 2020, arXiv:1910.10683).

  Half of the buckets are single distances, the other half grow logarithmically up to `longest`.
  Without causality keys after the query have the upper half of all buckets.
  """
  side: jax.Array | int = 0
  if causal:
    distance = jnp.maximum(-distance, 0)
  else:
    buckets //= 2
    side = jnp.where(distance > 0, buckets, 0)
    distance = jnp.abs(distance)
  single = buckets // 2
  ratio = jnp.log(jnp.maximum(distance, single) / single) / math.log(longest / single)
  grown = jnp.minimum(single + (ratio * (buckets - single)).astype(jnp.int32), buckets - 1)
  return side + jnp.where(distance < single, distance, grown)


class View(NamedTuple):
  """What the queries of an attention see.

  Attributes:
    causal: a query sees no later key.
    mask_BTS: True where a query may see a key, besides what else is said here; None: everywhere.
    bias_BHTS: added to the scores; its B may be 1. None: nothing.
    segments: of queries, BT, and of keys, BS: a query sees the keys of its own. None: all are one.
    tail: segments only tell padding: they are 1, and then 0 to the end of the row.
  """

  causal: bool
  mask_BTS: jax.Array | None = None
  bias_BHTS: jax.Array | None = None
  segments: tuple[jax.Array, jax.Array] | None = None
  tail: bool = False

  def dense(self) -> "View":
    """Returns the same view with its segments in the mask."""
    if self.segments is None:
      return self
    segments_BT, segments_BS = self.segments
    mask_BTS = segments_BT[:, :, None] == segments_BS[:, None, :]
    if self.mask_BTS is not None:
      mask_BTS = self.mask_BTS & mask_BTS
    return self._replace(mask_BTS=mask_BTS, segments=None)


def attend(
  q_BTHK, k_BSGK, v_BSGK, view: View, scale: float, dtype, use_flash: bool = True
) -> jax.Array:
  """Returns softmax(scale q k + bias) v, y_BTHK in the dtype of q.

  On a CPU by the products written out below: against `jax.nn.dot_product_attention` they take 12 to
  18 % off the whole training step at B=8, T=128, D=32 to 128. Causal ones are computed in two
  halves, without a quarter of the products (T=128 to 512, K=32 and 64: 16 to 30 % of attention's
  time; at T=64 nothing). Elsewhere by flash attention where that serves (`model.flash`), which
  never stores the weights, or by XLA's.

  Args:
    q_BTHK: queries.
    k_BSGK: keys; each of the G heads serves H / G heads of queries (Ainslie et al. 2023).
    v_BSGK: values.
    view: what a query sees.
    scale: of the scores.
    dtype: dtype of the products' operands; the softmax is float32.
    use_flash: False: never flash attention.
  """
  platform, result = layers.platform(), q_BTHK.dtype
  if platform == "cpu":
    q_BTHK, k_BSGK, v_BSGK = (x.astype(jnp.float32) for x in (q_BTHK, k_BSGK, v_BSGK))
    mask_BTS, bias_BHTS = view.dense().mask_BTS, view.bias_BHTS
    if view.causal:
      causal_1TS = jnp.tril(jnp.ones((1, q_BTHK.shape[1], k_BSGK.shape[1]), bool))
      mask_BTS = causal_1TS if mask_BTS is None else causal_1TS & mask_BTS
    mask_B1TS = None if mask_BTS is None else mask_BTS[:, None]
    repeats = q_BTHK.shape[2] // k_BSGK.shape[2]
    if repeats > 1:
      k_BSGK, v_BSGK = (jnp.repeat(x, repeats, axis=2) for x in (k_BSGK, v_BSGK))
    q_BHTK, k_BHSK, v_BHSK = (x.swapaxes(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    T, S = q_BHTK.shape[2], k_BHSK.shape[2]
    halves = [(0, T, S)]
    if view.causal and T == S >= HALVED_FROM:
      halves = [(0, T // 2, T // 2), (T // 2, T, T)]  # the first half sees no key of the second
    y_BHTK = [
      _attend(
        q_BHTK[:, :, first:last],
        k_BHSK[:, :, :seen],
        v_BHSK[:, :, :seen],
        None if mask_B1TS is None else mask_B1TS[:, :, first:last, :seen],
        None if bias_BHTS is None else bias_BHTS[:, :, first:last, :seen],
        scale,
        dtype,
      )
      for first, last, seen in halves
    ]
    return jnp.concatenate(y_BHTK, axis=2).swapaxes(1, 2).astype(result)
  q_BTHK, k_BSGK, v_BSGK = (x.astype(dtype) for x in (q_BTHK, k_BSGK, v_BSGK))
  kernel = ""
  if use_flash and view.mask_BTS is None and view.bias_BHTS is None:
    shapes = q_BTHK.shape, k_BSGK.shape
    kernel = flash.choose(platform, *shapes, dtype, view.segments is not None, view.tail)
  if kernel:
    y_BTHK = flash.attend(kernel, q_BTHK, k_BSGK, v_BSGK, scale, view.causal, view.segments)
    return y_BTHK.astype(result)
  mask_BTS = view.dense().mask_BTS
  y_BTHK = jax.nn.dot_product_attention(
    q_BTHK,
    k_BSGK,
    v_BSGK,
    bias=view.bias_BHTS,
    mask=None if mask_BTS is None else mask_BTS[:, None],
    scale=scale,
    is_causal=view.causal,
  )
  return y_BTHK.astype(result)


def _product(spec: str, x: jax.Array, y: jax.Array, dtype: jnp.dtype) -> jax.Array:
  return jnp.einsum(spec, x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32)


def _wide(x_BHTK: jax.Array, y_BHTS: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Returns y^T x, z_BHSK, computed as x^T y, the wide way round: see `layers.matmul`."""
  x_BHKT = transposed(x_BHTK.astype(dtype))
  z_BHKS = _product("BHKT,BHTS->BHKS", x_BHKT, y_BHTS, dtype)
  return jax.lax.optimization_barrier(z_BHKS).swapaxes(-1, -2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q_BHTK, k_BHSK, v_BHSK, visible_B1TS, bias_BHTS, scale, dtype):
  return _attend_forward(q_BHTK, k_BHSK, v_BHSK, visible_B1TS, bias_BHTS, scale, dtype)[0]


def _attend_forward(q_BHTK, k_BHSK, v_BHSK, visible_B1TS, bias_BHTS, scale, dtype):
  q_BHTK = q_BHTK * scale
  scores_BHTS = _product("BHTK,BHSK->BHTS", q_BHTK, k_BHSK, dtype)
  if bias_BHTS is not None:
    scores_BHTS += bias_BHTS
  if visible_B1TS is not None:
    scores_BHTS = jnp.where(visible_B1TS, scores_BHTS, UNSEEN)
  # The weights stay unnormalised: dividing the result instead passes over K numbers, not over S.
  # They are kept as the products read them: in float32 besides, a step takes up to 8 % longer.
  w_BHTS = jnp.exp(scores_BHTS - jnp.max(scores_BHTS, axis=-1, keepdims=True))
  norm_BHT1 = 1 / jnp.sum(w_BHTS, axis=-1, keepdims=True)
  w_BHTS = w_BHTS.astype(dtype)
  y_BHTK = _product("BHTS,BHSK->BHTK", w_BHTS, v_BHSK, dtype) * norm_BHT1
  return y_BHTK, (q_BHTK, k_BHSK, v_BHSK, w_BHTS, norm_BHT1, y_BHTK, bias_BHTS)


def _attend_backward(scale, dtype, residuals, dy_BHTK):
  q_BHTK, k_BHSK, v_BHSK, w_BHTS, norm_BHT1, y_BHTK, bias_BHTS = residuals
  dy_BHTK = dy_BHTK * norm_BHT1
  dv_BHSK = _wide(dy_BHTK, w_BHTS, dtype)
  dw_BHTS = _product("BHTK,BHSK->BHTS", dy_BHTK, v_BHSK, dtype)
  # The softmax's derivative subtracts the weighted mean of dw over S, which is dy . y over K.
  mean_BHT1 = jnp.sum(dy_BHTK * y_BHTK, axis=-1, keepdims=True)
  dscores_BHTS = w_BHTS * (dw_BHTS - mean_BHT1)
  dq_BHTK = _product("BHTS,BHSK->BHTK", dscores_BHTS, k_BHSK, dtype) * scale
  dk_BHSK = _wide(q_BHTK, dscores_BHTS, dtype)
  dbias_BHTS = None
  if bias_BHTS is not None:
    shared = bias_BHTS.shape[0] == 1
    dbias_BHTS = jnp.sum(dscores_BHTS, axis=0, keepdims=True) if shared else dscores_BHTS
  return dq_BHTK, dk_BHSK, dv_BHSK, None, dbias_BHTS


_attend.defvjp(_attend_forward, _attend_backward)


class Attention(nnx.Module):
  """Multi-head attention, of a sequence to itself or to another one."""

  def __init__(self, model_config: ConfigDict, *, rngs: nnx.Rngs):
    c = model_config
    K = c.head_width
    self.heads, self.kv_heads, self.flash = c.heads, c.kv_heads, c.flash
    # Scores that are not scaled are made so by the query's weights (Raffel et al. 2020).
    query_scale = 1.0 if c.scale_attention else 1 / K
    self.query = Dense(c, c.width, self.heads * K, rngs=rngs, scale=query_scale)
    self.key = Dense(c, c.width, self.kv_heads * K, rngs=rngs)
    self.value = Dense(c, c.width, self.kv_heads * K, rngs=rngs)
    self.out = Dense(c, self.heads * K, c.width, rngs=rngs, scale=0.5 / c.depth)
    self.query_norm = Norm(c, K) if c.qk_norm else None
    self.key_norm = Norm(c, K) if c.qk_norm else None
    power = 1.0 if c.width_scaling == "mup" else 0.5  # mup: q and k align, their product grows as K
    self.scale = K**-power if c.scale_attention else 1.0

  def keys_values(
    self, x_BSD: jax.Array, rotation: Rotation | None = None
  ) -> tuple[jax.Array, jax.Array]:
    """Returns k_BSGK and v_BSGK of a sequence, the keys rotated to their positions."""
    k_BSGK, v_BSGK = (
      f(x_BSD).reshape(*x_BSD.shape[:2], self.kv_heads, -1) for f in (self.key, self.value)
    )
    if self.key_norm is not None:
      k_BSGK = self.key_norm(k_BSGK)
    return (k_BSGK if rotation is None else rotate(k_BSGK, rotation)), v_BSGK

  def __call__(
    self,
    x_BTD: jax.Array,
    k_BSGK: jax.Array,
    v_BSGK: jax.Array,
    view: View,
    rotation: Rotation | None = None,
  ) -> jax.Array:
    """Returns y_BTD; keys and values as made by `keys_values`, `rotation` that of the queries."""
    q_BTHK = self.query(x_BTD).reshape(*x_BTD.shape[:2], self.heads, -1)
    if self.query_norm is not None:
      q_BTHK = self.query_norm(q_BTHK)
    if rotation is not None:
      q_BTHK = rotate(q_BTHK, rotation)
    y_BTHK = attend(q_BTHK, k_BSGK, v_BSGK, view, self.scale, self.out.dtype, self.flash)
    return self.out(y_BTHK.reshape(*x_BTD.shape[:2], -1))
