"""Programs that are made before a run, and for devices that this machine has not."""

import jax
import numpy as np
import pytest
from jax._src.mesh import AbstractDevice

from configs import ladders
from model import layers
from train import aot, step
from train.data import dataset
from train.data.batches import train_batches

FAMILIES = {"mlm": "encoder", "span": "encoder_decoder", "ul2": "encoder_decoder"}


@pytest.mark.parametrize("objective", ["clm", "prefix", "mlm", "span", "ul2"])
def test_a_batch_that_is_imagined_has_the_shapes_of_one_that_is_read(tiny, objective):
  tiny.objective, tiny.model.family = objective, FAMILIES.get(objective, "decoder")
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


def test_what_is_lowered_ahead_is_what_a_run_executes(tiny):
  """The same program, so that a plan's bytes and collectives are those of the run."""
  config = ladders.resolve(tiny)
  functions = step.program(config, 257)
  batch = aot.abstract_batch(config, 257, config.data.batch_size, functions.batch_sharding)
  executed = functions.step.lower(functions.state, batch, np.float32(0), np.uint32(0))
  assert aot.lowered(config, 257)["step"].as_text() == executed.as_text()


def test_a_program_depends_on_the_devices_that_it_is_made_for():
  """What is traced on a mesh of other devices is for them."""
  mesh = jax.make_mesh((1,), ("shard",)).abstract_mesh
  on_tpus = mesh.update(abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu"))
  seen = []

  def part(x):
    seen.append(layers.platform())
    return x

  for there in (mesh, on_tpus):
    with jax.sharding.use_abstract_mesh(there):
      jax.jit(lambda x: part(x)).trace(jax.ShapeDtypeStruct((2,), np.float32))
  assert seen == [jax.default_backend(), "tpu"]
