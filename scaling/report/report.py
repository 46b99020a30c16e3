"""The report of a sweep, section by section: a list of blocks for `scaling.report.render`.

It reads the workdir and nothing else, so that it can be made again at any time; what is not there
yet is named. `report.html` holds its figures and needs no network.
"""

import itertools
import math
import shlex
from collections.abc import Iterable
from pathlib import Path

from scaling.formats import DASH, bracket, flops, nats, number, ratio, si, text_table, yes_no
from scaling.progress import duration
from scaling.report import compare, evidence, records
from scaling.report.records import Cell, Record
from scaling.report.render import Block, Code, Heading, Image, Table, Text, to_html, to_markdown
from scaling.sweep import costs
from train.system import files

MOST_BUDGETS = 9  # rows of optima in the terminal
MOST_NAMED = 20  # cells that were not used, in a table
PETAFLOP_DAY = 1e15 * 86_400  # [FLOPs]

CAPTIONS = {
  "isoflop_profiles": "Loss against model size at each compute budget, with a parabola in log N "
  "(approach 2).",
  "frontier": "Optimal parameters and optimal tokens per parameter against training compute.",
  "predicted_vs_trained": "Trained against predicted loss.",
  "contours": "The fitted L(N, D), the trained runs and the compute-optimal path.",
  "residuals": "Trained over predicted loss. A trend in N or D would say that the form is wrong.",
  "sensitivity": "The exponent of N_opt as other estimators, and other choices, would have it.",
  "training_curves": "Train loss, smoothed in log tokens, and final validation losses.",
}
SEALED = {  # what a caption says besides, where a prediction was sealed
  "isoflop_profiles": " The dashed curve is the sealed prediction with its interval.",
  "predicted_vs_trained": " Bars are prediction intervals.",
}


def _loss(cell: Cell) -> str:
  error = cell["loss_stderr"]
  return nats(cell["loss"]) + (f" ± {error:.4f}" if math.isfinite(error) else "")


def _glance(record: Record) -> Iterable[Block]:
  v = record.verification
  if v.get("trained_loss") is None:
    return
  excess = number(v.get(f"cost_of_{record.target:g}_tokens_per_param"), "+.4f")
  if interval := v.get("cost_of_target", {}).get("excess_interval"):
    excess += f" {bracket(interval)}"
  predicted_n, n_interval = (record.prediction.get(k) for k in ("N", "N_interval"))
  rows = [
    ("loss at the held-out budget [nats/token]", nats(v["predicted_loss"]), bracket(v["interval"]),
     nats(v["trained_loss"]), yes_no(v["inside"])),
    ("N with the least loss", si(predicted_n or math.nan), bracket(n_interval, si),
     si(v.get("trained_minimum_N") or math.nan), yes_no(v.get("minimum_where_predicted"))),
  ]  # fmt: skip
  yield Table(("", "predicted", "interval", "trained", "as predicted"), rows)
  yield Text(
    f"The trained loss differs by {number(v['relative_error'], '+.2%')}. The optimum there is "
    f"{ratio(v['tokens_per_param'])} {bracket(v['tokens_per_param_interval'], ratio)} tokens per "
    f"parameter; choosing {record.target:g} would cost {excess} nats/token."
  )


def _missing(record: Record, undrawn: dict[str, str]) -> Iterable[Block]:
  waiting = {
    "`sweep.json`": record.sweep, "`cells.csv`": record.cells, "`fit.json`": record.fit,
    "`prediction.json`": record.prediction, "`verification.json`": record.verification,
  }  # fmt: skip
  parts = [name for name, found in waiting.items() if not found and not record.foreign]
  parts += [f"figure {name} ({why})" for name, why in undrawn.items() if why]
  if parts:
    yield Text(f"**Incomplete.** Missing: {', '.join(parts)}.")


def _law_line(fit: dict) -> str:
  """Returns the law in a line, and below it what must be known before it is quoted."""
  said = []
  for name, value in (fit["params"] | {"a": fit["a"], "b": fit["b"]}).items():
    text = ratio if name in "AB" else nats
    said.append(f"{name} = {text(value)} {bracket(fit['intervals'].get(name), text)}")
  lines = [
    f"{fit['n_runs']} runs, {len(fit['excluded'])} left out; L = E + A / N^alpha + B / D^beta:",
    ", ".join(said),
    *(f"Warning: {warning}" for warning in fit.get("warnings", ())),
  ]
  return "\n".join(lines)


def _law(record: Record) -> Iterable[Block]:
  fit = record.fit
  if not fit:
    return
  yield Heading("The law")
  yield Text(
    f"L(N, D) = E + A / N^alpha + B / D^beta in nats per token, fitted to {fit['n_runs']} runs "
    f"(Huber on log loss, delta = {fit['delta']:g}). At the optimum N grows as C^a and D as C^b."
  )
  rows = []
  for name, value in (fit["params"] | {"a": fit["a"], "b": fit["b"]}).items():
    text = ratio if name in "AB" else nats
    rows.append((name, text(value), bracket(fit["intervals"].get(name), text)))
  yield Table(("parameter", "value", f"{fit['level']:.0%} interval"), rows)
  notes = [f"One run scatters about the law by {fit['residual_sd']:.2%}"]
  if fit.get("seed_noise"):  # of exact copies it is 0
    notes.append(f"runs of the same N and D scatter by {fit['seed_noise']:.2%}")
  if fit.get("form_error") is not None:
    notes.append(f"fits below each budget missed those above by {fit['form_error']:.2%} per e-fold")
  second = fit.get("approach2", {})
  if second.get("a") is not None:
    a, b = second["a"], second["b"]
    notes.append(f"isoFLOP parabolas (approach 2) give a = {a:.3f}, b = {b:.3f}")
  yield Text("; ".join(notes) + ".")
  for warning in fit.get("warnings", []):
    yield Text(f"**{warning}**")


def _optimum(record: Record, most: int | None = None) -> Iterable[Block]:
  best = record.optimum
  if not best:
    return
  if most and len(best) > most:
    even = {round(i * (len(best) - 1) / (most - 1)) for i in range(most)}
    best = [o for i, o in enumerate(best) if i in even or o.get("sealed")]
  yield Heading("Compute-optimal models")
  rows = [
    (flops(o["C"]) + (" †" if o.get("sealed") else " *" if records.extrapolated(o) else ""),
     si(o["N_opt"]),
     bracket(o["N_opt_interval"], si), si(o["D_opt"]), bracket(o["D_opt_interval"], si),
     ratio(o["tokens_per_param"]), bracket(o["tokens_per_param_interval"], ratio),
     nats(o["loss"]), bracket(o["loss_interval"]))
    for o in best
  ]  # fmt: skip
  yield Table(("C [FLOPs]", "N_opt", "", "D_opt", "", "tokens/param", "", "loss", ""), rows)
  yield Text(
    "\\* outside the fitted runs; † likewise, and sealed: its loss is that of one run, with "
    f"seed noise in the interval. The rule of thumb is {record.target:g} tokens per parameter."
  )
  if flat := [flops(p["C"]) for p in record.profiles if not p["inside"]]:
    yield Text(f"**No interior minimum** in the isoFLOP profile at {', '.join(flat)} FLOPs.")


def _heldout(record: Record) -> Iterable[Block]:
  cells = record.verification.get("cells") or record.prediction.get("cells")
  if not cells:
    return
  yield Heading("Held-out cells")
  if seal := record.prediction.get("input_hash"):
    yield Text(f"The prediction was sealed before these were trained, on the runs `{seal[:12]}`.")
  rows = [
    (f"`{c['cell']}`", si(c["N"]), si(c["D"]), nats(c["predicted_loss"]), bracket(c["interval"]),
     nats(c.get("trained_loss")), yes_no(c.get("inside")))
    for c in cells
  ]  # fmt: skip
  yield Table(("cell", "N", "D", "predicted", "interval", "trained", "inside"), rows)
  for cell, why in record.prediction.get("passed_over", {}).items():
    yield Text(f"`{cell}` would be nearer to what was predicted, but cannot be trained: {why}.")


def _floor(record: Record) -> Iterable[Block]:
  floor = record.sweep.get("corpus", {}).get("floor")
  if floor is None:
    return
  yield Heading("The corpus's floor")
  yield Text(f"The entropy of this source is {floor:.4f} nats/token; no model can do better.")
  cells = record.done("probe", "fit", "heldout")
  below = [c for c in cells if c["loss"] + 3 * max(0.0, c["loss_stderr"]) < floor]
  if below:
    names = ", ".join(f"`{c['cell']}` ({_loss(c)})" for c in below)
    yield Text(f"**Below the floor by more than 3 standard errors (a leak):** {names}.")
  else:
    yield Text(f"None of {len(cells)} losses lies below it by more than 3 standard errors.")
  if record.fit:
    E, (low, high) = record.fit["params"]["E"], record.fit["intervals"]["E"]
    near = "within" if abs(E - floor) <= 0.1 else "NOT within"
    sure = "" if high - low <= 0.2 else " That interval is wide: this sweep is too small to tell."
    yield Text(f"The fitted E is {E:.4f} {bracket((low, high))}, {near} 0.1 nats of it.{sure}")


def _probe(record: Record) -> Iterable[Block]:
  probes = [c for c in record.cells if c["kind"] == "probe"]
  if not probes:
    return
  yield Heading("Learning-rate probe")
  rows = []
  for size in sorted({c["size"] for c in probes}):
    some = sorted((c for c in probes if c["size"] == size), key=lambda c: c["lr"])
    best = min(record.done("probe"), key=lambda c: (c["size"] != size, c["loss"]), default=None)
    for c in some:
      edge = " (at the edge)" if c is some[0] or c is some[-1] else ""
      verdict = f"best{edge}" if c is best and c["size"] == size else ""
      rows.append((f"{size:.0f}", si(c["N"]), f"{c['lr']:.2e}", _loss(c), c["status"], verdict))
  yield Table(("size", "N", "learning rate", "loss [nats/token]", "status", ""), rows)


def _unused(record: Record) -> Iterable[Block]:
  reasons = {c["cell"]: c["status"] for c in record.cells if c["status"] in ("diverged", "failed")}
  for name in [n for n, status in reasons.items() if status == "failed"]:
    error = (files.read_json(record.workdir / "cells" / name / "run.json") or {}).get("error")
    reasons[name] += f": {error}" if error else ""
  for run in record.fit.get("excluded", []):
    reasons.setdefault(run["id"], run["reason"])
  if reasons:
    yield Heading("Cells that were not used")
    rows = [(f"`{name}`", why) for name, why in itertools.islice(reasons.items(), MOST_NAMED)]
    if len(reasons) > MOST_NAMED:
      rows.append((f"and {len(reasons) - MOST_NAMED:,} more", "all are in `fit.json`"))
    yield Table(("cell", "reason"), rows)


def _adaptive(record: Record) -> Iterable[Block]:
  rounds = (files.read_json(record.workdir / "adaptive.json") or {}).get("rounds")
  if not rounds:
    return
  yield Heading("Cells chosen by the fit so far")
  yield Text(
    "Written down before they trained; width is that of the interval of log N_opt at the held-out "
    "budget, over what it was before the round, as predicted."
  )
  rows = [
    (f"`{cell['id']}`", str(i), flops(cell["flops_spent"]), number(width, ".3f"), reason)
    for i, one in enumerate(rounds, start=1)
    for cell, width, reason in zip(one["cells"], one["shrink"], one["reasons"], strict=True)
  ]
  yield Table(("cell", "round", "C [FLOPs]", "width", "reason"), rows)


def _cost(record: Record) -> Iterable[Block]:
  begun = [c for c in record.cells if c["status"] in ("done", "diverged")]
  if not begun or record.foreign:
    return
  yield Heading("Cost")
  rows = []
  for kind in ("probe", "fit", "heldout", "all"):
    some = [c for c in begun if kind in (c["kind"], "all")]
    alone, spent, seconds = (
      sum(c[x] for c in some if math.isfinite(c[x])) for x in ("C", "flops_spent", "seconds")
    )
    rows.append((kind, str(len(some)), flops(alone), flops(spent),
                 flops(spent / PETAFLOP_DAY), duration(seconds)))  # fmt: skip
  alone_and_spent = ("alone [FLOPs]", "spent [FLOPs]", "spent [petaflop/s-days]")
  yield Table(("cells", "runs", *alone_and_spent, "time"), rows)
  yield Text(
    "Alone is what the runs would cost one by one (C); branched from a shared trunk they cost what "
    "is spent. Time is summed over runs"
    + (
      f"; the sweep took {duration(record.sweep['seconds'])}." if "seconds" in record.sweep else "."
    )
  )


def _cells(record: Record, *kinds: str) -> Table:
  cells = sorted(
    (c for c in record.cells if c["kind"] in kinds),
    key=lambda c: (kinds.index(c["kind"]), float(f"{c['C']:.1e}"), c["N"], c["lr"], c["seed"]),
  )
  rows = [
    (f"`{c['cell']}`", si(c["N"]), si(c["D"]), flops(c["C"]), ratio(c["tokens_per_param"]),
     f"{c['lr']:.2e}", _loss(c), number(c["bits_per_byte"], ".4f"), c["status"])
    for c in cells
  ]  # fmt: skip
  names = "cell|N|D|C [FLOPs]|tokens/param|lr|loss [nats/token]|bits/byte|status"
  return Table(names.split("|"), rows)


def _provenance(record: Record) -> Iterable[Block]:
  sweep = record.sweep
  if not sweep:
    return
  changed = sweep.get("config_diff", {})
  yield Heading("How to reproduce")
  yield Text("Each flag is a field of the config that differs from its default.")
  flags = [f"--config.{k}={tuple(v) if isinstance(v, list) else v}" for k, v in changed.items()]
  command = ["isoflop sweep --config=configs/base.py --workdir=DIR", *map(shlex.quote, flags)]
  yield Code(" \\\n  ".join(command))
  yield Heading("Provenance")
  corpus = sweep.get("corpus", {})
  facts = {
    "sweep": sweep.get("name"), "created": sweep.get("created"), "device": sweep.get("device"),
    "objective": sweep.get("objective"), "corpus": corpus.get("source"),
    "fingerprint": corpus.get("fingerprint"),
    "tokens, train": si(corpus.get("train_tokens", math.nan)),
    "tokens, validation": si(corpus.get("validation_tokens", math.nan)),
    "vocabulary": corpus.get("vocab_size"),
  }  # fmt: skip
  rows = [(name, str(value)) for name, value in facts.items() if value not in (None, "", DASH)]
  rows += [(name, str(version)) for name, version in sweep.get("libraries", {}).items()]
  yield Table(("", "value"), rows)


def blocks(record: Record, undrawn: dict[str, str]) -> list[Block]:
  """Returns the report's content; `undrawn` says by figure why it is missing ("": it is there)."""
  sealed = SEALED if record.prediction else {}
  images = {n: Image(n, CAPTIONS[n] + sealed.get(n, "")) for n, why in undrawn.items() if not why}

  def show(*names: str) -> list[Image]:
    return [images[name] for name in names if name in images]

  content: list[Block] = [Text(f"**{record.headline}**"), *_glance(record)]
  content += [*_missing(record, undrawn), *show("isoflop_profiles"), *_law(record)]
  content += [*show("contours"), *_optimum(record), *show("frontier")]
  content += [*_heldout(record), *show("predicted_vs_trained"), *_floor(record)]
  content += evidence.decisions(record)
  if images.keys() & {"residuals", "training_curves"}:
    content += [Heading("How well the law fits"), *show("residuals", "training_curves")]
  content += [*evidence.behind(record), *show("sensitivity"), *_adaptive(record)]
  content += [*_probe(record), *_unused(record), *_cost(record), *costs.section(record.workdir)]
  if any(c["kind"] == "fit" for c in record.cells):
    content += [Heading("Fit cells"), _cells(record, "fit")]
  return content + list(_provenance(record))


def terminal(workdir: str | Path) -> str:
  """Returns the outcome for the terminal: headline, law, warnings, optima, held-out cells.

  Raises:
    UserError: there is no such folder, or a record in it is broken.
  """
  record = records.read(workdir)
  if record.objectives:
    sides = compare.read(record)
    from scaling.report import side_by_side

    said = side_by_side.headline(sides)
    found, asked = side_by_side.tables(sides, compare.to_json(sides)), list[Block]()
  else:
    said = record.headline
    found = [*_optimum(record, MOST_BUDGETS), *_heldout(record), *_unused(record)]
    asked = list(evidence.decisions(record))
  tables = [text_table(*block) for block in found if isinstance(block, Table)]
  for block in asked:
    if isinstance(block, Heading):
      tables.append(block.text)
    elif isinstance(block, Table):
      tables[-1] += "\n" + text_table(*block)
  law = [_law_line(record.fit)] if record.fit and not record.objectives else []
  return "\n\n".join([said, *law, *tables])


def draw(workdir: str | Path) -> dict[str, str]:
  """Draws the figures of one sweep; returns by figure why it is missing (see `figures.draw`)."""
  from scaling.report.figures import sweep  # matplotlib takes its time, and `fit` draws nothing

  return sweep.draw(workdir)


def write(workdir: str | Path, undrawn: dict[str, str] | None = None) -> Path:
  """Writes report.md and report.html with their figures, from what the workdir has so far.

  In a folder of several objectives it also writes comparison.json.

  Args:
    workdir: the folder.
    undrawn: what `draw` returned, where the figures are there already.

  Returns:
    The path of report.html.

  Raises:
    UserError: there is no such folder, or a record in it is broken.
  """
  record = records.read(workdir)
  if record.objectives:
    from scaling.report import side_by_side

    content = [*side_by_side.write(record), *_provenance(record)]
  else:
    content = blocks(record, draw(workdir) if undrawn is None else undrawn)
  title = f"Scaling law: {record.sweep.get('name', 'unnamed sweep')}"
  page = record.workdir / "report.html"
  files.write_text(record.workdir / "report.md", to_markdown(title, content))
  files.write_text(page, to_html(title, content, record.workdir / "figures"))
  return page
