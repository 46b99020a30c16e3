"""Which layouts (strategy, shards, microbatches) fit a device's memory, by arithmetic alone.

Strategies are tried in the order of what they send (Rajbhandari et al. 2020, arXiv:1910.02054,
section 7): ddp, zero1 and zero2 send each gradient once and each weight once, or twice the
parameters; in shards (hybrid over few devices before zero3 over all) it is three times.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import ladders
from configs.errors import UsageError
from model import accounting, sharding
from scaling.formats import gib, pf_days, text_table
from train import aot, optim, record
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
    fields = {name: getattr(self, name) for name in self._fields[:3]}
    flags = _flags("sharding", {name: value for name, value in fields.items() if value})
    return f"{flags} ({gib(self.held['total'])} a device)"


def parse_bytes(size: str) -> int:
  """Parses a number of bytes written as 80GiB, 80GB or 24e9; "" is 0, for a limit not known."""
  if not size:
    return 0
  match = re.fullmatch(r"(\d+\.?\d*(?:e\d+)?)\s*([KMGT]?i?B)?", size.strip())
  if not match or not 0 < float(match[1]) < math.inf or (match[2] or "") not in UNITS:
    raise UsageError(f"device_memory={size!r}: write a size as 80GiB, 80GB or 24e9")
  return round(float(match[1]) * UNITS[match[2] or ""])


def resolve(config: ConfigDict, devices: int) -> ConfigDict:
  """Resolves a config, and checks that it can be trained on so many devices."""
  config = ladders.resolve(config)
  registry.check_objective(config)
  sharding.check_batches(config, devices)
  return config


def device_bytes(config: ConfigDict, devices: int) -> dict[str, int]:
  """Predicts each device's memory in a run of a resolved config (`aot.device_bytes`).

  A run in bfloat16 is taken to be one on a GPU, whose attention does not store its weights.
  """
  m = config.model
  fused = m.dtype == "bfloat16" and m.positions != "relative"
  return aot.device_bytes(config, tokenizer.size(config.data.tokenizer), devices, fused)


def run_report(config: ConfigDict, devices: int, device_memory: str) -> str:
  """Reports what one run costs, what each device holds by strategy, and what fits."""
  config, limit = resolve(config, devices), parse_bytes(device_memory)
  text_vocab = tokenizer.size(config.data.tokenizer)
  size, shapes = record.size_of(config, text_vocab), registry.shapes(config, text_vocab)
  groups = ", ".join(f"{name} {size.groups[name]:,}" for name in accounting.GROUPS)
  layout, m = config.sharding, config.model
  configured = (layout.strategy.replace("fsdp", "zero3"), layout.shard_factor)
  rows = []
  for strategy, factor in _strategies(config, devices):
    changed = _with_layout(config, strategy, factor, layout.microbatches)
    shards = sharding.mesh_shape(changed.sharding, devices)[1] if strategy != "ddp" else 1
    mark = "*" * ((strategy, factor) == configured)
    head = [strategy + mark, str(shards), str(layout.microbatches)]
    rows.append((head, device_bytes(changed, devices)))
  lines = [
    f"{size.groups['total']:,} parameters ({groups}); N = {size.n_params:,} (body + head)",
    f"D = {size.tokens:,} tokens = {size.tokens / size.n_params:.1f} N, "
    f"{size.steps:,} steps of {size.tokens_per_step:,}",
    f"C = {size.flops:.3e} FLOPs = {pf_days(size.flops):,.4g} petaflop/s-days "
    f"(6ND: {6.0 * size.n_params * size.tokens:.3e})",
    optim.describe(config, shapes),
    "",
    f"bytes per device (of {devices}), remat={m.remat}, dtype={m.dtype}, weights={m.weights} "
    "(*: as configured)",
    _table(["strategy", "shards", "microbatches"], rows, limit),
    LEGEND,
  ]
  return "\n".join(lines + (["", *advise(config, devices, limit)] if limit else []))


def sizes_report(configs: Mapping[int, ConfigDict], devices: int, device_memory: str) -> str:
  """Reports what each device holds by size of a sweep, and what fits where a size does not."""
  limit = parse_bytes(device_memory)
  rows, advice = [], list[str]()
  for size, config in configs.items():
    config = resolve(config, devices)
    n_params = record.size_of(config, tokenizer.size(config.data.tokenizer)).n_params
    bytes_ = device_bytes(config, devices)
    rows.append(([str(size), f"{n_params:,}"], bytes_))
    if limit and not _fits(bytes_, limit):
      advice += ["", f"size {size}:", *advise(config, devices, limit)]
  heading = f"bytes per device (of {devices}), sharding.strategy={config.sharding.strategy}"
  return "\n".join([heading, _table(["size", "N"], rows, limit), *advice])


def advise(config: ConfigDict, devices: int, limit: int) -> list[str]:
  """Says which layout fits in `limit` bytes a device, or what would make one fit, in lines."""
  room = f"{gib(limit)}, of which {FREE:.0%} stay free"
  if choice := cheapest(config, devices, limit):
    rows = config.data.batch_size // (devices // config.sharding.tensor * choice.microbatches)
    return [f"fits {room}: {choice}, {rows} sequences at once"]
  lines = [f"nothing fits {room}; it would with"]
  m = config.model
  for remedy in REMEDIES:
    has_less = remedy == {"remat": "dots"} and m.remat == "full"
    if has_less or all(m[field] == value for field, value in remedy.items()):
      continue
    changed = config.copy_and_resolve_references()
    changed.model.update(remedy)
    if choice := cheapest(changed, devices, limit):
      lines.append(f"  {_flags('model', remedy)} {choice}")
  if more := least_devices(config, devices, limit):
    lines.append(f"  --devices={more[0]} {more[1]}")
  return lines if len(lines) > 1 else [f"nothing fits {room}, on any number of devices"]


def cheapest(config: ConfigDict, devices: int, limit: int) -> Choice | None:
  """Finds the first strategy that fits, with its largest microbatch; None: none does."""
  data = devices // config.sharding.tensor
  if config.data.batch_size % data:
    return None
  for strategy, factor in _strategies(config, devices):
    for microbatches in sharding.divisors(config.data.batch_size // data):
      bytes_ = device_bytes(_with_layout(config, strategy, factor, microbatches), devices)
      if _fits(bytes_, limit):
        return Choice(strategy, factor, microbatches, bytes_)
  return None


def least_devices(config: ConfigDict, devices: int, limit: int) -> tuple[int, Choice] | None:
  """Finds the least number of devices above `devices` that fits, and how."""
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


def _with_layout(config: ConfigDict, strategy: str, factor: int, microbatches: int) -> ConfigDict:
  changed = config.copy_and_resolve_references()
  layout = {"strategy": strategy, "shard_factor": factor, "microbatches": microbatches}
  changed.sharding.update(layout)
  return changed


def _flags(section: str, fields: Mapping[str, Any]) -> str:
  """Writes fields of a config as on the command line."""
  return " ".join(f"--config.{section}.{name}={value}" for name, value in fields.items())


def _fits(bytes_: dict[str, int], limit: int) -> bool:
  return bytes_["total"] <= (1 - FREE) * limit


def _table(head: list[str], rows: list[tuple[list[str], dict[str, int]]], limit: int) -> str:
  """Makes a table of rows and their bytes, by part, and of whether they fit a limit, if any."""
  cells = []
  for first, bytes_ in rows:
    fits = ["yes" if _fits(bytes_, limit) else "no"] if limit else []
    cells.append([*first, *(gib(bytes_[part]) for part in PARTS), *fits])
  return text_table([*head, *PARTS, *(["fits"] if limit else [])], cells)
