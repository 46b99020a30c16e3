"""What `isoflop plan --target` says of a run or a sweep on devices that this machine has not."""

import importlib.metadata
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ml_collections import ConfigDict

from scaling.formats import empty_table, gib, si, table_text
from scaling.launch.local import power_of_two
from scaling.launch.worker import FRACTION, TAKEN
from scaling.progress import duration
from scaling.sweep import plan
from scaling.sweep.design import designs
from scaling.targets import advice, catalog, compiled
from train import record
from train.data import tokenizer
from train.system import files

SHOWN = 5  # of the slowest instructions
MOST = 0.95  # of a GPU's memory that jax can be told to take
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


def report(config: ConfigDict, name: str, workdir: Path | None, stream: TextIO = sys.stderr) -> str:
  """Returns the tables; with a workdir, also writes all figures to its plan.json.

  Args:
    config: a run's, or a sweep's.
    name: of the target (`scaling.targets.catalog`).
    workdir: a folder, made if need be; the sweep's, if it has begun.
    stream: receives progress.

  Raises:
    UserError: there is no such target, its packages are missing, or the config cannot be trained
      on it.
  """
  target = catalog.parse(name)
  catalog.check_installed(target)
  cases = list(_cases(config, workdir, target))
  if workdir:
    files.make_folder(workdir)
  tasks = [
    {
      "case": case.name,
      "config": json.loads(json.dumps(case.config.to_dict())),
      "vocab_size": case.vocab_size,
      "target": name,
      "slots": case.slots,
      "programs": programs,
    }
    for case in cases
    for programs in ((["step"], ["evaluate", "init"]) if len(cases) == 1 else [compiled.PROGRAMS])
  ]
  rows = compiled.compile_all(tasks, stream)
  for case in cases:
    own = {row["program"]: row for row in rows if row["case"] == case.name}
    for row in own.values():
      row |= _figures(case, target, row, own["step"])
  hours = _hours(cases, rows)
  if workdir:
    chip = target.chip._asdict() | {"name": name, "devices": target.devices}
    head = {"target": chip, "jax": importlib.metadata.version("jax"), "hours": hours}
    files.write_json(workdir / "plan.json", head | {"programs": rows})
  return "\n".join(_lines(cases, rows, target, hours))


def _cases(config: ConfigDict, workdir: Path | None, target: catalog.Target) -> Iterator[Case]:
  if not advice.is_sweep(config):
    config = advice.checked(config, target.devices)
    vocab_size = tokenizer.size(config.data.tokenizer)
    steps = record.size_of(config, vocab_size).steps
    every = config.train.eval_every_steps
    yield Case("run", config, vocab_size, steps, 1 + (steps // every if every else 0))
    return
  for arm, design in designs(config, workdir):
    sizes: dict[int, list[plan.Cell]] = {}
    for cell in design.cells:
      sizes.setdefault(cell.size, []).append(cell)
    slots = power_of_two(config.sweep.pack) if config.sweep.pack and target.devices == 1 else 1
    for size, cells in sorted(sizes.items()):
      sized = advice.checked(plan.at_size(design.config, size), target.devices)
      spent = sum(c.flops_spent / (c.flops_per_token * c.tokens_per_step) for c in cells)
      name = f"{arm} size {size}".strip()
      yield Case(name, sized, design.tokens.vocab_size, spent, len(cells), slots)


def _figures(case: Case, target: catalog.Target, row: dict, step: dict) -> dict[str, Any]:
  """What a row amounts to: whether it fits, the share of the peak, tokens per second."""
  if "error" in row:
    short = "RESOURCE_EXHAUSTED" in row["error"]
    return {"fits": "no" if short else "does not compile"}
  room = target.chip.memory if target.tpu else int(TAKEN * target.chip.memory)
  held = row["held"]
  if row["program"] == "evaluate" and "arguments" in step:  # the optimizer's state stays
    held += max(0, step["arguments"] - row["arguments"])
  fits = "yes" if held <= room else "no"
  if room < held <= MOST * target.chip.memory:
    fits = f"with {FRACTION}={MOST}"
  found: dict[str, Any] = {"fits": fits, "held": held}
  if row["program"] == "init":
    return found
  size = record.size_of(case.config, case.vocab_size)
  per_token, tokens = size.flops_per_token, case.slots * size.tokens_per_step
  if row["program"] == "evaluate":
    rows = case.config.train.eval_batch_size / case.config.data.batch_size
    per_token, tokens = per_token / 3, size.tokens_per_step * rows
  operands = case.config.model.dtype
  peak = target.devices * target.chip.peaks[operands]
  found["share_of_peak"] = per_token * tokens / peak / row["seconds"]
  return found | {"tokens_per_second": tokens / row["seconds"], "slots": case.slots}


def _hours(cases: list[Case], rows: list[dict]) -> float | None:
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


def _lines(
  cases: list[Case], rows: list[dict], target: catalog.Target, hours: float | None
) -> Iterator[str]:
  chip, links = target.chip, "each link" if target.tpu else "NVLink"
  yield (
    f"{target.name}: {target.devices} x {chip.kind}, {gib(chip.memory)}, "
    f"{si(chip.peaks['bfloat16'])}FLOP/s bfloat16, {si(chip.hbm)}B/s; {links} {si(chip.link)}B/s"
  )
  columns = "program fits held arguments temporaries FLOPs bytes sent time products memory waiting"
  table = empty_table(f"{columns} share tokens/s compiled")
  for row in rows:
    label = f"{row['case']} {row['program']}"
    if "error" in row:
      table.add_row(label, row["fits"])
      continue
    alone = row["seconds_alone"]
    table.add_row(
      *(label, row["fits"], gib(row["held"]), gib(row["arguments"]), gib(row["temporaries"])),
      *(f"{row['flops']:.3g}", gib(row["bytes"])),
      gib(sum(sent["bytes"] for sent in row["collectives"].values())),
      *(_ms(alone[part]) for part in ("total", "products", "memory", "waiting")),
      f"{row['share_of_peak']:.1%}" if "share_of_peak" in row else "",
      f"{row['tokens_per_second']:,.0f}" if "tokens_per_second" in row else "",
      f"{row['compile_seconds']:.0f} s",
    )
  yield table_text(table)
  for row in rows:
    if row["program"] == "step" and row.get("collectives"):
      sent = (
        f"{kind} {gib(of['bytes'])} {'/'.join(of['dtypes'])} in {of['times']} ({of['async']} async)"
        for kind, of in row["collectives"].items()
      )
      alone = row["seconds_alone"]
      hidden = f"{_ms(alone['links'])}, of which {_ms(alone['waiting'])} are waited for"
      yield f"{row['case']} step sends {', '.join(sent)}: {hidden}"
  for case in cases:
    own = [row for row in rows if row["case"] == case.name]
    yield from (f"{case.name} {row['program']}: {row['error']}" for row in own if "error" in row)
    if any(row["fits"] == "no" for row in own):
      yield from (f"{case.name}: {line}" for line in _remedies(case, target, own))
  if len(cases) == 1 and "slowest" in rows[0]:
    yield "slowest instructions of a step:"
    for one in rows[0]["slowest"][:SHOWN]:
      share = one["seconds"] / rows[0]["seconds"]
      yield f"  {share:4.1%} {one['times']} x {one['name']} ({one['bound']}): {one['source'][-80:]}"
  if hours is not None:
    packs = "" if all(c.slots == 1 for c in cases) else f" in packs of {cases[0].slots}"
    yield (
      f"at least {duration(3600 * hours)}, {target.devices * hours:.3g} device hours, for "
      f"{sum(c.steps for c in cases):,.0f} steps{packs} and all evaluations"
    )
  yield ""
  yield LEGEND.rstrip()


def _remedies(case: Case, target: catalog.Target, rows: list[dict]) -> list[str]:
  """What would fit, by the arithmetic of `model.memory`, held to what the compiler says."""
  predicted = advice.held(case.config, target.devices)["total"]
  needed = max([row["held"] for row in rows if "held" in row] + [target.chip.memory])
  return advice.advise(
    case.config, target.devices, int(target.chip.memory * min(1.0, predicted / needed))
  )


def _ms(seconds: float) -> str:
  return f"{1e3 * seconds:.3g} ms"
