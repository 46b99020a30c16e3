"""Curves of cost: their slopes, and the figure of `isoflop bench --growth`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from scaling.formats import si
from scaling.report.figures.style import DOUBLE, SERIES, STYLE, limits, log_axis, save

COLUMNS = 3
LEAST_SPAN = 3.0  # of an axis of seconds, highest over lowest


class Curve(NamedTuple):
  """What was measured: seconds at each x."""

  panel: str
  name: str
  x: list[float]
  seconds: list[float]

  @property
  def slope(self) -> float:
    """Of log seconds over log x, all points."""
    return float(np.polyfit(np.log(self.x), np.log(self.seconds), 1)[0])

  @property
  def last_slope(self) -> float:
    """Between the last two points: where a constant part weighs least."""
    return float(np.diff(np.log(self.seconds[-2:]))[0] / np.diff(np.log(self.x[-2:]))[0])

  def __str__(self) -> str:
    points = ", ".join(f"{si(x)}: {s:.4g} s" for x, s in zip(self.x, self.seconds, strict=True))
    slopes = f"slope {self.slope:.2f}, at the end {self.last_slope:.2f}"
    return f"{self.panel}, {self.name}: {points}; {slopes}"


def draw(curves: Sequence[Curve], panels: Mapping[str, tuple[Any, ...]], stem: Path) -> None:
  """Writes `stem`.pdf and `stem`.png: seconds over what grows, a fitted line through each curve.

  Args:
    curves: at least one.
    panels: what x is, and what is measured, by name, in the order of the figure.
    stem: the files' path without its suffix.
  """
  names = [name for name in panels if any(curve.panel == name for curve in curves)]
  rows = -(-len(names) // COLUMNS)
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(DOUBLE, 2.0 * rows))
    grid = figure.add_gridspec(rows, COLUMNS)
    for i, name in enumerate(names):
      in_panel = [curve for curve in curves if curve.panel == name]
      _draw_panel(figure.add_subplot(grid[divmod(i, COLUMNS)]), in_panel, *panels[name][:2])
    save(figure, stem)


def _draw_panel(axes: Axes, curves: Sequence[Curve], x: str, measured: str) -> None:
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
  log_axis(axes.xaxis, x, room=4)
  if len(curves[0].x) < 5:
    axes.xaxis.set_major_locator(FixedLocator(curves[0].x))
  log_axis(axes.yaxis, f"{measured} [s]", lambda value, _: f"{value:g}", 5)
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
