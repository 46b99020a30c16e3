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
  panels = {name: [curve for curve in curves if curve.panel == name] for name in PANELS}
  panels = {name: in_panel for name, in_panel in panels.items() if in_panel}
  rows = -(-len(panels) // COLUMNS)
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(DOUBLE, 2.0 * rows))
    grid = figure.add_gridspec(rows, COLUMNS)
    for i, (name, in_panel) in enumerate(panels.items()):
      _draw_panel(figure.add_subplot(grid[divmod(i, COLUMNS)]), name, in_panel)
    save(figure, stem)


def _draw_panel(axes: Axes, name: str, curves: Sequence[Curve]) -> None:
  for i, curve in enumerate(curves):
    look = SERIES[i % len(SERIES)] | {"mfc": "white" if i >= len(SERIES) else None}
    label = f"{curve.name}: {round(curve.slope, 2) + 0.0:.2f}"  # no -0.00
    axes.plot(curve.x, curve.seconds, ls="", label=label, gid="measured", **look)
    slope, offset = np.polyfit(np.log(curve.x), np.log(curve.seconds), 1)
    ends = np.array([curve.x[0], curve.x[-1]])
    axes.plot(ends, np.exp(offset) * ends**slope, color=look["color"], lw=0.7, gid="slope")
  seconds = np.concatenate([curve.seconds for curve in curves])
  middle = np.sqrt(seconds.min() * seconds.max())  # what hardly changes shall look so
  low, high = limits([*seconds, middle / LEAST_SPAN**0.5, middle * LEAST_SPAN**0.5])
  axes.set(yscale="log", ylim=(low, high))
  log_axis(axes.xaxis, PANELS[name].x, room=4)
  if len(curves[0].x) < 5:
    axes.xaxis.set_major_locator(FixedLocator(curves[0].x))
  log_axis(axes.yaxis, f"{PANELS[name].measured} [s]", lambda value, _: f"{value:g}", 5)
  beside = len(curves) > 2  # their names do not fit above; there is room beside the last panel
  legend = axes.legend(
    fontsize=6,
    title="log-log slope",
    title_fontsize=6,
    loc="upper left" if beside else "lower left",
    bbox_to_anchor=(1.05, 1.0) if beside else (0.0, 1.0),
    ncols=1 if beside else len(curves),
    columnspacing=1.0,
  )
  legend.set_in_layout(not beside)
