"""A sweep that would waste compute is refused before it begins; its compute is what is fitted."""

import dataclasses
import json

import pytest

from configs import base
from scaling import main
from scaling.laws.tables import read
from scaling.sweep import checks, plan, store
from train import record
from train.data import dataset
from train.system import files


@pytest.fixture
def config(cache, corpus):
  c = base.get_config()
  c.data.source, c.data.max_epochs = f"text:{corpus}", 1000.0
  c.sweep.sizes, c.sweep.budgets = (2, 4, 6), (1e11, 2e11, 4e11)
  return c


@pytest.mark.parametrize(
  ("field", "value", "said"),
  [
    ("sweep.sizes", (2, 4, 4), r"^sweep.sizes=\(2, 4, 4\): 4 comes twice .*; name it once"),
    ("sweep.sizes", (4, 4), "4 comes twice"),
    ("sweep.budgets", (1e11, 2e11, 1e11), "^sweep.budgets=.*comes twice"),
    ("sweep.budgets", (1e11, 1.001e11), r"^sweep.budgets=.*one cell, fit_s02_c1.00e11.*a percent"),
    ("sweep.budgets", (1e11, float("inf")), "^sweep.budgets=.*must be positive"),
    ("sweep.seed_budgets", (1e11, 1e11), "^sweep.seed_budgets=.*comes twice"),
    ("sweep.probe_sizes", (2, 2), "^sweep.probe_sizes=.*comes twice"),
    ("sweep.probe_factors", (), r"^sweep.probe_factors=\(\): must name positive .*, as \(0.5, 1"),
    ("sweep.probe_factors", (0.0, 1.0), "positive multiples of a learning rate"),
    ("sweep.probe_factors", (2.0, 1.0, 0.5), "in ascending order"),
    ("sweep.probe_factors", (1.0, 1.0, 2.0), "in ascending order"),
    ("sweep.probe_factors", (1.0, 1.0 + 1e-9), "^sweep.probe_factors=.*one cell, probe_s08"),
    ("sweep.probe_tokens", 10, "probe_s08.* 1 steps of 1024 tokens; give it more sweep.probe_tok"),
    ("sweep.probe_tokens", -5, "^sweep.probe_tokens=-5: must be positive"),
    ("optim.warmup_tokens", 190_000, r"^optim.warmup_tokens=190000: .*\(probe_s08_d2.00e05_lr0.5"),
    ("optim.lr", 0.01, "^optim.lr=0.01: .*leave it at 0, or set sweep.probe_sizes="),
    ("sweep.heldout_sizes", (), r"^sweep.heldout_sizes=\(\): must name positive multiples of N"),
    ("sweep.heldout_sizes", (1.0, -1.0), "^sweep.heldout_sizes=.*must name positive"),
    ("sweep.heldout_budgets", (float("nan"),), "^sweep.heldout_budgets=.*must name ascending"),
    ("sweep.seeds", 0, "^sweep.seeds=0: must be at least 1"),
    ("sweep.workers", -1, "^sweep.workers=-1: must not be negative"),
    ("optim.lr_ref_params", 0, "^optim.lr_ref_params=0"),
    ("data.batch_size", 0, "^data.batch_size=0: must be at least 1"),
    ("train.stop_at_step", 5, "^train.stop_at_step=5: a sweep's runs go to their ends"),
    ("sweep.sizes", (3,), "needs at least two of each"),
    ("sweep.budgets", (1e11, -1.0), "must be positive"),
    ("sweep.budgets", (1e6, 1e11), "steps at least"),
    ("sweep.budgets", (1e11, 1e17), "epochs"),
    ("sweep.seed_sizes", (5,), "5 is not among .*; set --config.sweep.seed_sizes, too, or leave"),
    (
      "fit.form",
      "farseer",
      "^fit.form=farseer: 9 fit cells for 9 parameters; add to sweep.sizes or",
    ),
    ("sweep.probe_sizes", (99,), "99 is not among"),
    ("sweep.design", "isoflops", "choose"),
    ("sweep.heldout_budgets", (0.5,), "at least 1"),
    ("sweep.heldout_budgets", (10.0, 3.0), "ascending multiples of the largest"),
    ("sweep.heldout_budgets", (3.0, 3.02), "ascending multiples of the largest"),
    ("sweep.heldout_budgets", (), r"^sweep.heldout_budgets=\(\): must name ascending"),
    ("sweep.heldout_seeds", 0, "^sweep.heldout_seeds=0: must be at least 1"),
    ("sweep.pack", -1, "must not be negative"),
    ("fit.bootstraps", 50, "^fit.bootstraps=.*50"),
    ("fit.level", 1.5, "^fit.level=.*1.5"),
    ("fit.resampling", "boot", "^fit.resampling=.*boot"),
    ("fit.params", "all", "^fit.params=.*all"),
    ("fit.flops", "7nd", "^fit.flops=.*7nd"),
  ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(config, field, value, said):
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=said) as error:
    checks.check_sweep(config, dataset.prepare(config))
  assert "\n" not in str(error.value)


def test_what_a_probe_would_need_is_not_asked_without_one(config):
  config.sweep.probe_sizes, config.sweep.probe_factors, config.sweep.probe_tokens = (), (), 0
  config.optim.lr = 0.01
  checks.check_sweep(config, dataset.prepare(config))
  assert {cell.lr for cell in plan.design_cells(config, 257)} == {0.01}


def test_budgets_of_repeats_are_compared_where_sizes_are_repeated(config):
  config.sweep.seed_budgets = (5e11,)
  tokens = dataset.prepare(config)
  checks.check_sweep(config, tokens)
  config.sweep.seed_sizes = (2,)
  with pytest.raises(ValueError, match="^sweep.seed_budgets=.*: 500000000000.0 is not among"):
    checks.check_sweep(config, tokens)


def test_a_floor_that_is_known_is_no_parameter(config):
  config.sweep.sizes, config.sweep.max_tokens_per_param = (2, 4), 100.0
  tokens = dataset.prepare(config)
  assert len(plan.design_cells(config, tokens.vocab_size)) == 5
  with pytest.raises(ValueError, match="chinchilla: 5 fit cells for 5 parameters"):
    checks.check_sweep(config, tokens)
  config.fit.E = "1.0"
  checks.check_sweep(config, tokens)


def test_a_tuple_given_twice_is_refused_by_the_command(config, capsys):
  flag = "--config.sweep.sizes=(2,4)"
  assert main.main(["plan", f"--config.data.source={config.data.source}", flag, flag]) == 2
  assert "sweep.sizes=(2, 4, 2, 4): 2 comes twice" in capsys.readouterr().err


@pytest.mark.parametrize("params", sorted(read.PARAMS))
def test_6nd_is_planned_with_the_parameters_that_are_fitted(config, tmp_path, params):
  config.fit.flops, config.fit.params = "6nd", params
  cells = plan.design_cells(config, 257)
  for cell in cells:
    folder = store.folder(tmp_path, cell)
    folder.mkdir(parents=True)
    files.write_json(folder / "run.json", {"status": "done", "loss": 3.0 + 1e5 / cell.D})
  store.write_table(tmp_path, cells, "clm")
  table = read.read_runs(tmp_path / "cells.csv", params=params, flops="6nd")
  budgets = {cell.id: cell.budget for cell in cells}
  for name, spent in zip(table.ids, table.C, strict=True):
    assert spent == pytest.approx(budgets[name], rel=0.01)
  grid = [dataclasses.replace(cell, budget=None) for cell in cells]
  assert plan.heldout_budgets(config, grid) == [3 * max(table.C)]


# ------------------------------ a begun sweep


@pytest.fixture
def begun(tiny, tmp_path):
  """The config and the text of a begun sweep, and its folder."""
  tokens = dataset.prepare(tiny)
  store.write_sweep(tmp_path, *store.open_sweep(tiny, tmp_path, tokens))
  return tiny, tokens, tmp_path


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("fit.delta", 0.5), ("fit.bootstraps", 300), ("fit.level", 0.8), ("fit.seed", 1),
    ("fit.resampling", "pairs"), ("fit.target_tokens_per_param", 30.0),
    ("data.max_epochs", 10.0),
  ],
)  # fmt: skip
def test_how_it_is_fitted_and_how_often_text_may_repeat_can_change(begun, name, value):
  config, tokens, workdir = begun
  config.update_from_flattened_dict({name: value})
  head, _ = store.open_sweep(config, workdir, tokens)
  assert head["config_diff"][name] == value  # of which the report says how to reproduce it


@pytest.mark.parametrize(("name", "value"), [("fit.flops", "6nd"), ("fit.params", "total")])
def test_what_its_cells_are_counted_by_stays(begun, name, value):
  config, tokens, workdir = begun
  config.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=f"holds a sweep with {name}=.*, asked '{value}'"):
    store.open_sweep(config, workdir, tokens)


def test_its_tokens_stay(begun):
  config, tokens, workdir = begun
  tokens = dataclasses.replace(tokens, tokenizer_hash="0" * 64)
  with pytest.raises(ValueError, match="on other tokens .data.tokenizer='bytes' has changed"):
    store.open_sweep(config, workdir, tokens)


def test_the_law_of_a_sealed_sweep_stays(begun):
  config, tokens, workdir = begun
  (workdir / "prediction.json").write_text("{}")
  config.fit.level = 0.8
  store.open_sweep(config, workdir, tokens)
  config.fit.delta = 0.5
  with pytest.raises(ValueError, match="holds a sealed sweep with fit.delta=0.001, asked 0.5"):
    store.open_sweep(config, workdir, tokens)


def test_a_begun_sweep_is_read_under_the_new_name_of_a_field(begun):
  config, tokens, workdir = begun
  stored = json.loads((workdir / "sweep.json").read_text())
  sweep = stored["config"]["sweep"]
  del sweep["heldout_budgets"], sweep["heldout_seeds"]
  sweep |= {"heldout_factor": config.sweep.heldout_budgets[0], "heldout_budget": 0.0}
  files.write_json(workdir / "sweep.json", files.with_digests(stored))
  assert store.open_sweep(config, workdir, tokens)[0]["config"] == record.plain(config)
  sweep["heldout_factor"] = 5.0
  assert base.from_json(stored["config"]).sweep.heldout_budgets == (5.0,)
  files.write_json(workdir / "sweep.json", files.with_digests(stored))
  with pytest.raises(ValueError, match=r"sweep with sweep.heldout_budgets=\[5.0\], asked \[3.0\]"):
    store.open_sweep(config, workdir, tokens)
  sweep["heldout_budget"] = 1e12
  with pytest.raises(ValueError, match="stored config: is of another version .*heldout_budget"):
    base.from_json(stored["config"])


def test_a_begun_sweep_takes_other_memory_options_and_no_other_model(begun):
  config, tokens, workdir = begun
  for section, field, value in (
    ("model", "remat", "full"),
    ("sharding", "microbatches", 2),
    ("sharding", "halve_microbatches", False),
  ):
    changed = config.copy_and_resolve_references()
    changed[section][field] = value
    assert store.open_sweep(changed, workdir, tokens)[0]["config"][section][field] == value
  config.model.norm = "layer"
  with pytest.raises(ValueError, match="holds a sweep with model.norm='rms', asked 'layer'"):
    store.open_sweep(config, workdir, tokens)
