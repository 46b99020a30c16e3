"""The comparison of several objectives as one figure, and as the blocks of its report."""

import math
from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from scaling.formats import bracket, flops, nats, number, ratio, si, yes_no
from scaling.laws import fit
from scaling.progress import duration
from scaling.report import compare
from scaling.report.compare import Side, budgets, optimum
from scaling.report.figures.style import (
  BAR,
  DOTS,
  DOUBLE,
  HELD,
  SERIES,
  SHADES,
  STYLE,
  key,
  legend,
  limits,
  log_axis,
  tex_flops,
)
from scaling.report.figures.sweep import profile_panel, save
from scaling.report.records import Record, column, extrapolated
from scaling.report.render import Block, Heading, Image, Table, Text
from train.system import files

NAME = "objectives"  # of the figure
CAPTION = (
  "Top: isoFLOP profiles of each objective. Middle: losses, and the law at its optimum with its "
  "interval. Losses of different objectives cannot be compared: each panel has its own axis. "
  "Bottom: what can be compared, the optimal parameters and tokens per parameter."
)


def figure(sides: list[Side]) -> Figure:
  """Draws the laws side by side: profiles, loss against compute, and the optima together.

  Args:
    sides: those that have a law, one at least.
  """
  result = Figure(figsize=(DOUBLE, 6.6))
  grid = result.add_gridspec(3, 3 * len(sides))
  for i, side in enumerate(sides):
    top, middle = (result.add_subplot(grid[row, 3 * i : 3 * i + 3]) for row in (0, 1))
    top.set_title(side.title, fontsize=8)
    keys = profile_panel(top, side.record) if side.record.profiles else []
    _loss_panel(middle, side)
    if i == 0:
      first = keys
      top.set_ylabel("validation loss [nats/predicted token]")
      middle.set_ylabel("validation loss [nats/predicted token]")
  width = len(sides)
  panels = [result.add_subplot(grid[2, width * i : width * i + width]) for i in range(3)]
  _optimum_panels(panels, sides)
  legend(
    result,
    *first,
    key("law at its optimum", ls="-", color="k"),
    key("extrapolated", marker="o", mfc="white"),
    *(key(s.objective, ls="-", **look) for s, look in zip(sides, SERIES, strict=False)),
    ncols=5,
  )
  return result


def _loss_panel(axes: Axes, side: Side) -> None:
  """Draws trained losses against compute, and the law at its optimum with its interval."""
  assert side.law is not None
  cells, held = side.record.done("fit"), side.record.done("heldout")
  spent = column(cells + held, "C")
  every = np.geomspace(*limits(spent), 25)
  best = [fit.optimum(side.law, at) for at in every]
  C = column(cells, "C")
  shade = SHADES(LogNorm(C.min(), C.max() * 1.01)(C))
  low, high = np.array([row["loss_interval"] for row in best]).T
  axes.fill_between(every, low, high, color="0.85", lw=0, zorder=0, gid="interval")
  axes.plot(every, column(best, "loss"), "k-", gid="law")
  axes.scatter(C, column(cells, "loss"), color=shade, **DOTS)
  axes.scatter(column(held, "C"), column(held, "loss"), gid="heldout", **HELD)
  log_axis(axes.xaxis, "training compute [FLOPs]", tex_flops, room=4)


def _optimum_panels(panels: list[Axes], sides: list[Side]) -> None:
  """Draws what can be compared: optimal N, text and predicted tokens per parameter."""
  every = budgets(sides)
  names = ("N_opt", "tokens_per_param", "predicted_tokens_per_param")
  for side, look in zip(sides, SERIES, strict=False):
    rows = [optimum(side, C) for C in every]
    dodge = 1.03 ** (sides.index(side) - (len(sides) - 1) / 2)  # bars do not hide each other
    for axes, name in zip(panels, names, strict=True):
      C, middle = column(rows, "C") * dodge, column(rows, name)
      axes.vlines(C, *np.array([row[f"{name}_interval"] for row in rows]).T,
                  **BAR | {"color": look["color"]})  # fmt: skip
      axes.plot(C, middle, "-", color=look["color"], lw=0.8, zorder=4)
      for x, y, row in zip(C, middle, rows, strict=True):
        face = "white" if extrapolated(row) else look["color"]
        axes.plot(
          x, y, **look | {"ls": ""}, mfc=face, ms=4, zorder=5, gid=f"{side.objective} {name}"
        )
  titles = (
    "optimal $N$ [parameters]",
    "text tokens per parameter",
    "predicted tokens per parameter",
  )
  for axes, title in zip(panels, titles, strict=True):
    log_axis(axes.xaxis, "training compute [FLOPs]", tex_flops, room=4)
    log_axis(axes.yaxis, title)


def headline(sides: list[Side]) -> str:
  """Returns what the comparison says, in a few sentences."""
  fitted = [side for side in sides if side.law]
  if not fitted:
    return f"Nothing to compare yet: none of {len(sides)} sweeps is fitted."
  C = budgets(sides)[-1]
  optima = [(side.objective, fit.optimum(side.law, C)) for side in fitted if side.law]
  said = ", ".join(
    f"{ratio(o['tokens_per_param'])} {bracket(o['tokens_per_param_interval'], ratio)} for {name}"
    for name, o in optima
  )
  held = [s.objective for s in sides if s.record.verification.get("inside")]
  missed = [s.objective for s in sides if s.complete and s.objective not in held]
  verdicts = [f"held for {', '.join(held)}"] if held else []
  verdicts += [f"did NOT hold for {', '.join(missed)}"] if missed else []
  sealed = f" The sealed predictions {' and '.join(verdicts)}." if verdicts else ""
  elsewhere = [
    s.objective for s in sides if s.record.verification.get("minimum_where_predicted") is False
  ]
  if elsewhere:
    sealed += f" The minimum does NOT lie where it was predicted for {', '.join(elsewhere)}."
  return f"At {flops(C)} FLOPs the optimum is, in text tokens per parameter, {said}.{sealed}"


def _unfinished(sides: list[Side]) -> Iterable[Block]:
  waiting = [side for side in sides if not side.complete]
  if waiting:
    yield Text(f"**Incomplete.** {len(waiting)} of {len(sides)} sweeps have no verdict yet:")
    yield Table(("sweep", "so far"), [(side.title, side.state) for side in waiting])


def _laws(fitted: list[Side], C: float) -> Iterable[Block]:
  yield Heading("The laws")
  rows = []
  for name in ("E", "A", "B", "alpha", "beta", "a", "b"):
    text = ratio if name in "AB" else nats
    cells = []
    for stored in (side.record.fit for side in fitted):
      value = stored["params"] | {key: stored[key] for key in "ab"}
      cells += [text(value[name]), bracket(stored["intervals"].get(name), text)]
    rows.append((name, *cells))
  cost = [optimum(side, C)["flops_per_param_and_token"] for side in fitted]
  rows += [
    ("runs", *_pairs(str(side.record.fit["n_runs"]) for side in fitted)),
    (f"C / (N D) at {flops(C)}", *_pairs(number(value, ".2f") for value in cost)),
    ("predicted per text token", *_pairs(number(side.predicted, ".3f") for side in fitted)),
  ]
  yield Table(("", *_pairs(side.title for side in fitted)), rows)
  yield Text(
    "L(N, D) = E + A / N^alpha + B / D^beta in nats per predicted token; D counts text tokens, N "
    "body and head. The objectives predict different things from different context, so their "
    "losses, and with them E, A and B, cannot be compared with each other; exponents and optima "
    "can. In an encoder-decoder a token passes one of two stacks, so C / (N D) is about half."
  )


def _pairs(cells: Iterable[str]) -> list[str]:
  return [text for cell in cells for text in (cell, "")]


def _optima(fitted: list[Side], every: list[float]) -> Iterable[Block]:
  yield Heading("Tokens per parameter at the optimum")
  for name, title in (
    ("tokens_per_param", "text tokens / parameter"),
    ("predicted_tokens_per_param", "predicted tokens / parameter"),
  ):
    rows = []
    for C in every:
      cells = []
      for side in fitted:
        row = optimum(side, C)
        star = " *" if extrapolated(row) else ""
        cells += [ratio(row[name]) + star, bracket(row[f"{name}_interval"], ratio)]
      rows.append((flops(C), *cells))
    yield Table((title, *_pairs(side.title for side in fitted)), rows)
  yield Text("By training compute [FLOPs]; \\* beyond the budgets that were fitted.")


def _differences(differences: list[dict[str, Any]]) -> Iterable[Block]:
  if not differences:
    return
  yield Heading("Where they differ")
  table: dict[str, dict[str, str]] = {}
  for row in differences:
    what = f"{row['quantity'].replace('_', ' ')}, {row['kind']}"
    if row["C"]:
      what = f"tokens / parameter at {flops(row['C'])}, ratio"
    text = f"{ratio(row['value'])} {bracket(row['interval'], ratio)}"
    marked = f"**{text}**" if row["differs"] else text
    table.setdefault(what, {})[f"{row['of']} to {row['to']}"] = marked
  pairs = list(dict.fromkeys(pair for cells in table.values() for pair in cells))
  yield Table(
    ("", *pairs), [(what, *(cells[pair] for pair in pairs)) for what, cells in table.items()]
  )
  marked = sum(row["differs"] for row in differences)
  yield Text(
    f"Bold ({marked} of {len(differences)}): the interval leaves out that they are the same. It is "
    "that of two independent bootstraps over runs; it holds no error of the law's form, and is not "
    "corrected for the number of comparisons."
  )


def _verdicts(sides: list[Side]) -> Iterable[Block]:
  done = [(s, s.record.prediction, s.record.verification) for s in sides if s.complete]
  if not done:
    return
  yield Heading("The sealed predictions")
  rows = [
    (side.title, nats(v["predicted_loss"]), bracket(v["interval"]), nats(v["trained_loss"]),
     number(v["relative_error"], "+.2%"), yes_no(v["inside"]), si(p["N"]),
     bracket(p["N_interval"], si), si(v.get("trained_minimum_N") or math.nan),
     yes_no(v.get("minimum_where_predicted")))
    for side, p, v in done
  ]  # fmt: skip
  names = "sweep|predicted loss||trained||inside|predicted N*||trained minimum|where predicted"
  yield Table(names.split("|"), rows)


def _costs(sides: list[Side]) -> Iterable[Block]:
  rows = [
    (f"`{s.objective}`", str(sum(c["status"] == "done" for c in s.record.cells)),
     flops(sum(c["flops_spent"] for c in s.record.cells if c["status"] == "done")),
     duration(s.record.sweep["seconds"]) if "seconds" in s.record.sweep else "")
    for s in sides
    if s.record.sweep
  ]  # fmt: skip
  if rows:
    yield Heading("The sweeps")
    yield Table(("folder, with its own report", "runs", "spent [FLOPs]", "time"), rows)


def tables(sides: list[Side], found: dict[str, Any]) -> list[Block]:
  """Returns the comparison's tables and what is said beside them.

  Args:
    sides: the sweeps.
    found: `compare.to_json` of them.
  """
  fitted = [side for side in sides if side.law]
  content = [*_unfinished(sides)]
  if fitted:
    content += [*_optima(fitted, found["budgets"]), *_laws(fitted, found["budgets"][-1])]
  return [*content, *_differences(found["differences"]), *_verdicts(sides), *_costs(sides)]


def write(record: Record) -> list[Block]:
  """Writes comparison.json and the figure of a folder of several objectives.

  Returns:
    The blocks of its report.

  Raises:
    UserError: a record in the folder of an objective is broken.
  """
  sides = compare.read(record)
  found = compare.to_json(sides)
  files.write_json(record.workdir / "comparison.json", found)
  content: list[Block] = [Text(f"**{headline(sides)}**")]
  if fitted := [side for side in sides if side.law]:
    (record.workdir / "figures").mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
      save(figure(fitted), record.workdir / "figures" / NAME)
    content.append(Image(NAME, CAPTION))
  return [*content, *tables(sides, found)]
