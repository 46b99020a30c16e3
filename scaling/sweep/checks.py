"""Refuses a sweep that cannot be run, or would waste compute."""

import itertools
import math
from collections.abc import Iterable

from ml_collections import ConfigDict

from configs import base, ladders
from configs.errors import ConfigError, UserError
from model import sharding
from scaling.laws import fit
from scaling.laws.forms import FORMS
from scaling.laws.tables import read
from scaling.sweep import plan
from train import record, transfer
from train.data.dataset import TokenData
from train.evaluate import open_sets
from train.system import process


def check_sweep(config: ConfigDict, tokens: TokenData) -> None:
  """Raises ConfigError where the sweep cannot be run on this text, or could not identify a law."""
  check_sweep_config(config)
  open_sets(config, tokens)
  s = config.sweep
  cells = plan.design_cells(config, tokens.vocab_size)
  if not cells:
    raise ConfigError(
      f"sweep.min_tokens_per_param={s.min_tokens_per_param}, sweep.max_tokens_per_param="
      f"{s.max_tokens_per_param}, sweep.min_tokens={s.min_tokens}: leave no cell; widen them, or "
      "change sizes and budgets"
    )
  probes = (
    plan.probe_cells(config, tokens.vocab_size, size, s.probe_factors) for size in s.probe_sizes
  )
  names: set[str] = set()
  for cell in itertools.chain(cells, *probes):
    if cell.id in names:
      field = "probe_factors" if cell.kind == "probe" else _axis(config)
      raise ConfigError(
        f"sweep.{field}={tuple(s[field])}: two of them are one cell, {cell.id}; keep them a "
        "percent apart, or leave one out"
      )
    names.add(cell.id)
    if cell.steps < plan.MIN_STEPS:
      remedy = "sweep.probe_tokens" if cell.kind == "probe" else "compute, a smaller size"
      raise ConfigError(
        f"sweep: {cell.id} would train for {cell.steps} steps of {cell.tokens_per_step} tokens; "
        f"give it more {remedy}, or a smaller data.batch_size ({plan.MIN_STEPS} steps at least)"
      )
    try:
      record.check_run(plan.run_config(config, cell), tokens)
    except UserError as error:
      raise ConfigError(f"{error} ({cell.id})") from None
  free = fit.count_free(FORMS[config.fit.form], config.fit)
  if len(cells) <= free:
    raise ConfigError(
      f"fit.form={config.fit.form}: {len(cells)} fit cells for {free} parameters; add to "
      f"sweep.sizes or sweep.{_axis(config)}"
    )


def check_parents(config: ConfigDict, tokens: TokenData) -> None:
  """Raises UserError where a size cannot start from its run of `train.warm_start`."""
  data = {"tokenizer": tokens.tokenizer_hash, "vocab_size": tokens.vocab_size}
  if config.train.warm_start:
    for size in {*config.sweep.sizes, *config.sweep.probe_sizes}:
      transfer.find(plan.at_size(config, size), data)


def check_heldout(config: ConfigDict, tokens: TokenData) -> list[plan.Heldout]:
  """Returns the held-out budgets that no run could test, wherever N* is; ConfigError: all are."""
  corpus = tokens.vocab_size, tokens.train_token_count
  cells = plan.design_cells(config, tokens.vocab_size)
  budgets = plan.heldout(config, corpus, cells, lambda _: cells[0].N)
  return [budget for budget in budgets if budget.reason]


def check_sweep_config(config: ConfigDict) -> None:
  """Raises ConfigError where a sweep cannot be run, whatever the text."""
  check_sweep_fields(config)
  for name in ("width", "heads"):
    if value := config.model[name]:
      raise ConfigError(
        f"model.{name}={value}: a sweep takes its shapes from model.ladder; leave it at 0"
      )
  if config.train.warm_start and "{size}" not in config.train.warm_start:
    raise ConfigError(
      f"train.warm_start={config.train.warm_start}: one parent has one size, and a sweep several; "
      "train one of each, and write {size} in their folders' place, as in runs/parents/{size}"
    )
  fit.check_options(config.fit)
  read.check_counts(config.fit.params, config.fit.flops)
  if config.fit.loss and config.fit.loss not in config.data.evaluate:
    raise ConfigError(
      f"fit.loss={config.fit.loss!r}: no set of data.evaluate; choose one of "
      f"{', '.join(map(repr, ['', *config.data.evaluate]))}"
    )
  record.check_config(plan.at_size(config, config.sweep.sizes[0]))
  if not process.has_accelerator():  # each worker then has one device; elsewhere the workers look
    sharding.check_batches(config, 1)


def check_sweep_fields(config: ConfigDict) -> None:
  """Raises ConfigError where a field of `config.sweep` cannot be used, or wastes compute."""
  s, axis = config.sweep, _axis(config)
  base.check_section("sweep", s)
  for name in ("sizes", axis, "seed_sizes", "seed_budgets", "probe_sizes"):
    again = [value for i, value in enumerate(s[name]) if value in s[name][:i]]
    if again:
      raise ConfigError(
        f"sweep.{name}={tuple(s[name])}: {again[0]} comes twice (a flag that is given again adds "
        "to the first); name it once"
      )
  if len(s.sizes) < 2 or len(s[axis]) < 2:
    raise ConfigError(
      f"sweep.sizes={tuple(s.sizes)}, sweep.{axis}={tuple(s[axis])}: a law in N and D needs at "
      "least two of each"
    )
  for name, known in (
    ("seed_sizes", s.sizes),
    ("seed_budgets", s.budgets if s.seed_sizes else s.seed_budgets),  # without sizes: of none
    ("probe_sizes", ladders.rungs(config.model.ladder)),
  ):
    unknown = [value for value in s[name] if value not in known]
    if unknown:
      raise ConfigError(
        f"sweep.{name}={tuple(s[name])}: {unknown[0]} is not among {sorted(known)}; set "
        f"--config.sweep.{name}, too, or leave it empty: --config.sweep.{name}='()'"
      )
  ascending = list(s.probe_factors) == sorted(set(s.probe_factors))
  steps = itertools.pairwise((0.99, *s.heldout_budgets))
  for name, holds, need in (
    (axis, _positive(s[axis]), "be positive, every value of it"),
    ("heldout_budgets", s.heldout_budgets and all(1.01 * x < y < math.inf for x, y in steps),
     "name ascending multiples of the largest fitted budget, at least 1, as (3, 10)"),
    ("heldout_sizes", _positive(s.heldout_sizes), "name positive multiples of N*, as (0.5, 1, 2)"),
    ("probe_tokens", not s.probe_sizes or _positive([s.probe_tokens]), "be positive"),
    ("probe_factors", not s.probe_sizes or (ascending and _positive(s.probe_factors)),
     "name positive multiples of a learning rate in ascending order, as (0.5, 1, 2)"),
  ):  # fmt: skip
    if not holds:
      raise ConfigError(f"sweep.{name}={s[name]}: must {need}")
  if config.train.stop_at_step:
    raise ConfigError(
      f"train.stop_at_step={config.train.stop_at_step}: a sweep's runs go to their ends; leave it "
      "at 0"
    )
  if s.probe_sizes and config.optim.lr:
    raise ConfigError(
      f"optim.lr={config.optim.lr}: a sweep with probes takes its learning rates from them; "
      "leave it at 0, or set sweep.probe_sizes=() to train every size at this rate"
    )


def _axis(config: ConfigDict) -> str:
  return "budgets" if config.sweep.design == "isoflop" else "token_counts"


def _positive(values: Iterable[float]) -> bool:
  """Returns whether there are values, and all are positive numbers."""
  values = list(values)
  return bool(values) and all(0 < value < math.inf for value in values)
