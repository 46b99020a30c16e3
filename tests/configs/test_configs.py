"""Every config of a sweep can be trained."""

import importlib
from pathlib import Path

import pytest

from configs import base, ladders
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
