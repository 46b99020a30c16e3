"""How fast training is on this machine, and how near that is to what its matrix products reach.

All cases take turns, and matrix products take theirs among them, so that whatever else the machine
does slows them alike; a ratio of two cases is the median over the rounds. A turn is a few steps as
`train.loop` takes them: a new batch is made and placed for each, and nothing waits before the last.

A case's FLOP/s are compared with those of products of its operands in two ways: its median with the
best product of all rounds, which a disturbance can only lower (`peak_fraction`); and in each round
with the best product of that round, of which the median counts (`paired_fraction`).
"""

import datetime
import itertools
import os
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from configs import base, ladders, presets
from configs.errors import ConfigError, UsageError
from model import sharding
from scaling.bench.timing import Turn, product, ratio, round_robin, training
from scaling.formats import gib, text_table
from scaling.progress import Display
from scaling.targets.catalog import CHIPS
from train import record
from train.data import dataset
from train.data.batches import check_tokens
from train.objectives import registry
from train.system import files, process

FORMAT = 1  # of bench.json; raise it when a field changes its meaning
DTYPES = ("float32", "bfloat16")
HEAD_WIDTH = 32  # of a size that names no heads
SIDES = {"cpu": (512, 1024, 2048)}  # of the square products of the peak
ACCELERATOR_SIDES = (2048, 4096, 8192)


class Case(NamedTuple):
  """One model to measure."""

  name: str  # "decoder 64/2 float32"
  config: ConfigDict  # resolved; it trains for one step


def cases(
  config: ConfigDict,
  sizes: str = "",
  families: str = "",
  dtypes: str = "",
  tokens: int = 0,
  vary: Sequence[str] = (),
) -> list[Case]:
  """Makes every combination of sizes, families and dtypes; each is the config's where it is "".

  `vary` has changes, FIELD=VALUE, that are measured beside each. Heads are 32 wide unless named; a
  family that is not the config's trains its first objective.
  """
  made: list[Case] = []
  for size, family, dtype, change in itertools.product(
    _split("sizes", sizes) or [""],
    _split("families", families, base.FAMILIES) or [config.model.family],
    _split("dtypes", dtypes, DTYPES) or [config.model.dtype],
    ["", *vary],
  ):
    c = config.copy_and_resolve_references()
    c.model.update(_shape(size) | {"dtype": dtype})
    if family != c.model.family:
      presets.set_family(c, family)
    if change:
      field, _, value = change.partition("=")
      try:
        base.set_field(c, field, value)
      except ConfigError as error:
        raise UsageError(f"vary={change!r}: not a FIELD=VALUE of the config ({error})") from None
    c = ladders.resolve(c)
    record.check_config(c)
    length = registry.lengths(c).text
    if tokens and tokens < length:
      raise UsageError(f"tokens={tokens}: a {c.objective} sequence has {length}; allow as many")
    c.data.batch_size = tokens // length or c.data.batch_size
    c.train.tokens = registry.tokens_per_step(c)
    sharding.check_batches(c, len(jax.devices()))
    name = f"{family} {size or f'{c.model.width}/{c.model.depth}'} {dtype} {change}".rstrip()
    if same := [case.name for case in made if case.config == c]:
      flag = f"vary={change}" if change else f"sizes={sizes}"
      over = " (--tokens sets the batch)" if tokens and "batch_size" in change else ""
      raise UsageError(f"{flag}: {name!r} is {same[0]!r} again{over}; leave one of them out")
    made.append(Case(name, c))
  return made


def _split(flag: str, value: str, known: Iterable[str] = ()) -> list[str]:
  names = [name.strip() for name in value.split(",")] if value else []
  if known and (unknown := {*names} - {*known}):
    raise UsageError(f"{flag}={min(unknown)!r}: unknown; choose from {', '.join(known)}")
  return names


def _shape(size: str) -> dict[str, int]:
  if not size:
    return {}
  if not (numbers := re.fullmatch(r"([1-9]\d*)/([1-9]\d*)(?:/([1-9]\d*))?", size)):
    raise UsageError(f"sizes={size!r}: write width/layers or width/layers/heads, as 64/2,128/4/4")
  width, depth, heads = (int(number or 0) for number in numbers.groups())
  derived = dict.fromkeys(("head_width", "kv_heads", "mlp_width", "encoder_depth"), 0)
  return {"width": width, "depth": depth, "heads": heads or max(1, width // HEAD_WIDTH)} | derived


def bench(cases: Sequence[Case], workdir: Path, rounds: int) -> dict[str, Any]:
  """Measures cases and the peak; returns the record, which is also `workdir/bench.json`.

  All cases are on the device at once.
  """
  corpora = [dataset.prepare(case.config) for case in cases]
  for case, tokens in zip(cases, corpora, strict=True):
    check_tokens(case.config, tokens)
  files.make_folder(workdir)
  head = machine()  # its load is that of before
  turns: dict[str, Callable[[], Any]] = {}
  facts = {}
  with Display("bench") as display:
    for case, tokens in zip(cases, corpora, strict=True):
      display.show(f"compiling {case.name}")
      turns[case.name], facts[case.name] = training(case.config, tokens)
    sides = SIDES.get(jax.default_backend(), ACCELERATOR_SIDES)
    products = {f"{dtype} {side}": (dtype, side) for dtype in DTYPES for side in sides}
    turns |= {name: product(side, dtype) for name, (dtype, side) in products.items()}
    results = round_robin(turns, rounds, display)
  rates = [
    {"dtype": dtype, "side": side, "flops_per_second": max(results[name]), "turns": results[name]}
    for name, (dtype, side) in products.items()
  ]
  peaks = {  # the best rate of each round
    d: [max(taken) for taken in zip(*(r["turns"] for r in rates if r["dtype"] == d), strict=True)]
    for d in DTYPES
  }
  rows: list[dict[str, Any]] = []
  for name, of_case in facts.items():
    row = {"case": name} | summary(of_case, results[name], peaks[of_case["dtype"]])
    first = next((r for r in rows if all(r[x] == row[x] for x in ("width", "depth", "heads"))), row)
    row["ratio_to"] = first["case"]
    row["ratio"] = ratio(results[name], results[first["case"]])
    rows.append(row)
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  result = head | {
    "rounds": rounds,
    "peak_flops_per_second": {dtype: max(best) for dtype, best in peaks.items()},
    "products": rates,
    "device_peak_bytes": max(stat.get("peak_bytes_in_use", 0) for stat in stats) or None,
    "cases": rows,
  }
  files.write_json(workdir / "bench.json", result)
  return result


def summary(facts: dict[str, Any], turns: list[Turn], peaks: list[float]) -> dict[str, Any]:
  """Adds to a case's facts what its turns amount to.

  `peaks` has the best rate of a product with its operands, by round [FLOP/s].
  """
  step, dispatch, input_ = (median(values) for values in zip(*turns, strict=True))
  flops = facts["flops_per_step"]
  nominal = nominal_peak(jax.devices()[0].device_kind, facts["dtype"], len(jax.devices()))
  return facts | {
    "step_seconds": step,
    "step_seconds_min": min(turn.step for turn in turns),
    "step_seconds_max": max(turn.step for turn in turns),
    "dispatch_seconds": dispatch,
    "input_seconds": input_,
    "input_share": input_ / step,  # of the host's time; on a device of its own it is hidden
    "tokens_per_second": facts["tokens_per_step"] / step,
    "flops_per_second": flops / step,
    "peak_fraction": flops / step / max(peaks),
    "paired_fraction": median(flops / t.step / peak for t, peak in zip(turns, peaks, strict=True)),
    "nominal_fraction": flops / step / nominal if nominal else None,
    "turns": [turn._asdict() for turn in turns],
  }


def nominal_peak(device_kind: str, dtype: str, devices: int) -> float:
  """Returns the rate that the maker states, all devices together [FLOP/s]; 0: none is known."""
  known = [chip.peaks[dtype] for chip in CHIPS.values() if chip.kind in device_kind]
  return devices * known[0] if known and dtype == "bfloat16" else 0.0


def machine() -> dict[str, Any]:
  """Returns the head of bench.json: its format, the date, and the machine."""
  cpuinfo = Path("/proc/cpuinfo")
  model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
  return {
    "format": FORMAT,
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "machine": {
      "device_kind": jax.devices()[0].device_kind,
      "devices": len(jax.devices()),
      "processor": model[1] if model else platform.processor() or platform.machine(),
      "cores": len(process.cores()),
      "load_at_start": os.getloadavg()[0],  # processes that wanted a core in the minute before
      "python": platform.python_version(),
      "versions": record.versions(),
      # With one, compile times mean little.
      "compile_cache": jax.config.values["jax_compilation_cache_dir"] or "",
    },
  }


def table(result: dict[str, Any]) -> str:
  """Renders the record as a table and its legend."""
  columns = (
    "case N tokens/step compile dispatch step min-max input tokens/s FLOP/s peak paired nominal "
    "ratio memory"
  )
  rows = []
  for row in result["cases"]:
    low, high = 1e3 * row["step_seconds_min"], 1e3 * row["step_seconds_max"]
    rows.append((
      row["case"], f"{row['N']:,}", f"{row['tokens_per_step']:,}",
      f"{row['compile_seconds']:.1f} s", f"{1e3 * row['dispatch_seconds']:.2f} ms",
      f"{1e3 * row['step_seconds']:.1f} ms", f"{low:.1f}-{high:.1f}", f"{row['input_share']:.1%}",
      f"{row['tokens_per_second']:,.0f}", f"{row['flops_per_second']:.3g}",
      f"{row['peak_fraction']:.1%}", f"{row['paired_fraction']:.1%}",
      f"{row['nominal_fraction']:.1%}" if row["nominal_fraction"] else "?",
      f"{row['ratio']:.2f}", gib(row["compiled_bytes"]),
    ))  # fmt: skip
  m = result["machine"]
  peaks = ", ".join(f"{d} {rate:.3g}" for d, rate in result["peak_flops_per_second"].items())
  lines = [
    text_table(columns.split(), rows),
    "",
    f"medians of {result['rounds']} rounds; peak: of a product's best rate, {peaks} FLOP/s;",
    "paired: of a product's best rate in the same round;",
    "nominal: of the maker's figure for bfloat16, ? where none is known;",
    "input: the host's time for a batch; ratio: of step times, to the first case of that size",
    f"{m['devices']} x {m['device_kind']}, {m['cores']} cores of {m['processor']}, "
    f"load {m['load_at_start']:.1f} before, jax {m['versions']['jax']}, {result['date']}",
  ]
  if result["device_peak_bytes"]:
    lines.append(f"most memory in use, all cases together: {gib(result['device_peak_bytes'])}")
  return "\n".join(lines)
