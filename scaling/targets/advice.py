"""Will it fit, and what would: the memory of runs on imagined devices. Touches none.

Strategies are tried in the order of what they send (Rajbhandari et al. 2020, arXiv:1910.02054,
section 7): ddp, zero1 and zero2 send each gradient once and each weight once, or twice the
parameters; in shards (hybrid over few devices before zero3 over all) it is three times.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from rich.table import Table

from configs import base, ladders
from configs.errors import UsageError
from model import accounting, memory, sharding, transformer
from scaling.formats import empty_table, gib, table_text
from scaling.sweep import arms, plan
from train import record
from train.data import tokenizer
from train.objectives import registry

FREE = 0.1  # share of a device's memory that stays free: predictions are within 10 %
UNITS = {"": 1, "B": 1}
UNITS |= {f"{prefix}B": 1000 ** (i + 1) for i, prefix in enumerate("KMGT")}
UNITS |= {f"{prefix}iB": 1024 ** (i + 1) for i, prefix in enumerate("KMGT")}
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "passing", "total")
REMEDIES: tuple[dict[str, str], ...] = (
  {"remat": "dots"},
  {"remat": "full"},
  {"dtype": "bfloat16", "weights": "bfloat16"},
  {"dtype": "bfloat16", "weights": "bfloat16", "remat": "full"},
)
LEGEND = "passing: gathered weights and gradients to reduce, where the peak needs room for them"


class Choice(NamedTuple):
  """A layout that fits, and the bytes of each device in it."""

  strategy: str
  shard_factor: int
  microbatches: int
  held: dict[str, int]

  def __str__(self) -> str:
    fields = {"strategy": self.strategy, "shard_factor": self.shard_factor}
    fields["microbatches"] = self.microbatches
    flags = flags_of("sharding", {name: value for name, value in fields.items() if value})
    return f"{flags} ({gib(self.held['total'])} a device)"


def parse_bytes(size: str) -> int:
  """Returns a number of bytes written as 80GiB, 80GB or 24e9.

  Raises:
    UsageError: it is no such number, or not positive.
  """
  found = re.fullmatch(r"(\d+\.?\d*(?:e\d+)?)\s*([KMGT]?i?B)?", size.strip())
  if not found or not 0 < float(found[1]) < math.inf or (found[2] or "") not in UNITS:
    raise UsageError(f"device_memory={size!r}: write a size as 80GiB, 80GB or 24e9")
  return round(float(found[1]) * UNITS[found[2] or ""])


def flags_of(section: str, fields: Mapping[str, Any]) -> str:
  """Returns fields of a config as they are written on the command line."""
  return " ".join(f"--config.{section}.{name}={value}" for name, value in fields.items())


def is_sweep(config: ConfigDict) -> bool:
  """Returns whether a config means a sweep: it changes something in `config.sweep`."""
  return config.sweep.to_dict() != base.sweep().to_dict()


def held(config: ConfigDict, devices: int) -> dict[str, int]:
  """Returns `memory.device_bytes` of a resolved config.

  A run in bfloat16 is taken to be one on a GPU, whose attention does not store its weights.
  """
  lengths, m = registry.lengths(config), config.model
  fused = m.dtype == "bfloat16" and m.positions != "relative"
  vocab_size = registry.vocab_size(config, tokenizer.size(config.data.tokenizer))
  return memory.device_bytes(config, vocab_size, lengths.target, lengths.source, devices, fused)


def run_report(config: ConfigDict, devices: int, device_memory: str) -> str:
  """Returns what one run costs, what each strategy holds, and which fits.

  Args:
    config: the run's.
    devices: how many there would be.
    device_memory: of each, as in `parse_bytes`; "": nothing is said about what fits.

  Raises:
    UsageError: the config is not consistent, or its batch does not divide among the devices.
  """
  config = checked(config, devices)
  limit = parse_bytes(device_memory) if device_memory else 0
  size = record.size_of(config, tokenizer.size(config.data.tokenizer))
  groups = ", ".join(f"{name} {size.groups[name]:,}" for name in accounting.GROUPS)
  table = empty_table(
    "strategy shards microbatches " + " ".join(PARTS) + (" fits" if limit else "")
  )
  own = config.sharding
  for strategy, factor in _strategies(config, devices):
    row = _with(config, strategy, factor, own.microbatches)
    mine = strategy == own.strategy.replace("fsdp", "zero3") and factor == own.shard_factor
    shards = sharding.mesh_shape(row.sharding, devices)[1] if strategy != "ddp" else 1
    _add_row(
      table, [strategy + "*" * mine, str(shards), str(own.microbatches)], row, devices, limit
    )
  lines = [
    f"{size.groups['total']:,} parameters ({groups}); N = {size.n_params:,} (body + head)",
    f"D = {size.tokens:,} tokens = {size.tokens / size.n_params:.1f} N, "
    f"{size.steps:,} steps of {size.tokens_per_step:,}",
    f"C = {size.flops:.3e} FLOPs = {accounting.petaflop_s_days(size.flops):,.4g} petaflop/s-days "
    f"(6ND: {6.0 * size.n_params * size.tokens:.3e})",
    "",
    f"bytes per device (of {devices}), remat={config.model.remat}, dtype={config.model.dtype}, "
    f"weights={config.model.weights} (*: as configured)",
    table_text(table),
    LEGEND,
  ]
  return "\n".join(lines + (["", *advise(config, devices, limit)] if limit else []))


def sweep_report(config: ConfigDict, devices: int, device_memory: str) -> str:
  """Returns what each size of a sweep holds, and what fits where it does not.

  The arguments, and what is raised, are those of `run_report`.
  """
  if config.sweep.objectives:
    return "\n\n".join(
      f"{name}\n\n{sweep_report(own, devices, device_memory)}"
      for name, own in arms.split(config).items()
    )
  limit = parse_bytes(device_memory) if device_memory else 0
  table = empty_table("size N " + " ".join(PARTS) + (" fits" if limit else ""))
  lines = []
  for size in sorted({*config.sweep.probe_sizes, *config.sweep.sizes}):
    sized = checked(plan.at_size(config, size), devices)
    n_params = record.size_of(sized, tokenizer.size(config.data.tokenizer)).n_params
    if not _add_row(table, [str(size), f"{n_params:,}"], sized, devices, limit):
      lines += ["", f"size {size}:", *advise(sized, devices, limit)]
  heading = f"bytes per device (of {devices}), sharding.strategy={config.sharding.strategy}"
  return "\n".join([heading, table_text(table), *lines])


def advise(config: ConfigDict, devices: int, limit: int) -> list[str]:
  """Returns lines: the layout that fits in `limit` bytes a device, or what would make one fit."""
  room = f"{gib(limit)}, of which {FREE:.0%} stay free"
  if choice := cheapest(config, devices, limit):
    rows = config.data.batch_size // (devices // config.sharding.tensor * choice.microbatches)
    return [f"fits {room}: {choice}, {rows} sequences at once"]
  lines = [f"nothing fits {room}; it would with"]
  m = config.model
  for remedy in REMEDIES:
    if all(m[field] == value for field, value in remedy.items()) or (
      remedy == {"remat": "dots"} and m.remat == "full"
    ):
      continue
    changed = config.copy_and_resolve_references()
    changed.model.update(remedy)
    if choice := cheapest(changed, devices, limit):
      lines.append(f"  {flags_of('model', remedy)} {choice}")
  if more := least_devices(config, devices, limit):
    lines.append(f"  --devices={more[0]} {more[1]}")
  return lines if len(lines) > 1 else [f"nothing fits {room}, on any number of devices"]


def cheapest(config: ConfigDict, devices: int, limit: int) -> Choice | None:
  """Returns the first strategy that fits, with its largest microbatch; None: none does."""
  data = devices // config.sharding.tensor
  if config.data.batch_size % data:
    return None
  for strategy, factor in _strategies(config, devices):
    for microbatches in sharding.divisors(config.data.batch_size // data):
      bytes_ = held(_with(config, strategy, factor, microbatches), devices)
      if _fits(bytes_, limit):
        return Choice(strategy, factor, microbatches, bytes_)
  return None


def least_devices(config: ConfigDict, devices: int, limit: int) -> tuple[int, Choice] | None:
  """Returns the least number of devices above `devices` that fits, and how; None: none does."""
  for data in sharding.divisors(config.data.batch_size):
    more = data * config.sharding.tensor
    if more > devices and (choice := cheapest(config, more, limit)):
      return more, choice
  return None


def _strategies(config: ConfigDict, devices: int) -> Iterator[tuple[str, int]]:
  """Yields (strategy, shard_factor), what sends least first; hybrid over whole nodes of 8."""
  data = devices // config.sharding.tensor
  yield "ddp", 0
  if data > 1:
    yield from (("zero1", 0), ("zero2", 0))
    factors = {n for n in sharding.divisors(data) if n % 8 == 0} | {config.sharding.shard_factor}
    yield from (("hybrid", factor) for factor in sorted(factors - {0, data}))
    yield "zero3", 0


def _with(config: ConfigDict, strategy: str, factor: int, microbatches: int) -> ConfigDict:
  changed = config.copy_and_resolve_references()
  changed.sharding.update(
    {"strategy": strategy, "shard_factor": factor, "microbatches": microbatches}
  )
  return changed


def checked(config: ConfigDict, devices: int) -> ConfigDict:
  """Returns a config resolved.

  Raises:
    UsageError: it is not consistent, or its batch does not divide among the devices.
  """
  if devices < 1:
    raise UsageError(f"devices={devices}: must be at least 1")
  config = ladders.resolve(config)
  transformer.check(config.model)
  registry.check(config)
  sharding.check(config, devices)
  return config


def _fits(bytes_: dict[str, int], limit: int) -> bool:
  return bytes_["total"] <= (1 - FREE) * limit


def _add_row(table: Table, first: list[str], config: ConfigDict, devices: int, limit: int) -> bool:
  """Adds a config's bytes to a table; returns whether they fit, True where no limit is known."""
  bytes_ = held(config, devices)
  fits = not limit or _fits(bytes_, limit)
  last = ["yes" if fits else "no"] if limit else []
  table.add_row(*first, *(gib(bytes_[part]) for part in PARTS), *last)
  return fits
