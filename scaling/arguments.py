"""Flags that several commands share, and what they name: a folder, or a trained run."""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from configs.bounds import Field
from configs.errors import UsageError

if TYPE_CHECKING:
  from train.restore import Restored

# Its name, default (a `Field` bounds it) and help.
Flag = tuple[str, bool | str | int | float | list | Field, str]

WORKDIR: Flag = ("workdir", "", "Folder of the run or sweep.")
CHECKPOINT: Flag = ("checkpoint", "", "Folder of a run, or the checkpoints/ in it.")
RUNS: tuple[Flag, ...] = (  # which runs are read, and how: `scaling.laws.tables.read`
  ("runs", "", "A table of runs (.csv, .json, .jsonl, .parquet) or a sweep; else the workdir's."),
  ("columns", "", "Its column names, as N=params,D=tokens,loss=val_loss."),
  ("where", [], "A condition that every run meets, as 'D/N > 5'; may be given several times."),
  ("exclude", [], "A condition that no run meets, as 'loss > 4'; may be given several times."),
)


def workdir_of(args: flags.FlagValues, exists: bool = False) -> Path:
  """Returns --workdir as a path."""
  if not args.workdir:
    raise UsageError("--workdir is missing; name a folder, --workdir=runs/quick for instance")
  path = Path(args.workdir).expanduser().absolute()
  if exists and not path.is_dir():
    raise UsageError(f"workdir={path}: no such folder")
  return path


def restored_run(args: flags.FlagValues) -> "Restored":
  """Restores the run of --checkpoint: its config, model and tokenizer."""
  if not args.checkpoint:
    raise UsageError("--checkpoint is missing; name a run's folder, --checkpoint=runs/one")
  from train import restore

  return restore.restore(args.checkpoint)
