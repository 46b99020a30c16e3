"""A run's programs before it runs: lowered for any devices, from its config alone."""

from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from train.objectives import registry
from train.step import program


def lowered(
  config: ConfigDict,
  vocab_size: int,
  devices: Sequence[jax.Device] | None = None,
  slots: int = 1,
) -> dict[str, jax.stages.Lowered]:
  """Lowers what a run executes: "init", "step" and "evaluate".

  Args:
    config: resolved.
    vocab_size: V of the tokenizer.
    devices: what they are made for, also such as this machine has not (`scaling.targets.catalog`);
      None: all of this machine's.
    slots: runs that are trained together (`train.pack`); the step is theirs.

  Raises:
    UserError: the devices do not divide as `config.sharding` asks.
  """
  functions = program(config, vocab_size, devices)
  train_rows, eval_rows = config.data.batch_size, config.train.eval_batch_size
  batch = abstract_batch(config, vocab_size, train_rows, functions.batch_sharding)
  scalars = jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((), np.uint32)
  if slots == 1:
    step = functions.step.lower(functions.state, batch, *scalars)
  else:
    states, batches, *stacked = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((slots, *x.shape), x.dtype), (functions.state, batch, *scalars)
    )
    step = functions.pack_step.lower(states, batches, *stacked)
  evaluated = abstract_batch(config, vocab_size, eval_rows, functions.batch_sharding)
  return {
    "init": functions.init.lower(scalars[1]),
    "step": step,
    "evaluate": functions.evaluate.lower(functions.state.params, evaluated),
  }


def abstract_batch(
  config: ConfigDict, vocab_size: int, rows: int, lies: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes and types of a batch of so many sequences, over all hosts."""
  objective, length = registry.get(config.objective), registry.lengths(config).text
  one = objective.batch(
    np.zeros((1, length + 1), np.int32),
    np.ones((1, length), bool),
    np.zeros((1, objective.draws(length))),
    config,
    vocab_size,
  )
  return {
    name: jax.ShapeDtypeStruct(
      (rows, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype), sharding=lies
    )
    for name, x in one.items()
  }
