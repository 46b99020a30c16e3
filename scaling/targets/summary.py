"""What `isoflop plan` reports of devices that are not here, for a run or each size of a sweep."""

import importlib.metadata
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs import base
from scaling.formats import duration, gib, headed, si, text_table
from scaling.launch.child import MEMORY_FLAG, MEMORY_SHARE
from scaling.launch.queue import power_of_two
from scaling.sweep import plan
from scaling.sweep.design import designs, split
from scaling.targets import catalog, compiled, layouts
from scaling.targets.catalog import Target
from train import record
from train.data import tokenizer
from train.system import files

SHOWN = 5  # of the slowest instructions
MOST = 0.95  # of a GPU's memory that jax can be told to take
COLUMNS = (
  "program fits held arguments temporaries FLOPs bytes sent time products memory waiting share "
  "tokens/s compiled"
)
LEGEND = """\
held: arguments, temporaries and outputs, without what is donated; FLOPs: of the products executed;
time: a bound that the program permits, not a forecast. Each instruction takes the longer of its
products at their peak and its bytes at the memory's rate, collectives go round in rings at the
links' rate, beside the instructions between their start and their done; caches, latencies and the
host are left out. share: exact model FLOPs by that time and the peak; the model's FLOPs have no
recomputation, and of causal attention the visible half
"""


class Case(NamedTuple):
  """Programs of one shape."""

  name: str
  config: ConfigDict  # resolved
  vocab_size: int  # of the tokenizer
  steps: float  # to train, all runs of the shape
  evaluations: int
  slots: int = 1  # runs that are trained together


def is_sweep(config: ConfigDict) -> bool:
  """Tells whether a config means a sweep: it changes something in `config.sweep`."""
  return config.sweep.to_dict() != base.get_config().sweep.to_dict()


def sweep_memory(config: ConfigDict, devices: int, device_memory: str) -> str:
  """Reports what each device holds by size of a sweep (`layouts.sizes_report`), by arm."""
  texts = {}
  for name, arm in split(config).items():
    sizes = sorted({*arm.sweep.probe_sizes, *arm.sweep.sizes})
    configs = {size: plan.at_size(arm, size) for size in sizes}
    texts[name] = layouts.sizes_report(configs, devices, device_memory)
  return headed(texts)


def plan_cases(config: ConfigDict, workdir: Path | None, target: Target) -> Iterator[Case]:
  """Yields what is compiled: the programs of a run, or of each size of a sweep."""
  if not is_sweep(config):
    config = layouts.resolve(config, target.devices)
    vocab_size = tokenizer.size(config.data.tokenizer)
    total, every = record.size_of(config, vocab_size).steps, config.train.eval_every_steps
    yield Case("run", config, vocab_size, total, 1 + (total // every if every else 0))
    return
  for arm, design in designs(config, workdir):
    slots = power_of_two(config.sweep.pack) if config.sweep.pack and target.devices == 1 else 1
    for size in sorted({cell.size for cell in design.cells}):
      of_size = [cell for cell in design.cells if cell.size == size]
      steps = sum(c.flops_spent / (c.flops_per_token * c.tokens_per_step) for c in of_size)
      sized = layouts.resolve(plan.at_size(design.config, size), target.devices)
      name = f"{arm} size {size}".strip()
      yield Case(name, sized, design.tokens.vocab_size, steps, len(of_size), slots)


def target_report(config: ConfigDict, name: str, workdir: Path | None) -> str:
  """Compiles a run's or a sweep's programs for a target and reports what each needs.

  The workdir (the sweep's, if it has begun) gets all figures in its plan.json.
  """
  target = catalog.parse(name)
  catalog.check_installed(target)
  cases = [*plan_cases(config, workdir, target)]
  if workdir:
    files.make_folder(workdir)
  groups = (("step",), ("evaluate", "init")) if len(cases) == 1 else (compiled.PROGRAMS,)
  tasks = [
    compiled.Task(c.name, c.config.to_dict(), c.vocab_size, target.name, c.slots, programs)
    for c in cases
    for programs in groups
  ]
  rows = compiled.compile_all(tasks)
  by_case = {case.name: [row for row in rows if row["case"] == case.name] for case in cases}
  for case in cases:
    step = next(row for row in by_case[case.name] if row["program"] == "step")
    for row in by_case[case.name]:
      row |= _figures(case, target, row, step)
  hours = _hours(cases, rows)
  chip = target.chip
  if workdir:
    described = chip._asdict() | {"name": target.name, "devices": target.devices}
    head = {"target": described, "jax": importlib.metadata.version("jax"), "hours": hours}
    files.write_json(workdir / "plan.json", head | {"programs": rows})
  lines = [
    f"{target.name}: {target.devices} x {chip.kind}, {gib(chip.memory)}, "
    f"{si(chip.peaks['bfloat16'])}FLOP/s bfloat16, {si(chip.hbm)}B/s; "
    f"{'each link' if target.tpu else 'NVLink'} {si(chip.link)}B/s",
    _table(rows),
    *_collective_lines(rows),
  ]
  for case in cases:
    lines += _problem_lines(case, target, by_case[case.name])
  if len(cases) == 1 and "slowest" in rows[0]:
    lines.append("slowest instructions of a step:")
    for one in rows[0]["slowest"][:SHOWN]:
      share = f"{one['seconds'] / rows[0]['seconds']:4.1%}"
      lines.append(
        f"  {share} {one['times']} x {one['name']} ({one['bound']}): {one['source'][-80:]}"
      )
  if hours is not None:
    packs = "" if all(c.slots == 1 for c in cases) else f" in packs of {cases[0].slots}"
    lines.append(
      f"at least {duration(3600 * hours)}, {target.devices * hours:.3g} device hours, for "
      f"{sum(c.steps for c in cases):,.0f} steps{packs} and all evaluations"
    )
  return "\n".join([*lines, "", LEGEND.rstrip()])


def _figures(case: Case, target: Target, row: dict, step: dict) -> dict[str, Any]:
  """Derives from a row whether it fits, the share of the peak, and tokens per second."""
  if "error" in row:
    too_large = "RESOURCE_EXHAUSTED" in row["error"]
    return {"fits": "no" if too_large else "does not compile"}
  room = target.chip.memory if target.tpu else int(MEMORY_SHARE * target.chip.memory)
  held = row["held"]
  if row["program"] == "evaluate" and "arguments" in step:  # the optimizer's state stays
    held += max(0, step["arguments"] - row["arguments"])
  fits = "yes" if held <= room else "no"
  if room < held <= MOST * target.chip.memory:
    fits = f"with {MEMORY_FLAG}={MOST}"
  figures: dict[str, Any] = {"fits": fits, "held": held}
  if row["program"] == "init":
    return figures
  size = record.size_of(case.config, case.vocab_size)
  per_token, tokens = size.flops_per_token, case.slots * size.tokens_per_step
  if row["program"] == "evaluate":
    rows = case.config.train.eval_batch_size / case.config.data.batch_size
    per_token, tokens = per_token / 3, size.tokens_per_step * rows
  peak = target.devices * target.chip.peaks[case.config.model.dtype]
  figures["share_of_peak"] = per_token * tokens / peak / row["seconds"]
  return figures | {"tokens_per_second": tokens / row["seconds"], "slots": case.slots}


def _hours(cases: Sequence[Case], rows: list[dict]) -> float | None:
  """The least time of all steps and evaluations [hours]; None: a program has none."""
  seconds = {(row["case"], row["program"]): row.get("seconds") for row in rows}
  total = 0.0
  for case in cases:
    step, evaluate = (seconds[case.name, program] for program in ("step", "evaluate"))
    if step is None or evaluate is None:
      return None
    c = case.config
    tokens = record.size_of(c, case.vocab_size).tokens_per_step / c.data.batch_size
    batches = math.ceil(c.train.eval_tokens / (tokens * c.train.eval_batch_size))
    total += case.steps * step / case.slots + case.evaluations * batches * evaluate
  return total / 3600


def _table(rows: list[dict]) -> str:
  lines: list[tuple[str, ...]] = []
  for row in rows:
    label = f"{row['case']} {row['program']}"
    if "error" in row:
      lines.append((label, row["fits"]))
      continue
    alone, sent = row["seconds_alone"], row["collectives"].values()
    lines.append((
      *(label, row["fits"], gib(row["held"]), gib(row["arguments"]), gib(row["temporaries"])),
      *(f"{row['flops']:.3g}", gib(row["bytes"]), gib(sum(of_kind["bytes"] for of_kind in sent))),
      *(_ms(alone[part]) for part in ("total", "products", "memory", "waiting")),
      f"{row['share_of_peak']:.1%}" if "share_of_peak" in row else "",
      f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else "",
      f"{row['compile_seconds']:.0f} s",
    ))  # fmt: skip
  return text_table(COLUMNS.split(), lines)


def _collective_lines(rows: list[dict]) -> Iterator[str]:
  for row in rows:
    if row["program"] == "step" and row.get("collectives"):
      sent = ", ".join(
        f"{kind} {gib(of['bytes'])} {'/'.join(of['dtypes'])} in {of['times']} ({of['async']} async)"
        for kind, of in row["collectives"].items()
      )
      links, waiting = (_ms(row["seconds_alone"][part]) for part in ("links", "waiting"))
      yield f"{row['case']} step sends {sent}: {links}, of which {waiting} are waited for"


def _problem_lines(case: Case, target: Target, rows: list[dict]) -> Iterator[str]:
  """Yields the errors of a case's rows, and what would fit where one does not.

  That is by the arithmetic of `layouts`, held to what the compiler says.
  """
  yield from (f"{case.name} {row['program']}: {row['error']}" for row in rows if "error" in row)
  if any(row["fits"] == "no" for row in rows):
    memory = target.chip.memory
    predicted = layouts.device_bytes(case.config, target.devices)["total"]
    needed = max([memory, *(row["held"] for row in rows if "held" in row)])
    limit = int(memory * min(1.0, predicted / needed))
    for line in layouts.advise(case.config, target.devices, limit):
      yield f"{case.name}: {line}"


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:.3g} ms"
