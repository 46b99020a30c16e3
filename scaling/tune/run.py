"""Runs a tune: plan, train, extend, fit, seal the optimum of a held-out (N, D), train it, judge.

Its runs are a sweep's: same folders, workers, retries and resuming. Once the verdict is said, the
law is fitted again with the held-out runs among the others: it reaches farthest.
"""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs.errors import ConfigError
from scaling.launch.launchers import workers
from scaling.laws.rates import grid, tune_json
from scaling.laws.rates.grid import Grid
from scaling.progress import Display
from scaling.report.figures import rates
from scaling.sweep import costs, placement, plan, store
from scaling.sweep.plan import Cell
from scaling.sweep.training import OVER, Arm, train_cells
from scaling.tune import claims
from train.data import dataset
from train.system import files

ALL = "tune_all.json"
MAX_EXTENSIONS = 2  # of a cell whose best is at its grid's edge

Place = tuple[int, int]  # size and tokens
# Batches [sequences], multiples of the rule's rate, and of `optim.weight_decay`.
Points = set[tuple[int, float, float]]


def tune(
  config: ConfigDict, workdir: Path, display: Display, should_stop: Callable[[], bool], began: float
) -> dict:
  """Runs a tune, or what is left of it, as a sweep; returns tune_verification.json."""
  check(config)
  files.make_folder(workdir)
  with files.owned(workdir) as check_place:
    clock = costs.SweepClock(workdir, began)
    each_core = placement.chosen_workers(workdir).each_core
    with workers(
      config.sweep, workdir, each_core, display, should_stop, check_place, clock.tick
    ) as pool:
      clock("data")
      tokens = dataset.prepare(config)
      clock("start")
      opened = store.open_sweep(config, workdir, tokens)
      arm = Arm("", config, workdir, [], "", tokens, *opened, pool, display, clock)
      check_cells(arm)
      return run_phases(arm)


def check(config: ConfigDict) -> None:
  """Raises ConfigError where a tune cannot be run."""
  t = config.tune
  for name in ("sizes", "token_counts"):
    if len(set(t[name])) < 2:
      raise ConfigError(f"tune.{name}={tuple(t[name])}: a law in N and D needs two at least")
  for name, fewest in (("lr_factors", 3), ("batch_sizes", 1), ("decay_factors", 1)):
    values = list(t[name])
    if values != sorted(set(values)) or len(values) < fewest or min(values) <= 0:
      raise ConfigError(f"tune.{name}={tuple(values)}: name {fewest} or more, ascending, positive")
  if (t.heldout_size, t.heldout_tokens) in [(s, d) for s in t.sizes for d in t.token_counts]:
    raise ConfigError(
      f"tune.heldout_size={t.heldout_size}, tune.heldout_tokens={t.heldout_tokens}: is one of the "
      "cells that are fitted; hold out another"
    )
  if len(t.decay_factors) == 2:
    raise ConfigError(
      f"tune.decay_factors={tuple(t.decay_factors)}: two tell no optimum; name one, or three"
    )
  if len(t.decay_factors) > 1 and not config.optim.weight_decay:
    raise ConfigError(
      f"tune.decay_factors={tuple(t.decay_factors)}: of optim.weight_decay=0 all are 0; raise it"
    )
  if config.optim.lr or config.optim.rule:
    raise ConfigError("optim.lr, optim.rule: a tune varies the rate; leave them out")


def check_cells(arm: Arm) -> None:
  """Raises ConfigError where a run is too short, or cannot be trained on this text."""
  t = arm.config.tune
  places = [(s, d) for s in t.sizes for d in t.token_counts] + [(t.heldout_size, t.heldout_tokens)]
  for at in places:
    for cell in plan_grid(arm, at, {(batch, t.lr_factors[0], 1.0) for batch in t.batch_sizes}):
      if cell.steps < plan.MIN_STEPS:
        raise ConfigError(
          f"tune: {cell.id} would train for {cell.steps} steps, {plan.MIN_STEPS} are needed; give "
          "it more of tune.token_counts, or smaller tune.batch_sizes"
        )
      if reason := plan.refusal(arm.config, cell, arm.corpus):
        raise ConfigError(f"{reason} ({cell.id})")


def run_phases(arm: Arm) -> dict:
  """Trains the grid, fits it, seals, trains the held-out cell's grid, and judges."""
  t = arm.config.tune
  places = [(size, tokens) for size in t.sizes for tokens in t.token_counts]
  points = set(itertools.product(t.batch_sizes, t.lr_factors, t.decay_factors))
  cells = train_grid(arm, dict.fromkeys(places, points), "tune")
  measured = read_grid(arm, cells)
  arm.clock("fit")
  tuned = tune_json.make(measured, t.window, arm.config.fit.level)
  files.write_json(arm.workdir / "tune.json", files.with_digests(tuned))
  for line in filter(None, tune_json.text(tuned).split("\n")):
    arm.display.say(line)
  sealed = claims.seal(arm, tuned, (t.heldout_size, t.heldout_tokens))
  decays = sealed.get("decay_factors", [1.0])  # seals of before had none
  points = set(itertools.product(sealed["batch_sizes"], sealed["lr_factors"], decays))
  heldout = train_grid(arm, {(t.heldout_size, t.heldout_tokens): points}, "held out")
  arm.clock("fit")
  full = tune_json.make(read_grid(arm, cells | heldout), t.window, arm.config.fit.level)
  files.write_json(arm.workdir / ALL, files.with_digests(full))
  arm.clock("report")
  rates.draw(arm.workdir, tuned, measured)
  result = claims.judge(arm, tuned, sealed, read_grid(arm, heldout))
  arm.display.say(f"the law of all these runs, for optim.rule: {arm.workdir / ALL}")
  arm.head["seconds"] = round(arm.clock.finish(store.outcome(arm.workdir, c) for c in arm.cells), 1)
  store.write_sweep(arm.workdir, arm.head, arm.cells)
  return result


def train_grid(arm: Arm, planned: dict[Place, Points], phase: str) -> dict[Place, list[Cell]]:
  """Trains each place's grid, extends it where its best is at an edge, and returns its cells."""
  for extensions in range(MAX_EXTENSIONS + 1):
    cells = {at: plan_grid(arm, at, points) for at, points in planned.items()}
    train_cells(arm, [cell for some in cells.values() for cell in some], phase)
    edges = grid.at_edge(read_grid(arm, cells))
    if not edges or extensions == MAX_EXTENSIONS:
      break
    for c, at in enumerate(sorted(planned)):
      losses = [store.outcome(arm.workdir, cell).get("loss", math.inf) for cell in cells[at]]
      best = sorted(planned[at])[int(np.argmin(losses)) // arm.config.tune.seeds]
      planned[at] = planned[at] | beyond(planned[at], best, edges.get(c, []))
  return cells


def plan_grid(arm: Arm, at: Place, points: Points) -> list[Cell]:
  """Plans the runs of a place: of each batch, rate and decay, in ascending order, by seed."""
  vocab_size, (size, tokens) = arm.tokens.vocab_size, at
  return [
    cell
    for batch, rate, decay in sorted(points)
    for cell in plan.tune_cells(arm.config, vocab_size, size, tokens, batch, rate, decay)
  ]


def read_grid(arm: Arm, cells: dict[Place, list[Cell]]) -> Grid:
  """Reads what has trained, with the planned D of each place; runs that failed are left out."""
  rows = []
  for (_, tokens), some in sorted(cells.items()):
    for cell in some:
      outcome = store.outcome(arm.workdir, cell)
      if outcome["status"] in OVER:
        loss = outcome["loss"] if outcome["status"] == "done" else math.inf
        decay = arm.config.optim.weight_decay if cell.weight_decay is None else cell.weight_decay
        rows.append((cell.N, tokens, loss, cell.lr, cell.tokens_per_step, decay, cell.width))
  N, D, loss, lr, batch, decay, width = np.array(rows, float).T
  factors, t = {"lr": lr, "batch": batch}, arm.config.tune
  varied = ["lr", "batch"] if len(t.batch_sizes) > 1 else ["lr"]
  if len(t.decay_factors) > 1:
    factors["timescale"] = batch / (lr * decay)
    varied.append("timescale")
  return grid.make_grid(N, D, loss, factors, width, varied)


def beyond(points: Points, best: tuple[int, float, float], edges: list[str]) -> Points:
  """Plans the points beyond the edges of a grid at which its best is, beside the best alone.

  A batch of one sequence has none below. The larger a decay, the shorter its timescale.
  """
  batches, rates, decays = (sorted(set(axis)) for axis in zip(*points, strict=True))
  batch, rate, decay = best
  i, j = batches.index(batch), rates.index(rate)
  new: Points = set()
  if "lr" in edges:
    step, k = rates[1] / rates[0], j + 1
    if rate == min(r for b, r, d in points if (b, d) == (batch, decay)):
      step, k = 1 / step, j - 1
    beside = rates[k] if 0 <= k < len(rates) else rate * step
    new |= {(b, beside, decay) for b in batches[max(0, i - 1) : i + 2]}
  if "batch" in edges:
    beside = batch // 2 if i == 0 else batch * 2
    new |= {(beside, r, decay) for r in rates[max(0, j - 1) : j + 2] if beside}
  if "timescale" in edges:
    step = decays[1] / decays[0]
    beside = decay / step if decay == decays[0] else decay * step
    new |= {(batch, r, beside) for r in rates[max(0, j - 1) : j + 2]}
  return new
