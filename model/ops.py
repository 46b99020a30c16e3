"""Operations that XLA compiles better in another form than the plain one; both stand here.

`REFERENCES` gives the plain form of each; tests compare values and derivatives. Comments say what
the other form gains, on two Zen 4 cores unless they name another machine.

Shape letters, the same in the whole project:

  B batch          T time            S time of keys: the encoder's, or a cache's slots
  D model width    H heads           K head width     G heads of keys and values
  F mlp width      V vocabulary      L layers
  N tokens, B and T flattened        X any leading axes
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType
from jax.typing import DTypeLike

UNSEEN = -1e30  # a score; finite, so that a padding query that sees nothing gives no NaN


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


# ---- Products


def plain_matmul(
  x_ND: Array, w_DF: Array, dtype: DTypeLike, result_dtype: DTypeLike = jnp.float32
) -> Array:
  """Returns x @ w: operands in `dtype`, sums in float32, the result in `result_dtype`."""
  return _dot(x_ND, w_DF, ((1,), (0,)), dtype, result_dtype)


def _dot(x, y, contract: tuple, dtype: DTypeLike, result_dtype: DTypeLike = jnp.float32):
  x, y = x.astype(dtype), y.astype(dtype)
  return jax.lax.dot_general(x, y, (contract, ((), ())), preferred_element_type=result_dtype)


# The derivative keeps the weights' gradients in float32 where the operands are bfloat16, and its
# products are two-dimensional, in the orientation that XLA's CPU backend runs fastest.
matmul = jax.custom_vjp(plain_matmul, nondiff_argnums=(2, 3))


def _matmul_forward(x_ND, w_DF, dtype, result_dtype):
  # Of an operand the backward pass needs the values; of the input also the type, for its gradient.
  residuals = x_ND.astype(dtype), w_DF, jnp.zeros((0,), x_ND.dtype)
  return plain_matmul(x_ND, w_DF, dtype, result_dtype), residuals


def _matmul_backward(dtype, result_dtype, residuals, dy_NF):
  x_ND, w_DF, like_x = residuals
  dx_ND = _dot(dy_NF, w_DF, ((1,), (1,)), dtype, like_x.dtype)
  if x_ND.shape[1] <= dy_NF.shape[1]:
    dw_DF = _dot(transpose(x_ND), dy_NF, ((1,), (0,)), dtype)
  else:
    # XLA's CPU product is twice as fast for a wide result as for a tall one; the barrier keeps the
    # compiler from folding the transposition back into the product.
    dw_FD = _dot(transpose(dy_NF.astype(dtype)), x_ND, ((1,), (0,)), dtype)
    dw_DF = jax.lax.optimization_barrier(dw_FD).T
  return dx_ND, dw_DF.astype(w_DF.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)


def transpose(x_XTK: Array) -> Array:
  """Returns x_XKT, copied where a product is faster when its left operand's rows are contiguous.

  XLA's CPU backend has its fast bfloat16 products, and its fast batched ones, only for such rows:
  the copy takes the bfloat16 products of a sum over tokens from 105-175 to 205-280 GFLOP/s, and 6
  to 25 % off the step (2,048 tokens, D=64 to 384). In float32 products of two dimensions are as
  fast without it; attention's take 1 % off the step.
  """
  x_XKT = x_XTK.swapaxes(-1, -2)
  if platform() != "cpu" or (x_XKT.ndim == 2 and x_XKT.dtype == jnp.float32):
    return x_XKT
  return with_layout_constraint(x_XKT, Layout(tuple(range(x_XKT.ndim))))


# ---- Norms


def plain_norm(x_XD: Array, scale_1D: Array, center: bool, eps: float) -> Array:
  """Returns the RMS norm of the last axis, or with `center` the layer norm, times the gain."""
  z_XD = x_XD.astype(jnp.float32)
  z_XD -= jnp.mean(z_XD, axis=-1, keepdims=True) if center else 0.0
  r_X1 = jax.lax.rsqrt(jnp.mean(jnp.square(z_XD), axis=-1, keepdims=True) + eps)
  return (z_XD * r_X1 * scale_1D).astype(x_XD.dtype)


# The derivative avoids what XLA's CPU backend does with a row or a column that it broadcasts for
# more than one product: it writes it out in full, N by D. Each product has a row or column of its
# own here, by a factor of two, which changes no digit. That takes 5 to 10 % off a step at D=64.
norm = jax.custom_vjp(plain_norm, nondiff_argnums=(2, 3))


def _norm_forward(x_XD, scale_1D, center, eps):
  wide_XD = x_XD.astype(jnp.float32)
  mean_X1 = jnp.mean(wide_XD, axis=-1, keepdims=True) if center else 0.0
  z_XD = wide_XD - mean_X1
  r_X1 = jax.lax.rsqrt(jnp.mean(jnp.square(z_XD), axis=-1, keepdims=True) + eps)
  return (z_XD * r_X1 * scale_1D).astype(x_XD.dtype), (x_XD, mean_X1, r_X1, scale_1D)


def _norm_backward(center, eps, residuals, dy_XD):
  # dz = r (g - z r^2 mean(g z)), where g = dy scale.
  x_XD, mean_X1, r_X1, scale_1D = residuals
  z_XD = x_XD.astype(jnp.float32) - mean_X1
  dy_XD = dy_XD.astype(jnp.float32)
  dyz_XD = dy_XD * z_XD
  mean_gz_X1 = jnp.sum(dyz_XD * (scale_1D / x_XD.shape[-1]), axis=-1, keepdims=True)
  dscale_D = 0.5 * jnp.sum(dyz_XD * (2 * r_X1), axis=tuple(range(x_XD.ndim - 1)))
  dz_XD = (dy_XD * (2 * scale_1D) - z_XD * (2 * mean_gz_X1 * jnp.square(r_X1))) * (r_X1 / 2)
  if center:
    dz_XD -= jnp.mean(dz_XD, axis=-1, keepdims=True)
  return dz_XD.astype(x_XD.dtype), dscale_D.reshape(scale_1D.shape)


norm.defvjp(_norm_forward, _norm_backward)


# ---- Attention


def plain_attention(q_BHTK, k_BHSK, v_BHSK, mask_B1TS, bias_BHTS, scale, dtype) -> Array:
  """Returns softmax(scale q k + bias) v, y_BHTK in float32; operands of products are in `dtype`.

  The mask is True where a query sees a key (None: everywhere); the bias' B may be 1.
  """
  scores_BHTS = _einsum("BHTK,BHSK->BHTS", q_BHTK * scale, k_BHSK, dtype)
  scores_BHTS = scores_BHTS if bias_BHTS is None else scores_BHTS + bias_BHTS
  if mask_B1TS is not None:
    scores_BHTS = jnp.where(mask_B1TS, scores_BHTS, UNSEEN)
  return _einsum("BHTS,BHSK->BHTK", jax.nn.softmax(scores_BHTS), v_BHSK, dtype)


# On a CPU a whole step takes 12 to 18 % less with this than with `jax.nn.dot_product_attention`
# (B=8, T=128, D=32 to 128). The weights stay unnormalised: dividing the result instead passes over
# K numbers, not over S. The backward pass keeps them as the products read them: with a float32 copy
# besides, a step takes up to 8 % longer.
@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attention(q_BHTK, k_BHSK, v_BHSK, mask_B1TS, bias_BHTS, scale, dtype) -> Array:
  """Computes `plain_attention`."""
  return _attention_forward(q_BHTK, k_BHSK, v_BHSK, mask_B1TS, bias_BHTS, scale, dtype)[0]


def _attention_forward(q_BHTK, k_BHSK, v_BHSK, mask_B1TS, bias_BHTS, scale, dtype):
  q_BHTK = q_BHTK * scale
  scores_BHTS = _einsum("BHTK,BHSK->BHTS", q_BHTK, k_BHSK, dtype)
  if bias_BHTS is not None:
    scores_BHTS += bias_BHTS
  if mask_B1TS is not None:
    scores_BHTS = jnp.where(mask_B1TS, scores_BHTS, UNSEEN)
  w_BHTS = jnp.exp(scores_BHTS - jnp.max(scores_BHTS, axis=-1, keepdims=True))
  norm_BHT1 = 1 / jnp.sum(w_BHTS, axis=-1, keepdims=True)
  w_BHTS = w_BHTS.astype(dtype)
  y_BHTK = _einsum("BHTS,BHSK->BHTK", w_BHTS, v_BHSK, dtype) * norm_BHT1
  return y_BHTK, (q_BHTK, k_BHSK, v_BHSK, w_BHTS, norm_BHT1, y_BHTK, bias_BHTS)


def _attention_backward(scale, dtype, residuals, dy_BHTK):
  q_BHTK, k_BHSK, v_BHSK, w_BHTS, norm_BHT1, y_BHTK, bias_BHTS = residuals
  dy_BHTK = dy_BHTK * norm_BHT1
  dv_BHSK = _wide_einsum(dy_BHTK, w_BHTS, dtype)
  dw_BHTS = _einsum("BHTK,BHSK->BHTS", dy_BHTK, v_BHSK, dtype)
  # The softmax's derivative subtracts the weighted mean of dw over S, which is dy . y over K.
  mean_BHT1 = jnp.sum(dy_BHTK * y_BHTK, axis=-1, keepdims=True)
  dscores_BHTS = w_BHTS * (dw_BHTS - mean_BHT1)
  dq_BHTK = _einsum("BHTS,BHSK->BHTK", dscores_BHTS, k_BHSK, dtype) * scale
  dk_BHSK = _wide_einsum(q_BHTK, dscores_BHTS, dtype)
  dbias_BHTS = None
  if bias_BHTS is not None:
    shared = bias_BHTS.shape[0] == 1
    dbias_BHTS = jnp.sum(dscores_BHTS, axis=0, keepdims=True) if shared else dscores_BHTS
  return dq_BHTK, dk_BHSK, dv_BHSK, None, dbias_BHTS


def _einsum(spec: str, x: Array, y: Array, dtype: DTypeLike) -> Array:
  return jnp.einsum(spec, x.astype(dtype), y.astype(dtype), preferred_element_type=jnp.float32)


def _wide_einsum(x_BHTK: Array, y_BHTS: Array, dtype: DTypeLike) -> Array:
  """Returns y^T x, z_BHSK, computed as x^T y, the wide way round: see `_matmul_backward`."""
  z_BHKS = _einsum("BHKT,BHTS->BHKS", transpose(x_BHTK.astype(dtype)), y_BHTS, dtype)
  return jax.lax.optimization_barrier(z_BHKS).swapaxes(-1, -2)


attention.defvjp(_attention_forward, _attention_backward)

REFERENCES: dict[Callable, Callable] = {
  matmul: plain_matmul,
  norm: plain_norm,
  attention: plain_attention,
}


# ---- The rest of the model


def recompute(f: Callable[..., Array]) -> Callable[..., Array]:
  """Returns f, which saves only its arguments and recomputes itself in the backward pass.

  Unlike `jax.checkpoint` it does so under any policy of a checkpoint around it, too.
  """
  g = jax.custom_vjp(lambda *x: f(*x))  # f itself may have defaults, which would be traced
  g.defvjp(lambda *x: (f(*x), x), lambda x, dy: jax.vjp(f, *x)[1](dy))
  return g


def logits(x_ND: Array, kernel_DV: Array, bias_V: Array | None, dtype) -> Array:
  """Returns logits_NV in float32 of what `Head.operands` returns."""
  logits_NV = matmul(x_ND, kernel_DV, dtype)
  return logits_NV if bias_V is None else logits_NV + bias_V[None]


def loss_chunks(tokens: int, vocab_size: int, logits_at_once: int) -> int:
  """Returns into how many chunks the loss of so many tokens is cut, by `model.logits_at_once`."""
  return -(-tokens * vocab_size // logits_at_once) if logits_at_once else 1
