"""How far off forecasts were, against how far out they were made."""

import numpy as np
from matplotlib.figure import Figure

from scaling.report.figures import style
from scaling.report.records import Record, column


def forecast_error(record: Record) -> Figure:
  """Draws predicted minus trained loss of each held-out run [%] against C / C_max.

  The band is what was sealed: the interval of a run at the optimum.
  """
  figure = Figure(figsize=(style.SINGLE, 2.6))
  axes = figure.subplots()
  budgets = record.prediction["budgets"]
  times, loss = column(budgets, "times"), column(budgets, "loss")
  high, low = 100 * (1 - np.array([budget["interval"] for budget in budgets]).T / loss)
  axes.fill_between(times, low, high, color=style.ACCENT, alpha=0.15, lw=0, gid="promised")
  for edge in (low, high):
    axes.plot(times, edge, "-", color=style.ACCENT, lw=0.8)
  axes.axhline(0.0, color="0.4", lw=0.8)
  cells = {cell["cell"]: cell for cell in record.done("heldout")}
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
