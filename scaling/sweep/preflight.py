"""Before a sweep trains: every distinct program is compiled where it will run, and fits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from configs.errors import ConfigError
from scaling.launch.local import Pool, Task, power_of_two
from scaling.progress import Display
from scaling.sweep import plan
from scaling.sweep.plan import Cell
from train import fitting
from train.system import files, process

# One process on all cores, or packs, must be so much faster than one run on each core: a single
# measurement of 2 s varies by some percent.
GAIN = 1.1
WORTH_SECONDS = 600.0  # a sweep that is predicted to take less is not worth 20 s of measuring
CORE_FLOPS = 6e10  # for that prediction: of one core of an AMD EPYC [FLOP/s]
MAX_PACK = 64  # runs that the planner puts together: beyond, their batches take the host too long


class Fit(NamedTuple):
  """How the runs of a size are trained."""

  microbatches: int  # parts of a batch
  pack: int  # runs that a worker may train together, a power of two


def pack(config: ConfigDict, size: int, found: dict, on_cpu: int = 1) -> int:
  """Returns how many runs of a size a worker may train together: a power of two.

  `sweep.pack` bounds it, or the planner chooses: on an accelerator as many as fit, since a small
  model leaves most of it idle; on a CPU what `choose` has measured: one as a rule, since a run
  alone keeps its worker's core busy. Runs of several devices are never packed.

  Args:
    config: the sweep's.
    size: which.
    found: its record of `train.fitting`; what is available there is this worker's share.
    on_cpu: how many on a CPU.

  Raises:
    ConfigError: `sweep.pack` runs need more memory than there is.
  """
  if found.get("devices", 0) != 1:
    return 1
  each = max(found["compiled"], found["evaluating"])
  fits = int(found["available"] // each) - 1  # one beside them evaluates, or is saved
  asked = config.sweep.pack and power_of_two(config.sweep.pack)
  if asked > max(1, fits):
    most, room = power_of_two(max(1, fits)), found["available"]
    raise ConfigError(
      f"sweep.pack={config.sweep.pack}: {asked} runs of size {size} and one more, of "
      f"{each / 2**20:.4g} MiB each, do not fit {room / 2**20:.4g} MiB; ask for at most {most}"
    )
  if not asked and not found["accelerator"]:
    return min(on_cpu, power_of_two(max(1, fits)))
  return asked or power_of_two(min(MAX_PACK, max(1, fits)))


def chosen(workdir: Path) -> dict:
  """Returns what `choose` has chosen for as many cores; at first one run on each core."""
  found = files.read_json(workdir / "preflight" / "workers.json")
  of_these = found and found.get("cores") == len(process.cores())
  return found if of_these else {"each_core": True, "pack": 1}


def choose(
  config: ConfigDict,
  workdir: Path,
  cells: Sequence[Cell],
  pool: Pool,
  display: Display,
  should_stop: Callable[[], bool],
) -> bool:
  """Chooses on a CPU, by measurement, between a worker per core and one on all cores, and packs.

  What is measured is the size that takes the most compute, each way for 2 s, all workers at once.
  The choice and its figures stand in workdir/preflight/workers.json, and hold for all starts of the
  sweep on as many cores: with another choice a sum has another order. Nothing is chosen where
  `sweep.workers` or `sweep.pack` say it, the sweep is short, or it has begun to train without.

  Returns:
    Whether that is another way than before.

  Raises:
    KeyboardInterrupt: `should_stop` said so.
  """
  cores, path = process.cores(), workdir / "preflight" / "workers.json"
  asked = config.sweep.workers or config.sweep.pack
  chose = files.read_json(path)
  begun = chose.get("cores") == len(cores) if chose else (workdir / "sweep.json").exists()
  if asked or begun or process.has_accelerator() or len(cores) == 1:
    return False
  spent = {size: sum(c.flops_spent for c in cells if c.size == size) for size in config.sweep.sizes}
  seconds = sum(spent.values()) / CORE_FLOPS / len(cores)
  if seconds < WORTH_SECONDS:
    display.say(f"workers: {len(cores)}, a core each (the sweep is too short to measure others)")
    return False
  size = max(spent, key=lambda size: spent[size])
  run = plan.run_config(config, next(cell for cell in cells if cell.size == size)).to_dict()
  each, packed = (pool.rate(run, slots, 2.0, display, should_stop) for slots in (1, 2))
  pool.restart([None])
  one = pool.rate(run, 1, 2.0, display, should_stop)
  rates = {"a core each": each, "packs of 2, a core each": packed, "one, all cores": one}
  best = max(("packs of 2, a core each", "one, all cores"), key=lambda way: rates[way])
  best = best if rates[best] > GAIN * each else "a core each"
  if best != "one, all cores":
    pool.restart(cores)
  choice = {"each_core": best != "one, all cores", "pack": 1 + (best[0] == "p")}
  choice["cores"] = len(cores)
  files.write_json(path, choice | {"size": size, "steps_per_second": rates})
  said = ", ".join(f"{way}: {rate:.4g}" for way, rate in rates.items())
  display.say(f"workers: {best} (steps per second of size {size}: {said})")
  return best != "a core each"


def implied(fits: Mapping[int, Fit], sizes: Iterable[int]) -> dict[int, Fit]:
  """Returns how those sizes are trained that are below one that was looked at: as that one is."""
  above = {size: [other for other in fits if other > size] for size in set(sizes) - fits.keys()}
  return {size: fits[min(others)] for size, others in above.items() if others}


def look(
  config: ConfigDict,
  workdir: Path,
  cells: Sequence[Cell],
  pool: Pool,
  display: Display,
  should_stop: Callable[[], bool],
) -> dict[int, Fit]:
  """Returns, for each size among the cells, how its runs fit their devices.

  What was found stands in workdir/preflight/, and where: on which devices, shared by how many
  workers, with which `config.sharding` and `model.remat`. Elsewhere a size is looked at again.

  Raises:
    ConfigError: sizes do not fit.
    KeyboardInterrupt: `should_stop` said so.
  """
  first = {cell.size: cell for cell in reversed(cells)}
  folders = {size: workdir / "preflight" / f"s{size:02d}" for size in first}
  tasks = [
    Task(
      id=f"preflight_s{size:02d}",
      folder=folders[size],
      config=plan.run_config(config, cell).to_dict(),
      cost=1.0,
      shape=size,
      preflight=True,
    )
    for size, cell in first.items()
  ]
  setting = pool.setting(display, should_stop)
  setting |= {"sharding": config.sharding.to_dict(), "remat": config.model.remat}
  for task in tasks:
    if (files.read_json(task.record) or {}).get("setting") != setting:
      task.record.unlink(missing_ok=True)
  new = [task for task in tasks if not task.done()]
  errors = pool.run(tasks, display, should_stop)
  for task in new:
    if task.done():
      files.write_json(task.record, files.read_json(task.record) | {"setting": setting})
  if errors:
    raise ConfigError(
      f"{len(errors)} of {len(tasks)} sizes do not fit their device: "
      + "; ".join(f"{name}: {error.removeprefix('ValueError: ')}" for name, error in errors.items())
    )
  found = {size: files.read_json(folder / fitting.RECORD) for size, folder in folders.items()}
  if new:
    largest = max(found.values(), key=lambda record: record["compiled"])
    display.say(
      f"preflight: {len(tasks)} programs fit; the largest needs {largest['compiled'] / 2**20:.4g} "
      f"MiB (predicted {largest['predicted'] / 2**20:.4g}) of {largest['available'] / 2**20:.4g}"
    )
  for size, record in found.items():
    if record["microbatches"] > config.sharding.microbatches:
      display.say(f"size {size}: its batch is trained in {record['microbatches']} microbatches")
  on_cpu = 1 if config.sweep.workers else chosen(workdir)["pack"]
  return {
    size: Fit(record["microbatches"], pack(config, size, record, on_cpu))
    for size, record in found.items()
  }
