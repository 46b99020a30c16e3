"""The content of fit.json: a fit with its intervals, estimators and warnings."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from scaling.laws.estimators import Curve, isoflop_profiles, side_by_side
from scaling.laws.fitted import OPTIONS, Fit
from scaling.laws.intervals import clusters
from scaling.laws.intervals.bootstrap import FEWEST, estimate_effects, few, interval, seed_noise
from scaling.laws.intervals.errors import Scale
from scaling.laws.intervals.misfit import BENT, bend, f_test
from scaling.laws.intervals.predictions import known, optimum, undetermined
from scaling.laws.law import at_edge
from scaling.laws.sensitivity import MOST_LEFT_OUT, jackknife
from scaling.laws.tables.doubts import doubts
from scaling.laws.tables.runs import FAR, Runs, input_hash

VERSION = 2
PROJECTIONS = (10**0.25, 10**0.5, 10**0.75, 10.0)  # of the largest budget, in the table of optima
UNLIKELY = 0.01  # a chance by which the law would fit as badly
SKEWED = 3.0  # standard errors, which one normal sample in 200 exceeds
NOTICEABLE = 0.2  # correlation between the residuals of a cluster
MOST_INFLUENTIAL = 5  # runs that fit.json names


def _budgets(runs: Runs, profiles: list[dict[str, Any]]) -> list[float]:
  """Lists the budgets of the table of optima: those that were fitted, and projections."""
  fitted = [p["C"] for p in profiles]
  if len(fitted) < 2:  # a grid of N and D has no budgets of its own
    fitted = np.geomspace(runs.C.min(), runs.C.max(), 4).tolist()
  return [*fitted, *(float(runs.C.max() * factor) for factor in PROJECTIONS)]


def shared(fit: Fit) -> dict[str, Any] | None:
  """Summarises what clusters of the runs have in common; None where none repeat.

  Returns:
    by (trunk, id or N), the `count` of clusters, their intraclass `correlation` with the degrees of
    `freedom` that its estimate has, and whether they look like training `curves`.
  """
  found = clusters.find(fit.runs)
  if not found:
    return None
  effects = estimate_effects(fit.problem, fit.problem.theta(fit.law.params), fit.runs)
  return {
    "by": found[0].by,
    "count": int(found[0].group.max()) + 1,
    "correlation": effects and effects.correlation,
    "freedom": effects and float(effects.freedom[0]),
    "curves": clusters.are_curves(fit.runs, fit.residuals),
  }


def lack_of_fit(fit: Fit) -> dict[str, float] | None:
  """Tests whether cells scatter about the law by more than their repeats do: the F test.

  Returns:
    `F`, the ratio of their variances, and `p`, the chance of a larger one if the law holds and runs
    are independent (by 100,000 draws); None where no cell repeats, or repeats are copies.
  """
  cell = np.unique(fit.runs.N + 1j * fit.runs.D, return_inverse=True)[1]
  count = np.bincount(cell)
  between, within = len(count) - (len(fit.runs) - fit.freedom), len(fit.runs) - len(count)
  if between < 1 or not seed_noise(fit.runs):
    return None
  pure = float(np.sum((fit.residuals - (np.bincount(cell, fit.residuals) / count)[cell]) ** 2))
  rest = float(np.sum(np.bincount(cell, fit.residuals) ** 2 / count))
  return f_test(rest, between, pure, within)


def skewness(fit: Fit) -> dict[str, float]:
  """Computes the residuals' skewness, with its z in a normal sample, and their mean."""
  n, r = len(fit.runs), fit.residuals - fit.residuals.mean()
  value = float(np.mean(r**3) / max(np.mean(r**2), 1e-300) ** 1.5)
  error = np.sqrt(6 * (n - 2) / ((n + 1) * (n + 3)))
  return {"value": value, "z": float(value / error), "mean": float(fit.residuals.mean())}


def _of_clusters(fit: Fit, common: dict[str, Any]) -> Iterator[str]:
  """Yields warnings of runs that are not independent."""
  by, count = common["by"], common["count"]
  if common["curves"]:
    yield (
      f"These look like points along {count} training curves (by {by}): one curve's share their "
      "luck and its schedule, so they count as one run each in what the intervals hold. Fit the "
      "ends of runs of several lengths."
    )
  if fit.options.resampling != "auto" and (common["correlation"] or 0.0) > NOTICEABLE:
    yield (
      f"Residuals of one {by} are correlated by {common['correlation']:.2f}, and fit.resampling="
      f"{fit.options.resampling} takes runs for independent: intervals are too narrow; choose auto."
    )


def _warnings(fit: Fit, profiles: list[dict[str, Any]]) -> list[str]:
  """Lists what a reader must know before quoting the fit, one sentence each."""
  warnings = doubts(fit.runs.whole or fit.runs, seed_noise(fit.runs))
  if fit.runs.whole:
    far = len(fit.runs.whole) - len(fit.runs)
    warnings.append(f"{far} runs were left out: their {FAR} (--compare_forms).")
  if (test := lack_of_fit(fit)) and test["p"] < UNLIKELY:
    warnings.append(
      f"Cells scatter about the law by more than their repeats do (F = {test['F']:.1f}, p = "
      f"{test['p']:.2g}): its form may be wrong (--compare_forms), or cells share their luck."
    )
  if (test := bend(fit.problem, fit.problem.theta(fit.params), fit.runs)) and test["p"] < BENT:
    warnings.append(
      f"The runs bend away from the form by {test['misses']:.2%} (p = {test['p']:.2g}): its "
      f"parameters ({', '.join(fit.params)}) are of a form that the runs do not follow, and their "
      "intervals do not hold what another form would say (--compare_forms)."
    )
  if abs((skew := skewness(fit))["z"]) > SKEWED:
    side = "above" if skew["mean"] > 0 else "below"
    warnings.append(
      f"Residuals are skewed ({skew['value']:.1f}): the law goes through the middle of the runs, "
      f"and their mean is {abs(skew['mean']):.2%} {side} it."
    )
  if common := shared(fit):
    warnings += _of_clusters(fit, common)
  if bound := fit.convergence["at_bound"]:
    warnings.append(
      at_edge(bound) + ("; a, b, N_opt, D_opt and D/N have no interval." if fit.unbounded else ".")
    )
  floor = fit.problem.floor
  if not floor.fixed and floor.bounded and np.isclose(fit.params["E"], floor[:2]).any():
    warnings.append(f"E ended at an end of fit.E={fit.options.E}: the runs would have it beyond.")
  if few(fit.runs):
    warnings.append(
      f"{len(fit.runs)} runs at fewer than {FEWEST} distinct (N, D) are too few to resample: the "
      f"intervals are Student's, with {len(fit.runs)} - {len(fit.runs) - fit.freedom} degrees of "
      "freedom at most."
    )
  if (share := fit.convergence["resamples_at_bound"]) > 1 - fit.options.level:
    warnings.append(f"In {share:.0%} of the resamples a parameter ended at the edge of its range.")
  if (share := fit.convergence["resamples_converged"]) < 0.99:
    warnings.append(f"Only {share:.1%} of the resamples converged.")
  if fit.compute.error > 0.05:
    warnings.append(
      f"C is a function of N times D only to {fit.compute.error:.0%}: N_opt(C) is approximate."
    )
  if not fit.errors.loss_growth.told_by:
    warnings.append(
      "Too few budgets to tell how well the law extrapolates: intervals beyond them rest on what "
      "public sweeps show."
    )
  points = np.unique(np.stack([fit.runs.N, fit.runs.D, fit.runs.loss]), axis=1).shape[1]
  if copies := len(fit.runs) - points:
    warnings.append(
      f"{copies} runs repeat another to the last digit (N, D, loss): copies narrow the intervals."
    )
  if outside := sum(not p["inside"] for p in profiles):
    warnings.append(
      f"{outside} of {len(profiles)} isoFLOP profiles have no minimum inside their sizes."
    )
  return warnings


def law_json(fit: Fit) -> dict[str, Any]:
  """Makes what fit.json has of the law alone: its numbers, and their intervals."""
  a, b = fit.law.exponents(fit.runs.C.max())
  values = fit.params | {"a": a, "b": b}
  draws = {**fit.draws.params} | dict(zip("ab", fit.draws.exponents(fit.runs.C.max()), strict=True))
  intervals = {k: interval(x, fit.options.level, float(values[k])) for k, x in draws.items()}
  return {
    "form": fit.form,
    "params": fit.params,
    "intervals": intervals | (dict.fromkeys("ab") if fit.unbounded else {}),
    "a": float(a),
    "b": float(b),
    "n_runs": len(fit.runs),
  }


def to_json(fit: Fit, curves: Sequence[Curve] | None = None) -> dict[str, Any]:
  """Makes the content of fit.json: the law, its intervals, its optima, how it was fitted.

  `curves` are training curves, for Approach 1 among the estimators.
  """
  options = fit.options
  approach2 = isoflop_profiles(fit.runs, fit.compute)
  estimators = side_by_side(fit, curves=curves)
  approach2["bias"] = estimators["rows"][1].get("bias")
  many = len(fit.runs) > MOST_LEFT_OUT
  reasons = undetermined(fit)
  budgets = [] if reasons else _budgets(fit.runs, approach2["profiles"])
  return {
    "version": VERSION,
    **law_json(fit),
    "excluded": [{"id": name, "reason": reason} for name, reason in fit.runs.excluded],
    "filters": list(fit.runs.filters),
    "input_hash": input_hash(fit.runs),
    "counting": {"params": fit.runs.params, "flops": fit.runs.flops, "loss": fit.runs.loss_on},
    **{name: getattr(options, name) for name in OPTIONS},
    "known_E": options.E,
    "convergence": dict(fit.convergence),
    "warnings": _warnings(fit, approach2["profiles"]),
    "residual_sd": float(np.sqrt(np.sum(fit.residuals**2) / fit.freedom)),
    "seed_noise": seed_noise(fit.runs),
    "clusters": shared(fit),
    "lack_of_fit": lack_of_fit(fit),
    "bend": bend(fit.problem, fit.problem.theta(fit.params), fit.runs),
    "skewness": skewness(fit),
    "form_error": fit.errors.loss_growth.value,
    "errors": {
      name: {"value": scale.value, "told_by": scale.told_by}
      for name, scale in vars(fit.errors).items()
      if isinstance(scale, Scale)
    },
    "heldout_N_opt": fit.errors.heldout | {"chosen": "minima" if fit.errors.line else "law"},
    "compute": dataclasses.asdict(fit.compute),
    "undetermined": reasons,
    "optimum": [known(optimum(fit, C)) for C in budgets],
    "approach2": approach2,
    "estimators": estimators,
    "influence": None if many else jackknife(fit)[:MOST_INFLUENTIAL],
    "heldout": None,  # `compare.compare_forms`, if asked for
  }
