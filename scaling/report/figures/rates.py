"""The hyperparameter law: loss over rate and batch with the optimum; optima against N and D."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scaling.formats import si
from scaling.laws.rates import optimum, rules
from scaling.laws.rates.grid import Grid
from scaling.laws.rates.optimum import Optimum
from scaling.report.figures import style

LABELS = {"lr": "learning rate", "batch": "batch [tokens]", "timescale": "decay timescale [tokens]"}
CONTOURS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04)  # shares of loss lost


def _rate(value: float, _: object = None) -> str:
  return f"{value:g}"


def loss_over_factors(tuned: dict, grid: Grid) -> Figure:
  """Draws the loss lost over rate and batch at the smallest and the largest (N, D) that are fitted.

  Contours are the law's, dots the runs (crosses diverged); a star is the law's optimum, a diamond
  that of the cell's own runs, and squares are the choices of published rules inside the axes.
  """
  figure, law = Figure(figsize=(style.DOUBLE, 3.0)), optimum.load(tuned)
  fitted = [c for c, cell in enumerate(tuned["cells"]) if cell["own"]]
  order = sorted(fitted, key=lambda c: tuned["cells"][c]["N"] * tuned["cells"][c]["D"])
  panels = figure.subplots(1, 2)
  for axes, c in zip(panels, (order[0], order[-1]), strict=True):
    _surface(axes, tuned, law, grid, c)
  style.legend(
    figure,
    style.key("runs", marker="o"),
    style.key("diverged", marker="x"),
    style.key("best, law", marker="*", color="k", ms=7),
    style.key("best, its own runs", marker="D", color=style.ACCENT),
    style.key("loss lost [%]", ls="-", color="0.45", lw=0.6),
    *(style.key(name, **look) for name, look in zip(_published(), style.SERIES, strict=False)),
    ncols=4,
  )
  return figure


def _published() -> list[str]:
  return [name for name, rule in rules.RULES.items() if rule.powers]


def _surface(axes: Axes, tuned: dict, law: Optimum, grid: Grid, c: int) -> None:
  cell, some = tuned["cells"][c], grid.cell == c
  N, D = cell["N"], cell["D"]
  rate, batch = grid.factors["lr"][some], grid.factors["batch"][some]
  x, y = (np.geomspace(*style.limits(values), 80) for values in (rate, batch))
  others = {name: value for name, value in cell["law"].items() if name not in ("lr", "batch")}
  lost = [[law.loss_lost(N, D, others | {"lr": i, "batch": j}) for i in x] for j in y]
  lines = axes.contour(x, y, 100 * np.array(lost), 100 * np.array(CONTOURS), colors="0.45",
                       linewidths=0.6)  # fmt: skip
  axes.clabel(lines, fmt="%g", fontsize=6)
  excess = grid.loss[some] / grid.lowest[c] - 1
  done = np.isfinite(excess)
  color = style.SHADES(np.clip(excess[done] / CONTOURS[-1], 0, 1))
  axes.scatter(rate[done], batch[done], c=color, **style.DOTS)
  axes.plot(rate[~done], batch[~done], "x", color="0.35", ms=3.5, gid="diverged")
  for name, look in zip(_published(), style.SERIES, strict=False):
    factors = rules.RULES[name].factors(N, D)
    axes.plot(factors["lr"], factors["batch"], ls="", zorder=4, **look)
  axes.plot(cell["own"]["lr"], cell["own"]["batch"], "D", color=style.ACCENT, ms=4, gid="own")
  axes.plot(cell["law"]["lr"], cell["law"]["batch"], "k*", ms=8, mec="white", mew=0.4, gid="law")
  axes.set_title(f"$N$ = {si(N)}, $D$ = {si(D)}", fontsize=8)
  axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
  axes.grid(visible=False)
  style.log_axis(axes.xaxis, LABELS["lr"], _rate)
  style.log_axis(axes.yaxis, LABELS["batch"])


def growth(tuned: dict) -> Figure:
  """Draws each cell's own optimum against N and D, and the law's with its band.

  What the other variable does is taken out by the law: points are moved to its geometric mean.
  """
  law, level = optimum.load(tuned), tuned["level"]
  cells = [cell for cell in tuned["cells"] if cell["own"]]
  points = np.array([[cell["N"], cell["D"]] for cell in cells])
  middle = np.exp(law.centre)
  figure = Figure(figsize=(style.DOUBLE, 2.3 * len(law.names)))
  panels = figure.subplots(len(law.names), 2, sharey="row", squeeze=False)
  for i, name in enumerate(law.names):
    for j, axes in enumerate(panels[i]):
      other = 1 - j
      own = np.array([cell["own"][name] for cell in cells])
      own *= (points[:, other] / middle[other]) ** -law.optimum[i, 1 + other]
      at = np.geomspace(*style.limits(points[:, j], 0.15), 60)
      where = [(v, middle[1]) if j == 0 else (middle[0], v) for v in at]
      axes.plot(at, [law.best(*x)[name] for x in where], "k-", lw=1.0, gid="law")
      if bands := [band for x in where if (band := law.best_interval(*x, level))]:
        low, high = np.transpose([band[name] for band in bands])
        axes.fill_between(at, low, high, color="k", alpha=0.12, lw=0, gid="band")
      axes.scatter(points[:, j], own, color=style.SERIES[0]["color"], **style.DOTS)
      style.log_axis(axes.xaxis, ("parameters $N$", "tokens $D$")[j])
      power = f"${'ND'[j]}^{{{law.optimum[i, 1 + j]:.2f}}}$"
      axes.set_title(f"at ${'ND'[other]}$ = {si(middle[other])}: as {power}", fontsize=8)
    form = _rate if name == "lr" else si
    for axes, label in zip(panels[i][::-1], ("", f"best {LABELS[name]}"), strict=True):
      style.log_axis(axes.yaxis, label, form)
  style.legend(
    figure,
    style.key("of the cell's own runs", marker="o", color=style.SERIES[0]["color"]),
    style.key(f"law, {100 * level:g} % band", ls="-", color="k", lw=1.0),
  )
  return figure


def draw(workdir: Path, tuned: dict, grid: Grid) -> None:
  """Draws the figures that there are runs for, into `figures/`."""
  folder = workdir / "figures"
  if any(cell["own"] for cell in tuned["cells"]):
    style.draw_figure(folder, "tune_optima", growth, tuned)
    if "batch" in grid.factors:
      style.draw_figure(folder, "tune_surface", loss_over_factors, tuned, grid)
