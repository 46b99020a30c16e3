"""The law against its runs: contours, predicted and trained losses, residuals, frontier."""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scaling.report.figures import style
from scaling.report.sweep_results import ESTIMATORS, Cell, Results, column, outside


def contours(results: Results) -> Figure:
  """Draws L(N, D), the runs, the compute-optimal frontier and the rule-of-thumb line."""
  figure = Figure(figsize=(style.SINGLE, 3.1))
  axes = figure.subplots()
  fitted, held, best = results.done("fit"), results.done("heldout"), results.optima
  N, D = (np.geomspace(*style.limits(column(fitted + held, x), 0.15), 100) for x in ("N", "D"))
  loss = results.law.loss(N[None, :], D[:, None])
  lines = axes.contour(N, D, loss, levels=14, colors="0.45", linewidths=0.5)
  axes.contourf(N, D, loss, levels=lines.levels, cmap=style.GREYS, zorder=0)
  axes.clabel(lines, np.asarray(lines.levels)[::2], fontsize=6, inline_spacing=2)
  shade = _compute_bar(figure, axes, results)
  axes.scatter(column(fitted, "N"), column(fitted, "D"), c=shade, **style.DOTS)
  diamonds = style.DOTS | {"marker": "D", "c": style.ACCENT, "gid": "heldout"}
  axes.scatter(column(held, "N"), column(held, "D"), **diamonds)
  span = np.geomspace(0.1 * min(column(fitted, "C")), 10 * max(column(fitted + held, "C")), 50)
  path = results.law.optimum(span)
  axes.plot(path.N, path.D, "k-", lw=1.1, gid="frontier")
  axes.plot(column(best, "N_opt"), column(best, "D_opt"), "k*", ms=7, mec="white", mew=0.4,
            zorder=2.5, gid="optimum")  # fmt: skip
  axes.plot(N, results.target * N, "k:", lw=0.9, gid="target")
  axes.set(xlim=(N[0], N[-1]), ylim=(D[0], D[-1]))
  axes.grid(visible=False)
  style.log_axis(axes.xaxis, "parameters $N$")
  style.log_axis(axes.yaxis, "tokens $D$")
  style.legend(
    figure,
    style.key("fitted", marker="o"),
    held and style.key("held out", marker="D", color=style.ACCENT),
    style.key("optimum of the law", ls="-", marker="*", color="k", lw=1.1, mec="white", ms=7),
    style.key(f"{results.target:g} tokens per parameter", ls=":", color="k", lw=0.9),
    ncols=2,
  )
  return figure


def predicted_vs_trained(results: Results) -> Figure:
  """Draws trained against predicted loss, of fitted cells and of held-out ones with intervals."""
  figure = Figure(figsize=(style.SINGLE, 2.85))
  axes = figure.subplots()
  fitted, (held, sealed, interval) = results.done("fit"), _sealed(results)
  shade, predicted = _compute_bar(figure, axes, results), _predicted(results)
  axes.scatter(predicted, column(fitted, "loss"), c=shade, **style.DOTS)
  losses = column(held, "loss")
  _identity(axes, predicted, column(fitted, "loss"), sealed, losses)
  axes.set(xlabel="predicted loss [nats/token]", ylabel="trained loss [nats/token]")
  if held:
    zoom = axes.inset_axes((0.57, 0.09, 0.42, 0.42))
    for panel, gid in ((axes, "heldout"), (zoom, "zoom")):
      panel.hlines(losses, *interval, **style.BAR)
      panel.scatter(sealed, losses, gid=gid, **style.HELD)
    _identity(zoom, interval, losses)
    zoom.tick_params(labelsize=5.5, length=2, pad=1.5)
    zoom.locator_params(nbins=3)
    zoom.spines[["top", "right"]].set_visible(True)
    zoom.set_title("held out", fontsize=6.5, color=style.ACCENT, pad=2)
  style.legend(
    figure,
    style.key("fitted", marker="o"),
    held and style.key("held out, with interval", marker="D", color=style.ACCENT),
    style.key("trained = predicted", ls="-", color="0.4", lw=0.8),
  )
  return figure


def _identity(axes: Axes, *values: Any) -> None:
  """Draws the diagonal, and sets square limits around all values."""
  flat = np.concatenate([np.ravel(v) for v in values])
  pad = 0.06 * np.ptp(flat)
  ends = flat.min() - pad, flat.max() + pad
  axes.plot(ends, ends, color="0.4", lw=0.8, gid="identity")
  axes.set(xlim=ends, ylim=ends, aspect="equal")


def forecast_error(results: Results) -> Figure:
  """Draws predicted minus trained loss of each held-out run [%] against C / C_max.

  The band is what was sealed: the interval of a run at the optimum.
  """
  figure = Figure(figsize=(style.SINGLE, 2.6))
  axes = figure.subplots()
  budgets = results.prediction["budgets"]
  times, loss = column(budgets, "times"), column(budgets, "loss")
  high, low = 100 * (1 - np.array([budget["interval"] for budget in budgets]).T / loss)
  axes.fill_between(times, low, high, color=style.ACCENT, alpha=0.15, lw=0, gid="promised")
  for edge in (low, high):
    axes.plot(times, edge, "-", color=style.ACCENT, lw=0.8)
  axes.axhline(0.0, color="0.4", lw=0.8)
  cells = {cell["cell"]: cell for cell in results.done("heldout")}
  for budget in budgets:
    distance = abs(np.log(column(budget["cells"], "N") / budget["N"]))
    sealed = [row for row in budget["cells"] if row["cell"] in cells]
    trained = np.array([cells[row["cell"]]["loss"] for row in sealed])
    error = 100 * (1 - trained / column(sealed, "predicted_loss"))
    at_optimum = abs(np.log(column(sealed, "N") / budget["N"])) <= distance.min()
    faces = [style.ACCENT if nearest else "white" for nearest in at_optimum]
    look = style.HELD | {"linewidths": 0.7, "gid": "heldout"}
    del look["color"]
    axes.scatter([budget["times"]] * len(error), error, c=faces, edgecolors=style.ACCENT, **look)
  axes.set(xscale="log", xlabel="$C$ / largest fitted $C$")
  axes.set_xticks(times, [f"{value:.3g}" for value in times])
  axes.minorticks_off()
  axes.set_ylabel("predicted − trained loss [%]")
  style.legend(
    figure,
    style.key("run nearest to $N^*$", marker="D", color=style.ACCENT),
    style.key("at another $N$", marker="D", color=style.ACCENT, mfc="white"),
    style.key("sealed interval", marker="s", color=style.ACCENT, alpha=0.25, ms=7),
  )
  return figure


def residuals(results: Results) -> Figure:
  """Draws trained / predicted - 1 against N and against D; a good law leaves no trend."""
  figure = Figure(figsize=(style.DOUBLE, 2.4))
  panels = figure.subplots(1, 2, sharey=True)
  fitted, (held, sealed, interval) = results.done("fit"), _sealed(results)
  shade = _compute_bar(figure, panels, results)
  excess = 100 * (column(fitted, "loss") / _predicted(results) - 1)
  sd = 100 * results.fit.get("residual_sd", 0.0)
  for axes, x, label in zip(panels, "ND", ("parameters $N$", "tokens $D$"), strict=True):
    axes.axhspan(-sd, sd, color="0.93", lw=0, zorder=0, gid="sd")
    axes.axhline(0.0, color="0.4", lw=0.8)
    axes.scatter(column(fitted, x), excess, c=shade, **style.DOTS)
    axes.vlines(column(held, x), *(100 * (interval / sealed - 1)), gid="interval", **style.BAR)
    gap = 100 * (column(held, "loss") / sealed - 1)
    axes.scatter(column(held, x), gap, gid="heldout", **style.HELD)
    style.log_axis(axes.xaxis, label)
  panels[0].set_ylabel("trained / predicted − 1 [%]")
  style.legend(
    figure,
    style.key("fitted", marker="o"),
    held
    and style.key("held out, with the interval of the prediction", marker="D", color=style.ACCENT),
    sd and style.key("± 1 residual standard deviation", marker="s", color="0.9", ms=7),
  )
  return figure


def _compute_bar(figure: Figure, axes: Any, results: Results) -> np.ndarray:
  """Adds a colour bar of C, ticked at the budgets; returns the colours of the fit cells."""
  C = column(results.done("fit"), "C")
  return style.color_bar(figure, axes, C, "C", column(results.profiles, "C"))(C)


def _predicted(results: Results) -> np.ndarray:
  """Evaluates the law at the fit cells [n]."""
  fitted = results.done("fit")
  return results.law.loss(column(fitted, "N"), column(fitted, "D"))


def _sealed(results: Results) -> tuple[list[Cell], np.ndarray, np.ndarray]:
  """Selects the trained held-out cells [n], their sealed losses [n] and intervals [2, n]."""
  rows = {c["cell"]: c for c in results.prediction.get("cells", [])}
  cells = [c for c in results.done("heldout") if c["cell"] in rows]
  sealed = [rows[c["cell"]] for c in cells]
  interval = np.array([row["interval"] for row in sealed], float).reshape(-1, 2).T
  return cells, column(sealed, "predicted_loss"), interval


def frontier(results: Results) -> Figure:
  """Draws the optimal N and the optimal tokens per parameter against compute, with intervals."""
  figure = Figure(figsize=(style.DOUBLE, 2.5))
  left, right = figure.subplots(1, 2)
  best, compute = results.optima, results.law.compute
  minima = [p for p in results.profiles if p["inside"]]
  C = np.geomspace(*style.limits(column(best, "C")), 60)
  path = results.law.optimum(C)
  for axes, name, line in ((left, "N_opt", path.N), (right, "tokens_per_param", path.D / path.N)):
    axes.plot(C, line, "k-", gid="law")
    for row in best:
      color = style.ACCENT if row.get("sealed") else "k"
      axes.vlines(row["C"], *row[f"{name}_interval"], **style.BAR | {"color": color})
      face = "white" if outside(row) else color
      axes.plot(row["C"], row[name], "o", mec=color, mfc=face, zorder=5, gid=name)
  stars: dict[str, Any] = {"ms": 7, "mec": "k", "mew": 0.3, "color": style.SHADES(0.7), "zorder": 6}
  left.plot(column(minima, "C"), column(minima, "minimum_N"), "*", gid="approach2", **stars)
  left.plot(C, compute.params(C, results.target), ":", color="0.4", gid="target")
  right.axhline(results.target, ls=":", color="0.4", gid="target")
  for axes, label in ((left, "optimal $N$ [parameters]"), (right, "optimal tokens per parameter")):
    style.flops_axis(axes.xaxis)
    style.log_axis(axes.yaxis, label)
  style.legend(
    figure,
    style.key("law, with interval", ls="-", marker="o", color="k"),
    style.key("extrapolated", marker="o", color="k", mfc="white"),
    results.prediction
    and style.key("sealed prediction", marker="o", color=style.ACCENT, mfc="white"),
    minima and style.key("isoFLOP minimum", marker="*", **stars),
    style.key(f"{results.target:g} tokens per parameter", ls=":"),
    ncols=5,
  )
  return figure


def validation_sets(results: Results) -> Figure:
  """Draws the loss on each validation set against compute, and its law at its optimum."""
  figure = Figure(figsize=(style.SINGLE, 2.85))
  axes, cells = figure.subplots(), results.done("fit", "heldout")
  C = np.geomspace(*style.limits(column(cells, "C")), 60)
  keys = []
  for row, look in zip(results.sets, style.SERIES, strict=False):
    best = dataclasses.replace(results.law, params=row["params"]).optimum(C)
    axes.plot(C, best.loss, "-", color=look["color"], gid=f"law {row['name']}")
    loss = column(cells, f"loss_{row['name']}")
    axes.plot(column(cells, "C"), loss, ls="", ms=3, gid=row["name"], **look)
    keys.append(style.key(row["name"], ls="-", **look))
  style.flops_axis(axes.xaxis)
  axes.set_ylabel("loss [nats/token]")
  style.legend(figure, *keys, ncols=4)
  return figure


def sensitivity(results: Results) -> Figure:
  """Draws a, with N_opt ~ C^a, of the fit, of the other estimators, and under other choices."""
  fit = results.fit
  rows: list[tuple[str, Any, Any]] = [("the fit", fit["a"], fit["intervals"].get("a"))]
  for row in fit.get("estimators", {}).get("rows", []):
    rows.append((ESTIMATORS[row["estimator"]], row["a"], row["a_interval"]))
  for row in fit["choices"][1:]:
    if row["value"] not in ("LAD", "MSE"):  # they are among the estimators
      rows.append((f"{row['choice']}: {row['value']}", row.get("a"), None))
  rows = [row for row in rows if row[1] is not None]
  figure = Figure(figsize=(style.SINGLE, 0.6 + 0.19 * len(rows)))
  axes = figure.subplots()
  _, a, interval = rows[0]
  axes.axvspan(*(interval or (a, a)), color="0.93", lw=0, zorder=0, gid="interval")
  axes.axvline(a, color="0.4", lw=0.8)
  for y, (_, a, interval) in enumerate(rows):
    color = "k" if y else style.ACCENT
    if interval:
      axes.plot(interval, (y, y), "-", color=color, lw=0.9)
    axes.plot(a, y, "o", mec=color, mfc=color if interval else "white", ms=4, gid="a")
  axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
  axes.set_ylim(len(rows) - 0.5, -0.5)
  axes.set_xlabel("exponent $a$ of $N_{opt} \\sim C^a$")
  axes.grid(visible=False, axis="y")
  style.legend(
    figure,
    style.key("with interval", marker="o", ls="-", color="k"),
    len(fit["choices"]) > 1 and style.key("one choice changed", marker="o", mfc="white"),
    ncols=2,
  )
  return figure
