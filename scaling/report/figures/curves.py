"""The training curves: loss against tokens and against compute."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scaling.laws.tables.curves import join, read_curves, train_losses
from scaling.report.figures import style
from scaling.report.sweep_results import Cell, Results, column

POINTS = 200  # of a drawn curve


def training_curves(results: Results) -> Figure:
  """Draws the smoothed train loss of trunks and their cooldowns, and the final evaluations."""
  cells, best = results.done("fit", "heldout"), results.optima
  figure = Figure(figsize=(style.DOUBLE, 2.7))
  left, right = panels = figure.subplots(1, 2, sharey=True)
  shade = style.color_bar(figure, [left, right], column(cells, "N"), "N")
  optim = results.config.get("optim", {})
  constant = 1 - optim.get("cooldown_fraction", 0) if optim.get("schedule") == "wsd" else 0
  start = 0.1 * min(column(cells, "D"))
  top, drawn = max(column(cells, "loss")), set()
  trunks = {c["id"]: c.get("trunk") for c in results.sweep.get("cells", [])}
  for cell in cells:
    name, trunk = cell["cell"], trunks.get(cell["cell"])
    curve = train_losses(results.workdir / "cells" / name)
    stem, branch, until = curve, constant * cell["D"], constant * cell["D"]
    if trunk and curve.size:
      stem, branch, until = train_losses(results.workdir / "trunks" / trunk), curve[0, 0], math.inf
      curve = join(stem, curve)
    color = shade(cell["N"])
    if (trunk or name) not in drawn:
      look = {"color": color, "lw": 0.7, "alpha": 0.5, "gid": "constant"}
      top = max(top, _draw(panels, stem, (start, until), cell, look))
      drawn.add(trunk or name)
    look = {"color": color, "lw": 1.1, "gid": "cooldown"}
    top = max(top, _draw(panels, curve, (max(branch, start), math.inf), cell, look))
  for axes, x in ((left, "D"), (right, "C")):
    for kind, look in (
      ("fit", style.DOTS),
      ("heldout", style.DOTS | {"marker": "D", "edgecolors": style.ACCENT}),
    ):
      some = results.done(kind)
      color = shade(column(some, "N"))
      axes.scatter(column(some, x), column(some, "loss"), c=color, **look | {"gid": kind, "s": 18})
  left.set_xlim(start, style.limits(column(cells, "D"))[1])
  right.set_xlim(start * min(c["C"] / c["D"] for c in cells), style.limits(column(cells, "C"))[1])
  style.log_axis(left.xaxis, "tokens processed")
  style.flops_axis(right.xaxis)
  left.set_ylabel("loss [nats/token]")
  low = min(column(cells, "loss"))
  left.set_ylim(low - 0.06 * (top - low), top)
  if best:
    right.plot(column(best, "C"), column(best, "loss"), "k--", lw=0.9, zorder=2, gid="law")
  style.legend(
    figure,
    constant and style.key("constant rate, train", ls="-", lw=0.7, alpha=0.7),
    style.key("cooldown, train" if constant else "train", ls="-", lw=1.2),
    style.key("final validation", marker="o"),
    results.done("heldout") and style.key("held out, validation", marker="D", mec=style.ACCENT),
    best and style.key("law at its optimum", ls="--", color="k", lw=0.9),
    ncols=5,
  )
  return figure


def _draw(
  panels: Sequence[Axes], curve: np.ndarray, span: tuple[float, float], cell: Cell, look: dict
) -> float:
  """Draws a curve [2, t] over a span of tokens, smoothed; returns its first loss, or -inf."""
  tokens, loss = curve
  at = tokens[(tokens >= span[0]) & (tokens <= span[1])]
  if not at.size:
    return -math.inf
  at = np.unique(at[np.searchsorted(at, np.geomspace(at[0], at[-1], POINTS) * (1 - 1e-9))])
  smoothed = smooth(tokens, loss, at)
  for axes, x in zip(panels, (at, at * cell["C"] / cell["D"]), strict=True):
    axes.plot(x, smoothed, **look)
  return float(smoothed[0])


def smooth(tokens: np.ndarray, loss: np.ndarray, at: np.ndarray, width: float = 0.06) -> np.ndarray:
  """Averages `loss` [n] around the tokens `at` [m], by a Gaussian in log tokens."""
  weight = np.exp(-0.5 * ((np.log(at)[:, None] - np.log(tokens)[None, :]) / width) ** 2)
  return weight @ loss / weight.sum(1)


def collapse(results: Results) -> Figure:
  """Draws each run's smoothed train loss over that at its end, against the share of the run.

  As in Qiu et al. 2025 (arXiv:2507.02119), but of all D / N, and no floor is taken off first.
  """
  cells = results.done("fit", "heldout")
  figure = Figure(figsize=(style.SINGLE, 2.7))
  axes = figure.subplots()
  shade = style.color_bar(figure, axes, column(cells, "tokens_per_param"), "D / N")
  share = np.geomspace(0.04, 1.0, POINTS)
  by_id = {cell["cell"]: cell for cell in cells}
  N, D, C = (column(cells, name) for name in "NDC")
  for name, _, tokens, _, loss in read_curves(results.workdir, [*by_id], N, D, C):
    at = share[share * tokens[-1] >= tokens[0]]  # a short run has no point before
    level = smooth(tokens, loss, at * tokens[-1])
    look = {"lw": 1.4, "ls": "--"} if by_id[name]["kind"] == "heldout" else {"lw": 0.8}
    look |= {"color": shade(by_id[name]["tokens_per_param"]), "gid": by_id[name]["kind"]}
    axes.plot(at, level / level[-1], **look)
  style.log_axis(axes.xaxis, "share of the run")
  axes.set_ylabel("train loss, over that at the end")
  return figure
