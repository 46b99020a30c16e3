"""Runs a sweep: plan, check, probe, train, fit, seal, train the prediction, verdict, report.

Every phase reads from the folder what is already there, so a second start continues where the
first one stopped and does no work twice.
"""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from configs.errors import RunError, UserError
from scaling.claims import integrity, prediction_json, seal, verdict
from scaling.launch.launchers import workers
from scaling.laws import fit
from scaling.laws.tables.read import read_runs
from scaling.progress import Display
from scaling.report import document
from scaling.sweep import adaptive, checks, costs, design, fit_files, placement, plan, store
from scaling.sweep.plan import Cell
from scaling.sweep.probe import probe
from scaling.sweep.training import Arm, place, train_cells
from scaling.tune.rule import told_cost, with_lr_rule
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

  With `sweep.arms` it does so for each of them, and compares them; returns comparison.json. If
  `adapt`, it spends `sweep.adaptive_flops` on the cells that tell most, before it predicts. `began`
  is when the command began, by `time.perf_counter`; None: now.

  Raises:
    UserError: nothing was spent; or the runs that were trained determine no law.
    RunError, WorkerError: runs failed, which the next start tries again; the latter by a bug.
  """
  configs = design.split(config)
  for name, arm_config in configs.items():
    with design.of_arm(name):
      checks.check_sweep_config(arm_config)
  for name in configs:
    files.make_folder(workdir / name)
  with files.owned(workdir) as check_place:
    for name in configs:
      with design.of_arm(name):
        integrity.check(workdir / name)
    clock = costs.SweepClock(workdir / next(iter(configs)), began)
    each_core = placement.chosen_workers(workdir).each_core
    with workers(
      config.sweep, workdir, each_core, display, should_stop, check_place, clock.tick
    ) as pool:
      clock("data")
      tokens = {name: dataset.prepare(arm_config) for name, arm_config in configs.items()}
      clock("start")
      programs = design.same_programs(configs)
      begun: dict[str, Arm] = {}
      for name, arm_config in configs.items():  # all are checked before one of them trains
        with design.of_arm(name):
          siblings = [workdir / other for other in configs if other != name]
          begun[name] = Arm(
            name, arm_config, workdir, siblings, programs[name], tokens[name],
            *store.open_sweep(arm_config, workdir / name, tokens[name]), pool, display, clock,
          )  # fmt: skip
          check(begun[name], adapt)
      if not config.sweep.arms:
        return run_phases(begun[""])
      head, _ = store.open_sweep(config, workdir, next(iter(tokens.values())))
      store.write_sweep(workdir, head, [])
      return run_arms(begun, workdir, display)


def check(arm: Arm, adapt: bool) -> None:
  """Raises UserError where an arm cannot be run or would waste compute; notes if it may adapt."""
  checks.check_sweep(arm.config, arm.tokens)
  if not arm.cells:
    checks.check_parents(arm.config, arm.tokens)
  if not arm.sealed:
    for budget in checks.check_heldout(arm.config, arm.tokens):
      arm.display.say(
        f"at {budget.C:.2e} FLOPs, {budget.times:.3g} times the largest fitted budget, nothing "
        f"will be predicted: {budget.reason}"
      )
  adaptive.begin(arm.config, arm.workdir, adapt)


def run_arms(begun: dict[str, Arm], workdir: Path, display: Display) -> dict:
  """Runs the sweep of each arm, and compares them; returns comparison.json."""
  failed = {}
  for i, (name, arm) in enumerate(begun.items()):
    display.say(
      f"arm {i + 1} of {len(begun)}: {name}, {arm.config.objective} with models of family "
      f"{arm.config.model.family}"
    )
    display.title = arm.config.sweep.name
    if i:
      arm.clock.open(arm.workdir)
    try:
      with files.owned(arm.workdir):
        run_phases(arm)
    except (RunError, UserError) as error:  # the others can still be measured
      failed[name] = error
      display.say(f"FAILED {name}: {error}")
    document.write(workdir)
  if failed:
    reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
    raise RunError(f"{workdir}: {len(failed)} of {len(begun)} arms failed ({reasons})")
  return files.read_json(workdir / "comparison.json")


def run_phases(arm: Arm) -> dict:
  """Runs the phases of an arm that has begun; returns verification.json."""
  prepare_workers(arm)
  probe_rates(arm)
  planned = plan.design_cells(arm.config, arm.tokens.vocab_size)
  law = train_and_fit(arm, planned)
  sealed, heldout = seal_prediction(arm, law, planned)
  train_cells(arm, heldout, "held out")
  arm.clock("fit")
  result = verdict.judge(arm.config, arm.workdir, law, sealed, heldout)
  write_report(arm)
  return result


def prepare_workers(arm: Arm) -> None:
  """Compiles every size where it will run, and chooses how cores are used."""
  cells = plan.design_cells(arm.config, arm.tokens.vocab_size)
  place(arm, cells)
  begun = (arm.workdir / "sweep.json").exists()
  if placement.choose_workers(arm.config, arm.root, cells, arm.pool, arm.display, begun):
    arm.placements.clear()  # other workers share the memory


def probe_rates(arm: Arm) -> None:
  """Sets the learning-rate rule: of an earlier start, or of a probe; `optim.rule` needs none."""
  if arm.config.optim.rule:
    arm.display.say(f"learning rates and batches are those of {arm.config.optim.rule}")
    return
  rule = arm.head.get("lr_rule") or probe(arm)
  if rule:
    arm.head["lr_rule"] = rule
    arm.config = with_lr_rule(arm.config, rule)
    arm.display.say(
      f"learning rate = {rule['lr_ref']:.2e} (N / {rule['lr_ref_params']:,})^"
      f"{rule['lr_exponent']:.2f}"
    )


def train_and_fit(arm: Arm, planned: list[Cell]) -> fit.Fit:
  """Trains the planned cells, and adaptive rounds of more, and fits the law to them."""
  train_cells(arm, planned, "fit")
  arm.head["device"] = store.outcome(arm.workdir, planned[0]).get("device", "")
  fitted, law = list(planned), fit_law(arm)
  while cells := adaptive.next_round(arm.config, arm.workdir, fitted, law, arm.corpus):
    fitted += cells
    train_cells(arm, cells, "adaptive")
    law = fit_law(arm)
  a, b = law.law.exponents(law.runs.C.max())
  params = ", ".join(f"{name} = {value:.3g}" for name, value in law.params.items())
  arm.display.say(f"L = {law.law.form.formula}, {params}; N_opt ~ C^{a:.2f}, D_opt ~ C^{b:.2f}")
  return law


def fit_law(arm: Arm) -> fit.Fit:
  """Fits the law to the runs that have trained; writes fit.json."""
  arm.clock("fit")
  if sealed := prediction_json.read(arm.workdir):
    f = arm.config.fit
    fitted = read_runs(arm.workdir, "", f.params, f.flops, loss=f.loss)
    integrity.check_runs(arm.workdir, sealed, fitted)
  return fit_files.write_fit(arm.workdir, arm.config.fit)


def seal_prediction(arm: Arm, law: fit.Fit, planned: list[Cell]) -> tuple[dict, list[Cell]]:
  """Seals the predictions of all held-out budgets; returns them with the cells that test them."""
  sealed, heldout = seal.seal(arm.config, arm.workdir, law, planned, arm.corpus)
  for budget in sealed["budgets"]:
    arm.display.say(
      f"sealed: at {budget['C']:.2e} FLOPs N* = {budget['N']:,.0f}, loss {budget['loss']:.4f} "
      f"[{budget['interval'][0]:.4f}, {budget['interval'][1]:.4f}]"
    )
    if arm.config.optim.rule:
      arm.display.say(told_cost(arm.config, budget["N"], budget["D"]))
    for cell, why in budget["passed_over"].items():
      arm.display.say(f"{cell} would be nearer to what was predicted, but cannot be trained: {why}")
  for refused in sealed["refused"]:
    arm.display.say(
      f"not sealed: at {refused['C']:.2e} FLOPs, {refused['times']:.3g} times the largest fitted "
      f"budget: {refused['reason']}"
    )
  arm.display.say(f"sealed sha256:{sealed['sha256']}")
  return sealed, heldout


def write_report(arm: Arm) -> None:
  """Draws the figures, closes the accounts, and writes the report."""
  arm.clock("report")
  document.draw(arm.workdir)
  runs = store.with_trunks(arm.cells)
  own = [run for run in runs if not store.folder(arm.workdir, run).is_symlink()]
  arm.head["seconds"] = round(arm.clock.finish(store.outcome(arm.workdir, run) for run in own), 1)
  store.write_sweep(arm.workdir, arm.head, arm.cells)
  document.write(arm.workdir, redraw=False)
