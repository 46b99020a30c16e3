"""Runs trained through a command: what it is given, how it ends, and what is left after a kill."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import tiny_sweep
import written

from configs.errors import ConfigError
from scaling.launch import worker
from scaling.launch.command import Command, fill
from scaling.launch.queue import Task
from scaling.progress import Display
from train.system import files

WORKER = """
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
tell = lambda **event: (folder / "events.jsonl").open("a").write(json.dumps(event) + "\\n")
for task in json.loads((folder / "task.json").read_text())["tasks"]:
  run = pathlib.Path(task["folder"])
  run.mkdir(exist_ok=True)
  if not task["needs"] or (run.parent / task["needs"] / "run.json").exists():
    OUTCOME
"""
DONE = """
    (run / "run.json").write_text('{"status": "done"}')
    tell(id=task["id"], finished="done", loss=1.5)
"""
SILENT = """
    (run / "run.json").write_text('{"status": "done"}')
"""
BROKEN = """
    sys.exit("no such queue")
"""
FAILING = """
    failure = {"error": "ConfigError: mend it", "kind": "user", "traceback": ""}
    tell(id=task["id"], finished="failed", failure=failure)
    sys.exit(2)
"""
WAITING = """
    def leave(*_):
      (run / "saved").touch()
      tell(id=task["id"], finished="interrupted")
      sys.exit(130)
    signal.signal(signal.SIGTERM, leave)
    (run / "ready").touch()
    time.sleep(600)
"""


@pytest.fixture
def launch(tmp_path):
  """Trains a trunk, two cells of it and another run, by a worker that ends them in some way."""
  tasks = [
    Task("trunk", tmp_path / "trunk", {}, 2.0, shape=0),
    Task("a", tmp_path / "a", {}, 1.0, needs="trunk", shape=0),
    Task("b", tmp_path / "b", {}, 1.0, needs="trunk", shape=0),
    Task("other", tmp_path / "other", {}, 1.0, shape=1),
  ]

  def run(outcome, should_stop=lambda: False, workers=2, template=""):
    (tmp_path / "worker.py").write_text(WORKER.replace("OUTCOME", outcome.strip()))
    template = template or f"{sys.executable} {tmp_path}/worker.py {{folder}}"
    said = io.StringIO()
    launcher = Command(tmp_path, template, workers, Display("", said), should_stop)
    try:
      return launcher.run(tasks), tasks, said.getvalue()
    finally:
      launcher.close()

  return run


@pytest.mark.parametrize("outcome", [DONE, SILENT])
def test_what_a_run_needs_is_trained_before_it(launch, outcome):
  failures, tasks, said = launch(outcome)
  assert failures == {}
  assert all(task.done() for task in tasks)
  assert said.index("trunk: ") < min(said.index(" a: "), said.index(" b: "))


def test_a_command_that_fails_is_reported_with_its_log(launch, tmp_path):
  failures, tasks, said = launch(BROKEN)
  log = tmp_path / "tasks/trunk/log"
  reason = f"its command ended with exit code 1 before the run did; see {log}"
  assert failures["trunk"].error == failures["other"].error.replace("other", "trunk") == reason
  assert failures["a"].error == f"trunk did not finish: {reason}"
  assert log.read_text() == "no such queue\n"
  assert reason in said
  assert json.loads(tasks[0].path.read_text())["status"] == "failed"


def test_a_failure_is_told_as_the_worker_tells_it(launch):
  failures, *_ = launch(FAILING)
  assert (failures["other"].kind, failures["other"].message) == ("user", "mend it")


def test_a_stop_reaches_what_a_shell_has_started(launch, tmp_path):
  stop = threading.Event()

  def when_ready():
    if len(list(tmp_path.glob("*/ready"))) == 2:
      stop.set()
    return stop.is_set()

  start = f"{sys.executable} {tmp_path}/worker.py {{folder}}"
  with pytest.raises(KeyboardInterrupt):
    launch(WAITING, when_ready, template=f"bash -c '{start}; echo after it'")
  assert {path.parent.name for path in tmp_path.glob("*/saved")} == {"trunk", "other"}


def test_a_worker_waits_for_one_that_a_killed_launcher_has_left(tmp_path):
  stop, left = threading.Event(), threading.Event()
  with files.owned(tmp_path):
    waiting = threading.Thread(target=lambda: [worker.wait_for(tmp_path, stop.is_set), left.set()])
    waiting.start()
    assert not left.wait(0.3)
    stop.set()
    waiting.join()
  worker.wait_for(tmp_path, lambda: False)


def test_a_template_is_split_as_by_a_shell():
  values = {"command": "python -m worker 'a b'", "folder": "/x y", "id": "fit"}
  assert fill("ssh host {command}", **values) == ["ssh", "host", values["command"]]
  line = "sbatch --wait -o {folder}/log --wrap={command}"
  assert fill(line, **values)[-2:] == ["/x y/log", f"--wrap={values['command']}"]
  assert fill('bash -c "nice {command}"', **values)[-1] == f"nice {values['command']}"


@pytest.mark.parametrize(
  "template", ["", "bash", "bash -c '{command}", "{command} {x}", "{command} {"]
)
def test_a_template_that_cannot_be_used_is_refused(template, tmp_path):
  with pytest.raises(ConfigError, match=r"sweep\.command=.*, as in 'bash -c {command}'"):
    Command(tmp_path, template, 1, Display("", io.StringIO()), lambda: False)


COMMAND = [
  "--config.sweep.launcher=command",
  "--config.sweep.command=taskset -c 0 bash -c {command}",
]


def sweep(workdir, corpus, *flags):
  command = tiny_sweep.command(workdir, corpus, "--config.sweep.workers=1", *flags)
  return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs taskset")
def test_a_sweep_through_a_command_that_is_killed_once_is_that_of_local_workers(tmp_path, corpus):
  first = sweep(tmp_path / "command", corpus, *COMMAND)
  while not list((tmp_path / "command").glob("cells/*/run.json")):
    assert first.poll() is None, first.communicate()[1]
    time.sleep(0.05)
  first.send_signal(signal.SIGKILL)  # the worker goes on
  first.communicate()
  for code in (2, 0):  # so few runs of so few tokens determine no law: they are given a known one
    for name, flags in (("command", COMMAND), ("local", [])):
      process = sweep(tmp_path / name, corpus, *flags)
      errors = process.communicate(timeout=1800)[1]
      assert process.returncode == code, errors
    assert tiny_sweep.table(tmp_path / "command") == tiny_sweep.table(tmp_path / "local")
    for name in ("command", "local") if code else ():
      written.give_losses(tmp_path / name)
  for name in ("prediction.json", "verification.json"):
    assert (tmp_path / "command" / name).read_text() == (tmp_path / "local" / name).read_text()
