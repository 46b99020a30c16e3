"""The report: what it says is what the records say, for whole and for partial sweeps."""

import base64
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from synthetic import edit, edit_table, markdown, params_of

from scaling.formats import si
from scaling.report import document, render, sweep_results
from scaling.report.figures import style, table
from train.system import files


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


def test_html_is_well_formed_and_self_contained(finished):
  text = (finished / "report.html").read_text()
  page = Page()
  page.feed(text)
  page.close()
  assert page.open == []
  assert "://" not in text  # base64 has no colon
  assert "url(" not in text
  assert "@import" not in text
  head = "data:image/png;base64,"
  assert all(source.startswith(head) for source in page.sources)
  shown = {base64.b64decode(source.removeprefix(head)) for source in page.sources}
  assert shown == {path.read_bytes() for path in (finished / "figures").glob("*.png")}
  assert "color-scheme: light dark" in text


def test_html_has_every_cell_of_the_markdown(finished):
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


def test_report_leads_with_the_verdict_and_gives_the_numbers(finished):
  text = (finished / "report.md").read_text()
  verdict = json.loads((finished / "verification.json").read_text())["verdict"]
  assert text.split("\n\n")[1] == f"**{verdict}**"
  assert sweep_results.read(finished).headline == verdict
  fit = sweep_results.read(finished).fit
  low, high = fit["intervals"]["alpha"]
  assert f"| alpha | {fit['params']['alpha']:.4f} | [{low:.4f}, {high:.4f}] |" in text
  assert "| cost of 20 tokens per parameter [nats/token] | +0.0012 |" in text
  assert "| loss at the optimum [nats/token] | " in text
  assert f"| 5 | {si(params_of(5))} | 4.00e-03 | 3.1000 ± 0.0040 | done | best |" in text
  assert "--config.sweep.sizes='(1, 3, 5, 8, 11)'" in text or "'--config.sweep.sizes=(1, 3" in text
  assert "c0ffee12" in text
  spent = sum(c["flops_spent"] for c in sweep_results.read(finished).cells)
  assert f"{spent:.2e}".replace("e+", "e") in text
  assert f"{spent / 8.64e19:.2e}" in text
  lines = document.terminal(finished).splitlines()
  table = [line for line in lines if "[" in line and "*" in line]
  assert len({line.index("[") for line in table}) <= 2


def test_excluded_cells_are_named_with_their_reason(workdir):
  table = (workdir / "cells.csv").read_text()
  name = "fit-s11-6e+11-0"
  row = next(line for line in table.splitlines() if line.startswith(name))
  (workdir / "cells.csv").write_text(table.replace(row, row.replace("done", "failed")))
  (workdir / "cells" / name / "run.json").write_text(json.dumps({"error": "out of memory"}))
  text = markdown(workdir)
  assert "| `fit-s5-blown-up` | diverged |" in text
  assert f"| `{name}` | failed: out of memory |" in text
  (workdir / "prediction.json").unlink()  # it rests on that run
  assert name in document.terminal(workdir)
  assert len(sweep_results.read(workdir).done("fit")) == 35


@pytest.mark.parametrize(("floor", "said"), [(1.15, "None of 42"), (2.2, "`heldout-1.0` (2.14")])
def test_a_loss_below_the_floor_is_flagged(workdir, floor, said):
  edit(workdir / "sweep.json", lambda sweep: sweep["corpus"].update(floor=floor))
  edit(workdir / "fit.json", lambda fit: fit["intervals"].update(E=[1.08, 1.32]))
  text = markdown(workdir)
  assert said in text
  assert ("(a leak)" in text) == (floor > 2)
  assert ("NOT within 0.1 nats" in text) == (floor > 2)
  assert "too small to tell" in text


@pytest.mark.parametrize(
  ("left", "starts"),
  [
    ((), "Not begun"),
    (("sweep.json", "cells.csv"), "42 of 43 cells"),
    (("sweep.json", "cells.csv", "fit.json"), "Fitted on 36 runs"),
    (("fit.json",), "Fitted on 36 runs"),  # someone's runs, too many to keep a copy of
    (("sweep.json", "cells.csv", "fit.json", "prediction.json"), "Sealed, not yet tested"),
  ],
)
def test_report_of_a_partial_sweep_names_what_is_missing(
  finished, workdir, monkeypatch, left, starts
):
  def copied(folder, name, make, record):  # to set and print them takes seconds
    make(record)
    folder.mkdir(exist_ok=True)
    shutil.copy(finished / "figures" / f"{name}.png", folder)

  monkeypatch.setattr(style, "draw_figure", copied)
  for name in ("sweep.json", "cells.csv", "fit.json", "prediction.json", "verification.json"):
    if name not in left:
      (workdir / name).unlink()
  document.write(workdir)
  text = (workdir / "report.md").read_text()
  given = {"curves"}  # the training curves are there
  given |= {"runs", "times"} if "cells.csv" in left else set()
  given |= {"law", "profiles", "choices", "optimum"} if "fit.json" in left else set()
  figures = {name: set(x.needs) <= given for name, x in table.FIGURES.items() if not x.extra}
  drawn = {path.stem for path in (workdir / "figures").glob("*.png")}
  assert drawn == {name for name, can in figures.items() if can}
  assert text.split("\n\n")[1].startswith(f"**{starts}")
  missing = next(line for line in text.splitlines() if line.startswith("**Incomplete.**"))
  for name in ("sweep.json", "cells.csv", "fit.json", "prediction.json", "verification.json"):
    assert (f"`{name}`" in missing) == (name not in left)
  assert missing.count("figure ") == len(figures) - len(drawn)
  sealed = "prediction.json" in left
  assert ("The dashed curve is the sealed prediction" in text) == sealed
  assert ("Bars are prediction intervals" in text) == sealed


def test_report_before_anything_has_trained(workdir):
  """The table is there with planned cells only, before the first has begun."""
  blank = {"status": "planned", "loss": "", "loss_stderr": "", "bits_per_byte": "", "seconds": ""}
  edit_table(workdir / "cells.csv", lambda row: row.update(blank))
  for name in ("fit.json", "prediction.json", "verification.json"):
    (workdir / name).unlink()
  assert document.write(workdir).exists()
  assert "0 of 43 cells are done" in sweep_results.read(workdir).headline


def test_broken_and_missing_folders_are_one_line_errors(tmp_path):
  with pytest.raises(ValueError, match="no such folder") as error:
    document.write(tmp_path / "nowhere")
  assert "\n" not in str(error.value)
  (tmp_path / "fit.json").write_text('{"params": ')
  with pytest.raises(ValueError, match=r"fit\.json") as error:
    sweep_results.read(tmp_path)
  assert "\n" not in str(error.value)


def test_n_and_c_are_counted_as_the_fit_counts_them(workdir):
  before = sweep_results.read(workdir).done("fit")[0]
  edit(workdir / "fit.json", lambda fit: fit.pop("counting"))  # nothing is fitted yet
  planned, fitted = {"params": "body", "flops": "exact"}, {"params": "total", "flops": "6nd"}
  edit(workdir / "sweep.json", lambda sweep: sweep["config"]["fit"].update(planned))
  after = sweep_results.read(workdir).done("fit")[0]
  assert after["N"] == before["params_body"] < before["N"]
  assert after["C"] == before["C"]
  edit(workdir / "fit.json", lambda fit: fit.update(counting=fitted))  # fitted again, otherwise
  after = sweep_results.read(workdir).done("fit")[0]
  assert after["N"] == before["params_total"] > before["N"]
  assert after["C"] == pytest.approx(6 * before["params_total"] * before["D"])
  edit(workdir / "fit.json", lambda fit: fit.update(counting={"params": "given"}))
  assert sweep_results.read(workdir).done("fit")[0]["N"] == before["N"]  # anyone's runs


def test_report_bytes_depend_on_the_records_alone(finished, workdir):
  command = "import sys; from scaling.report import document; document.write(sys.argv[1])"
  root = Path(document.__file__).parents[2]
  environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
  subprocess.run(
    [sys.executable, "-c", command, str(workdir)], check=True, cwd=root, env=environment
  )
  drawn = [name for name, figure in table.FIGURES.items() if not figure.extra]
  names = [f"figures/{n}.{kind}" for n in drawn for kind in ("pdf", "png")]
  for name in [*names, "report.md", "report.html"]:
    assert (workdir / name).read_bytes() == (finished / name).read_bytes(), name


def test_report_has_estimators_choices_influence_and_decisions(workdir):
  text, fit_json = markdown(workdir), sweep_results.read(workdir).fit
  for row in fit_json["estimators"]["rows"]:
    label = sweep_results.ESTIMATORS[row["estimator"]]
    line = next(x for x in text.splitlines() if x.startswith(f"| {label} |"))
    assert (f"{row['a']:.3f}" if row["a"] else row["reason"]) in line
  for row in fit_json["choices"]:
    assert f"| {row['choice']} {row['value']}".strip() in text
    assert f"| {row['a']:.3f} | {row['b']:.3f} |" in text
  top = fit_json["influence"][0]
  assert f"| `{top['id']}` |" in text
  assert f"| {top['influence']:.2f} |" in text
  assert "| chinchilla | 0.21% |" in text
  assert "| power_law_c | – |" in text
  for kind in ("best model for 1e+14", "reaches 1.8 nats", "serve 1e+09", "are 2e+06 unique"):
    assert kind in text
  assert "R_D\\* = 15.39" in text
  served = fit_json["decisions"][2]["rows"][0]
  assert f"{100 * served['saved']:.1f}%" in text


def test_parameters_of_any_order_of_magnitude_are_in_three_digits():
  fit = {"form": "kaplan_nd", "a": 0.4, "b": 0.6, "intervals": {"N_c": [1.2e-7, 4.5e34]}}
  fit["params"] = {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.103}
  rows = {name: (value, ends) for name, value, ends in sweep_results.parameters(fit)}
  assert rows["N_c"] == ("8.8e+13", "[1.2e-07, 4.5e+34]")
  assert rows["alpha_N"] == ("0.0760", "–")
  assert rows["a"] == ("0.4000", "–")


def test_terminal_is_short_and_has_the_decisions(workdir):
  lines = document.terminal(workdir).splitlines()
  assert len(lines) < 45
  asked = [i for i, line in enumerate(lines) if line.startswith("Asked: ")]
  assert len(asked) == 4
  assert all(lines[i + 2].startswith("optimum") for i in asked)


def test_estimators_that_disagree_are_named(workdir):
  """The envelope of constant-rate trunks is not that of finished runs: their a differs."""
  found = sweep_results.read(workdir).fit["estimators"]["disagreement"]
  apart = [row for row in found if row["intervals_overlap"] is False]
  text = markdown(workdir)
  assert text.count("**They disagree** on ") == len(apart) > 0
  assert f"on a by {found[0]['gap']:.3f}: 1: envelope of curves and " in text


def test_many_excluded_cells_are_counted_not_listed(workdir):
  many = [{"id": f"line {i}", "reason": "exclude loss > 4"} for i in range(5000)]
  edit(workdir / "fit.json", lambda stored: stored.update(excluded=many))
  text = document.terminal(workdir)
  assert "and 4,981 more" in text
  assert text.count("exclude loss > 4") == 19


def test_runs_of_a_table_have_figures_and_no_sweep(workdir):
  for name in ("sweep.json", "prediction.json", "verification.json"):
    (workdir / name).unlink()
  (workdir / "cells.csv").rename(workdir / "runs.csv")
  shutil.rmtree(workdir / "cells")
  text = markdown(workdir)
  missing = next(line for line in text.splitlines() if line.startswith("**Incomplete.**"))
  assert missing.count("figure training_curves (there are no training curves)") == 1
  assert "## Cost" not in text
  assert sweep_results.read(workdir).lacks("runs", "times") == ""
  edit_table(workdir / "runs.csv", lambda row: row.update(seconds=""))  # as `fit --runs` leaves it
  assert sweep_results.read(workdir).lacks("runs", "times") == "no cell has a wall time"
  document.draw(workdir)
  drawn = {path.stem for path in (workdir / "figures").glob("*.png")}
  of_times = {name for name, figure in table.FIGURES.items() if "times" in figure.needs}
  absent = {"training_curves", "collapse", "validation_sets", "forecast_error"} | of_times
  assert set(table.FIGURES) - drawn == absent


def test_adaptive_cells_are_listed_with_their_reason(workdir):
  one = {"cells": [{"id": "fit_s07", "flops_spent": 3e11}], "shrink": [0.87], "reasons": ["tells"]}
  (workdir / "adaptive.json").write_text(json.dumps({"flops": 1e12, "rounds": [one]}))
  assert "| `fit_s07` | 1 | 3.00e11 | 0.870 | tells |" in markdown(workdir)


def test_passed_over_heldout_cell_is_named(workdir):
  path = workdir / "prediction.json"
  sealed = json.loads(path.read_text())
  assert "cannot be trained" not in markdown(workdir)
  sealed["budgets"][0]["passed_over"] = {"heldout_s00": "4.6 epochs"}
  files.write_json(path, files.with_digests(sealed))
  assert "`heldout_s00` would be nearer" in markdown(workdir)
  assert "cannot be trained: 4.6 epochs." in markdown(workdir)


@pytest.mark.parametrize("noise", [0.0021, 0.0, None])
def test_seed_noise_is_named_as_the_scatter_of_one_design(workdir, noise):
  edit(workdir / "fit.json", lambda fit: fit.update(seed_noise=noise))
  assert ("runs of the same N and D scatter by 0.21%" in markdown(workdir)) == bool(noise)


@pytest.mark.parametrize(
  "text",
  [
    "<script>x()</script>",
    "a ` <img src=x> ` b",
    r"\`<b>x\`",
    "``<i>",
    "x\n\n<script>",
    "<!--",
    "</td>",
  ],
)
def test_a_tag_in_a_name_or_an_error_is_text_in_every_report(text):
  content = [
    render.Table(("cell", "reason"), [("`a`", text), ("b", "`in <code>`")]),
    f"It says {text}.",
  ]
  written = render.to_markdown(f"a {text}", content)
  parsed = MarkdownIt("commonmark").enable("table").parse(written)  # in which tags are tags
  tokens = [token for block in parsed for token in (block, *(block.children or ()))]
  assert "table_open" in {token.type for token in tokens}
  assert not [token for token in tokens if token.type.startswith("html")]
  assert "`in <code>`" in written
  body = render.to_html("title", content, Path()).partition("<h1>")[2]
  assert not re.search("<(script|img|i|b|!--)", body)
