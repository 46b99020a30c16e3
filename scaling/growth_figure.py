"""The figure of `isoflop bench --growth`: a panel each, log-log, with the slope of each curve."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from scaling.figures import save
from scaling.growth import PANELS, Curve
from scaling.style import DOUBLE, SERIES, STYLE, log_axis

COLUMNS = 3


def draw(curves: Sequence[Curve], stem: Path) -> None:
  """Writes `stem`.pdf and `stem`.png: seconds over what grows, a fitted line through each curve."""
  names = [name for name in PANELS if any(curve.panel == name for curve in curves)]
  rows = -(-len(names) // COLUMNS)
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(DOUBLE, 2.3 * rows))
    panels = figure.subplots(rows, min(COLUMNS, len(names)), squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
      own = [curve for curve in curves if curve.panel == name]
      for i, curve in enumerate(own):
        look = SERIES[i % len(SERIES)] | {"mfc": "white" if i >= len(SERIES) else None}
        label = f"{curve.name}: {curve.slope:.2f}"
        axes.plot(curve.x, curve.seconds, ls="", label=label, gid="measured", **look)
        slope, offset = np.polyfit(np.log(curve.x), np.log(curve.seconds), 1)
        ends = np.array([curve.x[0], curve.x[-1]])
        line = np.exp(offset) * ends**slope
        axes.plot(ends, line, color=look["color"], lw=0.7, gid="slope")
      log_axis(axes.xaxis, PANELS[name][0])
      log_axis(axes.yaxis, f"{PANELS[name][1]} [s]", lambda value, _: f"{value:g}", 5)
      place: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0.0, 1.0),
        "ncols": 1 + (len(own) > 2),
      }
      axes.legend(fontsize=5.5, title="slope", title_fontsize=5.5, **place)
    for axes in panels[len(names) :]:
      axes.remove()
    save(figure, stem)
