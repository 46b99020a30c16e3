"""The smallest parts, where a device is given them in another form."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from models import model_config

from model import layers, ops


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
