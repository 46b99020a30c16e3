"""Attention by its formula, with its written-out derivative, and what its halves leave out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import (
  FAMILIES,
  TOKENS_BT,
  assert_trees_close,
  build,
  normal,
  products,
  random_model,
  source_of,
)

from model import attention
from model.attention import AttentionMask

FLOAT32 = jnp.dtype("float32")
pytestmark = pytest.mark.usefixtures("no_silent_broadcasting")


Q_BTHK, K_BSHK, V_BSHK = normal(0, 2, 8, 4, 6) * 3, normal(1, 2, 8, 4, 6) * 3, normal(2, 2, 8, 4, 6)
SEGMENTS_BT = jnp.array([[1] * 3 + [2] * 5, [1] * 7 + [2]])
MASK_BTS = SEGMENTS_BT[:, :, None] == SEGMENTS_BT[:, None, :]


def plain_attention(q_BTHK, k_BSGK, v_BSGK, view, scale):
  """The formula, one head after the other."""
  G, H, rows, columns = k_BSGK.shape[2], q_BTHK.shape[2], q_BTHK.shape[1], k_BSGK.shape[1]
  heads = []
  for h in range(H):
    g = h // (H // G)
    scores_BTS = scale * jnp.einsum("btk,bsk->bts", q_BTHK[:, :, h], k_BSGK[:, :, g])
    if view.bias_BHTS is not None:
      bias_BTS = jnp.broadcast_to(view.bias_BHTS[:, h], scores_BTS.shape)
      scores_BTS = scores_BTS + bias_BTS
    seen_BTS = jnp.ones(scores_BTS.shape, bool) if view.mask_BTS is None else view.mask_BTS
    if view.causal:
      seen_BTS &= jnp.tril(jnp.ones((1, rows, columns), bool))
    w_BTS = jax.nn.softmax(jnp.where(seen_BTS, scores_BTS, -jnp.inf), axis=-1)
    heads.append(jnp.einsum("bts,bsk->btk", w_BTS, v_BSGK[:, :, g]))
  return jnp.stack(heads, axis=2)


@pytest.mark.parametrize("bias", [pytest.param(0, marks=pytest.mark.smoke), 1, 2])
@pytest.mark.parametrize(("causal", "masked", "kv_heads"), [(1, 0, 4), (1, 1, 2), (0, 1, 1)])
def test_attention_and_its_written_out_derivative(causal, masked, kv_heads, bias):
  """Values and derivatives by q, k, v and the bias; a bias of one row is that of all."""
  k_BSGK, v_BSGK = K_BSHK[:, :, :kv_heads], V_BSHK[:, :, :kv_heads]
  bias_BHTS = normal(3, bias, 4, 8, 8) if bias else None

  def total(attend):
    def function(q, k, v, bias_BHTS):
      view = AttentionMask(bool(causal), MASK_BTS if masked else None, bias_BHTS)
      return jnp.sin(attend(q, k, v, view)).sum()

    wanted = (0, 1, 2, 3) if bias else (0, 1, 2)
    return jax.value_and_grad(function, wanted)(Q_BTHK, k_BSGK, v_BSGK, bias_BHTS)

  ours = total(lambda *x: attention.attend(*x, 0.3, FLOAT32))
  plain = total(lambda *x: plain_attention(*x, 0.3))
  assert_trees_close(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_the_derivative_of_bfloat16_stays_within_its_rounding(causal):
  """As `test_bfloat16_stays_within_its_rounding` bounds the values; the kept weights round once."""
  q_BTHK, k_BSHK, v_BSHK, dy_BTHK = (normal(i, 2, 128, 2, 32) for i in range(4))

  def derivatives(dtype):
    def function(q, k, v):
      mask = AttentionMask(causal)
      return jnp.sum(attention.attend(q, k, v, mask, 32**-0.5, jnp.dtype(dtype)) * dy_BTHK)

    return jax.grad(function, (0, 1, 2))(q_BTHK, k_BSHK, v_BSHK)

  # Products behind it: scores, sum, its derivative by the weights, the last; for v first and last.
  for exact, rounded, behind in zip(
    derivatives("float32"), derivatives("bfloat16"), (4, 4, 2), strict=True
  ):
    error = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
    assert 1e-4 < error < (2 * behind + 1) * 2**-8


def test_a_query_may_see_fewer_or_more_keys_than_there_are_queries():
  for S_ in (3, 8):
    k_BSGK, v_BSGK = K_BSHK[:, :S_], V_BSHK[:, :S_]
    ours = attention.attend(Q_BTHK[:, :5], k_BSGK, v_BSGK, AttentionMask(False), 0.3, FLOAT32)
    plain = plain_attention(Q_BTHK[:, :5], k_BSGK, v_BSGK, AttentionMask(False), 0.3)
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_that_share_keys_and_values_equal_heads_with_copies_of_them(family):
  """Query head h of 4 reads key and value head h // 2 of 2."""
  grouped, apply_grouped = random_model(family=family, heads=4, kv_heads=2)
  every, apply_every = random_model(family=family, heads=4)

  def copied(path, w, shape):
    name = jax.tree_util.keystr(path)
    if w.shape == shape.shape:
      return w
    assert "key" in name or "value" in name
    return jnp.repeat(w.reshape(*w.shape[:-1], 2, -1), 2, axis=-2).reshape(shape.shape)

  copies = jax.tree_util.tree_map_with_path(copied, grouped, every)
  a = apply_grouped(grouped, TOKENS_BT, **source_of(family))
  b = apply_every(copies, TOKENS_BT, **source_of(family))
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  assert not np.allclose(a, apply_every(every, TOKENS_BT, **source_of(family)), atol=1e-2)


def test_scores_are_scaled_as_the_config_says():
  for changes, scale in (
    ({}, 8**-0.5),
    ({"scale_attention": False}, 1.0),
    ({"width_scaling": "mup"}, 1 / 8),
    ({"head_width": 4}, 4**-0.5),
  ):
    model = nnx.eval_shape(lambda changes=changes: build(**changes))
    assert model.decoder.block.attention.scale == pytest.approx(scale)


@pytest.mark.parametrize(
  ("T", "heads", "biased"),
  [
    (13, (4, 4), False),
    (13, (4, 2), True),
    pytest.param(12, (4, 4), True, marks=pytest.mark.slow),
    pytest.param(12, (4, 2), False, marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_causal_halves_equal_the_whole(monkeypatch, T, heads, biased):
  """Values and gradients: the terms left out are zeros, so that only sums' order may differ."""
  H, G = heads
  keys = jax.random.split(jax.random.key(0), 5)
  q_BTHK = jax.random.normal(keys[0], (2, T, H, 8))
  k_BSGK, v_BSGK = (jax.random.normal(key, (2, T, G, 8)) for key in keys[1:3])
  bias_BHTS = jax.random.normal(keys[3], (1, H, T, T)) if biased else None
  same_BTS = jnp.arange(T)[None, :, None] // 5 == jnp.arange(T)[None, None, :] // 5
  weight_BTHK = jax.random.normal(keys[4], q_BTHK.shape)

  def loss(q, k, v, bias):
    view = attention.AttentionMask(True, jnp.broadcast_to(same_BTS, (2, T, T)), bias)
    return jnp.sum(weight_BTHK * attention.attend(q, k, v, view, 0.3, jnp.float32))

  def outcome(halved_from):
    monkeypatch.setattr(attention, "HALVED_FROM", halved_from)
    gradient = jax.value_and_grad(loss, argnums=(0, 1, 2, 3) if biased else (0, 1, 2))
    arguments = q_BTHK, k_BSGK, v_BSGK, bias_BHTS
    flops = products(jax.make_jaxpr(gradient)(*arguments).jaxpr)
    return gradient(*arguments), flops

  halves, whole = outcome(2), outcome(T + 1)
  for a, b in zip(jax.tree.leaves(halves[0]), jax.tree.leaves(whole[0]), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  first = T // 2
  seen = first * first + (T - first) * T
  assert halves[1] * T * T == whole[1] * seen
