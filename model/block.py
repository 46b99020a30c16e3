"""The one Block: attention, perhaps cross-attention, and a feed-forward layer, each a residual."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from model.accounting import GATED, mlp_width
from model.attention import Attention, Rotation, View
from model.layers import Dense, Norm, dropout, joined, repeated, split_keys

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": jax.nn.gelu,
  "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
  "relu": jax.nn.relu,
  "geglu": jax.nn.gelu,
  "swiglu": jax.nn.silu,
}


def _gated(activation: Callable) -> Callable[..., jax.Array]:
  return lambda gate_X, x_X: activation(gate_X) * x_X


def _widened(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Returns f, computed in float32, with a result in the dtype of its arguments."""
  return lambda *x: f(*(x_X.astype(jnp.float32) for x_X in x)).astype(x[0].dtype)


# What the MLP's last product takes, of what its first ones made. Of relu the backward pass keeps a
# boolean for each number; of the others it would keep up to five arrays.
HIDDEN: dict[str, Callable[..., jax.Array]] = {
  mlp: repeated(_widened(_gated(f) if mlp in GATED else f)) for mlp, f in ACTIVATIONS.items()
} | {"relu": jax.nn.relu}

KeysValues = tuple[jax.Array, jax.Array]


class Mlp(nnx.Module):
  """Feed-forward layer: down(act(up x)), or gated, down(act(gate x) * up x)."""

  def __init__(self, model_config: ConfigDict, *, rngs: nnx.Rngs):
    c = model_config
    self.hidden = HIDDEN[c.mlp]
    self.up = Dense(c, c.width, mlp_width(c), rngs=rngs)
    self.gate = Dense(c, c.width, mlp_width(c), rngs=rngs) if c.mlp in GATED else None
    self.down = Dense(c, mlp_width(c), c.width, rngs=rngs, scale=0.5 / c.depth)

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    """Returns y_BTD."""
    layers = (self.up,) if self.gate is None else (self.gate, self.up)
    return self.down(self.hidden(*joined(layers, x_BTD)))


class Context(NamedTuple):
  """What all blocks of a stack share.

  Attributes:
    view: what a token sees of its own sequence.
    rotation: of its queries and keys; None: positions are not rotary.
    cross_view: what it sees of the encoder's output; None: there is no encoder.
    memory_BSD: the encoder's output; None where the cache holds its keys and values.
    slots_BT: where in the cache these tokens belong; None: there is no cache.
  """

  view: View
  rotation: Rotation | None = None
  cross_view: View | None = None
  memory_BSD: jax.Array | None = None
  slots_BT: jax.Array | None = None


class Cache(NamedTuple):
  """Keys and values of what was read so far: of one block, or with a leading L of all."""

  own: KeysValues  # BSGK: one slot per position
  cross: KeysValues | None  # of the encoder's output


class Block(nnx.Module):
  """Residual block, with its norms before (`pre`) or after (`post`) the sums."""

  def __init__(self, model_config: ConfigDict, cross: bool, *, rngs: nnx.Rngs):
    c = model_config
    self.attention_norm = Norm(c, c.width)
    self.attention = Attention(c, rngs=rngs)
    self.cross_norm = Norm(c, c.width) if cross else None
    self.cross_attention = Attention(c, rngs=rngs) if cross else None
    self.mlp_norm = Norm(c, c.width)
    self.mlp = Mlp(c, rngs=rngs)
    self.post, self.dropout = c.norm_position == "post", c.dropout

  def __call__(
    self, x_BTD: jax.Array, context: Context, cache: Cache | None, keys_B: jax.Array | None
  ) -> tuple[jax.Array, Cache | None]:
    """Returns the next residual stream, and the cache with these tokens in it.

    Args:
      x_BTD: the residual stream.
      context: what all blocks share.
      cache: keys and values of the tokens before these; None: these are all.
      keys_B: of the dropout; None: there is none.
    """
    keys = split_keys(keys_B, 3)

    def attend(x_BTD: jax.Array) -> jax.Array:
      nonlocal cache
      own = self.attention.keys_values(x_BTD, context.rotation)
      if cache is not None:
        own = _written(cache.own, own, context.slots_BT)
        cache = cache._replace(own=own)
      return self.attention(x_BTD, *own, context.view, context.rotation)

    def attend_across(x_BTD: jax.Array) -> jax.Array:
      assert self.cross_attention is not None
      assert context.cross_view is not None
      cross = cache.cross if cache else None
      if cross is None:
        assert context.memory_BSD is not None
        cross = self.cross_attention.keys_values(context.memory_BSD)
      return self.cross_attention(x_BTD, *cross, context.cross_view)

    x_BTD = self._add(x_BTD, attend, self.attention_norm, keys[0])
    if self.cross_norm is not None:
      x_BTD = self._add(x_BTD, attend_across, self.cross_norm, keys[1])
    return self._add(x_BTD, self.mlp, self.mlp_norm, keys[2]), cache

  def _add(
    self, x_BTD: jax.Array, layer: Callable, norm: Norm, keys_B: jax.Array | None
  ) -> jax.Array:
    if self.post:
      return norm(x_BTD + dropout(layer(x_BTD), self.dropout, keys_B))
    return x_BTD + dropout(layer(norm(x_BTD)), self.dropout, keys_B)


def _written(cached: KeysValues, new: KeysValues, slots_BT: jax.Array | None) -> KeysValues:
  """Returns the cached keys and values with new ones in their slots."""
  row_B1 = jnp.arange(new[0].shape[0])[:, None]
  keys, values = (
    old_BSGK.at[row_B1, slots_BT].set(x_BTGK) for old_BSGK, x_BTGK in zip(cached, new, strict=True)
  )
  return keys, values
