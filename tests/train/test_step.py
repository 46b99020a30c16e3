"""The compiled functions: what a step and an evaluation compute."""

import math

import jax
import numpy as np
import pytest

from configs.ladders import resolve
from train import evaluate, step
from train.data import dataset
from train.data.batches import train_batches, validation_batches


def compiled(config):
  """The program of a config, its tokens, its initial state and its first batch."""
  tokens = dataset.prepare(config)
  functions = step.program(config, tokens.vocab_size)
  batch = next(train_batches(tokens, config))
  return functions, tokens, functions.init(np.uint32(0)), batch


def test_one_program_serves_every_rate_and_schedule(tiny, cache):
  config = resolve(tiny)
  functions, tokens, state, batch = compiled(config)
  for lr in (1e-3, 3e-3, 0.0):
    state, _ = functions.step(state, batch, np.float32(lr), np.uint32(0))
  assert functions.step._cache_size() == 1
  for change in ({"lr": 0.5}, {"schedule": "cosine"}, {"warmup_tokens": 3}):
    config.optim.update(change)
    assert step.program(config, tokens.vocab_size) is functions


@pytest.mark.smoke
def test_loss_is_a_sum_over_a_weight_and_the_state_is_donated(tiny, cache):
  """Positions of weight 0 change nothing."""
  functions, _, state, batch = compiled(resolve(tiny))
  nll_B, weight_B = functions.evaluate(state.params, batch)
  masked = {name: x.copy() for name, x in batch.items()}
  masked["weights_BT"][:, 16:] = 0
  masked["targets_BT"][:, 16:] = 7
  masked_nll_B, masked_weight_B = functions.evaluate(state.params, masked)
  assert (np.asarray(masked_weight_B) == 16).all()
  assert (np.asarray(weight_B) == 32).all()
  assert (np.asarray(masked_nll_B) < np.asarray(nll_B)).all()
  new_state, metrics = functions.step(state, masked, np.float32(1e-3), np.uint32(0))
  assert float(metrics["loss_sum"]) == pytest.approx(float(np.sum(masked_nll_B)), rel=1e-5)
  assert float(metrics["weight"]) == 64
  assert int(new_state.step) == 1
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_z_loss_is_trained_on_and_not_reported(tiny, cache):
  """The head starts at zero: every logit is 0, the loss is ln V, and ln^2 V is no part of it."""
  config, grad_norm = resolve(tiny), {}
  for z_loss in (0.0, 1.0):
    config.optim.z_loss = z_loss
    functions, _, state, batch = compiled(config)
    _, metrics = functions.step(state, batch, np.float32(1e-2), np.uint32(0))
    loss = float(metrics["loss_sum"] / metrics["weight"])
    assert loss == pytest.approx(math.log(257), rel=1e-6)
    grad_norm[z_loss] = float(metrics["grad_norm"])
  # d(z ln^2 Z) = 2 z ln V / V on each logit, in a direction of its own: the norm grows with z.
  assert grad_norm[1.0] > 1.01 * grad_norm[0.0]


def test_dropout_is_a_function_of_seed_and_step(tiny, cache):
  config = resolve(tiny)
  config.model.depth, config.model.dropout = 1, 0.3

  def second_loss(seed):
    functions, _, state, batch = compiled(config)
    # The head starts at zero and hides the first step's dropout.
    state, _ = functions.step(state, batch, np.float32(1e-2), np.uint32(0))
    nll = float(functions.evaluate(state.params, batch)[0].sum())
    _, metrics = functions.step(state, batch, np.float32(0.0), np.uint32(seed))
    return float(metrics["loss_sum"]), nll

  assert second_loss(0) == second_loss(0)
  assert second_loss(0)[0] != second_loss(1)[0]
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
