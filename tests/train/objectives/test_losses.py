"""Chunked and one-pass cross-entropy against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import SOURCE_BS, TOKENS_BT, T, V, built, model_config, random_model, randomised

from model import ops, transformer
from train.objectives import losses

ROWS = 3  # 36 tokens: neither 5 nor 7 chunks divide them
HEADS = (
  {},
  {"tied": True},
  {"tied": True, "scale_logits": True},
  {"tied": True, "width_scaling": "mup", "mup_base_width": 8},
  {"head_bias": True},
  {"tied": True, "head_bias": True, "head_transform": True, "biases": True},
)
rng = np.random.default_rng(0)
TARGETS_BT = jnp.asarray(rng.integers(0, V, (ROWS, T)), jnp.int32)
COTANGENTS = [jnp.asarray(rng.normal(size=(ROWS, T)), jnp.float32) for _ in range(2)]


def with_gradients(loss, *arguments):
  """((nll, log Z), their gradients); each token has a weight of its own."""

  def total(*arguments):
    both = loss(*arguments)
    return sum(jnp.vdot(w, x) for w, x in zip(COTANGENTS, both, strict=True)), both

  grads, both = jax.grad(total, tuple(range(len(arguments))), has_aux=True)(*arguments)
  return both, grads


def head_losses(logits_at_once, **changes):
  """Losses of a random head, and their gradients by its weights, x and the embedding."""
  c = model_config(**changes)
  graphdef, params = nnx.split(transformer.Head(c, V, rngs=nnx.Rngs(0)))
  rng = np.random.default_rng(1)
  x_BTD, table_VD = (
    jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((ROWS, T, c.width), (V, c.width))
  )

  def loss(params, x_BTD, table_VD):
    head = nnx.merge(graphdef, params)
    return losses.head_losses(head, x_BTD, table_VD, TARGETS_BT, logits_at_once)

  return with_gradients(loss, randomised(params), x_BTD, table_VD)


def model_losses(logits_at_once, family):
  params, _ = random_model(family=family)
  graphdef, _ = built(family=family, logits_at_once=logits_at_once)
  batch = {"inputs_BT": jnp.tile(TOKENS_BT, (ROWS, 1)), "targets_BT": TARGETS_BT}
  if family == "encoder_decoder":
    batch["source_BS"] = jnp.tile(SOURCE_BS, (ROWS, 1))
  return with_gradients(
    lambda params: losses.token_losses(nnx.merge(graphdef, params), batch, segments=""), params
  )


def assert_close(result, expected):
  """Sums of some 40 terms in another order, and some ten operations on them: 2^-24 x 40 x 10."""
  for x, y in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
    bound = 400 * 2.0**-24 * max(1.0, float(jnp.max(jnp.abs(y))))
    np.testing.assert_allclose(x, y, rtol=0, atol=bound)


@pytest.mark.parametrize(
  "changes",
  [
    pytest.param(c, marks=pytest.mark.slow if 0 < i < len(HEADS) - 1 else ())
    for i, c in enumerate(HEADS)
  ],
  ids=lambda c: "-".join(c) or "untied",
)
def test_chunked_losses_and_gradients_equal_plain_ones(changes):
  whole = head_losses(0, **changes)
  for num_chunks in (5, 7):
    at_once = -(-ROWS * T * V // num_chunks)
    assert ops.loss_chunks(ROWS * T, V, at_once) == num_chunks
    assert_close(head_losses(at_once, **changes), whole)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["encoder", "encoder_decoder"])
def test_logits_at_once_sets_the_chunks_of_a_model(family, monkeypatch):
  whole, num_chunks = model_losses(0, family), []
  chunked = losses.chunked_cross_entropy
  monkeypatch.setattr(
    losses, "chunked_cross_entropy", lambda *x: num_chunks.append(x[-1]) or chunked(*x)
  )
  assert_close(model_losses(1000, family), whole)
  assert num_chunks == [2]


def test_vmapped_gradients_equal_those_of_each_run():
  x_WND, kernel_WDV = (
    jnp.asarray(np.random.default_rng(i).normal(size=shape), jnp.float32)
    for i, shape in enumerate([(2, 10, 4), (2, 4, V)])
  )
  targets_WN = jnp.arange(20).reshape(2, 10)

  def loss(x_ND, kernel_DV, targets_N):
    nll_N, log_z_N = losses.chunked_cross_entropy(x_ND, kernel_DV, None, targets_N, "float32", 3)
    return jnp.sum(nll_N + log_z_N**2)

  gradients = jax.grad(loss, (0, 1))
  packed = jax.vmap(gradients)(x_WND, kernel_WDV, targets_WN)
  alone = [gradients(*run) for run in zip(x_WND, kernel_WDV, targets_WN, strict=True)]
  assert_close(packed, jax.tree.map(lambda *x: jnp.stack(x), *alone))


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_gradients_of_chunks_are_summed_in_float32(weights):
  """Of 2,048 equal terms a bfloat16 sum would stop growing at 2^8 of them."""
  N, D, vocab = 2048, 2, 4
  x_ND, kernel_DV = jnp.ones((N, D)), jnp.zeros((D, vocab), weights)

  def loss(kernel_DV):
    zeros_N = jnp.zeros(N, jnp.int32)
    nll_N, _ = losses.chunked_cross_entropy(x_ND, kernel_DV, None, zeros_N, jnp.bfloat16, N)
    return jnp.sum(nll_N)

  grad_DV = jax.grad(loss)(kernel_DV)
  assert grad_DV.dtype == weights
  np.testing.assert_array_equal(grad_DV, np.tile([-0.75 * N, *[0.25 * N] * 3], (D, 1)))


def test_only_the_logits_of_one_chunk_exist_at_a_time():
  """With their exponentials and their gradient."""
  N, D, vocab, num_chunks = 2048, 16, 2000, 16
  logits = 4 * N * vocab
  shapes = [(N, D), (D, vocab)]
  operands = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  targets_N = jax.ShapeDtypeStruct((N,), jnp.int32)

  def held(loss):
    def total(x_ND, kernel_DV, targets_N):
      nll_N, log_z_N = loss(x_ND, kernel_DV, targets_N)
      return jnp.sum(nll_N + log_z_N**2)

    compiled = jax.jit(jax.grad(total, (0, 1))).lower(*operands, targets_N).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  def whole(x_ND, kernel_DV, targets_N):
    return losses.cross_entropy(ops.logits(x_ND, kernel_DV, None, jnp.float32), targets_N)

  def chunked(x_ND, kernel_DV, targets_N):
    return losses.chunked_cross_entropy(x_ND, kernel_DV, None, targets_N, jnp.float32, num_chunks)

  others = sum(4 * np.prod(shape) for shape in shapes)
  assert held(whole) >= logits
  assert held(chunked) <= 3 * logits / num_chunks + 4 * others


def test_one_pass_loss_equals_the_plain_one():
  """Also of logits that are all far below 0, or of which one is far above the others."""
  logits_ND = jnp.asarray(np.random.default_rng(0).normal(size=(6, 1000)), jnp.float32)
  logits_ND = logits_ND * jnp.asarray([[1], [30], [0], [1], [1], [1]])
  logits_ND = logits_ND.at[3].add(-1e4).at[4, 7].set(500.0).at[5].add(1e4)
  targets_N = jnp.asarray([0, 999, 5, 6, 7, 8])
  expected = losses.cross_entropy(logits_ND, targets_N)
  result = jax.jit(losses.cross_entropy_in_one_pass)(logits_ND, targets_N)
  for x_N, y_N in zip(result, expected, strict=True):
    np.testing.assert_allclose(x_N, y_N, rtol=2e-6, atol=2e-6)
