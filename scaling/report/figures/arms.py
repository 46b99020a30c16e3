"""The figure that compares the arms of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from scaling.laws import fit
from scaling.laws.intervals import predictions
from scaling.report.figures import style
from scaling.report.figures.profiles import profile_panel
from scaling.report.sweep_results import Results, column, outside

NAME = "arms"
CAPTION = (
  "Top: isoFLOP profiles of each arm. Middle: losses, and the law at its optimum with its "
  "interval. Losses of different objectives cannot be compared: each panel has its own axis. "
  "Bottom: what can be compared, the optimal parameters and tokens per parameter."
)
COMPARED = {
  "N_opt": "optimal $N$ [parameters]",
  "tokens_per_param": "text tokens per parameter",
  "predicted_tokens_per_param": "predicted tokens per parameter",
}
CURVE_POINTS = 25


def arms(
  sweeps: Mapping[str, Results], laws: Mapping[str, fit.Fit], numbers: Mapping[str, Any]
) -> Figure:
  """Draws the laws side by side: profiles, loss against compute, and the optima together.

  At least one arm has a law; `numbers` are the content of comparison.json.
  """
  result = Figure(figsize=(style.DOUBLE, 6.6))
  count = len(laws)
  grid = result.add_gridspec(3, 3 * count)
  for i, (name, law) in enumerate(laws.items()):
    results = sweeps[name]
    top, middle = (result.add_subplot(grid[row, 3 * i : 3 * i + 3]) for row in (0, 1))
    top.set_title(results.title, fontsize=8)
    keys = profile_panel(top, results) if results.profiles else []
    _loss_panel(middle, results, law)
    if i == 0:
      first = keys
      top.set_ylabel("validation loss [nats/predicted token]")
      middle.set_ylabel("validation loss [nats/predicted token]")
  panels = [result.add_subplot(grid[2, count * i : count * i + count]) for i in range(3)]
  _optimum_panels(panels, {name: numbers["sweeps"][name]["optimum"] for name in laws})
  style.legend(
    result,
    *first,
    style.key("law at its optimum", ls="-", color="k"),
    style.key("extrapolated", marker="o", mfc="white"),
    *(style.key(name, ls="-", **look) for name, look in zip(laws, style.SERIES, strict=False)),
    ncols=5,
  )
  return result


def _loss_panel(axes: Axes, results: Results, law: fit.Fit) -> None:
  """Draws trained losses against compute, and the law at its optimum with its interval."""
  cells, held = results.done("fit"), results.done("heldout")
  span = np.geomspace(*style.limits(column(cells + held, "C")), CURVE_POINTS)
  best = [predictions.optimum(law, C) for C in span]
  C = column(cells, "C")
  shade = style.SHADES(LogNorm(C.min(), C.max() * 1.01)(C))
  low, high = np.array([row["loss_interval"] for row in best]).T
  axes.fill_between(span, low, high, color="0.85", lw=0, zorder=0, gid="interval")
  axes.plot(span, column(best, "loss"), "k-", gid="law")
  axes.scatter(C, column(cells, "loss"), color=shade, **style.DOTS)
  axes.scatter(column(held, "C"), column(held, "loss"), gid="heldout", **style.HELD)
  style.flops_axis(axes.xaxis, room=4)


def _optimum_panels(panels: Sequence[Axes], optima: Mapping[str, list[dict[str, Any]]]) -> None:
  """Draws what can be compared: optimal N, text and predicted tokens per parameter."""
  for i, ((name, rows), look) in enumerate(zip(optima.items(), style.SERIES, strict=False)):
    dodge = 1.03 ** (i - (len(optima) - 1) / 2)  # bars do not hide each other
    color = look["color"]
    for axes, quantity in zip(panels, COMPARED, strict=True):
      C, middle = column(rows, "C") * dodge, column(rows, quantity)
      interval = np.array([row[f"{quantity}_interval"] for row in rows]).T
      axes.vlines(C, *interval, **style.BAR | {"color": color})
      axes.plot(C, middle, "-", color=color, lw=0.8, zorder=4)
      for x, y, row in zip(C, middle, rows, strict=True):
        dot: dict[str, Any] = {"ls": "", "ms": 4, "mfc": "white" if outside(row) else color}
        axes.plot(x, y, **look | dot, zorder=5, gid=f"{name} {quantity}")
  for axes, title in zip(panels, COMPARED.values(), strict=True):
    style.flops_axis(axes.xaxis, room=4)
    style.log_axis(axes.yaxis, title)
