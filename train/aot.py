"""A run's programs before it runs: lowered from its config alone; do they fit their devices?"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import ladders
from configs.errors import ConfigError
from model import memory, sharding
from train import optim
from train.data import dataset
from train.objectives import registry
from train.programs import Program, program
from train.step import all_params
from train.system import files

RECORD = "fits.json"
NEAR = 0.5  # a run predicted to need less than this share of a device is not compiled to find out
_LR, _SEED = jax.ShapeDtypeStruct((), np.float32), jax.ShapeDtypeStruct((), np.uint32)


def lowered(
  config: ConfigDict, vocab_size: int, devices: Sequence[jax.Device] | None = None, slots: int = 1
) -> dict[str, jax.stages.Lowered]:
  """Lowers what `program` makes: "init", "step" (of `slots` runs together) and "evaluate"."""
  functions = program(config, vocab_size, devices)
  return {
    "init": functions.init.lower(_SEED),
    "step": _lower_step(functions, config, vocab_size, slots),
    "evaluate": _lower_evaluate(functions, config, vocab_size),
  }


def compile_ahead(config: ConfigDict, slots: int) -> None:
  """Compiles the step of `slots` runs of an unresolved config into the cache on disk."""
  config = ladders.resolve(config)
  vocab_size = dataset.prepare(config).vocab_size
  _lower_step(program(config, vocab_size), config, vocab_size, slots).compile()


def _lower_step(
  functions: Program, config: ConfigDict, vocab_size: int, slots: int = 1
) -> jax.stages.Lowered:
  rows, lies = config.data.batch_size, functions.setup.layout.batch if slots == 1 else None
  arguments = functions.state, abstract_batch(config, vocab_size, rows, lies), _LR, _SEED
  if slots == 1:
    return functions.step.lower(*arguments)
  state, *rest = jax.tree.map(lambda x: jax.ShapeDtypeStruct((slots, *x.shape), x.dtype), arguments)
  there = functions.state.step.sharding  # a pack has one device, and all of it there
  state = jax.tree.map(lambda x: x.update(sharding=there), state)
  return functions.pack_step.lower(state, *rest)


def _lower_evaluate(functions: Program, config: ConfigDict, vocab_size: int) -> jax.stages.Lowered:
  rows = config.train.eval_batch_size
  batch = abstract_batch(config, vocab_size, rows, functions.setup.layout.batch)
  return functions.evaluate.lower(all_params(functions.state), batch)


def abstract_batch(
  config: ConfigDict, vocab_size: int, rows: int, lies: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes and types of a batch of so many sequences, over all hosts."""
  objective, length = registry.OBJECTIVES[config.objective], registry.lengths(config).text
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


# -------------------------------------------------------------------------- does it fit its devices


class Needs(NamedTuple):
  """What a run needs of each device, and what there is [bytes]."""

  predicted: int  # by `device_bytes`
  compiled: int  # by the compiled step: arguments, temporaries, and outputs that are not donated
  evaluating: int  # likewise while it evaluates; the optimizer's state stays where it is
  available: int


def fit_to_devices(
  config: ConfigDict, vocab_size: int, sharing: int = 1, near: float = 0.0
) -> tuple[ConfigDict, Needs | None]:
  """Halves microbatches until a resolved config's run fits; returns that config and its needs.

  With `sharding.halve_microbatches` off they stay. `sharing` is as in `available`. Where the
  arithmetic says that it takes less than a share `near` of the memory, nothing is compiled, and
  instead of the needs there is None.
  """
  predicted = device_bytes(config, vocab_size, len(jax.devices()))["total"]
  if predicted < near * available(config, sharing):
    return config, None
  replicas, shards, _ = sharding.mesh_shape(config.sharding, len(jax.devices()))
  rows = config.data.batch_size // (replicas * shards)
  config = config.copy_and_resolve_references()
  while (need := needs(config, vocab_size, sharing)).compiled > need.available:
    halved = 2 * config.sharding.microbatches
    if not config.sharding.halve_microbatches or rows % halved:
      raise ConfigError(
        f"sharding.microbatches={config.sharding.microbatches}: a step needs "
        f"{need.compiled / 2**20:.4g} MiB of a device's {need.available / 2**20:.4g}; "
        f"{_remedy(config, rows)}"
      )
    config.sharding.microbatches = halved
  if need.evaluating > need.available:
    raise ConfigError(
      f"train.eval_batch_size={config.train.eval_batch_size}: evaluation needs "
      f"{need.evaluating / 2**20:.4g} MiB of a device's {need.available / 2**20:.4g}; lower it"
    )
  return config, need


def record_needs(config: ConfigDict, folder: Path, sharing: int) -> dict:
  """Finds out whether a run fits; returns the record, which is also `folder/fits.json`."""
  config = ladders.resolve(config)
  fitted, need = fit_to_devices(config, dataset.prepare(config).vocab_size, sharing)
  assert need is not None
  record = {
    "status": "done",
    "microbatches": fitted.sharding.microbatches,
    "devices": len(jax.devices()),
    "accelerator": jax.default_backend() != "cpu",
    **need._asdict(),
  }
  files.write_json(folder / RECORD, record)
  return record


def needs(config: ConfigDict, vocab_size: int, sharing: int = 1) -> Needs:
  """Compiles a resolved config's programs to find out what they need; runs nothing."""
  functions = program(config, vocab_size)
  beside = _held(functions.state) - _held(all_params(functions.state))
  return Needs(
    device_bytes(config, vocab_size, len(jax.devices()))["total"],
    _bytes(_lower_step(functions, config, vocab_size)),
    _bytes(_lower_evaluate(functions, config, vocab_size)) + beside,
    available(config, sharing),
  )


def available(config: ConfigDict, sharing: int = 1) -> int:
  """Returns what a run may use of one device [bytes]; `sharing` processes share a CPU's memory."""
  if config.sharding.device_memory:
    return int(config.sharding.device_memory)
  devices = jax.local_devices()
  stats = devices[0].memory_stats() or {}
  return stats.get("bytes_limit") or machine_memory() // (len(devices) * sharing)


def machine_memory() -> int:
  """Returns the memory that this process may use [bytes]: the machine's, or its container's."""
  limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
  for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of cgroups, version 2 and 1
    path = Path("/sys/fs/cgroup", name)
    if path.is_file() and (text := path.read_text().strip()).isdigit():
      limits.append(int(text))
  return min(limits)


def device_bytes(
  config: ConfigDict, vocab_size: int, devices: int = 1, fused: bool = False
) -> dict[str, int]:
  """Predicts what each device holds (`memory.device_bytes`); `vocab_size` is the tokenizer's."""
  shapes = registry.shapes(config, vocab_size)
  trained = optim.trainable(config.train.trainable, shapes)
  arrays = optim.arrays(config.optim, {path: shapes[path] for path in trained})
  shape = registry.model_shape(config, vocab_size)
  return memory.device_bytes(config, *shape, arrays, devices, fused)


def _bytes(program: jax.stages.Lowered) -> int:
  sizes: Any = program.compile().memory_analysis()
  return (
    sizes.argument_size_in_bytes
    + sizes.temp_size_in_bytes
    + sizes.output_size_in_bytes
    - sizes.alias_size_in_bytes
  )


def _held(tree: Any) -> int:
  """Returns the bytes of a tree's shapes that one device holds."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _remedy(config: ConfigDict, rows: int) -> str:
  if not config.sharding.halve_microbatches and not rows % (2 * config.sharding.microbatches):
    return "set sharding.halve_microbatches=True, or more microbatches"
  remedies = []
  if config.model.remat != "full":
    remedies.append("model.remat='full'")
  if config.model.weights == "float32":
    remedies.append("model.dtype='bfloat16' with model.weights='bfloat16'")
  in_shards = config.sharding.strategy in ("zero3", "fsdp")
  remedies.append("more devices" if in_shards else "sharding.strategy='zero3' on more devices")
  return f"try {', '.join(remedies)} (`isoflop plan --devices=N` compares them)"
