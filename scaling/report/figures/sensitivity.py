"""The exponent a by estimator and by choice, in one figure: what an honest error bar must hold."""

from typing import Any

from matplotlib.figure import Figure

from scaling.report.evidence import ESTIMATORS
from scaling.report.figures.style import ACCENT, SINGLE, key, legend
from scaling.report.records import Record


def rows(record: Record) -> list[tuple[str, float, list[float] | None]]:
  """Returns (label, a, its interval or None): the fit, other estimators, other choices."""
  fit = record.fit
  found: list[tuple[str, Any, Any]] = [("the fit", fit["a"], fit["intervals"].get("a"))]
  for row in fit.get("estimators", {}).get("rows", []):
    label = ESTIMATORS.get(row["estimator"], row["estimator"])
    found.append((label, row["a"], row["a_interval"]))
  for row in fit.get("choices", [])[1:]:
    if row["value"] not in ("LAD", "MSE"):  # which stand among the estimators
      found.append((f"{row['choice']}: {row['value']}", row.get("a"), None))
  return [row for row in found if row[1] is not None]


def sensitivity(record: Record) -> Figure:
  """Draws a, with N_opt ~ C^a, of the fit, of the other estimators, and under other choices."""
  found = rows(record)
  figure = Figure(figsize=(SINGLE, 0.6 + 0.19 * len(found)))
  axes = figure.subplots()
  low, high = found[0][2] or (found[0][1],) * 2
  axes.axvspan(low, high, color="0.93", lw=0, zorder=0, gid="interval")
  axes.axvline(found[0][1], color="0.4", lw=0.8)
  for y, (_, a, ends) in enumerate(found):
    color = ACCENT if y == 0 else "k"
    if ends:
      axes.plot(ends, (y, y), "-", color=color, lw=0.9)
    face = color if ends else "white"
    axes.plot(a, y, "o", mec=color, mfc=face, ms=4, gid="a")
  axes.set_yticks(range(len(found)), [label for label, *_ in found])
  axes.set_ylim(len(found) - 0.5, -0.5)
  axes.set_xlabel("exponent $a$ of $N_{opt} \\sim C^a$")
  axes.grid(visible=False, axis="y")
  legend(
    figure,
    key("with interval", marker="o", ls="-", color="k"),
    len(record.fit.get("choices", [])) > 1 and key("one choice changed", marker="o", mfc="white"),
    ncols=2,
  )
  return figure
