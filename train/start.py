"""Where a run starts: its own checkpoint, a trunk's, another run's weights, or new ones."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from configs.errors import UsageError
from train import optim, record, restore, transfer
from train.checkpoint import Checkpoints
from train.programs import Program
from train.step import TrainState, all_params


class Start(NamedTuple):
  """Where a run starts."""

  step: int  # steps done
  state: TrainState  # after them
  parent: dict | None  # of a warm start, of this run or its trunk: folder, step and hash


def start(config: ConfigDict, checkpoints: Checkpoints, program: Program, head: dict) -> Start:
  """Chooses where a run goes on from: the first of these that there is.

  `head` is `record.describe` of the run; its run.json is beside its `checkpoints`.
  """
  stored = record.read(checkpoints.folder.parent) or {}
  parent = stored.get("warm_start")
  return (
    resume(checkpoints, program, parent)
    or branch(config, program, head)
    or warm_start(config, program, head, parent)
    or from_scratch(config, program)
  )


def resume(checkpoints: Checkpoints, program: Program, parent: dict | None) -> Start | None:
  """Restores the run's own newest sound checkpoint."""
  latest = checkpoints.restore_latest(program.state)
  return latest and Start(*latest, parent)


def branch(config: ConfigDict, program: Program, head: dict) -> Start | None:
  """Restores the checkpoint of `train.branch_from` at the step where this run's cooldown begins."""
  if not config.train.branch_from:
    return None
  folder = Path(config.train.branch_from)
  where = f"train.branch_from={folder}"
  trunk = record.read(folder.parent)
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
    return Start(step, checkpoints.restore(step, program.state), trunk.get("warm_start"))


def warm_start(
  config: ConfigDict, program: Program, head: dict, before: dict | None
) -> Start | None:
  """Takes the newest weights of the run of `train.warm_start`, and nothing else of it.

  A run that has started from some `before`, and not saved since, starts from the same again.
  """
  if not config.train.warm_start:
    return None
  parent = transfer.find(config, head["data"])
  step, params, digest = restore.newest_weights(parent.folder, parent.where, program.setup)
  if before and before["hash"] != digest:
    raise UsageError(
      f"{parent.where}: has other weights (step {step}) than this run started from (step "
      f"{before['step']}); name another workdir"
    )
  like = all_params(program.state)
  state = jax.jit(lambda params: program.init_from(transfer.adapt(params, parent, like)))(params)
  return Start(0, state, {"folder": str(parent.folder), "step": step, "hash": digest})


def from_scratch(config: ConfigDict, program: Program) -> Start:
  """Draws weights from the seed."""
  return Start(0, program.init(np.uint32(config.seed)), None)
