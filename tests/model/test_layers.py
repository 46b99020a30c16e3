"""The smallest modules: layers joined on a GPU, and what an MLP keeps for its derivative."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import model_config

from model import layers, ops
from model.layers import GATED


def test_layers_joined_on_a_gpu_are_those_alone(monkeypatch):
  """Values and gradients, of which each is a product of its own or a part of one."""
  config = model_config()
  rngs = nnx.Rngs(0)
  denses = [layers.Linear(config, 6, 10, rngs=rngs) for _ in range(3)]
  graphdef, params = nnx.split(denses)
  x_BTD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 6)), jnp.float32)

  def outcome(platform):
    monkeypatch.setattr(ops, "platform", lambda: platform)

    def total(params, x_BTD):
      outputs = layers.apply_together(nnx.merge(graphdef, params), x_BTD)
      return sum(jnp.sum(jnp.sin((i + 1) * y)) for i, y in enumerate(outputs))

    text = str(jax.make_jaxpr(total)(params, x_BTD))
    return text.count("dot_general"), jax.value_and_grad(total, (0, 1))(params, x_BTD)

  (alone, expected), (together, found) = outcome("cpu"), outcome("gpu")
  assert together < alone
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def gelu(x):
  return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(
  ("mlp", "value"),
  [
    ("gelu", gelu),
    ("gelu_exact", lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))),
    ("relu", lambda x: np.maximum(x, 0)),
    ("geglu", lambda gate, x: gelu(gate) * x),
    ("swiglu", lambda gate, x: gate / (1 + np.exp(-gate)) * x),
  ],
)
def test_an_mlps_gradients_are_its_slopes_and_need_no_more_than_its_products(mlp, value):
  gates = 2 if mlp in GATED else 1
  dy, *h = np.random.default_rng(0).normal(0, 2, (1 + gates, 64))
  y, gradients = jax.vjp(layers.HIDDEN[mlp], *map(jnp.float32, h))
  np.testing.assert_allclose(y, value(*h), rtol=1e-5, atol=1e-6)
  for i, dh in enumerate(gradients(jnp.float32(dy))):
    up, down = ([x + s * (i == j) for j, x in enumerate(h)] for s in (1e-5, -1e-5))
    slope = dy * (value(*up) - value(*down)) / 2e-5
    np.testing.assert_allclose(dh, slope, rtol=1e-5, atol=1e-5)
  kept = sum(x.nbytes for x in jax.tree.leaves(gradients) if x.ndim)
  assert mlp == "relu" or kept == 4 * 64 * gates
