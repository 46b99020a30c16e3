"""Every config of a sweep can be trained; a rehearsal of the H200 sweep is that sweep in small."""

import importlib
from pathlib import Path

import pytest

from configs import base, ladders
from configs.sweeps import h200
from model import sharding
from scaling.sweep import design
from train import aot
from train.objectives import registry


def sweeps():
  folder = Path(base.__file__).with_name("sweeps")
  names = sorted(path.stem for path in folder.glob("[a-z]*.py"))
  return [(name, ()) for name in names] + [
    ("h200", (f"{scale},{objective}",))
    for scale in (1, 0.01)
    for objective in ("clm", "mlm", "span")
  ]


@pytest.mark.parametrize(("name", "argument"), sweeps())
def test_every_model_of_a_sweep_can_be_trained(name, argument):
  """Its shape is on the ladder, its objective fits its family, its batch divides."""
  config = importlib.import_module(f"configs.sweeps.{name}").get_config(*argument)
  for own in design.split(config).values():
    for size in (*own.sweep.sizes, *own.sweep.probe_sizes):
      own.model.size = size
      resolved = ladders.resolve(own)
      registry.check_objective(resolved)
      sharding.check_batches(resolved, 1)
      bytes_ = aot.device_bytes(resolved, 4096)["total"]
      assert bytes_ < 140e9  # of an H200


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
