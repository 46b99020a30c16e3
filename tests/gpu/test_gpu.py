"""What a GPU would be given, as far as a machine without one can tell."""

import os
import subprocess
import sys

import pytest

from configs import ladders
from configs.sweeps import h200
from train.system import process


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


def test_the_users_xla_flags_win_and_a_cpu_has_none(monkeypatch):
  name = next(iter(process.XLA_FLAGS))
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x --{name}=false")
  process.use_xla_flags()
  assert os.environ["XLA_FLAGS"].count(name) == 1
  assert f"--{name}=false" in os.environ["XLA_FLAGS"]
  monkeypatch.setenv("XLA_FLAGS", "")
  process.use_xla_flags()
  process.use_xla_flags()  # a worker of a command that has called it
  assert os.environ["XLA_FLAGS"].split() == [f"--{n}={v}" for n, v in process.XLA_FLAGS.items()]
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  process.use_xla_flags()
  assert not os.environ["XLA_FLAGS"]


def test_xla_knows_every_flag():
  """It ends a process that has one it does not know."""
  flags = " ".join(f"--{name}={value}" for name, value in process.XLA_FLAGS.items())
  command = [sys.executable, "-c", "import jax; jax.devices()"]
  env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
