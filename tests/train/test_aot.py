"""Programs before a run: for devices that this machine has not, and for those they must fit."""

import jax
import numpy as np
import pytest
from jax._src.mesh import AbstractDevice

from configs import base, ladders
from model import ops
from train import aot, loop, programs
from train.data import dataset
from train.data.batches import train_batches


@pytest.mark.parametrize("objective", ["clm", "prefix", "mlm", "span", "ul2"])
def test_a_batch_that_is_imagined_has_the_shapes_of_one_that_is_read(tiny, objective):
  tiny.objective, tiny.model.family = objective, base.family_of(objective)
  tiny.data.isolate_documents = False
  config = ladders.resolve(tiny)
  tokens = dataset.prepare(config)
  batches = train_batches(tokens, config)
  real = next(batches)
  batches.close()
  imagined = aot.abstract_batch(config, tokens.vocab_size, config.data.batch_size)
  assert {k: (x.shape, x.dtype) for k, x in imagined.items()} == {
    k: (x.shape, x.dtype) for k, x in real.items()
  }


@pytest.mark.parametrize("slots", [1, 2])
def test_what_is_lowered_ahead_is_what_a_run_executes(tiny, slots):
  """The same program: a plan's bytes are the run's, what is compiled ahead is found on disk."""
  config = ladders.resolve(tiny)
  tokens = dataset.prepare(config)
  functions = programs.program(config, tokens.vocab_size)
  batch, state = next(train_batches(tokens, config)), functions.init(np.uint32(0))
  if slots == 1:
    program, arguments = functions.step, (state, functions.place(batch))
  else:
    stacked = {name: np.stack([rows] * slots) for name, rows in batch.items()}
    program, arguments = functions.pack_step, (functions.stack(*[state] * slots), stacked)
  shape = () if slots == 1 else (slots,)
  executed = program.lower(*arguments, np.zeros(shape, np.float32), np.zeros(shape, np.uint32))
  lowered = aot.lowered(config, tokens.vocab_size, slots=slots)
  assert lowered["step"].as_text() == executed.as_text()


def test_a_program_depends_on_the_devices_that_it_is_made_for():
  """What is traced on a mesh of other devices is for them."""
  mesh = jax.make_mesh((1,), ("shard",)).abstract_mesh
  on_tpus = mesh.update(abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu"))
  seen = []

  def part(x):
    seen.append(ops.platform())
    return x

  for there in (mesh, on_tpus):
    with jax.sharding.use_abstract_mesh(there):
      jax.jit(lambda x: part(x)).trace(jax.ShapeDtypeStruct((2,), np.float32))
  assert seen == [jax.default_backend(), "tpu"]


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
  return aot.needs(config, tokens.vocab_size).compiled


@pytest.mark.slow
def test_microbatches_are_halved_until_they_fit_and_the_batch_stays(run, tmp_path):
  config, tokens = run
  whole, half, quarter = (compiled(config, tokens, microbatches=n) for n in (1, 2, 4))
  assert whole > half > quarter
  config.sharding.device_memory = (half + quarter) / 2
  fitted, found = aot.fit_to_devices(config, tokens.vocab_size)
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
  monkeypatch.setattr(aot, "needs", lambda *_: pytest.fail("it was compiled"))
  assert aot.fit_to_devices(config, tokens.vocab_size, near=aot.NEAR) == (config, None)


def test_memory_of_this_machine(tiny):
  alone = aot.available(tiny)
  assert 2**28 < alone <= aot.machine_memory()
  assert aot.available(tiny, sharing=4) == pytest.approx(alone / 4, rel=1e-6)
  assert jax.default_backend() == "cpu"


def test_what_evaluation_needs_is_looked_at_too(run):
  config, tokens = run
  config.train.eval_batch_size = 128
  found = aot.needs(config, tokens.vocab_size)
  assert found.evaluating > found.compiled
  config.sharding.device_memory = (found.compiled + found.evaluating) / 2
  with pytest.raises(ValueError, match="train.eval_batch_size=128: evaluation needs .*; lower it"):
    aot.fit_to_devices(config, tokens.vocab_size)
