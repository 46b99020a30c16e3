"""What a law predicts, with intervals, and why it may predict nothing."""

import math
from typing import Any

import numpy as np

from configs.errors import DataError
from scaling.laws.chinchilla import Optimum
from scaling.laws.fitted import Fit
from scaling.laws.intervals import bootstrap
from scaling.laws.intervals.bootstrap import holding, interval, seed_noise
from scaling.laws.intervals.errors import off_edge
from scaling.laws.law import at_edge
from scaling.laws.tables.budgets import SAME_BUDGET, budgets

FAR = 10.0  # times outside the fitted runs: beyond it an extrapolation is marked
STUDENTS = 99  # quantiles that stand for the scatter of a run, where few runs tell it
MOST_AT_EDGE = 0.5  # of the resamples: then most of an interval is the edge's, not the runs'
LEAST_CONVERGED = 0.5  # of the resamples
NARROWEST = 5.0  # times between the least and the greatest C, which an exponent is a slope over
WIDEST = 10.0  # times from end to end of an interval: what is wider is not known
OPEN = [math.nan, math.nan]  # an interval of which neither end is known


def new_run_noise(fit: Fit) -> np.ndarray:
  """Samples what separates the log loss of one new run from the law [n].

  It is the residuals, inflated by sqrt(n / (n - p)) because p parameters were fitted to them, and
  further where repeats of a cell show that seeds alone scatter more. Of few runs, most of which the
  law goes through, it is `STUDENTS` quantiles of Student's law; likewise where runs of a cluster
  have something in common, which a run of a new cluster draws anew.
  """
  noise = fit.residuals * np.sqrt(len(fit.runs) / fit.freedom)
  rms = np.sqrt(np.mean(noise**2))
  effects = bootstrap.estimate_effects(fit.problem, fit.problem.theta(fit.params), fit.runs)
  if effects and effects.variance.any():
    rms = np.sqrt(effects.variance.sum() + effects.within)
    noise = rms * _students(effects.freedom[0])
  elif bootstrap.few(fit.runs):
    noise = rms * _students(fit.freedom)
  return noise * max(1.0, (seed_noise(fit.runs) or 0.0) / max(rms, 1e-12))


def _students(freedom: int) -> np.ndarray:
  """Computes `STUDENTS` quantiles of Student's law."""
  at = (np.arange(STUDENTS) + 0.5) / STUDENTS
  return np.array([bootstrap.t_quantile(p, freedom) for p in at])


def predict_loss(fit: Fit, N: float, D: float) -> tuple[float, list[float]]:
  """Predicts the loss of one run that is yet to be trained.

  Returns:
    The law's loss [nats per token], and its prediction interval. It holds the uncertainty of the
    parameters (bootstrap), the scatter of one run about the law (`new_run_noise`), and, outside the
    fitted runs, the error that the law's form made when smaller budgets had to predict larger ones
    (`Errors.loss_growth`). It holds the law's loss: where the draws of a law that
    the runs hardly determine all lie on one side of it, it is widened (`undetermined` says so
    of such a law).
  """
  rng = np.random.default_rng((fit.options.seed, 1))
  noise = rng.choice(new_run_noise(fit), size=fit.options.bootstraps)
  C = float(fit.compute.flops_per_token(N) * D)
  draws = fit.draws.loss(N, D) * np.exp(noise + form_noise(fit, C, N, D))
  value = float(fit.law.loss(N, D))
  return value, holding(interval(draws, fit.options.level), value)


def form_noise(fit: Fit, C: float, N: float, D: float) -> np.ndarray:
  """Draws the error of the law's form there [R, log loss]; 0 well within the runs (`off_edge`)."""
  beyond = np.log(C / fit.runs.C.max()) + off_edge(fit.runs.C)
  distance = max(0.0, beyond, np.log(fit.outside(C, N, D)))
  return distance * fit.errors.loss_growth.sample(fit.options.seed + 2)


def optimum(fit: Fit, C: float) -> dict[str, Any]:
  """Computes the best use of C FLOPs: N_opt, D_opt, tokens_per_param and loss, each with interval.

  The interval of N_opt holds the uncertainty of the parameters (bootstrap), how far the law's N*
  lies from the minima of the fitted budgets, and, beyond them, how fast the N* of fits to smaller
  budgets went astray (`Errors`); `N_opt_error` has these parts as standard deviations of log N_opt.
  D_opt and the ratio follow from N_opt, as C is given. Where a line through those minima forecast
  N* of the larger budgets better than the law (`Errors.heldout`), N_opt is the line's.

  The interval of the loss here is that of the law at its optimum, its form's error included; for
  that of a run see `predict_loss`. `extrapolation` is how many times the optimum lies outside the
  fitted runs (`Fit.outside`; 1: within), and `extrapolated` marks the rows beyond ten times.
  Where a parameter ended at the edge of its range (`Fit.unbounded`), the runs determine no optimum:
  the intervals of N_opt, D_opt and their ratio are [nan, nan].
  """
  best, draws = fit.law.optimum(C), fit.draws.optimum(C)
  at = float(C), float(best.N), float(best.D)
  determined = not (fit.unbounded or fit.law.at_end(best))
  row: dict[str, Any] = {"C": float(C), "extrapolation": fit.outside(*at)}
  row["extrapolated"] = far(row["extrapolation"])
  beyond = max(1.0, C / fit.runs.C.max(), fit.runs.C.min() / C)  # times the fitted budgets
  seed, distance = fit.options.seed, float(np.log(beyond))
  log_draws, line = np.log(draws.N), fit.errors.line
  if line:
    log_draws, n = line.draws(C), np.exp(line.log_n(C))
    best = Optimum(n, d := fit.compute.tokens(n, C), fit.law.loss(n, d))
    draws = draws._replace(loss=fit.draws.loss(n, d))
  growth = distance * fit.errors.place_growth.sample(seed + 4)
  n_draws = np.exp(log_draws + fit.errors.place.sample(seed + 3) + growth)
  d_draws = fit.compute.tokens(n_draws, C)
  loss_draws = draws.loss * np.exp(form_noise(fit, *at) + fit.errors.loss.sample(seed + 5))
  for name, value, sample in (
    ("N_opt", best.N, n_draws),
    ("D_opt", best.D, d_draws),
    ("tokens_per_param", best.D / best.N, d_draws / n_draws),
    ("loss", best.loss, loss_draws),
  ):
    row[name] = float(value)
    known = name == "loss" or determined
    row[f"{name}_interval"] = interval(sample, fit.options.level, float(value)) if known else OPEN
  row["N_opt_error"] = {
    "runs": float(np.std(log_draws)),
    "within": fit.errors.place.value,
    "beyond": fit.errors.place_growth.value * distance,
  }
  return row


def known(row: dict[str, Any]) -> dict[str, Any]:
  """Puts None in place of a row's intervals that are open: JSON has no nan."""
  return {key: None if value is OPEN else value for key, value in row.items()}


def far(extrapolation: float) -> bool:
  """Tells whether so many times outside the runs is to be marked."""
  return extrapolation > FAR * (1 + 1e-9)


def ratio_cost(fit: Fit, C: float, tokens_per_param: float) -> dict[str, Any]:
  """Computes what a fixed ratio D/N costs at C FLOPs: N, D, loss, its excess over the optimum.

  The interval of the loss is that of the law, its form's error included, as in `optimum`.
  """
  n = float(fit.compute.params(C, tokens_per_param))
  d = float(fit.compute.tokens(n, C))
  value, draws = float(fit.law.loss(n, d)), fit.draws.loss(n, d)
  level, excess = fit.options.level, value - float(fit.law.optimum(C).loss)
  return {
    "C": float(C),
    "tokens_per_param": float(tokens_per_param),
    "N": n,
    "D": d,
    "loss": value,
    "loss_interval": interval(draws * np.exp(form_noise(fit, C, n, d)), level, value),
    "excess": excess,
    "excess_interval": holding(interval(draws - fit.draws.optimum(C).loss, level), excess),
  }


def undetermined(fit: Fit, C: float | None = None) -> list[str]:
  """Lists why the runs do not determine the law, each with what would; [] where they do.

  `C` is a budget beyond the runs that is asked of it as well [FLOPs].
  """
  reasons = [*_design(fit), *_edges(fit)]
  for budget in (C, float(fit.runs.C.max())):
    reasons += _at(fit, budget) if budget and not reasons else []
  return reasons


def check_sealable(fit: Fit, C: float) -> None:
  """Refuses a fit whose runs determine no optimum at C FLOPs that could be sealed."""
  if reasons := undetermined(fit, C):
    raise DataError(f"fit: undetermined: {reasons[0]}: there is nothing to seal")


def _design(fit: Fit) -> list[str]:
  """Finds what is wrong with the runs themselves."""
  runs, reasons = fit.runs, []
  span = runs.C.max() / runs.C.min()
  if span < NARROWEST * (1 - SAME_BUDGET):
    reasons.append(
      f"all runs are within {span:.2g}x in C; train at budgets at least {NARROWEST:g}x apart"
    )
  groups = budgets(runs.C)
  best = np.array([runs.loss[group].min() for group in groups])
  if len(best) > 1 and _rank_correlation(best) >= 0:
    larger = (runs.loss <= 1).all() and np.ptp(best) > 0
    reasons.append(
      "the best loss does not fall with compute; "
      + (
        "these look like accuracies, of which larger is better: give losses, or 1 - accuracy"
        if larger
        else "train at larger budgets, or look for what went wrong in the larger runs"
      )
    )
  apart = [len(np.unique(runs.N[group])) > 1 for group in groups]
  if all(np.ptp(runs.loss[group]) == 0 for group in groups) and any(apart) and not reasons:
    reasons.append("at each budget all sizes reach the same loss; look whether it is the run's own")
  return reasons


def _rank_correlation(values: np.ndarray) -> float:
  """Correlates values with their order (Kendall): the sum of the signs of all their steps."""
  return float(np.sign(values[None, :] - values[:, None])[np.triu_indices(len(values), 1)].sum())


def _edges(fit: Fit) -> list[str]:
  """Finds parameters at the edge of their range, in the fit or in most resamples.

  E = 0 in the fit alone is no reason: it is the law of losses that are still far above their floor.
  """
  remedy = "train cells at more sizes or budgets"
  if fit.unbounded:
    return [f"{at_edge(fit.unbounded)}; {remedy}"]
  if (share := fit.convergence["resamples_at_bound"]) > MOST_AT_EDGE:
    others = fit.convergence["resamples_unbounded"] > share / 2 or "E" not in fit.params
    also = "a parameter" if others else "E"
    floor = "" if others else ", at larger ones above all, or give E as fit.E"
    return [
      f"in {share:.0%} of the resamples {also} ended at the edge of its range; {remedy}{floor}"
    ]
  if (share := fit.convergence["resamples_converged"]) < LEAST_CONVERGED:
    return [f"only {share:.0%} of the resamples converged; look for outliers, or {remedy}"]
  return []


def _at(fit: Fit, C: float) -> list[str]:
  """Finds what is undetermined of the optimum at C FLOPs.

  N_opt may lie above the fitted sizes, as predictions of larger budgets do, but not beyond `FAR`
  times the largest; below all of them, at the largest budget or more, no budget's minimum was seen.
  An interval of N_opt of `WIDEST` from end to end is one of tokens per parameter of its square,
  since these are C / 6 N^2; so that is not asked for besides.
  """
  if fit.law.at_end(fit.law.optimum(C)):
    return [f"fit.form={fit.form}: the fitted law has no optimum at {C:.3g} FLOPs; choose another"]
  row = optimum(fit, C)
  row["loss"], row["loss_interval"] = predict_loss(fit, row["N_opt"], row["D_opt"])
  n, low, high = row["N_opt"], fit.runs.N.min(), fit.runs.N.max()
  least = low if fit.runs.C.max() <= C else low / FAR
  if n < least or n > FAR * high:
    side, where = ("smaller", "below") if n < low else ("larger", "far above")
    return [
      f"N_opt at {C:.3g} FLOPs is {n:.3g}, {where} the fitted sizes, {low:.3g} to {high:.3g}; "
      f"train {side} models"
    ]
  for name in ("N_opt", "loss"):
    value, (least, most) = row[name], row[f"{name}_interval"]
    if not np.isfinite([value, least, most]).all():
      return [f"{name} at {C:.3g} FLOPs is not finite; look for outliers in loss"]
    if most > WIDEST * least:
      return [
        f"{name} at {C:.3g} FLOPs is {value:.3g} [{least:.3g}, {most:.3g}], more than a factor "
        f"{WIDEST:g} wide; train more sizes at each budget, or a wider range of budgets"
      ]
  return []
