"""The whole way: plan, probe, train, fit, seal, train the prediction, verdict, report.

Every step finds out from the folder what is already there, so a second start continues where the
first one stopped and does no work twice.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import base
from configs.errors import RunError, UsageError, UserError
from scaling.launch.local import Pool, Task
from scaling.laws import chinchilla, fit
from scaling.progress import Display
from scaling.report import report
from scaling.sweep import (
  adaptive,
  arms,
  costs,
  design,
  plan,
  preflight,
  refit,
  retries,
  seal,
  store,
)
from scaling.sweep.plan import Cell
from train import optim, record
from train.data import dataset
from train.objectives import registry
from train.system import files

# What a step of a small model costs beside its products, as FLOPs at the rate of its products: on
# one core of an AMD EPYC a step of 512 tokens took 3 ms and 16 ms per GFLOP (20k to 250k params).
STEP_OVERHEAD_FLOPS = 2e8
MAX_EXTENSIONS = 3  # of a learning-rate probe whose best rate is at its edge
FREE = (  # fields that change no number of a begun sweep's runs, beyond the order of a sum
  "fit.delta", "fit.bootstraps", "fit.level", "fit.resampling", "fit.seed",
  "fit.target_tokens_per_param", "sharding.", "model.remat", "data.max_epochs", "sweep.workers",
  "sweep.pack", "sweep.name", "sweep.overrides", "sweep.adaptive_flops", "train.checkpoint_every",
)  # fmt: skip


def sweep(
  config: ConfigDict,
  workdir: Path,
  display: Display,
  should_stop: Callable[[], bool],
  adapt: bool = False,
  began: float | None = None,
) -> dict:
  """Runs a sweep from plan to verdict, or what is left of it; returns verification.json.

  With several objectives, it runs the sweep of each and compares them; returns comparison.json.
  If `adapt`, it spends `sweep.adaptive_flops` on the cells that tell most, before it predicts.
  Its time counts from `began` on, by `time.perf_counter`; None: from now on.

  Raises:
    UsageError: the config or the folder cannot be used, and nothing was spent; or the runs that
      were trained determine no law.
    KeyboardInterrupt: `should_stop` said so; running cells have saved their state.
    RunError: runs failed, which the next start tries again, or no probe trained.
  """
  if config.sweep.objectives:
    return _several(config, workdir, display, should_stop, adapt)
  plan.check_config(config)
  files.make_folder(workdir)
  with files.owned(workdir):
    clock = costs.Clock(workdir, began)
    # Workers come up while the text is prepared.
    each_core = preflight.chosen(workdir)["each_core"]
    pool = Pool(workdir, config.sweep.workers, each_core, clock.tick)
    try:
      clock("data")
      tokens = dataset.prepare(config)
      clock("start")
      plan.check(config, tokens)
      head = begin(config, workdir, tokens)
      adaptive.begin(config, workdir, adapt)
      return _sweep(config, workdir, tokens, head, pool, display, should_stop, clock)
    finally:
      pool.close()


def _sweep(
  config: ConfigDict,
  workdir: Path,
  tokens: dataset.TokenData,
  head: dict,
  pool: Pool,
  display: Display,
  should_stop: Callable[[], bool],
  clock: costs.Clock,
) -> dict:
  vocab_size, train_tokens = tokens.vocab_size, tokens.train_token_count
  is_sealed = (workdir / "prediction.json").exists()
  # Those that an earlier start had come to, too: its records never shrink.
  cells = store.read_sweep(workdir)[1] if (workdir / "sweep.json").exists() else []
  fits: dict[int, preflight.Fit] = {}  # by size

  def look_at(new: list[Cell]) -> None:
    fits.update(preflight.implied(fits, {cell.size for cell in new}))
    unknown = [cell for cell in new if cell.size not in fits]
    if unknown:
      clock("preflight")
      fits.update(preflight.look(config, workdir, unknown, pool, display, should_stop))

  def train(new: list[Cell], phase: str) -> None:
    look_at(new)
    clock("records")
    cells.extend(store.unknown(workdir, cells, new))
    store.write_sweep(workdir, head, cells)
    if is_sealed:  # on the fit cells that had trained: what had failed by then stays so
      left_out = retries.failed(workdir, (cell for cell in new if cell.kind == "fit"))
      new = [cell for cell in new if cell.id not in left_out]
    display.say(f"{phase}: {len(new)} cells, {sum(c.flops_spent for c in new):.2e} FLOPs")
    planned = tasks(config, workdir, new, fits)
    clock("run", len(pool))
    try:
      errors = pool.run(planned, display, should_stop)
    finally:
      clock("records")
      retries.settle_diverged(workdir, new)
      store.write_table(workdir, store.rows(workdir, cells, config.objective))
    for name, error in errors.items():
      display.say(f"FAILED {name}: {error}")
    for line in retries.refuse(workdir, new):
      display.say(line)

  def fit_law() -> fit.Fit:
    clock("fit")
    seal.check(workdir, config.fit)
    return refit.refit(workdir, config.fit)

  # ---- Does it fit, and how is it fastest? ----
  planned = plan.fit_cells(config, vocab_size)
  if not is_sealed:  # could anything test its prediction, wherever that will be?
    budget = plan.heldout_budget(config, planned)
    plan.heldout_cells(config, vocab_size, train_tokens, planned[0].N, budget)
  look_at(planned)
  if preflight.choose(config, workdir, planned, pool, display, should_stop):
    fits.clear()

  # ---- Learning rate ----
  if rule := head.get("lr_rule") or probe(config, vocab_size, workdir, train):
    head["lr_rule"] = rule
    config = design.with_rule(config, rule)
    display.say(f"learning rate = {rule['lr_ref']:.2e} (N / {rule['lr_ref_params']:,})^"
                f"{rule['lr_exponent']:.2f}")  # fmt: skip

  # ---- Train, fit ----
  planned = plan.fit_cells(config, vocab_size)
  fitted = list(planned)
  train(fitted, "fit")
  head["device"] = store.outcome(workdir, fitted[0]).get("device", "")
  law = fit_law()
  while more := adaptive.next_round(config, workdir, fitted, law, vocab_size, train_tokens):
    fitted += more
    train(more, "adaptive")
    law = fit_law()
  a, b = chinchilla.exponents(law.law)
  display.say(
    f"L(N, D) = {law.law.E:.3f} + {law.law.A:.3g} / N^{law.law.alpha:.3f} + "
    f"{law.law.B:.3g} / D^{law.law.beta:.3f}; N_opt ~ C^{a:.2f}, D_opt ~ C^{b:.2f}"
  )

  # ---- Seal, train the prediction, verdict ----
  sealed, heldout = seal.seal(config, workdir, law, planned, vocab_size, train_tokens)
  display.say(
    f"sealed: at {sealed['C']:.2e} FLOPs N* = {sealed['N']:,.0f}, loss {sealed['loss']:.4f} "
    f"[{sealed['interval'][0]:.4f}, {sealed['interval'][1]:.4f}]"
  )
  for cell, why in sealed.get("passed_over", {}).items():
    display.say(f"{cell} would be nearer to what was predicted, but cannot be trained: {why}")
  train(heldout, "held out")
  clock("fit")
  result = seal.verdict(config, workdir, law, sealed, heldout)

  # ---- Report ----
  clock("report")
  report.draw(workdir)
  runs: list[Cell | plan.Trunk] = [*cells, *plan.trunks(cells)]
  head["seconds"] = round(clock.finish(store.outcome(workdir, run) for run in runs), 1)
  store.write_sweep(workdir, head, cells)
  report.write(workdir, redraw=False)
  return result


def _several(
  config: ConfigDict,
  workdir: Path,
  display: Display,
  should_stop: Callable[[], bool],
  adapt: bool,
) -> dict:
  configs = arms.split(config)
  files.make_folder(workdir)
  with files.owned(workdir):
    tokens = dataset.prepare(config)
    for name, own in configs.items():  # refused before any of them is begun
      plan.check(own, tokens)
      adaptive.check_rounds(own, workdir / name, adapt)
    head = begin(config, workdir, tokens) | {"objective": ", ".join(configs)}
    store.write_sweep(workdir, head, [])
    failed = {}
    for i, (name, own) in enumerate(configs.items()):
      display.say(
        f"sweep {i + 1} of {len(configs)}: {name}, with models of family {own.model.family}"
      )
      display.title = own.sweep.name
      try:
        sweep(own, workdir / name, display, should_stop, adapt)
      except (RunError, UserError) as error:  # the others can still be measured
        failed[name] = error
        display.say(f"FAILED {name}: {error}")
      report.write(workdir)
    if failed:
      said = "; ".join(f"{name}: {error}" for name, error in failed.items())
      raise RunError(f"{workdir}: {len(failed)} of {len(configs)} sweeps failed ({said})")
    return files.read_json(workdir / "comparison.json")


def begin(config: ConfigDict, workdir: Path, tokens: dataset.TokenData) -> dict:
  """Returns the head of sweep.json: of the sweep that the folder holds, or a new one.

  Raises:
    UsageError: the folder holds another sweep.
  """
  described = record.describe(plan.at_size(config, config.sweep.sizes[0]), tokens, "")
  config_json = record.plain(config.to_dict())
  found = files.read_json(workdir / "sweep.json")
  if found:
    defaults = record.flat(record.plain(base.get_config().to_dict()))
    old, new = defaults | record.flat(found["config"]), record.flat(config_json)
    is_sealed = (workdir / "prediction.json").exists()
    for name in sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)):
      if not name.startswith(FREE) or (is_sealed and name == "fit.delta"):  # it makes another law
        raise UsageError(
          f"workdir={workdir}: holds a {'sealed ' * is_sealed}sweep with {name}={old.get(name)!r}, "
          f"asked {new.get(name)!r}; name another workdir"
        )
    for key, what in (
      ("fingerprint", f"another text (data.source={config.data.source!r}"),
      ("tokenizer_hash", f"other tokens (data.tokenizer={config.data.tokenizer!r}"),
    ):
      if found["corpus"][key] != getattr(tokens, key):
        raise UsageError(
          f"workdir={workdir}: holds a sweep on {what} has changed since); name another workdir"
        )
    del found["cells"]
    return found | {"config": config_json, "config_diff": record.diff(config)}
  return {
    "name": config.sweep.name,
    "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "objective": config.objective,
    "libraries": described["versions"],
    "corpus": {
      "source": config.data.source,
      "fingerprint": tokens.fingerprint,
      "tokenizer": config.data.tokenizer,
      "tokenizer_hash": tokens.tokenizer_hash,
      "vocab_size": tokens.vocab_size,
      "train_tokens": tokens.train_token_count,
      "validation_tokens": tokens.validation_token_count,
      "floor": tokens.floor,
    },
    "config": config_json,
    "config_diff": record.diff(config),
  }


def tasks(
  config: ConfigDict, workdir: Path, cells: list[Cell], fits: dict[int, preflight.Fit]
) -> list[Task]:
  """Returns what has to be trained for these cells: their trunks, and themselves.

  Args:
    config: the sweep's config.
    workdir: its folder.
    cells: what to train.
    fits: how they are trained, by size.
  """
  result = []
  planned: list[Cell | plan.Trunk] = [*plan.trunks(cells), *cells]
  for run in planned:
    run_config = plan.run_config(config, run)
    run_config.sharding.microbatches = fits[run.size].microbatches
    steps, tokens_per_step = run.steps, registry.tokens_per_step(config)
    needs = None
    if isinstance(run, Cell) and run.trunk:
      steps -= run.branch_step
      needs = run.trunk
      run_config.train.branch_from = str(workdir / "trunks" / run.trunk / "checkpoints")
    result.append(
      Task(
        id=run.id,
        folder=store.folder(workdir, run),
        config=run_config.to_dict(),
        cost=steps * (tokens_per_step * run.flops_per_token + STEP_OVERHEAD_FLOPS),
        needs=needs,
        shape=run.size,
        pack=fits[run.size].pack,
        failures=store.outcome(workdir, run).get("failures", 0),
      )
    )
  return result


def probe(
  config: ConfigDict,
  vocab_size: int,
  workdir: Path,
  train: Callable[[list[Cell], str], None],
) -> dict | None:
  """Trains the learning-rate probe and returns the rule that it found; None: nothing is probed.

  At each size the best multiple of the rule's rate is the minimum of a parabola in log rate through
  the best cell and its neighbours. A best cell at the edge asks for the rate beyond it. The rule's
  lr_ref becomes the geometric mean over the sizes; its exponent stays, as a few probes a factor
  apart in N determine it worse than the literature does.
  """
  factors = {size: list(config.sweep.probe_factors) for size in config.sweep.probe_sizes}
  if not factors:
    return None
  for _ in range(MAX_EXTENSIONS + 1):
    cells = [
      cell for size in factors for cell in plan.probe_cells(config, vocab_size, size, factors[size])
    ]
    train(cells, "probe")
    extended = False
    losses = {cell.id: store.outcome(workdir, cell) for cell in cells}
    best: dict[int, float] = {}
    for size in factors:
      own = [c for c in cells if c.size == size]
      loss = [losses[c.id].get("loss", math.inf) for c in own]
      if not math.isfinite(min(loss)):
        raise RunError(f"no learning-rate probe of size {size} trained; see workers.log")
      best[size], beyond = best_factor(factors[size], loss)
      if beyond:
        factors[size] = sorted([*factors[size], beyond])
        extended = True
    if not extended:
      break
  n_params = {cell.size: cell.N for cell in cells}
  rates = {s: best[s] * optim.base_learning_rate(config.optim, n_params[s]) for s in factors}
  rule = {
    "lr_ref": config.optim.lr_ref,
    "lr_ref_params": config.optim.lr_ref_params,
    "lr_exponent": config.optim.lr_exponent,
    "probes": [{"size": s, "N": n_params[s], "lr": rates[s], "factor": best[s]} for s in factors],
  }
  x = np.log([n_params[s] / config.optim.lr_ref_params for s in factors])
  y = np.log([rates[s] for s in factors])
  rule["lr_ref"] = float(np.exp(np.mean(y - rule["lr_exponent"] * x)))
  return rule


def best_factor(factors: list[float], losses: list[float]) -> tuple[float, float | None]:
  """Returns (best factor, factor to try beyond an edge or None).

  Args:
    factors: ascending multiples of a learning rate.
    losses: their losses; inf where training diverged.
  """
  i = int(np.argmin(losses))
  if i == 0:
    return factors[0], factors[0] ** 2 / factors[1] if len(factors) > 1 else None
  if i == len(factors) - 1:
    return factors[-1], factors[-1] ** 2 / factors[-2]
  if not math.isfinite(losses[i + 1]) or not math.isfinite(losses[i - 1]):
    return factors[i], None
  x = np.log(factors[i - 1 : i + 2])
  c2, c1, _ = np.polyfit(x - x[1], losses[i - 1 : i + 2], 2)
  shift = -c1 / (2 * c2) if c2 > 0 else 0.0
  return float(factors[i] * np.exp(np.clip(shift, x[0] - x[1], x[2] - x[1]))), None
