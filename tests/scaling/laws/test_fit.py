"""The library's surface: fit.json, refusals, and what a fit must not depend on."""

import csv
import inspect
import json
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from surfaces import TRUTH, grid, isoflop, noisy, numbers, options, problem_of

from scaling import laws
from scaling.laws import chinchilla, questions, solve


def test_the_example_in_the_docstring_runs_and_means_what_it_says():
  example = laws.__doc__.split("\n\n", 1)[1].split("\nWhat else")[0]
  names = {}
  exec(textwrap.dedent(example), names)
  low, high = names["best"]["N_opt_interval"]
  assert low < names["best"]["N_opt"] < high
  assert names["interval"][0] < names["value"] < names["interval"][1]
  assert np.abs(names["law"].residuals).max() < 0.01
  for question in re.findall(r"`(\w+)\(", laws.__doc__):
    assert question in laws.__all__


def test_every_public_name_says_what_it_is():
  for name in set(laws.__all__) - {"FORMS"}:
    assert len(inspect.getdoc(getattr(laws, name)).split()) > 5, name


def test_order_and_seed():
  n, d = grid()
  loss = noisy(n, d, 0.005, 0)
  order = np.random.default_rng(1).permutation(len(n))
  ids = [f"run {i}" for i in range(len(n))]
  shuffled = laws.make_runs(n[order], d[order], loss[order], ids=[ids[i] for i in order])
  one = laws.to_json(laws.fit_runs(laws.make_runs(n, d, loss, ids=ids), options()))
  two = laws.to_json(laws.fit_runs(shuffled, options()))
  assert json.dumps(one, allow_nan=False) == json.dumps(two)
  other = laws.to_json(laws.fit_runs(laws.make_runs(n, d, loss), options(seed=1)))
  assert other["params"] == one["params"]
  assert other["intervals"] != one["intervals"]
  columns = {"N": n, "D": d, "C": 6.0 * n * d, "loss": loss}
  assert laws.input_hash(laws.make_runs(**columns)) == one["input_hash"]
  for name, values in columns.items():  # of which a digit decides the hash
    changed = columns | {name: np.append(values[0] * (1 + 1e-12), values[1:])}
    assert laws.input_hash(laws.make_runs(**changed)) != one["input_hash"]


@pytest.mark.smoke
def test_rescaled_units_rescale_the_law():
  n, d = grid()
  loss = noisy(n, d, 0.005, 0)
  one = laws.fit_runs(laws.make_runs(n, d, loss), options())
  two = laws.fit_runs(laws.make_runs(n * 1e3, d * 1e-3, loss / np.log(2)), options())
  unit = np.log(2)
  for a, b in ((one.law, two.law), (one.draws, two.draws)):
    a, b = numbers(a), numbers(b)
    expected = (a.E / unit, a.A * 1e3**a.alpha / unit, a.B * 1e-3**a.beta / unit, a.alpha, a.beta)
    close = np.abs(np.array(b) / np.maximum(expected, 1e-12) - 1) < 1e-4
    assert np.mean(close) > 0.99
  assert laws.optimum(two, 6e12)["N_opt"] == pytest.approx(1e3 * laws.optimum(one, 6e12)["N_opt"])


def test_duplicate_runs_move_nothing_and_narrow_intervals_by_the_root_of_two():
  n, d = grid()
  loss = noisy(n, d, 0.005, 0)
  once = laws.fit_runs(laws.make_runs(n, d, loss), options(bootstraps=1000, resampling="pairs"))
  twice = laws.fit_runs(
    laws.make_runs(*(np.repeat(values, 2) for values in (n, d, loss))),
    options(bootstraps=1000, resampling="pairs"),
  )
  np.testing.assert_allclose(numbers(twice.law), numbers(once.law), rtol=1e-6)
  ratio = [np.subtract(*laws.interval(fit.draws.params["alpha"], 0.9)) for fit in (twice, once)]
  assert ratio[0] / ratio[1] == pytest.approx(np.sqrt(0.5), rel=0.2)
  assert laws.seed_noise(twice.runs) == pytest.approx(0, abs=1e-12)


def test_boundary_is_said_not_hidden():
  """A pure power law has no floor: E ends at 0, and fit.json says so."""
  n, d = grid()
  loss = chinchilla.loss(TRUTH._replace(E=np.float64(0.0)), n, d) * (n * d) ** -0.02
  found = laws.fit_runs(laws.make_runs(n, d, loss), options())
  assert found.params["E"] == 0
  assert min(found.params.values()) >= 0
  assert found.convergence["at_bound"] == ["E"]
  assert any(w.startswith("E ended at the edge") for w in laws.to_json(found)["warnings"])


@pytest.mark.filterwarnings("error")
def test_what_the_runs_do_not_determine_has_no_interval():
  """Losses of scatter alone: an exponent ends at its bound, and tells of no optimum."""
  n, d = isoflop(sizes=7)
  scatter = np.exp(0.002 * np.random.default_rng(0).standard_normal(28))
  found = laws.fit_runs(laws.make_runs(n, d, 3.0 * scatter), options(bootstraps=100))
  assert found.unbounded
  record = laws.to_json(found)
  json.dumps(record, allow_nan=False)
  for row in record["optimum"]:
    assert {row[f"{name}_interval"] for name in ("N_opt", "D_opt", "tokens_per_param")} == {None}
    assert row["loss_interval"] is not None
  assert record["intervals"]["a"] is record["intervals"]["b"] is None
  assert "have no interval" in record["warnings"][0]
  (answer,) = questions.answers(found, questions.Questions(flops=1e13))
  assert answer["rows"][0]["N_interval"] is None
  with pytest.raises(ValueError, match="max_tokens=10000: no best model: the best loss does not"):
    questions.answers(found, questions.Questions(flops=1e13, max_tokens=1e4))


def test_copies_of_runs_are_said():
  n, d = (np.append(values, values[:3]) for values in grid())
  loss = noisy(*grid(), 0.002, 0)
  said = laws.to_json(laws.fit_runs(laws.make_runs(n, d, np.append(loss, loss[:3])), options()))
  assert any(w.startswith("3 runs repeat another") for w in said["warnings"])


def test_fit_json_is_complete_and_consistent():
  compute = chinchilla.Compute(6.0, 150.0)
  n, d = isoflop(compute=compute, sizes=6)
  c = compute.flops_per_token(n) * d
  found = laws.fit_runs(laws.make_runs(n, d, noisy(n, d, 0.002, 0), c), options())
  record = json.loads(json.dumps(laws.to_json(found), allow_nan=False))
  assert record["version"] == 2
  assert record["form"] == "chinchilla"
  assert set(record["intervals"]) == {"E", "A", "B", "alpha", "beta", "a", "b"}
  for name, (low, high) in record["intervals"].items():
    assert low < record.get(name, record["params"].get(name)) < high
  assert record["a"] + record["b"] == pytest.approx(1)
  assert record["n_runs"] == 24
  assert record["compute"]["k"] == pytest.approx(6)
  assert record["compute"]["q"] == pytest.approx(150)
  assert [row["C"] for row in record["optimum"][:4]] == pytest.approx([2e11, 5e11, 1.3e12, 3e12])
  assert record["optimum"][-1]["extrapolation"] == pytest.approx(10)
  assert [row["extrapolated"] for row in record["optimum"]] == [False] * 8
  for row in record["optimum"]:
    truth = chinchilla.optimum(TRUTH, row["C"], compute)
    assert row["N_opt_interval"][0] < truth.N < row["N_opt_interval"][1]
    assert row["tokens_per_param"] == pytest.approx(row["D_opt"] / row["N_opt"])
    assert compute.flops_per_token(row["N_opt"]) * row["D_opt"] == pytest.approx(row["C"], rel=1e-3)
  convergence = record["convergence"]
  assert len(convergence["start_cost"]) == convergence["starts"] == 49
  assert sum(convergence["start_converged"]) == convergence["starts_converged"]
  assert min(convergence["start_cost"]) == pytest.approx(convergence["cost"], rel=1e-9)
  rows = record["estimators"]["rows"]
  assert [row["estimator"] for row in rows] == ["approach1", "approach2", "huber", "mse", "lad"]
  assert record["approach2"]["bias"] == rows[1]["bias"]
  assert rows[2]["a"] == record["a"]
  assert len(record["influence"]) == 5
  assert {row["id"] for row in record["influence"]} <= set(found.runs.ids)
  assert record["heldout"] is None


def test_a_minimum_that_was_found_is_not_sought_again(monkeypatch):
  N, D = grid()
  loss = noisy(N, D, 0.01, 0)
  first = solve.minimum(problem_of(N, D, loss), 1e-3)
  monkeypatch.setattr(solve, "minimise", lambda *_: pytest.fail("sought"))
  assert solve.minimum(problem_of(N, D, loss), 1e-3) is first
  loss[0] += 1e-12
  with pytest.raises(pytest.fail.Exception, match="sought"):
    solve.minimum(problem_of(N, D, loss), 1e-3)


def test_cost_of_a_fixed_ratio():
  n, d = isoflop()
  found = laws.fit_runs(laws.make_runs(n, d, chinchilla.loss(TRUTH, n, d)), options())
  unsure = laws.fit_runs(laws.make_runs(n, d, noisy(n, d, 0.002, 0)), options())
  best = chinchilla.optimum(TRUTH, 1e13)
  own = laws.ratio_cost(found, 1e13, best.D / best.N)
  assert own["N"] == pytest.approx(best.N, rel=1e-4)
  assert abs(own["excess"]) < 1e-9
  other = laws.ratio_cost(found, 1e13, 20.0)
  assert other["D"] / other["N"] == pytest.approx(20)
  assert 6 * other["D"] * other["N"] == pytest.approx(1e13)
  assert other["excess"] == pytest.approx(
    chinchilla.loss(TRUTH, other["N"], other["D"]) - best.loss
  )
  low, high = laws.ratio_cost(unsure, 1e13, 100.0)["excess_interval"]
  truth = laws.ratio_cost(found, 1e13, 100.0)["excess"]
  assert 0 <= low < truth < high < 2 * truth
  low, high = laws.ratio_cost(unsure, 1e13, 100.0)["loss_interval"]
  assert low < chinchilla.loss(TRUTH, other["N"], other["D"] * 0 + other["N"] * 20) < high * 1.1


@pytest.mark.parametrize(
  ("n", "d", "reason"),
  [
    (np.full(8, 1e5), np.geomspace(1e6, 1e7, 8), "1 distinct sizes N; alpha"),
    (np.geomspace(1e5, 1e6, 8), np.full(8, 1e7), "1 distinct token counts D; beta"),
    (np.geomspace(1e5, 1e6, 8), 20 * np.geomspace(1e5, 1e6, 8), "cannot be told apart"),
    (np.geomspace(1e5, 1e6, 8), 1e13 / np.geomspace(1e5, 1e6, 8), "cannot be told apart"),
    (np.array([1e5, 2e5]), np.array([1e6, 2e6]), "needs 6 or more"),
    (np.array([]), np.array([]), "needs 6 or more"),
    (np.tile([1e5, 2e5, 4e5], 4), np.tile([1e6, 8e6, 2e6], 4), "needs 6 or more"),
  ],
)
def test_unidentifiable_designs_are_refused(n, d, reason):
  with pytest.raises(ValueError, match=reason):
    laws.fit_runs(laws.make_runs(n, d, chinchilla.loss(TRUTH, n, d)), options())


@pytest.mark.parametrize(
  ("field", "value"), [("delta", 0.0), ("bootstraps", 3), ("level", 1.0), ("level", 0.0)]
)
def test_options_out_of_range_are_refused(field, value):
  n, d = grid()
  with pytest.raises(ValueError, match=f"fit.{field}="):
    laws.fit_runs(laws.make_runs(n, d, chinchilla.loss(TRUTH, n, d)), options(**{field: value}))


def rising(n, d):
  return noisy(n, d, 0.0, 0)[::-1]


def outlier(n, d):
  return noisy(n, d, 0.002, 3) * np.where(np.arange(len(n)) == 3, 1e6, 1.0)


def flat(n, d):
  return np.full(len(n), 3.0)


def noise(n, d):
  return noisy(n, d, 1.0, 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
  "losses",
  [rising, outlier, *(pytest.param(losses, marks=pytest.mark.slow) for losses in (flat, noise))],
)
def test_absurd_losses_end_in_a_fit_or_in_one_line(losses):
  """Losses that rise, an outlier of 1e6, noise of a factor e: finite numbers, or a refusal."""
  n, d = grid()
  refused = None
  try:
    found = laws.fit_runs(laws.make_runs(n, d, losses(n, d)), options(bootstraps=100))
    json.dumps(laws.to_json(found), allow_nan=False)
  except ValueError as error:
    refused = str(error)
  assert refused is None or "no minimum found" in refused


@pytest.mark.slow
def test_a_million_runs_in_bounded_memory():
  """A fit and its record: below 2 GB at its peak."""
  fit_a_million_runs()


def fit_a_million_runs():
  """Returns what it took of a core [s]."""
  program = """
from train.system import process
process.use_huge_pages()  # as the command does
process.keep_freed_pages()
import json, resource
import numpy as np
from configs import base
from scaling import laws
from scaling.laws import chinchilla
rng = np.random.default_rng(0)
law = chinchilla.Chinchilla(*map(np.float64, (0.8, 30.0, 60.0, 0.35, 0.3)))
N, D = np.exp(rng.uniform(np.log(1e5), np.log(1e8), 10**6)), rng.uniform(1e6, 1e9, 10**6)
loss = chinchilla.loss(law, N, D) * np.exp(0.01 * rng.standard_normal(10**6))
options = base.get_config().fit
record = laws.to_json(laws.fit_runs(laws.make_runs(N, D, loss), options))
# Of this program alone: ru_maxrss begins at what the process that started it had.
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
peak, took = int(status["VmHWM"].split()[0]), resource.getrusage(resource.RUSAGE_SELF).ru_utime
print(json.dumps([record["params"], record["intervals"], peak / 1e6, took]))
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  params, intervals, gigabytes, seconds = json.loads(done.stdout)
  print(f"{gigabytes:.2f} GB, {seconds:.0f} s")
  np.testing.assert_allclose(list(params.values()), TRUTH, rtol=5e-3)
  assert (
    sum(
      low <= t <= high for (low, high), t in zip(list(intervals.values())[:5], TRUTH, strict=True)
    )
    >= 3
  )
  assert gigabytes < 2
  return seconds


def write_csv(path, rows):
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  return path


def rows(**changed):
  n, d = grid()
  loss = chinchilla.loss(TRUTH, n, d)
  return [
    {"N": i, "D": j, "loss": k} | {name: values[at] for name, values in changed.items()}
    for at, (i, j, k) in enumerate(zip(n.tolist(), d.tolist(), loss.tolist(), strict=True))
  ]


def test_a_short_row_is_named(tmp_path):
  path = tmp_path / "runs.csv"
  path.write_text("N,D,loss\n1e5,1e6,3\n1e5,2e6\n")
  with pytest.raises(ValueError, match="line 3: 2 fields for 3 columns"):
    laws.read_runs(path)


def test_columns_are_mapped_and_a_missing_third_is_derived(tmp_path):
  n, d = grid()
  table = [{"params": r["N"], "flop": 6 * r["N"] * r["D"], "val": r["loss"]} for r in rows()]
  path = write_csv(tmp_path / "runs.csv", table)
  runs = laws.read_runs(path, columns="N=params, C=flop, loss=val")
  np.testing.assert_allclose(runs.D, laws.make_runs(n, d, chinchilla.loss(TRUTH, n, d)).D)
  with pytest.raises(ValueError, match=r"no column 'loss'.*params, flop, val.*--columns=loss="):
    laws.read_runs(path, columns="N=params,C=flop")
  with pytest.raises(ValueError, match=r"no column 'vel' for loss.*--columns=loss=val"):
    laws.read_runs(path, columns="N=params,C=flop,loss=vel")
  with pytest.raises(ValueError, match="no column 'N'"):
    laws.read_runs(path, columns="C=flop,loss=val")
  with pytest.raises(ValueError, match="'params' is not of the form NAME=COLUMN"):
    laws.read_runs(path, columns="params=N")
  with pytest.raises(ValueError, match="cannot be read"):
    laws.read_runs(tmp_path / "none.csv")


def test_our_cells(tmp_path):
  """Finished fit cells only; N, C by the chosen conventions; the others are listed."""
  n, d = grid()
  extra = {
    "cell": [f"c{i}" for i in range(20)],
    "kind": ["probe", "heldout"] + ["fit"] * 18,
    "status": ["done"] * 17 + ["failed", "diverged", "done"],
    "params_total": n * 2,
    "params_body": n / 2,
    "C": 7 * n * d,
  }
  table = rows(**extra)
  table[18]["loss"] = ""
  path = write_csv(tmp_path / "cells.csv", table)
  runs = laws.read_runs(path)
  assert sorted(runs.ids) == sorted([f"c{i}" for i in range(2, 17)] + ["c19"])
  assert runs.excluded == (("c17", "status failed"), ("c18", "status diverged"))
  np.testing.assert_allclose(runs.C, 7 * runs.N * runs.D)
  body = laws.read_runs(path, params="body", flops="6nd")
  np.testing.assert_allclose(body.N, runs.N / 2)
  np.testing.assert_allclose(body.C, 6 * body.N * body.D)
  np.testing.assert_allclose(laws.read_runs(path, params="total").N, runs.N * 2)
  record = laws.to_json(laws.fit_runs(runs, options()))
  assert record["excluded"][1:] == [{"id": "c18", "reason": "status diverged"}]
  assert record["counting"] == {"params": "body_head", "flops": "exact", "loss": ""}
  record = laws.to_json(laws.fit_runs(body, options()))
  assert record["counting"] == {"params": "body", "flops": "6nd", "loss": ""}
  assert laws.read_runs(path, columns="N=params_total").params == "given"
  with pytest.raises(ValueError, match="fit.params='weights'"):
    laws.read_runs(path, params="weights")
