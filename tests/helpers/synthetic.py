"""The workdir of a finished sweep on a known surface, for the tests of figures and report."""

import csv
import json
from pathlib import Path

import numpy as np

from configs import base, ladders
from scaling import laws
from scaling.laws import chinchilla, questions, runs, sensitivity
from scaling.laws.tables import curves
from scaling.report import records, render, report
from scaling.sweep import arms

TRUTH = chinchilla.Chinchilla(*(np.array(v) for v in (1.2, 40.0, 127.0, 0.35, 0.37)))
COMPUTE = chinchilla.Compute(k=6.0)
SIZES, BUDGETS, HELD = (1, 3, 5, 8, 11), (3e11, 6e11, 1.2e12, 2.4e12), 7.2e12
COLUMNS = """
  cell kind objective size width depth params_total params_embedding params_head params_body N D C
  C_6nd flops_spent lr seed loss loss_stderr bits_per_byte tokens_per_param status seconds
""".split()  # noqa: SIM905


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


def params_of(size):
  width, depth, _ = ladders.SMALL[size]
  return 12 * depth * width**2 + 257 * width


def _row(cell):
  return {k: cell[k] for k in ("cell", "N", "D", "C")}


def _curve(path, N, D, start, rng, gap=0.08):
  """Train loss from token `start` to D, `gap` above the law; a cooldown ends on the law."""
  path.mkdir(parents=True)
  tokens = np.arange(max(start, 10_240), D, 10_240)
  decay = np.clip((tokens - start) / (D - start), 0, 1) if start else 0.0
  loss = (
    chinchilla.loss(TRUTH, N, tokens) + gap * (1 - decay) + 0.05 * rng.standard_normal(len(tokens))
  )
  rows = [
    {"step": int(t // 1024), "tokens": int(t), "flops": 6.0 * N * t, "lr": 0.004, "train_loss": x}
    for t, x in zip(tokens, np.minimum(loss, 5.6), strict=True)
  ]
  rows.append({"step": int(D // 1024), "tokens": int(D), "flops": 6.0 * N * D, "eval_loss": 2.0})
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (path / "metrics.jsonl").write_text(text + '{"step": 99, "tok')  # a line cut by a kill


def _cells(rng):
  cells = [
    _cell(f"fit-s{s}-{C:.0e}-{seed}", "fit", s, params_of(s), C, seed, rng)
    for s in SIZES
    for C in BUDGETS
    for seed in range(3 if s in (3, 8) else 1)
  ]
  best = chinchilla.optimum(TRUTH, HELD, COMPUTE)
  for factor in (0.5, 1.0, 2.0):
    cells.append(_cell(f"heldout-{factor}", "heldout", 11, factor * float(best.N), HELD, 0, rng))
  for factor, worse in ((0.5, 0.03), (1.0, 0.0), (2.0, 0.05)):
    probe = _cell(f"probe-{factor}", "probe", 5, params_of(5), 1.4e11, 0, rng, lr=0.004 * factor)
    cells.append(probe | {"loss": 3.1 + worse})
  bad = _cell("fit-s5-blown-up", "fit", 5, params_of(5), BUDGETS[0], 7, rng)
  return [*cells, bad | {"status": "diverged", "loss": "", "loss_stderr": "", "bits_per_byte": ""}]


def _fit(cells):
  profiles = []
  for C in BUDGETS:
    some = [c for c in cells if c["kind"] == "fit" and c["C"] == C and c["status"] == "done"]
    x, y = np.log([c["N"] for c in some]), np.array([c["loss"] for c in some], float)
    c2, c1, c0 = np.polyfit(x, y, 2)
    low = -c1 / (2 * c2)
    profiles.append({
      "C": C, "N": list(np.exp(x)), "loss": list(y), "coefficients": [c0, c1, c2],
      "minimum_N": float(np.exp(low)), "minimum_loss": float(c0 + c1 * low + c2 * low**2),
      "inside": bool(x.min() < low < x.max()),
    })  # fmt: skip
  rows = []
  for C in (*BUDGETS, 10 * BUDGETS[-1]):
    N, D, loss = map(float, chinchilla.optimum(TRUTH, C, COMPUTE))
    rows.append({
      "C": C, "N_opt": N, "N_opt_interval": [0.85 * N, 1.2 * N], "D_opt": D,
      "D_opt_interval": [0.83 * D, 1.18 * D], "tokens_per_param": D / N,
      "tokens_per_param_interval": [0.7 * D / N, 1.4 * D / N], "loss": loss,
      "loss_interval": [loss - 0.01, loss + 0.012], "extrapolation": C / BUDGETS[-1],
    })  # fmt: skip
  a, b = map(float, chinchilla.exponents(TRUTH))
  params = {k: float(v) for k, v in TRUTH._asdict().items()}
  intervals = {k: [0.9 * v, 1.1 * v] for k, v in params.items()}
  intervals |= {"a": [a - 0.02, a + 0.02], "b": [b - 0.02, b + 0.02]}
  return {
    "version": 1, "form": "chinchilla", "params": params, "intervals": intervals, "a": a, "b": b,
    "n_runs": 36, "excluded": [{"id": "fit-s5-blown-up", "reason": "status diverged"}],
    "delta": 1e-3, "level": 0.9,
    "residual_sd": 0.002, "seed_noise": 0.0021, "optimum": rows,
    "compute": {"k": 6.0, "q": 0.0, "error": 0.0}, "warnings": [],
    "approach2": {"a": 0.52, "b": 0.48, "profiles": profiles},
  }  # fmt: skip


def _verification(cells, prediction):
  rows = []
  for cell, sealed in zip(cells, prediction["cells"], strict=True):
    low, high = sealed["interval"]
    loss = cell["loss"]
    rows.append(sealed | {"trained_loss": loss, "inside": bool(low <= loss <= high)})
  middle = rows[1]
  error = middle["trained_loss"] / prediction["loss"] - 1
  return {
    "predicted_loss": prediction["loss"], "interval": prediction["interval"],
    "trained_loss": middle["trained_loss"], "inside": middle["inside"], "relative_error": error,
    "minimum_where_predicted": True, "trained_minimum_N": middle["N"],
    "tokens_per_param": prediction["tokens_per_param"],
    "tokens_per_param_interval": prediction["tokens_per_param_interval"],
    "cost_of_20_tokens_per_param": 0.0012, "cells": rows,
    "verdict": "The prediction held: 1.8712 nats/token predicted, 1.8730 trained.",
  }  # fmt: skip


def _write_table(folder, cells):
  with (folder / "cells.csv").open("w", newline="") as file:
    table = csv.DictWriter(file, COLUMNS)
    table.writeheader()
    table.writerows(cells)


def build(folder: Path) -> Path:
  """Writes the workdir of a finished sweep on a known surface."""
  rng = np.random.default_rng(0)
  cells = _cells(rng)
  fit = _fit(cells)
  held = [c for c in cells if c["kind"] == "heldout"]
  N, D, loss = map(float, chinchilla.optimum(TRUTH, HELD, COMPUTE))
  prediction = {
    "input_hash": "5ea1ed", "C": HELD, "N": N, "N_interval": [0.85 * N, 1.2 * N],
    "D": D, "D_interval": [0.83 * D, 1.18 * D],
    "loss": loss, "interval": [loss - 0.01, loss + 0.012],
    "tokens_per_param": D / N, "tokens_per_param_interval": [0.7 * D / N, 1.4 * D / N],
    "cells": [
      _row(c) | {"predicted_loss": loss, "interval": [loss - 0.01, loss + 0.012]}
      for c in held
      for loss in [float(chinchilla.loss(TRUTH, c["N"], c["D"]))]
    ],
  }  # fmt: skip
  config = base.get_config()
  with config.unlocked():
    config.sweep.name = "synthetic"
    config.sweep.sizes, config.sweep.budgets = SIZES, BUDGETS
  planned = [
    {"id": c["cell"], "trunk": f"s{c['size']}" if c["kind"] == "fit" and not c["seed"] else None}
    for c in cells
  ]
  sweep = {
    "name": "synthetic", "config": config.to_dict(), "created": "2026-01-02T03:04:05+00:00",
    "source": "python_stdlib", "objective": "clm", "device": "cpu",
    "cells": planned, "libraries": {"jax": "0.10.2", "flax": "0.12.8"},
    "config_diff": {"sweep.name": "synthetic", "sweep.sizes": SIZES, "sweep.budgets": BUDGETS},
    "corpus": {"source": "python_stdlib", "fingerprint": "c0ffee12", "train_tokens": 9_000_000,
               "validation_tokens": 450_000, "vocab_size": 257, "floor": None},
  }  # fmt: skip
  records = {"sweep": sweep, "fit": fit, "prediction": prediction}
  records["verification"] = _verification(held, prediction)
  for name, value in records.items():
    (folder / f"{name}.json").write_text(json.dumps(value))
  _write_table(folder, cells)
  longest = {s: max(c["D"] for c in cells if c["size"] == s and c["kind"] == "fit") for s in SIZES}
  for size, D in longest.items():
    _curve(folder / f"trunks/s{size}", params_of(size), 0.8 * D, 0, rng)
  for cell in cells:
    branch = cell["kind"] == "fit" and cell["seed"] == 0
    path = folder / "cells" / cell["cell"]
    _curve(path, cell["N"], cell["D"], 0.8 * cell["D"] if branch else 0, rng, gap=0.08 * branch)
  return folder


def reported(folder: Path) -> Path:
  """Builds it with what stands behind its law, asks four questions, and writes the report."""
  build(folder)
  options = base.get_config().fit
  options.bootstraps = 200
  asked = questions.Questions(flops=1e14, loss=1.8, inference_tokens=1e9, max_tokens=2e6)
  law = laws.fit_runs(runs.read_runs(folder), options)
  r = law.runs
  made = laws.to_json(law, laws.make_curves(curves.read_curves(folder, r.ids, r.N, r.D, r.C)))
  held = {"C": 6e11, "fitted": 18, "heldout": 18, "bias": 0.0, "converged": True, "reason": None}
  behind = {key: made[key] for key in ("estimators", "profile", "influence")} | {
    "choices": sensitivity.vary_choices(folder, options),
    "decisions": questions.answers(law, asked),
    "heldout": [
      held | {"form": "chinchilla", "rms_error": 0.0021},
      held | {"form": "power_law_c", "rms_error": None, "reason": "too few"},
    ],
  }
  stored = json.loads((folder / "fit.json").read_text())
  (folder / "fit.json").write_text(json.dumps(stored | behind))
  report.write(folder)
  return folder


def build_several(folder: Path, truths: dict[str, chinchilla.Chinchilla]) -> Path:
  """Writes a folder of finished sweeps, one of each objective on its own known surface."""
  config = base.get_config()
  config.sweep.name = "synthetic"
  config.sweep.objectives = tuple(truths)
  config.sweep.sizes, config.sweep.budgets = SIZES, BUDGETS
  config.fit.bootstraps = 200
  head = {"name": "synthetic", "config": config.to_dict(), "cells": [], "config_diff": {}}
  (folder / "sweep.json").write_text(json.dumps(head))
  rng = np.random.default_rng(0)
  for (name, own), truth in zip(arms.split(config).items(), truths.values(), strict=True):
    (folder / name).mkdir()
    _write_sweep(folder / name, own, truth, rng)
  return folder


def _write_sweep(folder, config, truth, rng):
  cells = [
    _cell(f"fit-s{s}-{C:.0e}", "fit", s, params_of(s), C, 0, rng, truth=truth)
    for s in SIZES
    for C in BUDGETS
  ]
  N = float(chinchilla.optimum(truth, HELD, COMPUTE).N)
  held = [
    _cell(f"heldout-{x}", "heldout", 11, x * N, HELD, 0, rng, truth=truth) for x in (0.5, 1.0, 2.0)
  ]
  _write_table(folder, [*cells, *held])
  law = laws.fit_runs(runs.read_runs(folder / "cells.csv"), config.fit)
  best = laws.optimum(law, HELD)
  pairs = (("N_opt", "N"), ("D_opt", "D"), ("tokens_per_param", "tokens_per_param"))
  prediction = {"input_hash": runs.input_hash(law.runs), "C": HELD, "cells": []}
  for ours, theirs in pairs:
    prediction |= {theirs: best[ours], f"{theirs}_interval": best[f"{ours}_interval"]}
  for cell in held:
    loss, interval = laws.predict_loss(law, cell["N"], cell["D"])
    prediction["cells"].append(_row(cell) | {"predicted_loss": loss, "interval": interval})
  middle = prediction["cells"][1]
  prediction |= {"loss": middle["predicted_loss"], "interval": middle["interval"]}
  records = {
    "sweep": {"name": config.sweep.name, "config": config.to_dict(), "seconds": 61.0, "cells": []},
    "fit": laws.to_json(law),
    "prediction": prediction,
    "verification": _verification(held, prediction),
  }
  for name, value in records.items():
    (folder / f"{name}.json").write_text(json.dumps(value))


def edit(path, change):
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


def markdown(workdir):
  return render.to_markdown("a sweep", report.blocks(records.read(workdir)))
