"""The report on the arms of a sweep: sections of a comparison (`scaling.report.compare`).

They are functions of the sweeps' results and of the numbers that are comparison.json.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from scaling.formats import bracket, duration, flops, nats, number, ratio, si, yes_no
from scaling.report.render import Block, Table
from scaling.report.sweep_results import Results, outside, side_by_side

Sweeps = Mapping[str, Results]  # by arm
Numbers = Mapping[str, Any]


def summary(sweeps: Sweeps, numbers: Numbers) -> str:
  """Says in a few sentences what the comparison shows."""
  optima = {
    name: numbers["sweeps"][name]["optimum"][-1] for name, s in sweeps.items() if s.determined
  }
  if not optima:
    return f"Nothing to compare yet: none of {len(sweeps)} sweeps is fitted."
  ratios = []
  for name, row in optima.items():
    interval = bracket(row["tokens_per_param_interval"], ratio)
    ratios.append(f"{ratio(row['tokens_per_param'])} {interval} for {name}")
  C = flops(numbers["budgets"][-1])
  text = f"At {C} FLOPs the optimum is, in text tokens per parameter, {', '.join(ratios)}."
  complete = {name: s.verification for name, s in sweeps.items() if s.complete}
  held = [name for name, verdict in complete.items() if verdict["held"]]
  missed = [name for name in complete if name not in held]
  verdicts = [f"held for {', '.join(held)}"] if held else []
  verdicts += [f"did NOT hold for {', '.join(missed)}"] if missed else []
  if verdicts:
    text += f" The sealed predictions {' and '.join(verdicts)}."
  elsewhere = [
    name
    for name, verdict in complete.items()
    if any(budget.get("minimum_where_predicted") is False for budget in verdict["budgets"])
  ]
  if elsewhere:
    text += f" The minimum does NOT lie where it was predicted for {', '.join(elsewhere)}."
  for gain, compute in _gains(numbers, numbers["budgets"][-1]):
    text += (
      f" There the gain of {gain['of']} over {gain['to']} is {nats(gain['value'])} "
      f"{bracket(gain['interval'])} nats; {gain['to']} reaches that loss at "
      f"{ratio(compute['value'])} {bracket(compute['interval'], ratio)} times the compute (by the "
      "laws' resamples: not sealed, and without the error of their form)."
    )
  return text


def _gains(numbers: Numbers, C: float) -> list[tuple[Numbers, Numbers]]:
  """Returns the gains at a compute, in loss and in compute, of pairs whose losses compare."""
  at = [row for row in numbers["differences"] if row["C"] == C]
  gains, computes = ([x for x in at if x["quantity"] == name] for name in ("gain", "compute"))
  return list(zip(gains, computes, strict=True))


def sections(sweeps: Sweeps, numbers: Numbers) -> Iterator[Block]:
  """Yields the sections of the comparison, in the order of its report."""
  fitted = {name: sweep for name, sweep in sweeps.items() if sweep.determined}
  if pending := [sweep for sweep in sweeps.values() if not sweep.complete]:
    yield f"**Incomplete.** {len(pending)} of {len(sweeps)} sweeps have no verdict yet:"
    yield Table(("sweep", "so far"), [(sweep.title, sweep.headline) for sweep in pending])
  if fitted:
    yield from _optima(fitted, numbers)
    yield from _laws(fitted, numbers)
  yield from _equal_compute(numbers)
  yield from _differences(numbers["differences"])
  yield from _verdicts(sweeps)
  yield from _costs(sweeps)


def _optima(fitted: Sweeps, numbers: Numbers) -> Iterator[Block]:
  yield "## Tokens per parameter at the optimum"
  for key, title in (
    ("tokens_per_param", "text tokens / parameter"),
    ("predicted_tokens_per_param", "predicted tokens / parameter"),
  ):
    rows = []
    for i, C in enumerate(numbers["budgets"]):
      cells = [flops(C)]
      for name in fitted:
        row = numbers["sweeps"][name]["optimum"][i]
        mark = " *" if outside(row) else ""
        cells += [ratio(row[key]) + mark, bracket(row[f"{key}_interval"], ratio)]
      rows.append(cells)
    yield Table((title, *_paired(sweep.title for sweep in fitted.values())), rows)
  yield "By training compute [FLOPs]; \\* an optimum outside the fitted runs, in N or in D."


def _laws(fitted: Sweeps, numbers: Numbers) -> Iterator[Block]:
  yield "## The laws"
  rows = side_by_side(sweep.fit for sweep in fitted.values())
  C, summaries = flops(numbers["budgets"][-1]), [numbers["sweeps"][name] for name in fitted]
  per_token = (summary["optimum"][-1]["flops_per_param_and_token"] for summary in summaries)
  predicted = (summary["predicted_per_token"] for summary in summaries)
  rows += [
    ("runs", *_paired(str(summary["n_runs"]) for summary in summaries)),
    (f"C / (N D) at {C}", *_paired(number(value, ".2f") for value in per_token)),
    ("predicted per text token", *_paired(number(value, ".3f") for value in predicted)),
  ]
  yield Table(("", *_paired(sweep.title for sweep in fitted.values())), rows)
  yield (
    "L(N, D) = E + A / N^alpha + B / D^beta in nats per predicted token; D counts text tokens, N "
    "body and head. Objectives predict different things from different context, so their losses, "
    "and with them E, A and B, cannot be compared with each other; exponents and optima can. In an "
    "encoder-decoder a token passes one of two stacks, so C / (N D) is about half."
  )


def _equal_compute(numbers: Numbers) -> Iterator[Block]:
  rows = [
    (f"{gain['of']} over {gain['to']}", flops(C), _marked(gain, nats), _marked(compute, ratio))
    for C in numbers["budgets"]
    for gain, compute in _gains(numbers, C)
  ]
  rows.sort(key=lambda row: row[0])  # and by compute, as they are
  if rows:
    yield "## Gains at equal compute"
    yield Table(("", "C [FLOPs]", "lower loss [nats]", "times C for equal loss"), rows)
    yield (
      "Of the best model for C by each law, for arms with one objective and one text to evaluate "
      "on; negative, or below 1: a loss. **No gain is sealed, and the intervals are too narrow "
      "beyond the fitted budgets:** they come from resampling the runs, a cell as often in both "
      "arms where these have the same cells, and hold no error of the laws' form. Bold: the "
      "interval excludes that there is no difference."
    )


def _marked(row: Numbers, form: Callable[[float], str]) -> str:
  text = f"{form(row['value'])} {bracket(row['interval'], form)}"
  return f"**{text}**" if row["differs"] else text


def _differences(differences: list[dict[str, Any]]) -> Iterator[Block]:
  differences = [row for row in differences if row["quantity"] not in ("gain", "compute")]
  if not differences:
    return
  yield "## Where they differ"
  table: dict[str, dict[str, str]] = {}
  for row in differences:
    quantity = f"{row['quantity']}, {row['kind']}"
    if row["C"]:
      quantity = f"tokens / parameter at {flops(row['C'])}, ratio"
    table.setdefault(quantity, {})[f"{row['of']} to {row['to']}"] = _marked(row, ratio)
  pairs = list(next(iter(table.values())))
  yield Table(("", *pairs), [(quantity, *cells.values()) for quantity, cells in table.items()])
  marked = sum(row["differs"] for row in differences)
  yield (
    f"Bold ({marked} of {len(differences)}): the interval excludes that they are the same. It is "
    "that of two independent bootstraps over runs; it holds no error of the law's form, and is not "
    "corrected for the number of comparisons."
  )


def _verdicts(sweeps: Sweeps) -> Iterator[Block]:
  complete = [
    (s, *pair) for s in sweeps.values() if s.complete for pair in s.judged if "interval" in pair[1]
  ]
  if not complete:
    return
  yield "## The sealed predictions"
  rows = []
  for sweep, p, v in complete:
    least = v.get("least_loss", {})
    rows += [
      (f"{sweep.title}, at the optimum", nats(p["loss"]), bracket(p["interval"]),
       nats(least.get("measured")), yes_no(least.get("held")), si(p["N"]),
       bracket(p["N_interval"], si), si(v.get("trained_minimum_N")),
       yes_no(v.get("minimum_where_predicted"))),
      (f"its cell of N = {si(v.get('N'))}, D = {si(v.get('D'))}", nats(v["predicted_loss"]),
       bracket(v["interval"]), nats(v["trained_loss"]), yes_no(v["inside"]), "", "", "", ""),
    ]  # fmt: skip
  columns = "sweep|predicted loss||trained|inside|predicted N*||trained minimum|where predicted"
  yield Table(columns.split("|"), rows)


def _costs(sweeps: Sweeps) -> Iterator[Block]:
  rows = []
  for name, sweep in sweeps.items():
    if sweep.sweep:
      spent = [c["flops_spent"] for c in sweep.cells if c["status"] == "done"]
      taken = sweep.sweep.get("seconds")
      time = "" if taken is None else duration(taken)
      shared = sum((sweep.workdir / "cells" / c["cell"]).is_symlink() for c in sweep.cells)
      rows.append((f"`{name}`", str(len(spent)), str(shared), flops(sum(spent)), time))
  if rows:
    yield "## The sweeps"
    columns = "folder, with its own report|runs|of another arm|FLOPs of all its runs|time"
    yield Table(columns.split("|"), rows)


def _paired(cells: Iterable[str]) -> list[str]:
  """Appends an empty cell to each: the column of its intervals."""
  return [text for cell in cells for text in (cell, "")]
