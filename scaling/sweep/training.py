"""Trains cells: their trunks and themselves, with the retry policy for runs that fail.

A run that diverged has not failed: that is what its config does, and the sweep goes on without it.
One that failed was stopped by an error or a kill, on which no law should depend: it is tried again.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.errors import ConfigError, RunError
from scaling.launch.local import Pool
from scaling.launch.queue import Failure, Task, raise_bug
from scaling.progress import Display
from scaling.sweep import costs, placement, plan, store
from scaling.sweep.placement import Placement
from scaling.sweep.plan import Cell
from train.data.dataset import TokenData
from train.objectives import registry
from train.system import files

# What a step of a small model costs beside its products, as FLOPs at the rate of its products: on
# one core of an AMD EPYC a step of 512 tokens took 3 ms and 16 ms per GFLOP (20k to 250k params).
STEP_OVERHEAD_FLOPS = 2e8
MAX_FAILURES = 2  # starts at which a run may fail before its sweep goes on without it


@dataclasses.dataclass
class Sweep:
  """A sweep under way: what its phases share."""

  config: ConfigDict  # with the learning-rate rule, once it is known
  workdir: Path
  tokens: TokenData
  head: dict[str, Any]  # of sweep.json
  cells: list[Cell]  # all that are planned so far, by earlier starts too
  pool: Pool
  display: Display
  clock: costs.SweepClock
  placements: dict[int, Placement] = dataclasses.field(default_factory=dict)  # by size

  @property
  def corpus(self) -> tuple[int, int]:
    """The vocabulary's size, and the number of training tokens."""
    return self.tokens.vocab_size, self.tokens.train_token_count

  @property
  def sealed(self) -> bool:
    """Whether its prediction is sealed."""
    return (self.workdir / "prediction.json").exists()


def place(sweep: Sweep, cells: Sequence[Cell]) -> None:
  """Finds out how the runs of these cells fit their devices, for sizes not known to fit."""
  sweep.placements |= placement.implied(sweep.placements, {cell.size for cell in cells})
  unknown = [cell for cell in cells if cell.size not in sweep.placements]
  if unknown:
    sweep.clock("preflight")
    sweep.placements |= placement.compile_sizes(
      sweep.config, sweep.workdir, unknown, sweep.pool, sweep.display
    )


def train_cells(sweep: Sweep, cells: Sequence[Cell], phase: str) -> None:
  """Trains what is left of these cells, and of their trunks; updates sweep.json and cells.csv.

  Raises:
    KeyboardInterrupt: the user stopped it; running cells have saved their state.
    RunError, ConfigError, WorkerError: runs failed (see `check_failures`).
  """
  place(sweep, cells)
  sweep.clock("records")
  sweep.cells += store.new_cells(sweep.workdir, sweep.cells, cells)
  store.write_sweep(sweep.workdir, sweep.head, sweep.cells)
  if sweep.sealed:  # on the fit cells that had trained: what had failed by then stays so
    excluded = failed(sweep.workdir, (cell for cell in cells if cell.kind == "fit"))
    cells = [cell for cell in cells if cell.id not in excluded]
  flops = sum(cell.flops_spent for cell in cells)
  sweep.display.say(f"{phase}: {len(cells)} cells, {flops:.2e} FLOPs")
  tasks = make_tasks(sweep.config, sweep.workdir, cells, sweep.placements)
  sweep.clock("run", len(sweep.pool))
  try:
    failures = sweep.pool.run(tasks)
  finally:
    sweep.clock("records")
    settle_diverged(sweep.workdir, cells)
    table = store.rows(sweep.workdir, sweep.cells, sweep.config.objective)
    store.write_table(sweep.workdir, table)
  for name, failure in failures.items():
    sweep.display.say(f"FAILED {name}: {failure.error}")
  for name in check_failures(sweep.workdir, cells, failures):
    sweep.display.say(f"going on without {name}: it failed at {MAX_FAILURES} starts")


def make_tasks(
  config: ConfigDict, workdir: Path, cells: Sequence[Cell], placements: Mapping[int, Placement]
) -> list[Task]:
  """Makes the tasks of these cells, their trunks first; `placements` are by size."""
  tasks = []
  runs: list[Cell | plan.Trunk] = [*plan.trunks(cells), *cells]
  for run in runs:
    run_config = plan.run_config(config, run)
    run_config.sharding.microbatches = placements[run.size].microbatches
    steps, needs = run.steps, None
    if isinstance(run, Cell) and run.trunk:
      steps -= run.branch_step
      needs = run.trunk
      run_config.train.branch_from = str(workdir / "trunks" / run.trunk / "checkpoints")
    step_flops = registry.tokens_per_step(config) * run.flops_per_token + STEP_OVERHEAD_FLOPS
    tasks.append(
      Task(
        id=run.id,
        folder=store.folder(workdir, run),
        config=run_config.to_dict(),
        cost=steps * step_flops,
        needs=needs,
        shape=run.size,
        pack=placements[run.size].pack,
        failures=store.outcome(workdir, run).get("failures", 0),
      )
    )
  return tasks


def failed(workdir: Path, cells: Iterable[Cell]) -> dict[str, dict]:
  """Returns the records of the cells that have failed, by id."""
  records = {cell.id: store.outcome(workdir, cell) for cell in cells}
  return {name: record for name, record in records.items() if record["status"] == "failed"}


def settle_diverged(workdir: Path, cells: Iterable[Cell]) -> None:
  """Records as diverged the failed cells whose trunk diverged before the step where they begin."""
  cells = list(cells)
  records = failed(workdir, cells)
  trunks = {trunk.id: trunk for trunk in plan.trunks(cells)}
  for cell in cells:
    if cell.id not in records or not cell.trunk:
      continue
    trunk = trunks[cell.trunk]
    branch = store.folder(workdir, trunk) / "checkpoints" / str(cell.branch_step)
    if store.outcome(workdir, trunk)["status"] == "diverged" and not branch.is_dir():
      error = f"{trunk.id} diverged before step {cell.branch_step}"
      record = records[cell.id] | {"status": "diverged", "error": error}
      files.write_json(store.folder(workdir, cell) / "run.json", record)


def check_failures(
  workdir: Path, cells: Sequence[Cell], failures: Mapping[str, Failure]
) -> list[str]:
  """Returns the failed cells of a phase that the sweep goes on without: those of too many starts.

  `failures` are those of this start, by the id of the run.

  Raises:
    WorkerError: others failed, or all did, and one of them by a bug.
    ConfigError: others failed, and their config or data is why.
    RunError: others failed.
  """
  records = failed(workdir, cells)
  pending = [name for name, record in records.items() if record.get("failures", 1) < MAX_FAILURES]
  if pending or (records and len(records) == len(cells)):
    raise_bug(failures)
  if not pending:
    return list(records)
  names = ", ".join(pending[:3]) + (f" and {len(pending) - 3} more" if len(pending) > 3 else "")
  count = f"{len(pending)} of its runs failed ({names})"
  reasons = [failure.message for failure in failures.values()]
  if reasons and all(failure.kind == "user" for failure in failures.values()):
    raise ConfigError(f"{reasons[0]} (workdir={workdir}: {count})")
  raise RunError(
    f"workdir={workdir}: {count}; `isoflop runs --workdir={workdir}` says why. The same command "
    f"tries them again, and goes on without what has failed at {MAX_FAILURES} starts"
  )
