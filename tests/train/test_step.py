"""The compiled functions: what a step and an evaluation compute."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs.ladders import resolve
from train import evaluate, programs
from train.data import dataset
from train.data.batches import train_batches, validation_batches


def compiled(config):
  """The program of a config, its tokens, its initial state and its first batch."""
  tokens = dataset.prepare(config)
  functions = programs.program(config, tokens.vocab_size)
  batch = next(train_batches(tokens, config))
  return functions, tokens, functions.init(np.uint32(0)), batch


def test_one_program_serves_every_rate_and_schedule(tiny, cache):
  config = resolve(tiny)
  functions, tokens, state, batch = compiled(config)
  state, _ = functions.step(state, batch, np.float32(1e-3), np.uint32(0))
  compilations = functions.step._cache_size()  # other tests may have trained this config
  for lr in (3e-3, 0.0):
    state, _ = functions.step(state, batch, np.float32(lr), np.uint32(0))
  assert functions.step._cache_size() == compilations
  for change in ({"lr": 0.5}, {"schedule": "cosine"}, {"warmup_tokens": 3}):
    config.optim.update(change)
    assert programs.program(config, tokens.vocab_size) is functions


@pytest.mark.smoke
def test_loss_is_a_sum_over_a_weight_and_the_state_is_donated(tiny, cache):
  """Positions of weight 0 change nothing."""
  functions, _, state, batch = compiled(resolve(tiny))
  nll_B, weight_B = functions.evaluate(state.trainable, batch)["loss"]
  masked = {name: x.copy() for name, x in batch.items()}
  masked["weights_BT"][:, 16:] = 0
  masked["targets_BT"][:, 16:] = 7
  masked_nll_B, masked_weight_B = functions.evaluate(state.trainable, masked)["loss"]
  assert (np.asarray(masked_weight_B) == 16).all()
  assert (np.asarray(weight_B) == 32).all()
  assert (np.asarray(masked_nll_B) < np.asarray(nll_B)).all()
  new_state, metrics = functions.step(state, masked, np.float32(1e-3), np.uint32(0))
  total, weight = metrics["sums"]["loss"]
  assert float(total) == pytest.approx(float(np.sum(masked_nll_B)), rel=1e-5)
  assert float(weight) == 64
  assert int(new_state.step) == 1
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_gradients_are_of_the_mean_over_the_batch_and_clipped_to_a_norm(tiny, cache):
  """Of microbatches that weigh unequally; Adam's first moment is (1 - b1) of the first gradient."""
  config = resolve(tiny)
  config.model.depth, config.sharding.microbatches = 1, 2
  functions, _, _, batch = compiled(config)
  batch["weights_BT"][:2, 8:] = 0

  @jax.jit
  def hidden(params):
    model = nnx.merge(functions.setup.graphdef, params)
    return model.hidden(*(batch[name] for name in ("inputs_BT", "segments_BT", "positions_BT")))

  V = functions.setup.vocab_size
  error_BTV = 1 / V - np.eye(V)[batch["targets_BT"]]  # the head is zero: no other has a gradient
  weights_BT = batch["weights_BT"] / batch["weights_BT"].sum()
  for gain in (0.1, 10.0):  # with which the gradient goes
    state = functions.init(np.uint32(0))
    norm = state.trainable["decoder"]["final_norm"]
    norm["scale"] = jnp.full_like(norm["scale"], gain)
    x_BTD = hidden(state.trainable)
    expected_DV = np.einsum("btd,btv,bt->dv", x_BTD, error_BTV, weights_BT, optimize=True)
    size = np.linalg.norm(expected_DV)
    assert (size > config.optim.clip_norm) == (gain > 1)
    state, metrics = functions.step(state, batch, np.float32(0), np.uint32(0))
    assert float(metrics["grad_norm"]) == pytest.approx(size, rel=1e-5)
    clipped_DV = expected_DV * min(1.0, config.optim.clip_norm / size)
    moment_DV = optax.tree_utils.tree_get(state.opt_state, "mu")["head"]["kernel"]
    atol = 1e-5 * abs(clipped_DV).max()
    np.testing.assert_allclose(moment_DV / (1 - config.optim.b1), clipped_DV, rtol=0, atol=atol)


@pytest.mark.slow
def test_z_loss_is_an_entry_of_its_own_with_the_gradients_of_a_sum(tiny, cache):
  """Those of the mean over tokens of -log p + z log^2 Z, written out."""
  config, z = resolve(tiny), 0.3
  config.model.depth, config.sharding.microbatches = 1, 2
  plain, _, state, batch = compiled(config)
  assert list(plain.evaluate(state.trainable, batch)) == ["loss"]
  config.optim.z_loss = z
  functions, tokens, state, batch = compiled(config)
  rng = np.random.default_rng(0)  # the head starts at zero, and hides what is before it
  kernel_DV = rng.normal(size=state.trainable["head"]["kernel"].shape).astype(np.float32)
  state.trainable["head"]["kernel"] = jnp.asarray(kernel_DV)

  def log_p_and_z(params):
    model = nnx.merge(functions.setup.graphdef, params)
    x = [batch[name] for name in ("inputs_BT", "segments_BT", "positions_BT")]
    logits_BTV = model(*x)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    index_BT1 = batch["targets_BT"][..., None]
    return jnp.take_along_axis(logits_BTV, index_BT1, axis=-1)[..., 0] - log_z_BT, log_z_BT

  def objective(params):
    log_p_BT, log_z_BT = log_p_and_z(params)
    return (z * log_z_BT**2 - log_p_BT).sum()

  expected = jax.grad(objective)(state.trainable)
  gradients = functions.gradients(state.trainable, batch)
  for x, y in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(1e-3, float(abs(y).max())))
  log_p_BT, log_z_BT = log_p_and_z(state.trainable)
  result = evaluate.evaluate(functions, state, tokens, config)
  assert {"loss", "loss_stderr", "z_loss", "z_loss_stderr"} < set(result)
  sums = functions.step(state, batch, np.float32(0), np.uint32(0))[1]["sums"]
  for name, values_BT in {"loss": -log_p_BT, "z_loss": log_z_BT**2}.items():
    assert float(sums[name][0] / sums[name][1]) == pytest.approx(float(values_BT.mean()), rel=1e-5)


def test_dropout_is_a_function_of_seed_and_step(tiny, cache):
  config = resolve(tiny)
  config.model.depth, config.model.dropout = 1, 0.3

  def second_loss(seed, step=1):
    functions, _, state, batch = compiled(config)
    # The head starts at zero and hides the first step's dropout.
    state, _ = functions.step(state, batch, np.float32(1e-2), np.uint32(0))
    nll = float(functions.evaluate(state.trainable, batch)["loss"][0].sum())
    state = state._replace(step=jnp.int32(step))
    _, metrics = functions.step(state, batch, np.float32(0.0), np.uint32(seed))
    return float(metrics["sums"]["loss"][0]), nll

  assert second_loss(0) == second_loss(0)
  assert len({second_loss(*at)[0] for at in ((0, 1), (1, 1), (0, 2))}) == 3
  assert second_loss(0)[0] != second_loss(0)[1]  # evaluation has none


def test_bits_per_byte_count_the_text_that_is_predicted(tiny, cache):
  """A model that knows nothing: ln V nats for each prediction, sentinels included."""
  tiny.objective, tiny.model.family = "span", "encoder_decoder"
  tiny.model.width, tiny.model.depth, tiny.model.heads = 16, 1, 2
  tiny.data.isolate_documents = False
  tiny.corruption.sentinels = 8
  config = resolve(tiny)
  functions, tokens, state, _ = compiled(config)
  result = evaluate.evaluate(functions, state, tokens, config)
  targets = np.concatenate(
    [b["targets_BT"][b["weights_BT"] == 1] for b in validation_batches(tokens, config)]
  )
  assert result["eval_tokens"] == len(targets)
  assert result["loss"] == pytest.approx(math.log(257 + 8), rel=1e-6)
  n_bytes = (targets < 256).sum()
  assert n_bytes < len(targets)
  bits_per_byte = len(targets) * math.log2(257 + 8) / n_bytes
  assert result["bits_per_byte"] == pytest.approx(bits_per_byte, rel=1e-6)
