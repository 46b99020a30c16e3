"""A sweep with further validation sets, trained, fitted and judged by one of them."""

import csv
import io
import json

import pytest

from scaling.progress import Display
from scaling.report import document, sweep_results
from scaling.sweep import run as sweeps


@pytest.fixture
def config(make_tiny, corpus, tmp_path):
  c = make_tiny()
  c.model.depth, c.model.mlp_ratio = 1, 24.0  # one wide block: it compiles fast
  c.model.scan = False
  c.data.isolate_documents = False
  c.sweep.sizes, c.sweep.budgets = (0, 2, 4), (8e9, 1.6e10, 4e10)
  c.sweep.probe_sizes, c.sweep.heldout_sizes = (), (1.0,)
  c.fit.bootstraps = 200
  (tmp_path / "capitals").mkdir()
  for path in corpus.iterdir():  # of other letters than what is trained on
    (tmp_path / "capitals" / path.name).write_text(path.read_text().upper())
  c.data.evaluate = {"same": f"text:{corpus}", "capitals": f"text:{tmp_path}/capitals"}
  c.fit.loss = "same"
  return c


def swept(config, workdir):
  with Display(config.sweep.name, io.StringIO()) as display:
    return sweeps.sweep(config, workdir, display, lambda: False)


@pytest.mark.slow
def test_a_sweep_is_judged_by_the_loss_on_the_set_that_is_chosen(config, optimized, tmp_path):
  workdir = tmp_path / "sweep"
  verdict = swept(config, workdir)
  with (workdir / "cells.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert {row["status"] for row in rows} == {"done"}
  for row in rows:
    for name in ("loss", "loss_stderr", "bits_per_byte"):
      assert row[f"{name}_same"] == row[name]
    assert float(row["loss_capitals"]) > 2 * float(row["loss"])
  sealed = [json.loads((workdir / f"{name}.json").read_text()) for name in ("fit", "prediction")]
  assert sealed[0]["counting"]["loss"] == "same"
  assert [row["set"] for row in sealed[0]["sets"]] == ["", "capitals", "same"]
  main, _, same = sealed[0]["sets"]
  assert main["params"] == same["params"] == sealed[0]["params"]
  held = next(row for row in rows if row["kind"] == "heldout")
  assert verdict["budgets"][0]["trained_loss"] == float(held["loss_same"])
  assert "## The law of each validation set" in (workdir / "report.md").read_text()
  assert (workdir / "figures" / "validation_sets.pdf").exists()
  assert sweep_results.read(workdir).headline in document.terminal(workdir)

  config.data.evaluate.more = config.data.evaluate.capitals
  with pytest.raises(ValueError, match="sealed sweep with data.evaluate.more=None"):
    swept(config, workdir)
  del config.data.evaluate.more
  config.fit.loss = "capitals"
  with pytest.raises(ValueError, match="fit.loss='same', asked 'capitals'"):
    swept(config, workdir)
