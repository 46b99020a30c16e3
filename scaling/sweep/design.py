"""The design of a sweep, planned before it trains: its arms, their cells, and what they cost.

An arm is the design with some fields changed. Each is a whole sweep in a folder of its name, with
its own law, seal and verdict. Arms share the corpus, the workers with their compiled programs, and
every run that two of them have in common, which is trained once (`training.link_shared`). A sweep
without arms is planned as one arm, named "".
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs import base
from configs.errors import ConfigError, UserError
from scaling.claims import prediction_json
from scaling.formats import DASH, duration, headed, pf_days, text_table
from scaling.sweep import checks, plan, step_time
from scaling.tune import rule
from train import aot, record
from train.data import dataset
from train.system import files, process

# Of the estimate of time. Beside ten other processes on two cores of a Zen 5, it was 1.4 times what
# `configs/sweeps/quick.py` takes there alone.
TIME_INTERVAL = 0.7, 2.0
SECONDS_PER_RUN = 1.0  # restoring, evaluating, saving
SECONDS_PER_SHAPE = 6.0  # compiling, once per size

FOLDERS = ("cells", "trunks", "figures", "preflight")  # of a sweep


class Design(NamedTuple):
  """A sweep's cells."""

  config: ConfigDict  # with the learning-rate rule of its folder, if that has one
  tokens: dataset.TokenData
  probe_cells: list[plan.Cell]
  fit_cells: list[plan.Cell]
  heldout_cells: list[plan.Cell]
  sealed: bool  # else the held-out cells are placed at the middle size

  @property
  def cells(self) -> list[plan.Cell]:
    """All of them, in the order in which they train."""
    return [*self.probe_cells, *self.fit_cells, *self.heldout_cells]


def split(config: ConfigDict) -> dict[str, ConfigDict]:
  """Makes the config of each arm, by its name: `config`, with the fields that the arm sets.

  An arm that sets the objective has the family of models that this trains, unless it sets one.
  """
  arms = config.sweep.arms
  if not arms:
    return {"": rule.pinned(config)}
  if config.sweep.design != "isoflop":
    raise ConfigError(
      f"sweep.design={config.sweep.design!r}: arms are compared at equal budgets; choose isoflop, "
      "or leave sweep.arms empty"
    )
  base.check_fields(config)
  configs: dict[str, ConfigDict] = {}
  for name, fields in arms.items():
    arm = _changed(config, name, fields)
    for other, known in configs.items():
      if arm == known:
        raise ConfigError(f"sweep.arms.{name}: is the same as {other}; leave out one of them")
    configs[name] = rule.pinned(arm)
  for name, arm in configs.items():
    arm.sweep.name = f"{config.sweep.name}, {name}"
  return configs


def _changed(config: ConfigDict, name: str, fields: ConfigDict) -> ConfigDict:
  """Makes the config of one arm."""
  if name in FOLDERS:
    raise ConfigError(f"sweep.arms.{name}: a sweep has a folder of this name; choose another")
  arm, defaults = config.copy_and_resolve_references(), record.flat(config.to_dict())
  arm.sweep.arms = {}
  if objective := fields.get("objective"):
    arm.model.family = base.family_of(objective)
  for field, value in record.flat(fields.to_dict()).items():
    setting = f"sweep.arms.{name}.{field}={value!r}"
    in_mapping = base.split_mapping(field)[0]
    if not (field in defaults or in_mapping) or field.startswith("sweep.arms"):
      raise ConfigError(
        f"{setting}: the config has no field {field!r} that an arm could set; --print_config shows "
        "all there are"
      )
    try:
      arm.update_from_flattened_dict({field: value})
    except (TypeError, ValueError):
      kind = "str" if in_mapping else type(defaults[field]).__name__
      raise ConfigError(f"{setting}: must be of type {kind}") from None
  with of_arm(name):
    base.check_fields(arm)
  return arm


@contextlib.contextmanager
def of_arm(name: str) -> Iterator[None]:
  """Names the arm, if it has a name, in the user's errors."""
  try:
    yield
  except UserError as error:
    raise type(error)(f"{error} (arm {name})" if name else str(error)) from None


def same_programs(configs: dict[str, ConfigDict]) -> dict[str, str]:
  """Names for each arm the first whose runs are compiled to the same programs.

  That is one which differs from it in the design or in the fit alone.
  """
  kept = {
    name: {key: value for key, value in config.to_dict().items() if key not in ("sweep", "fit")}
    for name, config in configs.items()
  }
  return {name: next(other for other in kept if kept[other] == kept[name]) for name in kept}


def designs(config: ConfigDict, workdir: Path | None) -> Iterator[tuple[str, Design]]:
  """Plans the sweep of each arm, by its name; that of a sweep without arms, by "".

  Held-out cells are at the fit's N* if the folder has a sealed prediction, else at the middle size,
  as their sizes are known only after the fit.
  """
  for name, arm_config in split(config).items():
    yield name, _design(arm_config, workdir and workdir / name)


def _design(config: ConfigDict, workdir: Path | None) -> Design:
  tokens = dataset.prepare(config)
  checks.check_sweep(config, tokens)
  probe_cells = [
    cell
    for size in config.sweep.probe_sizes
    for cell in plan.probe_cells(config, tokens.vocab_size, size, config.sweep.probe_factors)
  ]
  head = files.read_record(workdir / "sweep.json") if workdir else None
  if head:
    config = rule.with_lr_rule(config, head.get("lr_rule"))
  fit_cells = plan.design_cells(config, tokens.vocab_size)
  sealed = prediction_json.read(workdir) if workdir else None
  if sealed:
    heldout_cells = plan.sealed_cells(config, tokens.vocab_size, sealed)
  else:
    middle = float(np.median([cell.params(config.fit.params) for cell in fit_cells]))
    corpus = tokens.vocab_size, tokens.train_token_count
    budgets = plan.heldout(config, corpus, fit_cells, lambda _: middle)
    cells = itertools.chain(*(budget.cells for budget in budgets))
    heldout_cells = plan.with_seeds(config, cells)
  return Design(config, tokens, probe_cells, fit_cells, heldout_cells, bool(sealed))


def plan_table(config: ConfigDict, workdir: Path | None, device: str, mfu: float) -> str:
  """Makes the table of the cells of `designs`, probes first, and their total cost."""
  return headed({x: _design_table(arm, device, mfu) for x, arm in designs(config, workdir)})


def step_time_of(
  config: ConfigDict, device: str, mfu: float, steps: Mapping[float, ConfigDict]
) -> tuple[step_time.StepTime | None, int]:
  """Returns the time of a step, and how many runs are trained at a time.

  It is that of a device at a share of its peak, or of `steps` (by their FLOPs) that are timed here.
  """
  if device:
    return step_time.of_device(device, mfu, config.model.dtype), config.sweep.workers or 1
  here = 1 if process.has_accelerator() else len(process.cores())
  return step_time.measure(steps), config.sweep.workers or here


def _design_table(design: Design, device: str, mfu: float) -> str:
  config, tokens, cells = design.config, design.tokens, design.cells
  sized = {cell.flops_per_token * cell.tokens_per_step: cell for cell in cells}
  steps = {flops: plan.run_config(config, cell) for flops, cell in sized.items()}
  of_step, workers = step_time_of(config, device, mfu, steps)
  columns = "cell D_model L total embed body head N D steps C 6ND spent D/N epochs lr memory time"
  rows = []
  total_seconds = SECONDS_PER_SHAPE * len({cell.size for cell in cells}) / workers
  for cell in cells:
    seconds = math.nan
    if of_step:
      step_flops = cell.flops_per_token * cell.tokens_per_step
      count = cell.flops_spent / step_flops
      seconds = count * of_step.seconds(step_flops) + SECONDS_PER_RUN
    total_seconds += seconds / workers
    alone = plan.at_size(config, cell.size)
    alone.sharding.update(base.get_config().sharding)  # whole, on one device
    held = aot.device_bytes(alone, tokens.vocab_size)["total"]
    groups = [cell.groups[name] for name in ("total", "embedding", "body", "head")]
    rows.append((
      cell.id, str(cell.width), str(cell.depth),
      *(f"{count:,}" for count in (*groups, cell.N, cell.D, cell.steps)),
      *(f"{flops:.3e}" for flops in (cell.C, cell.C_6nd, cell.flops_spent)),
      f"{cell.D / cell.N:.1f}", f"{cell.D / tokens.train_token_count:.3f}", f"{cell.lr:.2e}",
      f"{held / 2**20:.0f} MiB", duration(seconds) if of_step else DASH,
    ))  # fmt: skip
  each, spent = sum(cell.C for cell in cells), sum(cell.flops_spent for cell in cells)
  time = (
    f"no estimate of time: steps here have more than {step_time.MOST_FLOPS:.0e} FLOPs; name a "
    "device, as --device=h100 --mfu=0.4"
  )
  if of_step:
    ends = ", ".join(duration(factor * total_seconds) for factor in TIME_INTERVAL)
    where = f"on {device} at {mfu:.0%} of its peak" if device else "on a machine that is idle"
    time = f"about {duration(total_seconds)} [{ends}] with {workers} worker(s) {where}"
    if of_step.busy > 1.3:
      time += f"; {duration(of_step.busy * total_seconds)} if it stays as busy as it is now"
  lines = [
    text_table(columns.split(), rows),
    "",
    f"{len(design.probe_cells)} probe, {len(design.fit_cells)} fit and "
    f"{len(design.heldout_cells)} held-out cells on "
    f"{tokens.train_token_count:,} training tokens of {config.data.source}",
    f"to spend: {spent:.3e} FLOPs = {pf_days(spent):.2e} petaflop/s-days "
    f"(each alone: {each:.3e} FLOPs; trunks are shared)",
    time,
  ]
  if not design.sealed:
    lines.append("the held-out cells are placed at the middle size until a fit says where N* is")
  return "\n".join(lines)
