"""The figure of `isoflop bench --growth`: a panel each, log-log, with the slope of each curve."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from scaling.bench.growth import PANELS, Curve
from scaling.report.figures.style import DOUBLE, SERIES, STYLE, limits, log_axis, save

COLUMNS = 3
LEAST_SPAN = 3.0  # of an axis of seconds, highest over lowest


def draw(curves: Sequence[Curve], stem: Path) -> None:
  """Writes `stem`.pdf and `stem`.png: seconds over what grows, a fitted line through each curve."""
  names = [name for name in PANELS if any(curve.panel == name for curve in curves)]
  rows = -(-len(names) // COLUMNS)
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(DOUBLE, 2.0 * rows))
    grid = figure.add_gridspec(rows, COLUMNS)
    for i, name in enumerate(names):
      own = [curve for curve in curves if curve.panel == name]
      row, column = divmod(i, COLUMNS)
      many = len(own) > 2  # their names are beside the panel, which is the last
      _panel(figure.add_subplot(grid[row, column]), name, own, beside=many)
    save(figure, stem)


def _panel(axes: Axes, name: str, own: Sequence[Curve], beside: bool) -> None:
  for i, curve in enumerate(own):
    look = SERIES[i % len(SERIES)] | {"mfc": "white" if i >= len(SERIES) else None}
    label = f"{curve.name}: {round(curve.slope, 2) + 0.0:.2f}"  # no -0.00
    axes.plot(curve.x, curve.seconds, ls="", label=label, gid="measured", **look)
    slope, offset = np.polyfit(np.log(curve.x), np.log(curve.seconds), 1)
    ends = np.array([curve.x[0], curve.x[-1]])
    line = np.exp(offset) * ends**slope
    axes.plot(ends, line, color=look["color"], lw=0.7, gid="slope")
  seconds = np.concatenate([curve.seconds for curve in own])
  middle = np.sqrt(seconds.min() * seconds.max())  # what hardly changes shall look so
  low, high = limits([*seconds, middle / LEAST_SPAN**0.5, middle * LEAST_SPAN**0.5])
  axes.set(yscale="log", ylim=(low, high))
  log_axis(axes.xaxis, PANELS[name][0], room=4)
  if len(own[0].x) < 5:
    axes.xaxis.set_major_locator(FixedLocator(own[0].x))
  log_axis(axes.yaxis, f"{PANELS[name][1]} [s]", lambda value, _: f"{value:g}", 5)
  legend = axes.legend(
    fontsize=6,
    title="log-log slope",
    title_fontsize=6,
    loc="upper left" if beside else "lower left",
    bbox_to_anchor=(1.05, 1.0) if beside else (0.0, 1.0),
    ncols=1 if beside else len(own),
    columnspacing=1.0,
  )
  legend.set_in_layout(not beside)
