"""The cells of a sweep: what they cost, what they share, and where the prediction is tested."""

import math

import numpy as np
import pytest

from configs import base
from model import accounting
from scaling.sweep import plan, probe
from train import optim


@pytest.fixture
def config():
  c = base.get_config()
  c.sweep.sizes = (2, 4, 6)
  c.sweep.budgets = (1e11, 2e11, 4e11)
  c.sweep.seed_sizes = (2,)
  c.sweep.seed_budgets = (1e11,)
  return c


def test_isoflop_cells_cost_their_budget(config):
  cells = plan.design_cells(config, 257)
  assert len(cells) == 3 * 3 + 2
  for cell in cells:
    assert pytest.approx(cell.budget, rel=0.5 / cell.steps + 1e-9) == cell.C
    sized = plan.at_size(config, cell.size)
    seq_len = config.data.seq_len
    per_token = accounting.train_flops_per_sequence(sized.model, 257, seq_len) / seq_len
    assert pytest.approx(per_token * cell.D) == cell.C


@pytest.mark.parametrize(
  ("field", "sign", "value"),
  [
    ("min_tokens", 1, lambda cell: cell.D),
    ("min_tokens_per_param", 1, lambda cell: cell.D / cell.N),
    ("max_tokens_per_param", -1, lambda cell: cell.D / cell.N),
  ],
)
def test_cells_out_of_bounds_are_left_out(config, field, sign, value):
  cells = plan.design_cells(config, 257)
  config.sweep[field] = bound = sorted(map(value, cells))[4]
  inside = {cell.id for cell in cells if sign * (value(cell) - bound) >= 0}
  assert {cell.id for cell in plan.design_cells(config, 257)} == inside
  assert 0 < len(inside) < len(cells)


def test_one_trunk_serves_all_token_counts_of_a_size(config):
  cells = plan.design_cells(config, 257)
  trunks = plan.trunks(cells)
  assert len(trunks) == 5  # one per size, and one for each further seed of a size
  by_id = {trunk.id: trunk for trunk in trunks}
  for cell in cells:
    assert cell.branch_step in by_id[cell.trunk].keep_steps
    assert cell.branch_step == optim.cooldown_start(config.optim, cell.steps)
  spent = sum(cell.flops_spent for cell in cells)
  cooldowns = sum((c.steps - c.branch_step) * c.tokens_per_step * c.flops_per_token for c in cells)
  assert spent == pytest.approx(
    sum(t.steps * 8 * 128 * t.flops_per_token for t in trunks) + cooldowns
  )


def test_a_run_has_the_seed_rate_and_length_that_are_planned(config):
  config.objective, config.model.family = "mlm", "encoder"  # which predicts 15 % of what it reads
  cells = plan.design_cells(config, 257)
  assert len({(cell.seed, cell.lr, cell.D) for cell in cells}) == len(cells)
  for run in (*cells, *plan.trunks(cells)):
    c = plan.run_config(config, run)
    assert (c.seed, c.optim.lr, c.model.size) == (run.seed, run.lr, run.size)
    assert c.train.tokens == run.steps * c.data.batch_size * c.data.seq_len
    trunk = isinstance(run, plan.Trunk)
    assert (c.optim.schedule, c.train.keep_steps) == (
      ("constant", run.keep_steps) if trunk else (config.optim.schedule, ())
    )
    if not trunk:
      assert run.C_6nd == 6 * run.N * c.train.tokens
      assert run.D_predicted == round(0.15 * c.train.tokens)


def test_heldout_cells_surround_the_prediction(config):
  cells, _ = plan.heldout_cells(config, (257, 10**9), 49_000, 1e12)
  assert [cell.N for cell in cells] == sorted({cell.N for cell in cells})
  for cell, factor in zip(cells, config.sweep.heldout_sizes, strict=True):
    assert abs(math.log(cell.N / (factor * 49_000))) < math.log(1.3)
    assert pytest.approx(1e12, rel=0.01) == cell.C


# ---- probe and verdict


def test_parabola_of_the_probe():
  factors, lr = [0.5, 1.0, 2.0], np.log([0.5, 1.0, 2.0])
  best, beyond = probe.best_factor(factors, list((lr - np.log(1.3)) ** 2))
  assert best == pytest.approx(1.3)
  assert beyond is None
  assert probe.best_factor(factors, [3.0, 2.0, 1.0]) == (2.0, 4.0)
  assert probe.best_factor(factors, [1.0, 2.0, 3.0]) == (0.5, 0.25)
  assert probe.best_factor(factors, [2.0, 1.0, math.inf]) == (1.0, None)
