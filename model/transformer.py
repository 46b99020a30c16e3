"""The transformer: embedding, a stack of Blocks or two, head. `build` makes one from a config."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from configs.errors import ConfigError
from model import layers
from model.attention import View, relative_bucket, rotation
from model.block import ACTIVATIONS, Block, Cache, Context
from model.layers import Dense, Embedding, Norm, dropout, matmul, split_keys


def _dots(primitive: Any, *args: Any, **params: Any) -> bool:
  flash = primitive.name.startswith(("dot_product_attention_fwd", "pallas_call"))
  dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return flash or dots(primitive, *args, **params)


# What the backward pass repeats of a block: nothing; all but products with weights, and but flash
# attention; all. XLA's CPU backend undoes it in unrolled layers: it saves memory under `scan` only.
REMAT: dict[str, Callable] = {
  "none": lambda f: f,
  "dots": functools.partial(jax.checkpoint, policy=_dots),
  "full": jax.checkpoint,
  "gathered": functools.partial(  # "none" of a model in shards: making them whole is repeated
    jax.checkpoint, policy=lambda primitive, *_, **__: primitive.name != "all_gather"
  ),
}

SWITCHES = {
  "family": ("decoder", "encoder", "encoder_decoder"),
  "mlp": tuple(ACTIVATIONS),
  "norm": ("rms", "layer"),
  "norm_position": ("pre", "post"),
  "positions": ("rotary", "learned", "sinusoidal", "relative", "none"),
  "width_scaling": ("standard", "mup"),
  "dtype": ("float32", "bfloat16"),
  "weights": ("float32", "bfloat16"),
  "activations": ("float32", "bfloat16"),
  "remat": ("none", "dots", "full"),
}


class Source(NamedTuple):
  """What the encoder of an encoder-decoder reads; segments and positions as in `Transformer`."""

  tokens_BS: jax.Array
  segments_BS: jax.Array | None = None
  positions_BS: jax.Array | None = None


class Reading(NamedTuple):
  """A decoder's cache: what it has read, of its own sequence and of the encoder's."""

  cache: Cache  # with a leading L
  source_mask_BS: jax.Array | None  # the encoder's tokens that may be seen; None: all


class Stack(nnx.Module):
  """L blocks, their positions, and the norm that ends them."""

  def __init__(
    self,
    model_config: ConfigDict,
    depth: int,
    length: int,
    *,
    causal: bool,
    cross: bool,
    std: float,
    rngs: nnx.Rngs,
    gather: Callable[[Any], Any] | None = None,
  ):
    c = model_config
    self.gather = gather
    self.positions = Embedding(length, c.width, rngs=rngs, std=std) if _is(c, "learned") else None
    buckets = c.relative_buckets
    self.relative = Embedding(buckets, c.heads, rngs=rngs, std=0.1) if _is(c, "relative") else None
    self.block = _stacked(c, depth, cross, rngs)
    self.final_norm = Norm(c, c.width) if c.norm_position == "pre" else None
    self.causal, self.depth, self.scan, self.remat = causal, depth, c.scan, c.remat
    self.rotary_base = c.rotary_base if _is(c, "rotary") else None
    self.head_width, self.longest = c.head_width, c.relative_distance

  def rotation(self, positions_BT: jax.Array):
    """Returns the rotation to these positions; None where positions are not rotary."""
    if self.rotary_base is None:
      return None
    return rotation(positions_BT, self.head_width, self.rotary_base)

  def bias(self, queries_BT: jax.Array, keys_BS: jax.Array) -> jax.Array | None:
    """Returns the bias of relative positions, BHTS; None where positions are not relative."""
    if self.relative is None:
      return None
    distance_BTS = keys_BS[:, None, :] - queries_BT[:, :, None]
    buckets = self.relative.table.shape[0]
    bucket_BTS = relative_bucket(distance_BTS, buckets, self.longest, self.causal)
    return jnp.moveaxis(self.relative(bucket_BTS), -1, 1)

  def __call__(
    self,
    x_BTD: jax.Array,
    context: Context,
    cache: Cache | None = None,
    keys_LB: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """Returns the output y_BTD, and the cache with these tokens in it."""
    graphdef, state_L = nnx.split(self.block)
    params_L = nnx.to_pure_dict(state_L)

    remat = REMAT[self.remat if self.gather is None or self.remat != "none" else "gathered"]

    @remat
    def apply(x_BTD, layer):
      params, cache, keys_B = layer
      if self.gather is not None:
        params = self.gather(params)
      return nnx.merge(graphdef, params)(x_BTD, context, cache, keys_B)

    layers_L = (params_L, cache, keys_LB)
    if self.scan:
      x_BTD, cache = jax.lax.scan(apply, x_BTD, layers_L)
    else:
      caches = []
      for i in range(self.depth):
        x_BTD, layer_cache = apply(x_BTD, jax.tree.map(lambda w_L, i=i: w_L[i], layers_L))
        caches.append(layer_cache)
      cache = jax.tree.map(lambda *layers: jnp.stack(layers), *caches)
    return (x_BTD if self.final_norm is None else self.final_norm(x_BTD)), cache

  def cross_keys_values(self, memory_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the keys and values of the encoder's output, each LBSGK."""
    graphdef, params_L = nnx.split(self.block)
    return jax.vmap(
      lambda params: nnx.merge(graphdef, params).cross_attention.keys_values(memory_BSD)
    )(params_L)


class Head(nnx.Module):
  """Logits: perhaps a transform (BERT), then the product with a matrix of its own or a tied one."""

  def __init__(self, model_config: ConfigDict, vocab_size: int, *, rngs: nnx.Rngs):
    c = model_config
    self.transform = Dense(c, c.width, c.width, rngs=rngs) if c.head_transform else None
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

  def __call__(self, x_BTD: jax.Array, table_VD: jax.Array) -> jax.Array:
    """Returns logits_BTV in float32; `table_VD` is the embedding, used where it is tied."""
    return logits(*self.operands(x_BTD, table_VD), self.dtype).reshape(*x_BTD.shape[:-1], -1)

  def operands(
    self, x_BTD: jax.Array, table_VD: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns x_ND, kernel_DV and bias_V (or None), of which `logits` makes the logits."""
    if self.transform is not None and self.norm is not None:
      x_BTD = self.norm(self.activation(self.transform(x_BTD)))
    kernel_DV = table_VD.T if self.kernel is None else self.kernel[...]
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1]) * self.scale
    return x_ND, kernel_DV, None if self.bias is None else self.bias[...]


def logits(x_ND: jax.Array, kernel_DV: jax.Array, bias_V: jax.Array | None, dtype) -> jax.Array:
  """Returns logits_NV in float32 of what `Head.operands` returns."""
  logits_NV = matmul(x_ND, kernel_DV, dtype)
  return logits_NV if bias_V is None else logits_NV + bias_V[None]


class Transformer(nnx.Module):
  """An encoder (bidirectional), a decoder (causal), or both, with one Block."""

  def __init__(
    self,
    model_config: ConfigDict,
    vocab_size: int,
    seq_len: int,
    source_len: int = 0,
    *,
    rngs: nnx.Rngs,
    gather: Mapping[str, Callable[[Any], Any]] | None = None,
  ):
    c = model_config
    gather = gather or {}
    # A tied embedding is a dense layer too: beyond 1/sqrt(fan_in), the first logits would be huge.
    dense = c.tied and not c.scale_logits
    std = min(c.init_std, _scale_width(c) ** -0.5) if dense else c.init_std
    both = c.family == "encoder_decoder"
    stack = functools.partial(Stack, c, std=std, rngs=rngs)
    self.embedding = Embedding(vocab_size, c.width, rngs=rngs, std=std)
    self.token_types = (
      Embedding(c.token_types, c.width, rngs=rngs, std=std) if c.token_types else None
    )
    self.embedding_norm = Norm(c, c.width) if c.embedding_norm else None
    encodes, decodes = c.family != "decoder", c.family != "encoder"
    depth, length = (c.encoder_depth, source_len) if both else (c.depth, seq_len)
    encoder = functools.partial(stack, causal=False, cross=False, gather=gather.get("encoder"))
    decoder = functools.partial(stack, causal=True, cross=both, gather=gather.get("decoder"))
    self.encoder = encoder(depth, length) if encodes else None
    self.decoder = decoder(c.depth, seq_len) if decodes else None
    self.head = Head(c, vocab_size, rngs=rngs)
    self.scale = _scale_width(c) ** 0.5 if c.scale_embedding else 1.0
    self.sinusoidal, self.dropout = _is(c, "sinusoidal"), c.dropout
    self.logits_at_once, self.activations = c.logits_at_once, jnp.dtype(c.activations)

  def __call__(self, *inputs: Any, **more: Any) -> jax.Array:
    """Returns logits_BTV in float32; takes what `hidden` takes."""
    return self.head(self.hidden(*inputs, **more), self.embedding.table[...])

  def hidden(
    self,
    tokens_BT: jax.Array,
    segments_BT: jax.Array | None = None,
    positions_BT: jax.Array | None = None,
    *,
    prefix_BT: jax.Array | None = None,
    token_types_BT: jax.Array | None = None,
    source: Source | None = None,
    keys_B: jax.Array | None = None,
    tail: bool = False,
  ) -> jax.Array:
    """Returns what the head reads, x_BTD.

    Args:
      tokens_BT: token ids, int32 in [0, V).
      segments_BT: document of each token; attention stays inside. None: all are segment 1.
      positions_BT: position of each token in its document. None: 0 ... T - 1.
      prefix_BT: True for tokens that a decoder's whole segment sees, also those before (a prefix
        LM). None: it is causal.
      token_types_BT: segment type of each token, where the model has them. None: all 0.
      source: what the encoder of an encoder-decoder reads.
      keys_B: of the dropout, one for each row. None: there is none.
      tail: segments only tell padding, at the end of each row (see `View`); those of the source,
        too.
    """
    keys = split_keys(keys_B, 2)
    stack = self.decoder or self.encoder
    assert stack is not None
    memory_BSD, cross_view = None, None
    if source is not None:
      memory_BSD = self.encode(source, keys[0], tail)
      cross_view = _view(False, segments_BT, source.segments_BS, tail)
    view = _view(stack.causal, segments_BT, segments_BT, tail)
    if prefix_BT is not None and stack.causal:
      causal_1TS = jnp.tril(jnp.ones((1, *tokens_BT.shape[1:] * 2), bool))
      seen_BTS = causal_1TS | prefix_BT[:, None, :]
      mask_BTS = seen_BTS if view.mask_BTS is None else seen_BTS & view.mask_BTS
      view = view._replace(causal=False, mask_BTS=mask_BTS)
    context = self._context(stack, tokens_BT, positions_BT, view)
    context = context._replace(cross_view=cross_view, memory_BSD=memory_BSD)
    x_BTD = self._embed(stack, tokens_BT, positions_BT, token_types_BT)
    return self._run(stack, x_BTD, context, keys[1])

  def encode(
    self, source: Source, keys_B: jax.Array | None = None, tail: bool = False
  ) -> jax.Array:
    """Returns the encoder's output memory_BSD."""
    tokens_BS, segments_BS, positions_BS = source
    assert self.encoder is not None
    view = _view(False, segments_BS, segments_BS, tail)
    context = self._context(self.encoder, tokens_BS, positions_BS, view)
    x_BSD = self._embed(self.encoder, tokens_BS, positions_BS)
    return self._run(self.encoder, x_BSD, context, keys_B)

  def _run(
    self, stack: Stack, x_BTD: jax.Array, context: Context, keys_B: jax.Array | None
  ) -> jax.Array:
    if keys_B is None:
      return stack(x_BTD, context)[0]
    keys_LB = split_keys(keys_B, stack.depth + 1)
    return stack(dropout(x_BTD, self.dropout, keys_LB[0]), context, keys_LB=keys_LB[1:])[0]

  def start_cache(self, batch_size: int, length: int, source: Source | None = None) -> Reading:
    """Returns the cache of a decoder that has read nothing but the source.

    Args:
      batch_size: B.
      length: number of slots S: prompt and continuation [tokens].
      source: what the encoder of an encoder-decoder reads; its segments are 1, padding is 0.
    """
    assert self.decoder is not None
    attention = self.decoder.block.attention
    width = attention.key.kernel.shape[-1] // attention.kv_heads
    empty = jnp.zeros((self.decoder.depth, batch_size, length, attention.kv_heads, width))
    if source is None:
      return Reading(Cache((empty, empty), None), None)
    mask_BS = None if source.segments_BS is None else source.segments_BS == 1
    cross = self.decoder.cross_keys_values(self.encode(source))
    return Reading(Cache((empty, empty), cross), mask_BS)

  def extend(
    self, tokens_BT: jax.Array, positions_BT: jax.Array, reading: Reading
  ) -> tuple[jax.Array, Reading]:
    """Reads more tokens: returns their logits_BTV, and the cache with them in it.

    A token at position p is written to slot p of its row, and sees the slots 0 ... p.
    """
    stack = self.decoder
    assert stack is not None
    slots = reading.cache.own[0].shape[2]
    seen_BTS = jnp.arange(slots)[None, None, :] <= positions_BT[:, :, None]
    view = View(False, seen_BTS, stack.bias(positions_BT, jnp.arange(slots)[None]))
    cross_view = None
    if reading.cache.cross is not None:
      mask_BS = reading.source_mask_BS
      cross_view = View(False, None if mask_BS is None else mask_BS[:, None, :])
    context = Context(view, stack.rotation(positions_BT), cross_view, slots_BT=positions_BT)
    x_BTD = self._embed(stack, tokens_BT, positions_BT)
    x_BTD, cache = stack(x_BTD, context, reading.cache)
    assert cache is not None
    return self.head(x_BTD, self.embedding.table[...]), reading._replace(cache=cache)

  def _context(
    self, stack: Stack, tokens_BT: jax.Array, positions_BT: jax.Array | None, view: View
  ) -> Context:
    index_1T = jnp.arange(tokens_BT.shape[1])[None]
    # Inside a document distances in the window are those of positions: one bias serves all rows.
    view = view._replace(bias_BHTS=stack.bias(index_1T, index_1T))
    return Context(view, stack.rotation(index_1T if positions_BT is None else positions_BT))

  def _embed(
    self,
    stack: Stack,
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None,
    token_types_BT: jax.Array | None = None,
  ) -> jax.Array:
    x_BTD = self.embedding(tokens_BT) * self.scale
    T = tokens_BT.shape[1]
    if positions_BT is None:
      positions_BT = jnp.broadcast_to(jnp.arange(T)[None], tokens_BT.shape)
    if stack.positions is not None:
      longest = stack.positions.table.shape[0]
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


def sinusoids(positions_BT: jax.Array, width: int) -> jax.Array:
  """Returns the position vectors of Vaswani et al. 2017 (arXiv:1706.03762), BTD: sines, cosines."""
  rates_J = 10_000.0 ** -(jnp.arange(width // 2) * 2 / width)
  angles_BTJ = positions_BT[..., None] * rates_J[None, None]
  return jnp.concatenate([jnp.sin(angles_BTJ), jnp.cos(angles_BTJ)], axis=-1)


def _scale_width(model_config: ConfigDict) -> int:
  """Returns the width that scales embeddings and logits: that of the base, under muP."""
  c = model_config
  return c.mup_base_width if c.width_scaling == "mup" else c.width


def _is(model_config: ConfigDict, positions: str) -> bool:
  return model_config.positions == positions


def _view(
  causal: bool, queries_BT: jax.Array | None, keys_BS: jax.Array | None, tail: bool
) -> View:
  """Returns what tokens of these segments see.

  Where only one side has segments, the other is segment 1: padding stays out of sight.
  """
  if queries_BT is None and keys_BS is None:
    return View(causal)
  if queries_BT is None:
    queries_BT = jnp.ones((1, 1), int)
  if keys_BS is None:
    keys_BS = jnp.ones((1, 1), int)
  view = View(causal, segments=(queries_BT, keys_BS), tail=tail)
  return view.dense() if layers.platform() == "cpu" else view  # once for all blocks, not in each


def _stacked(model_config: ConfigDict, depth: int, cross: bool, rngs: nnx.Rngs) -> Any:
  """Returns L blocks as one, each parameter with a leading axis L."""

  @nnx.split_rngs(splits=depth)
  @nnx.vmap
  def create(rngs):
    return Block(model_config, cross, rngs=rngs)

  return create(rngs)


def check(model_config: ConfigDict) -> None:
  """Raises ConfigError where a switch of the config has a value that it does not know."""
  for field, options in SWITCHES.items():
    if model_config[field] not in options:
      raise ConfigError(
        f"model.{field}={model_config[field]!r}: unknown; choose one of {', '.join(options)}"
      )
  for field in ("weights", "activations"):
    if model_config[field] == "bfloat16" and model_config.dtype != "bfloat16":
      raise ConfigError(
        f"model.{field}='bfloat16': with model.dtype={model_config.dtype!r} products gain nothing "
        f"by it; set model.dtype='bfloat16', or leave model.{field} in float32"
      )


def build(
  model_config: ConfigDict,
  vocab_size: int,
  seq_len: int,
  rngs: nnx.Rngs,
  source_len: int = 0,
  gather: Mapping[str, Callable[[Any], Any]] | None = None,
) -> Transformer:
  """Returns a freshly initialised transformer.

  Args:
    model_config: `config.model`, resolved (`configs.ladders.resolve`).
    vocab_size: V, special ids included.
    seq_len: T, the longest sequence of a decoder, or of a lone encoder [tokens].
    rngs: the source of randomness; the weights are a function of its seed only.
    source_len: S, the longest sequence of an encoder-decoder's encoder [tokens].
    gather: by stack ("encoder", "decoder"), makes whole the parameters of one block of which each
      device holds a shard, right before they are used; None: they are whole.

  Raises:
    ConfigError: a switch of the config has a value that it does not know.
  """
  check(model_config)
  return Transformer(model_config, vocab_size, seq_len, source_len, rngs=rngs, gather=gather)
