"""XLA's flags: the user's win, a CPU has none, and XLA knows them all."""

import os
import subprocess
import sys

from train.system import process


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
