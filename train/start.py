"""Where a run starts: its own checkpoint, the checkpoint of a trunk, or new weights."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs.errors import UsageError
from train import optim, record
from train.checkpoint import Checkpoints
from train.step import Program, TrainState
from train.system import files

Start = tuple[int, TrainState]  # steps done, and the state after them


def start(config: ConfigDict, checkpoints: Checkpoints, program: Program, head: dict) -> Start:
  """Chooses where to go on from: the first of these that there is.

  Raises:
    UserError: `train.branch_from` cannot be the trunk of this run.
  """
  return (
    resume(checkpoints, program)
    or branch(config, program, head)
    or from_scratch(config, program)  # a warm start stands before it
  )


def resume(checkpoints: Checkpoints, program: Program) -> Start | None:
  """Restores the run's own newest sound checkpoint."""
  return checkpoints.restore_latest(program.state)


def branch(config: ConfigDict, program: Program, head: dict) -> Start | None:
  """Restores the checkpoint of `train.branch_from` at the step where this run's cooldown begins.

  Raises:
    UserError: it is of another run, or has no sound checkpoint at that step.
  """
  if not config.train.branch_from:
    return None
  folder = Path(config.train.branch_from)
  where = f"train.branch_from={folder}"
  trunk = files.read_json(folder.parent / "run.json")
  if not folder.is_dir() or trunk is None:
    raise UsageError(f"{where}: not a run's checkpoints/; name that folder of the trunk")
  record.check_same_run(trunk, head, where, branch=True)
  step = optim.cooldown_start(config.optim, head["scheduled_steps"])
  constant = record.constant_until(trunk)
  if step > constant:
    raise UsageError(
      f"{where}: its learning rate stays as it is until step {constant}, and this cooldown begins "
      f"at step {step}; name a trunk with optim.schedule='constant'"
    )
  with Checkpoints(folder, read_only=True) as checkpoints:
    if step not in checkpoints.steps():
      raise UsageError(
        f"{where}: this cooldown begins at step {step}, which is not kept there; "
        f"kept steps: {checkpoints.steps()}"
      )
    return step, checkpoints.restore(step, program.state)


def from_scratch(config: ConfigDict, program: Program) -> Start:
  """Draws weights from the seed."""
  return 0, program.init(np.uint32(config.seed))
