"""A sweep whose runs fail, diverge or are killed, with runs that are written and not trained."""

import hashlib
import json

import pytest
import written
from written import PLACEMENT

from scaling.commands.runs import runs_table
from scaling.launch.queue import Failure, WorkerError
from scaling.sweep import plan, store, training
from scaling.sweep.training import Arm
from train.system import files


@pytest.fixture
def config(tiny):
  c = tiny
  c.sweep.sizes, c.sweep.budgets = (0, 1, 2), (4e8, 8e8, 2e9)
  c.sweep.probe_sizes, c.sweep.probe_tokens = (1,), 8000
  c.sweep.seed_sizes = (1,)
  c.optim.warmup_tokens = 256
  c.fit.bootstraps = 100
  return c


@pytest.fixture
def start(config, tmp_path, monkeypatch):
  """Starts the sweep; returns what it said and which runs it trained, or raises its error."""

  def begin(**fates):
    said, begin.ran, error = written.begin(config, tmp_path, monkeypatch, **fates)
    begin.ran = [folder.rpartition("/")[2] for folder in begin.ran]
    if error:
      raise error
    return said

  return begin


def record(workdir, name):
  return json.loads((workdir / name).read_text())


def rows(workdir):
  cells = store.read_sweep(workdir)[1]
  return {cell.id: store.row(workdir, cell, "clm") for cell in cells}


def test_the_error_that_ends_a_phase_is_seen_and_not_that_of_its_records(
  start, tmp_path, monkeypatch
):
  def end(*_):
    (tmp_path / "costs.json").unlink()
    (tmp_path / "costs.json").mkdir()  # cannot be written from now on
    raise WorkerError("a worker", Failure("a bug", "bug", "the first error"))

  monkeypatch.setattr(written.Pool, "end", end)
  with pytest.raises(WorkerError, match="the first error"):
    start()


@pytest.mark.smoke
def test_a_failed_run_stops_the_sweep_before_its_fit_and_is_tried_again(start, tmp_path):
  with pytest.raises(
    RuntimeError, match=r"1 of its runs failed \(fit_s02_c8.*runs.*says why"
  ) as error:
    start(fit_s02_c8="killed")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "fit.json").exists()
  start()
  assert [name[:10] for name in start.ran if name.startswith("fit")] == ["fit_s02_c8"]
  assert record(tmp_path, "prediction.json")["n_runs"] == 15
  start()
  assert start.ran == []


def test_what_fails_at_two_starts_is_gone_without_and_stays_out_of_what_was_sealed(start, tmp_path):
  with pytest.raises(RuntimeError, match="same command tries them again"):
    start(fit_s02_c8="killed")
  said = start(fit_s02_c8="killed")
  assert "going on without fit_s02_c8.00e08_seed0: it failed at 2 starts" in said
  fitted = (tmp_path / "fit.json").read_text()
  assert json.loads(fitted)["n_runs"] == 14
  start()  # it would train now
  assert start.ran == []
  assert rows(tmp_path)["fit_s02_c8.00e08_seed0"]["status"] == "failed"
  assert (tmp_path / "fit.json").read_text() == fitted
  path = tmp_path / "cells" / "fit_s02_c8.00e08_seed0" / "run.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "done", "loss": 3.0}))
  with pytest.raises(ValueError, match="sealed on other runs"):
    start()
  assert (tmp_path / "fit.json").read_text() == fitted


def test_a_held_out_run_that_fails_is_tried_again_before_the_verdict(start, tmp_path):
  with pytest.raises(RuntimeError, match="heldout_"):
    start(heldout="killed")
  assert not (tmp_path / "verification.json").exists()
  start()
  assert len(record(tmp_path, "verification.json")["cells"]) == 3


def test_a_budget_that_no_run_could_test_is_said_and_left_out(start, config, tmp_path):
  config.sweep.heldout_budgets, config.sweep.heldout_seeds = (3.0, 1e7), 2
  said = start()
  assert "at 2.00e+16 FLOPs, 1e+07 times the largest fitted budget, nothing will be" in said
  assert "not sealed: at 2.00e+16 FLOPs, 1e+07 times the largest fitted budget: " in said
  assert (
    said.index("nothing will be predicted: ") < said.index("fit: ") < said.index("not sealed: ")
  )
  seal = hashlib.sha256((tmp_path / "prediction.json").read_bytes()).hexdigest()
  assert said.index(f"sealed sha256:{seal}") < said.index("held out: 6 cells")
  assert [name[-6:] for name in start.ran if "heldout" in name] == ["_seed0", "_seed1"] * 3
  assert record(tmp_path, "verification.json")["seal"] == seal


def test_what_no_run_could_test_is_not_begun(start, config):
  config.sweep.heldout_budgets = (1e7,)
  with pytest.raises(ValueError, match=r"sweep.heldout_sizes=.* 3 are needed .* epochs .*raise"):
    start()
  assert start.ran == []


def test_a_run_that_diverges_holds_nothing_up(start, tmp_path):
  start(fit_s02_c8="diverged")
  assert record(tmp_path, "fit.json")["n_runs"] == 14
  start()
  assert start.ran == []


def test_what_its_trunk_did_not_reach_has_diverged_with_it(config, tmp_path):
  cells = [cell for cell in plan.design_cells(config, 257) if cell.trunk == "trunk_s02_seed0"]
  (tmp_path / "trunks" / "trunk_s02_seed0" / "checkpoints" / f"{cells[0].branch_step}").mkdir(
    parents=True
  )
  (tmp_path / "trunks" / "trunk_s02_seed0" / "run.json").write_text('{"status": "diverged"}')
  arm = Arm("", config, tmp_path, [], "", None, {}, [], None, None, None, {2: PLACEMENT})
  for task in training.make_tasks(arm, cells)[1:]:
    task.record_failure(Failure("not kept"))
  training.settle_diverged(tmp_path, cells)
  statuses = [store.outcome(tmp_path, cell)["status"] for cell in cells]
  assert statuses == ["failed", "diverged", "diverged"]


def test_a_failed_trunk_is_seen_at_its_cells(start, tmp_path):
  with pytest.raises(RuntimeError, match="3 of its runs failed"):
    start(trunk_s02="killed")
  reason = "failed: trunk_s02_seed0 did not finish: its worker died (signal 9)"
  assert runs_table(tmp_path).count(reason) == 3
  assert [row["status"] for name, row in rows(tmp_path).items() if "fit_s02" in name] == [
    "failed"
  ] * 3


def test_a_killed_probe_has_not_diverged(start, tmp_path):
  with pytest.raises(RuntimeError, match=r"1 of its runs failed \(probe_s01_d8.00e03_lr2_"):
    start(lr2_="killed")
  assert "lr_rule" not in record(tmp_path, "sweep.json")
  start()
  assert any("lr2_" in name for name in start.ran)


def test_a_rule_that_was_found_stays(start, tmp_path):
  start()
  rule = record(tmp_path, "sweep.json")["lr_rule"]
  for path in tmp_path.glob("cells/probe*/run.json"):
    path.unlink()
  start(probe="diverged")
  assert start.ran == []
  assert record(tmp_path, "sweep.json")["lr_rule"] == rule


def test_a_planned_cell_is_the_one_that_stands_there(start, tmp_path):
  start()
  sweep = record(tmp_path, "sweep.json")
  sweep["lr_rule"]["lr_ref"] *= 2
  files.write_json(tmp_path / "sweep.json", files.with_digests(sweep))
  with pytest.raises(ValueError, match=r"holds fit_s00.* with lr=0\.\d+, planned now with 0"):
    start()
