"""The smallest modules: Linear, Norm, Embedding, MLP, dropout. Shape letters: see `model.ops`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from model import ops

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "gelu": jax.nn.gelu,
  "gelu_exact": functools.partial(jax.nn.gelu, approximate=False),
  "relu": jax.nn.relu,
  "geglu": jax.nn.gelu,
  "swiglu": jax.nn.silu,
}
GATED = ("geglu", "swiglu")


class Linear(nnx.Module):
  """y = x W (+ b): kernel (fan_in, fan_out), drawn with variance `scale` / fan_in."""

  def __init__(
    self, c: ConfigDict, fan_in: int, fan_out: int, *, rngs: nnx.Rngs, scale: float = 1.0
  ):
    init = jax.nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    self.kernel = nnx.Param(init(rngs.params(), (fan_in, fan_out)))
    self.bias = nnx.Param(jnp.zeros((fan_out,))) if c.biases else None
    self.dtype = jnp.dtype(c.dtype)

  def __call__(self, x_XD: Array) -> Array:
    """Applies the layer to the last axis; the result has the input's dtype."""
    x_ND = x_XD.reshape(-1, x_XD.shape[-1])
    y_NF = ops.matmul(x_ND, self.kernel[...], self.dtype, x_XD.dtype)
    if self.bias is not None:
      y_NF = (y_NF + self.bias[...].reshape(1, -1)).astype(x_XD.dtype)
    return y_NF.reshape(*x_XD.shape[:-1], -1)


def apply_together(linears: Sequence[Linear], x_XD: Array) -> list[Array]:
  """Applies linear layers that share their input; on a GPU those of one shape as one product.

  The input's gradient is then one sum: 3 % off the least time of a step of 124M parameters, by the
  program compiled for an H100.
  """
  kernels = [linear.kernel[...] for linear in linears]
  same_shape = len({kernel.shape for kernel in kernels}) == 1
  divided = ops.tensor_axis() > 1  # stacked, their shards would not lie together
  if ops.platform() != "gpu" or divided or not same_shape or linears[0].bias is not None:
    return [linear(x_XD) for linear in linears]
  fan_in = x_XD.shape[-1]
  w_DF = jnp.stack(kernels, axis=1).reshape(fan_in, -1)
  y_NF = ops.matmul(x_XD.reshape(-1, fan_in), w_DF, linears[0].dtype, x_XD.dtype)
  y_XJF = y_NF.reshape(*x_XD.shape[:-1], len(linears), -1)
  return [y_XJF[..., j, :] for j in range(len(linears))]


class Norm(nnx.Module):
  """RMS norm (Zhang & Sennrich 2019) or layer norm (Ba et al. 2016) of the last axis."""

  def __init__(self, c: ConfigDict, width: int):
    self.center, self.eps = c.norm == "layer", c.norm_eps
    self.scale = nnx.Param(jnp.ones((width,)))
    self.bias = nnx.Param(jnp.zeros((width,))) if self.center and c.biases else None

  def __call__(self, x_XD: Array) -> Array:
    """Normalises in float32; the result has the input's dtype."""
    row = (1,) * (x_XD.ndim - 1) + (-1,)
    y_XD = ops.norm(x_XD, self.scale[...].reshape(row), self.center, self.eps)
    if self.bias is not None:
      y_XD = (y_XD + self.bias[...].reshape(row)).astype(x_XD.dtype)
    return y_XD


class Embedding(nnx.Module):
  """A table of `size` rows of standard deviation `std`, looked up by integers."""

  def __init__(self, size: int, width: int, *, rngs: nnx.Rngs, std: float):
    self.table = nnx.Param(jax.nn.initializers.normal(std)(rngs.params(), (size, width)))

  def __call__(self, ids_X: Array) -> Array:
    """Returns rows_XD in float32, in which the gradients of a row are summed, too."""
    return self.table[...].astype(jnp.float32)[ids_X]


def mlp_width(c: ConfigDict) -> int:
  """Returns F, the hidden width of the MLP.

  A gated MLP has three matrices instead of two, hence 2/3 of the width that `mlp_ratio` gives
  (Shazeer 2020, arXiv:2002.05202), rounded to a multiple of 8.
  """
  width = c.mlp_ratio * c.width
  return c.mlp_width or (8 * round(width / 12) if c.mlp in GATED else round(width))


def _hidden(mlp: str) -> Callable[..., Array]:
  """Returns act(x), or gated act(x) * y, computed in float32 and recomputed in the backward pass.

  Saved would be a boolean per number of relu, which is therefore left alone, and up to five arrays
  of the others.
  """
  if mlp == "relu":
    return jax.nn.relu

  def hidden(*x: Array) -> Array:
    first, *gated = (x_X.astype(jnp.float32) for x_X in x)
    y_X = ACTIVATIONS[mlp](first)
    return (y_X * gated[0] if gated else y_X).astype(x[0].dtype)

  return ops.recompute(hidden)


HIDDEN = {mlp: _hidden(mlp) for mlp in ACTIVATIONS}


class MLP(nnx.Module):
  """Feed-forward layer: down(act(up x)), or gated, down(act(gate x) * up x)."""

  def __init__(self, c: ConfigDict, residual: float, *, rngs: nnx.Rngs):
    F = mlp_width(c)
    self.hidden = HIDDEN[c.mlp]
    self.up = Linear(c, c.width, F, rngs=rngs)
    self.gate = Linear(c, c.width, F, rngs=rngs) if c.mlp in GATED else None
    self.down = Linear(c, F, c.width, rngs=rngs, scale=residual)

  def __call__(self, x_BTD: Array) -> Array:
    """Returns y_BTD."""
    linears = (self.up,) if self.gate is None else (self.gate, self.up)
    return self.down(self.hidden(*apply_together(linears, x_BTD)))


def dropout(x_BX: Array, rate: float, keys_B: Array | None) -> Array:
  """Sets a share `rate` of x to 0 and scales the rest up to the same mean.

  Each row has a key, so that what is dropped does not depend on the device or microbatch it is in.
  """
  if keys_B is None or not rate:
    return x_BX
  kept_BX = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x_BX.shape[1:]))(keys_B)
  return jnp.where(kept_BX, x_BX / (1 - rate), 0.0)


def split_keys(keys_B: Array | None, count: int) -> Any:
  """Splits every row's key: returns [count, B] keys, or `count` times None from None."""
  if keys_B is None:
    return (None,) * count
  return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys_B)
