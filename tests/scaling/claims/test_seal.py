"""What a sealed prediction holds on to, and which cells test it."""

import dataclasses

import pytest
import surfaces
import synthetic

from configs import base
from scaling import laws
from scaling.claims import seal, verdict
from scaling.laws.forms import FORMS
from scaling.report import records, report
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
  cells = plan.design_cells(config, CORPUS[0])
  synthetic.write_runs(tmp_path, cells)
  store.write_sweep(tmp_path, {"config": record.plain(config)}, cells)
  store.write_table(tmp_path, store.rows(tmp_path, cells, "clm"))
  law = fit_files.write_fit(tmp_path, config.fit)
  sealed, heldout = seal.seal(config, tmp_path, law, cells, *CORPUS)
  moved = dataclasses.replace(
    law, law=dataclasses.replace(law.law, params=law.params | {"A": 8 * law.params["A"]})
  )
  again, same = seal.seal(config, tmp_path, moved, cells, *CORPUS)
  assert (again, same) == (sealed, heldout)
  synthetic.write_runs(tmp_path, heldout)
  assert len(verdict.judge(config, tmp_path, moved, again, same)["cells"]) == 3


@pytest.mark.parametrize("form", ["cross", pytest.param("kaplan_nd", marks=pytest.mark.slow)])
def test_a_law_of_any_form_is_sealed_and_judged(config, tmp_path, form):
  """On runs that the form itself gave: the prediction holds, and the report is of that form."""
  config.fit.form = form
  config.sweep.sizes = (1, 2, 3, 4, 6, 8)
  truth = laws.Law(FORMS[form], surfaces.TRUE[form])
  cells = plan.design_cells(config, CORPUS[0])
  synthetic.write_runs(tmp_path, cells, truth)
  store.write_sweep(tmp_path, {"config": record.plain(config)}, cells)
  store.write_table(tmp_path, store.rows(tmp_path, cells, "clm"))
  law = fit_files.write_fit(tmp_path, config.fit)
  sealed, heldout = seal.seal(config, tmp_path, law, cells, *CORPUS)
  synthetic.write_runs(tmp_path, heldout, truth)
  verdict.judge(config, tmp_path, law, sealed, heldout)
  stored = records.read(tmp_path)
  assert stored.fit["form"] == stored.law.form.name == form
  assert stored.verification["inside"]
  assert FORMS[form].formula in report.terminal(tmp_path)


def test_only_what_can_be_trained_is_held_out(config):
  small, passed_over = plan.heldout_cells(config, *CORPUS, 17_000, 1.5e12)
  assert [plan.refusal(config, cell, *CORPUS) for cell in small] == [""] * 3
  smallest = plan.heldout_options(config, 512, 1.5e12)[0]
  why = plan.refusal(config, smallest, *CORPUS)
  assert "its embedding" in why
  assert passed_over == {smallest.id: why}
  assert plan.heldout_cells(config, *CORPUS, 49_000, 1.5e12)[1] == {}
  config.data.max_epochs = 1e-3
  with pytest.raises(ValueError, match=r"at 1.5e\+12 FLOPs .* 3 are needed .*raise data.max_epoc"):
    plan.heldout_cells(config, *CORPUS, 17_000, 1.5e12)


def test_only_what_can_be_trained_comes_next(config):
  config.sweep.sizes = (1, 2, 3, 5, 7, 8)
  cells = plan.design_cells(config, CORPUS[0])
  found = plan.next_cells(config, CORPUS[0], cells, CORPUS[1])
  assert found
  assert [plan.refusal(config, cell, *CORPUS) for cell in found] == [""] * len(found)
