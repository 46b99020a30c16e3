"""The one Block (attention, perhaps cross-attention, and an MLP), and a Stack of them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

from model.attention import Attention, AttentionMask, KeysValues
from model.layers import MLP, Embedding, Norm, dropout, split_keys
from model.positions import Rotation, relative_bucket, rotary_width, rotation

Observe = Callable[[str, Array], None]  # is given the name and value of an activation
OUTPUTS = r"/block/.*/(out|down)/(kernel|bias)$"  # the last products of attention and of an MLP


def ignore(_name: str, _x_BTD: Array) -> None:
  """Observes nothing."""


class Context(NamedTuple):
  """What all blocks of a stack share."""

  mask: AttentionMask  # what a token sees of its own sequence
  rotation: Rotation | None = None  # of its queries and keys; None: positions are not rotary
  cross_mask: AttentionMask | None = None  # what it sees of the encoder's output, if there is one
  memory_BSD: Array | None = None  # that output; None: the cache holds its keys and values
  slots_BT: Array | None = None  # where in the cache these tokens belong; None: there is none
  observe: Observe = ignore  # of each activation that `isoflop bench --coordinates` compares


class Cache(NamedTuple):
  """Keys and values of what was read so far: of one block, or with a leading L of all."""

  text: KeysValues  # one slot per position
  memory: KeysValues | None  # of the encoder's output


def depth_ratio(c: ConfigDict, depth: int) -> float:
  """Returns m_L of a stack, its depth over the base's; 1: its depth scales nothing."""
  return depth / c.mup_base_depth if c.depth_scaling == "completep" else 1.0


class Block(nnx.Module):
  """Residual block, with its norms before (`pre`) or after (`post`) the sums."""

  def __init__(self, c: ConfigDict, cross: bool, depth: int, *, rngs: nnx.Rngs):
    # The sum of all branches of the stack has the variance that one has elsewhere; `completep`
    # draws them as the base does, and scales them.
    residual = depth_ratio(c, depth) / (depth * (3 if cross else 2))
    self.attention_norm = Norm(c, c.width)
    self.attention = Attention(c, residual, rngs=rngs)
    self.cross_norm = Norm(c, c.width) if cross else None
    self.cross_attention = Attention(c, residual, rngs=rngs) if cross else None
    self.mlp_norm = Norm(c, c.width)
    self.mlp = MLP(c, residual, rngs=rngs)
    self.post, self.dropout, self.parallel = c.norm_position == "post", c.dropout, c.parallel
    self.scale = depth_ratio(c, depth) ** -c.completep_alpha  # Dey et al. 2025, table 1

  def __call__(
    self, x_BTD: Array, context: Context, cache: Cache | None, keys_B: Array | None
  ) -> tuple[Array, Cache | None]:
    """Returns the next residual stream, and the cache (None: there is none) with these tokens."""
    keys = split_keys(keys_B, 3)
    block_input_BTD = x_BTD

    y_BTD = self._input(x_BTD, self.attention_norm)
    keys_values = self.attention.keys_values(y_BTD, context.rotation)
    if cache is not None:
      keys_values = _write(cache.text, keys_values, context.slots_BT)
      cache = cache._replace(text=keys_values)
    y_BTD = self.attention(y_BTD, keys_values, context.mask, context.rotation)
    context.observe("attention", y_BTD)
    x_BTD = self._add(x_BTD, y_BTD, self.attention_norm, keys[0])

    if self.cross_attention is not None and self.cross_norm is not None:
      assert context.cross_mask is not None
      y_BTD = self._input(x_BTD, self.cross_norm)
      if cache is not None and cache.memory is not None:
        keys_values = cache.memory
      else:
        assert context.memory_BSD is not None
        keys_values = self.cross_attention.keys_values(context.memory_BSD)
      y_BTD = self.cross_attention(y_BTD, keys_values, context.cross_mask)
      context.observe("cross-attention", y_BTD)
      x_BTD = self._add(x_BTD, y_BTD, self.cross_norm, keys[1])

    mlp_input_BTD = block_input_BTD if self.parallel else x_BTD
    y_BTD = self.mlp(self._input(mlp_input_BTD, self.mlp_norm))
    context.observe("mlp", y_BTD)
    return self._add(x_BTD, y_BTD, self.mlp_norm, keys[2]), cache

  def _input(self, x_BTD: Array, norm: Norm) -> Array:
    return x_BTD if self.post else norm(x_BTD)

  def _add(self, x_BTD: Array, y_BTD: Array, norm: Norm, keys_B: Array | None) -> Array:
    x_BTD = x_BTD + self.scale * dropout(y_BTD, self.dropout, keys_B)
    return norm(x_BTD) if self.post else x_BTD


def _write(cached: KeysValues, new: KeysValues, slots_BT: Array | None) -> KeysValues:
  """Returns the cached keys and values with new ones in their slots."""
  row_B1 = jnp.arange(new[0].shape[0])[:, None]
  (k_BSGK, v_BSGK), (k_BTGK, v_BTGK) = cached, new
  return k_BSGK.at[row_B1, slots_BT].set(k_BTGK), v_BSGK.at[row_B1, slots_BT].set(v_BTGK)


def _save_products(primitive: Any, *args: Any, **params: Any) -> bool:
  flash = primitive.name.startswith(("dot_product_attention_fwd", "pallas_call"))
  dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return flash or dots(primitive, *args, **params)


# What the backward pass repeats of a block: nothing; all but products with weights, and but flash
# attention; all. XLA's CPU backend undoes it in unrolled layers: it saves memory under `scan` only.
REMAT: dict[str, Callable] = {
  "none": lambda f: f,
  "dots": functools.partial(jax.checkpoint, policy=_save_products),
  "full": jax.checkpoint,
  "all_gather": functools.partial(  # "none" of a model in shards: gathering them is repeated
    jax.checkpoint, policy=lambda primitive, *_, **__: primitive.name != "all_gather"
  ),
}


class Stack(nnx.Module):
  """L blocks, their positions, and the norm that ends them."""

  def __init__(
    self,
    c: ConfigDict,
    depth: int,
    length: int,
    *,
    causal: bool,
    two_sided: bool,
    cross: bool,
    std: float,
    rngs: nnx.Rngs,
    gather: Callable[[Any], Any] | None,
  ):
    self.gather = gather
    self.observe: Observe = ignore
    learned, relative = c.positions == "learned", c.positions == "relative"
    self.positions = Embedding(length, c.width, rngs=rngs, std=std) if learned else None
    self.relative = Embedding(c.relative_buckets, c.heads, rngs=rngs, std=0.1) if relative else None

    @nnx.split_rngs(splits=depth)
    @nnx.vmap
    def blocks(rngs):
      return Block(c, cross, depth, rngs=rngs)

    self.block = blocks(rngs)  # each parameter has a leading axis L
    self.final_norm = Norm(c, c.width) if c.norm_position == "pre" else None
    self.two_sided = two_sided  # relative positions tell keys after a query apart
    self.causal, self.depth, self.scan, self.remat = causal, depth, c.scan, c.remat
    scaling = (c.rotary_factor, c.rotary_original, c.rotary_low, c.rotary_high)
    rotary = (rotary_width(c), c.rotary_base, *scaling)
    self.rotary = rotary if c.positions == "rotary" else None
    self.longest = c.relative_distance

  def rotation(self, positions_BT: Array):
    """Returns the rotation to these positions; None where positions are not rotary."""
    return None if self.rotary is None else rotation(positions_BT, *self.rotary)

  def bias(self, queries_BT: Array, keys_BS: Array) -> Array | None:
    """Returns the bias of relative positions, BHTS; None where positions are not relative."""
    if self.relative is None:
      return None
    distance_BTS = keys_BS[:, None, :] - queries_BT[:, :, None]
    buckets = self.relative.table.shape[0]
    bucket_BTS = relative_bucket(distance_BTS, buckets, self.longest, not self.two_sided)
    return jnp.moveaxis(self.relative(bucket_BTS), -1, 1)

  def __call__(
    self, x_BTD: Array, context: Context, cache: Cache | None = None, keys_LB: Array | None = None
  ) -> tuple[Array, Cache | None]:
    """Returns the output y_BTD, and the cache with these tokens in it."""
    graphdef, state_L = nnx.split(self.block)

    def apply(x_BTD, layer):
      params, cache, keys_B = layer
      params = self.gather(params) if self.gather else params
      return nnx.merge(graphdef, params)(x_BTD, context, cache, keys_B)

    apply = REMAT["all_gather" if self.gather and self.remat == "none" else self.remat](apply)
    layers_L = (nnx.to_pure_dict(state_L), cache, keys_LB)
    if self.scan:
      x_BTD, cache = jax.lax.scan(apply, x_BTD, layers_L)
    else:
      caches = []
      for i in range(self.depth):
        x_BTD, layer_cache = apply(x_BTD, jax.tree.map(lambda w_L, i=i: w_L[i], layers_L))
        caches.append(layer_cache)
      cache = jax.tree.map(lambda *layers: jnp.stack(layers), *caches)
    self.observe("residual", x_BTD)
    return (x_BTD if self.final_norm is None else self.final_norm(x_BTD)), cache

  def cross_keys_values(self, memory_BSD: Array) -> tuple[Array, Array]:
    """Returns the keys and values of the encoder's output, each LBSGK."""
    graphdef, params_L = nnx.split(self.block)
    return jax.vmap(
      lambda params: nnx.merge(graphdef, params).cross_attention.keys_values(memory_BSD)
    )(params_L)
