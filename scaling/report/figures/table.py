"""The figures of a sweep, sized and set for a paper; each a function of what lies in its folder.

The same folder gives the same bytes: no dates, no random layout.
"""

from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure

from scaling.report.figures import curves, law, profiles
from scaling.report.sweep_results import Results


class Drawing(NamedTuple):
  """A figure of the report: how it is drawn, and what results it needs (`Results.lacks`)."""

  draw: Callable[[Results], Figure]
  needs: tuple[str, ...]
  caption: str
  sealed: str = ""  # appended to the caption where a prediction was sealed
  extra: bool = False  # whether a sweep is complete without it


FIGURES = {
  "isoflop_profiles": Drawing(profiles.isoflop_profiles, ("profiles",),
    "Loss against model size at each compute budget, with a parabola in log N (approach 2).",
    " The dashed curve is the sealed prediction with its interval."),
  "frontier": Drawing(law.frontier, ("law", "optimum"),
    "Optimal parameters and optimal tokens per parameter against training compute."),
  "predicted_vs_trained": Drawing(law.predicted_vs_trained, ("law", "runs"),
    "Trained against predicted loss.", " Bars are prediction intervals."),
  "contours": Drawing(law.contours, ("law", "runs", "optimum"),
    "The fitted L(N, D), the trained runs and the compute-optimal path."),
  "residuals": Drawing(law.residuals, ("law", "runs"),
    "Trained over predicted loss. A trend in N or D would say that the form is wrong."),
  "validation_sets": Drawing(law.validation_sets, ("law", "runs", "sets"),
    "The loss on each validation set, and its own law at its optimum.", extra=True),
  "forecast_error": Drawing(law.forecast_error, ("law", "budgets"),
    "How far the sealed predictions were off, each run a point, against how far beyond the largest "
    "budget they were made. The band is the sealed interval of a run at the optimum.", extra=True),
  "training_curves": Drawing(curves.training_curves, ("runs", "curves"),
    "Train loss, smoothed in log tokens, and final validation losses."),
  "collapse": Drawing(curves.collapse, ("runs", "curves"),
    "The curves over each other, held-out ones dashed. Those of equal D / N lie close to each "
    "other where the learning rate suits all sizes."),
  "sensitivity": Drawing(law.sensitivity, ("law", "choices"),
    "The exponent of N_opt as other estimators, and other choices, would have it."),
}  # fmt: skip
