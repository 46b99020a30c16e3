"""A rehearsal of the H200 sweep is that sweep in small."""

import pytest

from configs import ladders
from configs.sweeps import h200


def n_params(config, size):
  rung = ladders.rungs(config.model.ladder)[size]
  vocab = int(config.data.tokenizer.partition(":")[2])
  return 12 * rung.depth * rung.width**2 + vocab * rung.width


@pytest.mark.parametrize("scale", [0.01, 0.001])
def test_a_rehearsal_is_the_whole_sweep_in_small(scale):
  """N and D both shrink by the root of the compute, and the number of steps stays."""
  whole, small = h200.get_config("1"), h200.get_config(f"{scale},mlm")
  assert small.sweep.budgets == pytest.approx([scale * C for C in whole.sweep.budgets])
  step = [c.data.batch_size * c.data.seq_len for c in (whole, small)]
  assert step[1] / step[0] == pytest.approx(scale**0.5, rel=0.05)
  for end in (0, -1):
    N = [n_params(c, c.sweep.sizes[end]) for c in (whole, small)]
    assert N[1] / N[0] == pytest.approx(scale**0.5, rel=0.3)


def test_a_wrong_argument_says_what_would_be_right():
  for wrong in ("2", "0", "x", "1,bert"):
    with pytest.raises(ValueError, match="write SCALE or SCALE,OBJECTIVE"):
      h200.get_config(wrong)
