"""What stands behind a law, as sections of the report: how sure it is, and what follows from it."""

from collections.abc import Callable, Iterable
from typing import Any

from scaling.formats import DASH, flops, nats, number, ratio, si
from scaling.report.records import Record
from scaling.report.render import Block, Heading, Table, Text

ESTIMATORS = {
  "approach1": "1: envelope of curves",
  "approach2": "2: isoFLOP parabolas",
  "huber": "3: Huber",
  "mse": "3: least squares",
  "lad": "3: least absolute deviations",
}
ASKED = {
  "target_flops": "the best model for {:.3g} FLOPs",
  "target_loss": "the least compute that reaches {:.4g} nats/token",
  "inference_tokens": "the cheapest model of that quality that will serve {:.3g} tokens",
  "max_tokens": "the best model if there are {:.3g} unique tokens",
}


def _known(value: float | None, text: Any) -> str:
  return DASH if value is None else text(value)


def _percent(value: float | None, form: str = ".2%") -> str:
  return number(value, form)


def _within(interval: list | None, text: Any) -> str:
  """Returns an interval of which an end may be beyond reach."""
  if not interval:
    return ""
  return f"[{', '.join('∞' if end is None else text(end) for end in interval)}]"


def estimators(record: Record) -> Iterable[Block]:
  """Yields the estimators side by side, and where they disagree."""
  found = record.fit.get("estimators")
  if not found:
    return
  yield Heading("The estimators side by side")
  yield Text(
    f"Each on the same runs; N_opt and D_opt at {flops(found['C'])} FLOPs. Approach 2 is biased by "
    "its design: by how much is what it finds on the fitted surface without noise."
  )
  rows = []
  for row in found["rows"]:
    bias = row.get("bias") or {}
    note = row.get("reason") or ""
    if bias.get("N_opt") is not None:
      note = f"bias: a {bias['a']:+.3f}, N_opt {bias['N_opt']:+.1%}"
    cells = []
    for key, text in (("a", _exponent), ("b", _exponent), ("N_opt", si), ("D_opt", si)):
      cells += [_known(row[key], text), _within(row[f"{key}_interval"], text)]
    rows.append((ESTIMATORS.get(row["estimator"], row["estimator"]), *cells, note))
  yield Table(("estimator", "a", "", "b", "", "N_opt", "", "D_opt", "", ""), rows)
  by_name = {row["estimator"]: row for row in found["rows"]}
  for d in found["disagreement"]:
    if d["intervals_overlap"] is not False:
      continue
    below, above = (by_name[name][d["quantity"]] for name in d["apart"])
    gap = f"{above - below:.3f}" if d["quantity"] in "ab" else f"a factor {above / below:.2f}"
    low, high = (ESTIMATORS.get(name, name) for name in d["apart"])
    yield Text(f"**They disagree** on {d['quantity']} by {gap}: {low} and {high} do not overlap.")


def _exponent(value: float) -> str:
  return f"{value:.3f}"


def certainty(record: Record) -> Iterable[Block]:
  """Yields the profile intervals, the runs that the fit hangs on, and the forms held against it."""
  fit = record.fit
  if profile := fit.get("profile"):
    said = [
      f"{name} = {p['value']:.4f} {_within(p['interval'], nats)}"
      + (" (not bounded by these runs)" if any(p["open"]) else "")
      for name, p in profile.items()
    ]
    yield Heading("How sure")
    yield Text(
      f"A second opinion that resamples nothing, least squares and its {fit['level']:.0%} profile "
      f"likelihood intervals: {'; '.join(said)}."
    )
  if runs := fit.get("influence"):
    yield Text(
      "The runs that the fit hangs on most, and what it would say without each (at the largest "
      "budget; influence is the shift of log N_opt in its standard errors)."
    )
    rows = [
      (f"`{r['id']}`", si(r["N"]), si(r["D"]), _known(r["a"], _exponent),
       number(r["a_shift"], "+.3f"), _known(r["N_opt"], si),
       "no law without it" if r["influence"] is None else f"{r['influence']:.2f}")
      for r in runs
    ]  # fmt: skip
    yield Table(("without", "N", "D", "a", "shift of a", "N_opt", "influence"), rows)
  if held := fit.get("heldout"):
    yield Heading("Other forms, held out")
    yield Text(
      "Each form is fitted to the runs up to a budget and asked for those above it: the RMS error "
      "of their log loss."
    )
    budgets = sorted({row["C"] for row in held})
    errors = {
      (row["form"], row["C"]): DASH if row["reason"] else _percent(row["rms_error"]) for row in held
    }
    names = list(dict.fromkeys(row["form"] for row in held))
    rows = [(name, *(errors.get((name, C), DASH) for C in budgets)) for name in names]
    yield Table(("form", *(f"up to {flops(C)}" for C in budgets)), rows)


def choices(record: Record) -> Iterable[Block]:
  """Yields how each choice behind the fit moves it."""
  found = record.fit.get("choices")
  if not found:
    return
  yield Heading("Choices that move the answer")
  yield Text("One choice made otherwise at a time; tokens per parameter at the largest budget.")
  rows: list[tuple[str, ...]] = [
    (f"{row['choice']} {row['value']}".strip(), str(row.get("n_runs", DASH)),
     _known(row.get("a"), _exponent), _known(row.get("b"), _exponent),
     ratio(row.get("tokens_per_param")), row.get("reason", ""))
    for row in found
  ]  # fmt: skip
  if not any(row[-1] for row in rows):
    rows = [row[:-1] for row in rows]
  names = ("choice", "runs", "a", "b", "tokens/param", "no law because")
  yield Table(names[: len(rows[0])], rows)


def decisions(record: Record) -> Iterable[Block]:
  """Yields what was asked of the law, and its answers."""
  looks: dict[str, tuple[str, Callable[[Any], str]]] = {
    "C": ("C [FLOPs]", flops), "petaflop_s_days": ("PFs-days", ratio), "N": ("N", si),
    "D": ("D", si), "tokens_per_param": ("tokens/param", ratio), "loss": ("loss", nats),
    "total_flops": ("with inference", flops), "saved": ("saved", "{:.1%}".format),
    "epochs": ("epochs", ratio), "excess": ("excess loss", "{:+.4f}".format),
  }  # fmt: skip
  for decision in record.fit.get("decisions", ()):
    far = f", {decision['extrapolation']:.0f} times outside the runs that were fitted"
    asked = ASKED[decision["question"]].format(decision["asked"])
    yield Heading(f"Asked: {asked}" + (far if decision["extrapolated"] else ""))
    shown = {key: look for key, look in looks.items() if any(key in r for r in decision["rows"])}
    rows = [
      (row["name"], *(_value(row, key, text) for key, (_, text) in shown.items()))
      for row in decision["rows"]
    ]
    yield Table(("", *(title for title, _ in shown.values())), rows)
    yield from _notes(decision)


def _value(row: dict[str, Any], key: str, text: Callable[[Any], str]) -> str:
  interval = _within(row.get(f"{key}_interval"), text)
  return f"{_known(row.get(key), text)} {interval}".strip()


def _notes(decision: dict[str, Any]) -> Iterable[Block]:
  best = decision["rows"][0]
  if decision["question"] == "max_tokens":
    constants = decision["published"]
    yield Text(
      f"A token of the last epoch is worth {best['worth']:.2g} of a new one. The worth of repeats "
      f"is as published, not fitted here: R_D\\* = {constants['R_D']:.2f}, R_N\\* = "
      f"{constants['R_N']:.2f} ({constants['source']})."
    )
    if best["C"] < 0.999 * decision["rows"][-1]["C"] and "excess" in best:
      yield Text(
        f"**Compute beyond {flops(best['C'])} FLOPs does not help:** so many unique tokens, "
        f"however often repeated, reach hardly less than {nats(best['loss'])}."
      )
  if decision["extrapolated"]:
    yield Text("**More than ten times outside the fitted runs the intervals say little.**")


def behind(record: Record) -> list[Block]:
  """Returns all that stands behind a law, in the order of the report."""
  sections = (estimators, certainty, choices)
  return [block for section in sections for block in section(record)] if record.fit else []
