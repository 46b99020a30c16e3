"""Self-attention: projections, rotary positions, masks, and the one function that attends."""

from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from model.layers import Dense, Norm

ROTARY_BASE = 10_000.0


def rotary(x_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
  """Rotates pairs (i, i + K/2) of each head by position-dependent angles.

  A product of rotated queries and keys depends on the difference of their positions only
  (Su et al. 2021, arXiv:2104.09864; the half-split layout of Llama).
  """
  half = x_BTHK.shape[-1] // 2
  rates_J = ROTARY_BASE ** -(jnp.arange(half) / half)
  angles_BT1J = (positions_BT[..., None] * rates_J[None, None])[:, :, None]
  sin_BT1J, cos_BT1J = jnp.sin(angles_BT1J), jnp.cos(angles_BT1J)
  a_BTHJ, b_BTHJ = jnp.split(x_BTHK, 2, axis=-1)
  return jnp.concatenate(
    [a_BTHJ * cos_BT1J - b_BTHJ * sin_BT1J, b_BTHJ * cos_BT1J + a_BTHJ * sin_BT1J], axis=-1
  )


def attend(q_BTHK, k_BSHK, v_BSHK, segments_BT, dtype) -> jax.Array:
  """Causal attention inside segments."""
  mask = None
  if segments_BT is not None:
    mask = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]
  q_BTHK, k_BSHK, v_BSHK = (x.astype(dtype) for x in (q_BTHK, k_BSHK, v_BSHK))
  return jax.nn.dot_product_attention(q_BTHK, k_BSHK, v_BSHK, mask=mask, is_causal=True)


class Attention(nnx.Module):
  """Multi-head causal self-attention."""

  def __init__(self, model_config: ConfigDict, *, rngs: nnx.Rngs):
    c = model_config
    self.heads = c.heads
    self.query = Dense(c, c.width, c.width, rngs=rngs)
    self.key = Dense(c, c.width, c.width, rngs=rngs)
    self.value = Dense(c, c.width, c.width, rngs=rngs)
    self.out = Dense(c, c.width, c.width, rngs=rngs, scale=0.5 / c.depth)
    self.query_norm = Norm(c, c.width // c.heads) if c.qk_norm else None
    self.key_norm = Norm(c, c.width // c.heads) if c.qk_norm else None
    self.rotary = c.positions == "rotary"

  def __call__(self, x_BTD, segments_BT, positions_BT) -> jax.Array:
    split = (*x_BTD.shape[:2], self.heads, -1)
    q_BTHK, k_BTHK, v_BTHK = (f(x_BTD).reshape(split) for f in (self.query, self.key, self.value))
    if self.query_norm is not None:
      q_BTHK, k_BTHK = self.query_norm(q_BTHK), self.key_norm(k_BTHK)
    if self.rotary:
      q_BTHK, k_BTHK = rotary(q_BTHK, positions_BT), rotary(k_BTHK, positions_BT)
    y_BTHK = attend(q_BTHK, k_BTHK, v_BTHK, segments_BT, self.out.dtype)
    return self.out(y_BTHK.reshape(x_BTD.shape))
