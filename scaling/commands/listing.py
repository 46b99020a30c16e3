"""What `isoflop plan` and `isoflop runs` print. Trains nothing."""

import time
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import base
from configs.errors import UsageError
from model import accounting, memory
from scaling.formats import empty_table, table_text
from scaling.laws import fit, runs
from scaling.progress import duration
from scaling.sweep import adaptive, arms, plan, store
from scaling.sweep.design import Design, designs, with_rule
from train.objectives import registry
from train.system import files, process

# Share of a matmul's rate that a training step reaches, measured on two cores of an AMD EPYC server
# CPU for the ladder `small`: an estimate of time, good to a factor of two.
STEP_EFFICIENCY = 0.35
SECONDS_PER_RUN = 1.0  # restoring, evaluating, saving
SECONDS_PER_SHAPE = 6.0  # compiling, once per size


def matmul_flops_per_second(width: int, tokens: int = 1024) -> float:
  """Measures the rate of the feed-forward product of a model of this width, all cores [FLOP/s]."""
  x_ND = np.ones((tokens, width), np.float32)
  w_DF = np.ones((width, 4 * width), np.float32)
  x_ND @ w_DF
  best, began = 1e9, time.perf_counter()
  while time.perf_counter() - began < 0.02:
    start = time.perf_counter()
    x_ND @ w_DF
    best = min(best, time.perf_counter() - start)
  return 8.0 * tokens * width * width / best


def plan_table(config: ConfigDict, workdir: Path | None) -> str:
  """Returns the table of a sweep's cells and its totals.

  The probe's cells come first. The held-out cells are placed at the fit's N* if the folder has a
  sealed prediction, else at the middle size, as their sizes are known only after the fit.

  Raises:
    UsageError: the sweep cannot be run.
  """
  return "\n\n".join(
    (f"{name}\n\n" if name else "") + _design_table(planned)
    for name, planned in designs(config, workdir)
  )


def _design_table(planned: Design) -> str:
  config, tokens, probes, fitted, heldout, sealed = planned
  cells = planned.cells
  rates = {
    width: STEP_EFFICIENCY * matmul_flops_per_second(width)
    for width in sorted({cell.width for cell in cells})
  }
  workers = config.sweep.workers or (1 if process.has_accelerator() else len(process.cores()))
  table = empty_table(
    "cell D_model L total embed body head N D steps C 6ND spent D/N epochs lr memory time"
  )
  lengths = registry.lengths(config)
  total_seconds = SECONDS_PER_SHAPE * len({cell.size for cell in cells}) / workers
  for cell in cells:
    seconds = cell.flops_spent / rates[cell.width] + SECONDS_PER_RUN / workers
    total_seconds += seconds
    alone = plan.at_size(config, cell.size)
    alone.sharding.update(base.sharding())
    held = memory.device_bytes(
      alone,
      registry.vocab_size(config, tokens.vocab_size),
      lengths.target,
      lengths.source,
    )
    table.add_row(
      cell.id,
      *(str(value) for value in (cell.width, cell.depth)),
      *(f"{cell.groups[name]:,}" for name in ("total", "embedding", "body", "head")),
      f"{cell.N:,}",
      f"{cell.D:,}",
      f"{cell.steps:,}",
      f"{cell.C:.3e}",
      f"{cell.C_6nd:.3e}",
      f"{cell.flops_spent:.3e}",
      f"{cell.D / cell.N:.1f}",
      f"{cell.D / tokens.train_token_count:.3f}",
      f"{cell.lr:.2e}",
      f"{held['total'] / 2**20:.0f} MiB",
      duration(seconds * workers),
    )
  alone, spent = sum(cell.C for cell in cells), sum(cell.flops_spent for cell in cells)
  lines = [
    table_text(table),
    "",
    f"{len(probes)} probe, {len(fitted)} fit and {len(heldout)} held-out cells on "
    f"{tokens.train_token_count:,} training tokens of {config.data.source}",
    f"to spend: {spent:.3e} FLOPs = {accounting.petaflop_s_days(spent):.2e} petaflop/s-days "
    f"(each alone: {alone:.3e} FLOPs; trunks are shared)",
    f"about {duration(total_seconds)} with {workers} workers (good to a factor of two)",
  ]
  if not sealed:
    lines.append("the held-out cells are placed at the middle size until a fit says where N* is")
  return "\n".join(lines)


def next_table(config: ConfigDict, workdir: Path, budget: float) -> str:
  """Returns the cells that would tell most about N_opt at the held-out budget, if trained next.

  Args:
    config: of the workdir's sweep.
    workdir: its folder.
    budget: what they may cost together [FLOPs]; 0: as much as its largest cell.

  Raises:
    UsageError: there are no cells yet, or they do not identify a law.
  """
  if config.sweep.objectives:
    return "\n\n".join(
      f"{name}\n\n{next_table(own, workdir / name, budget)}"
      for name, own in arms.split(config).items()
    )
  head, cells = store.read_sweep(workdir)
  if "lr_rule" in head:
    config = with_rule(config, head["lr_rule"])
  trained = runs.read_runs(workdir / "cells.csv", params=config.fit.params, flops=config.fit.flops)
  law = fit.fit_runs(trained, config.fit)
  fitted = [cell for cell in cells if cell.kind == "fit"]
  return adaptive.table(config, head["corpus"], fitted, law, budget)


def runs_table(workdir: Path) -> str:
  """Returns the table of a sweep's cells, or of the runs in a folder's subfolders.

  Raises:
    UsageError: there are no runs.
  """
  records = []
  if (workdir / "sweep.json").exists():
    head, cells = store.read_sweep(workdir)
    if several := head["config"]["sweep"].get("objectives"):
      begun = [name for name in several if (workdir / name).is_dir()]
      return "\n\n".join(f"{name}\n\n{runs_table(workdir / name)}" for name in begun)
    for cell in cells:
      result = store.outcome(workdir, cell)
      records.append((cell.id, {"N": cell.N, "D": cell.D, "C": cell.C, "lr": cell.lr} | result))
  else:
    for path in sorted([*workdir.glob("run.json"), *workdir.glob("*/run.json")]):
      records.append((path.parent.name, files.read_json(path)))
  if not records:
    raise UsageError(f"workdir={workdir}: no runs there (no sweep.json, no run.json)")
  table = empty_table("run status N D C D/N lr loss stderr bits/byte seconds")
  columns = {"N": ",", "D": ",", "C": ".3e", "D/N": ".1f", "lr": ".2e", "loss": ".4f"}
  columns |= {"loss_stderr": ".4f", "bits_per_byte": ".4f", "seconds": ".1f"}
  for name, run in records:
    if "N" in run:  # else it failed before it began
      run["D/N"] = run["D"] / run["N"]
    table.add_row(
      name,
      run["status"] + (f": {run['error']}" if run["status"] == "failed" else ""),
      *(f"{run[key]:{shown}}" if key in run else "" for key, shown in columns.items()),
    )
  return table_text(table)
