"""The transformer: embedding, a stack of Blocks or two, head."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from configs.errors import ConfigError
from model import ops
from model.attention import AttentionMask, segment_mask
from model.block import Cache, Context, Stack
from model.layers import ACTIVATIONS, Embedding, Linear, Norm, dropout, split_keys
from model.positions import sinusoids


class Source(NamedTuple):
  """What the encoder of an encoder-decoder reads; segments and positions as in `Transformer`."""

  tokens_BS: Array
  segments_BS: Array | None = None
  positions_BS: Array | None = None


class DecoderState(NamedTuple):
  """What a decoder has read, of its own sequence and of the encoder's."""

  cache: Cache  # with a leading L
  source_mask_BS: Array | None  # the encoder's tokens that may be seen; None: all


class Head(nnx.Module):
  """Logits: perhaps a transform (BERT), then the product with a matrix of its own or a tied one."""

  def __init__(self, c: ConfigDict, vocab_size: int, *, rngs: nnx.Rngs):
    self.transform = Linear(c, c.width, c.width, rngs=rngs) if c.head_transform else None
    self.activation = ACTIVATIONS[c.mlp]
    self.norm = Norm(c, c.width) if c.head_transform else None
    # A head of zeros: every model starts at a loss of exactly ln V, whatever its width, and spends
    # no step on unlearning random logits.
    self.kernel = None if c.tied else nnx.Param(jnp.zeros((c.width, vocab_size)))
    self.bias = nnx.Param(jnp.zeros((vocab_size,))) if c.head_bias else None
    self.scale = _scale_width(c) ** -0.5 if c.scale_logits else 1.0
    if c.tied:  # mup: the table learns at the rate of embeddings, not at that of matrices
      self.scale *= _scale_width(c) / c.width
    self.dtype = jnp.dtype(c.dtype)

  def __call__(self, x_BTD: Array, table_VD: Array) -> Array:
    """Returns logits_BTV in float32; `table_VD` is the embedding, used where it is tied."""
    logits_NV = ops.logits(*self.operands(x_BTD, table_VD), self.dtype)
    return logits_NV.reshape(*x_BTD.shape[:-1], -1)

  def operands(self, x_BTD: Array, table_VD: Array) -> tuple[Array, Array, Array | None]:
    """Returns x_ND, kernel_DV and bias_V (or None), which `ops.logits` makes the logits of."""
    if self.transform is not None and self.norm is not None:
      x_BTD = self.norm(self.activation(self.transform(x_BTD)))
    kernel_DV = table_VD.T if self.kernel is None else self.kernel[...]
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1]) * self.scale
    return x_ND, kernel_DV, None if self.bias is None else self.bias[...]


class Transformer(nnx.Module):
  """An encoder (bidirectional), a decoder (causal), or both, with one Block."""

  def __init__(
    self,
    c: ConfigDict,
    vocab_size: int,
    seq_len: int,
    rngs: nnx.Rngs,
    source_len: int = 0,
    gather: Mapping[str, Callable[[Any], Any]] | None = None,
    prefix: bool = False,
  ):
    """Draws the weights.

    Args:
      c: `config.model`, resolved (`configs.ladders.resolve`).
      vocab_size: V, special ids included.
      seq_len: T, the longest sequence of a decoder, or of a lone encoder [tokens].
      rngs: the source of randomness.
      source_len: S, the longest sequence of an encoder-decoder's encoder [tokens].
      gather: by stack ("encoder", "decoder"), all-gathers one block's parameters right before their
        use, where each device holds a shard of them.
      prefix: a decoder's tokens may see later ones (`prefix_BT`): relative positions tell which.
    """
    # A tied embedding is a linear layer too: beyond 1/sqrt(fan_in), the first logits would be huge.
    linear = c.tied and not c.scale_logits
    std = min(c.init_std, _scale_width(c) ** -0.5) if linear else c.init_std
    table = functools.partial(Embedding, width=c.width, rngs=rngs, std=std)
    self.embedding = table(vocab_size)
    self.token_types = table(c.token_types) if c.token_types else None
    self.embedding_norm = Norm(c, c.width) if c.embedding_norm else None

    both = c.family == "encoder_decoder"

    def stack(name: str, depth: int, length: int) -> Stack:
      causal, shards = name == "decoder", (gather or {}).get(name)
      kind = {"causal": causal, "two_sided": prefix or not causal, "cross": causal and both}
      return Stack(c, depth, length, **kind, std=std, rngs=rngs, gather=shards)

    depth, length = (c.encoder_depth, source_len) if both else (c.depth, seq_len)
    self.encoder = stack("encoder", depth, length) if c.family != "decoder" else None
    self.decoder = stack("decoder", c.depth, seq_len) if c.family != "encoder" else None
    self.head = Head(c, vocab_size, rngs=rngs)
    self.scale = _scale_width(c) ** 0.5 if c.scale_embedding else 1.0
    self.sinusoidal, self.dropout = c.positions == "sinusoidal", c.dropout
    self.logits_at_once, self.activations = c.logits_at_once, jnp.dtype(c.activations)

  def __call__(self, *inputs: Any, **options: Any) -> Array:
    """Returns logits_BTV in float32; takes what `hidden` takes."""
    return self.head(self.hidden(*inputs, **options), self.embedding.table[...])

  def hidden(
    self,
    tokens_BT: Array,
    segments_BT: Array | None = None,
    positions_BT: Array | None = None,
    *,
    prefix_BT: Array | None = None,
    token_types_BT: Array | None = None,
    source: Source | None = None,
    keys_B: Array | None = None,
    right_padded: bool = False,
  ) -> Array:
    """Returns what the head reads, x_BTD.

    Args:
      tokens_BT: token ids, int32 in [0, V).
      segments_BT: document of each token; attention stays inside. None: all are segment 1.
      positions_BT: position of each token in its document. None: 0 ... T - 1.
      prefix_BT: True for tokens that all of a decoder's segment sees (a prefix LM). None: causal.
      token_types_BT: segment type of each token, where the model has them. None: all 0.
      source: what the encoder of an encoder-decoder reads.
      keys_B: of the dropout, one for each row. None: there is none.
      right_padded: segments only tell padding, at the end of each row; those of the source, too.
    """
    keys = split_keys(keys_B, 2)
    stack = self.decoder or self.encoder
    assert stack is not None
    mask = segment_mask(stack.causal, segments_BT, segments_BT, right_padded)
    if prefix_BT is not None and stack.causal:
      causal_1TS = jnp.tril(jnp.ones((1, *tokens_BT.shape[1:] * 2), bool))
      seen_BTS = causal_1TS | prefix_BT[:, None, :]
      mask_BTS = seen_BTS if mask.mask_BTS is None else seen_BTS & mask.mask_BTS
      mask = mask._replace(causal=False, mask_BTS=mask_BTS)
    context = Context(mask)
    if source is not None:
      memory_BSD = self.encode(source, keys[0], right_padded)
      cross_mask = segment_mask(False, segments_BT, source.segments_BS, right_padded)
      context = context._replace(cross_mask=cross_mask, memory_BSD=memory_BSD)
    return self._run(stack, tokens_BT, positions_BT, token_types_BT, context, keys[1])

  def encode(
    self, source: Source, keys_B: Array | None = None, right_padded: bool = False
  ) -> Array:
    """Returns the encoder's output memory_BSD."""
    tokens_BS, segments_BS, positions_BS = source
    assert self.encoder is not None
    context = Context(segment_mask(False, segments_BS, segments_BS, right_padded))
    return self._run(self.encoder, tokens_BS, positions_BS, None, context, keys_B)

  def _run(self, stack, tokens_BT, positions_BT, token_types_BT, context, keys_B) -> Array:
    """Runs a stack over whole sequences."""
    index_1T = jnp.arange(tokens_BT.shape[1])[None]
    if positions_BT is None:
      positions_BT = jnp.broadcast_to(index_1T, tokens_BT.shape)
    x_BTD = self._embed(stack, tokens_BT, positions_BT, token_types_BT)
    # Inside a document distances in the window are those of positions: one bias serves all rows.
    mask = context.mask._replace(bias_BHTS=stack.bias(index_1T, index_1T))
    rotation = stack.rotation(positions_BT)
    context = context._replace(mask=mask, rotation=rotation, observe=stack.observe)
    if keys_B is None:
      return stack(x_BTD, context)[0]
    keys_LB = split_keys(keys_B, stack.depth + 1)
    return stack(dropout(x_BTD, self.dropout, keys_LB[0]), context, keys_LB=keys_LB[1:])[0]

  def start_decoding(
    self, batch_size: int, length: int, source: Source | None = None
  ) -> DecoderState:
    """Returns the state of a decoder that has read nothing but the source (padding: segment 0).

    Its cache has `length` slots, for prompt and continuation.
    """
    assert self.decoder is not None
    attention = self.decoder.block.attention
    width = attention.key.kernel.shape[-1] // attention.kv_heads
    empty = jnp.zeros((self.decoder.depth, batch_size, length, attention.kv_heads, width))
    if source is None:
      return DecoderState(Cache((empty, empty), None), None)
    mask_BS = None if source.segments_BS is None else source.segments_BS == 1
    memory = self.decoder.cross_keys_values(self.encode(source))
    return DecoderState(Cache((empty, empty), memory), mask_BS)

  def extend(
    self, tokens_BT: Array, positions_BT: Array, state: DecoderState, last_seen_BT=None
  ) -> tuple[Array, DecoderState]:
    """Reads more tokens: returns their logits_BTV, and the state with them in it.

    A token at position p is written to slot p of its row, and sees the slots 0 ... p, or those up
    to the one that is given.
    """
    stack = self.decoder
    assert stack is not None
    slots = state.cache.text[0].shape[2]
    last_seen_BT = positions_BT if last_seen_BT is None else last_seen_BT
    seen_BTS = jnp.arange(slots)[None, None, :] <= last_seen_BT[:, :, None]
    mask = AttentionMask(False, seen_BTS, stack.bias(positions_BT, jnp.arange(slots)[None]))
    cross_mask = None
    if state.cache.memory is not None:
      mask_BS = state.source_mask_BS
      cross_mask = AttentionMask(False, None if mask_BS is None else mask_BS[:, None, :])
    context = Context(mask, stack.rotation(positions_BT), cross_mask, slots_BT=positions_BT)
    x_BTD = self._embed(stack, tokens_BT, positions_BT)
    x_BTD, cache = stack(x_BTD, context, state.cache)
    assert cache is not None
    return self.head(x_BTD, self.embedding.table[...]), state._replace(cache=cache)

  def _embed(self, stack, tokens_BT, positions_BT, token_types_BT=None) -> Array:
    x_BTD = self.embedding(tokens_BT) * self.scale
    if stack.positions is not None:
      T, longest = tokens_BT.shape[1], stack.positions.table.shape[0]
      if longest < T:
        raise ConfigError(f"data.seq_len={T}: the model was built with {longest} learned positions")
      x_BTD += stack.positions(positions_BT)
    if self.sinusoidal:
      x_BTD += sinusoids(positions_BT, x_BTD.shape[-1])
    if self.token_types is not None:
      types = jnp.zeros_like(tokens_BT) if token_types_BT is None else token_types_BT
      x_BTD += self.token_types(types)
    if self.embedding_norm is not None:
      x_BTD = self.embedding_norm(x_BTD)
    return x_BTD.astype(self.activations)


def _scale_width(c: ConfigDict) -> int:
  """Returns the width that scales embeddings and logits: that of the base, under muP."""
  return c.mup_base_width if c.width_scaling == "mup" else c.width


FREE = {"ladder", "size", "mlp_ratio", "dropout", "init_std", "dtype", "weights", "activations"}
FREE |= {"remat", "scan", "flash", "logits_at_once"}


def is_free(field: str, c: ConfigDict) -> bool:
  """Says whether a field of a model config leaves the function of its weights as it is."""
  kind = field.partition("_")[0]  # rotary_*, relative_*
  return (
    field in FREE
    or (kind in ("rotary", "relative") and kind != c.positions)
    or (field == "mup_base_width" and c.width_scaling != "mup")
    or (field in ("mup_base_depth", "completep_alpha") and c.depth_scaling != "completep")
    or (field == "attention_biases" and c.biases)
  )
