"""Learning rates and batches of a sweep by a tune.json, and what a sealed optimum promises."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from rate_grids import SIZES, make_table

from configs import base
from configs.errors import ConfigError
from scaling.laws.rates import grid, optimum, tune_json
from scaling.sweep import plan
from scaling.tune import claims, rule
from scaling.tune import run as tune_run
from train.system import files

SHIFT = {"lr": (1.0, -0.6, 0.2), "batch": (-1.5, -0.1, 0.6)}  # of batches of 16 to 64 sequences


@pytest.fixture
def tuned():
  table = make_table(tokens=(1e6, 3e6, 1e7), coefficients=SHIFT, noise=0.002)
  return tune_json.make(grid.make_grid(*table), 0.02, 0.9, ("cell", "shared"))


@pytest.fixture
def config(tmp_path, tuned):
  files.write_json(tmp_path / "tune.json", files.with_digests(tuned))
  c = base.get_config()
  c.sweep.sizes, c.sweep.budgets, c.data.seq_len = (2, 4, 6), (1e11, 4e11), 32
  c.optim.rule = str(tmp_path / "tune.json")
  return rule.pinned(c)


def test_each_cell_has_the_rate_and_batch_of_its_N_and_D(config, tuned):
  law = optimum.load(tuned)
  cells = plan.design_cells(config, 257)
  assert len({cell.tokens_per_step for cell in cells}) > 2
  for cell in cells:
    best = law.best(cell.N, cell.D)
    assert abs(np.log2(cell.tokens_per_step / best["batch"])) < 0.51  # the next power of two
    assert np.log2(cell.tokens_per_step / 32) % 1 == 0
    expected = law.best(cell.N, cell.D, batch=cell.tokens_per_step)["lr"]
    assert cell.lr == pytest.approx(expected, rel=0.02)  # of D before it is whole steps
    assert cell.trunk is None
    run = plan.run_config(config, cell)
    assert run.data.batch_size * 32 == cell.tokens_per_step
    assert run.train.tokens == cell.D
    assert run.optim.rule == config.optim.rule  # with its hash


def test_a_rule_replaces_the_probe_and_a_rate_beside_it_is_refused(config):
  assert config.sweep.probe_sizes == ()
  config.optim.lr = 1e-3
  with pytest.raises(ConfigError, match="leave one out"):
    rule.pinned(config)


def test_another_rule_of_the_same_name_is_refused(config, tuned, tmp_path):
  assert rule.pinned(config).optim.rule == config.optim.rule
  files.write_json(tmp_path / "tune.json", files.with_digests(tuned | {"runs": 1}))
  with pytest.raises(ConfigError, match="file's hash is"):
    rule.pinned(config)


def test_what_a_choice_may_lose_follows_from_curvature_and_covariance(tuned, config):
  law = optimum.load(tuned)
  N, D, k = SIZES[1], 3e6, 2
  point = np.array([1, np.log(N), np.log(D)])
  spread = np.einsum("iajb,a,b->ij", law.covariance.reshape(k, 3, k, 3), point, point)
  shares = np.linalg.eigvals(law.curvature @ spread).real  # of squares of normal draws
  rng = np.random.default_rng(1)
  squares = rng.standard_normal((100_000, k)) ** 2 @ shares
  expected = squares * law.freedom / rng.chisquare(law.freedom, 100_000)
  lost = law.draw_loss_lost(N, D)
  for level in (0.5, 0.9):
    assert np.quantile(lost, level) == pytest.approx(np.quantile(expected, level), rel=0.08)
  assert f"cost at most {np.quantile(lost, 0.9):.2%} of the loss" in rule.told_cost(config, N, D)


def test_a_law_of_too_few_cells_does_not_bound_what_it_loses(tuned, config, tmp_path):
  law = tuned["law"] | {"freedom": 1, "covariance": (100 * np.eye(6)).tolist()}
  files.write_json(tmp_path / "tune.json", files.with_digests(tuned | {"law": law}))
  config.optim.rule = str(tmp_path / "tune.json")
  lost = optimum.load(tuned | {"law": law}).draw_loss_lost(SIZES[1], 3e6)
  assert np.isfinite(lost).all()
  assert "cost a share that its runs do not bound" in rule.told_cost(config, SIZES[1], 3e6)


@pytest.mark.parametrize(
  ("field", "value", "words"),
  [
    ("sizes", (3,), "needs two"),
    ("lr_factors", (1.0, 0.5, 2.0), "ascending"),
    ("decay_factors", (1.0, 0.0), "ascending"),
    ("decay_factors", (1.0, 3.0), "two tell no optimum"),
    ("heldout_tokens", 400_000, "is one of the cells"),
  ],
)
def test_a_tune_that_tells_nothing_is_refused(field, value, words):
  c = base.get_config()
  c.tune.heldout_size = 8
  c.tune[field] = value
  with pytest.raises(ConfigError, match=words):
    tune_run.check(c)


def test_a_grid_is_extended_beside_its_best_alone():
  points = set(itertools.product((2, 4, 8), (0.5, 1.0, 2.0), (1.0,)))
  beyond = tune_run.beyond
  assert beyond(points, (4, 1.0, 1.0), []) == set()
  assert beyond(points, (4, 2.0, 1.0), ["lr"]) == {(2, 4.0, 1.0), (4, 4.0, 1.0), (8, 4.0, 1.0)}
  assert beyond(points, (2, 0.5, 1.0), ["batch"]) == {(1, 0.5, 1.0), (1, 1.0, 1.0)}
  beside = {(16, rate, 1.0) for rate in (0.5, 1.0, 2.0)}
  assert beyond(points, (8, 1.0, 1.0), ["batch"]) == beside
  alone = set(itertools.product((1,), (0.5, 1.0, 2.0), (1.0,)))
  assert beyond(alone, (1, 1.0, 1.0), ["batch"]) == set()
  points = set(itertools.product((4,), (0.5, 1.0), (1.0, 3.0, 9.0)))
  assert beyond(points, (4, 1.0, 9.0), ["timescale"]) == {(4, 0.5, 27.0), (4, 1.0, 27.0)}
  assert beyond(points, (4, 0.5, 1.0), ["timescale"]) == {(4, 0.5, 1 / 3), (4, 1.0, 1 / 3)}


def test_a_decays_timescale_is_at_its_edge_among_runs_of_its_batch_and_rate():
  batch, lr, decay = np.array(list(itertools.product((64, 128), (1e-3, 2e-3, 4e-3), (0.1, 1, 9)))).T
  factors = {"lr": lr, "batch": batch, "timescale": batch / (lr * decay)}
  for best, edges in (((128, 2e-3, 1), ["batch"]), ((64, 2e-3, 9), ["batch", "timescale"])):
    apart = [np.log(x / at) for x, at in zip((batch, lr, decay), best, strict=True)]
    loss = 3 + np.sum(np.square(apart), axis=0)
    table = grid.make_grid(np.ones(18), np.ones(18), loss, factors, varied=list(grid.FACTORS))
    assert grid.at_edge(table) == {0: edges}


def test_a_run_of_a_tune_has_its_weight_decay(config):
  config.optim.rule, config.optim.weight_decay = "", 0.2
  usual, more = (plan.tune_cells(config, 257, 4, 1e5, 8, 0.5, decay)[0] for decay in (1.0, 3.0))
  assert more.id == usual.id.replace("_lr0.5", "_lr0.5_wd3")
  assert plan.run_config(config, usual).optim.weight_decay == 0.2
  assert plan.run_config(config, more).optim.weight_decay == pytest.approx(0.6)
  assert (more.lr, more.steps) == (usual.lr, usual.steps)


def test_a_rule_with_a_timescale_gives_each_cell_its_weight_decay(config, tmp_path):
  shift = SHIFT | {"timescale": (12.0, -0.2, 0.4)}
  table = make_table(tuple(shift), tokens=(1e6, 3e6, 1e7), coefficients=shift, noise=0.002)
  law = tune_json.make(grid.make_grid(*table), 0.02, 0.9, ("cell", "shared"))
  files.write_json(tmp_path / "tune.json", files.with_digests(law))
  config.optim.rule = str(tmp_path / "tune.json")
  decays = set()
  for cell in plan.design_cells(rule.pinned(config), 257):
    best = optimum.load(law).best(cell.N, cell.D, batch=cell.tokens_per_step)
    decay = plan.run_config(config, cell).optim.weight_decay
    timescale = cell.tokens_per_step / (cell.lr * decay)
    assert timescale == pytest.approx(best["timescale"], rel=0.02)  # of D before it is whole steps
    decays.add(decay)
  assert len(decays) > 2


def test_a_seal_is_tested_around_its_choice(config, tmp_path):
  shift = SHIFT | {"timescale": (12.0, -0.2, 0.4)}
  table = make_table(tuple(shift), tokens=(1e6, 3e6, 1e7), coefficients=shift, noise=0.002)
  tuned = tune_json.make(grid.make_grid(*table), 0.02, 0.9, ("cell", "shared"))
  config.optim.rule, said = "", []
  arm = SimpleNamespace(
    config=config, tokens=SimpleNamespace(vocab_size=257), workdir=tmp_path,
    display=SimpleNamespace(say=said.append),
  )  # fmt: skip
  sealed = claims.seal(arm, tuned, (6, 3_000_000))
  axes = (sealed[name] for name in ("batch_sizes", "lr_factors", "decay_factors"))
  cells = tune_run.plan_grid(arm, (6, 3_000_000), set(itertools.product(*axes)))
  assert {cell.id for cell in cells} == set(sealed["claims"][0]["tested_by"])
  assert [claim["what"] for claim in sealed["claims"]] == ["lr", "batch", "timescale", "loss_lost"]
  middle = sorted(cells, key=lambda cell: cell.tokens_per_step)[len(cells) // 2].tokens_per_step
  best = optimum.load(tuned).best(cells[0].N, 3e6, batch=middle)
  rates = sorted({cell.lr for cell in cells if cell.tokens_per_step == middle})
  decays = sorted({cell.weight_decay for cell in cells})
  assert rates[2] == pytest.approx(best["lr"], rel=1e-3)
  assert middle / (rates[2] * decays[1]) == pytest.approx(best["timescale"], rel=1e-3)
  assert len(cells) == 3 * 5 * 3
  assert "of the loss there it costs at most" in said[0]
