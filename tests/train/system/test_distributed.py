"""Several processes train one model: as one process does, and together they stop and go on."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from configs.errors import ConfigError
from train.system import distributed, files


def flags(corpus, strategy):
  return [
    "--config=configs/base.py",
    f"--config.data.source=text:{corpus}",
    "--config.model.size=1",
    "--config.data.seq_len=32",
    "--config.data.batch_size=8",
    "--config.optim.warmup_tokens=512",
    "--config.train.tokens=4096",
    "--config.train.eval_tokens=2048",
    "--config.train.log_every_steps=1",
    "--config.train.checkpoint_every_seconds=0.5",
    f"--config.sharding.strategy={strategy}",
  ]


def start(workdir, arguments, processes, devices):
  """Starts the processes of one run, each with some simulated devices."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  command = [sys.executable, "-m", "scaling.main", "train", f"--workdir={workdir}", *arguments]
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
  several = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
  return [
    subprocess.Popen(
      command + (several + [f"--process={i}"] if processes > 1 else []),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
      env=environment,
    )
    for i in range(processes)
  ]


def finish(running, code=0):
  """Waits for all processes; returns what they said."""
  said = [each.communicate(timeout=900)[1] for each in running]
  assert [each.returncode for each in running] == [code] * len(running), said
  return said


def losses(workdir):
  rows = files.read_rows(workdir / "metrics.jsonl")
  return {row["step"]: row["train_loss"] for row in rows if "train_loss" in row}


def saved(workdir):
  """Steps whose checkpoints are committed: orbax renames them then."""
  return [path.name for path in workdir.glob("checkpoints/*") if path.name.isdigit()]


@pytest.fixture(scope="module")
def one(cache, corpus, tmp_path_factory):
  """One process with four devices."""
  workdir = tmp_path_factory.mktemp("one")
  finish(start(workdir, flags(corpus, "zero3"), 1, 4))
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
  ("processes", "devices", "strategy"),
  [(2, 2, "zero3"), (4, 1, "zero3"), (2, 1, "ddp")],
)
def test_several_processes_train_the_same_losses(
  one, corpus, tmp_path, processes, devices, strategy
):
  train_the_same_losses(one, corpus, tmp_path, processes, devices, strategy)


def train_the_same_losses(one, corpus, tmp_path, processes, devices, strategy):
  said = finish(start(tmp_path, flags(corpus, strategy), processes, devices))
  assert f"{processes} process(es) with {devices} device(s) each" in said[0]
  assert not any("step " in text or "process(es)" in text for text in said[1:])
  assert list(losses(tmp_path)) == list(losses(one))
  np.testing.assert_allclose(list(losses(tmp_path).values()), list(losses(one).values()), rtol=1e-5)
  result, alone = (json.loads((d / "run.json").read_text()) for d in (tmp_path, one))
  assert result["status"] == "done"
  for what in ("loss", "bits_per_byte"):
    assert result[what] == pytest.approx(alone[what], rel=1e-5)


@pytest.fixture(scope="module")
def uninterrupted(cache, corpus, tmp_path_factory):
  """The flags of a run of two processes, and its record."""
  arguments = flags(corpus, "zero1") + ["--config.train.tokens=61440"]
  workdir = tmp_path_factory.mktemp("uninterrupted")
  finish(start(workdir, arguments, 2, 1))
  return arguments, json.loads((workdir / "run.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0])
def test_a_killed_peer_stops_the_others_and_the_run_goes_on_bit_for_bit(
  uninterrupted, tmp_path, victim
):
  kill_one_and_go_on(*uninterrupted, tmp_path, victim)


def kill_one_and_go_on(arguments, whole, killed, victim, lives_on=900):
  """The other may live on for so many seconds."""
  both = start(killed, arguments, 2, 1)
  while not saved(killed):
    assert [process.poll() for process in both] == [None, None]
    time.sleep(0.01)
  both[victim].kill()
  both[victim].wait()
  other = both[1 - victim]
  errors = other.communicate(timeout=lives_on)[1]
  assert other.returncode == 1
  assert errors.splitlines()[-1] == f"isoflop: {distributed.LOST}", errors
  finish(start(killed, arguments, 2, 1))
  record = json.loads((killed / "run.json").read_text())
  assert 0 < record["first_step"] < record["steps"]
  assert record["loss"] == whole["loss"]


def test_arguments_that_do_not_fit_are_refused(tmp_path):
  for arguments in (["--processes=2"], ["--coordinator=localhost:1", "--processes=2"]):
    command = [sys.executable, "-m", "scaling.main", "train", f"--workdir={tmp_path}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("isoflop: --coordinator")


@contextlib.contextmanager
def a_port(listening):
  """A port of this machine, at which something listens or nothing does."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    if listening:
      yield port
  if not listening:
    yield port


@pytest.mark.parametrize(
  ("process", "listening", "code", "message"),
  [
    (0, True, 2, "--coordinator=127.0.0.1:{0}: cannot listen at port {0}"),
    pytest.param(
      *(0, False, 1, "process 1 of 2 at 127.0.0.1:{0} did not come within 1 s"),
      marks=pytest.mark.slow,
    ),
    (1, False, 1, "process 0 at 127.0.0.1:{0} did not come within 1 s"),
    pytest.param(
      *(1, True, 1, "some of the 2 processes at 127.0.0.1:{0} did not come within 1 s"),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_who_is_awaited_is_said_and_waited_for_so_long(tmp_path, process, listening, code, message):
  with a_port(listening) as port:
    ended = join(tmp_path, port, 2, process, 1)
    errors = ended.communicate()[1]
  assert ended.returncode == code, errors
  lines = errors.splitlines()
  assert message.format(port) in lines[-1]
  assert all("port" in line or "waiting for" in line or "did not come" in line for line in lines)


def join(workdir, port, processes, process, seconds):
  """Starts one of the processes of a run, which waits so long for the others."""
  flags = f"--processes={processes} --process={process} --join_seconds={seconds}"
  place = [f"--workdir={workdir}", f"--coordinator=127.0.0.1:{port}"]
  command = [sys.executable, "-m", "scaling.main", "train", *place, *flags.split()]
  return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_of_three_processes_the_first_names_the_one_that_has_not_come(tmp_path):
  with a_port(listening=False) as port:
    third, first = join(tmp_path, port, 3, 2, 60), join(tmp_path, port, 3, 0, 12)
  said = [each.communicate()[1] for each in (first, third)]
  assert f"process 1 of 3 at 127.0.0.1:{port} did not come within 12 s" in said[0]
  assert f"process 0 at 127.0.0.1:{port} has given up" in said[1]
  assert [first.returncode, third.returncode] == [1, 1]


def test_a_wrong_place_of_the_coordinator_is_refused():
  for place in ("host", "host:", ":80", "host:x", "host:70000"):
    with pytest.raises(ConfigError, match="name HOST:PORT"):
      distributed.join(place, 2, 0)
