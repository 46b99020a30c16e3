"""The smallest parts: dense layers, norms, the embedding, and how each is initialised.

Shape letters, the same in the whole project:

  B batch          T time            S time of keys: the encoder's, or a cache's slots
  D model width    H heads           K head width     G heads of keys and values
  F mlp width      V vocabulary      L layers
  N tokens, B and T flattened        X any leading axes
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType
from jax.typing import DTypeLike


def platform() -> str:
  """Returns what the program being traced is made for: "cpu", "gpu" or "tpu".

  A training step is traced on the mesh of its devices, which this machine need not have; what is
  traced on none is for the machine's own.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def tensor_axis() -> int:
  """Returns among how many devices the compiler divides products; 0: there is no such axis."""
  mesh = jax.sharding.get_abstract_mesh()
  types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  return mesh.shape["tensor"] if types.get("tensor") == AxisType.Auto else 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def matmul(
  x_ND: jax.Array, w_DF: jax.Array, dtype: DTypeLike, result: DTypeLike = jnp.float32
) -> jax.Array:
  """Returns x @ w: operands in `dtype`, sums in float32, the result as it is asked for.

  The derivative is written out for two reasons. It keeps the weights' gradients in float32 where
  the operands are bfloat16; and its three products are two-dimensional, in the orientation that
  XLA's CPU backend runs fastest.
  """
  return _dot(x_ND, w_DF, ((1,), (0,)), dtype, result)


def _dot(x, y, contract: tuple, dtype: DTypeLike, result: DTypeLike = jnp.float32) -> jax.Array:
  x, y = x.astype(dtype), y.astype(dtype)
  return jax.lax.dot_general(x, y, (contract, ((), ())), preferred_element_type=result)


def _matmul_forward(x_ND, w_DF, dtype, result):
  # Of an operand the backward pass needs the values; of the input also the type, for its gradient.
  kept = x_ND.astype(dtype), w_DF, jnp.zeros((0,), x_ND.dtype)
  return _dot(x_ND, w_DF, ((1,), (0,)), dtype, result), kept


def _matmul_backward(dtype, result, residuals, dy_NF):
  x_ND, w_DF, like_x = residuals
  dx_ND = _dot(dy_NF, w_DF, ((1,), (1,)), dtype, like_x.dtype)
  if x_ND.shape[1] <= dy_NF.shape[1]:
    dw_DF = _dot(transposed(x_ND), dy_NF, ((1,), (0,)), dtype)
  else:
    # XLA's CPU product is twice as fast for a wide result as for a tall one; the barrier keeps the
    # compiler from folding the transposition back into the product.
    dw_FD = _dot(transposed(dy_NF.astype(dtype)), x_ND, ((1,), (0,)), dtype)
    dw_DF = jax.lax.optimization_barrier(dw_FD).T
  return dx_ND, dw_DF.astype(w_DF.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def transposed(x_XTK: jax.Array) -> jax.Array:
  """Returns x_XKT, which is also laid out so where that makes a product's left operand fast.

  XLA's CPU backend has its fast bfloat16 products, and its fast batched ones, only for rows that
  lie one after the other: the copy takes the bfloat16 products of a sum over tokens from 105-175 to
  205-280 GFLOP/s, and 6 to 25 % off the step (2,048 tokens, D=64 to 384, two Zen 4 cores). In
  float32 products of two dimensions are as fast without it; attention's take 1 % off the step.
  """
  x_XKT = x_XTK.swapaxes(-1, -2)
  if platform() != "cpu" or (x_XKT.ndim == 2 and x_XKT.dtype == jnp.float32):
    return x_XKT
  return with_layout_constraint(x_XKT, Layout(tuple(range(x_XKT.ndim))))


class Dense(nnx.Module):
  """y = x W (+ b): kernel (fan_in, fan_out), drawn with variance `scale` / fan_in."""

  def __init__(self, model_config, fan_in, fan_out, *, rngs: nnx.Rngs, scale=1.0):
    init = jax.nn.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    self.kernel = nnx.Param(init(rngs.params(), (fan_in, fan_out)))
    self.bias = nnx.Param(jnp.zeros((fan_out,))) if model_config.biases else None
    self.dtype = jnp.dtype(model_config.dtype)

  def __call__(self, x_XD: jax.Array) -> jax.Array:
    """Applies the layer to the last axis; the result has the input's dtype."""
    x_ND = x_XD.reshape(-1, x_XD.shape[-1])
    y_NF = matmul(x_ND, self.kernel[...], self.dtype, x_XD.dtype)
    if self.bias is not None:
      y_NF = (y_NF + _row(self.bias[...], 2)).astype(x_XD.dtype)
    return y_NF.reshape(*x_XD.shape[:-1], -1)


def joined(denses: Sequence[Dense], x_XD: jax.Array) -> list[jax.Array]:
  """Applies dense layers that share their input.

  On a GPU those of one shape are one product: the input's gradient is one sum over all of them,
  where each by itself makes one that is then added to the others'.
  """
  kernels = [dense.kernel[...] for dense in denses]
  one_shape = len({kernel.shape for kernel in kernels}) == 1
  divided = tensor_axis() > 1  # stacked, their shards would not lie together
  if platform() != "gpu" or divided or not one_shape or denses[0].bias is not None:
    return [dense(x_XD) for dense in denses]
  fan_in = x_XD.shape[-1]
  w_DF = jnp.stack(kernels, axis=1).reshape(fan_in, -1)
  y_NF = matmul(x_XD.reshape(-1, fan_in), w_DF, denses[0].dtype, x_XD.dtype)
  y_XJF = y_NF.reshape(*x_XD.shape[:-1], len(denses), -1)
  return [y_XJF[..., j, :] for j in range(len(denses))]


class Norm(nnx.Module):
  """RMS norm (Zhang & Sennrich 2019) or layer norm (Ba et al. 2016) of the last axis."""

  def __init__(self, model_config, width: int):
    self.centre, self.eps = model_config.norm == "layer", model_config.norm_eps
    self.scale = nnx.Param(jnp.ones((width,)))
    self.bias = nnx.Param(jnp.zeros((width,))) if self.centre and model_config.biases else None

  def __call__(self, x_XD: jax.Array) -> jax.Array:
    """Returns the normalised input, times the gain (plus the bias, if there is one).

    It is computed in float32, and has the input's dtype.
    """
    y_XD = _standardise(x_XD, _row(self.scale[...], x_XD.ndim), self.centre, self.eps)
    if self.bias is not None:
      y_XD = (y_XD + _row(self.bias[...], x_XD.ndim)).astype(x_XD.dtype)
    return y_XD


def _row(x_D: jax.Array, ndim: int) -> jax.Array:
  return x_D.reshape((1,) * (ndim - 1) + (-1,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _standardise(x_XD: jax.Array, scale_1D: jax.Array, centre: bool, eps: float) -> jax.Array:
  """The norm itself; the backward pass keeps its input and repeats the rest, which is cheaper."""
  return _standardise_forward(x_XD, scale_1D, centre, eps)[0]


def _standardise_forward(x_XD, scale_1D, centre, eps):
  wide_XD = x_XD.astype(jnp.float32)
  mean_X1 = jnp.mean(wide_XD, axis=-1, keepdims=True) if centre else 0.0
  z_XD = wide_XD - mean_X1
  r_X1 = jax.lax.rsqrt(jnp.mean(jnp.square(z_XD), axis=-1, keepdims=True) + eps)
  return (z_XD * r_X1 * scale_1D).astype(x_XD.dtype), (x_XD, mean_X1, r_X1, scale_1D)


def _standardise_backward(centre, eps, residuals, dy_XD):
  # dz = r (g - z r^2 mean(g z)), where g = dy scale. XLA's CPU backend writes a row or a column out
  # in full, N by D, where it broadcasts it for more than one product: each has one of its own here,
  # by a factor of two, which changes no digit.
  x_XD, mean_X1, r_X1, scale_1D = residuals
  z_XD = x_XD.astype(jnp.float32) - mean_X1
  dy_XD = dy_XD.astype(jnp.float32)
  dyz_XD = dy_XD * z_XD
  mean_gz_X1 = jnp.sum(dyz_XD * (scale_1D / x_XD.shape[-1]), axis=-1, keepdims=True)
  dscale_D = 0.5 * jnp.sum(dyz_XD * (2 * r_X1), axis=tuple(range(x_XD.ndim - 1)))
  dz_XD = (dy_XD * (2 * scale_1D) - z_XD * (2 * mean_gz_X1 * jnp.square(r_X1))) * (r_X1 / 2)
  if centre:
    dz_XD -= jnp.mean(dz_XD, axis=-1, keepdims=True)
  return dz_XD.astype(x_XD.dtype), dscale_D.reshape(scale_1D.shape)


_standardise.defvjp(_standardise_forward, _standardise_backward)


def repeated(f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Returns f, of whose forward pass the backward pass keeps the arguments and repeats the rest.

  Unlike `jax.checkpoint` it does so under any policy of a checkpoint around it, too.
  """
  g = jax.custom_vjp(lambda *x: f(*x))  # f itself may have defaults, which would be traced
  g.defvjp(lambda *x: (f(*x), x), lambda x, dy: jax.vjp(f, *x)[1](dy))
  return g


def dropout(x_BX: jax.Array, rate: float, keys_B: jax.Array | None) -> jax.Array:
  """Returns x with a share `rate` of its entries 0 and the others scaled up to the same mean.

  Each row has a key of its own, so that what is dropped does not depend on which rows a device or a
  microbatch holds. Without keys, or at rate 0, it is x itself.
  """
  if keys_B is None or not rate:
    return x_BX
  kept_BX = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x_BX.shape[1:]))(keys_B)
  return jnp.where(kept_BX, x_BX / (1 - rate), 0.0)


def split_keys(keys_B: jax.Array | None, count: int) -> Any:
  """Returns `count` keys of every row, [count, B]; as many None from None."""
  if keys_B is None:
    return (None,) * count
  return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys_B)


class Embedding(nnx.Module):
  """A table of `size` rows of standard deviation `std`, looked up by integers."""

  def __init__(self, size: int, width: int, *, rngs: nnx.Rngs, std: float):
    self.table = nnx.Param(jax.nn.initializers.normal(std)(rngs.params(), (size, width)))

  def __call__(self, ids_X: jax.Array) -> jax.Array:
    """Returns rows_XD in float32, in which the gradients of a row are summed, too."""
    return self.table[...].astype(jnp.float32)[ids_X]
