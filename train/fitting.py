"""Does a run fit its devices? Asked of the compiler, before anything is trained."""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import ladders
from configs.errors import ConfigError
from model import memory, sharding
from train.data import dataset
from train.data.batches import train_batches, validation_batches
from train.objectives import registry
from train.step import program
from train.system import files, process

RECORD = "fits.json"
NEAR = 0.5  # a run predicted to need less than this share of a device is not compiled to find out


class Needs(NamedTuple):
  """What a run needs of each device, and what there is [bytes]."""

  predicted: int  # by the arithmetic of `model.memory`
  compiled: int  # by the compiled step: its arguments, temporaries, and outputs of their own
  evaluating: int  # likewise while it evaluates; the optimizer's state stays where it is
  available: int


def available(config: ConfigDict, sharing: int = 1) -> int:
  """Returns what a run may use of one device [bytes].

  Args:
    config: the run's.
    sharing: processes that share this machine's memory, where the devices are its CPU.
  """
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


def needs(config: ConfigDict, tokens: dataset.TokenData, sharing: int = 1) -> Needs:
  """Returns what a resolved config's training needs; its programs are compiled, and not run."""
  functions = program(config, tokens.vocab_size)
  batches = train_batches(tokens, config, 0, *process.place())
  batch = functions.place(next(batches))
  batches.close()
  compiled = _bytes(functions.step, functions.state, batch, np.float32(0), np.uint32(0))
  batch = functions.place(next(validation_batches(tokens, config, *process.place())))
  beside = _held(functions.state) - _held(functions.state.params)
  evaluating = beside + _bytes(functions.evaluate, functions.state.params, batch)
  return Needs(_predicted(config, tokens), compiled, evaluating, available(config, sharing))


def fitting(
  config: ConfigDict, tokens: dataset.TokenData, sharing: int = 1, near: float = 0.0
) -> tuple[ConfigDict, Needs | None]:
  """Returns a config that fits, and what it needs.

  A microbatch that is too large is halved until it fits, with the batch as it is, unless
  `sharding.halve_microbatches` is off.

  Args:
    config: resolved.
    tokens: its text.
    sharing: as in `available`.
    near: share of the memory below which the arithmetic is believed: nothing is compiled, and
      instead of the needs there is None.

  Raises:
    ConfigError: it does not fit.
  """
  if near and _predicted(config, tokens) < near * available(config, sharing):
    return config, None
  replicas, shards, _ = sharding.mesh_shape(config.sharding, len(jax.devices()))
  rows = config.data.batch_size // (replicas * shards)
  config = config.copy_and_resolve_references()
  while (found := needs(config, tokens, sharing)).compiled > found.available:
    halved = 2 * config.sharding.microbatches
    if not config.sharding.halve_microbatches or rows % halved:
      raise ConfigError(
        f"sharding.microbatches={config.sharding.microbatches}: a step needs "
        f"{found.compiled / 2**20:.4g} MiB of a device's {found.available / 2**20:.4g}; "
        f"{_remedy(config, rows)}"
      )
    config.sharding.microbatches = halved
  if found.evaluating > found.available:
    raise ConfigError(
      f"train.eval_batch_size={config.train.eval_batch_size}: evaluation needs "
      f"{found.evaluating / 2**20:.4g} MiB of a device's {found.available / 2**20:.4g}; lower it"
    )
  return config, found


def record(config: ConfigDict, folder: Path, sharing: int) -> dict:
  """Finds out whether a run fits, and returns that as a record, which is also `folder/fits.json`.

  Raises:
    ConfigError: it does not fit.
  """
  config = ladders.resolve(config)
  fitted, found = fitting(config, dataset.prepare(config), sharing)
  assert found is not None
  result = {
    "status": "done",
    "microbatches": fitted.sharding.microbatches,
    "devices": len(jax.devices()),
    "accelerator": jax.default_backend() != "cpu",
    **found._asdict(),
  }
  files.make_folder(folder)
  files.write_json(folder / RECORD, result)
  return result


def _predicted(config: ConfigDict, tokens: dataset.TokenData) -> int:
  lengths = registry.lengths(config)
  return memory.device_bytes(
    config,
    registry.vocab_size(config, tokens.vocab_size),
    lengths.target,
    lengths.source,
    devices=len(jax.devices()),
  )["total"]


def _bytes(function: Any, *arguments: Any) -> int:
  found = function.lower(*arguments).compile().memory_analysis()
  return (
    found.argument_size_in_bytes
    + found.temp_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
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
  if config.sharding.strategy not in ("zero3", "fsdp"):
    remedies.append("sharding.strategy='zero3' on more devices")
  else:
    remedies.append("more devices")
  return f"try {', '.join(remedies)} (`isoflop plan --devices=N` compares them)"
