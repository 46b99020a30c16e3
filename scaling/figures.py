"""Figures of a sweep, sized and set for a paper; a pure function of what lies in its workdir.

`draw(workdir)` writes each figure as PDF and PNG under `figures/`. The same workdir gives the same
bytes: no dates, no random layout. A figure whose inputs are missing is not drawn, and says why.
"""

import csv
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from scaling import laws
from train import files

SINGLE, DOUBLE = 3.4, 7.0  # widths of one and two columns [in]
STYLE: dict[Any, Any] = {
  "font.family": "STIXGeneral",
  "mathtext.fontset": "stix",
  "font.size": 8,
  "legend.fontsize": 7,
  "xtick.labelsize": 7,
  "ytick.labelsize": 7,
  "axes.linewidth": 0.6,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": "0.9",
  "grid.linewidth": 0.5,
  "xtick.major.width": 0.6,
  "ytick.major.width": 0.6,
  "lines.linewidth": 1.0,
  "lines.markersize": 4,
  "legend.frameon": False,
  "legend.columnspacing": 1.2,
  "figure.constrained_layout.use": True,
  "pdf.fonttype": 42,  # TrueType: text in the file stays text
}
SHADES = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.86, 256)))
GREYS = ListedColormap(np.linspace([0.78] * 3, [1.0] * 3, 256))
ACCENT = "#D55E00"  # held out: Okabe and Ito's vermilion, apart from every shade
DOTS: dict[str, Any] = {
  "marker": "o",
  "s": 14,
  "edgecolors": "white",
  "linewidths": 0.4,
  "zorder": 3,
  "gid": "fit",
}
HELD: dict[str, Any] = {"marker": "D", "color": ACCENT, "s": 16, "zorder": 5, "linewidths": 0}
BAR: dict[str, Any] = {"color": ACCENT, "lw": 0.9, "zorder": 4}
COUNTS = {"body_head": "N", "body": "params_body", "total": "params_total"}  # by fit.params
TEXT_COLUMNS = ("cell", "kind", "objective", "status")

Cell = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Record:
  """What a sweep has written so far; a missing file is an empty dict or list."""

  workdir: Path
  sweep: dict[str, Any]
  cells: list[Cell]  # rows of cells.csv: text as text, numbers as float, blanks as nan
  fit: dict[str, Any]
  prediction: dict[str, Any]
  verification: dict[str, Any]

  def done(self, *kinds: str) -> list[Cell]:
    """Returns the cells of these kinds that ran to their end and have a finite loss."""
    done = [c for c in self.cells if c["status"] == "done" and math.isfinite(c["loss"])]
    return [c for c in done if c["kind"] in kinds]

  @property
  def law(self) -> laws.Chinchilla:
    """The fitted law."""
    return laws.Chinchilla(**{k: np.array(v) for k, v in self.fit["params"].items()})

  @property
  def profiles(self) -> list[dict[str, Any]]:
    """The isoFLOP profiles of approach 2, by budget."""
    return sorted(self.fit.get("approach2", {}).get("profiles", []), key=lambda p: p["C"])

  @property
  def optimum(self) -> list[dict[str, Any]]:
    """The compute-optimal points by budget, with the sealed one among them."""
    rows, sealed = list(self.fit.get("optimum", [])), self.prediction
    if rows and sealed:
      pairs = (("N_opt", "N"), ("D_opt", "D"), ("loss", "loss"))
      row = {a: sealed[b] for a, b in pairs} | {
        f"{a}_interval": sealed.get(f"{b}_interval" if b != "loss" else "interval")
        for a, b in pairs
      }
      ratio = {k: sealed[k] for k in ("tokens_per_param", "tokens_per_param_interval")}
      rows.append({"C": sealed["C"], "sealed": True, "extrapolation": math.inf} | row | ratio)
    return sorted(rows, key=lambda o: o["C"])

  @property
  def target(self) -> float:
    """The rule of thumb to compare with [tokens per parameter]."""
    return float(self.sweep.get("config", {}).get("fit", {}).get("target_tokens_per_param", 20.0))

  def lacks(self, *needs: str) -> str:
    """Returns what is missing of "runs", "law", "profiles", "optimum", or ""."""
    there: dict[str, tuple[Any, str]] = {
      "runs": (self.done("fit"), "no fit cell is done"),
      "law": (self.fit.get("params"), "there is no fit.json yet"),
      "profiles": (self.profiles, "fit.json has no isoFLOP profiles"),
      "optimum": (len(self.optimum) > 1, "fit.json has no optimum at two budgets"),
    }
    return next((reason for found, reason in map(there.__getitem__, needs) if not found), "")


def read(workdir: str | Path) -> Record:
  """Reads the records of a sweep, of which any may be missing.

  Raises:
    ValueError: there is no such folder, or a record in it is broken.
  """
  workdir = Path(workdir)
  if not workdir.is_dir():
    raise ValueError(f"workdir={str(workdir)!r}: no such folder; run `isoflop sweep` first")
  cells: list[Cell] = []
  if (workdir / "cells.csv").exists():
    with (workdir / "cells.csv").open(newline="") as lines:
      for row in csv.DictReader(lines):
        cells.append({k: v if k in TEXT_COLUMNS else float(v or "nan") for k, v in row.items()})
  names = ("sweep", "fit", "prediction", "verification")
  records = {name: files.read_json(workdir / f"{name}.json") or {} for name in names}
  counted = records["sweep"].get("config", {}).get("fit", {})
  for cell in cells:  # N and C as the fit counts them
    cell["N"] = cell[COUNTS[counted.get("params", "body_head")]]
    cell["C"] = 6 * cell["N"] * cell["D"] if counted.get("flops") == "6nd" else cell["C"]
    cell["tokens_per_param"] = cell["D"] / cell["N"]
  return Record(workdir, cells=cells, **records)


def column(cells: list[Cell], name: str) -> np.ndarray:
  """Returns one column of some cells [n]."""
  return np.array([c[name] for c in cells], float)


def extrapolated(optimum: dict[str, Any]) -> bool:
  """Returns whether an optimum lies beyond the budgets that were fitted."""
  return optimum.get("extrapolation", 1.0) > 1.05


def _compute(record: Record) -> laws.Compute:
  return laws.Compute(**record.fit["compute"])


def smooth(tokens: np.ndarray, loss: np.ndarray, at: np.ndarray, width: float = 0.06) -> np.ndarray:
  """Returns the mean of `loss` [n] at the tokens `at` [m], Gaussian in log tokens."""
  weight = np.exp(-0.5 * ((np.log(at)[:, None] - np.log(tokens)[None, :]) / width) ** 2)
  return weight @ loss / weight.sum(1)


def _metrics(folder: Path) -> np.ndarray:
  """Returns (tokens, train_loss) [2, n] of a run."""
  rows = files.read_rows(folder / "metrics.jsonl")
  pairs = [(r["tokens"], r["train_loss"]) for r in rows if r.get("train_loss") is not None]
  table = np.array(pairs, float).reshape(-1, 2).T
  return table[:, np.isfinite(table[1]) & (table[0] > 0)]


# --- axes ---------------------------------------------------------------------------------------


def si(value: float, _: Any = None) -> str:
  """Returns a count in three digits with an SI letter: 90_432 -> "90.4k"."""
  if not math.isfinite(value):
    return "–"
  value = float(f"{value:.3g}")
  for scale, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= scale:
      return f"{value / scale:.3g}{letter}"
  return f"{value:.3g}"


def _flops(value: float, _: Any = None) -> str:
  mantissa, exponent = f"{value:.1e}".split("e")
  head = "" if mantissa == "1.0" else f"{float(mantissa):g}{{\\times}}"
  return f"${head}10^{{{int(exponent)}}}$"


def _log(
  axis: XAxis | YAxis, label: str, text: Callable[[float, Any], str] = si, room: int = 6
) -> None:
  """Makes an axis logarithmic, with at most about `room` round ticks, each labelled."""
  axis.axes.set(**{f"{axis.axis_name}scale": "log"})
  low, high = axis.get_view_interval()
  fine = (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
  choices = (fine, (1, 1.5, 2, 3, 4, 6, 8), (1, 2, 5), (1, 3), (1,))
  subs = next((s for s in choices if len(s) * np.log10(high / low) <= room), (1,))
  axis.set_major_locator(LogLocator(subs=subs, numticks=room + 3))
  axis.set_major_formatter(FuncFormatter(text))
  axis.set_minor_locator(NullLocator())
  axis.set_label_text(label)


def _span(values: Any, pad: float = 0.06) -> tuple[float, float]:
  """Returns limits around positive values, padded in the logarithm."""
  low, high = np.log(np.min(values)), np.log(np.max(values))
  margin = max(pad * (high - low), 0.02)
  return float(np.exp(low - margin)), float(np.exp(high + margin))


def _shade(figure: Figure, axes: Any, values: Any, name: str) -> Callable[[Any], Any]:
  """Adds a colour bar, ticked at the values if they are few, and returns value -> colour."""
  few = np.unique([float(f"{v:.3g}" if name == "N" else f"{v:.2g}") for v in values])
  norm = LogNorm(few[0], few[-1] * (1.01 if len(few) == 1 else 1.0), clip=True)
  bar = figure.colorbar(ScalarMappable(norm, SHADES), ax=axes, pad=0.02, aspect=30)
  bar.ax.yaxis.set_major_locator(
    FixedLocator(few.tolist()) if len(few) < 9 else LogLocator(subs=(1, 2, 5))
  )
  bar.ax.yaxis.set_major_formatter(FuncFormatter(si if name == "N" else _flops))
  bar.ax.yaxis.set_minor_locator(NullLocator())
  bar.outline.set_linewidth(0.4)
  bar.set_label({"N": "parameters $N$", "C": "training compute $C$ [FLOPs]"}[name])
  return lambda value: SHADES(norm(value))


def _key(label: str, **style: Any) -> Line2D:
  look: dict[str, Any] = {"color": "0.35", "ls": "", "ms": 4} | style
  return Line2D([], [], label=label, **look)


def _legend(figure: Figure, *handles: Any, ncols: int = 3) -> None:
  figure.legend(handles=[h for h in handles if h], loc="outside upper center", ncols=ncols)


# --- the figures --------------------------------------------------------------------------------


def training_curves(record: Record) -> Figure:
  """Draws the smoothed train loss of trunks and their cooldowns, and the final evaluations."""
  cells = record.done("fit", "heldout")
  figure = Figure(figsize=(DOUBLE, 2.7))
  left, right = figure.subplots(1, 2, sharey=True)
  shade = _shade(figure, [left, right], column(cells, "N"), "N")
  optim = record.sweep.get("config", {}).get("optim", {})
  constant = 1 - optim.get("cooldown_fraction", 0) if optim.get("schedule") == "wsd" else 0
  start = 0.1 * min(column(cells, "D"))
  tops, seen = [max(column(cells, "loss"))], set()

  def curve(rows: np.ndarray, since: float, until: float, cell: Cell, **style: Any) -> None:
    at = rows[0][(rows[0] >= max(since, start)) & (rows[0] <= until)]
    if not at.size:
      return
    at = np.unique(at[np.searchsorted(at, np.geomspace(at[0], at[-1], 200) * (1 - 1e-9))])
    loss = smooth(rows[0], rows[1], at)
    tops.append(loss[0])
    for axes, x in ((left, at), (right, at * cell["C"] / cell["D"])):
      axes.plot(x, loss, color=shade(cell["N"]), **style)

  trunks = {c["id"]: c.get("trunk") for c in record.sweep.get("cells", [])}
  for cell in cells:
    rows = _metrics(record.workdir / "cells" / cell["cell"])
    trunk = trunks.get(cell["cell"])
    stem, branch = rows, constant * cell["D"]
    if trunk and rows.size:
      stem, branch = _metrics(record.workdir / "trunks" / trunk), rows[0, 0]
      rows = np.concatenate([stem[:, stem[0] < branch], rows], axis=1)
    if (trunk or cell["cell"]) not in seen:
      curve(stem, 0, math.inf if trunk else branch, cell, lw=0.7, alpha=0.5, gid="constant")
      seen.add(trunk or cell["cell"])
    curve(rows, branch, math.inf, cell, lw=1.1, gid="cooldown")
  for axes, x in ((left, "D"), (right, "C")):
    for kind, look in (("fit", DOTS), ("heldout", DOTS | {"marker": "D", "edgecolors": ACCENT})):
      some = record.done(kind)
      color = shade(column(some, "N"))
      axes.scatter(column(some, x), column(some, "loss"), c=color, **look | {"gid": kind, "s": 18})
  left.set_xlim(start, _span(column(cells, "D"))[1])
  right.set_xlim(start * min(c["C"] / c["D"] for c in cells), _span(column(cells, "C"))[1])
  _log(left.xaxis, "tokens processed")
  _log(right.xaxis, "training compute [FLOPs]", _flops)
  left.set_ylabel("loss [nats/token]")
  low = min(column(cells, "loss"))
  left.set_ylim(low - 0.06 * (max(tops) - low), max(tops))
  if best := record.optimum:
    right.plot(column(best, "C"), column(best, "loss"), "k--", lw=0.9, zorder=2, gid="law")
  _legend(
    figure,
    constant and _key("constant rate, train", ls="-", lw=0.7, alpha=0.7),
    _key("cooldown, train" if constant else "train", ls="-", lw=1.2),
    _key("final validation", marker="o"),
    record.done("heldout") and _key("held out, validation", marker="D", mec=ACCENT),
    best and _key("law at its optimum", ls="--", color="k", lw=0.9),
    ncols=5,
  )
  return figure


def isoflop_profiles(record: Record) -> Figure:
  """Draws loss against N per budget with parabola and minimum, and the held-out budget."""
  figure = Figure(figsize=(SINGLE, 3.1))
  axes = figure.subplots()
  norm = LogNorm(record.profiles[0]["C"], record.profiles[-1]["C"] * 1.01)
  inside = [p["inside"] for p in record.profiles]

  def name(C: float, N: Any, loss: Any, color: Any) -> None:
    point = max(zip(N, loss, strict=True))
    text: dict[str, Any] = {
      "xytext": (5, 0),
      "textcoords": "offset points",
      "fontsize": 7,
      "va": "center",
    }
    axes.annotate(_flops(C), point, color=color, **text)

  for profile in record.profiles:
    color, N = SHADES(norm(profile["C"])), np.array(profile["N"], float)
    axes.plot(N, profile["loss"], "o", color=color, ms=3.5, mec="white", mew=0.3, gid="runs")
    name(profile["C"], N, profile["loss"], color)
    if profile.get("coefficients"):
      at = np.geomspace(N.min(), N.max(), 100)
      bowl = np.polynomial.polynomial.polyval(np.log(at), profile["coefficients"])
      axes.plot(at, bowl, "-" if profile["inside"] else ":", color=color, lw=0.9, gid="parabola")
    if profile["inside"]:
      star: dict[str, Any] = {"ms": 8, "mec": "k", "mew": 0.4, "zorder": 4, "gid": "minimum"}
      axes.plot(profile["minimum_N"], profile["minimum_loss"], "*", color=color, **star)
    else:
      low = int(np.argmin(profile["loss"]))
      axes.plot(N[low], profile["loss"][low], "s", mfc="none", mec=color, ms=7, gid="open")
  if held := record.done("heldout"):
    N, loss = column(held, "N"), column(held, "loss")
    error = column(held, "loss_stderr")
    axes.vlines(N, loss - error, loss + error, **BAR)
    axes.scatter(N, loss, gid="heldout", **HELD)
    name(held[0]["C"], N, loss, ACCENT)
  sealed = sorted(record.prediction.get("cells", []), key=lambda c: c["N"])
  if len(sealed) > 1:  # a curve through the predictions: quadratic in log N
    x = np.log(column(sealed, "N"))
    at = np.linspace(x[0], x[-1], 60)
    rows_3n = [[c["predicted_loss"], *c["interval"]] for c in sealed]
    middle, low, high = np.polynomial.polynomial.polyval(
      at, np.polynomial.polynomial.polyfit(x, rows_3n, min(2, len(x) - 1))
    )
    axes.fill_between(np.exp(at), low, high, color=ACCENT, alpha=0.15, lw=0)
    axes.plot(np.exp(at), middle, "--", color=ACCENT, lw=0.8, gid="predicted")
  _log(axes.xaxis, "parameters $N$")
  left, right = axes.get_xlim()
  axes.set_xlim(left, right * (right / left) ** 0.14)  # room for the names of the budgets
  axes.set_ylabel("validation loss [nats/token]")
  _legend(
    figure,
    _key("trained", marker="o"),
    any(inside) and _key("minimum", marker="*", ms=7, mec="k", mew=0.4),
    not all(inside) and _key("no interior minimum", marker="s", ms=6, mfc="none"),
    held and _key("held out, trained", marker="D", color=ACCENT),
    len(sealed) > 1 and _key("held out, predicted", ls="--", lw=0.8, color=ACCENT),
  )
  return figure


def contours(record: Record) -> Figure:
  """Draws L(N, D), the runs, the compute-optimal frontier and the rule-of-thumb line."""
  figure = Figure(figsize=(SINGLE, 3.1))
  axes = figure.subplots()
  fitted, held, best = record.done("fit"), record.done("heldout"), record.optimum
  N, D = (np.geomspace(*_span(column(fitted + held, x), 0.15), 100) for x in ("N", "D"))
  loss = laws.loss(record.law, N[None, :], D[:, None])
  lines = axes.contour(N, D, loss, levels=14, colors="0.45", linewidths=0.5)
  axes.contourf(N, D, loss, levels=lines.levels, cmap=GREYS, zorder=0)
  axes.clabel(lines, np.asarray(lines.levels)[::2], fontsize=6, inline_spacing=2)
  shade = _shade(figure, axes, [p["C"] for p in record.profiles] or column(fitted, "C"), "C")
  axes.scatter(column(fitted, "N"), column(fitted, "D"), c=shade(column(fitted, "C")), **DOTS)
  diamonds = DOTS | {"marker": "D", "c": ACCENT, "gid": "heldout"}
  axes.scatter(column(held, "N"), column(held, "D"), **diamonds)
  span = np.geomspace(0.1 * min(column(fitted, "C")), 10 * max(column(fitted + held, "C")), 50)
  path = laws.optimum(record.law, span, _compute(record))
  axes.plot(path.N, path.D, "k-", lw=1.1, gid="frontier")
  axes.plot(column(best, "N_opt"), column(best, "D_opt"), "k*", ms=7, mec="white", mew=0.4,
            zorder=2.5, gid="optimum")  # fmt: skip
  axes.plot(N, record.target * N, "k:", lw=0.9, gid="target")
  axes.set(xlim=(N[0], N[-1]), ylim=(D[0], D[-1]))
  axes.grid(visible=False)
  _log(axes.xaxis, "parameters $N$")
  _log(axes.yaxis, "tokens $D$")
  _legend(
    figure,
    _key("fitted", marker="o"),
    held and _key("held out", marker="D", color=ACCENT),
    _key("optimum of the law", ls="-", marker="*", color="k", lw=1.1, mec="white", ms=7),
    _key(f"{record.target:g} tokens per parameter", ls=":", color="k", lw=0.9),
    ncols=2,
  )
  return figure


def _sealed(record: Record) -> tuple[list[Cell], np.ndarray, np.ndarray]:
  """Returns the trained held-out cells [n], their sealed losses [n] and intervals [2, n]."""
  rows = {c["cell"]: c for c in record.prediction.get("cells", [])}
  cells = [c for c in record.done("heldout") if c["cell"] in rows]
  interval = np.array([rows[c["cell"]]["interval"] for c in cells], float).reshape(-1, 2).T
  return cells, np.array([rows[c["cell"]]["predicted_loss"] for c in cells], float), interval


def predicted_vs_trained(record: Record) -> Figure:
  """Draws trained against predicted loss, of fitted cells and of held-out ones with intervals."""
  figure = Figure(figsize=(SINGLE, 2.85))
  axes = figure.subplots()
  fitted, (held, sealed, interval) = record.done("fit"), _sealed(record)
  shade = _shade(figure, axes, [p["C"] for p in record.profiles] or column(fitted, "C"), "C")
  predicted = laws.loss(record.law, column(fitted, "N"), column(fitted, "D"))
  axes.scatter(predicted, column(fitted, "loss"), c=shade(column(fitted, "C")), **DOTS)

  def identity(panel: Axes, *values: Any) -> None:
    every = np.concatenate([np.ravel(v) for v in values])
    pad = 0.06 * np.ptp(every)
    ends = every.min() - pad, every.max() + pad
    panel.plot(ends, ends, color="0.4", lw=0.8, gid="identity")
    panel.set(xlim=ends, ylim=ends, aspect="equal")

  losses = column(held, "loss")
  identity(axes, predicted, column(fitted, "loss"), sealed, losses)
  axes.set(xlabel="predicted loss [nats/token]", ylabel="trained loss [nats/token]")
  if held:
    zoom = axes.inset_axes((0.57, 0.09, 0.42, 0.42))
    for panel, gid in ((axes, "heldout"), (zoom, "zoom")):
      panel.hlines(losses, *interval, **BAR)
      panel.scatter(sealed, losses, gid=gid, **HELD)
    identity(zoom, interval, losses)
    zoom.tick_params(labelsize=5.5, length=2, pad=1.5)
    zoom.locator_params(nbins=3)
    zoom.spines[["top", "right"]].set_visible(True)
    zoom.set_title("held out", fontsize=6.5, color=ACCENT, pad=2)
  _legend(
    figure,
    _key("fitted", marker="o"),
    held and _key("held out, with interval", marker="D", color=ACCENT),
    _key("trained = predicted", ls="-", color="0.4", lw=0.8),
  )
  return figure


def residuals(record: Record) -> Figure:
  """Draws trained / predicted - 1 against N and against D; a good law leaves no trend."""
  figure = Figure(figsize=(DOUBLE, 2.4))
  panels = figure.subplots(1, 2, sharey=True)
  fitted, (held, sealed, interval) = record.done("fit"), _sealed(record)
  shade = _shade(figure, panels, [p["C"] for p in record.profiles] or column(fitted, "C"), "C")
  predicted = laws.loss(record.law, column(fitted, "N"), column(fitted, "D"))
  excess = 100 * (column(fitted, "loss") / predicted - 1)
  sd = 100 * record.fit.get("residual_sd", 0.0)
  for axes, x, label in zip(panels, "ND", ("parameters $N$", "tokens $D$"), strict=True):
    axes.axhspan(-sd, sd, color="0.93", lw=0, zorder=0, gid="sd")
    axes.axhline(0.0, color="0.4", lw=0.8)
    axes.scatter(column(fitted, x), excess, c=shade(column(fitted, "C")), **DOTS)
    axes.vlines(column(held, x), *(100 * (interval / sealed - 1)), gid="interval", **BAR)
    gap = 100 * (column(held, "loss") / sealed - 1)
    axes.scatter(column(held, x), gap, gid="heldout", **HELD)
    _log(axes.xaxis, label)
  panels[0].set_ylabel("trained / predicted − 1 [%]")
  _legend(
    figure,
    _key("fitted", marker="o"),
    held and _key("held out, with the interval of the prediction", marker="D", color=ACCENT),
    sd and _key("± 1 residual standard deviation", marker="s", color="0.9", ms=7),
  )
  return figure


def frontier(record: Record) -> Figure:
  """Draws the optimal N and the optimal tokens per parameter against compute, with intervals."""
  figure = Figure(figsize=(DOUBLE, 2.5))
  left, right = figure.subplots(1, 2)
  best, compute = record.optimum, _compute(record)
  minima = [p for p in record.profiles if p["inside"]]
  C = np.geomspace(*_span(column(best, "C")), 60)
  path = laws.optimum(record.law, C, compute)
  for axes, name, line in ((left, "N_opt", path.N), (right, "tokens_per_param", path.D / path.N)):
    axes.plot(C, line, "k-", gid="law")
    for o in best:
      color = ACCENT if o.get("sealed") else "k"
      axes.vlines(o["C"], *o[f"{name}_interval"], **BAR | {"color": color})
      face = "white" if extrapolated(o) else color
      axes.plot(o["C"], o[name], "o", mec=color, mfc=face, zorder=5, gid=name)
  stars = {"ms": 7, "mec": "k", "mew": 0.3, "color": SHADES(0.7), "zorder": 6}
  left.plot(column(minima, "C"), column(minima, "minimum_N"), "*", gid="approach2", **stars)
  left.plot(C, compute.params(C, record.target), ":", color="0.4", gid="target")
  right.axhline(record.target, ls=":", color="0.4", gid="target")
  for axes, label in ((left, "optimal $N$ [parameters]"), (right, "optimal tokens per parameter")):
    _log(axes.xaxis, "training compute [FLOPs]", _flops)
    _log(axes.yaxis, label)
  _legend(
    figure,
    _key("law, with interval", ls="-", marker="o", color="k"),
    _key("extrapolated", marker="o", color="k", mfc="white"),
    record.prediction and _key("sealed prediction", marker="o", color=ACCENT, mfc="white"),
    minima and _key("isoFLOP minimum", marker="*", **stars),
    _key(f"{record.target:g} tokens per parameter", ls=":"),
    ncols=5,
  )
  return figure


FIGURES: dict[str, tuple[Callable[[Record], Figure], tuple[str, ...]]] = {
  "isoflop_profiles": (isoflop_profiles, ("profiles",)),
  "frontier": (frontier, ("law", "optimum")),
  "predicted_vs_trained": (predicted_vs_trained, ("law", "runs")),
  "contours": (contours, ("law", "runs", "optimum")),
  "residuals": (residuals, ("law", "runs")),
  "training_curves": (training_curves, ("runs",)),
}


def draw(workdir: str | Path) -> dict[str, str]:
  """Writes the figures that the records allow to `figures/NAME.pdf` and `figures/NAME.png`.

  Returns:
    By figure, "" if it was drawn, or else what is missing.

  Raises:
    ValueError: there is no such folder, or a record in it is broken.
  """
  record = read(workdir)
  stem = record.workdir / "figures"
  stem.mkdir(exist_ok=True)
  missing = {name: record.lacks(*needs) for name, (_, needs) in FIGURES.items()}
  with matplotlib.rc_context(STYLE):
    for name, (make, _) in FIGURES.items():
      if not missing[name]:
        figure = make(record)
        figure.savefig(stem / f"{name}.pdf", metadata={"CreationDate": None})
        figure.savefig(stem / f"{name}.png", dpi=220, metadata={"Software": None})
  return missing
