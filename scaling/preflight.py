"""Before a sweep trains: every distinct program is compiled where it will run, and fits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
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


def pack(config: ConfigDict, found: dict, workers: int) -> int:
  """Returns how many runs of a size a worker may train together: a power of two.

  `sweep.pack` bounds it, or the planner chooses: on an accelerator as many as fit, since a small
  model leaves most of it idle; on a CPU one, since a run alone keeps its worker's core busy. Runs
  of several devices are never packed.

  Args:
    config: the sweep's.
    found: the size's record of `train.preflight`.
    workers: processes that share the device.
  """
  if found.get("devices", 0) != 1:
    return 1
  if config.sweep.pack:
    return power_of_two(config.sweep.pack)
  if not found["accelerator"]:
    return 1
  each = max(found["compiled"], found["evaluating"])
  fits = int(found["available"] / workers // each) - 1  # one beside them evaluates, or is saved
  return power_of_two(min(MAX_PACK, max(1, fits)))


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
    size: Fit(record["microbatches"], pack(config, record, len(pool)))
    for size, record in found.items()
  }
