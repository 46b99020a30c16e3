"""The one Block: attention and a feed-forward layer, each behind a norm and a residual sum."""

import jax
from flax import nnx
from ml_collections import ConfigDict

from model.accounting import GATED, mlp_width
from model.attention import Attention, Rotation
from model.layers import Dense, Norm

ACTIVATIONS = {
  "gelu": jax.nn.gelu,
  "relu": jax.nn.relu,
  "geglu": jax.nn.gelu,
  "swiglu": jax.nn.silu,
}


class Mlp(nnx.Module):
  """Feed-forward layer: down(act(up x)), or gated, down(act(gate x) * up x)."""

  def __init__(self, model_config: ConfigDict, *, rngs: nnx.Rngs):
    c = model_config
    self.activation = ACTIVATIONS[c.mlp]
    self.up = Dense(c, c.width, mlp_width(c), rngs=rngs)
    self.gate = Dense(c, c.width, mlp_width(c), rngs=rngs) if c.mlp in GATED else None
    self.down = Dense(c, mlp_width(c), c.width, rngs=rngs, scale=0.5 / c.depth)

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    """Returns y_BTD."""
    h_BTF = self.up(x_BTD)
    if self.gate is None:
      return self.down(self.activation(h_BTF))
    return self.down(self.activation(self.gate(x_BTD)) * h_BTF)


class Block(nnx.Module):
  """Pre-norm residual block."""

  def __init__(self, model_config: ConfigDict, *, rngs: nnx.Rngs):
    self.attention_norm = Norm(model_config, model_config.width)
    self.attention = Attention(model_config, rngs=rngs)
    self.mlp_norm = Norm(model_config, model_config.width)
    self.mlp = Mlp(model_config, rngs=rngs)

  def __call__(
    self, x_BTD: jax.Array, mask_BTS: jax.Array | None, rotation: Rotation | None
  ) -> jax.Array:
    """Returns the next residual stream; the context is as in `Attention`."""
    x_BTD += self.attention(self.attention_norm(x_BTD), mask_BTS, rotation)
    return x_BTD + self.mlp(self.mlp_norm(x_BTD))
