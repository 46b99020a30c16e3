"""CompleteP (Dey et al. 2025, arXiv:2505.01618, table 1), by its arithmetic."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from ml_collections import FrozenConfigDict
from models import TOKENS_BT, T, V, build, model_config, random_model, source_of, trainer

from configs import base, ladders, presets
from configs.errors import ConfigError
from model import accounting
from model.block import OUTPUTS
from model.huggingface import convert
from train import optim

SCALED = {"depth_scaling": "completep", "mup_base_depth": 2}
SCALED_BY_2 = SCALED | {"mup_base_depth": 1}  # of two layers


def flat_params(model):
  return traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)), sep="/")


@pytest.mark.parametrize(
  ("family", "alpha"),
  [("decoder", 0.5), pytest.param("encoder_decoder", 1.0, marks=pytest.mark.slow)],
)
def test_at_the_base_depth_a_model_is_the_standard_one_bit_for_bit(family, alpha):
  """Its first weights are, and the program that trains them is the same, to the letter."""
  texts, weights = [], []
  for changes in ({}, SCALED | {"completep_alpha": alpha}):
    model = build(family=family, **changes)
    step, params, state = trainer(model_config(family=family, **changes), model)
    texts.append(step.lower(params, state).as_text())
    weights.append(flat_params(model))
  assert texts[0] == texts[1]
  jax.tree.map(np.testing.assert_array_equal, *weights)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_each_stack_scales_its_branches_by_its_own_depth(alpha):
  """As if the last products of the deeper one had other weights."""
  shape = {"family": "encoder_decoder", "encoder_depth": 1, "depth": 2}
  params, scaled = random_model(**shape, **SCALED_BY_2, completep_alpha=alpha)
  _, standard = random_model(**shape)

  def fold(path, w):
    name = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
    return w / 2**alpha if name.startswith("decoder/") and re.search(OUTPUTS, name) else w

  folded = jax.tree_util.tree_map_with_path(fold, params)
  source = source_of("encoder_decoder")
  found = scaled(params, TOKENS_BT, **source)
  np.testing.assert_allclose(found, standard(folded, TOKENS_BT, **source), rtol=2e-5, atol=2e-5)
  assert not np.allclose(found, standard(params, TOKENS_BT, **source), atol=1e-2)


def test_branches_start_as_those_of_the_base():
  """Table 1 draws hidden weights by the width alone."""
  scaled, standard = (flat_params(build(**x)) for x in (SCALED_BY_2, {}))
  for path, w in standard.items():
    wider = 2**0.5 if re.search(OUTPUTS, path) else 1.0
    np.testing.assert_allclose(scaled[path], wider * w, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_updates_scale_as_the_table_says(alpha):
  """One step of AdamW against table 1, written out, at four times the depth and twice the width."""
  c = FrozenConfigDict(base.get_config().optim.to_dict() | {"eps": 0.3, "weight_decay": 0.1})
  model = model_config(
    **{"depth": 8, "width": 64, "width_scaling": "mup", "mup_base_width": 32},
    **SCALED,
    completep_alpha=alpha,
  )
  m_L, m_N = 4.0, 2.0
  rate, eps = m_L ** (alpha - 1), 1 / m_N / m_L**alpha
  expected = {  # rate, rate times decay, epsilon; as multiples of the base's
    "decoder/block/mlp/up/kernel": (rate / m_N, rate, eps),
    "decoder/block/mlp/up/bias": (rate, 0, eps),
    "decoder/block/mlp_norm/scale": (rate, 0, eps),
    "decoder/final_norm/scale": (1, 0, 1),
    "embedding/table": (1, 0, 1),
    "head/kernel": (1 / m_N, 1, 1),
  }
  flat = {path: jnp.array([2.0, -1.0]) for path in expected}
  params = traverse_util.unflatten_dict(flat, sep="/")
  grads = jax.tree.map(lambda w: 0.1 * w, params)
  optimizer = optim.optimizer(c, model)
  direction, _ = optimizer.update(grads, optimizer.init(params), params)
  for path, (rate, decay, eps) in expected.items():
    w, g = np.array([2.0, -1.0]), np.array([0.2, -0.1])
    update = rate * g / (abs(g) + 0.3 * eps) + decay * 0.1 * w
    found = traverse_util.flatten_dict(direction, sep="/")[path]
    np.testing.assert_allclose(found, update, rtol=1e-5, err_msg=path)


def test_the_epsilon_and_rate_of_an_encoder_are_those_of_its_own_depth():
  shape = {"family": "encoder_decoder", "encoder_depth": 4, "depth": 8}
  c = model_config(**shape, **SCALED, completep_alpha=0.5)
  assert optim.block_scales(c, "encoder/block/mlp/up/kernel") == pytest.approx((0.5**0.5,) * 2)
  assert optim.block_scales(c, "decoder/block/mlp/up/kernel") == pytest.approx((0.5, 0.5))
  alone = model_config(family="encoder", depth=8, **SCALED)
  assert optim.block_scales(alone, "encoder/block/mlp/up/kernel") == (1.0, 0.25)


def test_post_norm_is_refused():
  with pytest.raises(ConfigError, match=r"^model.depth_scaling='completep': [^\n]*pre-norm blocks"):
    build(norm_position="post", **SCALED)


def test_an_export_has_the_scale_in_its_weights(tmp_path):
  """With powers of two exactly: what comes back computes the same logits to the last bit."""
  c = presets.get_config("llama")
  c.model.update({"width": 16, "depth": 2, "heads": 2, **SCALED_BY_2})
  config = ladders.resolve(c).model
  shapes = accounting.shapes(config, V, T, 0)
  rng = np.random.default_rng(0)
  params = {path: rng.normal(size=shape).astype(np.float32) / 4 for path, shape in shapes.items()}
  convert.export_folder(tmp_path / "out", config, params, V, T, "llama")
  imported = convert.import_folder(tmp_path / "out")
  assert imported.model_config.depth_scaling == "standard"
  logits = []
  for m, w in ((config, params), (imported.model_config, imported.params)):
    graphdef = nnx.graphdef(nnx.eval_shape(lambda m=m: build(**dict(m) | {"scan": False})))
    w = traverse_util.unflatten_dict(jax.tree.map(jnp.asarray, w), sep="/")
    logits.append(nnx.merge(graphdef, w)(TOKENS_BT))
  np.testing.assert_array_equal(*logits)
