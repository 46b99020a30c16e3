"""Fits L(N, D) to runs, says how sure it is, and predicts.

  runs = read_runs("cells.csv")
  fit = fit_runs(runs, config.fit)
  optimum(fit, 1e15)                # N_opt, D_opt, tokens per parameter, loss, with intervals
  predict_loss(fit, 1e6, 2e7)       # of one run that is yet to be trained
  json.dumps(to_json(fit))          # fit.json

Everything is float64 and a function of the runs and the options: neither the order of the runs nor
the time of day enters, so a fit is recomputed rather than stored.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from scaling import estimate, laws
from scaling.runs import Runs, check_identifiable, input_hash, make_runs, read_runs

VERSION = 1  # of fit.json
__all__ = [
  "Fit", "Options", "Runs", "fit_runs", "input_hash", "isoflop_profiles", "make_runs", "optimum",
  "predict_loss", "ratio_cost", "read_runs", "to_json",
]  # fmt: skip

SAME_BUDGET = 0.03  # budgets that differ by less (in log C) are one isoFLOP profile
MAX_CUTS = 8  # budgets at which a fit is tried on the runs above
PROJECTIONS = (10**0.25, 10**0.5, 10**0.75, 10.0)  # of the largest budget, in the table of optima


class Options(Protocol):
  """The fields of `config.fit` that a fit reads."""

  delta: float
  bootstraps: int
  level: float
  seed: int


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted law and all that its intervals need.

  Attributes:
    runs: what it was fitted to.
    law: the parameters, numbers.
    draws: the parameters of each bootstrap resample, arrays [R].
    compute: FLOPs as a function of N and D, estimated from the runs.
    residuals: log of observed over fitted loss [n].
    delta: Huber's threshold on log loss.
    level: probability content of every interval.
    seed: of the resampling.
    form_error: by how much the log loss of extrapolated runs missed, per e-fold of compute beyond
      the fitted runs; None where there are too few budgets to tell. See `forecast_error`.
    convergence: of the starts and of the resamples.
  """

  runs: Runs
  law: laws.Chinchilla
  draws: laws.Chinchilla
  compute: laws.Compute
  residuals: np.ndarray
  delta: float
  level: float
  seed: int
  form_error: float | None
  convergence: Mapping[str, Any]


def fit_runs(runs: Runs, options: Options) -> Fit:
  """Fits the Chinchilla law by Approach 3 of Hoffmann et al. 2022, with a bootstrap over runs.

  Args:
    runs: the runs.
    options: `config.fit`, or anything with its delta, bootstraps, level and seed.

  Returns:
    The fit.

  Raises:
    ValueError: the runs do not identify the law, or an option is out of range.
  """
  for name, valid, remedy in (
    ("delta", options.delta > 0, "a positive number, 1e-3 for instance"),
    ("bootstraps", options.bootstraps >= 100, "100 or more, 1000 for instance"),
    ("level", 0 < options.level < 1, "a number between 0 and 1, 0.9 for instance"),
  ):
    if not valid:
      raise ValueError(f"fit.{name}={getattr(options, name)}: must be {remedy}")
  design, found, best = _minimum(runs, options.delta)
  draws = _bootstrap(design, runs, best.theta[0], options)
  law = estimate.to_law(design, best.theta[0])
  residuals = np.log(runs.loss) - np.log(laws.loss(law, runs.N, runs.D))
  tolerance = 1e-6 * best.cost[0] + 1e-20
  return Fit(
    runs=runs,
    law=law,
    draws=estimate.to_law(design, draws.theta),
    compute=laws.estimate_compute(runs.N, runs.D, runs.C),
    residuals=residuals,
    delta=options.delta,
    level=options.level,
    seed=options.seed,
    form_error=forecast_error(runs, options.delta, np.sum(residuals**2) / (len(runs) - len(law))),
    convergence={
      "starts": len(found.cost),
      "starts_converged": int(found.converged.sum()),
      "starts_at_optimum": int((found.cost <= best.cost[0] + tolerance).sum()),
      "cost": float(best.cost[0]),
      "at_bound": _names(best.at_bound[0]),
      "resamples_converged": float(draws.converged.mean()),
      "resamples_at_bound": float(draws.at_bound.any(axis=1).mean()),
    },
  )


def _minimum(
  runs: Runs, delta: float
) -> tuple[estimate.Design, estimate.Solution, estimate.Solution]:
  """Returns the solver's coordinates, where every start ended, and the best of them.

  Raises:
    ValueError: the runs do not identify the law, or no start found a minimum.
  """
  check_identifiable(runs)
  design = estimate.design(runs.N, runs.D, runs.loss)
  starts = estimate.starts(design)
  found = estimate.minimise(design, np.ones((len(starts), len(runs))), starts, delta)
  lowest = found.theta[[np.argmin(found.cost)]]
  best = estimate.minimise(design, np.ones((1, len(runs))), lowest, delta, 10_000)
  if not best.converged[0]:
    raise ValueError(
      f"fit.delta={delta}: no minimum found from {len(starts)} starts on {len(runs)} runs; "
      "look for outliers in loss, or raise delta"
    )
  return design, found, best


def forecast_error(runs: Runs, delta: float, scatter: float) -> float | None:
  """Returns the error of the law's own extrapolations [log loss per e-fold of compute].

  The law is fitted again to the runs up to each budget and asked for the runs above it (a forecast
  from a rolling origin, Tashman 2000). What their squared errors hold beyond the scatter of a run
  grows with the distance: e^2 = scatter + (form_error log(C / C_fitted))^2, in the mean.

  Args:
    runs: all runs.
    delta: Huber's threshold.
    scatter: variance of one run's log loss about the law.

  Returns:
    The error; None where no budget leaves a law below it and runs above it.
  """
  order = np.argsort(runs.C)
  cuts = np.flatnonzero(np.diff(np.log(runs.C[order])) > SAME_BUDGET) + 1
  cuts = cuts[np.unique(np.linspace(0, len(cuts) - 1, MAX_CUTS).round().astype(int))[: len(cuts)]]
  excess, distance = 0.0, 0.0
  for cut in cuts:
    below, above = np.sort(order[:cut]), order[cut:]
    try:
      design, _, best = _minimum(runs.subset(below), delta)
    except ValueError:
      continue
    law = estimate.to_law(design, best.theta[0])
    error = np.log(runs.loss[above] / laws.loss(law, runs.N[above], runs.D[above]))
    excess += np.sum(error**2 - scatter)
    distance += np.sum(np.log(runs.C[above] / runs.C[below].max()) ** 2)
  return float(np.sqrt(max(0.0, excess) / distance)) if distance else None


def _names(mask: np.ndarray) -> list[str]:
  return [name for name, at in zip(laws.Chinchilla._fields, mask, strict=True) if at]


def _bootstrap(design, runs, theta, options) -> estimate.Solution:
  """Refits resamples of the runs; those with fewer than 3 sizes or token counts are redrawn."""
  rng = np.random.default_rng(options.seed)
  n, size = len(runs), options.bootstraps
  levels = [np.unique(values, return_inverse=True)[1] for values in (runs.N, runs.D)]
  members = [np.eye(level.max() + 1)[level] for level in levels if level.max() < 64]
  weights = np.zeros((size, n))
  poor = np.ones(size, bool)
  while poor.any():
    weights[poor] = rng.multinomial(n, np.full(n, 1 / n), size=poor.sum())
    poor = np.any([((weights @ member) > 0).sum(axis=1) < 3 for member in members], axis=0)
  rows = max(16, 60_000 // n)  # resamples at once: what the cache holds
  parts = [
    estimate.minimise(design, w, np.tile(theta, (len(w), 1)), options.delta, 300)
    for w in np.split(weights, range(rows, size, rows))
  ]
  return estimate.Solution(
    *(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(parts[0]))
  )


def interval(draws: np.ndarray, level: float) -> list[float]:
  """Returns the central percentile interval [low, high] of draws [R]."""
  low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
  return [float(low), float(high)]


def seed_noise(runs: Runs) -> float | None:
  """Returns the pooled SD of log loss among repeats of the same (N, D); None without repeats."""
  _, group = np.unique(np.stack([runs.N, runs.D]), axis=1, return_inverse=True)
  group = group.ravel()
  count = np.bincount(group)
  log_loss = np.log(runs.loss)
  mean = np.bincount(group, log_loss) / count
  freedom = (count - 1).sum()
  return float(np.sqrt(np.sum((log_loss - mean[group]) ** 2) / freedom)) if freedom else None


def new_run_noise(fit: Fit) -> np.ndarray:
  """Returns what separates the log loss of one new run from the law: an empirical sample [n].

  It is the residuals, inflated by sqrt(n / (n - 5)) because five parameters were fitted to them,
  and further where repeats of a cell show that seeds alone scatter more.
  """
  n = len(fit.runs)
  noise = fit.residuals * np.sqrt(n / (n - len(fit.law)))
  rms = np.sqrt(np.mean(noise**2))
  return noise * max(1.0, (seed_noise(fit.runs) or 0.0) / max(rms, 1e-12))


def predict_loss(fit: Fit, N: float, D: float) -> tuple[float, list[float]]:
  """Predicts the loss of one run that is yet to be trained.

  Returns:
    The law's loss [nats per token], and its prediction interval. It holds the uncertainty of the
    parameters (bootstrap), the scatter of one run about the law (`new_run_noise`), and, beyond the
    compute of the fitted runs, the error that the law's form made when smaller budgets had to
    predict larger ones (`forecast_error`).
  """
  rng = np.random.default_rng((fit.seed, 1))
  noise = rng.choice(new_run_noise(fit), size=len(fit.draws.E))
  C = float(fit.compute.flops_per_token(N) * D)
  draws = laws.loss(fit.draws, N, D) * np.exp(noise + _form_noise(fit, C))
  return float(laws.loss(fit.law, N, D)), interval(draws, fit.level)


def _form_noise(fit: Fit, C: float) -> np.ndarray:
  """Returns draws [R] of the error of the law's form at C FLOPs [log loss]; 0 within the runs."""
  distance = max(0.0, float(np.log(C / fit.runs.C.max())))
  normal = np.random.default_rng((fit.seed, 2)).normal(size=len(fit.draws.E))
  return (fit.form_error or 0.0) * distance * normal


def optimum(fit: Fit, C: float) -> dict[str, Any]:
  """Returns the best use of C FLOPs: N_opt, D_opt, tokens_per_param and loss, each with interval.

  The interval of the loss here is that of the law at its optimum, its form's error included; for
  that of a run see `predict_loss`. `extrapolation` is C over the largest budget that was fitted.
  """
  best = laws.optimum(fit.law, C, fit.compute)
  draws = laws.optimum(fit.draws, C, fit.compute)
  row: dict[str, Any] = {"C": float(C), "extrapolation": float(C / fit.runs.C.max())}
  for name, value, sample in (
    ("N_opt", best.N, draws.N),
    ("D_opt", best.D, draws.D),
    ("tokens_per_param", best.D / best.N, draws.D / draws.N),
    ("loss", best.loss, draws.loss * np.exp(_form_noise(fit, C))),
  ):
    row[name] = float(value)
    row[f"{name}_interval"] = interval(sample, fit.level)
  return row


def ratio_cost(fit: Fit, C: float, tokens_per_param: float) -> dict[str, Any]:
  """Returns what a fixed ratio D/N costs at C FLOPs: N, D, loss, its excess over the optimum."""

  def loss_at_ratio(law):
    n = fit.compute.params(C, tokens_per_param)
    return laws.loss(law, n, fit.compute.tokens(n, C))

  n = float(fit.compute.params(C, tokens_per_param))
  excess = loss_at_ratio(fit.draws) - laws.optimum(fit.draws, C, fit.compute).loss
  value = float(loss_at_ratio(fit.law))
  return {
    "C": float(C),
    "tokens_per_param": float(tokens_per_param),
    "N": n,
    "D": float(fit.compute.tokens(n, C)),
    "loss": value,
    "excess": value - float(laws.optimum(fit.law, C, fit.compute).loss),
    "excess_interval": interval(excess, fit.level),
  }


def isoflop_profiles(runs: Runs, compute: laws.Compute) -> dict[str, Any]:
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
  order = np.argsort(runs.C)
  edges = np.flatnonzero(np.diff(np.log(runs.C[order])) > SAME_BUDGET) + 1
  profiles = []
  for group in np.split(order, edges):
    if len(np.unique(runs.N[group])) < 3 or np.ptp(np.log(runs.C[group])) > 3 * SAME_BUDGET:
      continue
    n = runs.N[group]
    parabola = np.polynomial.Polynomial.fit(np.log(n), runs.loss[group], 2).convert()
    c0, c1, c2 = (*parabola.coef, 0.0, 0.0)[:3]
    vertex = float(np.exp(np.clip(-c1 / (2 * c2), -700, 700))) if c2 > 0 else None
    profiles.append(
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
  result: dict[str, Any] = {"profiles": profiles}
  result |= dict.fromkeys(("a", "b", "N_coefficient", "D_coefficient"))
  inside = [(p["C"], p["minimum_N"]) for p in profiles if p["inside"]]
  if len(inside) >= 2:
    c, n = np.array(inside).T
    for exponent, name, best in (("a", "N", n), ("b", "D", compute.tokens(n, c))):
      slope, offset = np.polyfit(np.log(c), np.log(best), 1)
      result |= {exponent: float(slope), f"{name}_coefficient": float(np.exp(offset))}
  return result


def _budgets(runs: Runs, profiles: list[dict[str, Any]]) -> list[float]:
  """Returns the budgets of the table of optima: those that were fitted, and projections."""
  fitted = [p["C"] for p in profiles]
  if len(fitted) < 2:  # a grid of N and D has no budgets of its own
    fitted = np.geomspace(runs.C.min(), runs.C.max(), 4).tolist()
  return [*fitted, *(float(runs.C.max() * factor) for factor in PROJECTIONS)]


def _warnings(fit: Fit, profiles: list[dict[str, Any]]) -> list[str]:
  """Returns what a reader must know before quoting the fit, one sentence each."""
  said = []
  if bound := fit.convergence["at_bound"]:
    said.append(
      f"{', '.join(bound)} ended at the edge of what is allowed: the runs do not determine it."
    )
  if (share := fit.convergence["resamples_at_bound"]) > 1 - fit.level:
    said.append(
      f"In {share:.0%} of the resamples a parameter (mostly E) ended at the edge of its range."
    )
  if (share := fit.convergence["resamples_converged"]) < 0.99:
    said.append(f"Only {share:.1%} of the resamples converged.")
  if fit.compute.error > 0.05:
    said.append(
      f"C is a function of N times D only to {fit.compute.error:.0%}: N_opt(C) is approximate."
    )
  if fit.form_error is None:
    said.append("Too few budgets to tell how well the law extrapolates: intervals leave it out.")
  if outside := sum(not p["inside"] for p in profiles):
    said.append(
      f"{outside} of {len(profiles)} isoFLOP profiles have no minimum inside their sizes."
    )
  return said


def to_json(fit: Fit) -> dict[str, Any]:
  """Returns the content of fit.json: the law, its intervals, its optima, how it was fitted."""
  a, b = laws.exponents(fit.law)
  draws = fit.draws._asdict() | dict(zip("ab", laws.exponents(fit.draws), strict=True))
  approach2 = isoflop_profiles(fit.runs, fit.compute)
  freedom = len(fit.runs) - len(fit.law)
  return {
    "version": VERSION,
    "form": "chinchilla",
    "params": {name: float(value) for name, value in fit.law._asdict().items()},
    "intervals": {name: interval(values, fit.level) for name, values in draws.items()},
    "a": float(a),
    "b": float(b),
    "n_runs": len(fit.runs),
    "excluded": [{"id": name, "reason": reason} for name, reason in fit.runs.excluded],
    "input_hash": input_hash(fit.runs),
    "counting": {"params": fit.runs.params, "flops": fit.runs.flops},
    "delta": fit.delta,
    "level": fit.level,
    "bootstraps": len(fit.draws.E),
    "seed": fit.seed,
    "convergence": dict(fit.convergence),
    "warnings": _warnings(fit, approach2["profiles"]),
    "residual_sd": float(np.sqrt(np.sum(fit.residuals**2) / freedom)),
    "seed_noise": seed_noise(fit.runs),
    "form_error": fit.form_error,
    "compute": dataclasses.asdict(fit.compute),
    "optimum": [optimum(fit, C) for C in _budgets(fit.runs, approach2["profiles"])],
    "approach2": approach2,
  }
