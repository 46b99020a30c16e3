"""The report of a sweep, section by section: each turns the results into blocks.

A section yields nothing where the results lack what it shows; `document.SECTIONS` is their order.
"""

import math
import shlex
from collections.abc import Iterator

import numpy as np

from configs.errors import UserError
from scaling.formats import DASH, bracket, duration, flops, nats, number, pf_days, ratio, si, yes_no
from scaling.report.render import Block, Table
from scaling.report.sweep_results import Cell, Results, column, outside, parameters
from scaling.sweep import costs
from train.system import files

MOST_NAMED = 20  # cells that were not used, in a table
NEAR_FLOOR = 0.1  # nats: how near E should be to the entropy of a known source
PARTS = ("runs", "within", "beyond")  # of the error of N_opt


def headline(results: Results) -> Iterator[Block]:
  """Yields the outcome so far in one sentence."""
  yield results.headline if results.undetermined else f"**{results.headline}**"


def glance(results: Results) -> Iterator[Block]:
  """Yields the verdict on each held-out budget as a table."""
  for sealed, v in results.judged if results.complete else ():
    if v.get("verdict", "") not in results.headline:
      yield v["verdict"]
    if "trained_loss" not in v:
      continue
    cost, least = v.get("cost_of_target", {}), v.get("least_loss", {})
    rows = [
      ("loss at the optimum [nats/token]", nats(sealed.get("loss")),
       bracket(sealed.get("interval")), nats(least.get("measured")), yes_no(least.get("held"))),
      (f"loss of N = {si(v.get('N'))}, D = {si(v.get('D'))}", nats(v["predicted_loss"]),
       bracket(v["interval"]), nats(v["trained_loss"]), yes_no(v["inside"])),
      ("N with the least loss", si(sealed.get("N")), bracket(sealed.get("N_interval"), si),
       si(v.get("trained_minimum_N")), yes_no(v.get("minimum_where_predicted"))),
      ("tokens per parameter there", ratio(v["tokens_per_param"]),
       bracket(v["tokens_per_param_interval"], ratio), "", ""),
      (f"cost of {results.target:g} tokens per parameter [nats/token]",
       number(cost.get("excess"), "+.4f"), bracket(cost.get("excess_interval")), "", ""),
    ]  # fmt: skip
    yield Table(("", "predicted", "interval", "trained", "as predicted"), rows)


def law(results: Results) -> Iterator[Block]:
  """Yields the law's parameters, the scatter about it, and what must be known to quote it."""
  fit = results.fit
  if not fit:
    return
  response = "loss" if fit.get("response") == "raw" else "log loss"
  on = fit.get("counting", {}).get("loss", "")
  yield (
    f"L(N, D) = {results.law.form.formula} in nats per token{on and f' on `{on}`'}, fitted to "
    f"{fit['n_runs']} runs (Huber on {response}, delta = {fit['delta']:g}). At the optimum N grows "
    "as C^a and D as C^b."
  )
  yield Table(("parameter", "value", f"{fit['level']:.0%} interval"), parameters(fit))
  notes = [f"One run scatters about the law by {fit['residual_sd']:.2%}"]
  if fit.get("seed_noise"):  # 0: exact copies
    notes.append(f"runs of the same N and D scatter by {fit['seed_noise']:.2%}")
  common = fit.get("clusters") or {}
  if common.get("correlation") is not None:
    notes.append(
      f"residuals of one {common['by']} ({common['count']} of them) are correlated by "
      f"{common['correlation']:.2f}"
    )
  if fit.get("form_error") is not None:
    notes.append(f"beyond the runs its loss errs by {fit['form_error']:.2%} per e-fold of compute")
  parabolas = fit.get("approach2", {})
  if parabolas.get("a") is not None:
    a, b = parabolas["a"], parabolas["b"]
    notes.append(f"isoFLOP parabolas (approach 2) give a = {a:.3f}, b = {b:.3f}")
  yield "; ".join(notes) + "."
  for warning in fit.get("warnings", ()):
    yield f"**{warning}**"


def optima(results: Results) -> Iterator[Block]:
  """Yields the compute-optimal models by budget."""
  if not results.optima:
    return
  cells = []
  for row in results.optima:
    mark = " †" if row.get("sealed") else " *" if outside(row) else ""
    cells.append([flops(row["C"]) + mark])
    for name, form in (("N_opt", si), ("D_opt", si), ("tokens_per_param", ratio), ("loss", nats)):
      cells[-1] += [form(row[name]), bracket(row[f"{name}_interval"], form)]
  yield Table(("C [FLOPs]", "N_opt", "", "D_opt", "", "tokens/param", "", "loss", ""), cells)
  yield (
    "\\* outside the fitted runs; † likewise, and sealed: its loss is that of one run, with "
    f"seed noise in the interval. The rule of thumb is {results.target:g} tokens per parameter."
  )
  if parts := [row for row in results.optima if "N_opt_error" in row]:
    runs, within, beyond = (math.exp(parts[-1]["N_opt_error"][x]) for x in PARTS)
    yield (
      f"At {flops(parts[-1]['C'])} FLOPs a standard deviation of N_opt is a factor {runs:.2f} from "
      f"the scatter of the runs, {within:.2f} as minima of fitted budgets lie off the estimate, "
      f"and {beyond:.2f} for the distance beyond them."
    )
  if "forecasts" in (known := results.fit.get("heldout_N_opt", {})):
    yield (
      f"From smaller budgets the law forecast N_opt of larger ones to a factor "
      f"{math.exp(known['law']):.2f} (rms of {known['forecasts']}), a line through the minima to "
      f"{math.exp(known['minima']):.2f}: N_opt is read from the {known['chosen']}."
    )
  if flat := [flops(p["C"]) for p in results.profiles if not p["inside"]]:
    yield f"**No interior minimum** in the isoFLOP profile at {', '.join(flat)} FLOPs."


def heldout(results: Results) -> Iterator[Block]:
  """Yields the held-out cells: what was sealed, and what was trained."""
  cells = results.verification.get("cells") or results.prediction.get("cells")
  if not cells:
    return
  if seal := results.prediction.get("input_hash"):
    yield (
      f"The prediction was sealed before these were trained, on the runs `{seal[:12]}`: "
      f"`sha256:{results.prediction['sha256']}`."
    )
  rows = [
    (f"`{c['cell']}`", si(c["N"]), si(c["D"]), nats(c["predicted_loss"]), bracket(c["interval"]),
     nats(c.get("trained_loss")), yes_no(c.get("inside")))
    for c in cells
  ]  # fmt: skip
  rows += [  # means over seeds
    (f"mean of `{claim['tested_by'][0]}` and its other seeds", si(claim["at"]["N"]),
     si(claim["at"]["D"]), nats(claim["predicted"]), bracket(claim["interval"]),
     nats(claim["measured"]), yes_no(claim["held"]))
    for claim in results.verification.get("claims", ())
    if claim["what"] == "loss" and len(claim["tested_by"]) > 1
  ]  # fmt: skip
  yield Table(("cell", "N", "D", "predicted", "interval", "trained", "inside"), rows)
  for budget in results.prediction.get("budgets", ()):
    for cell, reason in budget["passed_over"].items():
      yield f"`{cell}` would be nearer to the predicted N, but cannot be trained: {reason}."
  for refused in results.prediction.get("refused", ()):
    yield (
      f"**Not sealed** at {flops(refused['C'])} FLOPs, {ratio(refused['times'])} times the largest "
      f"fitted budget: {refused['reason']}."
    )


def floor(results: Results) -> Iterator[Block]:
  """Yields the entropy of a source that is known, losses below it, and how near E is to it."""
  entropy = results.sweep.get("corpus", {}).get("floor")
  if entropy is None:
    return
  yield f"The entropy of this source is {entropy:.4f} nats/token; no model can do better."
  cells = results.done("probe", "fit", "heldout")
  below = [c for c in cells if c["loss"] + 3 * max(0.0, c["loss_stderr"]) < entropy]
  if below:
    names = ", ".join(f"`{c['cell']}` ({_loss(c)})" for c in below)
    yield f"**Below the floor by more than 3 standard errors (a leak):** {names}."
  else:
    yield f"None of {len(cells)} losses lies below it by more than 3 standard errors."
  if "E" in results.fit.get("params", ()):
    E, (low, high) = results.fit["params"]["E"], results.fit["intervals"]["E"]
    near = "within" if abs(E - entropy) <= NEAR_FLOOR else "NOT within"
    wide = high - low > 2 * NEAR_FLOOR
    yield (
      f"The fitted E is {E:.4f} {bracket((low, high))}, {near} {NEAR_FLOOR} nats of it."
      + (" That interval is wide: this sweep is too small to tell." if wide else "")
    )


def adaptive(results: Results) -> Iterator[Block]:
  """Yields the cells that the fit chose, with the reason for each."""
  rounds = (files.read_record(results.workdir / "adaptive.json") or {}).get("rounds")
  if not rounds:
    return
  yield (
    "Written down before they trained; width is that of the interval of log N_opt at the held-out "
    "budget, over what it was before the round, as predicted."
  )
  rows = [
    (f"`{cell['id']}`", str(i), flops(cell["flops_spent"]), number(width, ".3f"), reason)
    for i, one in enumerate(rounds, start=1)
    for cell, width, reason in zip(one["cells"], one["shrink"], one["reasons"], strict=True)
  ]
  yield Table(("cell", "round", "C [FLOPs]", "width", "reason"), rows)


def probe(results: Results) -> Iterator[Block]:
  """Yields the learning-rate probe: the losses at each rate, and the best rate of each size."""
  probes = [c for c in results.cells if c["kind"] == "probe"]
  if not probes:
    return
  rows = []
  for size in sorted({c["size"] for c in probes}):
    cells = sorted((c for c in probes if c["size"] == size), key=lambda c: c["lr"])
    done = [c for c in results.done("probe") if c["size"] == size]
    best = min(done, key=lambda c: c["loss"], default=None)
    mark = "best (at the edge)" if best in (cells[0], cells[-1]) else "best"
    for c in cells:
      note = mark if c is best else ""
      rows.append((f"{size:.0f}", si(c["N"]), f"{c['lr']:.2e}", _loss(c), c["status"], note))
  yield Table(("size", "N", "learning rate", "loss [nats/token]", "status", ""), rows)


def unused(results: Results) -> Iterator[Block]:
  """Yields the cells that the fit left out, with the reason for each."""
  reasons = {c["cell"]: c["status"] for c in results.cells if c["status"] in ("diverged", "failed")}
  for name in [n for n, status in reasons.items() if status == "failed"]:
    error = (files.read_json(results.workdir / "cells" / name / "run.json") or {}).get("error")
    reasons[name] += f": {error}" if error else ""
  for run in results.fit.get("excluded", []):
    reasons.setdefault(run["id"], run["reason"])
  rows = [(f"`{name}`", reason) for name, reason in reasons.items()]
  if more := len(rows[MOST_NAMED:]):
    rows[MOST_NAMED:] = [(f"and {more:,} more", "all are in `fit.json`")]
  if rows:
    yield Table(("cell", "reason"), rows)


def cost(results: Results) -> Iterator[Block]:
  """Yields FLOPs and time by kind of cell."""
  begun = [c for c in results.cells if c["status"] in ("done", "diverged")]
  if not begun or results.foreign:
    return
  rows = []
  for kind in ("probe", "fit", "heldout", "all"):
    cells = [c for c in begun if kind in (c["kind"], "all")]
    alone, spent, seconds = (np.nansum(column(cells, x)) for x in ("C", "flops_spent", "seconds"))
    rows.append((kind, str(len(cells)), flops(alone), flops(spent),
                 flops(pf_days(spent)), duration(seconds)))  # fmt: skip
  columns = "cells|runs|alone [FLOPs]|spent [FLOPs]|spent [petaflop/s-days]|time"
  yield Table(columns.split("|"), rows)
  taken = results.sweep.get("seconds")
  took = "" if taken is None else f"; the sweep took {duration(taken)}"
  yield (
    "Alone is what the runs would cost one by one (C); branched from a shared trunk they cost what "
    f"is spent. Time is summed over runs{took}."
  )


def wall_time(results: Results) -> Iterator[Block]:
  """Yields where the wall time of a finished sweep went, by part."""
  try:
    parts = (files.read_record(results.workdir / costs.RECORD) or {}).get("parts")
  except UserError as error:  # the law does not rest on it
    yield f"Not shown: {error}."
    return
  if not parts:
    return
  total = sum(parts.values())
  rows = [
    (part, f"{parts[part]:.1f}", f"{parts[part] / total:.1%}", meaning)
    for part, meaning in costs.PARTS.items()
    if parts.get(part, 0.0) > 0.05
  ]
  rows.append(("all", f"{total:.1f}", f"{1:.1%}", "from the command to its report, all starts"))
  yield Table(("part", "seconds", "share", ""), rows)
  yield (
    f"All but training took {1 - parts['train'] / total:.1%}. Of several workers each one's "
    "seconds are divided by their number."
  )


def fit_cells(results: Results) -> Iterator[Block]:
  """Yields the table of the fit cells."""
  cells = [c for c in results.cells if c["kind"] == "fit"]
  if not cells:
    return
  cells.sort(key=lambda c: (float(f"{c['C']:.1e}"), c["N"], c["lr"], c["seed"]))
  rows = [
    (f"`{c['cell']}`", si(c["N"]), si(c["D"]), flops(c["C"]), ratio(c["tokens_per_param"]),
     f"{c['lr']:.2e}", _loss(c), number(c["bits_per_byte"], ".4f"), c["status"])
    for c in cells
  ]  # fmt: skip
  columns = "cell|N|D|C [FLOPs]|tokens/param|lr|loss [nats/token]|bits/byte|status"
  yield Table(columns.split("|"), rows)


def reproduction(results: Results) -> Iterator[Block]:
  """Yields the command that repeats the sweep."""
  if not results.sweep:
    return
  yield "Each flag is a field of the config that differs from its default."
  changed = results.sweep.get("config_diff", {})
  flags = [f"--config.{k}={tuple(v) if isinstance(v, list) else v}" for k, v in changed.items()]
  command = ["isoflop sweep --config=configs/base.py --workdir=DIR", *map(shlex.quote, flags)]
  yield "```sh\n" + " \\\n  ".join(command) + "\n```"


def provenance(results: Results) -> Iterator[Block]:
  """Yields what the sweep ran on: its text, device and libraries."""
  sweep = results.sweep
  if not sweep:
    return
  corpus = sweep.get("corpus", {})
  facts = {
    "sweep": sweep.get("name"), "created": sweep.get("created"), "device": sweep.get("device"),
    "objective": sweep.get("objective"), "corpus": corpus.get("source"),
    "fingerprint": corpus.get("fingerprint"),
    "tokens, train": si(corpus.get("train_tokens")),
    "tokens, validation": si(corpus.get("validation_tokens")),
    "vocabulary": corpus.get("vocab_size"), **sweep.get("libraries", {}),
  }  # fmt: skip
  rows = [(name, str(fact)) for name, fact in facts.items() if fact not in (None, "", DASH)]
  yield Table(("", "value"), rows)


def _loss(cell: Cell) -> str:
  error = cell["loss_stderr"]
  return nats(cell["loss"]) + (f" ± {error:.4f}" if math.isfinite(error) else "")
