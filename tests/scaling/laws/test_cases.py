"""Tables on which the tool was seen to fail: each is read, refused with a remedy, or warned of."""

import dataclasses
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic import build

from configs import base
from scaling import laws, main

CASES = Path(__file__).parent / "cases"
COUNTS = "4 fields for 3 columns; quote a field that holds ',', and write decimals with a point"


def read(name, **given):
  return laws.read_runs(CASES / name, **given)


def warned(runs):
  options = base.get_config().fit
  options.bootstraps = 100
  return laws.to_json(laws.fit_runs(runs, options))["warnings"]


def table(tmp_path, text, name="runs.csv"):
  path = tmp_path / name
  path.write_text(text)
  return path


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("commas.csv", f"line 2: {COUNTS}"),
    ("comma_row.csv", f"line 2: {COUNTS}"),
    ("short_row.csv", f"line 17: {COUNTS}"),
    ("long_row.csv", "line 17: 2 fields for 3 columns"),
    ("millions.csv", "column D: D is 0.8505: in billions?"),
    ("thousands_separators.csv", "line 2, column N: '12,247,449' .* write it without separators"),
  ],
)
def test_what_cannot_be_read_is_refused_with_a_remedy(name, said):
  with pytest.raises(ValueError, match=said) as error:
    read(name)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["pipe.csv", "utf16.csv", "json_array.json"])
def test_other_formats_give_the_same_runs(name):
  found, wanted = read(name), read("boolean_column.csv")
  assert laws.input_hash(found) == laws.input_hash(wanted)
  assert len(found) == 15


@pytest.mark.parametrize(
  ("name", "said"),
  [
    ("clean.csv", ()),
    ("billions.csv", ("D/N is 8e-05 .* D in millions. Multiply by 1e6",)),
    ("pfs.csv", (r"C/\(N D\) is 6.9e-17 .* C in teraflop/s-days. Multiply by 8.64e16",)),
    ("groups.csv", (r"Repeats .* scatter by 34% .* column dataset .*--where='dataset == \"B\"'",)),
    (
      "perplexities.csv",
      (
        "median loss is 19.31, .* perplexities",
        "3 runs were left out: .* bend",
        "bend away .* by 2",
      ),
    ),
  ],
)
def test_what_is_doubtful_is_warned_of(name, said):
  found = warned(read(name))
  doubts = [text for text in found if "resample" not in text]
  assert len(doubts) == len(said), found
  for pattern, text in zip(said, doubts, strict=True):
    assert re.search(pattern, text), text


def test_conditions_on_text_and_booleans():
  groups, wanted = read("groups.csv", where=["dataset == 'A'"]), read("clean.csv")
  assert laws.input_hash(groups) == laws.input_hash(wanted)
  assert not warned(groups)
  assert len(read("boolean_column.csv", where=["ok == True"])) == 11
  assert len(read("boolean_column.csv", exclude=["ok == True"])) == 4


def test_a_column_that_is_no_plain_word_stands_in_backquotes(tmp_path):
  path = table(tmp_path, "N,D,loss,data set,ok\n1e6,2e7,3,A,x\n1e6,4e7,2.9,B,y\n")
  assert laws.read_runs(path, where=["`data set` == 'A' and D < 3e7"]).ids == ("line 2",)
  with pytest.raises(ValueError, match="'data set' is text, but data set is a number"):
    laws.read_runs(
      table(tmp_path, "N,D,loss,data set\n1e6,2e7,3,1\n"), where=["'data set' == `data set`"]
    )


def test_true_is_no_number(tmp_path):
  path = table(tmp_path, '{"N": 1e6, "D": 2e7, "loss": true}\n', "runs.jsonl")
  with pytest.raises(ValueError, match="line 1, column loss: True is not a positive finite"):
    laws.read_runs(path)


@pytest.mark.parametrize("packed", ["gz", "zst"])
@pytest.mark.parametrize("name", ["clean.csv", "json_array.json"])
def test_compressed_files_are_read(tmp_path, name, packed):
  path = tmp_path / f"{name}.{packed}"
  if packed == "gz":
    path.write_bytes(gzip.compress((CASES / name).read_bytes()))
  else:
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
      file.write((CASES / name).read_bytes())
  assert laws.input_hash(laws.read_runs(path)) == laws.input_hash(read(name))
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(ValueError, match="cannot be read as (CSV|JSON)"):
    laws.read_runs(path)


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ('{"N": 1}\n{"N": 2}', "not JSON .* is a .jsonl"),
    ('{"N": 1}', "not a JSON array"),
    ("[1]", "row 1: not a JSON object"),
  ],
)
def test_json_that_is_no_array_of_objects(tmp_path, text, said):
  with pytest.raises(ValueError, match=said):
    laws.read_runs(table(tmp_path, text, "runs.json"))


def changed(tmp_path, **factors):
  runs = read("clean.csv")
  columns = {name: getattr(runs, name) * factors.get(name, 1) for name in ("N", "D", "C", "loss")}
  if "C" not in factors:
    del columns["C"]
  rows = zip(*(values.tolist() for values in columns.values()), strict=True)
  lines = [",".join(columns), *(",".join(map(repr, row)) for row in rows)]
  return laws.read_runs(table(tmp_path, "\n".join(lines)))


@pytest.mark.parametrize(
  ("factors", "said"),
  [
    ({"N": 100, "D": 100, "C": 1e4 / 8.64e19}, "C in petaflop/s-days. Multiply by 8.64e19"),
    ({"C": 1e-5}, "C/.N D. is 6e-05 .* no unit explains it"),
    ({"N": 1e-6, "C": 1.0}, r"N is \S+ .* N in millions. Multiply by 1e6"),
    ({"D": 1e-6, "C": 1.0}, r"D/N is .* D in millions. Multiply by 1e6"),
    ({"N": 1e-3, "D": 1e-3, "C": 1.0}, r"6e\+06 .* N and D in thousands. Multiply by 1000"),
  ],
)
def test_the_unit_that_would_fit_is_named(tmp_path, factors, said):
  assert re.search(said, warned(changed(tmp_path, **factors))[0])


def test_kind_and_status_of_someones_table_leave_no_run_out(tmp_path):
  lines = (CASES / "clean.csv").read_text().splitlines()
  text = "\n".join([f"{lines[0]},kind,status", *(f"{line},dense,ok" for line in lines[1:])])
  found = laws.read_runs(table(tmp_path, text))
  assert len(found) == 24
  assert not found.excluded


def test_groups_without_repeats_are_found_by_their_column(tmp_path):
  lines = (CASES / "groups.csv").read_text().splitlines()
  kept = [lines[0], *lines[1:25:2], *[line for i, line in enumerate(lines[25:]) if i % 2]]
  found = warned(laws.read_runs(table(tmp_path, "\n".join(kept).replace("dataset", "data set"))))
  assert any("separates them: fit each, --by='data set', or one" in text for text in found), found
  assert any("--where='`data set` == " in text for text in found)


def test_a_condition_on_the_loss_truncates():
  found = warned(read("clean.csv", where=["loss < 3.5"]))
  assert any("'where loss < 3.5' leaves runs out" in text for text in found), found
  assert not warned(read("clean.csv", where=["loss < 9 and loss > 0"]))


def test_a_column_given_twice_is_refused():
  with pytest.raises(ValueError, match="columns='N=D,N=N': N is given twice"):
    read("clean.csv", columns="N=D,N=N")


def test_a_sweep_is_fitted_with_its_own_options_from_wherever(tmp_path):
  sweep = build(tmp_path / "sweep")
  head = json.loads((sweep / "sweep.json").read_text())
  head["cells"] = []  # read from cells.csv
  head["config"]["fit"] |= {"delta": 0.01, "bootstraps": 100}
  (sweep / "sweep.json").write_text(json.dumps(head))
  ways = {
    sweep: [],
    tmp_path / "a": [f"--runs={sweep}"],
    tmp_path / "b": [f"--runs={sweep}/cells.csv"],
  }
  for folder, source in ways.items():
    assert main.main(["fit", *source, f"--workdir={folder}"]) == 0
  records = [json.loads((folder / "fit.json").read_text()) for folder in ways]
  assert [(r["delta"], r["params"]) for r in records] == [(0.01, records[0]["params"])] * 3
  stored = np.load(sweep / "fit.npz")
  assert dict(zip(stored["names"], stored["values"], strict=True)) == records[0]["params"]
  assert stored["draws"].shape == (100, 5)
  np.testing.assert_allclose(stored["covariance"].diagonal(), stored["draws"].var(0, ddof=1))


def test_the_command_prints_a_warning_and_one_line_of_an_error(tmp_path, capsys):
  arguments = [f"--workdir={tmp_path}", "--config.fit.bootstraps=100"]
  assert main.main(["fit", f"--runs={CASES / 'groups.csv'}", *arguments]) == 2  # of two laws
  assert "Warning: Repeats of the same (N, D) scatter by 34% (SD)" in capsys.readouterr().out
  assert main.main(["fit", f"--runs={CASES / 'comma_row.csv'}", *arguments]) == 2
  assert COUNTS in capsys.readouterr().err


def test_a_table_is_fitted_without_jax(tmp_path):
  """Importing it would double the time of the command."""
  arguments = ["fit", f"--runs={CASES / 'clean.csv'}", f"--workdir={tmp_path}"]
  script = f"""
import sys
from scaling import main
assert main.main({[*arguments, "--config.fit.bootstraps=100"]}) == 0
print(*{{"jax", "flax", "scipy", "matplotlib"}} & sys.modules.keys(), file=sys.stderr)
"""
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
  assert not done.stderr.strip()


def test_a_key_that_the_first_row_lacks_is_missing_there(tmp_path):
  text = '{"N": 1e6, "D": 2e7, "loss": 3}\n{"N": 1e6, "D": 4e7, "loss": 2.9, "C": 3e14}'
  with pytest.raises(ValueError, match="line 1, column C: None is not a positive"):
    laws.read_runs(table(tmp_path, text, "runs.jsonl"))


def test_one_number_among_names_and_one_name_among_numbers(tmp_path):
  path = table(tmp_path, "N,D,loss,set,lr\n1e6,2e7,3,A,.1\n1e6,4e7,2.9,7,.2\n1e6,8e7,2.8,B,best\n")
  assert laws.read_runs(path, where=["set == 'A'"]).ids == ("line 2",)
  assert laws.read_runs(path, where=["set == '7'"]).ids == ("line 3",)
  assert laws.read_runs(path, where=["lr > .15"]).ids == ("line 3",)


def test_the_units_of_a_sweep_are_not_doubted():
  runs = read("billions.csv")
  assert "D/N is" in warned(runs)[0]
  assert not warned(dataclasses.replace(runs, params="body_head"))
