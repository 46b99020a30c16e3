"""A run: learns, resumes bit for bit, branches, and refuses before it spends anything."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs.errors import RunError
from configs.ladders import resolve
from model import accounting
from train import checkpoint, loop, metrics, optim, programs
from train.data import dataset
from train.data.batches import train_batches
from train.objectives import registry
from train.system import clock, files


def rows(folder):
  """Returns metrics.jsonl."""
  return files.read_rows(folder / "metrics.jsonl")


def final(folder):
  """Returns a record without what a clock decides, and the config."""
  run = files.read_json(folder / "run.json")
  ignored = {"seconds", "times", "first_step", "config", "config_diff", "digests", "hash"}
  ignored.add("kept_steps")  # which are the config's, too
  return {key: value for key, value in run.items() if key not in ignored}


@pytest.fixture(scope="module")
def whole(make_tiny, tmp_path_factory):
  """An uninterrupted run and its config."""
  config = make_tiny()
  folder = tmp_path_factory.mktemp("whole")
  return config, folder, loop.train(config, folder)


@pytest.mark.smoke
def test_learns_and_records(whole):
  config, folder, result = whole
  first, last = rows(folder)[0], rows(folder)[-2]
  assert first["train_loss"] == pytest.approx(math.log(257), abs=0.3)
  assert last["train_loss"] < first["train_loss"] - 0.5
  assert result == files.read_json(folder / "run.json")
  assert result["status"] == "done"
  assert result["D"] == 60 * 128
  assert result["eval_tokens"] == 2040  # 102 of each of 20 documents: a twentieth of 2048
  assert 0 < result["loss_stderr"] < 0.2
  # The corpus is ASCII: one byte a token, but for the boundaries between documents.
  assert result["bits_per_byte"] == pytest.approx(result["loss"] / math.log(2), rel=0.01)


def test_finished_run_is_not_trained_again(whole):
  config, folder, result = whole
  before = (folder / "metrics.jsonl").stat().st_mtime_ns
  assert loop.train(config, folder) == result
  assert (folder / "metrics.jsonl").stat().st_mtime_ns == before


def test_the_times_of_a_run_are_those_of_its_phases(whole):
  _, _, result = whole
  assert tuple(result["times"]) == clock.PHASES
  assert sum(result["times"].values()) == pytest.approx(result["seconds"], abs=0.01)
  assert min(t for phase, t in result["times"].items() if phase != "compile") > 0


@pytest.mark.smoke
@pytest.mark.parametrize("stop_at", [1, 23, 40, 59])
def test_stopped_run_resumes_bit_for_bit(whole, tmp_path, stop_at):
  config, folder, _ = whole
  calls = iter(range(1, 1000))
  with pytest.raises(loop.Interrupted):
    loop.train(config, tmp_path, should_stop=lambda: next(calls) == stop_at)
  resumed = loop.train(config, tmp_path)
  assert resumed["first_step"] == stop_at
  assert final(tmp_path) == final(folder)
  own = [row for row in rows(tmp_path) if row["step"] != stop_at]
  for row in rows(folder):
    cut = row["step"] - 5 < stop_at < row["step"]  # this interval was cut in two
    assert cut or row["step"] == stop_at or row in own


@pytest.mark.parametrize("first", [0, 3])
def test_the_next_batch_is_placed_while_a_step_runs(tiny, cache, tmp_path, monkeypatch, first):
  """Before any metrics are read; each once, in order, and none beyond the last."""
  config, log, seen, rates = resolve(tiny), [], [], []
  config.train.tokens, config.train.log_every_steps = 5 * 128, 1
  if first:
    config.train.stop_at_step = first
    loop.train(config, tmp_path)
    config.train.stop_at_step = 0
    stopped = files.read_json(tmp_path / "run.json") | {"status": ""}
    files.write_json(tmp_path / "run.json", files.with_digests(stopped))
  tokens = dataset.prepare(config)
  expected = list(itertools.islice(train_batches(tokens, config), 5))
  end_interval = metrics.Metrics.end_interval
  monkeypatch.setattr(
    metrics.Metrics, "end_interval", lambda self, n: log.append(n) or end_interval(self, n)
  )
  functions = programs.program(config, tokens.vocab_size)

  def place(batch):
    log.append("placed")
    return functions.place(batch)

  def train_step(state, batch, lr, seed):
    log.append("step")
    seen.append(batch)
    rates.append(lr)
    return functions.step(state, batch, lr, seed)

  monkeypatch.setattr(loop, "program", lambda *_: functions._replace(place=place, step=train_step))
  monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": 0.0})
  base = loop.train(config, tmp_path)["lr"]
  jax.tree.map(np.testing.assert_array_equal, seen, expected[first:])
  scheduled = [optim.learning_rate(config.optim, base, step, 5, 128) for step in range(5)]
  np.testing.assert_allclose(rates, scheduled[first:], rtol=1e-6)
  assert [row["lr"] for row in rows(tmp_path) if "train_loss" in row] == scheduled
  steps = (x for n in range(first + 1, 5) for x in ("step", "placed", n))
  assert log == ["placed", *steps, "step", 5]


def test_killed_run_resumes_bit_for_bit(whole, tmp_path):
  config, folder, _ = whole
  config = config.copy_and_resolve_references()
  config.train.checkpoint_every_seconds = 0.0  # at every step
  (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
  code = (
    "import json, sys; from configs.base import from_json; from train import loop\n"
    "loop.train(from_json(json.load(open(sys.argv[1] + '/config.json'))), sys.argv[1])"
  )
  child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=os.environ)
  while not list(tmp_path.glob("checkpoints/2*")):
    assert child.poll() is None
    time.sleep(0.005)
  child.send_signal(signal.SIGKILL)
  assert child.wait() == -signal.SIGKILL
  assert files.read_json(tmp_path / "run.json")["status"] == "running"
  resumed = loop.train(config, tmp_path)
  assert 0 < resumed["first_step"] < 60
  assert final(tmp_path) == final(folder)


def test_branch_equals_the_run_alone(whole, tmp_path):
  """A cooldown from a trunk's checkpoint is the same run as warmup-stable-decay from the start."""
  config, folder, alone = whole
  trunk = config.copy_and_resolve_references()
  trunk.optim.schedule = "constant"
  start = optim.cooldown_start(config.optim, 60)
  trunk.train.keep_steps = (20, start)
  trunk.train.tokens = start * 128
  loop.train(trunk, tmp_path / "trunk")
  with checkpoint.Checkpoints(tmp_path / "trunk" / "checkpoints", read_only=True) as kept:
    assert kept.steps() == [20, start]
  branch = config.copy_and_resolve_references()
  branch.train.branch_from = str(tmp_path / "trunk" / "checkpoints")
  result = loop.train(branch, tmp_path / "branch")
  assert result["first_step"] == start
  assert result["loss"] == alone["loss"]
  branch.train.tokens = 50 * 128
  with pytest.raises(ValueError, match=r"begins at step 40.*kept steps: \[20, 48\]"):
    loop.train(branch, tmp_path / "nowhere")


def test_what_was_kept_for_good_stays(whole, tmp_path):
  """Also where a run goes on with other steps to keep; what a killed save left does not."""
  config = whole[0].copy_and_resolve_references()
  for keep, stop in ((20,), 30), ((40,), 45), ((), 0):
    leftover = tmp_path / "checkpoints" / f"{stop}.orbax-checkpoint-tmp-7"
    leftover.mkdir(parents=True)
    config.train.keep_steps, config.train.stop_at_step = keep, stop
    loop.train(config, tmp_path)
    assert not leftover.exists()
  with checkpoint.Checkpoints(tmp_path / "checkpoints", read_only=True) as kept:
    assert kept.steps() == [20, 40, 60]
  assert files.read_json(tmp_path / "run.json")["loss"] == whole[2]["loss"]


def test_flipped_bit_is_noticed_and_the_checkpoint_before_is_used(whole, tmp_path, caplog):
  config, folder, _ = whole
  config = config.copy_and_resolve_references()
  config.train.keep_steps = (20, 30)
  calls = iter(range(1, 1000))
  with pytest.raises(loop.Interrupted):
    loop.train(config, tmp_path, should_stop=lambda: next(calls) == 30)
  largest = max(
    (p for p in (tmp_path / "checkpoints" / "30").rglob("*") if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  resumed = loop.train(config, tmp_path)
  assert "set aside" in caplog.text
  assert resumed["first_step"] == 20
  assert final(tmp_path) == final(folder)


def test_divergence_stays_on_record(tiny, tmp_path):
  tiny.optim.lr = 1e30
  tiny.optim.clip_norm = 0.0
  result = loop.train(tiny, tmp_path)
  assert result["status"] == "diverged"
  assert "loss" not in result
  assert loop.train(tiny, tmp_path)["status"] == "diverged"  # and is not tried again

  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert json.loads(lines[-1], parse_constant=refuse)["train_loss"] is None


def test_a_row_says_of_how_many_steps_it_is_the_average(whole, tmp_path):
  """After a stop at step 23 a row of ten steps knows only seven."""
  config, folder, _ = whole
  config = config.copy_and_resolve_references()
  config.train.log_every_steps = 1
  loop.train(config, tmp_path / "each")
  each = [row["train_loss"] for row in rows(tmp_path / "each") if "train_loss" in row]
  config.train.log_every_steps = 10
  calls = iter(range(1, 1000))
  with pytest.raises(loop.Interrupted):
    loop.train(config, tmp_path / "cut", should_stop=lambda: next(calls) == 23)
  loop.train(config, tmp_path / "cut")
  averages = {r["step"]: r for r in rows(tmp_path / "cut") if "train_loss" in r}
  assert {step: row["steps"] for step, row in averages.items()} == {
    10: 10, 20: 10, 23: 3, 30: 7, 40: 10, 50: 10, 60: 10
  }  # fmt: skip
  for last, row in averages.items():
    expected = np.mean(each[last - row["steps"] : last])
    assert row["train_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"optim.schedule": "constant", "optim.warmup_tokens": 7681},
      "the run ends at step 60, .* 61 st",
    ),
    ({"optim.schedule": "cosine", "optim.warmup_tokens": 10**6}, "the run ends at step 60, within"),
    ({"optim.warmup_tokens": 10**6}, "the cooldown begins at step 48, within the warmup"),
    ({"train.tokens": 127, "optim.warmup_tokens": 0}, "train.tokens=127: less than a step of 128"),
    (
      {"objective": "mlm", "model.family": "encoder", "corruption.mlm_rate": 1e-9},
      "objective='mlm': nothing is predicted in the text that is evaluated on",
    ),
    ({"train.tokens": 10**9}, "epochs"),
    ({"model.family": "encoder"}, "set model.family='decoder'"),
    ({"data.tokenizer": "bpe:600"}, "smaller than its embedding"),
  ],
)
def test_a_run_that_cannot_be_what_its_record_says_is_refused(tiny, tmp_path, fields, message):
  tiny.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=message) as error:
    loop.train(tiny, tmp_path / "run")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_pairs_that_leave_no_room_for_a_completion_are_refused(tiny, tmp_path):
  pairs = ({"prompt": f"{i} " * 200, "text": "x"} for i in range(99))
  (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
  tiny.objective, tiny.data.prompt_field = "completion", "prompt"
  tiny.data.source = f"text:{tmp_path / 'pairs.jsonl'}"
  with pytest.raises(ValueError, match="nothing is predicted .* its prompts longer than data.seq"):
    loop.train(tiny, tmp_path / "run")


@pytest.mark.slow
def test_a_mixture_of_denoisers_resumes_bit_for_bit(tiny, tmp_path):
  """With dropout: what is drawn, what is hidden and what is dropped all have to come back."""
  tiny.objective, tiny.model.family = "ul2", "encoder_decoder"
  tiny.model.width, tiny.model.depth, tiny.model.heads, tiny.model.dropout = 16, 1, 2, 0.1
  tiny.data.isolate_documents = False
  tiny.corruption.sentinels = 8
  tiny.optim.warmup_tokens = 128
  tiny.train.tokens = 20 * registry.tokens_per_step(tiny)
  whole = loop.train(tiny, tmp_path / "whole")
  lengths = registry.lengths(tiny)
  assert whole["D"] == 20 * 4 * lengths.text
  assert whole["D_predicted"] == round(20 * 4 * lengths.predicted)
  shape = (resolve(tiny).model, registry.vocab_size(tiny, 257), lengths.target, lengths.source)
  assert whole["C"] == pytest.approx(80 * accounting.train_flops_per_sequence(*shape))
  calls = iter(range(1, 1000))
  with pytest.raises(loop.Interrupted):
    loop.train(tiny, tmp_path / "cut", should_stop=lambda: next(calls) == 7)
  assert loop.train(tiny, tmp_path / "cut")["first_step"] == 7
  assert final(tmp_path / "cut") == final(tmp_path / "whole")


def test_a_folder_has_one_owner(tiny, tmp_path):
  """That it has one is seen first of all: nothing of the config is looked at before."""
  tiny.data.source = "text:/no/such/folder"
  with files.owned(tmp_path), pytest.raises(files.FolderInUseError, match="in use by process"):
    loop.train(tiny, tmp_path)


def test_a_failed_run_keeps_its_traceback_and_goes_on(whole, tmp_path, monkeypatch):
  config, folder, _ = whole
  config = config.copy_and_resolve_references()
  config.train.keep_steps = (20,)
  end_interval = metrics.Metrics.end_interval

  def fail(self, done):
    if done == 30:
      raise ZeroDivisionError("at step 30")
    end_interval(self, done)

  monkeypatch.setattr(metrics.Metrics, "end_interval", fail)
  with pytest.raises(ZeroDivisionError, match="at step 30"):
    loop.train(config, tmp_path)
  failed = files.read_json(tmp_path / "run.json")
  assert (failed["status"], failed["error"]) == ("failed", "ZeroDivisionError: at step 30")
  assert 'raise ZeroDivisionError("at step 30")' in failed["traceback"]
  monkeypatch.setattr(metrics.Metrics, "end_interval", end_interval)
  assert loop.train(config, tmp_path)["first_step"] == 20
  assert final(tmp_path) == final(folder)


def test_a_folder_that_is_moved_ends_the_run_in_a_line_and_is_not_made_again(tiny, tmp_path):
  calls, folder = itertools.count(1), tmp_path / "run"

  def move():
    if next(calls) == 7:
      folder.rename(tmp_path / "moved")
    return False

  tiny.train.tokens, tiny.train.keep_steps = 15 * 128, (10,)
  tiny.optim.warmup_tokens = 0
  with pytest.raises(RunError, match="run: was moved or removed while it was in use"):
    loop.train(tiny, folder, should_stop=move)
  assert not folder.exists()
  assert loop.train(tiny, tmp_path / "moved")["status"] == "done"
