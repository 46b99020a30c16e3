"""A bug in a worker is shown with its traceback; a user's error in a line."""

import json
import subprocess

import pytest
import tiny_sweep

from scaling.launch import child, worker
from train import aot

ONE = "--config.sweep.workers=1"
PLANTED = """
import sys

if "scaling.launch.worker" in sys.orig_argv:
  import jax.numpy as jnp
  from configs import errors
  import {module}

  def planted(*_, **__):
    {statement}

  {module}.{name} = planted
"""
MISMATCH = "return jnp.zeros(2) + jnp.zeros(3)"
ERROR = "TypeError: add got incompatible shapes for broadcasting: (2,), (3,)."


@pytest.fixture
def sweep(tmp_path, corpus):
  """Runs a sweep whose workers have another function in one place."""

  def run(module, name, statement):
    text = PLANTED.format(module=module, name=name, statement=statement)
    (tmp_path / "sitecustomize.py").write_text(text)
    return subprocess.run(
      tiny_sweep.command(tmp_path / "sweep", corpus, ONE, budgets="4e8,8e8"),
      capture_output=True,
      text=True,
      timeout=600,
      env=child.environment(PYTHONPATH=f"{tmp_path}:{child.ROOT}"),
    )

  return run


def test_bug_in_an_objective_is_shown_with_its_traceback(sweep, tmp_path):
  done = sweep("train.objectives.losses", "token_losses", MISMATCH)
  assert done.returncode == 1
  assert done.stderr.count(", in planted\n") == 1
  assert done.stderr.splitlines().count(ERROR) == 1
  assert "do not fit" not in done.stderr
  record = json.loads((tmp_path / "sweep/preflight/s00/fits.json").read_text())
  assert ", in planted\n" in record["traceback"]


def test_bug_in_a_run_is_kept_in_its_record_and_the_log(sweep, tmp_path):
  done = sweep("train.evaluate", "evaluate", MISMATCH)
  assert done.returncode == 1
  assert done.stderr.count(", in planted\n") == 1
  assert done.stderr.splitlines().count(ERROR) == 1
  record = json.loads((tmp_path / "sweep/trunks/trunk_s01_seed0/run.json").read_text())
  assert (record["status"], record["error"]) == ("failed", ERROR)
  assert ERROR in record["traceback"].splitlines()
  assert record["traceback"] in (tmp_path / "sweep/workers.log").read_text()


@pytest.mark.parametrize(
  ("error", "code"),
  [
    ("ConfigError('data.batch_size=4: too odd; make it even')", 2),
    pytest.param("RunError('no luck')", 1, marks=pytest.mark.slow),
  ],
)
def test_user_and_run_errors_of_a_worker_are_a_line(sweep, error, code):
  done = sweep("train.evaluate", "evaluate", f"raise errors.{error}")
  assert done.returncode == code
  assert "Traceback" not in done.stderr
  *_, last = done.stderr.splitlines()
  expected = "data.batch_size=4: too odd; make it even (" if code == 2 else "workdir="
  assert last.startswith(f"isoflop: {expected}")
  assert "6 of its runs failed (fit_s00_c4.00e08_seed0, " in last


def test_sizes_that_are_compiled_side_by_side_need_what_each_needs_alone(make_tiny, tmp_path):
  configs, tasks, events = [], [], []
  for size in range(4):
    configs.append(make_tiny())
    configs[-1].model.size = size
    tasks.append({"id": str(size), "config": configs[-1].to_dict(), "folder": tmp_path / str(size)})
  tasks[3]["config"]["data"]["batch_size"] = 0
  worker.compile_runs({"tasks": tasks, "preflight": 1}, events.append)
  assert [event["id"] for event in events] == ["0", "1", "2", "3"]
  assert [event["finished"] for event in events] == ["done"] * 3 + ["failed"]
  for size in range(3):
    (tmp_path / "alone").mkdir(exist_ok=True)
    alone = aot.record_needs(configs[size], tmp_path / "alone", 1)
    assert json.loads((tmp_path / str(size) / aot.RECORD).read_text()) == alone
