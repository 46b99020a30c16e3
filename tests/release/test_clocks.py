"""The seconds that are recorded are those that passed."""

import subprocess
import sys
import time

import jax
import pytest

from train import loop
from train.system import clock


def test_the_times_of_a_run_are_all_of_it(tiny, tmp_path):
  began = time.perf_counter()
  result = loop.train(tiny, tmp_path)
  took = time.perf_counter() - began
  assert sum(result["times"].values()) == pytest.approx(result["seconds"], abs=0.01)
  assert 0.7 * took < result["seconds"] <= took


def test_compiling_is_a_phase_of_its_own_wherever_it_happens():
  spent = clock.Clock()
  x = jax.numpy.ones((64, 64))
  compiled = jax.jit(lambda x: jax.jit(jax.numpy.sin)(x @ x) @ jax.numpy.cos(x))
  with spent("train"):
    with spent("evaluate"):
      began = time.perf_counter()
      compiled(x).block_until_ready()
      took = time.perf_counter() - began
    first = spent.times()
    began = time.perf_counter()
    compiled(x).block_until_ready()
    time.sleep(0.2)
    rest = time.perf_counter() - began
  assert 0.5 * took < first["compile"] < took
  assert first["compile"] + first["evaluate"] == pytest.approx(took, abs=0.01)
  last = spent.times()
  assert last["compile"] == first["compile"]
  assert last["train"] == pytest.approx(rest, abs=0.01)


def test_a_command_begins_where_its_process_does_and_not_with_the_shell_before():
  """bash becomes the last command of a list; what came before it is no part of a sweep."""
  code = "import time; from train.system import process; print(time.perf_counter() - process.BEGAN)"
  command = f"sleep 2 && exec {sys.executable} -c '{code}'"
  said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
  assert 0.0 < float(said.stdout) < 1.0
