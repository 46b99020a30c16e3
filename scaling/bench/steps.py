"""How fast training is on this machine, and how near that is to what its matrix products reach.

All cases take turns, and matrix products take theirs among them, so that whatever else the machine
does weighs on them alike; a ratio of two cases is the median over the rounds. A turn is a few steps
as `train.loop` takes them: a new batch is made and placed for each, and nothing waits before the
last. The rates of the products, with the operands that the case has, are what its rate is held
against in two ways: its median against the best of all rounds, which a disturbance can only lower;
and each round's against the best of that round, of which it is the median, too.
"""

import ast
import datetime
import itertools
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TextIO

import jax
from ml_collections import ConfigDict

from configs import base, ladders
from configs.errors import UsageError
from model import sharding, transformer
from scaling.bench.timing import Turn, product, ratio, round_robin, training
from scaling.formats import empty_table, gib, table_text
from scaling.progress import duration
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
TELL_SECONDS, TELL_PLAIN_SECONDS = 2.0, 10.0  # between lines of progress: terminal, or file


class Case(NamedTuple):
  """One model to measure."""

  name: str  # "decoder 64/2 float32"
  config: ConfigDict  # resolved; it trains for one step


# --------------------------------------------------------------------------------- what to measure


def cases(
  config: ConfigDict,
  sizes: str = "",
  families: str = "",
  dtypes: str = "",
  tokens: int = 0,
  vary: Sequence[str] = (),
) -> list[Case]:
  """Returns every combination of sizes, families and dtypes; each is the config's own where "".

  Args:
    config: all that the others do not change.
    sizes: width/layers or width/layers/heads, separated by commas; heads are 32 wide unless named.
    families: decoder, encoder, encoder_decoder; one that is not the config's trains clm, mlm, span.
    dtypes: float32, bfloat16: operands of products (`model.dtype`).
    tokens: of text in a step, rounded down to whole sequences; 0: the config's batch.
    vary: each FIELD=VALUE is measured beside every combination without it.

  Raises:
    UsageError: a name is unknown, a case comes twice, or a model cannot be trained so.
  """
  shapes = {size: _shape(size) for size in _split("sizes", sizes)}
  names = _split("families", families, base.FAMILIES)
  operands = _split("dtypes", dtypes, DTYPES)
  found: list[Case] = []
  for size, family, dtype, change in itertools.product(
    shapes or [""], names or [config.model.family], operands or [config.model.dtype], ["", *vary]
  ):
    c = config.copy_and_resolve_references()
    c.model.update(shapes.get(size, {}) | {"dtype": dtype})
    if family != c.model.family:
      c.model.family, c.objective = family, base.FAMILIES[family][0]
      c.data.isolate_documents &= family != "encoder_decoder"
    if change:
      _set(c, change)
    c = ladders.resolve(c)
    transformer.check_model(c.model)
    registry.check_objective(c)
    length = registry.lengths(c).text
    if tokens and tokens < length:
      raise UsageError(f"tokens={tokens}: a {c.objective} sequence has {length}; allow as many")
    c.data.batch_size = tokens // length or c.data.batch_size
    c.train.tokens = registry.tokens_per_step(c)
    sharding.check_batches(c, len(jax.devices()))
    name = f"{family} {size or f'{c.model.width}/{c.model.depth}'} {dtype} {change}".rstrip()
    if same := [case.name for case in found if case.config == c]:
      flag = f"vary={change}" if change else f"sizes={sizes}"
      over = " (--tokens sets the batch)" if tokens and "batch_size" in change else ""
      raise UsageError(f"{flag}: {name!r} is {same[0]!r} again{over}; leave one of them out")
    found.append(Case(name, c))
  return found


def _set(config: ConfigDict, change: str) -> None:
  field, _, text = change.partition("=")
  try:
    config.update_from_flattened_dict({field: ast.literal_eval(text)})
  except (AttributeError, KeyError, SyntaxError, TypeError, ValueError) as error:
    raise UsageError(f"vary={change!r}: not a FIELD=VALUE of the config ({error})") from None


def _split(flag: str, listed: str, known: Iterable[str] = ()) -> list[str]:
  names = [name.strip() for name in listed.split(",")] if listed else []
  for name in names:
    if known and name not in known:
      raise UsageError(f"{flag}={name!r}: unknown; choose from {', '.join(known)}")
    if names.count(name) > 1:
      raise UsageError(f"{flag}={listed}: {name} comes twice; name it once")
  return names


def _shape(size: str) -> dict[str, int]:
  if not (numbers := re.fullmatch(r"([1-9]\d*)/([1-9]\d*)(?:/([1-9]\d*))?", size)):
    raise UsageError(f"sizes={size!r}: write width/layers or width/layers/heads, as 64/2,128/4/4")
  width, depth, heads = (int(number or 0) for number in numbers.groups())
  heads = heads or max(1, width // HEAD_WIDTH)
  derived = dict.fromkeys(("head_width", "kv_heads", "mlp_width", "encoder_depth"), 0)
  return {"width": width, "depth": depth, "heads": heads} | derived


# ---------------------------------------------------------------------------------------- measuring


def summary(
  facts: dict[str, Any], turns: list[Turn], peaks: list[float], nominal: float = 0.0
) -> dict[str, Any]:
  """Returns what a case's turns amount to, after its facts.

  Args:
    facts: as `training` returns them.
    turns: at least one.
    peaks: in each round, the best rate of a product with the case's operands [FLOP/s].
    nominal: see `nominal_peak`.
  """
  step, dispatch, made = (median(values) for values in zip(*turns, strict=True))
  flops = facts["flops_per_step"]
  return facts | {
    "step_seconds": step,
    "step_seconds_min": min(turn.step for turn in turns),
    "step_seconds_max": max(turn.step for turn in turns),
    "dispatch_seconds": dispatch,
    "input_seconds": made,
    "input_share": made / step,  # of the host's time; on a device of its own it is hidden
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


def bench(
  measured: list[Case], workdir: Path, rounds: int = 20, stream: TextIO = sys.stderr
) -> dict[str, Any]:
  """Measures cases and the peak; returns the record, which is also `workdir/bench.json`.

  Args:
    measured: what to measure; all of them are on the device at once.
    workdir: a folder, made if need be.
    rounds: turns of each.
    stream: receives the progress.

  Raises:
    UsageError: there is no round, or a case cannot be trained here.
  """
  if rounds < 1:
    raise UsageError(f"rounds={rounds}: must be at least 1; 20 give a steady median")
  prepared = [dataset.prepare(case.config) for case in measured]
  for case, tokens in zip(measured, prepared, strict=True):
    check_tokens(case.config, tokens)
  files.make_folder(workdir)
  tell, known = progress(stream), machine()
  names = [case.name for case in measured]
  turns: dict[str, Callable[[], Any]] = {}
  facts = {}
  for i, (case, tokens) in enumerate(zip(measured, prepared, strict=True)):
    tell(i, len(names), f"compiling {case.name}")
    turns[case.name], facts[case.name] = training(case.config, tokens)
  sides = SIDES.get(jax.default_backend(), ACCELERATOR_SIDES)
  products = {f"{dtype} {side}": (dtype, side) for dtype in DTYPES for side in sides}
  turns |= {name: product(side, dtype) for name, (dtype, side) in products.items()}
  tell = progress(stream)
  results = round_robin(turns, rounds, tell)
  tell(0, 0, "")

  rates = [
    {"dtype": dtype, "side": side, "flops_per_second": max(results[name]), "turns": results[name]}
    for name, (dtype, side) in products.items()
  ]
  peaks = {
    d: [max(taken) for taken in zip(*(r["turns"] for r in rates if r["dtype"] == d), strict=True)]
    for d in DTYPES
  }
  rows = []
  for name in names:
    dtype = facts[name]["dtype"]
    nominal = nominal_peak(jax.devices()[0].device_kind, dtype, len(jax.devices()))
    row = {"case": name} | summary(facts[name], results[name], peaks[dtype], nominal)
    first = next(n for n in names if _like(facts[n]) == _like(row))
    row |= {"ratio_to": first, "ratio": ratio(results[name], results[first])}
    rows.append(row)
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  result = known | {
    "rounds": rounds,
    "peak_flops_per_second": {dtype: max(best) for dtype, best in peaks.items()},
    "products": rates,
    "device_peak_bytes": max(stat.get("peak_bytes_in_use", 0) for stat in stats) or None,
    "cases": rows,
  }
  files.write_json(workdir / "bench.json", result)
  return result


def _like(facts: dict[str, Any]) -> tuple:
  return facts["width"], facts["depth"], facts["heads"]


def machine() -> dict[str, Any]:
  """Returns the head of bench.json: its format, the date, and what was measured on."""
  cpuinfo = Path("/proc/cpuinfo")
  found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
  return {
    "format": FORMAT,
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "machine": {
      "device_kind": jax.devices()[0].device_kind,
      "devices": len(jax.devices()),
      "processor": found[1] if found else platform.processor() or platform.machine(),
      "cores": len(process.cores()),
      "load_at_start": os.getloadavg()[0],  # processes that wanted a core in the minute before
      "python": platform.python_version(),
      "versions": record.versions(),
      "compile_cache": jax.config.values["jax_compilation_cache_dir"]
      or "",  # compile times mean little then
    },
  }


# ------------------------------------------------------------------------------------------ telling


def progress(stream: TextIO) -> Callable[[int, int, str], None]:
  """Returns what says how far it is, every two seconds at most; (0, 0, "") ends it."""
  began, last = time.monotonic(), -math.inf
  terminal = stream.isatty()

  def tell(done: int, total: int, what: str) -> None:
    nonlocal last
    now = time.monotonic()
    if terminal and not total:
      print(end="\r\033[K", file=stream, flush=True)
    if not total or now - last < (TELL_SECONDS if terminal else TELL_PLAIN_SECONDS):
      return
    last = now
    left = duration((now - began) / done * (total - done)) if done else "?"
    start, end = ("\r\033[K", "") if terminal else ("", "\n")
    print(f"{start}bench: {done}/{total}, {what}; {left} left", end=end, file=stream, flush=True)

  return tell


def table(result: dict[str, Any]) -> str:
  """Returns the record as people read it."""
  shown = empty_table(
    "case N tokens/step compile dispatch step min-max input tokens/s FLOP/s peak paired nominal "
    "ratio"
  )
  shown.add_column("memory", justify="right")
  for row in result["cases"]:
    low, high = 1e3 * row["step_seconds_min"], 1e3 * row["step_seconds_max"]
    shown.add_row(
      row["case"],
      f"{row['N']:,}",
      f"{row['tokens_per_step']:,}",
      f"{row['compile_seconds']:.1f} s",
      f"{1e3 * row['dispatch_seconds']:.2f} ms",
      f"{1e3 * row['step_seconds']:.1f} ms",
      f"{low:.1f}-{high:.1f}",
      f"{row['input_share']:.1%}",
      f"{row['tokens_per_second']:,.0f}",
      f"{row['flops_per_second']:.3g}",
      f"{row['peak_fraction']:.1%}",
      f"{row['paired_fraction']:.1%}",
      f"{row['nominal_fraction']:.1%}" if row["nominal_fraction"] else "?",
      f"{row['ratio']:.2f}",
      gib(row["compiled_bytes"]),
    )
  m = result["machine"]
  peaks = ", ".join(f"{d} {rate:.3g}" for d, rate in result["peak_flops_per_second"].items())
  lines = [
    table_text(shown),
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
