"""Shared by the tests of the model: tiny models of the three families, with weights at random.

They run one operation at a time: to compile each variant as a whole would take ten times as long.
"""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import FrozenConfigDict

from configs import base, ladders
from model import transformer
from model.transformer import Source
from train import optim

V, T, S = 29, 12, 10
FAMILIES = tuple(base.FAMILIES)
POSITIONS = ("rotary", "learned", "sinusoidal", "relative", "none")
TOKENS_BT = jnp.arange(T, dtype=jnp.int32)[None]  # all distinct, also from the source's
SOURCE_BS = jnp.arange(T, T + S, dtype=jnp.int32)[None]


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def model_config(**changes):
  c = base.get_config()
  fixed = {"width": 16, "depth": 2, "heads": 2, "mlp": "gelu", "init_std": 0.02, "scan": False}
  c.model.update(fixed | changes)
  return ladders.resolve(c).model


def build(seed=0, prefix=False, **changes):
  config = model_config(**changes)
  source_len = S if config.family == "encoder_decoder" else 0
  return transformer.Transformer(config, V, T, nnx.Rngs(seed), source_len, prefix=prefix)


def built(seed=0, **changes):
  return nnx.split(build(seed, **changes))


def randomised(params):
  """Parameters at random, each by its path alone; no gain is 1 and no head 0."""

  def draw(path, w):
    name = jax.tree_util.keystr(path)
    noise = np.random.default_rng(zlib.crc32(name.encode())).normal(size=w.shape)
    fan_in = w.shape[-2] if "kernel" in name else 10
    return jnp.asarray(noise / np.sqrt(fan_in) + ("scale" in name), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, params)


@functools.cache
def random_model(**changes):
  """(params, apply) of a model whose parameters are all at random."""
  graphdef, params = nnx.split(nnx.eval_shape(lambda: build(**changes)))
  return randomised(params), lambda params, *x, **y: nnx.merge(graphdef, params)(*x, **y)


def source_of(family, *source):
  """The keyword argument that gives an encoder-decoder its source; the others take none."""
  return {"source": Source(*(source or (SOURCE_BS,)))} if family == "encoder_decoder" else {}


@functools.cache
def outcome(**changes):
  """(logits_BTV, gradients) of a model whose parameters are all at random."""
  params, apply = random_model(**changes)
  inputs = source_of(changes.get("family"))
  if changes.get("token_types"):
    inputs["token_types_BT"] = TOKENS_BT % changes["token_types"]

  def objective(params):
    logits_BTV = apply(params, TOKENS_BT, **inputs)
    return jnp.sum(jax.nn.log_softmax(logits_BTV)[:, :, 3]), logits_BTV

  gradients, logits_BTV = jax.grad(objective, has_aux=True)(params)
  return logits_BTV, gradients


def assert_trees_close(a, b, **bounds):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **bounds), a, b)


def trainer(config, model):
  """(step, params, state): plain Adam at a constant rate on one fixed batch."""
  c = base.get_config().optim
  c.weight_decay, c.clip_norm = 0.0, 0.0
  optimizer = optim.optimizer(FrozenConfigDict(c), config)
  graphdef, params = nnx.split(model)
  params = nnx.to_pure_dict(params)  # as a run holds them
  rng = np.random.default_rng(0)
  tokens_BT = jnp.array(rng.integers(0, V, (8, T + 1)), jnp.int32)
  source = source_of(config.family, jnp.array(rng.integers(0, V, (8, S)), jnp.int32))

  def loss(params):
    logits_BTV = nnx.merge(graphdef, params)(tokens_BT[:, :-1], **source)
    log_p_BTV = jax.nn.log_softmax(logits_BTV)
    picked_BT1 = jnp.take_along_axis(log_p_BTV, tokens_BT[:, 1:, None], axis=-1)
    return -jnp.mean(picked_BT1), logits_BTV

  def step(params, state):
    gradient, logits_BTV = jax.grad(loss, has_aux=True)(params)
    direction, state = optimizer.update(gradient, state, params)
    return jax.tree.map(lambda p, d: p - 1e-2 * d, params, direction), state, logits_BTV

  return jax.jit(step), params, jax.eval_shape(optimizer.init, params)


def products(jaxpr):
  """FLOPs of all matrix products of a program, those of its inner programs included."""
  flops = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      contracted = equation.params["dimension_numbers"][0][0]
      terms = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
      flops += 2 * terms * math.prod(equation.outvars[0].aval.shape)
    inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(equation.params.values()))]
    repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
    flops += repeats * sum(products(x) for x in inner if hasattr(x, "eqns"))
  return flops
