"""What was altered in a sweep's folder is found and named, by `verify` and by `report`."""

import contextlib
import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import synthetic

from configs import base
from configs.errors import DataError, UserError
from scaling import main
from scaling.claims import integrity, prediction_json, seal, verdict
from scaling.commands import runs
from scaling.report import document, sweep_results
from scaling.sweep import costs, fit_files, plan, store
from train import record
from train.system import files


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
  """A sweep that has its verdict, of runs that are written and not trained."""
  workdir = tmp_path_factory.mktemp("judged")
  c = base.get_config()
  c.data.tokenizer = "bpe:512"
  c.sweep.sizes, c.sweep.budgets = (2, 4, 6, 8), (5e10, 1e11, 2e11, 4e11)
  c.fit.bootstraps = 100
  cells = plan.design_cells(c, 512)
  write_runs(workdir, cells)
  head = {"config": record.plain(c)}
  store.write_sweep(workdir, head, cells)
  store.write_table(workdir, cells, "clm")
  law = fit_files.write_fit(workdir, c.fit)
  sealed, heldout = seal.seal(c, workdir, law, cells, (512, 4_000_000))
  write_runs(workdir, heldout)
  store.write_sweep(workdir, head, [*cells, *heldout])
  store.write_table(workdir, [*cells, *heldout], "clm")
  verdict.judge(c, workdir, law, sealed, heldout)
  document.draw(workdir)
  return workdir


def write_runs(workdir, cells):
  synthetic.write_runs(workdir, cells)
  for cell in cells:
    folder = store.folder(workdir, cell)
    run = json.loads((folder / "run.json").read_text())
    files.write_json(folder / "run.json", files.with_digests(run))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 9, "eval_loss": run["loss"]}))


@pytest.fixture
def workdir(judged, tmp_path):
  return shutil.copytree(judged, tmp_path / "sweep")


def errors(workdir):
  """What `isoflop verify` and `isoflop report` say of the folder."""
  said = []
  for verb in ("verify", "report"):
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
      assert main.main([verb, f"--workdir={workdir}"]) == main.USAGE
    said.append(text.getvalue().strip())
  assert said[0] == said[1]
  assert "\n" not in said[0]
  return said[0]


def flip(path, pattern):
  """Changes the last digit of the group that a pattern matches."""
  text = path.read_text()
  end = re.search(pattern, text, re.S).end(1) - 1
  assert text[end].isdigit()
  path.write_text(text[:end] + str((int(text[end]) + 5) % 10) + text[end + 1 :])


def path_of(workdir, kind):
  return sorted((workdir / "cells").glob(f"{kind}_*/run.json"))[1]


def test_an_untouched_sweep_is_whole(workdir):
  integrity.check(workdir)
  assert main.main(["report", f"--workdir={workdir}"]) == 0


@pytest.mark.parametrize(
  ("pattern", "named"),
  [
    (r'"N_opt".*?"predicted": ([\d.]+)', r"claims\[\d\].predicted was altered \(a claim on N_opt"),
    (
      r'"predicted": ([\d.]+)',
      r"claims\[0\].predicted was altered .* on loss, tested by \['heldout_s",
    ),
    (r'"interval": \[\s*([\d.]+)', r"claims\[0\].interval was altered"),
    (r'"version": (\d)', "version was altered"),
    (r'"times": ([\d.]+)', r"budgets\[0\].times was altered"),
    (r'"budget": ([\d.]+)', r"claims\[0\].at was altered"),
    (r'"runs": .*?"loss": ([\d.]+)', r"runs\[0\].loss was altered"),
    (r'"hash": "\w*?(\d)[a-f]*"', "hash was altered"),
  ],
)
def test_a_digit_of_the_seal(workdir, pattern, named):
  flip(workdir / "prediction.json", pattern)
  said = errors(workdir)
  assert re.search(f"prediction.json: {named}", said)
  assert "use another workdir" in said
  assert "remove" not in said


@pytest.mark.parametrize(
  ("remove", "named"),
  [
    (lambda sealed: sealed.pop("level"), "level is missing"),
    (lambda sealed: sealed["claims"][1].pop("interval"), r"claims\[1\].interval is missing"),
    (lambda sealed: sealed["claims"].pop(), r"claims\[\d\].what is missing"),
    (lambda sealed: sealed.pop("hash"), "hash is missing"),
    (lambda sealed: [sealed.pop("hash"), sealed.pop("digests")], "digests is missing"),
  ],
)
def test_a_part_of_the_seal_that_is_missing(workdir, remove, named):
  path = workdir / "prediction.json"
  sealed = json.loads(path.read_text())
  remove(sealed)
  path.write_text(json.dumps(sealed))
  assert re.search(f"prediction.json: {named}.*use another workdir", errors(workdir))


@pytest.mark.parametrize("name", ["prediction.json", "verification.json", "fit.json", "run.json"])
def test_half_a_file(workdir, name):
  path = path_of(workdir, "fit") if name == "run.json" else workdir / name
  path.write_text(path.read_text()[: path.stat().st_size // 2])
  said = errors(workdir)
  assert f"{path}: not JSON" in said
  assert ("use another workdir" if name == "prediction.json" else "remove") in said


@pytest.mark.parametrize("kind", ["fit", "heldout"])
def test_the_loss_of_a_run(workdir, kind):
  path = path_of(workdir, kind)
  loss = json.loads(path.read_text())["loss"]
  flip(path, r'"loss": ([\d.]+)')
  assert f"{path}: loss was altered since it was written" in (said := errors(workdir))
  assert f"its metrics.jsonl says that its loss was {loss!r}" in said
  run = json.loads(path.read_text())
  del run["loss"]
  path.write_text(json.dumps(run))
  assert f"{path}: loss is missing" in errors(workdir)


@pytest.mark.parametrize("column", ["loss", "N", "D", "C", "lr"])
@pytest.mark.parametrize("kind", ["fit", "heldout"])
def test_a_digit_of_the_table(workdir, kind, column):
  path = workdir / "cells.csv"
  rows = list(csv.reader(path.open()))
  row = next(row for row in rows if row[0].startswith(kind))
  i = rows[0].index(column)
  digit = next(k for k, x in enumerate(row[i]) if x.isdigit() and x != "0")
  row[i] = row[i][:digit] + str(int(row[i][digit]) % 9 + 1) + row[i][digit + 1 :]
  path.write_text("\n".join(map(",".join, rows)))
  assert f"cells.csv: row {row[0]}, column {column}: {row[i]!r}, but its run.json" in errors(
    workdir
  )


def test_half_a_table(workdir):
  path = workdir / "cells.csv"
  whole = path.read_text().splitlines()
  path.write_text("\n".join(whole)[:700])
  assert re.search(r"cells.csv: line \d+ is cut short", errors(workdir))
  path.write_text("\n".join(line.partition(",")[2] for line in whole))
  assert "cells.csv: no column cell" in errors(workdir)


def test_runs_that_came_or_went_since_the_seal(workdir):
  path = path_of(workdir, "fit")
  table = workdir / "cells.csv"
  lines = [line for line in table.read_text().splitlines() if path.parent.name not in line]
  table.write_text("\n".join(lines))
  assert f"({path.parent.name} is not among them any more)" in errors(workdir)


def test_a_table_without_the_records_of_its_runs_is_held_to_the_seal(workdir):
  name = path_of(workdir, "fit").parent.name
  shutil.rmtree(workdir / "cells")
  flip(workdir / "cells.csv", rf"{name}.*?,(2\.\d+|3\.\d+|1\.\d+),0.004")
  assert re.search(rf"\(loss of {name} was [\d.]+, is [\d.]+\)", errors(workdir))


def test_the_verdict_and_the_fit(workdir):
  flip(workdir / "verification.json", r'"trained_loss": ([\d.]+)')
  assert "].trained_loss was altered" in errors(workdir)
  (workdir / "verification.json").unlink()
  flip(workdir / "fit.json", r'"E": ([\d.]+)')
  assert "fit.json: params was altered" in errors(workdir)


def test_what_earlier_versions_wrote(workdir):
  """A seal of version 2 is read, and one of 1 refused."""
  sealed = prediction_json.read(workdir)
  new = json.loads((workdir / "prediction.json").read_text())
  [budget] = new.pop("budgets")
  for claim in new["claims"]:
    claim["at"].pop("budget", None)
  old = new | {"version": 2, "C": budget["C"], "passed_over": budget["passed_over"]}
  files.write_json(workdir / "prediction.json", files.with_digests(old))
  read = prediction_json.read(workdir)
  assert read["cells"] == sealed["cells"]
  assert read["budgets"][0]["N_interval"] == sealed["budgets"][0]["N_interval"]
  old = {key: new[key] for key in new if key not in ("digests", "hash")} | {"version": 1}
  (workdir / "prediction.json").write_text(json.dumps(old))
  with pytest.raises(
    DataError, match="is a seal of version 1, and this isoflop reads 2 and 3; use"
  ):
    prediction_json.read(workdir)


def said_of(workdir, *verbs):
  """What a command that refuses the folder says, in one line."""
  text = io.StringIO()
  with contextlib.redirect_stderr(text):
    assert main.main([*verbs]) == main.USAGE
  assert text.getvalue().count("\n") == 1
  return text.getvalue()


def test_an_altered_run_is_refused_wherever_runs_are_read(workdir, tmp_path):
  path = path_of(workdir, "fit")
  flip(path, r'"loss": ([\d.]+)')
  fit = ("fit", "--config.fit.bootstraps=100", f"--workdir={tmp_path / 'fit'}")
  for verbs in (
    ("runs", f"--workdir={workdir}"),
    ("fit", f"--workdir={workdir}"),
    ("plan", "--next", f"--workdir={workdir}"),
    (*fit, f"--runs={workdir}"),
    (*fit, f"--runs={workdir / 'cells.csv'}"),
  ):
    assert f"{path}: loss was altered since it was written" in said_of(workdir, *verbs)


def test_a_run_without_digests_is_held_to_its_metrics(workdir):
  path = path_of(workdir, "fit")
  run = json.loads(path.read_text())
  old = {name: run[name] for name in run if name not in ("digests", "hash")}
  files.write_json(path, old | {"loss": run["loss"] - 0.1})
  said = errors(workdir)
  assert f"{path}: loss is {run['loss'] - 0.1!r} (its metrics.jsonl says" in said
  assert repr(run["loss"]) in said


@pytest.mark.parametrize(
  ("name", "keys"),
  [
    ("sweep.json", ("cells", 1, "width")),
    ("sweep.json", ("config", "fit")),
    ("run.json", ("loss",)),
    ("run.json", ("status",)),
    ("fit.json", ("params",)),
  ],
)
def test_a_key_that_was_renamed_is_named_with_its_file(workdir, name, keys):
  """Digests name it; where there are none, it is named when it is read."""
  path = path_of(workdir, "fit") if name == "run.json" else workdir / name
  for kept in (("digests", "hash"), ()):
    record = json.loads(path.read_text())
    holder = record
    for key in keys[:-1]:
      holder = holder[key]
    holder["other"] = holder.pop(keys[-1])
    whole = {k: v for k, v in record.items() if k in kept or k not in ("digests", "hash")}
    path.write_text(json.dumps(whole))
    with pytest.raises(DataError, match=rf"{path}: .*(missing|altered)"):
      document.terminal(workdir)  # reads all of them
    files.write_json(path, json.loads(path.read_text()))
    path.write_text(path.read_text().replace('"other"', f'"{keys[-1]}"'))


def test_a_field_of_the_table_that_is_no_number(workdir):
  shutil.rmtree(workdir / "cells")  # with which it would be compared
  path = workdir / "cells.csv"
  flip(path, r",(0)\.00\d+")
  path.write_text(path.read_text().replace(",5.00", ",o.00", 1))
  with pytest.raises(DataError, match=rf"{path}: line \d+, column lr: 'o.00\d+' is not a number"):
    sweep_results.read(workdir)


def test_a_damaged_account_of_the_time_blocks_no_report(workdir):
  path = workdir / "costs.json"
  for text in ("{", '{"parts": {"train": "x"}, "digests": {}, "hash": ""}', "[1]"):
    path.write_text(text)
    document.write(workdir, redraw=False)
    assert f"Not shown: {path}: " in (workdir / "report.md").read_text()
    clock = costs.SweepClock(workdir)
    clock("fit")
    assert files.read_record(path)["wall"]


def test_nothing_is_sealed_after_the_fact(workdir):
  (workdir / "prediction.json").unlink()
  with pytest.raises(UserError, match="prediction.json: missing, and heldout_s.* is trained"):
    seal.seal(base.get_config(), workdir, None, [], (512, 4_000_000))


def damages(folder, seed):
  """Flips a bit of a file, cuts it short, or renames a key, each by chance; returns the file."""
  rng = np.random.default_rng(seed)
  names = ("run.json", "sweep.json", "fit.json", "prediction.json", "verification.json")
  paths = sorted(path for path in folder.rglob("*") if path.name in (*names, "cells.csv"))
  path = paths[rng.integers(len(paths))]
  content, kind = bytearray(path.read_bytes()), rng.integers(3)
  if kind == 0:
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  elif kind == 1:
    content = content[: rng.integers(len(content))]
  else:
    keys = re.findall(rb"\w+(?=\"?[:,])", content)
    content = content.replace(keys[rng.integers(len(keys))], b"other", 1)
  path.write_bytes(content)
  return path


def damaged_files_are_named(judged, tmp_path, seeds):
  """A damaged file is named in one line, or what is said of the sweep is as it was."""
  whole = document.terminal(judged)
  named = 0
  for seed in seeds:
    folder = shutil.copytree(judged, tmp_path / str(seed), ignore=shutil.ignore_patterns("figures"))
    path = damages(folder, seed)
    said = ""
    try:
      text = document.terminal(folder)
      runs.runs_table(folder)
    except UserError as error:
      said = str(error)
    assert f"{folder}/" in said if said else text == whole, (seed, path, said)
    assert not said or path.name in said, (seed, path, said)
    named += bool(said)
    shutil.rmtree(folder)
  return named


def test_a_damaged_file_is_named_or_changes_nothing(judged, tmp_path):
  assert damaged_files_are_named(judged, tmp_path, range(12)) > 6
