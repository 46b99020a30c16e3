"""The style of the figures: colours, logarithmic axes with round ticks, legends, files."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axis import XAxis, YAxis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from scaling.formats import si
from train.system import files

SINGLE, DOUBLE = 3.4, 7.0  # widths of one and two columns [in]
STYLE: dict[Any, Any] = {
  "font.family": "STIXGeneral", "mathtext.fontset": "stix",
  "font.size": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
  "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
  "axes.grid": True, "axes.axisbelow": True, "grid.color": "0.9", "grid.linewidth": 0.5,
  "xtick.major.width": 0.6, "ytick.major.width": 0.6,
  "lines.linewidth": 1.0, "lines.markersize": 4,
  "legend.frameon": False, "legend.columnspacing": 1.2,
  "figure.constrained_layout.use": True,
  "pdf.fonttype": 42,  # TrueType: text in the file stays text
}  # fmt: skip
SHADES = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.86, 256)))
GREYS = ListedColormap(np.linspace([0.78] * 3, [1.0] * 3, 256))
ACCENT = "#D55E00"  # held out: Okabe and Ito's vermilion, apart from every shade
SERIES: list[dict[str, Any]] = [  # by objective: Okabe and Ito's colours, and a marker each
  {"color": color, "marker": marker}
  for color, marker in zip(
    ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"), "os^vP", strict=True
  )
]
DOTS: dict[str, Any] = {
  "marker": "o", "s": 14, "edgecolors": "white", "linewidths": 0.4, "zorder": 3, "gid": "fit"
}  # fmt: skip
HELD: dict[str, Any] = {"marker": "D", "color": ACCENT, "s": 16, "zorder": 5, "linewidths": 0}
BAR: dict[str, Any] = {"color": ACCENT, "lw": 0.9, "zorder": 4}


def tex_flops(value: float, _: Any = None) -> str:
  """Formats FLOPs in TeX: a power of ten with a mantissa of two digits."""
  mantissa, exponent = f"{value:.1e}".split("e")
  head = "" if mantissa == "1.0" else f"{float(mantissa):g}{{\\times}}"
  return f"${head}10^{{{int(exponent)}}}$"


def log_axis(
  axis: XAxis | YAxis, label: str, form: Callable[[float, Any], str] = si, room: int = 6
) -> None:
  """Makes an axis logarithmic, with at most about `room` round ticks, each labelled."""
  axis.axes.set(**{f"{axis.axis_name}scale": "log"})
  low, high = axis.get_view_interval()
  fine = (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
  choices = (fine, (1, 1.5, 2, 3, 4, 6, 8), (1, 2, 5), (1, 3), (1,))
  subs = next((s for s in choices if len(s) * np.log10(high / low) <= room), (1,))
  axis.set_major_locator(LogLocator(subs=subs, numticks=room + 3))
  axis.set_major_formatter(FuncFormatter(form))
  axis.set_minor_locator(NullLocator())
  axis.set_label_text(label)


def flops_axis(axis: XAxis, room: int = 6) -> None:
  """Makes an axis that of the training compute."""
  log_axis(axis, "training compute [FLOPs]", tex_flops, room)


def limits(values: Any, pad: float = 0.06) -> tuple[float, float]:
  """Computes limits around positive values, padded in the logarithm."""
  low, high = np.log(np.min(values)), np.log(np.max(values))
  margin = max(pad * (high - low), 0.02)
  return float(np.exp(low - margin)), float(np.exp(high + margin))


def color_bar(
  figure: Figure, axes: Any, values: Any, name: str, ticks: Any = ()
) -> Callable[[Any], Any]:
  """Adds a colour bar of N, C or D / N, ticked at `ticks`, else at all values if they are few.

  Returns:
    The colours of values, as a function.
  """
  norm = LogNorm(np.min(values), np.max(values) * 1.01, clip=True)
  bar = figure.colorbar(ScalarMappable(norm, SHADES), ax=axes, pad=0.02, aspect=30)
  round_ = ".3g" if name == "N" else ".2g"
  ticked = sorted({float(f"{v:{round_}}") for v in (ticks if len(ticks) else values)})
  bar.ax.yaxis.set_major_locator(
    FixedLocator(ticked) if len(ticked) < 9 else LogLocator(subs=(1, 2, 5))
  )
  bar.ax.yaxis.set_major_formatter(FuncFormatter(tex_flops if name == "C" else si))
  bar.ax.yaxis.set_minor_locator(NullLocator())
  bar.outline.set_linewidth(0.4)
  labels = {"N": "parameters $N$", "C": "training compute $C$ [FLOPs]", "D / N": "$D / N$"}
  bar.set_label(labels[name])
  return lambda value: SHADES(norm(value))


def key(label: str, **style: Any) -> Line2D:
  """Makes an entry of a legend."""
  look: dict[str, Any] = {"color": "0.35", "ls": "", "ms": 4} | style
  return Line2D([], [], label=label, **look)


def legend(figure: Figure, *handles: Any, ncols: int = 3) -> None:
  """Adds a legend above the axes; entries that are false are left out."""
  figure.legend(handles=[h for h in handles if h], loc="outside upper center", ncols=ncols)


def draw_figure(folder: Path, name: str, make: Callable[..., Figure], *args: Any) -> None:
  """Makes a figure in this style; writes it to a folder as `name`.pdf and .png, without dates."""
  folder.mkdir(exist_ok=True)
  vector, pixels = io.BytesIO(), io.BytesIO()
  with matplotlib.rc_context(STYLE):
    figure = make(*args)
    figure.savefig(vector, format="pdf", metadata={"CreationDate": None})
    figure.set_layout_engine("none")  # the layout takes a third of the time, and is settled by now
    figure.savefig(pixels, format="png", dpi=220, metadata={"Software": None})
  files.write_bytes(folder / f"{name}.pdf", vector.getvalue())
  files.write_bytes(folder / f"{name}.png", pixels.getvalue())
