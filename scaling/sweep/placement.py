"""Decides, before a sweep trains, how its runs are placed on devices and workers.

Every size is compiled where it will run, which tells whether and how it fits.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs.errors import ConfigError
from scaling.launch.base import Launcher
from scaling.launch.queue import Task, power_of_two, raise_bug
from scaling.progress import Display
from scaling.sweep import plan
from scaling.sweep.plan import Cell
from train.system import files, process

# One process on all cores, or packs, must be so much faster than one run on each core: a single
# measurement of 2 s varies by some percent.
GAIN = 1.1
MEASURED_SECONDS = 2.0
WORTH_SECONDS = 600.0  # a sweep that is predicted to take less is not worth 20 s of measuring
CORE_FLOPS = 6e10  # for that prediction: of one core of an AMD EPYC [FLOP/s]
MAX_PACK = 64  # runs that the planner puts together: beyond, their batches take the host too long


class Workers(NamedTuple):
  """How a machine's cores are used."""

  each_core: bool  # a worker on each core; False: one on all cores
  pack: int  # runs that it trains together


WAYS = {
  "a core each": Workers(True, 1),
  "packs of 2, a core each": Workers(True, 2),
  "one, all cores": Workers(False, 1),
}


class Placement(NamedTuple):
  """How the runs of a size are trained."""

  microbatches: int  # parts of a batch
  pack: int  # runs that a worker may train together, a power of two


def chosen_workers(workdir: Path) -> Workers:
  """Returns what `choose_workers` chose for as many cores; at first one run on each core."""
  record = files.read_json(workdir / "preflight" / "workers.json")
  if record and record.get("cores") == len(process.cores()):
    return Workers(record["each_core"], record["pack"])
  return WAYS["a core each"]


def choose_workers(
  config: ConfigDict,
  workdir: Path,
  cells: Sequence[Cell],
  pool: Launcher,
  display: Display,
  begun: bool,
) -> bool:
  """Chooses on a CPU, by measurement, between a worker per core and one on all cores, and packs.

  It measures the size that takes the most compute, in each of `WAYS` for 2 s, all workers at once.
  The choice and its figures stand in workdir/preflight/workers.json, and hold for all starts of the
  sweep on as many cores: with another choice a sum has another order. Nothing is chosen where
  `sweep.workers` or `sweep.pack` say it, the sweep is short, or it has `begun` to train without.
  Returns whether the choice is another than a core each.
  """
  s, cores, path = config.sweep, process.cores(), workdir / "preflight" / "workers.json"
  if s.workers or s.pack or process.has_accelerator() or len(cores) == 1 or s.launcher != "local":
    return False
  local: Any = pool  # a `Pool`, the only one whose workers can be measured
  record = files.read_json(path)
  if record.get("cores") == len(cores) if record else begun:
    return False
  spent = {size: sum(c.flops_spent for c in cells if c.size == size) for size in s.sizes}
  if sum(spent.values()) / CORE_FLOPS / len(cores) < WORTH_SECONDS:
    display.say(f"workers: {len(cores)}, a core each (the sweep is too short to measure others)")
    return False
  size = max(spent, key=lambda size: spent[size])
  run = plan.run_config(config, next(cell for cell in cells if cell.size == size)).to_dict()
  rates = {}
  for way, workers in WAYS.items():
    if not workers.each_core:
      local.restart([None])
    rates[way] = local.rate(run, workers.pack, MEASURED_SECONDS)
  usual, best = "a core each", max(rates, key=lambda way: rates[way])
  if rates[best] <= GAIN * rates[usual]:
    best = usual
  if WAYS[best].each_core:
    local.restart(cores)
  choice = WAYS[best]._asdict() | {"cores": len(cores)}
  files.write_json(path, choice | {"size": size, "steps_per_second": rates})
  measured = ", ".join(f"{way}: {rate:.4g}" for way, rate in rates.items())
  display.say(f"workers: {best} (steps per second of size {size}: {measured})")
  return best != usual


def implied(placements: Mapping[int, Placement], sizes: Iterable[int]) -> dict[int, Placement]:
  """Returns the placements of sizes below one that was compiled: that of the next larger one."""
  new = set(sizes) - placements.keys()
  larger = {size: [known for known in placements if known > size] for size in new}
  return {size: placements[min(known)] for size, known in larger.items() if known}


def compile_sizes(
  config: ConfigDict,
  workdir: Path,
  cells: Sequence[Cell],
  pool: Launcher,
  display: Display,
  arm: str = "",
) -> dict[int, Placement]:
  """Compiles each size among the cells, at its largest batch, where it will run; places its runs.

  Its record stands in workdir/preflight/, by arm and size, and is valid for the same devices, as
  many workers that share them, and the same `config.sharding` and `model.remat`; else the size is
  compiled again.
  """
  by_batch = sorted(cells, key=lambda cell: -cell.tokens_per_step)
  first = {cell.size: cell for cell in reversed(by_batch)}
  with files.named(workdir / "preflight"):
    (workdir / "preflight").mkdir(exist_ok=True)
  # A process that holds an accelerator compiles on all cores of its host.
  alone = not process.has_accelerator()
  tasks = {
    size: Task(
      id=f"preflight_s{size:02d}",
      folder=workdir / "preflight" / arm / f"s{size:02d}",
      config=plan.run_config(config, cell).to_dict(),
      cost=1.0,
      shape=(arm, size) if alone else arm,
      pack=1 if alone else len(first),
      preflight=True,
    )
    for size, cell in first.items()
  }
  setting = pool.setting()
  setting |= {"sharding": config.sharding.to_dict(), "remat": config.model.remat}
  for task in tasks.values():
    if (files.read_json(task.path) or {}).get("setting") != setting:
      task.path.unlink(missing_ok=True)
  new = [task for task in tasks.values() if not task.done()]
  failures = pool.run(list(tasks.values()))
  for task in new:
    if task.done():
      files.write_json(task.path, files.read_json(task.path) | {"setting": setting})
  raise_bug(failures)
  if failures:
    raise ConfigError(
      f"{len(failures)} of {len(tasks)} sizes do not fit their device: "
      + "; ".join(f"{name}: {failure.message}" for name, failure in failures.items())
    )
  records = {size: files.read_json(task.path) for size, task in tasks.items()}
  if new:
    largest = max(records.values(), key=lambda record: record["compiled"])
    display.say(
      f"preflight: {len(tasks)} programs fit; the largest needs {_mib(largest['compiled'])} MiB "
      f"(predicted {_mib(largest['predicted'])}) of {_mib(largest['available'])}"
    )
  for size, record in records.items():
    if record["microbatches"] > config.sharding.microbatches:
      display.say(f"size {size}: its batch is trained in {record['microbatches']} microbatches")
  on_cpu = 1 if config.sweep.workers else chosen_workers(workdir).pack
  return {
    size: Placement(record["microbatches"], pack_size(config, size, record, on_cpu))
    for size, record in records.items()
  }


def pack_size(config: ConfigDict, size: int, record: dict, on_cpu: int = 1) -> int:
  """Returns how many runs of a size a worker may train together: a power of two.

  `sweep.pack` bounds it, or the planner chooses: on an accelerator as many as fit, since a small
  model leaves most of it idle; on a CPU what `choose_workers` has measured (`on_cpu`): one as a
  rule, since a run alone keeps its core busy. Runs of several devices are never packed. `record` is
  of `train.aot`; what is available there is this worker's share.
  """
  if record.get("devices", 0) != 1:
    return 1
  each = max(record["compiled"], record["evaluating"])
  fit = max(1, int(record["available"] // each) - 1)  # one beside them evaluates, or is saved
  if config.sweep.pack:
    pack = power_of_two(config.sweep.pack)
    if pack > fit:
      raise ConfigError(
        f"sweep.pack={config.sweep.pack}: {pack} runs of size {size} and one more, of "
        f"{_mib(each)} MiB each, do not fit {_mib(record['available'])} MiB; ask for at most "
        f"{power_of_two(fit)}"
      )
    return pack
  return power_of_two(min(MAX_PACK if record["accelerator"] else on_cpu, fit))


def _mib(size: float) -> str:
  return f"{size / 2**20:.4g}"
