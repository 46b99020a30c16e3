"""Runs that do not fit their device are refused before training, or made to fit."""

import jax
import pytest

from configs import ladders
from train import fitting, loop
from train.data import dataset
from train.system import process


@pytest.fixture
def run(tiny):
  """A config whose logits are most of what it needs, and its text."""
  tiny.data.batch_size, tiny.data.seq_len, tiny.train.eval_batch_size = 16, 128, 8
  tiny.train.tokens = 40 * 16 * 128
  tiny.optim.warmup_tokens = 4096
  config = ladders.resolve(tiny)
  return config, dataset.prepare(config)


def compiled(config, tokens, **fields):
  config = config.copy_and_resolve_references()
  config.sharding.update(fields)
  return fitting.needs(config, tokens).compiled


@pytest.mark.slow
def test_microbatches_are_halved_until_they_fit_and_the_batch_stays(run, tmp_path):
  config, tokens = run
  whole, half, quarter = (compiled(config, tokens, microbatches=n) for n in (1, 2, 4))
  assert whole > half > quarter
  config.sharding.device_memory = (half + quarter) / 2
  fitted, found = fitting.fitting(config, tokens)
  assert (fitted.sharding.microbatches, found.compiled) == (4, quarter)
  assert config.sharding.microbatches == 1
  small = loop.train(config, tmp_path / "small")
  config.sharding.device_memory = 0.0
  large = loop.train(config, tmp_path / "large")
  microbatches = [r["config"]["sharding"]["microbatches"] for r in (small, large)]
  assert microbatches == [4, 1]
  assert small["steps"] == large["steps"]
  assert small["loss"] == pytest.approx(large["loss"], rel=1e-4)


def test_what_cannot_fit_is_refused_with_what_would_help(run, tmp_path):
  config, _ = run
  config.sharding.device_memory = 1e5
  config.data.batch_size = 2
  with pytest.raises(ValueError, match=r"microbatches=2: a step needs .* MiB .*remat") as error:
    loop.train(config, tmp_path)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run.json").exists()
  config.sharding.halve_microbatches = False
  with pytest.raises(ValueError, match=r"microbatches=1: .*halve_microbatches=True"):
    loop.train(config, tmp_path)


def test_arithmetic_is_believed_far_from_the_limit(run, monkeypatch):
  config, tokens = run
  monkeypatch.setattr(fitting, "needs", lambda *_: pytest.fail("it was compiled"))
  assert fitting.fitting(config, tokens, near=fitting.NEAR) == (config, None)


def test_memory_of_this_machine(tiny):
  alone = fitting.available(tiny)
  assert 2**28 < alone <= fitting.machine_memory()
  assert fitting.available(tiny, sharing=4) == pytest.approx(alone / 4, rel=1e-6)
  assert jax.default_backend() == "cpu"


@pytest.mark.slow
def test_each_of_several_processes_brings_its_own_rows(run, monkeypatch):
  config, tokens = run
  alone = fitting.needs(config, tokens)
  monkeypatch.setattr(process, "place", lambda: (1, 2))
  shared = fitting.needs(config, tokens)
  assert shared.compiled < 0.8 * alone.compiled
  assert shared.evaluating < alone.evaluating


def test_what_evaluation_needs_is_looked_at_too(run):
  config, tokens = run
  config.train.eval_batch_size = 128
  found = fitting.needs(config, tokens)
  assert found.evaluating > found.compiled
  config.sharding.device_memory = (found.compiled + found.evaluating) / 2
  with pytest.raises(ValueError, match="train.eval_batch_size=128: evaluation needs .*; lower it"):
    fitting.fitting(config, tokens)
