"""Attention's own products: what a causal half leaves out changes no number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_accounting import products

from model import attention


@pytest.mark.parametrize("T", [12, 13])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["mha", "gqa"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
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
    view = attention.View(True, jnp.broadcast_to(same_BTS, (2, T, T)), bias)
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
