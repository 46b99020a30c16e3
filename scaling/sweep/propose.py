"""Proposes a sweep for a compute: of designs that cost as much, the one that should tell N* best.

Each candidate is simulated: laws are drawn from a prior, losses of its cells from each law, with
the scatter of runs of that compute, and Chinchilla's form is fitted to them. The one whose N* at
the farthest held-out budget errs least is proposed; a few whole fits say which intervals to expect.

The prior is what is known before any run: exponents of .25 to .5, as published fits have; an
optimum at `fit.target_tokens_per_param` tokens per parameter for the whole compute, within a factor
of 4 either way (90 %); a loss of 3 nats there, of which 40 to 80 % is the floor.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs import ladders
from configs.errors import ConfigError, UsageError, UserError
from scaling.laws import chinchilla, fit, questions, solve
from scaling.laws.chinchilla import Chinchilla
from scaling.laws.fitted import problem_of
from scaling.laws.intervals import predictions
from scaling.laws.tables.runs import Runs, make_runs
from scaling.progress import Display
from scaling.sweep import checks, design, plan
from scaling.sweep.plan import Cell
from train import record
from train.data.dataset import TokenData
from train.record import Size

BUDGETS, SPANS = (3, 4, 5), (5.0, 10.0)  # of a design: budgets, and the greatest over the least
SIZES, REACHES = (5, 7), (2.0, 3.0)  # sizes, and how far beyond the optima the outermost lie
PROBED = 0.05  # of the compute is for the probes of the learning rate
FEWEST = 6  # fitted runs
LAWS, FITTED = 24, 8  # simulated for each design; and with intervals, for the one proposed
BOOTSTRAPS = 200
WORST = math.log(30)  # an N* that is farther off counts as this
ROUNDS = 5  # of scaling a design to its compute
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
FIXED_SECONDS = 35.0  # of a sweep's time: start, text, compilation, report (docs/benchmarks.md)

Law = tuple[Chinchilla, np.random.Generator]
Cost = Callable[[float, float], float]  # of a run, from its FLOPs and those of a step
Sizes = dict[int, Size]


class Proposal(NamedTuple):
  """A sweep, and what it is expected to reach at its farthest held-out budget."""

  config: ConfigDict
  cells: list[Cell]  # to which the law will be fitted
  cost: float  # in the unit of the compute that was asked for
  C: float  # that budget [FLOPs]
  error: float  # root mean square error of log N* there
  factor: float  # its interval of N* ends so many times above and below
  loss: float  # and that of the loss so far above and below [share of it]
  undetermined: float  # share of simulated sweeps that determine no optimum there
  epochs: float  # of its longest fitted run


def parse_compute(text: str) -> tuple[float, float]:
  """Parses "2h", "30min", "1e15" or "0.5PFs-days"; returns FLOPs and seconds, of which one is 0."""
  if match := re.fullmatch(r"\s*(\d+\.?\d*)\s*(s|min|h)\s*", text):
    seconds = float(match[1]) * UNITS[match[2]]
    if seconds < 2 * FIXED_SECONDS:
      raise UsageError(f"compute={text}: too little for a sweep; allow 2min or more")
    return 0.0, seconds
  if not (flops := questions.parse_flops(text, "compute")):
    raise UsageError("--compute is missing: write a time as 2h or 30min, or FLOPs as 1e15")
  return flops, 0.0


def propose(
  config: ConfigDict, tokens: TokenData, compute: float, cost: Cost, display: Display
) -> Proposal:
  """Proposes a sweep of what trains as `config` does, for a compute in the unit of `cost`."""
  sizes = known_sizes(config, tokens.vocab_size)
  shapes = list(itertools.product(BUDGETS, SPANS, SIZES, REACHES))
  candidates: list[tuple[float, ConfigDict, list[Cell]]] = []
  epochs: list[float] = []
  for i, shape in enumerate(shapes):
    display.show(f"simulating design {i + 1} of {len(shapes)}")
    candidate, cells = scaled(config, tokens.vocab_size, sizes, shape, compute, cost)
    epochs.append(max((cell.D for cell in cells), default=0) / tokens.train_token_count)
    if epochs[-1] <= config.data.max_epochs and len(cells) >= FEWEST:
      candidates.append((expected_error(candidate, cells), candidate, cells))
  if min(epochs) > config.data.max_epochs:
    raise ConfigError(
      f"data.source={config.data.source}: its {tokens.train_token_count:,} tokens would be read "
      f"{min(epochs):.2g} times (data.max_epochs={config.data.max_epochs:g}); find more text, or "
      "allow less compute"
    )
  reason = "too little compute for six runs; allow more, or a smaller data.batch_size"
  for error, candidate, cells in sorted(candidates, key=lambda candidate: candidate[0]):
    try:
      checks.check_sweep(candidate, tokens)
      checks.check_heldout(candidate, tokens)
    except UserError as problem:
      reason = str(problem)
      continue
    display.show("fitting simulated sweeps of the best design")
    return Proposal(
      candidate,
      cells,
      total(candidate, cells, sizes, cost),
      plan.heldout_budgets(candidate, cells)[-1],
      error,
      *expected_intervals(candidate, cells),
      max(cell.D for cell in cells) / tokens.train_token_count,
    )
  raise ConfigError(f"no design can be trained: {reason}")


# ------------------------------------------------------------------------------------------ designs


def known_sizes(config: ConfigDict, vocab_size: int) -> Sizes:
  """Returns parameters and FLOPs of each rung whose body is at least as large as its embedding."""
  rungs = ladders.rungs(config.model.ladder)
  sizes = {size: record.size_of(plan.at_size(config, size), vocab_size) for size in rungs}
  return {k: x for k, x in sizes.items() if x.groups["body"] >= x.groups["embedding"]}


def presumed(config: ConfigDict, sizes: Sizes, budget: float) -> Size:
  """Returns the rung nearest to the presumed tokens per parameter at a budget [FLOPs]."""

  def distance(size: Size) -> float:
    tokens = config.fit.target_tokens_per_param * size.n_params
    return abs(math.log(budget / (size.flops_per_token * tokens)))

  return min(sizes.values(), key=distance)


def total(config: ConfigDict, cells: Sequence[Cell], sizes: Sizes, cost: Cost) -> float:
  """Returns the cost of all that a sweep trains: probes, fit and held-out cells."""
  s = config.sweep
  runs = [(cell.flops_spent, cell.flops_per_token * cell.tokens_per_step) for cell in cells]
  for size in s.probe_sizes:
    flops = sizes[size].flops_per_token
    step = flops * sizes[size].tokens_per_step
    runs += [(flops * s.probe_tokens, step)] * len(s.probe_factors)
  for budget in plan.heldout_budgets(config, cells):
    held_out = presumed(config, sizes, budget)
    step = held_out.flops_per_token * held_out.tokens_per_step
    runs += [(budget, step)] * (len(s.heldout_sizes) * s.heldout_seeds)
  return sum(cost(*run) for run in runs)


def flops_of(flops: float, _: float) -> float:
  """Counts a run's FLOPs."""
  return flops


def seconds_of(config: ConfigDict, device: str, mfu: float, vocab_size: int) -> Cost:
  """Returns what estimates a run's time, its share of the workers' [s]."""
  steps = {
    x.flops_per_token * x.tokens_per_step: plan.at_size(config, size)
    for size, x in known_sizes(config, vocab_size).items()
  }
  of_step, workers = design.step_time_of(config, device, mfu, steps)
  if not of_step:
    raise UsageError(
      "--compute: steps here are too long to be timed; name a device, as --device=h100"
    )
  return lambda flops, step: (
    (flops / step * of_step.seconds(step) + design.SECONDS_PER_RUN) / workers
  )


def scaled(
  config: ConfigDict,
  vocab_size: int,
  sizes: Sizes,
  shape: tuple[int, float, int, float],
  compute: float,
  cost: Cost,
) -> tuple[ConfigDict, list[Cell]]:
  """Scales a design of a shape until it costs `compute`."""
  middle = sorted(sizes)[len(sizes) // 2]
  step = sizes[middle].flops_per_token * sizes[middle].tokens_per_step
  largest = 0.1 * compute / cost(1e3 * step, step) * 1e3 * step
  for _ in range(ROUNDS):
    candidate = designed(config, sizes, shape, largest)
    cells = plan.design_cells(candidate, vocab_size)
    spent = total(candidate, cells, sizes, cost)
    if abs(spent / compute - 1) < 0.02:
      break
    largest *= compute / spent
  return candidate, cells


def designed(
  config: ConfigDict, sizes: Sizes, shape: tuple[int, float, int, float], largest: float
) -> ConfigDict:
  """Makes the config of a design whose largest fitted budget is `largest` [FLOPs]."""
  count, span, many, reach = shape
  ratio = config.fit.target_tokens_per_param

  def nearest(n: float) -> int:
    return min(sizes, key=lambda size: abs(math.log(sizes[size].n_params / n)))

  c = config.copy_and_resolve_references()
  s = c.sweep
  s.design = "isoflop"
  s.budgets = tuple(float(f"{b:.3g}") for b in np.geomspace(largest / span, largest, count))
  low, high = (presumed(c, sizes, budget).n_params for budget in (s.budgets[0], s.budgets[-1]))
  s.sizes = tuple(sorted({nearest(n) for n in np.geomspace(low / reach, high * reach, many)}))
  # At a budget D / N falls as N^-2; 1.3 is for a rung's distance.
  s.min_tokens_per_param = round(ratio / (1.3 * reach) ** 2, 2)
  s.max_tokens_per_param = round(ratio * (1.3 * reach) ** 2, 2)
  near = sorted(s.sizes, key=lambda size: abs(math.log(sizes[size].n_params / low)))
  s.seed_sizes, s.seed_budgets = tuple(sorted(near[:2])), s.budgets[:1]
  s.probe_sizes = tuple(sorted({nearest(low), nearest(high)}))
  flops_per_token = sum(sizes[size].flops_per_token for size in s.probe_sizes)
  whole = largest * (count + len(s.heldout_sizes) * s.heldout_seeds * sum(s.heldout_budgets))
  s.probe_tokens = round(PROBED * whole / (flops_per_token * len(s.probe_factors)))
  shortest = min(s.budgets[0] / sizes[size].flops_per_token for size in s.sizes)
  c.optim.warmup_tokens = min(c.optim.warmup_tokens, round(shortest / 20))
  return c


# --------------------------------------------------------------------------------------- simulation


def laws(config: ConfigDict, cells: Sequence[Cell], count: int) -> Iterator[Law]:
  """Draws laws from the prior, each with the generator of its runs' scatter."""
  C = plan.heldout_budgets(config, cells)[-1]
  per_token = chinchilla.estimate_compute(*_arrays(cells, config.fit.params))
  for i in range(count):
    rng = np.random.default_rng((i, 22))
    alpha, beta = rng.uniform(0.25, 0.5, 2)
    ratio = config.fit.target_tokens_per_param * math.exp(rng.normal(0, math.log(4) / 1.645))
    N = float(per_token.params(C, ratio))
    D, E = C / float(per_token.flops_per_token(N)), 3 * rng.uniform(0.4, 0.8)
    share, slope = 3 - E, float(per_token.elasticity(N)) * beta  # alpha A / N^alpha = slope B / D^b
    A, B = share * slope / (alpha + slope), share * alpha / (alpha + slope)
    values = (E, A * N**alpha, B * D**beta, alpha, beta)
    yield Chinchilla(*map(np.asarray, values)), rng


def scatter(C: np.ndarray) -> np.ndarray:
  """Returns how far runs lie off a smooth law [log loss]: .8 % at 1e12 FLOPs, .2 % at 1e18.

  Seeds account for half of it at 1e12 (docs/coverage.md); the other half is that of sizes whose
  shapes, rates and lengths are not all equally good.
  """
  return np.maximum(0.002, 0.008 * (C / 1e12) ** -0.1)


def simulated(config: ConfigDict, cells: Sequence[Cell], law: Law) -> Runs:
  """Makes runs of the cells whose losses are a law's, with their scatter."""
  truth, rng = law
  N, D, C = _arrays(cells, config.fit.params)
  loss = chinchilla.loss(truth, N, D) * np.exp(scatter(C) * rng.normal(size=len(N)))
  trunks = np.array([cell.trunk or cell.id for cell in cells])
  return make_runs(N, D, loss, C, [cell.id for cell in cells], labels={"trunk": trunks})


def _arrays(cells: Sequence[Cell], convention: str) -> tuple[np.ndarray, ...]:
  rows = [(cell.params(convention), cell.D, cell.C) for cell in cells]
  return tuple(np.array(rows, float).T)


def expected_error(config: ConfigDict, cells: Sequence[Cell]) -> float:
  """Returns the root mean square error of log N* at the farthest held-out budget."""
  C, squares = plan.heldout_budgets(config, cells)[-1], []
  for law in laws(config, cells, LAWS):
    runs = simulated(config, cells, law)
    problem = problem_of(runs, config.fit)
    best = solve.search(problem, problem.huber(config.fit.delta))[1]
    fitted = Chinchilla(**problem.natural(best.theta[0]))
    compute = chinchilla.estimate_compute(runs.N, runs.D, runs.C)
    N, truth = (float(chinchilla.optimum(each, C, compute).N) for each in (fitted, law[0]))
    squares.append(min(abs(math.log(N) - math.log(truth)), WORST) ** 2)
  return math.sqrt(np.mean(squares))


def expected_intervals(config: ConfigDict, cells: Sequence[Cell]) -> tuple[float, float, float]:
  """Fits simulated sweeps as a sweep does; returns the `factor`, `loss` and `undetermined`."""
  C, options = plan.heldout_budgets(config, cells)[-1], config.fit.copy_and_resolve_references()
  options.bootstraps = BOOTSTRAPS
  factors, losses = [], []
  for law in laws(config, cells, FITTED):
    try:
      fitted = fit.fit_runs(simulated(config, cells, law), options)
    except UserError:
      continue
    if not predictions.undetermined(fitted, C):
      row = predictions.optimum(fitted, C)
      (low, high), ends = row["N_opt_interval"], row["loss_interval"]
      factors.append(math.sqrt(high / low))
      losses.append(0.5 * (ends[1] - ends[0]) / row["loss"])
  factor, loss = (float(np.median(values or [math.inf])) for values in (factors, losses))
  return factor, loss, 1 - len(factors) / FITTED
