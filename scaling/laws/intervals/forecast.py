"""What a law is worth beyond its runs: fits of the smaller budgets, asked for the larger ones."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from configs.errors import UserError
from scaling.laws import solve
from scaling.laws.forms import MAD
from scaling.laws.intervals.errors import Errors, Line, Scale, off_edge, posterior
from scaling.laws.law import Law
from scaling.laws.tables.budgets import SAME_BUDGET, check_enough, cuts, profiles
from scaling.laws.tables.runs import Runs

OUTLIER = 10.0  # robust standard deviations off the law: such a run says nothing of its form
NEAR = 6.0  # times the size of the lowest run of a profile: others do not shape its minimum
STEP = 1e-4  # of a parameter, for a gradient
PLACE_SHARE = 0.5  # of an observation of N*: a form that bends away errs to one side at all budgets
LOSS_SHARE = 2.0  # the loss of a budget's runs: a form errs otherwise at its small and large sizes
FEWEST_FORECASTS = 3  # of N*, to choose an estimator by
BETTER = 2 / 3  # of the law's error: below it the line through the minima answers for N*
# What a law's errors are about where its own runs tell little, in logs. In six public collections
# of isoFLOP runs (docs/coverage.md) N* was off by .03 to .25 within and by .05 to .3 per e-fold
# beyond, the loss by .001 to .04 per e-fold.
TYPICAL_PLACE, TYPICAL_PLACE_GROWTH = 0.1, 0.2
TYPICAL_LOSS, TYPICAL_LOSS_GROWTH = 0.002, 0.008


class Minimum(NamedTuple):
  """The lowest point of one isoFLOP profile, in logs, with variances."""

  C: float
  log_n: float
  log_loss: float
  variance: float  # of log_n
  loss_variance: float


class Forecast(NamedTuple):
  """What a fit of smaller budgets missed of a larger one, in logs."""

  target: float  # what was asked for: forecasts of the same one are not independent
  origin: int  # the fit
  error: float
  variance: float  # that is known: of the target, and of the fit's parameters
  distance: float  # e-folds of compute


def forecasts(
  problem: solve.Problem, runs: Runs, delta: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | UserError]]:
  """Fits the runs up to each budget and asks for those above (a rolling origin, Tashman 2000).

  Yields:
    Positions of the fitted and of the held-out runs, smallest budgets first, and the parameters [p]
    of the fit, or why there is none.
  """
  parts = cuts(runs)
  counts = np.zeros((len(parts), len(runs)))
  reasons: list[UserError | None] = []
  for row, (below, _) in zip(counts, parts, strict=True):
    row[below] = 1
    reasons.append(None)
    try:
      check_enough(problem.form, int(problem.free.sum()), runs.subset(below))
    except UserError as error:
      reasons[-1] = error
  enough = [reason is None for reason in reasons]
  ends = iter(solve.ends_of_starts(problem, delta, counts[enough]) if any(enough) else ())
  for row, (below, above), reason in zip(counts, parts, reasons, strict=True):
    try:
      yield below, above, reason or solve.search(problem, delta, row, next(ends))[1].theta[0]
    except UserError as error:
      yield below, above, error


def minima(runs: Runs, scatter: float) -> list[Minimum]:
  """Finds the minimum of each isoFLOP profile, by a cubic in log N near its lowest run.

  It goes through the log losses of the runs whose size is within `NEAR` of the lowest; of three
  sizes it is a parabola. A minimum at the edge of those sizes does not count.

  `scatter` is the variance of the log loss of one run.
  """
  found = []
  for group in profiles(runs):
    lowest = group[np.argmin(runs.loss[group])]
    near = group[np.abs(np.log(runs.N[group] / runs.N[lowest])) < np.log(NEAR)]
    sizes = len(np.unique(runs.N[near]))
    if sizes < 3:
      continue
    center = np.log(runs.N[near]).mean()
    x = np.log(runs.N[near]) - center
    powers = np.arange(4 if sizes > 3 else 3)
    inverse = np.linalg.pinv(x[:, None] ** powers)
    c = inverse @ np.log(runs.loss[near])
    at = np.linspace(x.min(), x.max(), 1001)
    bottom = np.argmin(at[:, None] ** powers @ c)
    if bottom in (0, len(at) - 1):
      continue
    x0 = at[bottom]
    slope = powers * x0 ** np.maximum(powers - 1, 0)  # of each power there
    bend = powers * (powers - 1) * x0 ** np.maximum(powers - 2, 0) @ c
    place, height = slope @ inverse / bend, x0**powers @ inverse  # how each run moves them
    found.append(
      Minimum(
        C=float(np.exp(np.log(runs.C[near]).mean())),
        log_n=float(x0 + center),
        log_loss=float(x0**powers @ c),
        variance=scatter * float(place @ place),
        loss_variance=scatter * float(height @ height),
      )
    )
  return found


def measure_errors(
  problem: solve.Problem,
  runs: Runs,
  law: Law,
  delta: float,
  residuals: np.ndarray,
  size: int,
  seed: int,
) -> Errors:
  """Measures what a law misses: against minima of its budgets, and by forecasts of the larger ones.

  Within the runs the law's N* and its loss are compared with the `minima` of the profiles. Beyond
  them the law is fitted to the smaller budgets and asked for the larger ones (`forecasts`): what
  its errors hold beyond the scatter of the runs, and beyond what the parameters of the small fit
  may err, grows with the distance, e^2 = known + (s log(C / C_fitted))^2; that of the loss begins
  `off_edge`. Where no profile has a minimum, N* of the law of all runs stands in for it. A run that
  diverged lies far off any law (`OUTLIER`), and is not asked for.

  Of more than `solve.MANY` runs a random part counts. `residuals` are the law's [n, log loss];
  `size` is the number of draws R.
  """
  freedom = len(runs) - problem.free.sum()
  rest = np.sort(np.abs(residuals))[-freedom:]  # a law may go through all others
  usual = np.abs(residuals) <= OUTLIER * MAD * np.median(rest)
  scatter = np.sum(residuals[usual] ** 2) / max(1, freedom - np.sum(~usual))
  if len(runs) > solve.MANY:
    part = np.sort(np.random.default_rng(0).choice(len(runs), solve.MANY, replace=False))
    problem, runs, usual = problem.subset(part), runs.subset(part), usual[part]
  has_optimum = set(problem.form.variables) == {"N", "D"}
  seen = minima(runs.subset(np.flatnonzero(usual)), scatter) if has_optimum else []
  best = [law.optimum(m.C) for m in seen]
  ones = np.ones(len(seen))
  off = [m.log_n - np.log(b.N) for m, b in zip(seen, best, strict=True)]
  place = posterior(off, [m.variance for m in seen], ones, TYPICAL_PLACE, size, seed + 1)
  off = [m.log_loss - np.log(b.loss) for m, b in zip(seen, best, strict=True)]
  loss = posterior(off, [m.loss_variance for m in seen], ones, TYPICAL_LOSS, size, seed + 2)
  targets = seen or (_stand_ins(law, runs) if has_optimum else [])
  places, by_line, losses = _ask(problem, runs, law, delta, usual, scatter, targets, place.value)
  heldout, line = {}, None
  if seen and len(by_line) >= FEWEST_FORECASTS:
    asked = {(x.target, x.origin) for x in by_line}
    both = [x for x in places if (x.target, x.origin) in asked]
    of_law, of_line = (float(np.sqrt(np.mean([x.error**2 for x in y]))) for y in (both, by_line))
    heldout = {"law": of_law, "minima": of_line, "forecasts": len(by_line)}
    if of_line < BETTER * of_law:
      line, places = _line(seen, size, seed + 6), by_line
      assert line
      off = [m.log_n - line.log_n(m.C) for m in seen]
      place = posterior(off, [m.variance for m in seen], ones, TYPICAL_PLACE, size, seed + 1)
  return Errors(
    place=place,
    place_growth=_growth(places, TYPICAL_PLACE_GROWTH, size, seed + 3, PLACE_SHARE),
    loss=loss,
    loss_growth=_growth(losses, TYPICAL_LOSS_GROWTH, size, seed + 4, LOSS_SHARE),
    line=line,
    heldout=heldout,
  )


def _ask(
  problem: solve.Problem,
  runs: Runs,
  law: Law,
  delta: float,
  usual: np.ndarray,
  scatter: float,
  targets: Sequence[Minimum],
  within: float,
) -> tuple[list[Forecast], list[Forecast], list[Forecast]]:
  """Asks the fits of the smaller budgets for the larger ones.

  Returns:
    Forecasts of log N* at the targets by the law, of the same by a line through the targets below
    (from three on), and of the log loss of each usual run.
  """
  parts = list(forecasts(problem, runs, delta))
  ends = [len(above) for _, above, _ in parts[1:]] + [0]
  segments = [above[: len(above) - end] for (_, above, _), end in zip(parts, ends, strict=True)]
  places, by_line, losses = [], [], []
  for i, (below, _, theta) in enumerate(parts):
    if isinstance(theta, UserError):
      continue
    most = np.log(runs.C[below].max())
    slopes = _slopes(problem, theta)
    told = slopes[:, below] @ slopes[:, below].T + np.diag(problem.pull(solve.LEAST_SQUARES))
    covariance = np.linalg.pinv(told) * scatter
    errors = -solve.log_residuals(problem, theta[None])[0]
    edge = most - off_edge(runs.C[below])
    for segment in segments[i:]:
      for run in segment[usual[segment]]:
        known = scatter + slopes[:, run] @ covariance @ slopes[:, run]
        losses.append(Forecast(segment[0], i, errors[run], known, np.log(runs.C[run]) - edge))
    line = _line([m for m in targets if np.log(m.C) < most + SAME_BUDGET], 100, 0)
    for target in targets:
      if (distance := np.log(target.C) - most) > SAME_BUDGET:
        found, gradient = _place(problem, law, theta, target.C)
        known = target.variance + within**2 + gradient @ covariance @ gradient
        places.append(Forecast(target.C, i, target.log_n - found, known, distance))
        if line:
          known = target.variance + float(np.var(line.draws(target.C)))
          error = target.log_n - line.log_n(target.C)
          by_line.append(Forecast(target.C, i, error, known, distance))
  return places, by_line, losses


def _line(seen: Sequence[Minimum], size: int, seed: int) -> Line | None:
  """Fits a line to three minima or more, with draws of Student's law."""
  if len(seen) < 3:
    return None
  x, y = np.log([m.C for m in seen]), np.array([m.log_n for m in seen])
  center, freedom = float(x.mean()), len(x) - 2
  design = np.stack([np.ones(len(x)), x - center], 1)
  inverse = np.linalg.pinv(design)
  offset, slope = inverse @ y
  variance = np.sum((y - design @ [offset, slope]) ** 2) / freedom
  variance = max(variance, float(np.mean([m.variance for m in seen])))
  rng = np.random.default_rng(seed)
  t = rng.normal(size=(2, size)) / np.sqrt(rng.chisquare(freedom, size) / freedom)
  wide = np.sqrt(variance * np.diag(inverse @ inverse.T))  # the two are not correlated
  return Line(center, float(offset), float(slope), offset + wide[0] * t[0], slope + wide[1] * t[1])


def _growth(
  asked: Sequence[Forecast], typical: float, size: int, seed: int, share: float = 1.0
) -> Scale:
  """Calls `posterior` on forecasts; each target counts `share`."""
  e, v, d = ([getattr(x, name) for x in asked] for name in ("error", "variance", "distance"))
  return posterior(e, v, d, typical, size, seed, share * len({x.target for x in asked}))


def _slopes(problem: solve.Problem, theta: np.ndarray) -> np.ndarray:
  """Differentiates the log loss of each run by the parameters [p, n]; 0 by those at an edge."""
  slopes, _ = solve.slopes(dataclasses.replace(problem, raw=False), theta)
  low, high = problem.box
  return slopes * ((low < theta) & (theta < high))[:, None]


def _place(problem: solve.Problem, law: Law, theta: np.ndarray, C: float):
  """Computes log N* at C FLOPs of the law with parameters theta [p], and its gradient [p]."""
  steps = np.concatenate([np.eye(len(theta)), -np.eye(len(theta)), np.zeros((1, len(theta)))])
  params = problem.natural(theta + STEP * steps)
  log_n = np.log(dataclasses.replace(law, params=params).optimum(C).N)
  up, down, at = np.split(log_n, [len(theta), -1])
  return at[0], (up - down) / (2 * STEP)


def _stand_ins(law: Law, runs: Runs) -> list[Minimum]:
  """Takes the law's own N* for the minima of budgets whose runs have none."""
  C = [float(runs.C[above].min()) for _, above in cuts(runs)]
  return [Minimum(c, float(np.log(law.optimum(c).N)), 0.0, 0.0, 0.0) for c in C]
