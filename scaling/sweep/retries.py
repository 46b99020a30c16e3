"""Runs of a sweep that failed: what waits for them, for how long, and what goes on without them.

A run that diverged has not failed: that is what its config does, and the sweep goes on without it.
One that failed was stopped by an error or a kill, on which no law should depend.
"""

from collections.abc import Iterable
from pathlib import Path

from configs.errors import RunError
from scaling.sweep import plan, store
from scaling.sweep.plan import Cell
from train.system import files

MOST = 2  # starts at which a run may fail before its sweep goes on without it


def failed(workdir: Path, cells: Iterable[Cell]) -> dict[str, dict]:
  """Returns the records of the cells that have failed, by id."""
  found = {cell.id: store.outcome(workdir, cell) for cell in cells}
  return {name: result for name, result in found.items() if result["status"] == "failed"}


def settle_diverged(workdir: Path, cells: Iterable[Cell]) -> None:
  """Records as diverged the failed cells whose trunk diverged before the step where they begin."""
  cells = list(cells)
  records = failed(workdir, cells)
  own = [cell for cell in cells if cell.id in records]
  trunks = {trunk.id: trunk for trunk in plan.trunks(own)}
  for cell in own:
    if not (trunk := trunks.get(cell.trunk or "")):
      continue
    kept = store.folder(workdir, trunk) / "checkpoints" / str(cell.branch_step)
    if store.outcome(workdir, trunk)["status"] == "diverged" and not kept.is_dir():
      error = f"{trunk.id} diverged before step {cell.branch_step}"
      record = records[cell.id] | {"status": "diverged", "error": error}
      files.write_json(store.folder(workdir, cell) / "run.json", record)


def refuse(workdir: Path, cells: Iterable[Cell]) -> list[str]:
  """Returns a line about each failed cell that is not waited for any more.

  Raises:
    RunError: others have failed, at fewer than `MOST` starts.
  """
  records = failed(workdir, cells)
  again = [name for name, record in records.items() if record.get("failures", 1) < MOST]
  if again:
    names = ", ".join(again[:3]) + (f" and {len(again) - 3} more" if len(again) > 3 else "")
    raise RunError(
      f"workdir={workdir}: {len(again)} of its runs failed ({names}); `isoflop runs "
      f"--workdir={workdir}` says why. The same command tries them again, and goes on without what "
      f"has failed at {MOST} starts"
    )
  return [f"going on without {name}: it failed at {MOST} starts" for name in records]
