"""Positions: rotary, sinusoidal, and the buckets of relative ones."""

import math

import jax
import jax.numpy as jnp

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


def sinusoids(positions_BT: jax.Array, width: int) -> jax.Array:
  """Returns the position vectors of Vaswani et al. 2017 (arXiv:1706.03762), BTD: sines, cosines."""
  rates_J = 10_000.0 ** -(jnp.arange(width // 2) * 2 / width)
  angles_BTJ = positions_BT[..., None] * rates_J[None, None]
  return jnp.concatenate([jnp.sin(angles_BTJ), jnp.cos(angles_BTJ)], axis=-1)
