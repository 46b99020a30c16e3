"""The isoFLOP profiles: loss against N at each budget, with parabolas and the held-out budget."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from scaling.report.figures import style
from scaling.report.sweep_results import Results, column

LINE = 8.0  # height of a line of text [points]
MOST_STEPS = 200  # in which labels are moved apart

Label = tuple[float, tuple[float, float], Any]  # of a budget: C, its point (N, loss), colour


def isoflop_profiles(results: Results) -> Figure:
  """Draws loss against N per budget with parabola and minimum, and the held-out budget."""
  figure = Figure(figsize=(style.SINGLE, 3.1))
  axes = figure.subplots()
  keys = profile_panel(axes, results)
  axes.set_ylabel("validation loss [nats/token]")
  style.legend(figure, *keys)
  return figure


def profile_panel(axes: Axes, results: Results) -> list[Any]:
  """Draws the isoFLOP profiles into axes, and returns the entries of their legend."""
  profiles, labels = results.profiles, list[Label]()
  norm = LogNorm(profiles[0]["C"], profiles[-1]["C"] * 1.01)
  for profile in profiles:
    N, loss = np.array(profile["N"], float), profile["loss"]
    color = style.SHADES(norm(profile["C"]))
    axes.plot(N, loss, "o", color=color, ms=3.5, mec="white", mew=0.3, gid="runs")
    labels.append((profile["C"], max(zip(N, loss, strict=True)), color))
    if profile.get("coefficients"):
      at = np.geomspace(N.min(), N.max(), 100)
      parabola = np.polynomial.polynomial.polyval(np.log(at), profile["coefficients"])
      line = "-" if profile["inside"] else ":"
      axes.plot(at, parabola, line, color=color, lw=0.9, gid="parabola")
    if profile["inside"]:
      star: dict[str, Any] = {"ms": 8, "mec": "k", "mew": 0.4, "zorder": 4, "gid": "minimum"}
      axes.plot(profile["minimum_N"], profile["minimum_loss"], "*", color=color, **star)
    else:
      low = int(np.argmin(loss))
      axes.plot(N[low], loss[low], "s", mfc="none", mec=color, ms=7, gid="open")
  if held := results.done("heldout"):
    N, loss, error = (column(held, name) for name in ("N", "loss", "loss_stderr"))
    axes.vlines(N, loss - error, loss + error, **style.BAR)
    axes.scatter(N, loss, gid="heldout", **style.HELD)
  budgets = results.prediction.get("budgets", [])
  for budget in budgets:
    names = {cell["cell"] for cell in budget["cells"]}
    if points := [(cell["N"], cell["loss"]) for cell in held if cell["cell"] in names]:
      labels.append((budget["C"], max(points), style.ACCENT))
    sealed = sorted({c["N"]: c for c in budget["cells"]}.values(), key=lambda c: c["N"])
    if len(sealed) < 2:
      continue
    x = np.log(column(sealed, "N"))
    at = np.linspace(x[0], x[-1], 60)
    losses = [[c["predicted_loss"], *c["interval"]] for c in sealed]  # quadratic in log N
    coefficients = np.polynomial.polynomial.polyfit(x, losses, min(2, len(x) - 1))
    middle, low, high = np.polynomial.polynomial.polyval(at, coefficients)
    axes.fill_between(np.exp(at), low, high, color=style.ACCENT, alpha=0.15, lw=0)
    axes.plot(np.exp(at), middle, "--", color=style.ACCENT, lw=0.8, gid="predicted")
  style.log_axis(axes.xaxis, "parameters $N$")
  left, right = axes.get_xlim()
  axes.set_xlim(left, right * (right / left) ** 0.14)  # room for the labels of the budgets
  label_budgets(axes, labels)
  inside = [p["inside"] for p in profiles]
  return [
    style.key("trained", marker="o"),
    any(inside) and style.key("minimum", marker="*", ms=7, mec="k", mew=0.4),
    not all(inside) and style.key("no interior minimum", marker="s", ms=6, mfc="none"),
    held and style.key("held out, trained", marker="D", color=style.ACCENT),
    budgets and style.key("held out, predicted", ls="--", lw=0.8, color=style.ACCENT),
  ]


def label_budgets(axes: Axes, labels: list[Label]) -> None:
  """Writes each budget beside its point, and moves labels apart that would overlap."""
  labels = sorted(labels, key=lambda label: label[1][1])
  low, high = axes.get_ylim()
  height = axes.get_window_extent().height * 72 / axes.figure.dpi  # [points]
  at = np.array([point[1] for _, point, _ in labels]) * height / (high - low)
  moved = at.copy()
  for _ in range(MOST_STEPS):
    push = np.maximum(0, LINE - np.diff(moved)) / 2
    moved[1:] += push
    moved[:-1] -= push
  for (C, point, color), up in zip(labels, moved - at, strict=True):
    look = {"color": color, "fontsize": 7, "va": "center"}
    axes.annotate(style.tex_flops(C), point, (5, up), textcoords="offset points", **look)
