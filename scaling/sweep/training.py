"""Trains cells: their trunks and themselves, with the retry policy for runs that fail.

A run that diverged has not failed: that is what its config does, and the sweep goes on without it.
One that failed was stopped by an error or a kill, on which no law should depend: it is tried again.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.errors import ConfigError, RunError, UserError
from scaling.launch.base import Launcher
from scaling.launch.queue import Failure, Task, raise_bug
from scaling.progress import Display
from scaling.sweep import costs, placement, plan, store
from scaling.sweep.placement import Placement
from scaling.sweep.plan import Cell, Trunk
from train import record
from train.data.dataset import TokenData
from train.objectives import registry
from train.system import files

# What a step of a small model costs beside its products, as FLOPs at the rate of its products: on
# one core of an AMD EPYC a step of 512 tokens took 3 ms and 16 ms per GFLOP (20k to 250k params).
STEP_OVERHEAD_FLOPS = 2e8
OVER = ("done", "diverged")  # status of a run that is not trained again
MAX_FAILURES = 2  # starts at which a run may fail before its sweep goes on without it


@dataclasses.dataclass
class Arm:
  """An arm under way: what its phases share."""

  name: str
  config: ConfigDict  # with the learning-rate rule, once it is known
  root: Path  # the sweep's folder, in which that of the arm lies
  siblings: list[Path]  # folders of the other arms
  program: str  # the first arm whose runs are compiled to the same programs
  tokens: TokenData
  head: dict[str, Any]  # of sweep.json
  cells: list[Cell]  # all that are planned so far, by earlier starts too
  pool: Launcher
  display: Display
  clock: costs.SweepClock
  placements: dict[int, Placement] = dataclasses.field(default_factory=dict)  # by size

  @property
  def workdir(self) -> Path:
    """Its folder."""
    return self.root / self.name

  @property
  def corpus(self) -> plan.Corpus:
    """The vocabulary's size, and the number of training tokens."""
    return self.tokens.vocab_size, self.tokens.train_token_count

  @property
  def sealed(self) -> bool:
    """Whether its prediction is sealed."""
    return (self.workdir / "prediction.json").exists()


def place(arm: Arm, cells: Sequence[Cell]) -> None:
  """Finds out how the runs of these cells fit their devices, for sizes not known to fit."""
  arm.placements |= placement.implied(arm.placements, {cell.size for cell in cells})
  unknown = [cell for cell in cells if cell.size not in arm.placements]
  if unknown:
    arm.clock("preflight")
    arm.placements |= placement.compile_sizes(
      arm.config, arm.root, unknown, arm.pool, arm.display, arm.program
    )


def train_cells(arm: Arm, cells: Sequence[Cell], phase: str) -> None:
  """Trains what is left of these cells, and of their trunks; updates sweep.json and cells.csv."""
  place(arm, cells)
  arm.clock("records")
  arm.cells += store.new_cells(arm.workdir, arm.cells, cells)
  store.write_sweep(arm.workdir, arm.head, arm.cells)
  if arm.sealed:  # on the fit cells that had trained: what had failed by then stays so
    excluded = failed(arm.workdir, (cell for cell in cells if cell.kind == "fit"))
    cells = [cell for cell in cells if cell.id not in excluded]
  shared = link_shared(arm, cells)
  flops = sum(cell.flops_spent for cell in cells)
  of_others = f"; {shared} of them are those of another arm" if shared else ""
  arm.display.say(f"{phase}: {len(cells)} cells, {flops:.2e} FLOPs{of_others}")
  tasks = make_tasks(arm, cells)
  arm.clock("run", len(arm.pool))
  try:
    failures = arm.pool.run(tasks)
  except BaseException:
    with contextlib.suppress(OSError, RunError, UserError):  # not what is to be seen
      write_outcomes(arm, cells)
    raise
  write_outcomes(arm, cells)
  for name, failure in failures.items():
    arm.display.say(f"FAILED {name}: {failure.error}")
  for name in check_failures(arm.workdir, cells, failures):
    arm.display.say(f"going on without {name}: it failed at {MAX_FAILURES} starts")


def write_outcomes(arm: Arm, cells: Sequence[Cell]) -> None:
  """Writes how a phase's cells ended: costs.json, cells.csv."""
  arm.clock("records")
  settle_diverged(arm.workdir, cells)
  store.write_table(arm.workdir, arm.cells, arm.config.objective)


def link_shared(arm: Arm, cells: Sequence[Cell]) -> int:
  """Links the runs of cells and trunks that another arm has trained; returns how many cells are.

  Runs are shared where all is equal that decides their numbers: those of two arms that differ in
  `fit.*` or `sweep.heldout_*` are, those of arms with other objectives or optimizers are not.
  """
  for run in store.with_trunks(cells):
    folder = store.folder(arm.workdir, run)
    if folder.is_symlink() and not folder.exists():  # the other arm's folder is gone
      folder.unlink()
    for sibling in arm.siblings:
      twin = store.folder(sibling, run)
      if not folder.exists() and _is_trained(arm, run, twin):
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(os.path.relpath(twin, folder.parent))
  return sum(store.folder(arm.workdir, cell).is_symlink() for cell in cells)


def _is_trained(arm: Arm, run: Cell | Trunk, folder: Path) -> bool:
  """Tells whether a folder holds a run of an arm, with all that cells are branched from."""
  stored = record.read(folder) or {}
  if stored.get("status") not in OVER:
    return False
  try:
    wanted = record.describe(plan.run_config(arm.config, run), arm.tokens, "")
    record.check_same_run(stored, wanted, str(folder))
  except UserError:
    return False
  steps = run.keep_steps if isinstance(run, Trunk) else ()
  return all((folder / "checkpoints" / str(step)).is_dir() for step in steps)


def make_tasks(arm: Arm, cells: Sequence[Cell]) -> list[Task]:
  """Makes the tasks of these cells, before them of the trunks that those still to train need."""
  left = {cell.trunk for cell in cells if store.outcome(arm.workdir, cell)["status"] not in OVER}
  tasks = []
  for run in store.with_trunks(cells):
    if isinstance(run, Trunk) and run.id not in left:
      continue
    run_config = plan.run_config(arm.config, run)
    microbatches = arm.placements[run.size].microbatches  # of the largest batch of its size
    run_config.sharding.microbatches = math.gcd(microbatches, run_config.data.batch_size)
    steps, needs = run.steps, None
    if isinstance(run, Cell) and run.trunk:
      steps -= run.branch_step
      needs = run.trunk if run.trunk in left else None
      run_config.train.branch_from = str(arm.workdir / "trunks" / run.trunk / "checkpoints")
    step_flops = registry.tokens_per_step(run_config) * run.flops_per_token + STEP_OVERHEAD_FLOPS
    tasks.append(
      Task(
        id=run.id,
        folder=store.folder(arm.workdir, run),
        config=run_config.to_dict(),
        cost=steps * step_flops,
        needs=needs,
        shape=(
          arm.program,
          run.size,
          run_config.data.batch_size,
          run_config.optim.weight_decay,
        ),
        pack=arm.placements[run.size].pack,
        failures=store.outcome(arm.workdir, run).get("failures", 0),
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
    WorkerError, ConfigError, RunError: others failed; by a bug, by their config or data, otherwise.
  """
  records = failed(workdir, cells)
  pending = [name for name, record in records.items() if record.get("failures", 1) < MAX_FAILURES]
  if pending or (records and len(records) == len(cells)):
    raise_bug(failures)
  if not pending:
    return list(records)
  names = ", ".join(pending[:3]) + f" and {len(pending) - 3} more" * (len(pending) > 3)
  count = f"{len(pending)} of its runs failed ({names})"
  reasons = [failure.message for failure in failures.values()]
  if reasons and all(failure.kind == "user" for failure in failures.values()):
    raise ConfigError(f"{reasons[0]} (workdir={workdir}: {count})")
  raise RunError(
    f"workdir={workdir}: {count}; `isoflop runs --workdir={workdir}` says why. The same command "
    f"tries them again, and goes on without what has failed at {MAX_FAILURES} starts"
  )
