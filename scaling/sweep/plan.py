"""Plans a sweep as a list of cells, each one training run.

A size is trained once at a constant learning rate, the trunk; every token count of that size is a
cooldown branched from a checkpoint of it. A cell is charged what it would have cost alone (C);
what is spent on it (`flops_spent`) is its cooldown and the piece of the trunk that no shorter cell
needs.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import NamedTuple, cast

from ml_collections import ConfigDict

from configs import ladders
from configs.errors import ConfigError, UserError
from model import accounting
from scaling.tune import rule
from train import optim, record, transfer
from train.data.dataset import TokenData
from train.objectives import registry

MIN_STEPS = 20  # of a run
Corpus = tuple[int, int]  # size of the vocabulary, number of training tokens


@dataclasses.dataclass(frozen=True)
class Cell:
  """One planned run."""

  id: str
  kind: str  # probe | fit | heldout
  size: int  # rung of the ladder
  seed: int
  lr: float
  steps: int
  tokens_per_step: int
  flops_per_token: float
  groups: dict[str, int]  # parameters by group
  width: int
  depth: int
  N: int  # body + head
  budget: float | None  # the compute asked for, as `fit.flops` counts it [FLOPs]; None in a grid
  trunk: str | None  # id of the trunk it is branched from
  branch_step: int  # step of the trunk at which it begins
  flops_spent: float
  predicted_per_token: float = 1.0  # tokens predicted per token of text
  weight_decay: float | None = None  # None: that of the config

  @property
  def D(self) -> int:
    """Tokens of text processed."""
    return self.steps * self.tokens_per_step

  @property
  def D_predicted(self) -> int:
    """Tokens predicted."""
    return round(self.D * self.predicted_per_token)

  def params(self, convention: str) -> int:
    """Returns N as `convention` (`fit.params`) counts it."""
    return accounting.n_params(self.groups, convention)

  @property
  def C(self) -> float:
    """Exact training FLOPs of the run alone."""
    return self.flops_per_token * self.D

  @property
  def C_6nd(self) -> float:
    """6 N D [FLOPs]."""
    return 6.0 * self.N * self.D


@dataclasses.dataclass(frozen=True)
class Trunk:
  """The constant-rate run that the cells of one size and seed share."""

  id: str
  size: int
  seed: int
  lr: float
  steps: int
  tokens_per_step: int
  keep_steps: tuple[int, ...]
  flops_per_token: float


def at_size(config: ConfigDict, size: int) -> ConfigDict:
  """Resolves the sweep's config with the model at a rung of the ladder."""
  config = config.copy_and_resolve_references()
  config.model.size = size
  return ladders.resolve(config)


def _cell(
  config: ConfigDict,
  vocab_size: int,
  kind: str,
  size: int,
  *,
  tokens: float | None = None,
  budget: float | None = None,
  seed: int | None = None,
  lr_factor: float = 1.0,
  batch_size: int = 0,
  weight_decay: float | None = None,
  suffix: str = "",
) -> Cell:
  sized = at_size(config, size)
  sized.data.batch_size = batch_size or sized.data.batch_size
  seed = config.seed if seed is None else seed
  geometry = record.size_of(sized, vocab_size)
  counted = accounting.n_params(geometry.groups, config.fit.params)
  per_token = geometry.flops_per_token if config.fit.flops == "exact" else 6.0 * counted
  if tokens is None:
    assert budget is not None
    tokens = budget / per_token
  lr = lr_factor * optim.base_learning_rate(config.optim, geometry.n_params)
  if config.optim.rule and not batch_size:
    lr, batch_size, weight_decay = rule.by_rule(sized, geometry.n_params, tokens)
    sized.data.batch_size = batch_size
    geometry = record.size_of(sized, vocab_size)
  steps = max(1, round(tokens / geometry.tokens_per_step))
  label = (f"c{budget:.2e}" if budget else f"d{tokens:.2e}").replace("e+", "e")
  return Cell(
    id=f"{kind}_s{size:02d}_{label}{suffix}_seed{seed}",
    kind=kind,
    size=size,
    seed=seed,
    lr=lr,
    steps=steps,
    tokens_per_step=geometry.tokens_per_step,
    flops_per_token=geometry.flops_per_token,
    groups=geometry.groups,
    width=sized.model.width,
    depth=sized.model.depth,
    N=geometry.n_params,
    budget=budget,
    trunk=None,
    branch_step=0,
    flops_spent=geometry.flops_per_token * steps * geometry.tokens_per_step,
    predicted_per_token=geometry.predicted_per_token,
    weight_decay=weight_decay,
  )


def probe_cells(
  config: ConfigDict, vocab_size: int, size: int, factors: Sequence[float]
) -> list[Cell]:
  """Plans the learning-rate probe of one size: one cell per multiple of the rule's rate."""
  tokens = config.sweep.probe_tokens
  return [
    _cell(config, vocab_size, "probe", size, tokens=tokens, lr_factor=f, suffix=f"_lr{f:g}")
    for f in factors
  ]


def tune_cells(
  config: ConfigDict, vocab_size: int, size: int, tokens: float, batch_size: int, rate: float,
  decay: float = 1.0,
) -> list[Cell]:  # fmt: skip
  """Plans a run of `isoflop tune` with each of its seeds.

  `rate` is a multiple of the rule's rate, which is that of `data.batch_size` and goes as the square
  root of the batch; `decay` is one of `optim.weight_decay`.
  """
  scale, suffix = math.sqrt(batch_size / config.data.batch_size), f"_b{batch_size}_lr{rate:g}"
  if decay != 1:
    suffix += f"_wd{decay:g}"
  return [
    _cell(
      config, vocab_size, "probe", size, tokens=tokens, seed=config.seed + i,
      lr_factor=scale * rate, batch_size=batch_size,
      weight_decay=None if decay == 1 else decay * config.optim.weight_decay, suffix=suffix,
    )
    for i in range(config.tune.seeds)
  ]  # fmt: skip


def design_cells(config: ConfigDict, vocab_size: int) -> list[Cell]:
  """Plans the cells of the design, to which the law is fitted, branched from trunks if so asked.

  With `optim.rule` they are not: each D has a rate and a batch of its own, so none is a trunk's.
  """
  s = config.sweep
  axis, values = _axis(config)
  cells = []
  for size in s.sizes:
    for i in range(s.seeds if size in s.seed_sizes else 1):
      repeated = s.seed_budgets if i and s.design == "isoflop" else ()
      cells += [
        _cell(config, vocab_size, "fit", size, seed=config.seed + i, **{axis: value})
        for value in repeated or values
      ]
  cells = [
    c for c in cells
    if s.min_tokens_per_param <= c.D / c.N <= s.max_tokens_per_param and s.min_tokens <= c.D
  ]  # fmt: skip
  branches = s.trunk and config.optim.schedule == "wsd" and not config.optim.rule
  return _branch(config, cells) if branches else cells


def _axis(config: ConfigDict) -> tuple[str, tuple]:
  """Returns the second axis of the design, as an argument of `_cell`, and its values."""
  isoflop = config.sweep.design == "isoflop"
  return ("budget", config.sweep.budgets) if isoflop else ("tokens", config.sweep.token_counts)


def next_cells(config: ConfigDict, corpus: Corpus, cells: Sequence[Cell]) -> list[Cell]:
  """Plans the cells that a sweep could train beside its fit cells, each without a trunk.

  They are the sweep's budgets (or token counts) at every rung from one below its smallest to one
  above its largest: no shorter than its shortest run, within its limits of tokens per parameter,
  and such as can be trained (see `refusal`). Where the sweep has the cell already, it is repeated
  with another seed.
  """
  s = config.sweep
  ladder, sizes = sorted(ladders.rungs(config.model.ladder)), {cell.size for cell in cells}
  low, high = ladder.index(min(sizes)), ladder.index(max(sizes))
  axis, values = _axis(config)
  known, shortest = {cell.id for cell in cells}, min(cell.D for cell in cells)
  planned = []
  for size in ladder[max(0, low - 1) : high + 2]:
    for value in values:
      seeds = itertools.count(config.seed)
      repeats = (_cell(config, corpus[0], "fit", size, seed=i, **{axis: value}) for i in seeds)
      cell = next(cell for cell in repeats if cell.id not in known)
      if (
        s.min_tokens_per_param <= cell.D / cell.N <= s.max_tokens_per_param
        and max(shortest, MIN_STEPS * cell.tokens_per_step) <= cell.D
        and not refusal(config, cell, corpus)
      ):
        planned.append(cell)
  return planned


def _branch(config: ConfigDict, cells: Iterable[Cell]) -> list[Cell]:
  """Branches each cell from the trunk of its size and seed, where its cooldown begins."""
  branched: list[Cell] = []
  trunk_steps: dict[str, int] = {}
  for cell in sorted(cells, key=lambda c: (c.size, c.seed, c.steps)):
    trunk = f"trunk_s{cell.size:02d}_seed{cell.seed}"
    start = optim.cooldown_start(config.optim, cell.steps)
    new_steps = cell.steps - trunk_steps.get(trunk, 0)
    trunk_steps[trunk] = start
    spent = new_steps * cell.tokens_per_step * cell.flops_per_token
    branched.append(dataclasses.replace(cell, trunk=trunk, branch_step=start, flops_spent=spent))
  return branched


def trunks(cells: Iterable[Cell]) -> list[Trunk]:
  """Returns the trunks that these cells are branched from."""
  members: dict[str, list[Cell]] = {}
  for cell in cells:
    if cell.trunk:
      members.setdefault(cell.trunk, []).append(cell)
  result = []
  for name, group in members.items():
    keep = tuple(sorted({cell.branch_step for cell in group}))
    shared = ("size", "seed", "lr", "tokens_per_step", "flops_per_token")
    fields = {field: getattr(group[0], field) for field in shared}
    result.append(Trunk(id=name, steps=keep[-1], keep_steps=keep, **fields))
  return result


class Heldout(NamedTuple):
  """A held-out budget, and the cells that are to test what is predicted there."""

  C: float  # [FLOPs]
  times: float  # the largest fitted budget
  cells: list[Cell]  # one of each size; `with_seeds` repeats them
  passed_over: dict[str, str]  # why others that are nearer to a multiple of N* cannot be trained
  reason: str = ""  # why nothing is predicted, or nothing can be tested, at this budget


def heldout(
  config: ConfigDict, corpus: Corpus, cells: Sequence[Cell], n_opt: Callable[[float], float]
) -> list[Heldout]:
  """Plans the held-out budgets of a sweep of these cells.

  One has no cells where `n_opt`, which gives N* at a budget, refuses it, or too few can be trained.
  Where none has any, the reason of the nearest is raised.
  """
  planned, errors = [], []
  for C, times in zip(heldout_budgets(config, cells), config.sweep.heldout_budgets, strict=True):
    try:
      planned.append(Heldout(C, times, *heldout_cells(config, corpus, n_opt(C), C)))
    except UserError as error:
      errors.append(error)
      planned.append(Heldout(C, times, [], {}, str(error)))
  if len(errors) == len(planned):
    raise errors[0]
  return planned


def heldout_budgets(config: ConfigDict, cells: Sequence[Cell]) -> list[float]:
  """Returns the held-out budgets, multiples of the largest of these cells [FLOPs].

  Its compute is that of `fit.flops`.
  """
  exact, counted = config.fit.flops == "exact", config.fit.params
  largest = max(c.budget or (c.C if exact else 6.0 * c.params(counted) * c.D) for c in cells)
  return [times * largest for times in config.sweep.heldout_budgets]


def heldout_options(config: ConfigDict, vocab_size: int, budget: float) -> list[Cell]:
  """Plans a cell of every rung at the held-out budget [FLOPs]."""
  rungs = ladders.rungs(config.model.ladder)
  return [_cell(config, vocab_size, "heldout", size, budget=budget) for size in rungs]


def with_seeds(config: ConfigDict, cells: Iterable[Cell]) -> list[Cell]:
  """Repeats held-out cells with each of their seeds."""
  return [
    dataclasses.replace(cell, id=f"{cell.id.rpartition('_seed')[0]}_seed{seed}", seed=seed)
    for cell in cells
    for seed in range(config.seed, config.seed + config.sweep.heldout_seeds)
  ]


def sealed_cells(config: ConfigDict, vocab_size: int, sealed: dict) -> list[Cell]:
  """Returns the held-out cells of a sealed prediction, whatever the law says today."""
  options = (heldout_options(config, vocab_size, budget["C"]) for budget in sealed["budgets"])
  cells = {cell.id: cell for cell in with_seeds(config, itertools.chain(*options))}
  return [cells[predicted["cell"]] for predicted in sealed["cells"]]


def heldout_cells(
  config: ConfigDict, corpus: Corpus, n_opt: float, budget: float
) -> tuple[list[Cell], dict[str, str]]:
  """Plans the held-out cells: the rungs nearest to multiples of N*, at a budget [FLOPs].

  Also returns why others that are nearer to a multiple cannot be trained, by id. N* (`n_opt`) is
  counted as `fit.params` says.
  """
  multiples = config.sweep.heldout_sizes
  options = heldout_options(config, corpus[0], budget)
  reasons = {cell.id: refusal(config, cell, corpus) for cell in options}
  free = [cell for cell in options if not reasons[cell.id]]
  if len(free) < len(multiples):
    why = next(reason for reason in reasons.values() if reason)
    raise ConfigError(
      f"sweep.heldout_sizes={tuple(multiples)}: at {budget:.3g} FLOPs {len(free)} sizes of "
      f"model.ladder={config.model.ladder!r} can be trained, {len(multiples)} are needed ({why}); "
      "raise data.max_epochs, which a begun sweep may, or begin one with a smaller held-out budget"
      + ("; or train the parents that are missing" if config.train.warm_start else "")
    )
  cells: list[Cell] = []
  passed_over: dict[str, str] = {}
  for multiple in multiples:
    n = multiple * n_opt
    distance = {c.id: abs(math.log(c.params(config.fit.params) / n)) for c in options}
    nearest = min(free, key=lambda cell: distance[cell.id])
    free.remove(nearest)
    cells.append(nearest)
    nearer = [name for name in reasons if reasons[name] and distance[name] < distance[nearest.id]]
    passed_over |= {name: reasons[name] for name in nearer}
  return cells, passed_over


def refusal(config: ConfigDict, cell: Cell, corpus: Corpus) -> str:
  """Returns why a cell cannot be trained on a corpus, or lacks a parent; "": it can."""
  vocab_size, train_tokens = corpus
  tokens = SimpleNamespace(
    source=config.data.source,
    vocab_size=vocab_size,
    train_token_count=train_tokens,
    validation_token_count=config.train.eval_tokens,  # `checks.check_sweep` compares the real ones
  )
  run = run_config(config, cell)
  try:
    record.check_run(run, cast(TokenData, tokens))
    if run.train.warm_start:  # `checks.check_parents` compares tokenizers
      transfer.find(run, {"vocab_size": vocab_size})
  except UserError as error:
    return str(error)
  return ""


def run_config(config: ConfigDict, run: Cell | Trunk) -> ConfigDict:
  """Makes the training config of a cell or a trunk, without the folder it is branched from."""
  result = at_size(config, run.size)
  result.seed, result.optim.lr = run.seed, run.lr
  batch_size, each = config.data.batch_size, registry.tokens_per_step(config)
  result.data.batch_size = batch_size * run.tokens_per_step // each
  result.train.tokens = run.steps * run.tokens_per_step
  if isinstance(run, Cell) and run.weight_decay is not None:
    result.optim.weight_decay = run.weight_decay
  if isinstance(run, Trunk):
    result.optim.schedule = "constant"
    result.train.keep_steps = run.keep_steps
  return result
