"""What a sweep's runs do not support is not sealed, or its headline says what makes it doubtful."""

import json

import pytest
import written

from scaling.report import sweep_results
from scaling.sweep import probe


@pytest.fixture
def config(tiny):
  c = tiny
  c.sweep.sizes, c.sweep.budgets = (0, 1, 2), (4e8, 8e8, 1.6e9, 4e9)
  c.sweep.probe_sizes = ()
  c.optim.warmup_tokens = 256
  c.fit.bootstraps = 100
  return c


def refused(error, workdir):
  assert "undetermined" in str(error)
  assert "there is nothing to seal" in str(error)
  assert not (workdir / "prediction.json").exists()


def test_a_largest_budget_that_diverged_leaves_too_narrow_a_design(config, tmp_path, monkeypatch):
  _, _, error = written.begin(config, tmp_path, monkeypatch, **{"c4.00e09": "diverged"})
  refused(error, tmp_path)
  assert "all runs are within 4x in C" in str(error)
  assert "none of the 3 runs of the largest budget trained" in sweep_results.read(tmp_path).headline


def test_a_largest_budget_that_diverged_stands_in_the_headline(config, tmp_path, monkeypatch):
  config.sweep.budgets = (4e8, 8e8, 2.4e9, 4e9)
  assert not written.begin(config, tmp_path, monkeypatch, **{"fit_s0._c4.00e09": "diverged"})[2]
  headline = sweep_results.read(tmp_path).headline
  assert ": at 1.20e+10 FLOPs the loss at the optimum was predicted as " in headline
  assert "Warning: none of the 3 runs of the largest budget trained" in headline


def test_an_optimum_below_every_size_is_not_sealed(config, tmp_path, monkeypatch):
  monkeypatch.setattr(written, "LAW", written.LAW._replace(A=written.LAW.A / 6))
  _, _, error = written.begin(config, tmp_path, monkeypatch)
  refused(error, tmp_path)
  assert "below the fitted sizes" in str(error)
  assert "train smaller models" in str(error)


def test_a_probe_that_stops_at_its_edge_is_said(config, tmp_path, monkeypatch):
  """Where the loss does not depend on the rate, the lowest is taken for the best."""
  config.sweep.probe_sizes, config.sweep.probe_tokens = (1,), 8000
  said, ran, error = written.begin(config, tmp_path, monkeypatch)
  assert error is None
  assert sum("/probe_" in name for name in ran) == 3 + probe.MAX_EXTENSIONS
  assert said.count("Warning: the best learning rate probed at size 1, ") == 1
  (row,) = json.loads((tmp_path / "sweep.json").read_text())["lr_rule"]["probes"]
  assert row["at_edge"]
  headline = sweep_results.read(tmp_path).headline
  assert f"Warning: the best learning rate probed at size 1, {row['lr']:.2e}, is at" in headline


def test_what_is_supported_has_no_warning(config, tmp_path, monkeypatch):
  said, _, error = written.begin(config, tmp_path, monkeypatch)
  assert error is None
  assert "Warning" not in said + sweep_results.read(tmp_path).headline
