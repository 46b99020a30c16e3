"""Sweeps with several validation sets: a law of each, and the one that is chosen by name."""

import json
import shutil

import numpy as np
import pytest
from synthetic import BUDGETS, COMPUTE, TRUTH, build, edit_table, markdown

from configs import base
from scaling.laws import chinchilla
from scaling.laws.tables import read
from scaling.report import sweep_results
from scaling.report.figures import law
from scaling.sweep import checks, fit_files

BOOKS = TRUTH._replace(E=np.array(0.7), B=np.array(300.0))  # wants more tokens per parameter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A finished sweep on a known surface, with the loss on books on another."""
  path, rng = build(tmp_path_factory.mktemp("sweep")), np.random.default_rng(1)

  def read_books(row):
    loss = chinchilla.loss(BOOKS, float(row["N"]), float(row["D"]))
    values = {"loss": loss * (1 + 0.002 * rng.standard_normal()), "loss_stderr": 0.003}
    values["bits_per_byte"] = loss / np.log(2)
    done = row["status"] == "done"
    row |= {f"{key}_books": value if done else "" for key, value in values.items()}

  edit_table(path / "cells.csv", read_books)
  return path


def options(**fields):
  c = base.get_config().fit
  c.bootstraps = 200
  c.update(fields)
  return c


@pytest.fixture(scope="module")
def fitted(folder, tmp_path_factory):
  """The folder with the law of its main loss, and one with the law of the loss on books."""
  folders = {}
  for name in ("", "books"):
    folders[name] = tmp_path_factory.mktemp("fitted") / "sweep"
    shutil.copytree(folder, folders[name])
    made = tmp_path_factory.mktemp("fit")
    fit_files.write_fit(made, options(loss=name), str(folder))
    shutil.copy(made / "fit.json", folders[name])
  return folders


def stored(folder):
  return json.loads((folder / "fit.json").read_text())


def test_the_response_of_the_fit_is_chosen_by_name(fitted):
  for name, truth in (("", TRUTH), ("books", BOOKS)):
    fit = stored(fitted[name])
    assert fit["counting"]["loss"] == name
    for key in ("alpha", "beta", "E"):
      low, high = fit["intervals"][key]
      assert low < getattr(truth, key) < high
    cells = sweep_results.read(fitted[name]).done("fit")
    expected = [chinchilla.loss(truth, c["N"], c["D"]) for c in cells]
    np.testing.assert_allclose(sweep_results.column(cells, "loss"), expected, rtol=0.01)
  assert stored(fitted[""])["input_hash"] != stored(fitted["books"])["input_hash"]
  assert "in nats per token on `books`, fitted to" in markdown(fitted["books"])


def test_each_set_has_the_law_that_it_has_alone(fitted):
  alone = {name: stored(folder) for name, folder in fitted.items()}
  for folder in fitted.values():
    rows = {row["set"]: row for row in stored(folder)["sets"]}
    assert list(rows) == ["", "books"]
    for name, row in rows.items():
      assert row["params"] == alone[name]["params"]
      assert row["intervals"] == alone[name]["intervals"]
      assert row["C"] == pytest.approx(BUDGETS[-1])
      best = chinchilla.optimum(TRUTH if not name else BOOKS, BUDGETS[-1], COMPUTE)
      low, high = row["optimum"]["N_opt_interval"]
      assert 0.8 * low < best.N < 1.2 * high
    assert rows["books"]["optimum"]["N_opt"] < 0.8 * rows[""]["optimum"]["N_opt"]
  text = markdown(fitted[""])
  section = text.split("## The law of each validation set")[1].split("## ")[0]
  for name in ("", "books"):
    alpha, (low, high) = alone[name]["params"]["alpha"], alone[name]["intervals"]["alpha"]
    assert f"{alpha:.4f} | [{low:.4f}, {high:.4f}]" in section
  assert "| `main` |  | `books` |  |" in section


def test_the_figure_has_the_losses_and_the_law_of_each_set(fitted):
  record = sweep_results.read(fitted["books"])
  axes = law.validation_sets(record).axes[0]
  lines = {line.get_gid(): line.get_xydata() for line in axes.lines}
  cells = record.done("fit", "heldout")
  main, books = ([(c["C"], c[f"loss_{name}"]) for c in cells] for name in ("main", "books"))
  np.testing.assert_allclose(lines["main"], main)
  np.testing.assert_allclose(lines["books"], books)
  assert len(lines) == 4
  below = [np.interp(np.log(C), np.log(lines["law books"][:, 0]), lines["law books"][:, 1]) < loss
           for C, loss in books]  # fmt: skip
  assert np.mean(below) > 0.9  # the law at its optimum is the least loss of a budget
  assert record.lacks("sets") == ""


def test_a_sweep_of_one_set_has_no_such_section(workdir):
  assert "each validation set" not in markdown(workdir)
  assert "several validation sets" in sweep_results.read(workdir).lacks("sets")


def test_an_unknown_response_is_refused_with_those_there_are(folder):
  with pytest.raises(ValueError, match=r"fit.loss='book': .*'loss_book'; .* on '', 'books'"):
    read.read_runs(folder, loss="book")
  with pytest.raises(ValueError, match="names a loss, too"):
    read.read_runs(folder, "loss=loss_books", loss="books")
  c = base.get_config()
  c.data.evaluate.books, c.fit.loss = "text:books", "novels"
  with pytest.raises(ValueError, match=r"fit.loss='novels': no set .* one of '', 'books'"):
    checks.check_sweep_config(c)


def test_a_set_without_a_law_says_why(folder, tmp_path):
  text = (folder / "cells.csv").read_text()
  lines = [line.split(",") for line in text.splitlines()]
  column = lines[0].index("loss_books")
  for line in lines[1:]:
    line[column] = ""
  (tmp_path / "cells.csv").write_text("\n".join(map(",".join, lines)))
  fit_files.write_fit(tmp_path / "fit", options(), str(tmp_path))
  main, books = stored(tmp_path / "fit")["sets"]
  assert "a" in main
  assert "column loss_books: '' is not a positive finite number" in books["reason"]
  assert "No law of the loss on `books`: " in markdown(tmp_path / "fit")
