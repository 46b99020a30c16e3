"""Worker processes: what they run on, what they share, and how they end."""

import io
import subprocess
import sys

import pytest

from scaling.launch import child, local
from scaling.launch.local import Pool
from scaling.launch.queue import Task
from scaling.progress import Display
from train.system import process


def display():
  return Display("", io.StringIO())


def never():
  return False


@pytest.mark.parametrize(
  ("workers", "own", "share"),
  [
    (1, {}, None),
    (2, {}, "0.3750"),
    (4, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, "0.1875"),
    (2, {"XLA_CLIENT_MEM_FRACTION": "0.2"}, "0.2"),
    (2, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2"}, None),
  ],
)
def test_workers_of_one_accelerator_share_its_memory(monkeypatch, workers, own, share):
  for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
    monkeypatch.delenv(name, raising=False)
  for name, value in own.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(process, "has_accelerator", lambda: True)
  env = child.worker_environment(workers)
  assert env.get("XLA_CLIENT_MEM_FRACTION") == share
  assert env | own == env
  monkeypatch.setattr(process, "has_accelerator", lambda: False)
  assert child.worker_environment(workers) == child.environment()


def test_setting_of_a_pool_is_that_of_its_workers(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
  ticks, stop = [], []
  pool = Pool(tmp_path, 1, display(), lambda: bool(stop), tick=lambda: ticks.append(1))
  try:
    assert pool.setting() == {"device": "cpu", "devices": 2, "workers": 1}
    assert ticks
    pool.restart([None])
    stop.append(True)
    with pytest.raises(KeyboardInterrupt):
      pool.setting()
  finally:
    pool.close()


@pytest.mark.slow
def test_rate_of_a_pool_before_and_after_a_restart(tiny, tmp_path):
  pool = Pool(tmp_path, 1, display(), never)
  try:
    assert pool.rate(tiny.to_dict(), 2, 0.3) > 10
    pool.restart([None])
    assert len(pool) == 1
    assert pool.rate(tiny.to_dict(), 2, 0.3) > 10
  finally:
    pool.close()


WORKER = """
import json, os, pathlib, sys
tell = lambda **event: print(json.dumps(event), flush=True)
tell(ready=True)
for line in sys.stdin:
  for task in json.loads(line)["tasks"]:
    folder = pathlib.Path(task["folder"])
    if not folder.exists():  # at first it is asked to leave
      folder.mkdir()
      tell(id=task["id"], finished="interrupted")
    else:
      (folder / "run.json").write_text('{"status": "done"}')
      tell(id=task["id"], finished="done", loss=1.0)
      continue
    sys.exit(CODE)
"""


@pytest.mark.parametrize("code", [0, 9])
def test_runs_of_a_leaving_worker_go_on_in_another(tmp_path, monkeypatch, code):
  def popen(command, **options):
    return real([sys.executable, "-c", WORKER.replace("CODE", str(code))], **options)

  real = subprocess.Popen
  monkeypatch.setattr(local.subprocess, "Popen", popen)
  tasks = [
    Task("trunk", tmp_path / "trunk", {}, 2.0, shape=0),
    Task("cell", tmp_path / "cell", {}, 1.0, needs="trunk", shape=0),
  ]
  pool = Pool(tmp_path, 1, display(), never)
  try:
    failures = pool.run(tasks)
  finally:
    pool.close()
  died = "its worker died (exit code 9)"
  errors = {name: failure.error for name, failure in failures.items()}
  assert errors == ({"trunk": died, "cell": f"trunk did not finish: {died}"} if code else {})
  assert [task.done() for task in tasks] == [code == 0] * 2
