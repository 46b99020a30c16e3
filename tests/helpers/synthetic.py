"""The workdir of a finished sweep on a known surface, for the tests of figures and report."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np

from configs import base, ladders
from scaling import laws
from scaling.claims import integrity, kinds, prediction_json
from scaling.laws import chinchilla, questions, sensitivity
from scaling.laws.forms import FORMS
from scaling.laws.tables import curves, runs
from scaling.report import document, render, sweep_results
from scaling.sweep import design, store
from train.system import files

TRUTH = chinchilla.Chinchilla(*(np.array(v) for v in (1.2, 40.0, 127.0, 0.35, 0.37)))
LAW = laws.Law(FORMS["chinchilla"], TRUTH._asdict())
COMPUTE = chinchilla.Compute(k=6.0)
SIZES, BUDGETS, HELD = (1, 3, 5, 8, 11), (3e11, 6e11, 1.2e12, 2.4e12), 7.2e12
COLUMNS = """
  cell kind objective size width depth params_total params_embedding params_head params_body N D C
  C_6nd flops_spent lr seed loss loss_stderr bits_per_byte tokens_per_param status seconds
""".split()  # noqa: SIM905


def build(folder: Path) -> Path:
  """Writes the workdir of a finished sweep, with its training curves."""
  rng = np.random.default_rng(0)
  cells = [
    _cell(f"fit-s{s}-{C:.0e}-{seed}", "fit", s, params_of(s), C, seed, rng)
    for s in SIZES
    for C in BUDGETS
    for seed in range(3 if s in (3, 8) else 1)
  ]
  cells += _heldout(TRUTH, rng)
  for factor, worse in ((0.5, 0.03), (1.0, 0.0), (2.0, 0.05)):
    probe = _cell(f"probe-{factor}", "probe", 5, params_of(5), 1.4e11, 0, rng, lr=0.004 * factor)
    cells.append(probe | {"loss": 3.1 + worse})
  bad = _cell("fit-s5-blown-up", "fit", 5, params_of(5), BUDGETS[0], 7, rng)
  cells.append(bad | dict.fromkeys(("loss", "loss_stderr", "bits_per_byte"), "")
               | {"status": "diverged"})  # fmt: skip
  for size in SIZES:
    D = 0.8 * max(c["D"] for c in cells if c["size"] == size and c["kind"] == "fit")
    _curve(folder / f"trunks/s{size}", params_of(size), D, 0, rng)
  for cell in cells:
    branch = cell["kind"] == "fit" and cell["seed"] == 0
    path = folder / "cells" / cell["cell"]
    _curve(path, cell["N"], cell["D"], 0.8 * cell["D"] if branch else 0, rng, gap=0.08 * branch)
  head = {
    "created": "2026-01-02T03:04:05+00:00", "source": "python_stdlib", "objective": "clm",
    "device": "cpu", "libraries": {"jax": "0.10.2", "flax": "0.12.8"},
    "cells": [
      {"id": c["cell"], "trunk": f"s{c['size']}" if c["kind"] == "fit" and not c["seed"] else None}
      for c in cells
    ],
    "config_diff": {"sweep.name": "synthetic", "sweep.sizes": SIZES, "sweep.budgets": BUDGETS},
    "corpus": {"source": "python_stdlib", "fingerprint": "c0ffee12", "train_tokens": 9_000_000,
               "validation_tokens": 450_000, "vocab_size": 257, "floor": None},
  }  # fmt: skip
  _write_sweep(folder, _config(), head, cells)
  return folder


def reported(folder: Path) -> Path:
  """Builds it with what stands behind its law, asks four questions, and writes the report."""
  build(folder)
  options = _config().fit
  law = laws.fit_runs(laws.read_runs(folder), options)
  asked = questions.Questions(flops=1e14, loss=1.8, inference_tokens=1e9, max_tokens=2e6)
  held = {"C": 6e11, "fitted": 18, "heldout": 18, "bias": 0.0, "converged": True, "reason": None}
  behind = {
    "choices": sensitivity.vary_choices(folder, options),
    "decisions": questions.answers(law, asked),
    "heldout": [
      held | {"form": "chinchilla", "rms_error": 0.0021},
      held | {"form": "power_law_c", "rms_error": None, "reason": "too few"},
    ],
  }
  edit(folder / "fit.json", lambda stored: stored.update(behind))
  document.write(folder)
  return folder


def build_several(
  folder: Path, truths: dict[str, chinchilla.Chinchilla], objectives: bool = True
) -> Path:
  """Writes a folder of finished arms, each on its own known surface.

  Arms are named by their objectives, or by the MLPs that models of one objective have; the same
  cells of these are equally lucky.
  """
  config, rng = _config(), np.random.default_rng(0)
  config.sweep.arms = {
    name: {"objective": name} if objectives else {"model": {"mlp": name}} for name in truths
  }
  head = {"name": "synthetic", "config": config.to_dict(), "cells": [], "config_diff": {}}
  (folder / "sweep.json").write_text(json.dumps(head))
  for (name, arm), truth in zip(design.split(config).items(), truths.values(), strict=True):
    (folder / name).mkdir()
    rng = rng if objectives else np.random.default_rng(0)
    cells = [
      _cell(f"fit-s{s}-{C:.0e}", "fit", s, params_of(s), C, 0, rng, truth=truth)
      for s in SIZES
      for C in BUDGETS
    ]
    cells += _heldout(truth, rng)
    _write_sweep(folder / name, arm, {"seconds": 61.0, "cells": []}, cells)
  return folder


def _config():
  config = base.get_config()
  config.sweep.name, config.sweep.sizes, config.sweep.budgets = "synthetic", SIZES, BUDGETS
  config.fit.bootstraps = 200
  return config


def params_of(size):
  width, depth, _ = ladders.SMALL[size]
  return 12 * depth * width**2 + 257 * width


def _heldout(truth, rng):
  N = float(chinchilla.optimum(truth, HELD, COMPUTE).N)
  return [
    _cell(f"heldout-{x}", "heldout", 11, x * N, HELD, 0, rng, truth=truth) for x in (0.5, 1.0, 2.0)
  ]


def _cell(name, kind, size, N, C, seed, rng, lr=0.004, truth=TRUTH):
  width, depth, _ = ladders.SMALL[size]
  D = C / (6 * N)
  loss = chinchilla.loss(truth, N, D) * (1 + 0.002 * rng.standard_normal())
  head = 257 * width
  return {
    "cell": name, "kind": kind, "objective": "clm", "size": size, "width": width, "depth": depth,
    "params_total": N + head, "params_embedding": head, "params_head": head,
    "params_body": N - head,
    "N": N, "D": D, "C": C, "C_6nd": C, "flops_spent": 0.3 * C, "lr": lr, "seed": seed,
    "loss": loss, "loss_stderr": 0.004, "bits_per_byte": loss / np.log(2),
    "tokens_per_param": D / N, "status": "done", "seconds": C / 1e11,
  }  # fmt: skip


def _curve(path, N, D, start, rng, gap=0.08):
  """Train loss from token `start` to D, `gap` above the law; a cooldown ends on the law."""
  path.mkdir(parents=True)
  tokens = np.arange(max(start, 10_240), D, 10_240)
  decay = np.clip((tokens - start) / (D - start), 0, 1) if start else 0.0
  noise = 0.05 * rng.standard_normal(len(tokens))
  loss = np.minimum(chinchilla.loss(TRUTH, N, tokens) + gap * (1 - decay) + noise, 5.6)
  rows = [
    {"step": int(t // 1024), "tokens": int(t), "flops": 6.0 * N * t, "lr": 0.004, "train_loss": x}
    for t, x in zip(tokens, loss, strict=True)
  ]
  rows.append({"step": int(D // 1024), "tokens": int(D), "flops": 6.0 * N * D, "eval_loss": 2.0})
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (path / "metrics.jsonl").write_text(text + '{"step": 99, "tok')  # a line cut by a kill


def _write_sweep(folder, config, head, cells):
  """Writes the table of the cells, and the law, prediction and verdict that follow from it."""
  with (folder / "cells.csv").open("w", newline="") as file:
    table = csv.DictWriter(file, COLUMNS)
    table.writeheader()
    table.writerows(cells)
  head = {"name": config.sweep.name, "config": config.to_dict()} | head
  (folder / "sweep.json").write_text(json.dumps(head))
  law = laws.fit_runs(r := laws.read_runs(folder), config.fit)
  trained = laws.make_curves(curves.read_curves(folder, r.ids, r.N, r.D, r.C))
  held = {c["cell"]: c for c in cells if c["kind"] == "heldout"}
  at = {name: {key: cell[key] for key in "NDC"} | {"budget": HELD} for name, cell in held.items()}
  said = [("loss", where, [name]) for name, where in at.items()]
  said += [(what, {"C": HELD}, list(held)) for what in prediction_json.FIELDS]
  rests_on = runs.input_hash(r)
  claims = [kinds.predict(what, where, law, rests_on, names) for what, where, names in said]
  seal = {"version": prediction_json.VERSION, "refused": []}
  seal |= {"budgets": [{"C": HELD, "times": HELD / BUDGETS[-1], "passed_over": {}}]}
  seal |= {
    "claims": [dataclasses.asdict(claim) for claim in claims],
    "input_hash": rests_on,
    "n_runs": len(r),
    "runs": integrity.rows(r),
  }
  files.write_json(folder / "prediction.json", files.with_digests(seal))
  parts = {
    "fit": laws.to_json(law, trained or None),
    "verification": _verification(held.values(), prediction_json.read(folder)),
  }
  for name, value in parts.items():
    (folder / f"{name}.json").write_text(json.dumps(value))


def write_runs(workdir, cells, truth=LAW):
  """Writes the records of a plan's cells as if each had trained to the loss of a law."""
  noise = np.random.default_rng(0).normal(scale=0.002, size=len(cells))
  for cell, error in zip(cells, noise, strict=True):
    loss = float(truth.loss(cell.N, cell.D) * np.exp(error))
    run = {"loss": loss, "loss_stderr": 0.004, "bits_per_byte": loss, "seconds": 1}
    folder = store.folder(workdir, cell)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "done"} | run))


def _verification(cells, sealed):
  rows = []
  for cell, row in zip(cells, sealed["cells"], strict=True):
    low, high = row["interval"]
    inside = bool(low <= cell["loss"] <= high)
    rows.append(row | {"trained_loss": cell["loss"], "inside": inside})
  keys = ("predicted_loss", "interval", "trained_loss", "inside")
  [optimum] = sealed["budgets"]
  budget = {key: rows[1][key] for key in keys} | {
    "held": True, "relative_error": rows[1]["trained_loss"] / optimum["loss"] - 1,
    "minimum_where_predicted": True, "trained_minimum_N": rows[1]["N"],
    "tokens_per_param": optimum["tokens_per_param"],
    "tokens_per_param_interval": optimum["tokens_per_param_interval"],
    "cost_of_target": {"excess": 0.0012},
  }  # fmt: skip
  return {
    "held": True, "budgets": [budget], "cells": rows,
    "verdict": "The prediction held: 1.8712 nats/token predicted, 1.8730 trained.",
  }  # fmt: skip


def edit_table(path, change):
  """Writes a table again after `change(row)` changed each of its rows."""
  with path.open(newline="") as file:
    rows = list(csv.DictReader(file))
  for row in rows:
    change(row)
  with path.open("w", newline="") as file:
    table = csv.DictWriter(file, list(rows[0]))
    table.writeheader()
    table.writerows(rows)


def edit(path, change):
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


def markdown(workdir):
  return render.to_markdown("a sweep", document.assemble(sweep_results.read(workdir)))
