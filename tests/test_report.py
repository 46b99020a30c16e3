"""Figures and report: what they show is what the records say, for whole and for partial sweeps."""

import base64
import csv
import html.parser
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import base, ladders
from scaling import figures, laws, render, report, results

TRUTH = laws.Chinchilla(*(np.array(v) for v in (1.2, 40.0, 127.0, 0.35, 0.37)))
COMPUTE = laws.Compute(k=6.0)
SIZES, BUDGETS, HELD = (1, 3, 5, 8, 11), (3e11, 6e11, 1.2e12, 2.4e12), 7.2e12
COLUMNS = """
  cell kind objective size width depth params_total params_embedding params_head params_body N D C
  C_6nd flops_spent lr seed loss loss_stderr bits_per_byte tokens_per_param status seconds
""".split()  # noqa: SIM905


def _cell(name, kind, size, N, C, seed, rng, lr=0.004):
  width, depth, _ = ladders.SMALL[size]
  D = C / (6 * N)
  loss = laws.loss(TRUTH, N, D) * (1 + 0.002 * rng.standard_normal())
  head = 257 * width
  return {
    "cell": name, "kind": kind, "objective": "clm", "size": size, "width": width, "depth": depth,
    "params_total": N + head, "params_embedding": head, "params_head": head,
    "params_body": N - head,
    "N": N, "D": D, "C": C, "C_6nd": C, "flops_spent": 0.3 * C, "lr": lr, "seed": seed,
    "loss": loss, "loss_stderr": 0.004, "bits_per_byte": loss / np.log(2),
    "tokens_per_param": D / N, "status": "done", "seconds": C / 1e11,
  }  # fmt: skip


def _params(size):
  width, depth, _ = ladders.SMALL[size]
  return 12 * depth * width**2 + 257 * width


def _row(cell):
  return {k: cell[k] for k in ("cell", "N", "D", "C")}


def _curve(path, N, D, start, rng, gap=0.08):
  """Train loss from token `start` to D, `gap` above the law; a cooldown ends on the law."""
  path.mkdir(parents=True)
  tokens = np.arange(max(start, 10_240), D, 10_240)
  decay = np.clip((tokens - start) / (D - start), 0, 1) if start else 0.0
  loss = laws.loss(TRUTH, N, tokens) + gap * (1 - decay) + 0.05 * rng.standard_normal(len(tokens))
  rows = [
    {"step": int(t // 1024), "tokens": int(t), "flops": 6.0 * N * t, "lr": 0.004, "train_loss": x}
    for t, x in zip(tokens, np.minimum(loss, 5.6), strict=True)
  ]
  rows.append({"step": int(D // 1024), "tokens": int(D), "flops": 6.0 * N * D, "eval_loss": 2.0})
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (path / "metrics.jsonl").write_text(text + '{"step": 99, "tok')  # a line cut by a kill


def _cells(rng):
  cells = [
    _cell(f"fit-s{s}-{C:.0e}-{seed}", "fit", s, _params(s), C, seed, rng)
    for s in SIZES
    for C in BUDGETS
    for seed in range(3 if s in (3, 8) else 1)
  ]
  best = laws.optimum(TRUTH, HELD, COMPUTE)
  for factor in (0.5, 1.0, 2.0):
    cells.append(_cell(f"heldout-{factor}", "heldout", 11, factor * float(best.N), HELD, 0, rng))
  for factor, worse in ((0.5, 0.03), (1.0, 0.0), (2.0, 0.05)):
    probe = _cell(f"probe-{factor}", "probe", 5, _params(5), 1.4e11, 0, rng, lr=0.004 * factor)
    cells.append(probe | {"loss": 3.1 + worse})
  bad = _cell("fit-s5-blown-up", "fit", 5, _params(5), BUDGETS[0], 7, rng)
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
    N, D, loss = map(float, laws.optimum(TRUTH, C, COMPUTE))
    rows.append({
      "C": C, "N_opt": N, "N_opt_interval": [0.85 * N, 1.2 * N], "D_opt": D,
      "D_opt_interval": [0.83 * D, 1.18 * D], "tokens_per_param": D / N,
      "tokens_per_param_interval": [0.7 * D / N, 1.4 * D / N], "loss": loss,
      "loss_interval": [loss - 0.01, loss + 0.012], "extrapolation": C / BUDGETS[-1],
    })  # fmt: skip
  a, b = map(float, laws.exponents(TRUTH))
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


def build(folder: Path) -> Path:
  """Writes the workdir of a finished sweep on a known surface."""
  rng = np.random.default_rng(0)
  cells = _cells(rng)
  fit = _fit(cells)
  held = [c for c in cells if c["kind"] == "heldout"]
  N, D, loss = map(float, laws.optimum(TRUTH, HELD, COMPUTE))
  prediction = {
    "input_hash": "5ea1ed", "C": HELD, "N": N, "N_interval": [0.85 * N, 1.2 * N],
    "D": D, "D_interval": [0.83 * D, 1.18 * D],
    "loss": loss, "interval": [loss - 0.01, loss + 0.012],
    "tokens_per_param": D / N, "tokens_per_param_interval": [0.7 * D / N, 1.4 * D / N],
    "cells": [
      _row(c) | {"predicted_loss": loss, "interval": [loss - 0.01, loss + 0.012]}
      for c in held
      for loss in [float(laws.loss(TRUTH, c["N"], c["D"]))]
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
  with (folder / "cells.csv").open("w", newline="") as file:
    table = csv.DictWriter(file, COLUMNS)
    table.writeheader()
    table.writerows(cells)
  longest = {s: max(c["D"] for c in cells if c["size"] == s and c["kind"] == "fit") for s in SIZES}
  for size, D in longest.items():
    _curve(folder / f"trunks/s{size}", _params(size), 0.8 * D, 0, rng)
  for cell in cells:
    branch = cell["kind"] == "fit" and cell["seed"] == 0
    path = folder / "cells" / cell["cell"]
    _curve(path, cell["N"], cell["D"], 0.8 * cell["D"] if branch else 0, rng, gap=0.08 * branch)
  return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """A finished sweep with its report."""
  folder = build(tmp_path_factory.mktemp("finished"))
  report.write(folder)
  return folder


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of the finished sweep, without the report, for a test to change."""
  skip = shutil.ignore_patterns("figures", "report.*")
  return Path(shutil.copytree(finished, tmp_path / "sweep", ignore=skip))


def edit(path, change):
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))


def artists(axes, gid):
  return [a for a in axes.get_children() if a.get_gid() == gid]


def points(axes, gid):
  """The (x, y) of every marker drawn under a name, [n, 2]."""
  get = lambda a: a.get_offsets() if hasattr(a, "get_offsets") else a.get_xydata()  # noqa: E731
  return np.concatenate([np.asarray(get(a)) for a in artists(axes, gid)])


def legend(figure):
  return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_figure_is_a_pdf_and_a_png_of_its_column_width(finished):
  widths = {"training_curves": 7.0, "residuals": 7.0, "frontier": 7.0}
  for name in figures.FIGURES:
    pdf = (finished / "figures" / f"{name}.pdf").read_bytes()
    png = (finished / "figures" / f"{name}.png").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")
    assert b"/Subtype /Type3" not in pdf  # journals refuse Type 3 fonts
    assert b"/CreationDate" not in pdf
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">I", png[16:20])[0] == round(220 * widths.get(name, 3.4))


def test_profile_markers_sit_at_the_minima_and_on_their_parabolas(workdir):
  record = results.read(workdir)
  axes = figures.isoflop_profiles(record).axes[0]
  wanted = [(p["minimum_N"], p["minimum_loss"]) for p in record.profiles]
  np.testing.assert_allclose(points(axes, "minimum"), wanted)
  for line, (N, loss) in zip(artists(axes, "parabola"), wanted, strict=True):
    x, y = line.get_xydata().T
    assert np.interp(N, x, y) == pytest.approx(loss, abs=1e-3)
    assert y.min() >= loss - 1e-12
  held = [(c["N"], c["loss"]) for c in record.done("heldout")]
  np.testing.assert_allclose(points(axes, "heldout"), held)
  N, predicted = points(axes, "predicted").T
  for cell in record.prediction["cells"]:
    assert np.interp(cell["N"], N, predicted) == pytest.approx(cell["predicted_loss"], abs=1e-4)


def test_a_profile_without_interior_minimum_says_so(workdir):
  def change(fit):
    fit["approach2"]["profiles"][0] |= {"inside": False, "minimum_N": None, "minimum_loss": None}

  edit(workdir / "fit.json", change)
  record = results.read(workdir)
  figure = figures.isoflop_profiles(record)
  axes = figure.axes[0]
  first = record.profiles[0]
  low = int(np.argmin(first["loss"]))
  assert len(points(axes, "minimum")) == 3
  np.testing.assert_allclose(points(axes, "open"), [(first["N"][low], first["loss"][low])])
  assert "no interior minimum" in legend(figure)
  assert "**No interior minimum** in the isoFLOP profile at 3.00e11 FLOPs" in markdown(workdir)


def markdown(workdir):
  record = results.read(workdir)
  undrawn = {name: record.lacks(*needs) for name, (_, needs) in figures.FIGURES.items()}
  return render.to_markdown("a sweep", report.blocks(record, undrawn))


def test_the_frontier_balances_the_two_terms_of_the_law(workdir):
  record = results.read(workdir)
  axes = figures.contours(record).axes[0]
  N, D = points(axes, "frontier").T
  E, A, B, alpha, beta = (float(v) for v in TRUTH)
  np.testing.assert_allclose(alpha * A * N**-alpha, beta * B * D**-beta, rtol=1e-9)
  stars = points(axes, "optimum")
  np.testing.assert_allclose(stars, [(o["N_opt"], o["D_opt"]) for o in record.optimum])
  assert (record.prediction["N"], record.prediction["D"]) in {tuple(star) for star in stars}
  N, D = points(axes, "target").T
  np.testing.assert_allclose(D / N, 20.0)
  assert len(points(axes, "fit")) == 36  # the diverged cell is not among them
  lines = next(c for c in axes.collections if hasattr(c, "levels") and not c.filled)
  for level, path in zip(lines.levels, lines.get_paths(), strict=True):
    if len(path.vertices):
      np.testing.assert_allclose(laws.loss(TRUTH, *path.vertices.T), level, rtol=2e-3)


def test_the_frontier_figure_shows_law_interval_and_rule(workdir):
  record = results.read(workdir)
  left, right = figures.frontier(record).axes
  best = record.optimum
  np.testing.assert_allclose(points(left, "N_opt"), [(o["C"], o["N_opt"]) for o in best])
  ratios = [(o["C"], o["tokens_per_param"]) for o in best]
  np.testing.assert_allclose(points(right, "tokens_per_param"), ratios)
  C, N = points(left, "target").T
  np.testing.assert_allclose(C / (6 * N) / N, 20.0)
  faces = [a.get_markerfacecolor() for a in artists(left, "N_opt")]
  assert faces.count("white") == 2  # the sealed budget and the projection


def test_residuals_are_relative_and_carry_the_sealed_interval(workdir):
  record = results.read(workdir)
  for axes, x in zip(figures.residuals(record).axes, "ND", strict=False):
    cells = record.done("fit")
    law = [float(laws.loss(TRUTH, c["N"], c["D"])) for c in cells]
    wanted = [(c[x], 100 * (c["loss"] / y - 1)) for c, y in zip(cells, law, strict=True)]
    np.testing.assert_allclose(points(axes, "fit"), wanted, rtol=1e-9, atol=1e-9)
    (bars,) = artists(axes, "interval")
    for segment, cell in zip(bars.get_segments(), record.prediction["cells"], strict=True):
      ends = 100 * (np.array(cell["interval"]) / cell["predicted_loss"] - 1)
      np.testing.assert_allclose(segment, [(cell[x], ends[0]), (cell[x], ends[1])])


def test_predicted_vs_trained_has_predictions_on_x(workdir):
  record = results.read(workdir)
  axes = figures.predicted_vs_trained(record).axes[0]
  held = record.done("heldout")
  sealed = [c["predicted_loss"] for c in record.prediction["cells"]]
  np.testing.assert_allclose(points(axes, "heldout").T, [sealed, [c["loss"] for c in held]])
  x, y = points(axes, "fit").T
  assert np.std(y / x - 1) == pytest.approx(0.002, rel=0.4)
  np.testing.assert_allclose(*points(axes, "identity").T)


def test_training_curves_branch_from_their_trunk_and_end_at_the_evaluation(workdir):
  record = results.read(workdir)
  left, right = figures.training_curves(record).axes[:2]
  cells = record.done("fit")
  np.testing.assert_allclose(points(left, "fit"), [(c["D"], c["loss"]) for c in cells])
  np.testing.assert_allclose(points(right, "fit"), [(c["C"], c["loss"]) for c in cells])
  branches = [line.get_xydata() for line in artists(left, "cooldown")]
  branched = record.done("fit", "heldout")
  assert len(branches) == len(branched)
  for line, cell in zip(branches, branched, strict=True):
    assert 0.79 <= line[0, 0] / cell["D"] < 0.92
    assert 0.9 < line[-1, 0] / cell["D"] <= 1.0
    assert abs(line[-1, 1] - cell["loss"]) < 0.1  # nats: the noise of the train loss, smoothed
  for line, twin, cell in zip(branches, artists(right, "cooldown"), branched, strict=True):
    np.testing.assert_allclose(twin.get_xdata(), line[:, 0] * cell["C"] / cell["D"])
  trunks = {s["trunk"] for s in record.sweep["cells"]} - {None}
  alone = [c for c in record.done("fit", "heldout") if c["kind"] == "heldout" or c["seed"]]
  assert len(artists(left, "constant")) == len(trunks) + len(alone)


def test_smoothing_keeps_a_level_and_removes_noise():
  rng = np.random.default_rng(0)
  tokens = np.arange(1, 2001) * 1024.0
  np.testing.assert_allclose(figures.smooth(tokens, np.full(2000, 3.0), tokens[::50]), 3.0)
  noise = figures.smooth(tokens, 3 + 0.1 * rng.standard_normal(2000), tokens[500:1500:50])
  assert abs(noise.mean() - 3) < 0.01
  assert noise.std() < 0.03


class Page(html.parser.HTMLParser):
  """Collects what a page refers to, and checks that its tags close in order."""

  def __init__(self):
    super().__init__()
    self.open, self.sources, self.text = [], [], []

  def handle_starttag(self, tag, attrs):
    assert tag not in ("script", "link", "iframe", "object")
    self.sources += [v for k, v in attrs if k in ("src", "href", "data", "srcset", "action")]
    if tag not in ("meta", "img", "br"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else(finished):
  text = (finished / "report.html").read_text()
  page = Page()
  page.feed(text)
  page.close()
  assert page.open == []
  assert "http" not in text
  assert "url(" not in text
  assert "@import" not in text
  head = "data:image/png;base64,"
  assert all(source.startswith(head) for source in page.sources)
  shown = {base64.b64decode(source.removeprefix(head)) for source in page.sources}
  assert shown == {path.read_bytes() for path in (finished / "figures").glob("*.png")}
  assert "color-scheme: light dark" in text


def test_markdown_and_page_say_the_same(finished):
  markdown = (finished / "report.md").read_text()
  page = Page()
  page.feed((finished / "report.html").read_text())
  words = " ".join(page.text)
  rows = [line for line in markdown.splitlines() if re.match(r"\| (?!---)", line)]
  assert len(rows) > 60
  for row in rows:
    for cell in row.strip("| ").split(" | "):
      assert cell.strip("`") in words
  assert all((finished / path).exists() for path in re.findall(r"\]\((figures/.+?)\)", markdown))


def test_the_report_leads_with_the_verdict_and_gives_the_numbers(finished):
  text = (finished / "report.md").read_text()
  verdict = json.loads((finished / "verification.json").read_text())["verdict"]
  assert text.split("\n\n")[1] == f"**{verdict}**"
  assert report.headline(finished) == verdict
  assert "| alpha | 0.3500 | [0.3150, 0.3850] |" in text
  assert "choosing 20 would cost +0.0012 nats/token" in text
  assert "| 5 | 115k | 4.00e-03 | 3.1000 ± 0.0040 | done | best |" in text
  assert "--config.sweep.sizes='(1, 3, 5, 8, 11)'" in text or "'--config.sweep.sizes=(1, 3" in text
  assert "c0ffee12" in text
  spent = sum(c["flops_spent"] for c in results.read(finished).cells)
  assert f"{spent:.2e}".replace("e+", "e") in text
  assert f"{spent / 8.64e19:.2e}" in text
  lines = report.terminal(finished).splitlines()
  table = [line for line in lines if "[" in line and "*" in line]
  assert len({line.index("[") for line in table}) <= 2


def test_cells_that_were_lost_are_named_with_their_reason(workdir):
  table = (workdir / "cells.csv").read_text()
  name = "fit-s11-6e+11-0"
  row = next(line for line in table.splitlines() if line.startswith(name))
  (workdir / "cells.csv").write_text(table.replace(row, row.replace("done", "failed")))
  (workdir / "cells" / name / "run.json").write_text(json.dumps({"error": "out of memory"}))
  text = markdown(workdir)
  assert "| `fit-s5-blown-up` | diverged |" in text
  assert f"| `{name}` | failed: out of memory |" in text
  assert name in report.terminal(workdir)
  assert len(results.read(workdir).done("fit")) == 35


@pytest.mark.parametrize(("floor", "said"), [(1.15, "None of 42"), (2.2, "`heldout-1.0` (2.14")])
def test_a_loss_below_the_floor_is_flagged(workdir, floor, said):
  edit(workdir / "sweep.json", lambda sweep: sweep["corpus"].update(floor=floor))
  text = markdown(workdir)
  assert said in text
  assert ("(a leak)" in text) == (floor > 2)
  assert ("NOT within 0.1 nats" in text) == (floor > 2)
  assert "too small to tell" in text  # the interval of E is 0.24 wide


@pytest.mark.parametrize(
  ("left", "drawn", "starts"),
  [
    ((), 0, "0 of 0 cells"),
    (("sweep.json", "cells.csv"), 1, "42 of 43 cells"),
    (("sweep.json", "cells.csv", "fit.json"), 6, "Fitted on 36 runs"),
    (("fit.json",), 2, "Fitted on 36 runs"),  # anyone's runs: `isoflop fit --runs=FILE`
    (("sweep.json", "cells.csv", "fit.json", "prediction.json"), 6, "Sealed, not yet tested"),
  ],
)
def test_a_partial_sweep_gets_the_report_it_can_have(workdir, left, drawn, starts):
  for name in ("sweep.json", "cells.csv", "fit.json", "prediction.json", "verification.json"):
    if name not in left:
      (workdir / name).unlink()
  report.write(workdir)
  text = (workdir / "report.md").read_text()
  assert len(list((workdir / "figures").glob("*.png"))) == drawn
  assert text.split("\n\n")[1].startswith(f"**{starts}")
  missing = next(line for line in text.splitlines() if line.startswith("**Incomplete.**"))
  for name in ("sweep.json", "cells.csv", "fit.json", "prediction.json", "verification.json"):
    assert (f"`{name}`" in missing) == (name not in left)
  assert missing.count("figure ") == 6 - drawn


def test_nothing_trained_yet(workdir):
  """The table is there with planned cells only, before the first has begun."""
  with (workdir / "cells.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  blank = {"status": "planned", "loss": "", "loss_stderr": "", "bits_per_byte": "", "seconds": ""}
  with (workdir / "cells.csv").open("w", newline="") as file:
    table = csv.DictWriter(file, COLUMNS)
    table.writeheader()
    table.writerows([row | blank for row in rows])
  for name in ("fit.json", "prediction.json", "verification.json"):
    (workdir / name).unlink()
  assert report.write(workdir).exists()
  assert "0 of 43 cells are done" in report.headline(workdir)


def test_broken_and_missing_folders_are_one_line(tmp_path):
  with pytest.raises(ValueError, match="no such folder") as error:
    report.write(tmp_path / "nowhere")
  assert "\n" not in str(error.value)
  (tmp_path / "fit.json").write_text('{"params": ')
  with pytest.raises(ValueError, match=r"fit\.json") as error:
    report.headline(tmp_path)
  assert "\n" not in str(error.value)


def test_n_and_c_are_counted_as_the_fit_counts_them(workdir):
  before = results.read(workdir).done("fit")[0]
  planned, fitted = {"params": "body", "flops": "exact"}, {"params": "total", "flops": "6nd"}
  edit(workdir / "sweep.json", lambda sweep: sweep["config"]["fit"].update(planned))
  after = results.read(workdir).done("fit")[0]
  assert after["N"] == before["params_body"] < before["N"]
  assert after["C"] == before["C"]
  edit(workdir / "fit.json", lambda fit: fit.update(counting=fitted))  # fitted again, otherwise
  after = results.read(workdir).done("fit")[0]
  assert after["N"] == before["params_total"] > before["N"]
  assert after["C"] == pytest.approx(6 * before["params_total"] * before["D"])
  edit(workdir / "fit.json", lambda fit: fit.update(counting={"params": "given"}))
  assert results.read(workdir).done("fit")[0]["N"] == before["N"]  # anyone's runs


def test_the_same_records_give_the_same_bytes_anywhere(finished, workdir):
  command = "import sys; from scaling import report; report.write(sys.argv[1])"
  root = Path(report.__file__).parents[1]
  environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
  subprocess.run(
    [sys.executable, "-c", command, str(workdir)], check=True, cwd=root, env=environment
  )
  names = [f"figures/{n}.{kind}" for n in figures.FIGURES for kind in ("pdf", "png")]
  for name in [*names, "report.md", "report.html"]:
    assert (workdir / name).read_bytes() == (finished / name).read_bytes(), name
