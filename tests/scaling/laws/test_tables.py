"""Reading runs: any table, conditions on its rows, and every value that cannot be used by name."""

import ast
import json

import numpy as np
import pytest
from synthetic import TRUTH, build

from scaling import main
from scaling.laws import chinchilla, sensitivity
from scaling.laws.tables import conditions, read, runs
from scaling.report import document, sweep_results
from scaling.sweep import fit_files
from train.system import files

N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(3e4, 5e5, 4), np.geomspace(2e5, 3e6, 4)))
LOSS = chinchilla.loss(TRUTH, N, D)


def write(path, rows):
  """Writes rows in the format that the suffix names."""
  if path.suffix == ".jsonl":
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  elif path.suffix == ".parquet":
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  else:
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    between = "\t" if path.suffix == ".tsv" else ","
    path.write_text("\n".join(between.join(map(str, line)) for line in lines))
  return path


def rows(**columns):
  table = {"params": N, "tokens": D, "val loss": LOSS} | columns
  return [
    dict(zip(table, values, strict=True))
    for values in zip(*(np.asarray(v).tolist() for v in table.values()), strict=True)
  ]


NAMES = "N=params,D=tokens,loss=val loss"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_runs(tmp_path, suffix):
  path = write(tmp_path / f"runs.{suffix}", rows())
  found, wanted = read.read_runs(path, NAMES), runs.make_runs(N, D, LOSS)
  for name in ("N", "D", "C", "loss"):
    np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
  assert runs.input_hash(found) == runs.input_hash(wanted)
  assert found.flops == "6nd"


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("value", ["nan", "inf", "0", "-2", None])
def test_bad_values_are_named_by_row(tmp_path, suffix, value):
  table = rows()
  table[4]["tokens"] = float(value) if value else None
  path = write(tmp_path / f"runs.{suffix}", table)
  place = {"csv": "line 6", "jsonl": "line 5", "parquet": "row 5"}[suffix]
  with pytest.raises(ValueError, match=f"{place}, column tokens: .*--where='D > 0") as error:
    read.read_runs(path, NAMES)
  assert "\n" not in str(error.value)
  kept = read.read_runs(path, NAMES, where=["D > 0 and D < 1e99"])  # as the message says
  assert len(kept) == 15
  assert kept.excluded[0][1] == "where D > 0 and D < 1e99"


def test_conditions_choose_runs_and_are_recorded(tmp_path):
  steps = np.arange(16)
  path = write(tmp_path / "runs.csv", rows(steps=steps, name=[f"r{i}" for i in steps]))
  names = NAMES + ",id=name"
  found = read.read_runs(path, names, where=["D/N > 3", "steps != 9"], exclude=["loss > 4.5"])
  wanted = (D / N > 3) & (steps != 9) & ~(LOSS > 4.5)
  assert set(found.ids) == {f"r{i}" for i in steps[wanted]}
  assert 0 < wanted.sum() < 15
  reasons = dict(found.excluded)
  assert set(reasons) == {f"r{i}" for i in steps[~wanted]}
  assert reasons["r9"] == "where steps != 9"
  assert all(reasons[f"r{i}"] == "where D/N > 3" for i in steps[D / N <= 3])
  assert found.filters == ("where D/N > 3", "where steps != 9", "exclude loss > 4.5")


CASES = [
  ("x < 2", [1, 1, 0, 0, 0]),
  ("not x < 2", [0, 0, 1, 1, 1]),
  ("1 < x <= 3", [0, 0, 1, 1, 0]),
  ("x**2 - 4*x + 3 == 0 or y > 9", [0, 1, 0, 1, 0]),
  ("x > 0 and (y < -1 or x/y > 1e3)", [0, 0, 0, 1, 1]),
  ("-x + +y != 2e0", [1, 1, 1, 1, 1]),
  ("3 > 2", [1, 1, 1, 1, 1]),
]


@pytest.mark.parametrize(("text", "wanted"), CASES)
def test_expressions_mean_what_python_means(text, wanted):
  columns = {"x": np.arange(5.0), "y": np.array([1, np.nan, 1, 0.0, -2])}
  found = conditions.evaluate(text, columns)
  assert found.tolist() == [bool(w) for w in wanted]
  names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
  assert conditions.names(text) == sorted(names)


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("__import__('os').system('touch pwned')", "is not a condition"),
    ("x.__class__ == 1", "neither a number nor a column"),
    ("[y for y in x] == 1", "neither a number nor a column"),
    ("x[0] > 1", "neither a number nor a column"),
    ("len(x) > 1", "neither a number nor a column"),
    ("x == 'a'", "x is a number, but 'a' is text"),
    ("x > True", "x is a number, but True is True or False"),
    ("'a' < 'b'", "'a' is text: compare it by == or !="),
    ("x + 'a' > 1", "'a' is text, not a number"),
    ("x < 1" + "0" * 900, "a number that is too large"),
    ("(x > 1) > 0", "neither a number nor a column"),
    ("(lambda: 1)() == 1", "neither a number nor a column"),
    ("x // 2 == 1", "neither a number nor a column"),
    ("x := 1", "not an expression"),
    ("x > 1 if x else 0", "is not a condition"),
    ("x + 1", "is not a condition"),
    ("x is 1", "is not a condition"),
    ("x >", "not an expression"),
    ("", "not an expression"),
    ("(" * 300 + "x > 1" + ")" * 300, "not an expression"),
    ("z > 1", "no column 'z'"),
    ("x < " + 900 * "9", "a number that is too large, beyond 1e308"),
  ],
)
def test_nothing_else_is_understood_and_nothing_is_run(tmp_path, monkeypatch, text, said):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=said) as error:
    conditions.evaluate(text, {"x": np.ones(2)})
  assert "\n" not in str(error.value)
  assert not list(tmp_path.iterdir())


def test_powers_do_not_hang():
  assert not conditions.evaluate("10**10**10**10 < 1", {"x": np.ones(2)}).any()


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    ({"where": ["D/N"]}, "--where='D/N': 'D / N' is not a condition"),
    ({"exclude": ["import os"]}, "--exclude='import os': not an expression"),
    ({"where": ["speed > 1"]}, "there is no column 'speed', but"),
    ({"where": ["family > 1"]}, "--where='family > 1': family is text, but 1 is a number"),
    ({"columns": "N=params,D=tokens,loss=val loss,U=unique"}, "no column 'unique' for U"),
  ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, arguments, said):
  path = write(tmp_path / "runs.csv", rows(family=["a"] * 16))
  with pytest.raises(ValueError, match=said.replace("(", r"\(").replace("+", r"\+")) as error:
    read.read_runs(path, **({"columns": NAMES} | arguments))
  assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("N,D,N,loss\n1e5,1e6,2e5,3\n", "2 columns are named 'N'; rename"),
    ("C,D,loss\n1e12,0,3\n", "line 2, column D: '0' is not a positive"),
    ("N,D,loss\n1e200,1e200,3\n", "line 2, column N: '1e200' is not a positive finite"),
    ("N,D,loss\n", "no row in it"),
    ("N,D,loss,cell,kind,status\n1e5,1e6,3,a,probe,ok\n", "no row of kind 'fit'"),
    ("N,D,loss\n1e300,1e9,3\n", "line 2, column N: '1e300' is not a positive"),
  ],
)
def test_tables_that_cannot_be_read_are_one_line(tmp_path, text, said):
  path = tmp_path / "runs.csv"
  path.write_text(text)
  with pytest.raises(ValueError, match=said) as error:
    read.read_runs(path)
  assert "\n" not in str(error.value)


def test_semicolons_part_columns_too(tmp_path):
  path = write(tmp_path / "runs.csv", rows())
  path.write_text(path.read_text().replace(",", ";"))
  np.testing.assert_array_equal(read.read_runs(path, NAMES).loss, runs.make_runs(N, D, LOSS).loss)


def test_a_condition_that_leaves_nothing_is_named(tmp_path):
  path = write(tmp_path / "runs.csv", rows())
  with pytest.raises(ValueError, match="0 runs at .* left out were 16 by 'where D/N > 1e9'"):
    fit_files.write_fit(tmp_path / "fit", Chosen, str(path), NAMES, ["D/N > 1e9"])


def test_a_sweep_fitted_elsewhere_by_another_count_is_reported_as_it_was_fitted(
  sweep, tmp_path, monkeypatch
):
  total = type("Total", (Chosen,), {"params": "total", "bootstraps": 100})
  law = fit_files.write_fit(tmp_path, total, str(sweep))
  found = sweep_results.read(tmp_path)
  np.testing.assert_array_equal(sorted(sweep_results.column(found.cells, "N")), sorted(law.runs.N))
  said = document.terminal(tmp_path)
  assert f"{len(law.runs)} runs, 1 left out" in said
  assert f"alpha = {law.params['alpha']:.4f} [" in said
  record = json.loads((tmp_path / "fit.json").read_text())
  record = {name: x for name, x in record.items() if name not in ("digests", "hash")}
  record["warnings"] = ["mind the gap"]
  files.write_json(tmp_path / "fit.json", files.with_digests(record))
  assert "\nWarning: mind the gap\n" in document.terminal(tmp_path)
  monkeypatch.setattr(fit_files, "MAX_DRAWN", 10)  # too many to keep: nor is the older copy
  fit_files.write_fit(tmp_path, total, str(sweep))
  assert not (tmp_path / "runs.csv").exists()


def test_files_that_are_not_what_they_say(tmp_path):
  for name, text, said in (
    ("a.jsonl", '{"N": 1}\nnot json', "a.jsonl, line 2: not JSON"),
    ("b.jsonl", "[1, 2]", "b.jsonl, line 1: not a JSON object"),
    ("c.parquet", "N,D,loss", "c.parquet: cannot be read as Parquet"),
    ("d.csv", "", "no column 'loss'"),
  ):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
      read.read_runs(tmp_path / name, "N=N,D=N,loss=N" if "jsonl" in name else "")
  with pytest.raises(ValueError, match=r"a folder without cells.csv; name a sweep's folder"):
    read.read_runs(tmp_path)


def test_further_variables_are_read_and_follow_their_runs(tmp_path):
  path = write(tmp_path / "runs.csv", rows(unique=D / 7, old=(N > 1e5) * 1))
  found = read.read_runs(path, NAMES + ",U=unique,pretrained=old", exclude=["U < 4e4"])
  np.testing.assert_allclose(found.extra["U"], found.D / 7)
  np.testing.assert_array_equal(read.read_runs(path, NAMES).extra, {})
  some = found.subset(np.array([3, 0]))
  np.testing.assert_allclose(some.extra["U"], some.D / 7)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
  return build(tmp_path_factory.mktemp("sweep"))


def test_a_sweeps_folder_is_its_cells(sweep, tmp_path):
  one, other = read.read_runs(sweep), read.read_runs(sweep / "cells.csv")
  assert runs.input_hash(one) == runs.input_hash(other)
  assert one.excluded == (("fit-s5-blown-up", "status diverged"),)
  with pytest.raises(ValueError, match="name one of .*sweep"):
    read.read_runs(sweep.parent)


class Chosen:
  params, flops, loss, delta, target_tokens_per_param = "body_head", "exact", "", 1e-3, 20.0
  reach, bootstraps, level, seed, resampling = 4.0, 200, 0.9, 0, "pairs"
  form, response, E = "chinchilla", "log", ""


def test_each_choice_is_made_otherwise_once(sweep):
  """By hand: another count of N gives the fit to that column, 6ND the fit to 6 N D."""
  found = sensitivity.vary_choices(sweep, Chosen, where=["D/N > 2"])
  by_name = {(row["choice"], row["value"]): row for row in found}
  assert list(by_name) == [
    ("as chosen", ""), ("N counts", "body"), ("N counts", "total"), ("exclusions", "none"),
    ("delta", "1.345 SD"), ("delta", "1e-2"), ("delta", "LAD"), ("delta", "MSE"),
  ]  # fmt: skip
  first = found[0]
  chosen = read.read_runs(sweep, where=["D/N > 2"])
  assert first["n_runs"] == len(chosen) < by_name["exclusions", "none"]["n_runs"]
  total = read.read_runs(sweep, params="total", where=["D/N > 2"])
  own = sensitivity._summary(total, Chosen, Chosen.delta, Chosen.reach)
  assert own.items() <= by_name["N counts", "total"].items()
  assert by_name["N counts", "body"]["a"] > first["a"] + 0.01  # a head weighs on small models
  assert all(row["a"] + row["b"] == pytest.approx(1) for row in found)


def test_a_choice_without_a_law_says_why(sweep, tmp_path):
  table = (sweep / "cells.csv").read_text().splitlines()
  column = table[0].split(",").index("params_body")
  lines = [line.split(",") for line in table]
  for line in lines[1:]:
    line[column] = "0"
  (tmp_path / "cells.csv").write_text("\n".join(map(",".join, lines)))
  found = {row["value"]: row for row in sensitivity.vary_choices(tmp_path / "cells.csv", Chosen)}
  assert "column params_body: '0' is not a positive finite number" in found["body"]["reason"]
  assert "a" in found["total"]


def test_someones_runs_get_a_record_and_a_table_of_their_own(sweep, tmp_path):
  path = write(tmp_path / "runs.jsonl", rows(steps=np.arange(16)))
  fit_files.write_fit(tmp_path / "fit", Chosen, str(path), NAMES, ["steps != 3"], ["loss > 5"])
  record = json.loads((tmp_path / "fit" / "fit.json").read_text())
  assert record["reading"] == {"columns": NAMES, "where": ["steps != 3"], "exclude": ["loss > 5"]}
  assert {"id": "line 4", "reason": "where steps != 3"} in record["excluded"]
  again = read.read_runs(tmp_path / "fit" / "runs.csv")
  assert runs.input_hash(again) == record["input_hash"]
  with pytest.raises(ValueError, match="holds a sweep; fit --runs"):
    fit_files.write_fit(sweep, Chosen, str(path), NAMES)


def test_the_command_shows_choices_and_reasons(sweep, tmp_path, capsys):
  arguments = [f"--runs={sweep}", f"--workdir={tmp_path}", "--exclude=N < 2e4"]
  code = main.main(["fit", *arguments, "--where=D/N > 2", "--config.fit.bootstraps=200"])
  output = capsys.readouterr()
  assert code == 0, output.err
  assert "exclude N < 2e4" in output.out
  assert len(output.out.splitlines()) < 50
  code = main.main(["fit", *arguments, "--where=D/N"])
  assert code == 2
  assert "is not a condition" in capsys.readouterr().err


def test_spaces_beside_commas_do_not_count(tmp_path):
  path = tmp_path / "runs.csv"
  path.write_text("name, N , D, loss\na, 1e6, 2e7, 3.5\nb, 2e6, 4e7, 3.1\n")
  found = read.read_runs(path, "id=name")
  assert found.ids == ("a", "b")
  assert found.D.tolist() == [2e7, 4e7]


@pytest.mark.parametrize(
  ("header", "rows", "column", "value"),
  [
    ("N,D,loss", ((0.07, 1.4), (1.4, 28)), "N", "0.07"),
    ("N,D,loss", ((70, 0.4), (1400, 28)), "D", "0.4"),
    ("N,C,loss", ((1e8, 1e6), (1e9, 1e8)), "D", "0.001667"),
  ],
)
def test_counts_in_billions_are_refused(tmp_path, header, rows, column, value):
  path = tmp_path / "runs.csv"
  path.write_text(f"{header}\n" + "".join(f"{a},{b},3\n" for a, b in rows))
  with pytest.raises(ValueError, match=f"run line 2, column {column}: {column} is {value}: in b"):
    read.read_runs(path)
