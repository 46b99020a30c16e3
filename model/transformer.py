"""The transformer: embedding, a stack of Blocks, head. `build` makes one from a config."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from model.attention import rotation
from model.block import ACTIVATIONS, Block
from model.layers import Dense, Embedding, Norm, matmul

# What the backward pass recomputes of a block: nothing; all but the products with weights; all.
# XLA's CPU backend undoes it in unrolled layers: there it saves memory under `scan` only.
REMAT: dict[str, Callable] = {
  "none": lambda f: f,
  "dots": functools.partial(
    jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  ),
  "full": jax.checkpoint,
}

SWITCHES = {
  "family": ("decoder",),
  "mlp": tuple(ACTIVATIONS),
  "norm": ("rms", "layer"),
  "positions": ("rotary", "learned"),
  "dtype": ("float32", "bfloat16"),
  "remat": tuple(REMAT),
}


class Decoder(nnx.Module):
  """A causal language model."""

  def __init__(self, model_config: ConfigDict, vocab_size: int, seq_len: int, *, rngs: nnx.Rngs):
    c = model_config
    # A tied embedding is a dense layer too: beyond 1/sqrt(fan_in), the first logits would be huge.
    std = min(c.init_std, c.width**-0.5) if c.tied else c.init_std
    self.embedding = Embedding(c, vocab_size, rngs=rngs, std=std)
    learned = c.positions == "learned"
    self.positions = Embedding(c, seq_len, rngs=rngs, std=std) if learned else None
    self.block = _stack(c, rngs)
    self.final_norm = Norm(c, c.width)
    # A head of zeros: every model starts at a loss of exactly ln V, whatever its width, and spends
    # no step on unlearning random logits.
    self.head = None if c.tied else Dense(c, c.width, vocab_size, rngs=rngs, scale=0, bias=False)
    self.head_width = c.width // c.heads
    self.depth, self.scan, self.remat = c.depth, c.scan, c.remat
    self.dtype = jnp.dtype(c.dtype)

  def __call__(self, tokens_BT, segments_BT=None, positions_BT=None) -> jax.Array:
    """Returns logits_BTV in float32.

    Args:
      tokens_BT: token ids, int32 in [0, V).
      segments_BT: document of each token; attention stays inside. None: it is causal only.
      positions_BT: position of each token in its document. None: 0 ... T - 1.
    """
    T = tokens_BT.shape[1]
    if positions_BT is None:
      positions_BT = jnp.broadcast_to(jnp.arange(T)[None], tokens_BT.shape)
    x_BTD = self.embedding(tokens_BT)
    rotation_ = None
    if self.positions is None:
      rotation_ = rotation(positions_BT, self.head_width)
    elif self.positions.table.shape[0] < T:
      longest = self.positions.table.shape[0]
      raise ValueError(f"data.seq_len={T}: the model was built with {longest} learned positions")
    else:
      x_BTD += self.positions(positions_BT)
    mask_BTS = None
    if segments_BT is not None:
      mask_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    x_BTD = self.final_norm(self._blocks(x_BTD, mask_BTS, rotation_))
    if self.head is not None:
      return self.head(x_BTD)
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    logits_NV = matmul(x_ND, self.embedding.table[...].T, self.dtype)
    return logits_NV.reshape(*tokens_BT.shape, -1)

  def _blocks(self, x_BTD, *context):
    graphdef, params_L = nnx.split(self.block)

    @REMAT[self.remat]
    def apply(x_BTD, params):
      return nnx.merge(graphdef, params)(x_BTD, *context), None

    if self.scan:
      return jax.lax.scan(apply, x_BTD, params_L)[0]
    for i in range(self.depth):
      x_BTD, _ = apply(x_BTD, jax.tree.map(lambda w_L, i=i: w_L[i], params_L))
    return x_BTD


def _stack(model_config: ConfigDict, rngs: nnx.Rngs) -> Block:
  """Returns L blocks as one, each parameter with a leading axis L."""

  @nnx.split_rngs(splits=model_config.depth)
  @nnx.vmap
  def create(rngs):
    return Block(model_config, rngs=rngs)

  return create(rngs)


def build(model_config: ConfigDict, vocab_size: int, seq_len: int, rngs: nnx.Rngs) -> nnx.Module:
  """Returns a freshly initialised transformer.

  Args:
    model_config: `config.model`, resolved (`configs.ladders.resolve`).
    vocab_size: V.
    seq_len: T, the longest sequence [tokens].
    rngs: the source of randomness; the weights are a function of its seed only.

  Raises:
    ValueError: a switch of the config has a value that it does not know.
  """
  for field, options in SWITCHES.items():
    if model_config[field] not in options:
      raise ValueError(
        f"model.{field}={model_config[field]!r}: unknown; choose one of {', '.join(options)}"
      )
  return Decoder(model_config, vocab_size, seq_len, rngs=rngs)
