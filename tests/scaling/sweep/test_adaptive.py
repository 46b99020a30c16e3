"""The next cell: what it is said to tell, it tells; and what was chosen is kept."""

import dataclasses
import itertools
import json
import subprocess

import numpy as np
import pytest
import tiny_sweep
import written
from surfaces import law_of, problem_of
from synthetic import TRUTH, write_runs

from configs import base
from scaling import laws, main
from scaling.laws import chinchilla, next_run, solve
from scaling.laws.tables import read
from scaling.sweep import adaptive, plan, store

C = 2e13  # the budget that matters
BUDGETS = (3e11, 6e11, 1.2e12, 2.4e12)
TEXTBOOK = chinchilla.Compute(6.0)
OPTIONS = base.get_config().fit
OPTIONS.bootstraps = 100


def isoflop(sizes=5):
  c = np.repeat(BUDGETS, sizes)
  n = chinchilla.optimum(TRUTH, c).N * np.tile(np.geomspace(1 / 3, 3, sizes), 4)
  return n, c / (6 * n)


def candidates(sizes=12):
  n, c = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e4, 6e5, sizes), BUDGETS))
  return n, c / (6 * n), c


def fitted(n, d, compute=TEXTBOOK, law=TRUTH):
  """The fit to runs without noise."""
  loss = chinchilla.loss(law, n, d)
  return laws.fit_runs(laws.make_runs(n, d, loss, compute.flops_per_token(n) * d), OPTIONS)


def information(n, d, compute=TEXTBOOK, law=TRUTH):
  return next_run.information(fitted(n, d, compute, law), C)


@pytest.mark.parametrize("form", ["chinchilla", "cross"])
def test_jacobian_against_finite_differences(form):
  n, d = isoflop()
  options = base.get_config().fit
  options.form, options.bootstraps = form, 100
  law = laws.fit_runs(
    laws.make_runs(n, d, chinchilla.loss(TRUTH, n, d) * (1 + 1e-3 * n / d)), options
  )
  jacobian = next_run.jacobian(law, n, d)
  theta = law.problem.theta(law.params)
  for i, step in enumerate(1e-6 * np.eye(len(theta))):
    high, low = (
      laws.Law(law.law.form, law.problem.natural(theta + s)).loss(n, d) for s in (step, -step)
    )
    np.testing.assert_allclose(jacobian[:, i], np.log(high / low) / 2e-6, rtol=1e-6, atol=1e-8)


def test_gradient_of_log_n_opt():
  """Against the closed form for C = k N D: (alpha + beta) log N = log(alpha A / beta B) + ..."""
  found = information(*isoflop())
  unit_n, unit_d = (found.fit.problem.units[name] for name in "ND")
  total = TRUTH.alpha + TRUTH.beta
  log_n = float(np.log(chinchilla.optimum(TRUTH, C).N / unit_n))
  log_d = float(np.log(chinchilla.optimum(TRUTH, C).D / unit_d))
  closed = np.array([0, 1, -1, 1 / TRUTH.alpha - log_n, -1 / TRUTH.beta + log_d])
  np.testing.assert_allclose(found.gradient, closed / total, rtol=1e-5, atol=1e-8)


def test_one_more_run_divides_the_variance_as_said():
  """The rank-one update agrees with the information of all runs together."""
  n, d = isoflop()
  start = information(n, d)
  for new_n, new_d in ((5e5, 4e5), (2e4, 3e7), (n[3], d[3])):
    whole = information(np.append(n, new_n), np.append(d, new_d))
    said = start.shrink(np.array([new_n]), np.array([new_d]))[0]
    assert said == pytest.approx(np.sqrt(whole.variance / start.variance), rel=1e-6)
    assert start.after(new_n, new_d).variance == pytest.approx(whole.variance, rel=1e-6)
    assert said < 1


def sampled_sd(n, d, noise, simulations=250):
  """The SD of log N_opt over simulated sweeps; the first runs of each have the same noise."""
  found = []
  for seed in range(simulations):
    scatter = np.random.default_rng(seed).normal(0, noise, len(n))
    points = problem_of(n, d, chinchilla.loss(TRUTH, n, d) * np.exp(scatter))
    start = points.theta(TRUTH._asdict())
    best = solve.minimise(points, np.ones((1, len(n))), start[None], 10.0)
    found.append(np.log(chinchilla.optimum(law_of(points, best.theta[0]), C).N))
  return np.std(found)


def test_predicted_shrink_is_the_realised_one():
  """Over simulated sweeps N_opt scatters as predicted, and by as much less with the best cell."""
  n, d = isoflop()
  start = information(n, d)
  new_n, new_d, _ = candidates()
  said = start.shrink(new_n, new_d)
  best = np.argmin(said)
  before = sampled_sd(n, d, 0.002)
  after = sampled_sd(np.append(n, new_n[best]), np.append(d, new_d[best]), 0.002)
  assert before == pytest.approx(0.002 * np.sqrt(start.variance), rel=0.15)
  assert said[best] < 0.93
  assert after / before == pytest.approx(said[best], abs=0.03)


def random_cells(cost, budget, seed):
  """Cells drawn at random, as many as a budget pays for."""
  chosen = []
  for i in np.random.default_rng((seed, 1)).permutation(len(cost)):
    if cost[chosen].sum() + cost[i] <= budget:
      chosen.append(i)
  return chosen


def test_the_proposed_cells_beat_random_ones():
  """What resamples scatter N_opt by shrinks as predicted, over 8 sweeps; less with other cells."""
  options = base.get_config().fit
  options.bootstraps = 200
  n, d = isoflop()
  new_n, new_d, cost = candidates()
  start, budget = information(n, d), 8e12

  def width(at, seed):
    n_all, d_all = np.append(n, new_n[at]), np.append(d, new_d[at])
    noise = np.random.default_rng(seed).normal(0, 0.002, len(n_all))
    made = laws.make_runs(n_all, d_all, chinchilla.loss(TRUTH, n_all, d_all) * np.exp(noise))
    return laws.optimum(laws.fit_runs(made, options), C)["N_opt_error"]["runs"]

  chosen = next_run.choose(start, new_n, new_d, cost, budget)
  before, proposed, random = (
    np.mean([width(at(seed), seed) for seed in range(8)])
    for at in (
      lambda _: [], lambda _: [i for i, _ in chosen], lambda seed: random_cells(cost, budget, seed)
    )
  )  # fmt: skip
  assert chosen[-1][1] < 0.6
  assert proposed / before == pytest.approx(chosen[-1][1], rel=0.15)
  assert proposed < 0.8 * random


def test_the_choice_is_nearly_the_best_there_is():
  """Under a budget for a few cells: within 3 % of the best subset of ten candidates."""
  start = information(*isoflop())
  n, d, cost = candidates()
  some = np.random.default_rng(0).choice(len(n), 10, replace=False)
  n, d, cost = n[some], d[some], cost[some]
  for budget in (1.2e12, 3e12, 5e12):
    chosen = next_run.choose(start, n, d, cost, budget)
    assert cost[[i for i, _ in chosen]].sum() <= budget
    assert len({i for i, _ in chosen}) == len(chosen)
    best = 1.0
    for size in range(1, 11):
      for subset in map(list, itertools.combinations(range(10), size)):
        if cost[subset].sum() <= budget:
          after = start
          for i in subset:
            after = after.after(n[i], d[i])
          best = min(best, np.sqrt(after.variance / start.variance))
    assert best * (1 - 1e-9) <= chosen[-1][1] < 1.03 * best
  assert next_run.choose(start, n, d, cost, 1e11) == []
  some = np.argsort(start.shrink(n, d))[[0] + [1] * 10]  # ten for the price of the best
  assert len(next_run.choose(start, n[some], d[some], np.array([1.0] + [0.1] * 10), 1.0)) == 10


def test_a_parameter_at_its_bound_is_held():
  n, d = isoflop()
  law = fitted(n, d)
  held = dataclasses.replace(law, convergence={"at_bound": ["E"]})
  found = next_run.information(held, C)
  assert found.covariance.shape == (4, 4)
  assert np.all((found.shrink(n, d) > 0) & (found.shrink(n, d) <= 1))


# --------------------------------------------------------------------- cells of a sweep


@pytest.fixture
def config():
  c = base.get_config()
  c.sweep.sizes, c.sweep.budgets = (2, 4, 6, 8), (1e11, 2e11, 4e11)
  c.sweep.seed_sizes = (4,)
  c.sweep.seeds = 2
  c.data.seq_len = 64
  c.fit.bootstraps = 200
  return c


def trained(config, cells, off=0.0):
  """The fit of these cells, as if trained on a known surface, with the same luck every time."""
  n, d, c = (np.array([getattr(cell, x) for cell in cells], float) for x in "NDC")
  luck = [np.random.default_rng(list(cell.id.encode())).normal(0, 0.002) for cell in cells]
  law = TRUTH._replace(A=TRUTH.A * np.exp(off))
  loss = chinchilla.loss(law, n, d) * np.exp(luck)
  return laws.fit_runs(laws.make_runs(n, d, loss, c, [cell.id for cell in cells]), config.fit)


def test_cells_that_could_be_trained_next(config):
  cells = plan.design_cells(config, 257)
  config.sweep.max_tokens_per_param = 60.0
  longest = 1.5 * max(cell.D for cell in cells)
  found = plan.next_cells(config, (257, int(longest / config.data.max_epochs)), cells)
  assert not {cell.id for cell in found} & {cell.id for cell in cells}
  assert {cell.size for cell in found} <= set(range(1, 10))
  assert {5, 7, 9} <= {cell.size for cell in found}
  assert {cell.budget for cell in found} == set(config.sweep.budgets)
  assert all(cell.trunk is None and cell.kind == "fit" for cell in found)
  assert all(cell.D / cell.N <= 60 for cell in found)
  assert max(cell.D for cell in found) <= longest
  assert min(cell.D for cell in found) >= min(cell.D for cell in cells)
  assert {cell.seed for cell in found if cell.size == 4} == {2}
  assert {cell.seed for cell in found if cell.size == 5} == {0}
  repeats = plan.next_cells(config, (257, int(longest)), [*cells, *found])
  assert {cell.seed for cell in repeats if cell.size == 5} == {1}
  config.sweep.max_tokens_per_param = 1e9
  few = plan.next_cells(config, (257, int(0.3 * longest / config.data.max_epochs)), cells)
  assert 0.2 * longest < max(cell.D for cell in few) <= 0.3 * longest


def test_an_open_minimum_asks_for_the_cell_beyond_it_first(config):
  cells = plan.design_cells(config, 257)
  law = trained(config, cells, off=1.0)  # a surface that wants larger models than there are
  edges = next_run.open_edges(laws.isoflop_profiles(law.runs, law.compute)["profiles"])
  assert edges
  assert all(side == 1 for _, _, side in edges)
  found = adaptive.propose(config, cells, law, (257, 10**9), 3e12)
  first = [cell for cell, _, reason in found if "at its largest N" in reason]
  assert [cell for cell, *_ in found[: len(first)]] == first
  assert [cell.size for cell in first] == [9, 9]  # at the least budget it would be too short
  at = [cell.budget for cell in first]
  np.testing.assert_allclose(at, [C for C, *_ in edges[-2:]], rtol=0.02)
  assert sum(cell.C for cell, *_ in found) <= 3e12
  shrinks = [shrink for _, shrink, _ in found]
  assert shrinks == sorted(shrinks, reverse=True)


def test_profiles_closed_inside_ask_for_nothing():
  profile = {"C": 1.0, "N": [1.0, 2.0, 3.0], "loss": [2.0, 1.0, 2.0], "inside": True}
  left = profile | {"loss": [1.0, 2.0, 3.0], "inside": False}
  bent = profile | {"loss": [1.0, 3.0, 0.9], "inside": False}
  assert next_run.open_edges([profile, left, bent]) == [(1.0, 1.0, -1), (1.0, 3.0, 1)]


def rounds(config, workdir, stop_after=None):
  """The rounds of a sweep, trained on a known surface; `stop_after`: killed as one begins."""
  cells = plan.design_cells(config, 257)
  adaptive.begin(config, workdir, adapt=stop_after != "resumed")
  began = 0
  while more := adaptive.next_round(config, workdir, cells, trained(config, cells), (257, 10**9)):
    began += 1
    if began == stop_after:
      return cells
    cells += more
  return cells


def test_rounds_use_the_budget_and_go_on_where_they_stopped(config, tmp_path):
  config.sweep.adaptive_flops = 1.5e12
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  for folder in (whole, cut):
    folder.mkdir()
  planned, every = len(plan.design_cells(config, 257)), rounds(config, whole)
  record = json.loads((whole / "adaptive.json").read_text())
  chosen = [cell["id"] for one in record["rounds"] for cell in one["cells"]]
  assert len(record["rounds"]) >= 2
  assert [cell.id for cell in every[planned:]] == chosen
  spent = sum(cell.flops_spent for cell in every[planned:])
  assert 1.5e12 - 1.1e11 < spent <= 1.5e12  # what is left buys no cell
  rounds(config, cut, stop_after=2)
  assert json.loads((cut / "adaptive.json").read_text())["rounds"] == record["rounds"][:2]
  again = rounds(config, cut, stop_after="resumed")  # no flag: the folder knows
  assert [cell.id for cell in again] == [cell.id for cell in every]
  assert (cut / "adaptive.json").read_text() == (whole / "adaptive.json").read_text()


def test_a_budget_for_one_cell_buys_it(config, tmp_path):
  config.sweep.adaptive_flops = 1.3e11  # half of it buys none
  assert len(rounds(config, tmp_path)) == len(plan.design_cells(config, 257)) + 1


def test_adaptive_cells_come_before_the_seal(config, tmp_path):
  with pytest.raises(ValueError, match=r"sweep\.adaptive_flops=0: --adaptive needs compute"):
    adaptive.begin(config, tmp_path, adapt=True)
  config.sweep.adaptive_flops = 1e12
  (tmp_path / "prediction.json").write_text("{}")
  with pytest.raises(ValueError, match="its prediction is sealed"):
    adaptive.begin(config, tmp_path, adapt=True)
  adaptive.begin(config, tmp_path, adapt=False)
  assert not (tmp_path / "adaptive.json").exists()


def finished(config, workdir):
  """A sweep's folder as `isoflop sweep` leaves it, with losses of a known surface."""
  cells = plan.design_cells(config, 257)
  corpus = {"vocab_size": 257, "train_tokens": 10**9}
  store.write_sweep(workdir, {"config": config.to_dict(), "corpus": corpus}, cells)
  write_runs(workdir, cells)
  store.write_table(workdir, cells, "clm")
  return cells


def test_plan_next_prints_the_proposals(config, tmp_path, capsys):
  cells = finished(config, tmp_path)
  before = sorted(path.name for path in tmp_path.iterdir())
  code = main.main(["plan", "--next", f"--workdir={tmp_path}", "--next_flops=1e12"])
  output = capsys.readouterr()
  assert code == 0, output.err
  law = laws.fit_runs(read.read_runs(tmp_path), config.fit)
  found = adaptive.propose(config, cells, law, (257, 10**9), 1e12)
  listed = [line.split()[0] for line in output.out.splitlines() if line.startswith("fit_s")]
  assert listed == [cell.id for cell, *_ in found]
  assert f"shrink to {found[-1][1]:.0%}" in output.out
  assert sorted(path.name for path in tmp_path.iterdir()) == before
  main.main(["plan", "--next", f"--workdir={tmp_path}", "--next_flops=1e3"])
  assert "raise --next_flops" in capsys.readouterr().out
  main.main(["plan", "--next", f"--workdir={tmp_path}", "--config.sweep.heldout_budgets=(30,)"])
  assert capsys.readouterr().out.startswith("N_opt at 1.20e13 FLOPs")  # 30 times the largest
  assert main.main(["plan", "--next", f"--workdir={tmp_path}", "--config=configs/clm.py"]) == 2
  assert "--config: the sweep in --workdir has a config" in capsys.readouterr().err


@pytest.mark.slow
def test_an_adaptive_sweep_trains_what_it_chose(cache, corpus, tmp_path):
  sweep_adaptively(corpus, tmp_path, ("whole",))


def sweep_adaptively(corpus, tmp_path, names):
  """A sweep whose folder is `killed` is killed after its first round was chosen, and goes on."""
  flags = ("--config.sweep.adaptive_flops=4e9", "--config.data.max_epochs=100", "--adaptive")
  tables = []
  for name in names:
    command = tiny_sweep.command(tmp_path / name, corpus, *flags)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    if name == "killed":
      record = tmp_path / name / "adaptive.json"
      while not (record.exists() and json.loads(record.read_text())["rounds"]):
        assert process.poll() is None
      process.kill()
      process.wait()
      process = subprocess.Popen(command[:-1], stderr=subprocess.PIPE, text=True)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 2, said
    assert "undetermined" in said.splitlines()[-1]  # by so few runs of so few tokens
    tables.append(tiny_sweep.table(tmp_path / name))
  record = json.loads((tmp_path / "whole" / "adaptive.json").read_text())
  chosen = {cell["id"] for one in record["rounds"] for cell in one["cells"]}
  assert chosen
  assert chosen <= {row["cell"] for row in tables[0] if row["status"] == "done"}
  assert all(table == tables[0] for table in tables)
  written.give_losses(tmp_path / "whole")
  again = tiny_sweep.command(tmp_path / "whole", corpus, *flags[:-1])
  assert subprocess.run(again, timeout=900).returncode == 0
  assert "Cells chosen by the fit so far" in (tmp_path / "whole" / "report.md").read_text()


def test_runs_beside_those_of_any_table(tmp_path, capsys):
  """They cost what they may, tell what is said, and go on where the lowest loss is at an edge."""
  n, d = isoflop(9)
  table = tmp_path / "runs.csv"
  inside = n * d * 6 < 2e12  # of the largest budget only the larger models
  kept = inside | (n > chinchilla.optimum(TRUTH, 2.4e12).N)
  rows = np.stack([n, d, chinchilla.loss(TRUTH, n, d)], axis=1)[kept]
  table.write_text("\n".join(["N,D,loss", *(f"{a!r},{b!r},{c!r}" for a, b, c in rows.tolist())]))
  arguments = ["plan", "--next", f"--runs={table}", "--next_flops=4e12"]
  assert main.main([*arguments, "--config.fit.bootstraps=100"]) == 0
  text = capsys.readouterr().out
  assert text.startswith("N_opt at 7.20e12 FLOPs is ")
  law = laws.fit_runs(read.read_runs(table), OPTIONS)
  new_n, new_d, cost = next_run.candidates(law, 4e12)
  assert new_n.max() <= 3.001 * law.runs.N.max()
  chosen = next_run.propose(law, 7.2e12, new_n, new_d, cost, cost, 4e12, adaptive.MOST_RUNS)
  at = [i for i, *_ in chosen]
  assert len(at) == len(set(at)) <= adaptive.MOST_RUNS
  assert cost[at].sum() <= 4e12
  assert chosen[0][2] == "the lowest loss at 2.40e12 is at its smallest N"
  assert new_n[at[0]] < law.runs.N[law.runs.C > 2e12].min()
  start = next_run.information(law, 7.2e12)
  more = [np.concatenate([a, b[at]]) for a, b in ((law.runs.N, new_n), (law.runs.D, new_d))]
  slopes = next_run.jacobian(law, *more)[:, start.free]
  variance = start.gradient @ np.linalg.solve(slopes.T @ slopes, start.gradient)
  assert chosen[-1][1] == pytest.approx(np.sqrt(variance / start.variance), rel=1e-6)
  assert f"{chosen[-1][1]:.3f}" in text.splitlines()[-1]


def test_a_table_without_a_law_asks_for_no_run(tmp_path, capsys):
  n, d = isoflop()
  table = tmp_path / "runs.csv"
  table.write_text("\n".join(["N,D,loss", *(f"{a},{b},3.0" for a, b in zip(n, d, strict=True))]))
  assert main.main(["plan", "--next", f"--runs={table}"]) == 2
  assert "plan: undetermined: the best loss does not fall" in capsys.readouterr().err
  assert main.main(["plan", f"--runs={table}"]) == 2
  assert "add --next" in capsys.readouterr().err
