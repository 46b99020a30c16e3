"""Sections of the report on how sure a law is, and on the decisions that follow from it."""

from collections.abc import Callable, Iterator
from typing import Any

from scaling.formats import DASH, bracket, exponent, flops, nats, number, ratio, si
from scaling.report.render import Block, Table
from scaling.report.sweep_results import ESTIMATORS, Results, named, outside, side_by_side

QUESTIONS = {
  "target_flops": "the best model for {:.3g} FLOPs",
  "target_loss": "the least compute that reaches {:.4g} nats/token",
  "inference_tokens": "the cheapest model of that quality that will serve {:.3g} tokens",
  "max_tokens": "the best model if there are {:.3g} unique tokens",
  "predict": "the loss of one run",
}
FAR = "**More than ten times outside the fitted runs the intervals say little.**"

ANSWERS: dict[str, tuple[str, Callable[[Any], str]]] = {  # key of a row: column, format
  "C": ("C [FLOPs]", flops),
  "petaflop_s_days": ("PFs-days", ratio),
  "N": ("N", si),
  "D": ("D", si),
  "tokens_per_param": ("tokens/param", ratio),
  "loss": ("loss", nats),
  "total_flops": ("with inference", flops),
  "saved": ("saved", lambda value: number(value, ".1%")),
  "epochs": ("epochs", ratio),
  "excess": ("excess loss", lambda value: number(value, "+.4f")),
  "outside": ("times outside the runs", lambda value: number(value, ".3g") if value > 1 else "no"),
}


def estimators(results: Results) -> Iterator[Block]:
  """Yields the estimators side by side, and where they disagree."""
  stored = results.fit.get("estimators")
  if not stored:
    return
  yield (
    f"Each on the same runs; N_opt and D_opt at {flops(stored['C'])} FLOPs. Approach 2 is biased "
    "by its design: the bias is what it gives on the fitted surface, without noise."
  )
  rows = []
  for row in stored["rows"]:
    bias, note = row.get("bias") or {}, row.get("reason") or ""
    if bias.get("N_opt") is not None:
      note = f"bias: a {bias['a']:+.3f}, N_opt {bias['N_opt']:+.1%}"
    cells = [ESTIMATORS[row["estimator"]]]
    for name, form in (("a", exponent), ("b", exponent), ("N_opt", si), ("D_opt", si)):
      interval = row[f"{name}_interval"]
      cells += [form(row[name]), bracket(interval, form) if interval else ""]
    rows.append((*cells, note))
  yield Table(("estimator", "a", "", "b", "", "N_opt", "", "D_opt", "", ""), rows)
  by_name = {row["estimator"]: row for row in stored["rows"]}
  for d in stored["disagreement"]:
    if d["intervals_overlap"] is False:
      below, above = (by_name[name][d["quantity"]] for name in d["apart"])
      gap = f"{above - below:.3f}" if d["quantity"] in "ab" else f"a factor {above / below:.2f}"
      low, high = (ESTIMATORS[name] for name in d["apart"])
      yield f"**They disagree** on {d['quantity']} by {gap}: {low} and {high} do not overlap."


def certainty(results: Results) -> Iterator[Block]:
  """Yields the runs that move the fit most."""
  if runs := results.fit.get("influence"):
    yield (
      "The most influential runs, and the fit without each (at the largest budget; influence is "
      "the shift of log N_opt in its standard errors)."
    )
    rows = [
      (f"`{r['id']}`", si(r["N"]), si(r["D"]), exponent(r["a"]), number(r["a_shift"], "+.3f"),
       si(r["N_opt"]),
       "no law without it" if r["influence"] is None else f"{r['influence']:.2f}")
      for r in runs
    ]  # fmt: skip
    yield Table(("without", "N", "D", "a", "shift of a", "N_opt", "influence"), rows)


def sets(results: Results) -> Iterator[Block]:
  """Yields the laws of the losses on several validation sets, side by side."""
  yield from _side_by_side(
    results.fit.get("sets", []),
    "The same runs, each law fitted to the loss on its set. Losses on different texts cannot be "
    "compared; exponents and optima can.",
    "the loss on `{}`",
  )


def groups(by: dict[str, Any]) -> Iterator[Block]:
  """Yields the laws of the groups of a table of runs, side by side (`by.json`)."""
  intro = (
    f"A law for the runs of each `{by['column']}`, with its own report in a folder of its name."
  )
  yield from _side_by_side(by["sets"], intro, f"the runs with {by['column']} = {{}}")


def _side_by_side(sets: list[dict[str, Any]], intro: str, what: str) -> Iterator[Block]:
  if laws := named(sets):
    yield f"{intro} Optima at {flops(laws[0]['C'])} FLOPs."
    columns = ("", *(text for row in laws for text in (f"`{row['name']}`", "")))
    rows: list[tuple[str, ...]] = [("runs", *(t for r in laws for t in (str(r["n_runs"]), "")))]
    rows += side_by_side(laws)
    for key, form in (("N_opt", si), ("tokens_per_param", ratio), ("loss", nats)):
      best = [row["optimum"] for row in laws]
      pairs = ((form(b[key]), bracket(b[f"{key}_interval"], form)) for b in best)
      rows.append((key, *(text for pair in pairs for text in pair)))
    yield Table(columns, rows)
  for row in sets:
    if "reason" in row:
      yield f"No law of {what.format(row['set'] or 'main')}: {row['reason']}."


def forms(results: Results) -> Iterator[Block]:
  """Yields the held-out errors of other forms."""
  stored = results.fit.get("heldout")
  if not stored:
    return
  yield (
    "Each form is fitted to the runs up to a budget and predicts those above it: the RMS error of "
    "their log loss."
  )
  budgets = sorted({row["C"] for row in stored})
  table: dict[str, list[str]] = {row["form"]: [DASH] * len(budgets) for row in stored}
  for row in stored:
    error = None if row["reason"] else row["rms_error"]
    table[row["form"]][budgets.index(row["C"])] = number(error, ".2%")
  columns = ("form", *(f"up to {flops(C)}" for C in budgets))
  yield Table(columns, [(name, *cells) for name, cells in table.items()])


def choices(results: Results) -> Iterator[Block]:
  """Yields how each choice behind the fit moves it."""
  stored = results.fit.get("choices")
  if not stored:
    return
  yield "One choice made otherwise at a time; tokens per parameter at the largest budget."
  refused = any("reason" in row for row in stored)
  rows = [
    [f"{row['choice']} {row['value']}".strip(), str(row.get("n_runs", DASH)),
     exponent(row.get("a")), exponent(row.get("b")), ratio(row.get("tokens_per_param")),
     *([row.get("reason", "")] if refused else [])]
    for row in stored
  ]  # fmt: skip
  columns = ["choice", "runs", "a", "b", "tokens/param", *(["no law because"] if refused else [])]
  yield Table(columns, rows)


def decisions(results: Results) -> Iterator[Block]:
  """Yields the questions that the law was asked, each with its answer."""
  for decision in results.fit.get("decisions", ()):
    question = QUESTIONS[decision["question"]].format(decision["asked"])
    times = number(decision["extrapolation"], ".0f" if decision["extrapolated"] else ".2g")
    far = f", {times} times outside the runs that were fitted"
    yield f"## Asked: {question}" + (far if outside(decision) else "")
    keys = [key for key in ANSWERS if any(key in row for row in decision["rows"])]
    rows = []
    for row in decision["rows"]:
      cells = [row["name"]]
      for key in keys:
        form, interval = ANSWERS[key][1], row.get(f"{key}_interval")
        cells.append(form(row.get(key)) + (f" {bracket(interval, form)}" if interval else ""))
      rows.append(cells)
    yield Table(("", *(ANSWERS[key][0] for key in keys)), rows)
    yield from decision_notes(decision, results.fit.get("params", {}))


def decision_notes(decision: dict[str, Any], params: dict[str, float]) -> Iterator[str]:
  """Yields what must be known to rely on an answer."""
  best = decision["rows"][0]
  if decision["question"] == "max_tokens":
    constants, joined = decision["published"], ""
    if "beta" in params:
      joined = (
        f" These were fitted under alpha = beta, and are joined to alpha = {params['alpha']:.3f}, "
        f"beta = {params['beta']:.3f}: for a law of one exponent, fit.form=chinchilla_equal."
      )
    yield (
      f"A token of the last epoch is worth {best['worth']:.2g} of a new one. The worth of repeats "
      f"is as published, not fitted here: R_D\\* = {constants['R_D']:.2f}, R_N\\* = "
      f"{constants['R_N']:.2f} ({constants['source']}).{joined}"
    )
    if best["C"] < 0.999 * decision["rows"][-1]["C"] and "excess" in best:
      yield (
        f"**Compute beyond {flops(best['C'])} FLOPs does not help:** so many unique tokens, "
        f"however often repeated, reach hardly less than {nats(best['loss'])}."
      )
  if decision["extrapolated"]:
    yield FAR
