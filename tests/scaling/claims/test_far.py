"""Predictions at several held-out budgets: sealed together, judged each, and by anyone's runs."""

import csv
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import synthetic

from configs import base
from configs.errors import DataError
from scaling import laws, main
from scaling.claims import prediction_json, seal, verdict
from scaling.laws.forms import FORMS
from scaling.report import document, sweep_results
from scaling.report.figures import law as law_figures
from scaling.sweep import plan, store
from train import record
from train.system import files

CORPUS = 512, 10**9  # V, training tokens
TIMES = (3.0, 10.0, 30.0)


@pytest.fixture(scope="module")
def config():
  c = base.get_config()
  c.data.tokenizer = "bpe:512"
  c.sweep.sizes, c.sweep.budgets = (2, 4, 6, 8), (5e10, 1e11, 2e11, 4e11)
  c.sweep.heldout_budgets, c.sweep.heldout_seeds = TIMES, 2
  c.fit.bootstraps = 100
  return c


@pytest.fixture(scope="module")
def sealed_sweep(config, tmp_path_factory):
  """A sweep whose fitted runs are of a known law, sealed at three budgets."""
  folder = tmp_path_factory.mktemp("far") / "sweep"
  folder.mkdir()
  cells = plan.design_cells(config, CORPUS[0])
  synthetic.write_runs(folder, cells)
  tabulate(config, folder, cells)
  law = fitted(config, folder)
  sealed, heldout = seal.seal(config, folder, law, cells, CORPUS)
  return folder, law, cells, sealed, heldout


def tabulate(config, folder, cells):
  store.write_sweep(folder, {"config": record.plain(config)}, cells)
  store.write_table(folder, cells, "clm")


def fitted(config, folder):
  """The law of a folder's runs; without the choices behind it, which take most of a fit's time."""
  law = laws.fit_runs(laws.read_runs(folder), config.fit)
  files.write_json(folder / "fit.json", laws.to_json(law, None))
  return law


def judged(config, sealed_sweep, folder, worse=lambda cell: 0.0):
  """A copy whose held-out runs are of the law, but for a share `worse` of it, with its verdict."""
  origin, law, cells, sealed, heldout = sealed_sweep
  shutil.copytree(origin, folder)
  synthetic.write_runs(folder, heldout)
  for cell in heldout:
    path = store.folder(folder, cell) / "run.json"
    run = json.loads(path.read_text())
    files.write_json(path, run | {"loss": run["loss"] * (1 + worse(cell))})
  tabulate(config, folder, [*cells, *heldout])
  return verdict.judge(config, folder, law, sealed, heldout)


def test_a_claim_of_each_kind_is_sealed_for_each_budget(config, sealed_sweep):
  _, law, _, sealed, heldout = sealed_sweep
  largest = law.runs.C.max()
  np.testing.assert_allclose([x["C"] / largest for x in sealed["budgets"]], TIMES, rtol=0.01)
  assert [x["times"] for x in sealed["budgets"]] == list(TIMES)
  widths = []
  for budget in sealed["budgets"]:
    counts = {
      what: sum(x["what"] == what for x in budget["claims"]) for what in prediction_json.FIELDS
    }
    assert set(counts.values()) == {1}
    losses = [claim for claim in budget["claims"] if claim["what"] == "loss"]
    assert len(losses) == len(config.sweep.heldout_sizes)
    for claim in losses:
      assert [name.rpartition("_")[2] for name in claim["tested_by"]] == ["seed0", "seed1"]
    of_budget = [cell.C for cell in heldout if cell.budget == budget["C"]]
    np.testing.assert_allclose(of_budget, budget["C"], rtol=0.01)
    truth = synthetic.LAW.optimum(budget["C"])
    assert budget["N_interval"][0] < truth.N < budget["N_interval"][1]
    low, high = budget["interval"]
    widths.append(high / low)
  assert widths == sorted(widths)  # the farther, the wider
  assert len(heldout) == len({cell.id for cell in heldout}) == 2 * 3 * 3
  assert {cell.seed for cell in heldout} == {0, 1}
  assert plan.sealed_cells(config, CORPUS[0], sealed) == heldout


def test_the_farthest_that_held_is_named(config, sealed_sweep, tmp_path):
  result = judged(config, sealed_sweep, tmp_path / "x")
  assert [x["held"] for x in result["budgets"]] == [True] * 3
  assert result["held"]
  assert result["farthest"] == result["budgets"][2]["C"]
  assert result["verdict"].startswith(
    "The farthest prediction that held is at 30 times the largest fitted budget, 1.20e+13 FLOPs (3x"
  )
  text = document.terminal(tmp_path / "x")
  for budget in result["budgets"]:
    assert budget["verdict"].startswith(f"The prediction held: at {budget['C']:.2e} FLOPs ")
    assert budget["verdict"] in text
    assert budget["verdict"] in synthetic.markdown(tmp_path / "x")


def test_a_budget_that_missed_is_named_and_the_nearer_ones_stand(config, sealed_sweep, tmp_path):
  far = sealed_sweep[3]["budgets"][2]["C"]
  result = judged(config, sealed_sweep, tmp_path / "x", lambda c: 0.2 * (c.budget == far))
  assert [x["held"] for x in result["budgets"]] == [True, True, False]
  assert result["held"] is False
  assert result["farthest"] == result["budgets"][1]["C"]
  assert re.search(
    r"held is at 10 times .*\(3x: held, [-+].*; 10x: held, .*; 30x: did NOT", result["verdict"]
  )


def test_the_mean_over_seeds_is_judged_and_each_is_shown(config, sealed_sweep, tmp_path):
  """Seeds that miss on either side of what was predicted: their mean holds."""
  result = judged(config, sealed_sweep, tmp_path / "x", lambda c: 0.3 * (2 * c.seed - 1))
  assert not any(cell["inside"] for cell in result["cells"])
  for budget in result["budgets"]:
    assert budget["held"]
    first, second = budget["seeds"]
    assert second > 1.7 * first
    assert budget["trained_loss"] == pytest.approx((first + second) / 2)
    assert f"as the mean of 2 seeds, {first:.4f}, {second:.4f}" in budget["verdict"]
  text = synthetic.markdown(tmp_path / "x")
  assert text.count("and its other seeds") == 9


def test_a_budget_that_the_law_does_not_determine_is_not_sealed(config, tmp_path):
  far = config.copy_and_resolve_references()
  far.sweep.heldout_budgets = (3.0, 1e4)
  cells = plan.design_cells(far, CORPUS[0])
  synthetic.write_runs(tmp_path, cells)
  tabulate(far, tmp_path, cells)
  law = fitted(far, tmp_path)
  sealed, heldout = seal.seal(far, tmp_path, law, cells, CORPUS)
  assert [x["times"] for x in sealed["budgets"]] == [3.0]
  [refused] = sealed["refused"]
  assert refused["times"] == 1e4
  assert "N_opt at 4e+15 FLOPs is" in refused["reason"]
  assert "**Not sealed** at 4.00e15 FLOPs, 1e+04 times" in synthetic.markdown(tmp_path)
  synthetic.write_runs(tmp_path, heldout)
  result = verdict.judge(far, tmp_path, law, sealed, heldout)
  assert "1e+04x: not sealed)" in result["verdict"]
  assert result["budgets"][0]["verdict"] in document.terminal(tmp_path)
  (tmp_path / "prediction.json").unlink()
  shutil.rmtree(tmp_path / "cells")
  far.sweep.heldout_budgets = (1e4, 1e5)
  with pytest.raises(DataError, match=r"undetermined: N_opt at 4e\+15 FLOPs"):
    seal.seal(far, tmp_path, law, cells, CORPUS)


def test_a_budget_for_which_there_is_too_little_text_is_passed_over(config, tmp_path):
  cells = plan.design_cells(config, CORPUS[0])
  *planned, refused = plan.heldout(config, (CORPUS[0], 50_000), cells, lambda _: 49_000)
  assert [(x.times, x.reason, len(x.cells)) for x in planned] == [(3.0, "", 3), (10.0, "", 3)]
  assert (refused.times, refused.cells) == (30.0, [])
  assert "raise data.max_epochs" in refused.reason


def test_the_figure_has_each_run_beside_the_sealed_interval(config, sealed_sweep, tmp_path):
  far = sealed_sweep[3]["budgets"][2]["C"]
  result = judged(config, sealed_sweep, tmp_path / "x", lambda c: 0.05 * (c.budget == far))
  stored = sweep_results.read(tmp_path / "x")
  axes = law_figures.forecast_error(stored).axes[0]
  points = np.concatenate([x.get_offsets() for x in axes.collections if x.get_gid() == "heldout"])
  expected = [
    (result["budgets"][i]["times"], 100 * (1 - cell["trained_loss"] / cell["predicted_loss"]))
    for i, budget in enumerate(sealed_sweep[3]["budgets"])
    for cell in result["cells"]
    if cell["budget"] == budget["C"]
  ]
  np.testing.assert_allclose(sorted(map(tuple, points)), sorted(expected))
  [band] = [x for x in axes.collections if x.get_gid() == "promised"]
  vertices = {tuple(np.round(x, 9)) for x in band.get_paths()[0].vertices}
  for budget in sealed_sweep[3]["budgets"]:
    for end in budget["interval"]:
      assert (budget["times"], round(100 * (1 - end / budget["loss"]), 9)) in vertices
  assert axes.get_xscale() == "log"
  assert "figures/forecast_error.png" in synthetic.markdown(tmp_path / "x")


def foreign(heldout, path, truth=synthetic.LAW, N=lambda n: n):
  """Somebody's table of runs of the sealed cells, with names of columns and losses of their own."""
  with path.open("w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["params", "tokens", "final"])
    for cell in heldout:
      table.writerow([N(cell.N), cell.D, float(truth.loss(cell.N, cell.D))])
  return path


def verify(capsys, path, *flags):
  columns = "--columns=N=params,D=tokens,loss=final"
  code = main.main(["verify", f"--seal={path}", columns, *flags])
  output = capsys.readouterr()
  return code, output.out, output.err


def test_anybody_can_judge_a_seal_by_their_runs(sealed_sweep, tmp_path, capsys):
  folder, _, _, sealed, heldout = sealed_sweep
  path = shutil.copy(folder / "prediction.json", tmp_path / "theirs.json")
  runs = foreign(heldout, tmp_path / "runs.csv", N=lambda n: 1.005 * n)
  code, said, _ = verify(capsys, path, f"--runs={runs}")
  assert code == 0
  assert f"sha256:{hashlib.sha256((tmp_path / 'theirs.json').read_bytes()).hexdigest()}" in said
  rows = [line for line in said.splitlines() if re.match(r"(loss|least_loss|N_opt) ", line)]
  assert len(rows) == 3 * (3 + 2)
  assert all(line.endswith("  yes") for line in rows)
  assert said.count("The prediction held: at ") == 3
  # The nearest budget alone: what is not trained is not counted against the seal.
  runs = foreign([x for x in heldout if x.budget == sealed["budgets"][0]["C"]], runs)
  code, said, _ = verify(capsys, path, f"--runs={runs}")
  assert code == 0
  assert said.count("No held-out cell trained at ") == 2


def test_a_seal_that_did_not_hold_ends_with_1(sealed_sweep, tmp_path, capsys):
  folder, _, _, _, heldout = sealed_sweep
  worse = laws.Law(FORMS["chinchilla"], synthetic.LAW.params | {"E": 1.6})
  runs = foreign(heldout, tmp_path / "runs.csv", worse)
  code, said, error = verify(capsys, folder / "prediction.json", f"--runs={runs}")
  assert code == 1
  assert "  NO" in said
  assert "No prediction held (3x: did NOT hold, +" in error


def test_what_cannot_be_checked_ends_with_2(sealed_sweep, tmp_path, capsys):
  folder, _, _, _, heldout = sealed_sweep
  path = folder / "prediction.json"
  runs = foreign(heldout, tmp_path / "runs.csv", N=lambda n: 1.05 * n)
  code, _, error = verify(capsys, path, f"--runs={runs}")
  assert code == 2
  assert "none of 18 runs has the N and D of a sealed cell within 1.0%; train" in error
  assert verify(capsys, path, f"--runs={runs}", "--tolerance=0.06")[0] == 0
  assert verify(capsys, tmp_path / "none.json")[::2] == (
    2,
    f"isoflop: --seal={tmp_path}/none.json: no such file\n",
  )
  altered = json.loads(path.read_text())
  altered["claims"][0]["predicted"] += 0.01
  (tmp_path / "altered.json").write_text(json.dumps(altered))
  code, _, error = verify(capsys, tmp_path / "altered.json", f"--runs={runs}")
  assert code == 2
  assert "claims[0].predicted was altered (a claim on loss" in error
  files.write_json(tmp_path / "later.json", files.with_digests(altered | {"version": 4}))
  assert (
    "is a seal of version 4, and this isoflop reads 2 and 3"
    in verify(capsys, tmp_path / "later.json")[2]
  )


def test_the_runs_beside_a_seal_judge_it(config, sealed_sweep, tmp_path, capsys):
  judged(config, sealed_sweep, tmp_path / "x")
  assert main.main(["verify", f"--seal={tmp_path / 'x' / 'prediction.json'}"]) == 0
  said = capsys.readouterr().out
  stored = json.loads((tmp_path / "x" / "verification.json").read_text())
  for budget in stored["budgets"]:
    sentence, _, seeds = budget["verdict"].partition(" as the mean of 2 seeds, ")
    assert sentence in said
    assert seeds.partition(", and choosing")[0].partition("; ")[2] in said
