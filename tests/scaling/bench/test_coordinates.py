"""`isoflop bench --coordinates`: its slopes, its files, and what they say of a parametrisation."""

import numpy as np
import pytest

from configs import base
from scaling.bench import coordinates, steps
from train.data import dataset
from train.system import files


def test_slopes_are_those_of_power_laws_with_the_scatter_of_seeds():
  rng = np.random.default_rng(0)
  found = []
  for _ in range(200):
    noise = np.exp(0.05 * rng.standard_normal(12))
    rows = [
      {"depth": depth, "mlp": 3 * depth**0.5, "residual": depth * noise[3 * i + seed]}
      for i, depth in enumerate((3, 6, 12, 24))
      for seed in range(3)
    ]
    slopes = coordinates.slopes(rows, "depth")
    assert slopes["mlp"] == pytest.approx((0.5, 0), abs=1e-7)
    found.append(slopes["residual"])
  slope, error = np.transpose(found)
  assert np.mean(slope) == pytest.approx(1, abs=3 * 0.05 / 0.77 / 12**0.5 / 200**0.5)
  assert np.std(slope) == pytest.approx(np.sqrt(np.mean(error**2)), rel=0.2)


def tiny(**model):
  c = base.get_config()
  c.data.source, c.data.markov_tokens = "markov", 200_000
  c.data.seq_len, c.data.batch_size, c.optim.lr = 32, 4, 3e-3
  c.model.update({"mup_base_width": 32, "mup_base_depth": 3} | model)
  return c


@pytest.mark.slow
def test_depth_moves_the_residual_stream_unless_completep_scales_it(tmp_path):
  """With real training of models of 3 to 24 layers."""
  scaled = tiny(width_scaling="mup", depth_scaling="completep")
  result = coordinates.check(scaled, tmp_path)
  for kind in ("attention", "mlp", "residual", "logits"):
    assert abs(result["slopes"]["depth"][kind][0]) < 0.25, kind
  stored = files.read_json(tmp_path / "coordinates.json")
  assert stored["slopes"]["depth"]["mlp"] == list(result["slopes"]["depth"]["mlp"])
  assert len(stored["changes"]["width"]) == 4 * coordinates.SEEDS
  assert (tmp_path / "coordinates.png").stat().st_size > 10_000
  assert "depth (completep)" in coordinates.table(result)

  standard = tiny(scan=True)
  tokens = dataset.prepare(standard)
  rows = [
    {"depth": case.config.model.depth} | row
    for case in steps.cases(standard, "32/3,32/24")
    for row in coordinates.changes(case.config, tokens, 3e-3)
  ]
  assert coordinates.slopes(rows, "depth")["residual"][0] > 0.5
