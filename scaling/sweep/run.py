"""Runs a sweep: plan, check, probe, train, fit, seal, train the prediction, verdict, report.

Every phase reads from the folder what is already there, so a second start continues where the
first one stopped and does no work twice.
"""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from configs.errors import RunError, UserError
from scaling.claims import integrity, prediction, seal, verdict
from scaling.launch.local import Pool
from scaling.laws import fit
from scaling.laws.tables.runs import read_runs
from scaling.progress import Display
from scaling.report import report
from scaling.sweep import (
  adaptive,
  checks,
  costs,
  design,
  fit_files,
  placement,
  plan,
  store,
)
from scaling.sweep.plan import Cell
from scaling.sweep.probe import probe
from scaling.sweep.training import Sweep, place, train_cells
from train.data import dataset
from train.system import files


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
  `began` is when the command began, by `time.perf_counter`; None: now.

  Raises:
    UserError: the config or the folder cannot be used, and nothing was spent; or the runs that
      were trained determine no law.
    KeyboardInterrupt: `should_stop` is True.
    RunError: runs failed, which the next start tries again, or no probe trained.
    WorkerError: a run failed by a bug.
  """
  if config.sweep.objectives:
    return sweep_objectives(config, workdir, display, should_stop, adapt)
  checks.check_sweep_config(config)
  files.make_folder(workdir)
  with files.owned(workdir):
    if unchecked := integrity.check(workdir):
      display.say(f"written without digests, so not checked: {', '.join(unchecked)}")
    clock = costs.SweepClock(workdir, began)
    each_core = placement.chosen_workers(workdir).each_core
    # Workers come up while the text is prepared.
    pool = Pool(workdir, config.sweep.workers, display, should_stop, each_core, clock.tick)
    try:
      clock("data")
      tokens = dataset.prepare(config)
      clock("start")
      checks.check_sweep(config, tokens)
      head, cells = open_sweep(config, workdir, tokens)
      begun = Sweep(config, workdir, tokens, head, cells, pool, display, clock)
      if not begun.sealed:
        checks.check_heldout(config, tokens)
      adaptive.begin(config, workdir, adapt)
      return run_phases(begun)
    finally:
      pool.close()


def open_sweep(
  config: ConfigDict, workdir: Path, tokens: dataset.TokenData
) -> tuple[dict, list[Cell]]:
  """Returns the head of sweep.json and the cells planned so far: the folder's, or of a new sweep.

  Raises:
    UsageError: the folder holds another sweep.
  """
  new = store.new_head(config, tokens)
  stored = files.read_json(workdir / "sweep.json")
  if stored is None:
    return new, []
  checks.check_same_sweep(workdir, stored, config, tokens)
  head, cells = store.read_sweep(workdir)
  return head | {key: new[key] for key in ("config", "config_diff")}, cells


def run_phases(sweep: Sweep) -> dict:
  """Runs the phases of a sweep that has begun; returns verification.json."""
  prepare_workers(sweep)
  probe_rates(sweep)
  planned = plan.fit_cells(sweep.config, sweep.tokens.vocab_size)
  law = train_and_fit(sweep, planned)
  sealed, heldout = seal_prediction(sweep, law, planned)
  train_cells(sweep, heldout, "held out")
  sweep.clock("fit")
  result = verdict.judge(sweep.config, sweep.workdir, law, sealed, heldout)
  write_report(sweep)
  return result


def prepare_workers(sweep: Sweep) -> None:
  """Compiles every size where it will run, and chooses how cores are used."""
  cells = plan.fit_cells(sweep.config, sweep.tokens.vocab_size)
  place(sweep, cells)
  if placement.choose_workers(sweep.config, sweep.workdir, cells, sweep.pool, sweep.display):
    sweep.placements.clear()  # other workers share the memory


def probe_rates(sweep: Sweep) -> None:
  """Sets the learning-rate rule: of an earlier start, or of a probe."""
  rule = sweep.head.get("lr_rule") or probe(sweep)
  if rule:
    sweep.head["lr_rule"] = rule
    sweep.config = plan.with_lr_rule(sweep.config, rule)
    sweep.display.say(
      f"learning rate = {rule['lr_ref']:.2e} (N / {rule['lr_ref_params']:,})^"
      f"{rule['lr_exponent']:.2f}"
    )


def train_and_fit(sweep: Sweep, planned: list[Cell]) -> fit.Fit:
  """Trains the planned cells, and adaptive rounds of more, and fits the law to them."""
  train_cells(sweep, planned, "fit")
  sweep.head["device"] = store.outcome(sweep.workdir, planned[0]).get("device", "")
  fitted, law = list(planned), fit_law(sweep)
  while cells := adaptive.next_round(sweep.config, sweep.workdir, fitted, law, *sweep.corpus):
    fitted += cells
    train_cells(sweep, cells, "adaptive")
    law = fit_law(sweep)
  a, b = law.law.exponents(law.runs.C.max())
  params = ", ".join(f"{name} = {value:.3g}" for name, value in law.params.items())
  formula = law.law.form.formula
  sweep.display.say(f"L = {formula}, {params}; N_opt ~ C^{a:.2f}, D_opt ~ C^{b:.2f}")
  return law


def fit_law(sweep: Sweep) -> fit.Fit:
  """Fits the law to the runs that have trained; writes fit.json."""
  sweep.clock("fit")
  if sealed := prediction.read(sweep.workdir):
    counting = sweep.config.fit.params, sweep.config.fit.flops
    integrity.check_runs(sweep.workdir, sealed, read_runs(sweep.workdir, "", *counting))
  return fit_files.write_fit(sweep.workdir, sweep.config.fit)


def seal_prediction(sweep: Sweep, law: fit.Fit, planned: list[Cell]) -> tuple[dict, list[Cell]]:
  """Seals the prediction at the held-out budget; returns it with the cells that will test it."""
  sealed, heldout = seal.seal(sweep.config, sweep.workdir, law, planned, *sweep.corpus)
  sweep.display.say(
    f"sealed: at {sealed['C']:.2e} FLOPs N* = {sealed['N']:,.0f}, loss {sealed['loss']:.4f} "
    f"[{sealed['interval'][0]:.4f}, {sealed['interval'][1]:.4f}]"
  )
  for cell, why in sealed.get("passed_over", {}).items():
    sweep.display.say(f"{cell} would be nearer to what was predicted, but cannot be trained: {why}")
  return sealed, heldout


def write_report(sweep: Sweep) -> None:
  """Draws the figures, closes the accounts, and writes the report."""
  sweep.clock("report")
  report.draw(sweep.workdir)
  runs: list[Cell | plan.Trunk] = [*sweep.cells, *plan.trunks(sweep.cells)]
  seconds = sweep.clock.finish(store.outcome(sweep.workdir, run) for run in runs)
  sweep.head["seconds"] = round(seconds, 1)
  store.write_sweep(sweep.workdir, sweep.head, sweep.cells)
  report.write(sweep.workdir, redraw=False)


def sweep_objectives(
  config: ConfigDict,
  workdir: Path,
  display: Display,
  should_stop: Callable[[], bool],
  adapt: bool,
) -> dict:
  """Runs the sweep of each objective, and compares them; returns comparison.json."""
  configs = design.split(config)
  files.make_folder(workdir)
  with files.owned(workdir):
    tokens = dataset.prepare(config)
    for name, objective_config in configs.items():  # refused before any of them is begun
      checks.check_sweep(objective_config, tokens)
      adaptive.check_rounds(objective_config, workdir / name, adapt)
    head, _ = open_sweep(config, workdir, tokens)
    store.write_sweep(workdir, head | {"objective": ", ".join(configs)}, [])
    failed = {}
    for i, (name, objective_config) in enumerate(configs.items()):
      display.say(
        f"sweep {i + 1} of {len(configs)}: {name}, with models of family "
        f"{objective_config.model.family}"
      )
      display.title = objective_config.sweep.name
      try:
        sweep(objective_config, workdir / name, display, should_stop, adapt)
      except (RunError, UserError) as error:  # the others can still be measured
        failed[name] = error
        display.say(f"FAILED {name}: {error}")
      report.write(workdir)
    if failed:
      reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
      raise RunError(f"{workdir}: {len(failed)} of {len(configs)} sweeps failed ({reasons})")
    return files.read_json(workdir / "comparison.json")
