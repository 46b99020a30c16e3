"""Positions: rotary, sinusoidal, and the buckets of relative ones."""

import math

import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

Rotation = tuple[Array, Array]


def rotary_width(c: ConfigDict) -> int:
  """Returns how much of a head's width is rotated."""
  return max(2, int(c.head_width * c.rotary_share) // 2 * 2)


def rotation(
  positions_BT: Array, width: int, base: float, factor=1.0, original=0, low=1.0, high=4.0
) -> Rotation:
  """Returns (cos, sin) of the rotary angles, each BT1K; the first half of the sines is negated.

  K is `width`; the rest are the fields `rotary_*` of the config.
  """
  rates_J = base ** -(jnp.arange(width // 2) * 2 / width)
  if factor != 1:  # of Llama 3 by the turns in the original length; of others everywhere
    turns_J = original * rates_J / (2 * math.pi)
    kept_J = jnp.clip((turns_J - low) / (high - low), 0, 1)
    rates_J *= kept_J + (1 - kept_J) / factor
  angles_BT1J = (positions_BT[..., None] * rates_J[None, None])[:, :, None]
  cos_BT1J, sin_BT1J = jnp.cos(angles_BT1J), jnp.sin(angles_BT1J)
  return jnp.concatenate([cos_BT1J] * 2, axis=-1), jnp.concatenate([-sin_BT1J, sin_BT1J], axis=-1)


def rotate(x_BTHK: Array, rotation: Rotation) -> Array:
  """Rotates the pairs (i, i + K/2) of each head by angles proportional to the position.

  Of a rotation that is narrower than the head, K is its width, and the rest stays as it is.

  The product of a rotated query and a rotated key depends on the difference of their positions
  (Su et al. 2021, arXiv:2104.09864; the half-split layout of Llama).
  """
  cos_BT1K, sin_BT1K = rotation
  K = cos_BT1K.shape[-1]
  x_BTHK, rest = x_BTHK[..., :K], x_BTHK[..., K:]
  y_BTHK = x_BTHK * cos_BT1K + jnp.roll(x_BTHK, K // 2, axis=-1) * sin_BT1K
  y_BTHK = y_BTHK.astype(x_BTHK.dtype)
  return jnp.concatenate([y_BTHK, rest], axis=-1) if rest.size else y_BTHK


def relative_bucket(distance: Array, buckets: int, longest: int, causal: bool) -> Array:
  """Returns the bucket of key position - query position (Raffel et al. 2020, arXiv:1910.10683).

  Half of the buckets are single distances, the other half grow logarithmically up to `longest`.
  Without causality keys after the query have the upper half of all buckets.
  """
  side: Array | int = 0
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


def sinusoids(positions_BT: Array, width: int) -> Array:
  """Returns the position vectors of Vaswani et al. 2017 (arXiv:1706.03762), BTD: sines, cosines."""
  rates_J = 10_000.0 ** -(jnp.arange(width // 2) * 2 / width)
  angles_BTJ = positions_BT[..., None] * rates_J[None, None]
  return jnp.concatenate([jnp.sin(angles_BTJ), jnp.cos(angles_BTJ)], axis=-1)
