"""Schedules, the learning-rate rule, and AdamW against its definition."""

import math

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from train import optim, programs


@pytest.fixture
def config():
  c = base.get_config().optim
  c.warmup_tokens = 1000
  return c


def curve(config, steps, tokens_per_step=100, base_lr=2.0):
  return np.array(
    [optim.learning_rate(config, base_lr, t, steps, tokens_per_step) for t in range(steps)]
  )


def test_warmup_is_linear_in_every_schedule(config):
  for schedule in base.OPTIM["schedule"].choices:
    config.schedule = schedule
    np.testing.assert_allclose(curve(config, 1000)[:10], 0.2 * np.arange(1, 11), rtol=1e-3)


def test_wsd_is_constant_until_its_cooldown_bit_for_bit(config):
  wsd = curve(config, 200)
  config.schedule = "constant"
  start = optim.cooldown_start(config, 200)
  assert start == 160
  assert (wsd[: start + 1] == curve(config, 200)[: start + 1]).all()
  x = np.arange(40) / 40
  np.testing.assert_allclose(wsd[start:], 2 * (1 - np.sqrt(x)), rtol=1e-12)


def test_cosine_halves_in_the_middle_and_ends_at_its_final_fraction(config):
  config.schedule, config.final_lr_fraction = "cosine", 0.1
  lr = curve(config, 2000)
  assert lr[1000] == pytest.approx(2 * (0.1 + 0.9 * 0.5))
  assert lr[-1] == pytest.approx(0.2, rel=1e-4)
  assert (np.diff(lr[10:]) < 0).all()


def test_rule_follows_its_exponent(config):
  config.lr_ref, config.lr_ref_params, config.lr_exponent = 0.0047, 108_000_000, -1 / 3
  assert optim.base_learning_rate(config, 108_000_000) == pytest.approx(0.0047)
  assert optim.base_learning_rate(config, 8 * 108_000_000) == pytest.approx(0.0047 / 2)
  config.lr = 0.5
  assert optim.base_learning_rate(config, 7) == 0.5


@pytest.mark.smoke
def test_adamw_is_its_definition_and_decays_matrices_only(config):
  """Three updates against Loshchilov and Hutter's algorithm 2, written out."""
  config.clip_norm = 0.0
  rng = np.random.default_rng(0)
  params = {
    "mlp": {"kernel": rng.normal(size=(2, 3, 4)), "bias": rng.normal(size=(2, 4))},
    "embedding": {"table": rng.normal(size=(5, 3))},
  }
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  optimizer = optim.optimizer(config)
  state, lr = optimizer.init(params), 0.01
  expected = jax.tree.map(np.asarray, params)
  m = jax.tree.map(np.zeros_like, expected)
  v = jax.tree.map(np.zeros_like, expected)
  for t in range(1, 4):
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    direction, state = optimizer.update(grads, state, params)
    params = jax.tree.map(lambda p, d: p - lr * d, params, direction)
    g = jax.tree.map(np.asarray, grads)
    m = jax.tree.map(lambda m, g: config.b1 * m + (1 - config.b1) * g, m, g)
    v = jax.tree.map(lambda v, g: config.b2 * v + (1 - config.b2) * g**2, v, g)
    decay = {"mlp": {"kernel": config.weight_decay, "bias": 0.0}, "embedding": {"table": 0.0}}

    def update(p, m, v, wd, t=t):
      m, v = m / (1 - config.b1**t), v / (1 - config.b2**t)
      return p - lr * (m / (np.sqrt(v) + config.eps) + wd * p)

    expected = jax.tree.map(update, expected, m, v, decay)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), params, expected
  )


def test_mup_scales_the_step_of_matrices_and_not_their_decay(config):
  c = base.get_config().model
  c.width, c.mup_base_width = 256, 64
  assert optim.matrix_rate(c) == 1.0
  c.width_scaling = "mup"
  assert optim.matrix_rate(c) == 0.25
  rng = np.random.default_rng(0)
  params = {"kernel": rng.normal(size=(3, 4)), "table": rng.normal(size=(5, 3)), "bias": np.ones(4)}
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  grads = jax.tree.map(lambda x: 0.01 * jnp.sin(x), params)
  found = {}
  for rate, model in ((1.0, None), (0.25, c)):
    optimizer = optim.optimizer(config, model)
    found[rate], _ = optimizer.update(grads, optimizer.init(params), params)
  decay = config.weight_decay * params["kernel"]
  np.testing.assert_allclose(
    found[0.25]["kernel"] - decay, 0.25 * (found[1.0]["kernel"] - decay), rtol=1e-4
  )
  for name in ("table", "bias"):
    assert (found[0.25][name] == found[1.0][name]).all()


@pytest.mark.slow
def test_the_steps_of_a_cooldown_are_lost_on_bfloat16_weights_and_kept_in_their_copy():
  """Why there is no training on bfloat16 weights alone: they are 2^-8 apart, relatively."""
  config = eight_devices.config_of("decoder", {"dtype": "bfloat16", "weights": "bfloat16"})
  functions = programs.program(config, eight_devices.V)
  state = functions.init(np.uint32(0))
  for number in range(20):
    batch = eight_devices.batch_of(config, number)
    state, _ = functions.step(state, batch, np.float32(1e-2), np.uint32(0))
  before, master = (jax.tree.map(np.asarray, tree) for tree in (state.trainable, state.master))
  state, _ = functions.step(state, batch, np.float32(1e-4), np.uint32(0))

  def share(differ):
    leaves = zip(*map(jax.tree.leaves, (before, master, state.master)), strict=True)
    return np.mean(np.concatenate([np.ravel(differ(*leaf)) for leaf in leaves]))

  alone = share(lambda w, old, new: (w - (old - new)).astype(w.dtype) != w)
  assert alone < 0.1  # of the weights would move by themselves
  assert share(lambda _, old, new: old != new) > 0.99
  for w, copy in zip(jax.tree.leaves(state.trainable), jax.tree.leaves(state.master), strict=True):
    assert (np.asarray(w) == np.asarray(copy).astype(w.dtype)).all()


# ---------------------------------------------------------------------------------------- muon


def matrix_step(matrices):
  """Jordan's quintic Newton-Schulz iteration on each of several matrices, by its definition."""
  x = matrices / np.linalg.norm(matrices, axis=(1, 2), keepdims=True)
  for _ in range(5):
    a = x @ x.transpose(0, 2, 1)
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x


@pytest.mark.smoke
def test_muon_orthogonalises_each_layer_of_blocks_and_leaves_the_rest_to_adamw(config):
  """Three updates: Nesterov's momentum, Newton and Schulz, and AdamW's RMS, written out."""
  rng = np.random.default_rng(0)
  shapes = {
    "decoder": {"block": {"up": {"kernel": (2, 6, 16), "bias": (2, 16)}}},
    "head": {"kernel": (6, 9)},
  }
  params = jax.tree.map(
    lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), shapes, is_leaf=is_shape
  )
  direction = {}
  for name in ("adamw", "muon"):
    config.name = name
    optimizer = optim.optimizer(config, on_whole=on_layers)
    state, draws = optimizer.init(params), np.random.default_rng(1)
    momentum = np.zeros((2, 6, 16))
    for _ in range(3):
      grads = jax.tree.map(lambda x: jnp.asarray(draws.normal(size=x.shape), x.dtype), params)  # noqa: B023
      direction[name], state = optimizer.update(grads, state, params)
      gradient = np.asarray(grads["decoder"]["block"]["up"]["kernel"])
      momentum = gradient + config.momentum * momentum
  found = direction["muon"]["decoder"]["block"]["up"].pop("kernel")
  direction["adamw"]["decoder"]["block"]["up"].pop("kernel")
  jax.tree.map(np.testing.assert_array_equal, direction["muon"], direction["adamw"])
  orthogonal = matrix_step(gradient + config.momentum * momentum)
  assert (abs(np.linalg.svd(orthogonal)[1] - 1) < 0.35).all()
  decay = config.weight_decay * params["decoder"]["block"]["up"]["kernel"]
  np.testing.assert_allclose(found - decay, 0.2 * 16**0.5 * orthogonal, rtol=1e-3, atol=1e-4)
  assert np.sqrt(np.mean(np.square(found - decay))) == pytest.approx(0.2, rel=0.1)


def is_shape(x):
  return isinstance(x, tuple)


def on_layers(function, tree):
  return jax.tree.map(jax.vmap(function), tree)


MUON = {
  "zero3": "strategy=zero3",
  "ddp": "strategy=ddp,microbatches=2",
  "zero1": "strategy=zero1",
  "zero2": "strategy=zero2",
  "hybrid": "strategy=hybrid,shard_factor=4",
}


SCALED = "name=muon,depth_scaling=completep,mup_base_depth=1,completep_alpha=0.5"


@pytest.mark.slow
def test_muon_on_eight_devices_is_muon_on_one():
  """As whole matrices: of shards, the orthogonal factor is another. Its rates are by leaf."""
  cases = {"one": "strategy=ddp", "unrolled": "strategy=ddp,scan=False"}
  cases, sharded = ({k: f"{v},{SCALED}" for k, v in x.items()} for x in (cases, MUON))
  one = eight_devices.trained(1, "decoder", cases)
  runs = eight_devices.trained(8, "decoder", sharded)
  bound = 20 * math.log2(16 * 16 * 64) * np.finfo(np.float32).eps
  losses = one["one"]["losses"]
  assert losses[-1] < losses[0] - 1
  for name, run in (one | runs).items():
    for what in ("losses", "norms", "evaluated"):
      np.testing.assert_allclose(run[what], one["one"][what], rtol=bound, err_msg=name)
    held, planned = run["bytes"], run["planned"]
    assert held["params"] == planned["weights"], name
    assert planned["optimizer"] <= held["optimizer"] <= planned["optimizer"] + 8, name
