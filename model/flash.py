"""Flash attention: the libraries' kernels, which never store the scores, and which of them serves.

  cudnn    GPU   cuDNN's, where all that is hidden is the future and the padding at a row's end
  triton   GPU   jax's Pallas kernel, where documents are isolated: cuDNN would be given them as a
                 bias of T S numbers a row
  splash   TPU   jax's Pallas kernel

Each takes q_BTHK, k_BSGK, v_BSGK in the products' dtype, and gives y_BTHK.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from model import ops

BLOCK = 128  # queries and keys of a Pallas kernel's block: lengths are padded to whole ones

Segments = tuple[Array, Array]  # BT, BS: a query sees the keys of its own


def choose(
  platform: str,
  q_shape: tuple,
  k_shape: tuple,
  dtype: DTypeLike,
  segments: bool,
  right_padded: bool,
) -> str:
  """Returns the kernel that serves an attention without bias and dense mask; "": none does.

  `right_padded`: its segments are 1, and then 0 to the end of the row.
  """
  _, T, H, K = q_shape
  _, S, G, _ = k_shape
  if jnp.dtype(dtype) != jnp.bfloat16 or H % G or G % (ops.tensor_axis() or 1):
    return ""
  if platform == "tpu":
    return "splash"
  if platform != "gpu":
    return ""
  if segments and not right_padded:
    return "triton" if K >= 16 and T == S else ""
  return "cudnn" if K % 8 == 0 and K <= 128 else ""  # on any GPU from Ampere on


def attend(
  kernel: str, q_BTHK, k_BSGK, v_BSGK, scale: float, causal: bool, segments: Segments | None
) -> Array:
  """Returns softmax(scale q k) v by a kernel, over heads that a tensor axis may divide."""
  call = functools.partial(KERNELS[kernel], scale=scale, causal=causal)
  if segments is not None:
    rows = q_BTHK.shape[:2], k_BSGK.shape[:2]
    segments = jnp.broadcast_to(segments[0], rows[0]), jnp.broadcast_to(segments[1], rows[1])
  if ops.tensor_axis():  # the compiler cannot divide a kernel, not even among one device
    heads = P(None, None, "tensor")
    ids = P() if segments is None else (P(), P())
    call = jax.shard_map(
      call, in_specs=(heads,) * 3 + (ids,), out_specs=heads, axis_names={"tensor"}, check_vma=False
    )
  return call(q_BTHK, k_BSGK, v_BSGK, segments)


def _cudnn(q_BTHK, k_BSGK, v_BSGK, segments, *, scale, causal):
  (B, T), S = q_BTHK.shape[:2], k_BSGK.shape[1]
  lengths: dict[str, Any] = {}
  if segments is not None or T % 2 or S % 2:  # jax lets cuDNN train on even lengths only
    seen_B = jnp.full(B, S, jnp.int32)
    if segments is not None:  # a row of padding alone sees a key, too: it must not be NaN
      seen_B = jnp.maximum(1, jnp.sum(segments[1] != 0, axis=1, dtype=jnp.int32))
    q_BTHK, k_BSGK, v_BSGK = (_padded(x, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
    # Mapped over runs, jax 0.10 takes lengths that differ among them: so do these, by nothing.
    zero_B = 0 * (q_BTHK[:, 0, 0, 0] != 0).astype(jnp.int32)
    lengths = {"query_seq_lengths": zero_B + T, "key_value_seq_lengths": zero_B + seen_B}
  y_BTHK = jax.nn.dot_product_attention(
    q_BTHK, k_BSGK, v_BSGK, scale=scale, is_causal=causal, implementation="cudnn", **lengths
  )
  return y_BTHK[:, :T]


def _triton(q_BTHK, k_BSGK, v_BSGK, segments, *, scale, causal, interpret=False):
  attention = importlib.import_module("jax.experimental.pallas.ops.gpu.attention")
  T, repeats = q_BTHK.shape[1], q_BTHK.shape[2] // k_BSGK.shape[2]
  if repeats > 1:
    k_BSGK, v_BSGK = (jnp.repeat(x, repeats, axis=2) for x in (k_BSGK, v_BSGK))
  q_BTHK, k_BSHK, v_BSHK = (_padded(x, BLOCK) for x in (q_BTHK, k_BSGK, v_BSGK))
  blocks = attention.BlockSizes(BLOCK, 64, 64, 64, 64, 64)
  y_BTHK = attention.mha(
    *(q_BTHK, k_BSHK, v_BSHK, _padded(segments[1], BLOCK)),
    sm_scale=scale,
    causal=causal,
    block_sizes=blocks,
    interpret=interpret,
  )
  return y_BTHK[:, :T]


def _splash(q_BTHK, k_BSGK, v_BSGK, segments, *, scale, causal, interpret=False):
  kernels = importlib.import_module("jax.experimental.pallas.ops.tpu.splash_attention")
  B, T, H, _ = q_BTHK.shape
  S = k_BSGK.shape[1]
  if segments is None and (T % BLOCK or S % BLOCK):
    segments = jnp.ones((B, T), jnp.int32), jnp.ones((B, S), jnp.int32)
  if segments is not None:
    segments = kernels.SegmentIds(*(_padded(x, BLOCK) for x in segments))
  q_BTHK, k_BSGK, v_BSGK = (_padded(x, BLOCK) for x in (q_BTHK * scale, k_BSGK, v_BSGK))
  shape = q_BTHK.shape[1], k_BSGK.shape[1]
  mask = kernels.CausalMask(shape) if causal else kernels.FullMask(shape)
  q, kv = (max(n for n in (512, 256, 128) if length % n == 0) for length in shape)
  kernel = kernels.make_splash_mha_single_device(
    kernels.MultiHeadMask([mask] * H),
    block_sizes=kernels.BlockSizes(q, kv, kv, q, kv, kv, q, kv),
    interpret=interpret,
  )
  heads_first = (x.swapaxes(1, 2) for x in (q_BTHK, k_BSGK, v_BSGK))
  return jax.vmap(kernel)(*heads_first, segments).swapaxes(1, 2)[:, :T]


def _padded(x_BT: Array, multiple: int) -> Array:
  """Returns x with zeros behind its T, up to a multiple; there segments are those of padding."""
  return jnp.pad(x_BT, ((0, 0), (0, -x_BT.shape[1] % multiple)) + ((0, 0),) * (x_BT.ndim - 2))


KERNELS: dict[str, Callable[..., Array]] = {
  "cudnn": _cudnn,
  "triton": _triton,
  "splash": _splash,
}
