"""The three approaches of Hoffmann et al. 2022 on the same runs, side by side.

1: the envelope of training curves. 2: a parabola for each budget. 3: the parametric law, by Huber's
loss, by least squares and by least absolute deviations. The third is the one to quote: the first
reads a staircase, and the second is biased by its design, by how much is computed here.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from configs.errors import DataError, UserError
from scaling.laws import solve
from scaling.laws.chinchilla import Compute
from scaling.laws.fitted import Fit
from scaling.laws.intervals import bootstrap
from scaling.laws.intervals.bootstrap import FEWEST_DRAWS, interval
from scaling.laws.law import Law, at_edge, unbounded
from scaling.laws.solve import LEAST_ABSOLUTE, LEAST_SQUARES
from scaling.laws.tables.budgets import profiles
from scaling.laws.tables.runs import Runs

OTHER_RESAMPLES = 200  # of the estimators that are there to compare with
BIN = 0.1  # width of the envelope's steps in log C
QUANTITIES = ("a", "b", "N_opt", "D_opt")


class Curve(NamedTuple):
  """The training curve of one run: tokens, FLOPs and loss, arrays [t]."""

  id: str
  N: float
  tokens: np.ndarray  # [t], processed so far
  flops: np.ndarray  # [t], spent so far
  loss: np.ndarray  # [t], there [nats per token]


def make_curves(rows: Iterable[tuple[str, float, ArrayLike, ArrayLike, ArrayLike]]) -> list[Curve]:
  """Makes curves from rows (id, N, tokens [t], flops [t], loss [t]).

  Raises:
    DataError: a curve is empty, of unequal lengths, or not of positive finite numbers.
  """
  curves = []
  for name, size, *arrays in rows:
    columns = [np.asarray(values, float) for values in arrays]
    if len({values.shape for values in columns}) != 1 or not columns[0].size:
      raise DataError(f"curve {name}: tokens, flops, loss must be as long as each other, not empty")
    if not all(np.all(np.isfinite(values) & (values > 0)) for values in [np.array(size), *columns]):
      raise DataError(f"curve {name}: a value is not a positive finite number; remove its row")
    order = np.argsort(columns[1], kind="stable")
    curves.append(Curve(name, float(size), *(values[order] for values in columns)))
  return curves


def envelope(curves: Sequence[Curve]) -> dict[str, np.ndarray]:
  """Finds the lowest loss at each compute, and whose it is: C, N, D, loss, arrays [m].

  Losses are averaged over steps of `BIN` in log C, so that noise wins less often. Steps whose
  winner is the smallest or the largest of the sizes there are left out: it only bounds the best.
  """
  ends = [np.log(curve.flops[[0, -1]]) for curve in curves]
  edges = np.arange(min(e[0] for e in ends), max(e[1] for e in ends) + 2 * BIN, BIN)
  grid = (edges[1:] + edges[:-1]) / 2
  losses, tokens = [], []
  for curve in curves:
    x = np.log(curve.flops)
    _, where = np.unique(np.digitize(x, edges), return_inverse=True)
    count = np.bincount(where)
    x_mean, mean = np.bincount(where, x) / count, np.bincount(where, curve.loss) / count
    inside = np.where((grid >= x[0]) & (grid <= x[-1]), 0.0, np.nan)
    losses.append(np.interp(grid, x_mean, mean) + inside)
    tokens.append(np.exp(np.interp(grid, x, np.log(curve.tokens))))
  loss_nm, size_n = np.array(losses), np.array([curve.N for curve in curves])
  alive = np.isfinite(loss_nm)
  winner = np.argmin(np.where(alive, loss_nm, np.inf), axis=0)
  N = size_n[winner]
  least = np.min(np.where(alive, size_n[:, None], np.inf), axis=0)
  most = np.max(np.where(alive, size_n[:, None], -np.inf), axis=0)
  keep = (least < N) & (most > N)
  at = (winner[keep], np.flatnonzero(keep))
  return {"C": np.exp(grid[keep]), "N": N[keep], "D": np.array(tokens)[at], "loss": loss_nm[at]}


def approach1(
  curves: Sequence[Curve], C: float, level: float = 0.9, seed: int = 0
) -> dict[str, Any]:
  """Fits power laws through the envelope of training curves, with a bootstrap over runs.

  Schedules bend curves: what is read off before a run's cooldown lies above what a run of that
  length would have reached, so the paper's approach asks for one run per length.

  Returns:
    A row of `side_by_side` at a budget of C, with intervals of `level`.
  """

  def powers(index):
    front = envelope([curves[i] for i in index])
    if len(np.unique(front["N"])) < 2:
      return None
    lines = [np.polyfit(np.log(front["C"]), np.log(front[v]), 1) for v in "ND"]
    (a, n), (b, d) = lines
    return np.array([a, b, np.exp(n + a * np.log(C)), np.exp(d + b * np.log(C))])

  every = np.arange(len(curves))
  values = powers(every) if len(every) > 2 else None
  if values is None:
    return _unknown("approach1", "fewer than two sizes win inside the envelope")
  rng = np.random.default_rng(seed)
  draws = [powers(np.unique(rng.choice(every, len(every)))) for _ in range(OTHER_RESAMPLES)]
  return _row("approach1", values, np.array([d for d in draws if d is not None]).T, level)


def _row(name: str, values: np.ndarray, draws: np.ndarray, level: float) -> dict[str, Any]:
  """Makes a row of `side_by_side` from values [4] and draws [4, R]; finite draws count."""
  row: dict[str, Any] = {"estimator": name, "reason": None}
  for key, value, sample in zip(QUANTITIES, values.tolist(), draws, strict=True):
    finite = sample[np.isfinite(sample)]
    enough = len(finite) >= FEWEST_DRAWS
    row |= {key: value, f"{key}_interval": interval(finite, level, value) if enough else None}
  return row


def _unknown(name: str, reason: str) -> dict[str, Any]:
  """Makes a row of an estimator that has no answer."""
  keys = (key for name in QUANTITIES for key in (name, f"{name}_interval"))
  return {"estimator": name, "reason": reason} | dict.fromkeys(keys)


def isoflop_profiles(runs: Runs, compute: Compute) -> dict[str, Any]:
  """Approach 2 of Hoffmann et al. 2022: per budget a parabola in log N, and its minimum.

  The parabola is biased where alpha and beta differ, or the sizes lie off-centre or far apart: it
  is there to look at; the parametric fit is the one to quote.

  Returns:
    profiles: per budget with three sizes or more, the trained C, N and loss, the minimum (None
      where the parabola opens downwards), whether it lies inside the trained sizes, and the
      coefficients of 1, log N and log^2 N.
    a, b, N_coefficient, D_coefficient: N_opt = N_coefficient C^a and D_opt = D_coefficient C^b
      through the minima inside their profiles; None with fewer than two.
  """
  rows = []
  for group in profiles(runs):
    n = runs.N[group]
    parabola = np.polynomial.Polynomial.fit(np.log(n), runs.loss[group], 2).convert()
    c0, c1, c2 = (*parabola.coef, 0.0, 0.0)[:3]
    vertex = float(np.exp(np.clip(-c1 / (2 * c2), -700, 700))) if c2 > 0 else None
    rows.append(
      {
        "C": float(np.exp(np.log(runs.C[group]).mean())),
        "N": n.tolist(),
        "loss": runs.loss[group].tolist(),
        "minimum_N": vertex,
        "minimum_loss": None if vertex is None else float(parabola(np.log(vertex))),
        "inside": vertex is not None and bool(n.min() < vertex < n.max()),
        "coefficients": [float(c0), float(c1), float(c2)],
      }
    )
  result: dict[str, Any] = {"profiles": rows}
  result |= dict.fromkeys(("a", "b", "N_coefficient", "D_coefficient"))
  inside = [(p["C"], p["minimum_N"]) for p in rows if p["inside"]]
  if len(inside) >= 2:
    c, n = np.array(inside).T
    for exponent, name, best in (("a", "N", n), ("b", "D", compute.tokens(n, c))):
      slope, offset = np.polyfit(np.log(c), np.log(best), 1)
      result |= {exponent: float(slope), f"{name}_coefficient": float(np.exp(offset))}
  return result


def approach2(fit: Fit, C: float) -> dict[str, Any]:
  """Approach 2's row of `side_by_side`, with its bias on this design.

  The bias is what the parabolas give on the fitted surface itself, free of noise, at the same N and
  D, less what that surface says: of a and b the difference, of N_opt at C the relative error.
  Open-Athena 2026 and Hoffmann's own three answers show how far it can go.
  """
  runs, compute = fit.runs, fit.compute
  values = _through_minima(isoflop_profiles(runs, compute), C)
  if values is None:
    return _unknown("approach2", "fewer than two budgets have a minimum inside")
  row = _row("approach2", values, _parabola_draws(fit, C), fit.options.level)
  if fit.unbounded:  # the surface is none to measure a bias on
    return row
  clean = dataclasses.replace(runs, loss=fit.law.loss(runs.N, runs.D))
  seen = _through_minima(isoflop_profiles(clean, compute), C)
  if seen is not None:
    c = np.geomspace(runs.C.min(), runs.C.max(), 9)
    a, b = (np.polyfit(np.log(c), np.log(best), 1)[0] for best in fit.law.optimum(c)[:2])
    row["bias"] = {
      "a": float(seen[0] - a),
      "b": float(seen[1] - b),
      "N_opt": float(seen[2] / fit.law.optimum(C).N - 1),
    }
  return row


def _through_minima(fits, C):
  if fits["a"] is None:
    return None
  n, d = fits["N_coefficient"] * C ** fits["a"], fits["D_coefficient"] * C ** fits["b"]
  return np.array([fits["a"], fits["b"], n, d])


def _parabola_draws(fit: Fit, C: float) -> np.ndarray:
  """Draws a, b, N_opt, D_opt [4, R] by resampling within each budget; nan where there is none."""
  rng = np.random.default_rng((fit.options.seed, 3))
  runs, size = fit.runs, OTHER_RESAMPLES
  log_c, log_n = [], []
  for group in profiles(runs):
    x = np.log(runs.N[group])
    middle, width = x.mean(), max(x.std(), 1e-12)
    powers = ((x - middle) / width)[:, None] ** np.arange(3)
    w = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=size)
    normal = np.einsum("rn,ni,nj->rij", w, powers, powers) + 1e-12 * np.eye(3)
    c = np.linalg.solve(normal, (w * runs.loss[group] @ powers)[:, :, None])[:, :, 0]
    c2 = np.where(c[:, 2] > 0, c[:, 2], np.nan)
    vertex = middle - width * c[:, 1] / (2 * c2)
    inside = bootstrap.three_levels(w, x) & (vertex > x.min()) & (vertex < x.max())
    log_n.append(np.where(inside, vertex, np.nan))
    log_c.append(np.log(runs.C[group]).mean())
  x_G, n_RG = np.array(log_c), np.array(log_n).T
  d_RG = np.log(fit.compute.tokens(np.exp(n_RG), np.exp(x_G)))
  lines = [_slopes(x_G, y_RG, np.log(C)) for y_RG in (n_RG, d_RG)]
  return np.array([lines[0][0], lines[1][0], np.exp(lines[0][1]), np.exp(lines[1][1])])


@np.errstate(invalid="ignore", divide="ignore")
def _slopes(x_G, y_RG, at):
  """Fits lines through the finite of points: their slope [R], and their value [R] at `at`."""
  w = np.isfinite(y_RG)
  y = np.where(w, y_RG, 0.0)
  count = w.sum(1)
  x_mean, y_mean = (w * x_G).sum(1) / count, y.sum(1) / count
  dx = w * (x_G - x_mean[:, None])
  slope = np.where(count > 1, (dx * y).sum(1) / (dx**2).sum(1), np.nan)
  return slope, y_mean + slope * (at - x_mean)


def side_by_side(
  fit: Fit, C: float | None = None, curves: Sequence[Curve] | None = None
) -> dict[str, Any]:
  """Runs every estimator on the same runs, and says where they disagree.

  `C` is the budget of N_opt and D_opt [FLOPs], by default ten times the largest. The fit's own
  row is `huber`, or what its delta makes of it; without `curves`, for Approach 1, its row says
  so.

  Returns:
    C; `rows`: per estimator a, b, N_opt and D_opt, each with interval, None with a `reason`, and
    for Approach 2 its `bias`; `disagreement`: per quantity the estimators with the lowest and the
    highest value, the `gap` (of a and b the difference, else the ratio), whether all intervals
    overlap (`intervals_overlap`), and if not, the two estimators that lie farthest `apart`.
  """
  C = 10 * float(fit.runs.C.max()) if C is None else float(C)
  if curves is None:
    rows = [_unknown("approach1", "no training curves were given")]
  else:
    rows = [approach1(curves, C, fit.options.level, fit.options.seed)]
  rows.append(approach2(fit, C))
  for name, delta in (("huber", solve.HOFFMANN), ("mse", LEAST_SQUARES), ("lad", LEAST_ABSOLUTE)):
    if name == "huber" and LEAST_ABSOLUTE < fit.options.delta < LEAST_SQUARES:
      rows.append(_parametric(name, fit, fit.law, fit.draws, C, fit.unbounded))
    else:
      rows.append(_other(name, fit, fit.problem.huber(delta), C))
  return {"C": C, "rows": rows, "disagreement": _disagreement(rows)}


def _other(name: str, fit: Fit, delta: float, C: float) -> dict[str, Any]:
  """Makes the row of another delta, from the runs alone."""
  problem, options = fit.problem, fit.options
  try:
    best = solve.minimum(problem, delta)[1]
  except UserError as error:
    return _unknown(name, str(error))
  theta, bound = best.theta[0], unbounded(problem.names(best.at_bound[0]))
  draws = bootstrap.resample(
    problem, fit.runs, theta, delta, OTHER_RESAMPLES, options.seed, options.resampling
  ).theta
  law, sample = (Law(fit.law.form, problem.natural(t), fit.compute) for t in (theta, draws))
  return _parametric(name, fit, law, sample, C, bound)


def _parametric(name, fit, law, draws, C, bound):
  if bound:
    return _unknown(name, at_edge(bound))
  C_max = fit.runs.C.max()
  values, sample = (
    np.array([*each.exponents(C_max), *each.optimum(C)[:2]]) for each in (law, draws)
  )
  return _row(name, values, sample, fit.options.level)


def _disagreement(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  disagreement = []
  for name in QUANTITIES:
    answers = sorted((row for row in rows if row[name] is not None), key=lambda row: row[name])
    if not answers:
      continue
    low, high = answers[0], answers[-1]
    intervals = [(*row[key], row["estimator"]) for row in answers if row[key := f"{name}_interval"]]
    overlap = apart = None
    if len(intervals) > 1:
      below, above = min(intervals, key=lambda ends: ends[1]), max(intervals)
      overlap = bool(above[0] <= below[1])
      apart = None if overlap else [below[2], above[2]]
    gap = high[name] - low[name] if name in "ab" else high[name] / low[name]
    disagreement.append(
      {
        "quantity": name,
        "low": {"estimator": low["estimator"], "value": low[name]},
        "high": {"estimator": high["estimator"], "value": high[name]},
        "gap": float(gap),
        "intervals_overlap": overlap,
        "apart": apart,
      }
    )
  return disagreement
