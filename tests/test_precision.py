"""Products of bfloat16 operands: what they cost in the loss of a whole run."""

import pytest

from train import loop


@pytest.mark.slow
def test_the_loss_moves_by_less_than_a_seed_moves_it(tiny, tmp_path):
  """Of a decoder; the other families are in tests/release."""
  check_loss(tiny, tmp_path, "clm", "decoder")


def check_loss(tiny, tmp_path, objective, family):
  """The bound that a law needs: below the scatter of seeds, a precision cannot be told apart.

  A tenth of their spread: both runs of a seed begin at the same weights and see the same batches.
  """
  tiny.objective, tiny.model.family = objective, family
  tiny.data.isolate_documents = False  # span corruption cuts across documents

  def loss(seed, dtype="float32"):
    config = tiny.copy_and_resolve_references()
    config.seed, config.model.dtype = seed, dtype
    return loop.train(config, tmp_path / f"{seed}-{dtype}")["loss"]

  losses = [loss(seed) for seed in range(3)]
  difference = loss(0, "bfloat16") - losses[0]
  assert 0 < abs(difference) < 0.1 * (max(losses) - min(losses)), (losses, difference)
