"""Products of bfloat16 operands, and bfloat16 between them: what they cost in a run's loss."""

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

  def loss(seed, **changes):
    config = tiny.copy_and_resolve_references()
    config.seed = seed
    config.model.update(changes)
    return loop.train(config, tmp_path / "-".join([str(seed), *changes]))["loss"]

  losses = [loss(seed) for seed in range(3)]
  bound = 0.1 * (max(losses) - min(losses))
  products = loss(0, dtype="bfloat16")
  everything = loss(0, dtype="bfloat16", activations="bfloat16")
  assert 0 < abs(products - losses[0]) < bound, (losses, products)
  assert products != everything
  assert abs(everything - losses[0]) < bound, (losses, everything)
