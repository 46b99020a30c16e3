"""Before a sweep trains: every distinct program is compiled where it will run, and fits."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from scaling import plan
from scaling.display import Display
from scaling.launch import Pool, Task, power_of_two
from scaling.plan import Cell
from train import files, preflight

MAX_PACK = 64  # runs that the planner puts together: beyond, their batches take the host too long


class Fit(NamedTuple):
  """How the runs of a size are trained."""

  microbatches: int  # parts of a batch
  pack: int  # runs that a worker may train together, a power of two


def pack(config: ConfigDict, size: int, found: dict, workers: int) -> int:
  """Returns how many runs of a size a worker may train together: a power of two.

  `sweep.pack` bounds it, or the planner chooses: on an accelerator as many as fit, since a small
  model leaves most of it idle; on a CPU one, since a run alone keeps its worker's core busy. Runs
  of several devices are never packed.

  Args:
    config: the sweep's.
    size: which.
    found: its record of `train.preflight`.
    workers: processes that share the device.

  Raises:
    ValueError: `sweep.pack` runs need more memory than there is.
  """
  if found.get("devices", 0) != 1:
    return 1
  each = max(found["compiled"], found["evaluating"])
  shares = workers if found["accelerator"] else 1  # a CPU's memory is divided already
  fits = int(found["available"] / shares // each) - 1  # one beside them evaluates, or is saved
  asked = config.sweep.pack
  if asked > max(1, fits):
    raise ValueError(
      f"sweep.pack={asked}: size {size} needs {each / 2**20:.4g} MiB a run, and once more, of "
      f"{found['available'] / shares / 2**20:.4g}; ask for at most {power_of_two(max(1, fits))}"
    )
  if not asked and not found["accelerator"]:
    return 1
  return power_of_two(asked or min(MAX_PACK, max(1, fits)))


def look(
  config: ConfigDict,
  workdir: Path,
  cells: Sequence[Cell],
  pool: Pool,
  display: Display,
  should_stop: Callable[[], bool],
) -> dict[int, Fit]:
  """Returns, for each size among the cells, how its runs fit their devices.

  What was found stands in workdir/preflight/; a size is looked at once.

  Raises:
    ValueError: sizes do not fit.
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
  new = sum(not task.done() for task in tasks)
  if errors := pool.run(tasks, display, should_stop):
    raise ValueError(
      f"{len(errors)} of {len(tasks)} sizes do not fit their device: "
      + "; ".join(f"{name}: {error.removeprefix('ValueError: ')}" for name, error in errors.items())
    )
  found = {size: files.read_json(folder / preflight.RECORD) for size, folder in folders.items()}
  if new:
    largest = max(found.values(), key=lambda record: record["compiled"])
    display.say(
      f"preflight: {len(tasks)} programs fit; the largest needs {largest['compiled'] / 2**20:.4g} "
      f"MiB (predicted {largest['predicted'] / 2**20:.4g}) of {largest['available'] / 2**20:.4g}"
    )
  for size, record in found.items():
    if record["microbatches"] > config.sharding.microbatches:
      display.say(f"size {size}: its batch is trained in {record['microbatches']} microbatches")
  return {
    size: Fit(record["microbatches"], pack(config, size, record, len(pool)))
    for size, record in found.items()
  }
