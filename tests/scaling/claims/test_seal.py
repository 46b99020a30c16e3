"""What a sealed prediction holds on to, and which cells test it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import surfaces
import synthetic

from configs import base
from scaling import laws
from scaling.claims import seal, verdict
from scaling.formats import si
from scaling.laws.forms import FORMS
from scaling.report import document, sweep_results
from scaling.sweep import fit_files, plan, store
from train import record

CORPUS = 512, 4_000_000  # V, training tokens


@pytest.fixture
def config():
  c = base.get_config()
  c.data.tokenizer = "bpe:512"
  c.sweep.sizes, c.sweep.budgets = (2, 4, 6, 8), (5e10, 1e11, 2e11, 4e11)
  c.fit.bootstraps = 100
  return c


@pytest.mark.smoke
def test_held_out_cells_are_those_of_the_seal_whatever_the_law_says_now(config, tmp_path):
  config.fit.params = "total"  # what N counts in the claims, too
  cells = plan.design_cells(config, CORPUS[0])
  synthetic.write_runs(tmp_path, cells)
  store.write_sweep(tmp_path, {"config": record.plain(config)}, cells)
  store.write_table(tmp_path, cells, "clm")
  law = fit_files.write_fit(tmp_path, config.fit)
  sealed, heldout = seal.seal(config, tmp_path, law, cells, CORPUS)
  assert [row["N"] for row in sealed["cells"]] == [cell.groups["total"] for cell in heldout]
  moved = dataclasses.replace(
    law, law=dataclasses.replace(law.law, params=law.params | {"A": 8 * law.params["A"]})
  )
  again, same = seal.seal(config, tmp_path, moved, cells, CORPUS)
  assert (again, same) == (sealed, heldout)
  synthetic.write_runs(tmp_path, heldout)
  assert len(verdict.judge(config, tmp_path, moved, again, same)["cells"]) == 3


@pytest.mark.parametrize("form", ["cross", pytest.param("kaplan_nd", marks=pytest.mark.slow)])
def test_a_law_of_any_form_is_sealed_and_judged(config, tmp_path, form):
  """On runs that the form itself gave: the prediction holds, and the report is of that form."""
  config.fit.form = form
  config.sweep.sizes = (1, 2, 3, 4, 6, 8)
  larger = {"N_c": 8.8e14} if form == "kaplan_nd" else {}  # so that N* lies among the sizes
  truth = laws.Law(FORMS[form], surfaces.TRUE[form] | larger)
  cells = plan.design_cells(config, CORPUS[0])
  synthetic.write_runs(tmp_path, cells, truth)
  store.write_sweep(tmp_path, {"config": record.plain(config)}, cells)
  store.write_table(tmp_path, cells, "clm")
  law = fit_files.write_fit(tmp_path, config.fit)
  sealed, heldout = seal.seal(config, tmp_path, law, cells, CORPUS)
  synthetic.write_runs(tmp_path, heldout, truth)
  verdict.judge(config, tmp_path, law, sealed, heldout)
  stored = sweep_results.read(tmp_path)
  assert stored.fit["form"] == stored.law.form.name == form
  assert stored.verification["budgets"][0]["inside"]
  assert FORMS[form].formula in document.terminal(tmp_path)


def judged(config, folder, loss=lambda cell: 0.0):
  """Seals a law, writes held-out cells whose losses are off by `loss` of them, and judges."""
  cells = plan.design_cells(config, CORPUS[0])
  synthetic.write_runs(folder, cells)
  store.write_sweep(folder, {"config": record.plain(config)}, cells)
  store.write_table(folder, cells, "clm")
  law = fit_files.write_fit(folder, config.fit)
  sealed, heldout = seal.seal(config, folder, law, cells, CORPUS)
  synthetic.write_runs(folder, heldout)
  for i, cell in enumerate(heldout):
    path = store.folder(folder, cell) / "run.json"
    synthetic.edit(path, lambda run, i=i: run.update(loss=run["loss"] + loss(i)))
  return law, sealed, heldout, verdict.judge(config, folder, law, sealed, heldout)


def test_the_verdict_names_what_was_sealed(config, tmp_path):
  """The optimum's loss is that of its claim; a cell's is under the cell's own N and D."""
  _, sealed, _, result = judged(config, tmp_path)
  [sealed], [budget] = sealed["budgets"], result["budgets"]
  least = next(claim for claim in result["claims"] if claim["what"] == "least_loss")
  low, high = least["interval"]
  assert (least["predicted"], least["interval"]) == (sealed["loss"], sealed["interval"])
  cell = min(result["cells"], key=lambda cell: abs(np.log(cell["N"] / sealed["N"])))
  assert least["measured"] < cell["trained_loss"]
  assert (
    f"the loss at the optimum was predicted as {sealed['loss']:.4f} [{low:.4f}, {high:.4f}] and "
    f"trained to {least['measured']:.4f} ("
  ) in result["verdict"]
  assert (
    f"that of N = {si(cell['N'])} on {si(cell['D'])} tokens was predicted as "
    f"{cell['predicted_loss']:.4f} "
  ) in result["verdict"]
  assert result["verdict"].startswith("The prediction held: ")
  assert budget["cost_of_target"]["tokens_per_param"] == 20
  assert not [name for name in budget if name.startswith("cost_of_") and name != "cost_of_target"]


def test_a_least_loss_that_missed_is_no_prediction_that_held(config, tmp_path):
  """The cells beside the optimum are far better than predicted, and the one at it is not."""
  config.sweep.heldout_sizes = (0.8, 1.0, 1.25, 2.5)
  *_, result = judged(config, tmp_path, lambda i: (-0.5, 0.0, -0.5, 0.4)[i])
  least = next(claim for claim in result["claims"] if claim["what"] == "least_loss")
  assert result["budgets"][0]["inside"]
  assert least["held"] is result["held"] is False
  assert result["verdict"].startswith("The prediction did NOT hold: ")


def test_one_held_out_cell_tells_no_optimum(config, tmp_path):
  config.sweep.heldout_sizes = (1.0,)
  *_, result = judged(config, tmp_path)
  assert result["held"] is result["budgets"][0]["inside"] is True
  assert (
    "the loss at the optimum cannot be told from the held-out cells; that of" in (result["verdict"])
  )


def test_held_out_sizes_without_a_parent_are_passed_over_before_the_seal(config, tmp_path):
  config.train.warm_start = f"{tmp_path}/{{size}}"
  for size in (2, 4, 6, 8):
    (tmp_path / str(size) / "checkpoints").mkdir(parents=True)
    parent = {"config": record.plain(config), "data": {"tokenizer": "", "vocab_size": 512}}
    parent["config"]["model"]["size"] = size
    (tmp_path / str(size) / "run.json").write_text(json.dumps(parent))
  cells, passed_over = plan.heldout_cells(config, CORPUS, 49_000, 1.5e12)
  assert {cell.size for cell in cells} <= {2, 4, 6, 8}
  assert passed_over
  assert all(f"train.warm_start={tmp_path}/" in reason for reason in passed_over.values())
  shutil.rmtree(tmp_path / "4")
  shutil.rmtree(tmp_path / "6")
  with pytest.raises(ValueError, match="3 are needed .*; or train the parents that are missing"):
    plan.heldout_cells(config, CORPUS, 49_000, 1.5e12)


def test_only_what_can_be_trained_is_held_out(config):
  small, passed_over = plan.heldout_cells(config, CORPUS, 17_000, 1.5e12)
  assert [plan.refusal(config, cell, CORPUS) for cell in small] == [""] * 3
  smallest = plan.heldout_options(config, 512, 1.5e12)[0]
  why = plan.refusal(config, smallest, CORPUS)
  assert "its embedding" in why
  assert passed_over == {smallest.id: why}
  assert plan.heldout_cells(config, CORPUS, 49_000, 1.5e12)[1] == {}
  config.data.max_epochs = 1e-3
  with pytest.raises(ValueError, match=r"at 1.5e\+12 FLOPs .* 3 are needed .*raise data.max_epoc"):
    plan.heldout_cells(config, CORPUS, 17_000, 1.5e12)


def test_only_what_can_be_trained_comes_next(config):
  config.sweep.sizes = (1, 2, 3, 5, 7, 8)
  cells = plan.design_cells(config, CORPUS[0])
  found = plan.next_cells(config, CORPUS, cells)
  assert found
  assert [plan.refusal(config, cell, CORPUS) for cell in found] == [""] * len(found)
