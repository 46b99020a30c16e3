"""The sweep as its user runs it: in processes, killed anywhere, started again."""

import json
import os
import random
import re
import signal
import subprocess
import time

import pytest
import tiny_sweep
import written
from tiny_sweep import table

from scaling.claims import prediction_json
from scaling.launch import child
from scaling.sweep import store

FLAGS = (
  "--config.train.checkpoint_every_seconds=0.2",
  "--config.sweep.seed_sizes=(0,1)",
  "--config.sweep.seed_budgets=(4e8,)",
  "--config.sweep.probe_tokens=16000",
)


def command(verb, workdir, *flags):
  return [*child.command("scaling.main"), verb, f"--workdir={workdir}", *flags]


def run(verb, workdir, *flags, **options):
  return subprocess.run(
    command(verb, workdir, *flags), capture_output=True, text=True, timeout=900, **options
  )


def start(workdir, flags):
  return subprocess.Popen(
    command("sweep", workdir, *flags), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
  )


def wait_for(process, path, pattern):
  """Waits until a process has written such a file."""
  while not list(path.glob(pattern)):
    if process.poll() is not None:
      pytest.fail(process.communicate()[1])
    time.sleep(0.05)


@pytest.fixture(scope="module")
def flags(cache, corpus):
  return [*tiny_sweep.flags(corpus, probe="0,"), *FLAGS]


@pytest.fixture(scope="module")
def calm(flags):
  """Flags of the same sweep, which seldom saves: most of its time went into that."""
  return [*flags, "--config.train.checkpoint_every_seconds=10"]


@pytest.fixture(scope="module")
def swept(calm, tmp_path_factory):
  """A sweep that nobody interrupted, in a folder where a user has a train.py and a model/."""
  workdir, folder = tmp_path_factory.mktemp("swept"), tmp_path_factory.mktemp("mine")
  (folder / "model").mkdir()
  for name in ("train.py", "model/__init__.py"):
    (folder / name).write_text("raise SystemExit('not that of the project')")
  return workdir, *finish(workdir, calm, cwd=folder, env=child.environment())


def finish(workdir, flags, **options):
  """Runs a sweep to its end; returns its table where nothing is sealed, and the end.

  So few runs of so few tokens determine no law. It is given the losses of a known one, and goes on
  to seal it, and to train what tests it.
  """
  done = run("sweep", workdir, *flags, **options)
  assert done.returncode == 2, done.stderr
  assert "undetermined" in done.stderr.splitlines()[-1]
  assert not (workdir / "prediction.json").exists()
  trained = table(workdir)
  written.give_losses(workdir)
  done = run("sweep", workdir, *flags, **options)
  assert done.returncode == 0, done.stderr
  return trained, done


def test_everything_is_there(swept):
  workdir, trained, done = swept
  for name in ("sweep.json", "fit.json", "prediction.json", "verification.json", "report.md"):
    assert (workdir / name).stat().st_size > 0
  assert (workdir / "report.html").read_text().lstrip().startswith("<!")
  for figure in ("training_curves", "isoflop_profiles", "contours", "predicted_vs_trained"):
    assert (workdir / "figures" / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    assert (workdir / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
  rows = table(workdir)
  assert tuple(rows[0]) == tuple(name for name in store.CELL_COLUMNS if name != "seconds")
  kinds = [row["kind"] for row in rows]
  assert {row["kind"] for row in trained} == {"probe", "fit"}
  assert kinds.count("fit") == 13
  assert kinds.count("heldout") == 3
  assert {row["status"] for row in rows} == {"done"}
  assert "13/13" not in done.stderr  # trunks are runs of their own
  assert "prediction" in done.stdout


def test_cells_add_up(swept):
  workdir, *_ = swept
  for row in table(workdir):
    groups = [int(row[f"params_{name}"]) for name in ("embedding", "head", "body")]
    assert sum(groups) == int(row["params_total"])
    assert int(row["N"]) == groups[1] + groups[2]
    assert float(row["C_6nd"]) == 6 * int(row["N"]) * int(row["D"])
    assert float(row["tokens_per_param"]) == pytest.approx(int(row["D"]) / int(row["N"]))
    run = json.loads((workdir / "cells" / row["cell"] / "run.json").read_text())
    assert run["loss"] == float(row["loss"])
    assert run["config_diff"]["model.width"] == int(row["width"])


def test_what_was_spent_is_what_was_trained(swept):
  """The steps in all metrics.jsonl, trunks included, cost exactly the sum of flops_spent."""
  workdir, *_ = swept
  trained = 0.0
  for path in workdir.glob("*/*/run.json"):
    run = json.loads(path.read_text())
    trained += (run["steps"] - run["first_step"]) * run["C"] / run["steps"]
  spent = sum(float(row["flops_spent"]) for row in table(workdir))
  assert spent == pytest.approx(trained, rel=1e-12)
  fit = [row for row in table(workdir) if row["kind"] == "fit"]
  assert sum(float(row["flops_spent"]) for row in fit) < 0.9 * sum(float(row["C"]) for row in fit)


def test_its_time_is_split_into_parts_that_add_up(swept):
  workdir, *_ = swept
  costs = json.loads((workdir / "costs.json").read_text())
  whole = sum(costs["parts"].values())
  assert whole == pytest.approx(sum(costs["wall"].values()))
  assert json.loads((workdir / "sweep.json").read_text())["seconds"] == round(whole, 1)
  assert 0.0 <= costs["parts"]["idle"] < costs["wall"]["run"]
  assert set(costs["wall"]) == {"start", "data", "preflight", "records", "run", "fit", "report"}
  assert min(costs["wall"].values()) > 0
  assert "Where the time went" in (workdir / "report.md").read_text()


def test_prediction_was_sealed_before_its_test(swept):
  workdir, *_ = swept
  sealed = prediction_json.read(workdir)
  modified = (workdir / "prediction.json").stat().st_mtime
  fitted = json.loads((workdir / "fit.json").read_text())
  assert sealed["input_hash"] == fitted["input_hash"]
  assert sealed["budgets"][0]["C"] == pytest.approx(3 * 2e9)
  for cell in sealed["cells"]:
    assert (workdir / "cells" / cell["cell"] / "metrics.jsonl").stat().st_mtime > modified
  verdict = json.loads((workdir / "verification.json").read_text())
  for cell in verdict["cells"]:
    assert cell["inside"] == (cell["interval"][0] <= cell["trained_loss"] <= cell["interval"][1])


def test_second_start_does_no_work(swept, calm):
  workdir, *_ = swept
  before = {path: path.stat().st_mtime_ns for path in workdir.glob("*/*/*.json*")}
  rows = table(workdir)
  done = run("sweep", workdir, *calm)
  assert done.returncode == 0, done.stderr
  assert {path: path.stat().st_mtime_ns for path in workdir.glob("*/*/*.json*")} == before
  assert table(workdir) == rows


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "kills"), [(5, 1)])
def test_killed_anywhere_gives_the_same_table(swept, flags, tmp_path, seed, kills):
  """SIGKILL at random moments: cells.csv is that of the uninterrupted sweep."""
  kill_anywhere(swept, flags, tmp_path, seed, kills)


def kill_anywhere(swept, flags, tmp_path, seed, kills):
  workdir, trained, _ = swept
  rng = random.Random(seed)
  for _ in range(kills):
    process = start(tmp_path, flags)
    for _ in range(rng.randint(1, 5)):  # of the 25 lines and more that a sweep reports
      assert process.stderr.readline()
    time.sleep(rng.uniform(0, 1))
    assert process.poll() is None
    process.kill()
    process.communicate()
  assert finish(tmp_path, flags)[0] == trained
  assert table(tmp_path) == table(workdir)
  for name in ("fit.json", "prediction.json", "verification.json"):
    assert (tmp_path / name).read_text() == (workdir / name).read_text()


@pytest.mark.slow
def test_ctrl_c_saves_and_says_so(flags, tmp_path):
  process = start(tmp_path, flags)
  wait_for(process, tmp_path, "cells/*/metrics.jsonl")
  process.send_signal(signal.SIGINT)
  _, errors = process.communicate(timeout=900)
  assert process.returncode == 130
  assert "the same command continues" in errors
  assert "Traceback" not in errors


def test_workers_die_with_their_launcher(flags, tmp_path):
  process = start(tmp_path, flags)
  wait_for(process, tmp_path, "cells/*/metrics.jsonl")
  workers = children(process.pid)
  assert workers
  process.kill()
  process.communicate()
  for _ in range(18_000):  # a quarter of an hour: one that stayed would hang this test
    if not any(alive(pid) for pid in workers):
      break
    time.sleep(0.05)
  assert not any(alive(pid) for pid in workers)
  # Nor did they come to the end of the task that they had in hand: its record is as it was.
  records = [json.loads(path.read_text()) for path in tmp_path.glob("cells/*/run.json")]
  assert "running" in {record["status"] for record in records}


def children(pid):
  path = f"/proc/{pid}/task/{pid}/children"
  if not os.path.exists(path):
    pytest.skip("needs /proc/PID/task/PID/children to list a process's children")
  with open(path) as file:
    return [int(child) for child in file.read().split()]


def alive(pid):
  try:
    with open(f"/proc/{pid}/stat") as file:
      return file.read().rsplit(")", 1)[1].split()[0] != "Z"
  except FileNotFoundError:
    return False


@pytest.mark.slow
def test_another_process_is_kept_out(flags, tmp_path):
  first = start(tmp_path, flags)
  wait_for(first, tmp_path, "sweep.json")
  second = run("sweep", tmp_path, *flags)
  first.kill()
  first.communicate()
  assert second.returncode == 2
  assert re.fullmatch(r"isoflop: workdir=.*: in use by process \d+; .*\n", second.stderr)


def test_other_config_in_the_same_folder_is_refused(swept, calm):
  workdir, *_ = swept
  done = run("sweep", workdir, *calm, "--config.model.mlp=relu")
  assert done.returncode == 2
  assert "model.mlp='swiglu', asked 'relu'" in done.stderr


@pytest.mark.slow
def test_reused_verbs(swept):
  workdir, *_ = swept
  for verb, expected in (("fit", "alpha"), ("verify", "prediction"), ("report", "report")):
    done = run(verb, workdir)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout + (workdir / "fit.json").read_text()
  assert run("runs", workdir).stdout.count(" done ") == len(table(workdir))
