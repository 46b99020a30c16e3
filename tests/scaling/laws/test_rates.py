"""The hyperparameter law, on surfaces whose optimum is known."""

import numpy as np
import pytest
from rate_grids import BEND, BEST, SIZES, TOKENS, best, make_table

from configs.errors import DataError
from scaling.laws.rates import grid, rules, surface, tune_json


@pytest.mark.parametrize("names", [("lr",), ("lr", "batch"), ("lr", "batch", "timescale")])
def test_a_surface_without_noise_is_recovered(names):
  law = surface.fit(grid.make_grid(*make_table(names)), window=0.02)
  np.testing.assert_allclose(law.optimum, [BEST[name] for name in names], atol=1e-5)
  np.testing.assert_allclose(law.curvature, BEND[: len(names), : len(names)], atol=1e-6)


def test_a_smooth_level_does_with_fewer_runs():
  coefficients = {"lr": BEST["lr"]}
  N, D, loss, factors = make_table(("lr",), coefficients=coefficients, noise=1e-4)
  level = np.log(loss) - 0.012 * np.log(factors["lr"] / best("lr", N, D)) ** 2
  loss = np.exp(np.log(loss) - level + 1 - 0.02 * np.log(N) - 0.03 * np.log(D))
  law = surface.fit(grid.make_grid(N, D, loss, factors), 0.02, level="smooth")
  np.testing.assert_allclose(law.optimum, [BEST["lr"]], atol=1e-5)


def test_curvature_that_grows_with_size_is_told():
  law = surface.fit(grid.make_grid(*make_table(power=0.5)), 0.02, curvature="power")
  assert law.powers == (0.5, 0.0)
  np.testing.assert_allclose(law.optimum[0], BEST["lr"], atol=1e-5)


@pytest.mark.parametrize(("sizes", "tokens"), [(SIZES[:2], TOKENS), (SIZES, TOKENS)])
def test_intervals_hold_the_exponents_as_often_as_they_say(sizes, tokens):
  """Of optima that scatter by 10 %, and losses by 0.3 %."""
  held, truth = [], np.array([BEST["lr"], BEST["batch"]])
  for seed in range(25):
    table = make_table(sizes=sizes, tokens=tokens, noise=0.003, scatter=0.1, seed=seed)
    low, high = surface.fit(grid.make_grid(*table), 0.02).intervals(0.9)
    held.append(((low <= truth) & (truth <= high))[:, 1:])
  assert np.mean(held) >= 0.8  # of 100, at nominal 90 %


def test_the_best_rate_at_a_batch_is_where_the_loss_is_least():
  law = surface.fit(grid.make_grid(*make_table()), 0.02)
  N, D = SIZES[0], TOKENS[1]
  batch = 3 * best("batch", N, D)
  rates = np.geomspace(0.1, 10, 4001) * best("lr", N, D)
  lost = [law.loss_lost(N, D, {"lr": rate, "batch": batch}) for rate in rates]
  assert law.best(N, D, batch=batch)["lr"] == pytest.approx(rates[np.argmin(lost)], rel=2e-3)
  assert law.best(N, D, batch=batch)["batch"] == pytest.approx(batch)


def test_a_cell_whose_best_is_at_an_edge_is_left_out_and_named():
  N, D, loss, factors = make_table()
  corner = (SIZES[2] == N) & (TOKENS[2] == D)
  cut = corner & (factors["lr"] > best("lr", N, D) * 0.9)  # the best rate and those above it
  kept = {name: values[~cut] for name, values in factors.items()}
  cells = grid.make_grid(N[~cut], D[~cut], loss[~cut], kept)
  law = surface.fit(cells, 0.02)
  assert law.edges == {8: ["lr"]}
  assert not law.used[cells.cell == 8].any()
  np.testing.assert_allclose(law.optimum[0], BEST["lr"], atol=1e-5)


def test_cells_of_one_line_cannot_tell_the_exponents():
  N, D, loss, factors = make_table(sizes=(1e5, 1e6))
  line = np.where(N == 1e5, 1e7, 1e8) == D
  some = {name: values[line] for name, values in factors.items()}
  with pytest.raises(DataError, match=r"2 \(N, D\) cannot tell"):
    surface.fit(grid.make_grid(N[line], D[line], loss[line], some))


def test_diverged_runs_are_left_out_and_a_rate_beyond_them_is_named():
  N, D, loss, factors = make_table()
  burst = factors["lr"] >= 0.99 * best("lr", N, D) * np.exp(0.35)
  content = tune_json.make(grid.make_grid(N, D, np.where(burst, np.nan, loss), factors), 0.02, 0.9)
  assert content["diverged"] == burst.sum() > 0
  assert "beyond" not in tune_json.text(content)
  for cell in content["cells"]:
    expected = best("lr", cell["N"], cell["D"]) * np.exp(0.35)
    assert cell["lowest_diverged"] == pytest.approx(expected)
    cell["lowest_diverged"] = 0.9 * cell["law"]["lr"]
  assert "which diverged" in tune_json.text(content)


def test_what_a_choice_loses_is_read_off_a_cells_own_runs():
  table = make_table()
  judge = rules.judges(grid.make_grid(*table), 0.02)[4]
  N, D = SIZES[1], TOKENS[1]
  for steps in ((0.0, 0.0), (0.5, -0.3), (0.9, -1.3)):  # the last is far: between the runs
    off = np.array(steps)
    factors = {
      "lr": best("lr", N, D) * np.exp(off[0]),
      "batch": best("batch", N, D) * np.exp(off[1]),
    }
    assert judge.lost(factors) == pytest.approx(np.expm1(off @ BEND[:2, :2] @ off), abs=3e-3)
  assert judge.lost({"lr": 9 * best("lr", N, D), "batch": best("batch", N, D)}) == np.inf


def test_a_rule_that_is_right_loses_nothing_at_held_out_cells_and_others_do():
  right = {"lr": (np.log(1.79), -0.713, 0.307), "batch": (np.log(0.58), 0.0, 0.571)}
  tokens = (1e9, 4e9, 16e9)
  cells = grid.make_grid(*make_table(sizes=(1e8, 3e8, 1e9), tokens=tokens, coefficients=right))
  rows = rules.held_out(cells, 0.02)
  for split, count in (("largest N", 3), ("largest D", 2), ("each cell", 9)):
    assert sum(row.split == split for row in rows) == count
    lost = {name: rules.mean_lost(rows, split, name) for name in ("measured", *rules.RULES)}
    assert lost["measured"] < 1e-6
    assert lost["step_law"] < 1e-6
    assert min(lost["porian"], lost["deepseek"], lost["delphi"]) > 1e-3
