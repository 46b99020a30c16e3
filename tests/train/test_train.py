"""A run: learns, resumes bit for bit, branches, and refuses before it spends anything."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs.ladders import resolve
from model import accounting
from train import checkpoint, evaluate, loop, metrics, optim, step
from train.data import dataset
from train.data.batches import train_batches, validation_batches
from train.objectives import registry
from train.system import clock, files


def rows(folder):
  """Returns metrics.jsonl."""
  return files.read_rows(folder / "metrics.jsonl")


def final(folder):
  """Returns a record without what a clock decides."""
  run = files.read_json(folder / "run.json")
  ignored = {"seconds", "times", "first_step", "config", "config_diff"}
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
  assert result["eval_tokens"] == 2048
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


def test_compiling_is_a_phase_of_its_own_wherever_it_happens(monkeypatch):
  """By a clock that is set by hand: 3 s of the 5 s in a block within another are compilation."""
  now = [100.0]
  monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))

  def passes(seconds, compiling=()):
    now[0] += seconds
    for each in compiling:  # a function is reported before the one that it is traced within
      jax.monitoring.record_event_duration_secs("/jax/core/compile/backend_compile_duration", each)

  spent = clock.Clock()
  with spent("train"):
    passes(1)
    with spent("evaluate"):
      passes(4, (2, 3))
      passes(1)
    passes(10)
  passes(100)  # it stands still
  nothing = dict.fromkeys(clock.PHASES, 0.0)
  assert spent.times() == nothing | {"train": 11.0, "evaluate": 2.0, "compile": 3.0}
  half = clock.Clock()
  half.add(spent, 0.5)
  assert half.times() == nothing | {"train": 5.5, "evaluate": 1.0, "compile": 1.5}


def test_the_validation_set_is_made_once_and_is_the_one_of_its_config(tiny, cache, monkeypatch):
  config, tokens = resolve(tiny), dataset.prepare(tiny)
  kept = evaluate.validation_set(tokens, config)
  made = list(validation_batches(tokens, config))
  jax.tree.map(np.testing.assert_array_equal, kept, made)
  config.seed, config.optim.lr = 5, 1.0
  assert evaluate.validation_set(tokens, config) is kept
  config.train.eval_tokens = 1024
  assert len(list(evaluate.validation_set(tokens, config))) < len(made)
  monkeypatch.setattr(evaluate, "KEPT_BYTES", 0)
  config.train.eval_tokens = 2048
  jax.tree.map(np.testing.assert_array_equal, list(evaluate.validation_set(tokens, config)), made)


def test_finished_run_refuses_another_config(whole):
  config, folder, _ = whole
  other = config.copy_and_resolve_references()
  other.seed = 5
  with pytest.raises(ValueError, match="holds a run with seed="):
    loop.train(other, folder)


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
  config, log, seen = resolve(tiny), [], []
  config.train.tokens, config.train.log_every_steps = 5 * 128, 1
  if first:
    config.train.stop_at_step = first
    loop.train(config, tmp_path)
    config.train.stop_at_step = 0
    files.write_json(tmp_path / "run.json", files.read_json(tmp_path / "run.json") | {"status": ""})
  tokens = dataset.prepare(config)
  expected = list(itertools.islice(train_batches(tokens, config), 5))
  end_interval = metrics.Metrics.end_interval
  monkeypatch.setattr(
    metrics.Metrics, "end_interval", lambda self, n: log.append(n) or end_interval(self, n)
  )
  functions = step.program(config, tokens.vocab_size)

  def place(batch):
    log.append("placed")
    return functions.place(batch)

  def train_step(state, batch, lr, seed):
    log.append("step")
    seen.append(batch)
    return functions.step(state, batch, lr, seed)

  monkeypatch.setattr(loop, "program", lambda *_: functions._replace(place=place, step=train_step))
  monkeypatch.setattr(loop, "evaluate", lambda *_: {"loss": 0.0})
  loop.train(config, tmp_path)
  jax.tree.map(np.testing.assert_array_equal, seen, expected[first:])
  steps = [(x, "placed", n) for n in range(first + 1, 5) for x in ["step"]]
  assert log == ["placed", *(x for each in steps for x in each), "step", 5]


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
  deadline = time.time() + 900
  while not (tmp_path / "checkpoints" / "20").exists() and time.time() < deadline:
    time.sleep(0.005)
    if list(tmp_path.glob("checkpoints/2*")):
      break
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


def test_branch_from_another_run_is_refused(whole, tmp_path):
  config, _, _ = whole
  trunk = config.copy_and_resolve_references()
  trunk.optim.schedule = "constant"
  trunk.train.keep_steps = (48,)
  trunk.train.tokens = 48 * 128
  trunk.seed = 3
  loop.train(trunk, tmp_path / "trunk")
  branch = config.copy_and_resolve_references()
  branch.train.branch_from = str(tmp_path / "trunk" / "checkpoints")
  with pytest.raises(ValueError, match="holds a run with seed="):
    loop.train(branch, tmp_path / "branch")


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


def test_one_program_serves_every_rate_schedule_and_length(tiny, cache):
  tokens = dataset.prepare(tiny)
  config = resolve(tiny)
  functions = step.program(config, tokens.vocab_size)
  state = functions.init(np.uint32(0))
  batches = train_batches(tokens, config, start_step=0)
  for lr in (1e-3, 3e-3, 0.0):
    state, _ = functions.step(state, next(batches), np.float32(lr), np.uint32(0))
  batches.close()
  assert functions.step._cache_size() == 1
  for change in ({"lr": 0.5}, {"schedule": "cosine"}, {"warmup_tokens": 3}):
    config.optim.update(change)
    assert step.program(config, tokens.vocab_size) is functions


@pytest.mark.smoke
def test_loss_is_a_sum_over_a_weight(tiny, cache):
  """Positions of weight 0 change nothing; a batch in two halves has the same sum."""
  tokens = dataset.prepare(tiny)
  config = resolve(tiny)
  functions = step.program(config, tokens.vocab_size)
  state = functions.init(np.uint32(0))
  batch = next(train_batches(tokens, config, start_step=0))
  nll_B, weight_B = functions.evaluate(state.params, batch)
  masked = dict(batch)
  masked["weights_BT"] = batch["weights_BT"].copy()
  masked["weights_BT"][:, 16:] = 0
  masked["targets_BT"] = batch["targets_BT"].copy()
  masked["targets_BT"][:, 16:] = 7
  masked_nll_B, masked_weight_B = functions.evaluate(state.params, masked)
  assert (np.asarray(masked_weight_B) == 16).all()
  assert (np.asarray(weight_B) == 32).all()
  assert (np.asarray(masked_nll_B) < np.asarray(nll_B)).all()
  new_state, metrics = functions.step(state, masked, np.float32(1e-3), np.uint32(0))
  assert float(metrics["loss_sum"]) == pytest.approx(float(np.sum(masked_nll_B)), rel=1e-5)
  assert float(metrics["weight"]) == 64
  assert int(new_state.step) == 1


def test_z_loss_is_trained_on_and_not_reported(tiny, cache):
  """The head starts at zero: every logit is 0, the loss is ln V, and ln^2 V is no part of it."""
  tokens = dataset.prepare(tiny)
  config = resolve(tiny)
  batch, grad_norm = next(train_batches(tokens, config)), {}
  for z_loss in (0.0, 1.0):
    config.optim.z_loss = z_loss
    functions = step.program(config, tokens.vocab_size)
    state = functions.init(np.uint32(0))
    _, metrics = functions.step(state, batch, np.float32(1e-2), np.uint32(0))
    loss = float(metrics["loss_sum"] / metrics["weight"])
    assert loss == pytest.approx(math.log(257), rel=1e-6)
    grad_norm[z_loss] = float(metrics["grad_norm"])
  # d(z ln^2 Z) = 2 z ln V / V on each logit, in a direction of its own: the norm grows with z.
  assert grad_norm[1.0] > 1.01 * grad_norm[0.0]


def test_dropout_is_a_function_of_seed_and_step(tiny, cache):
  tokens = dataset.prepare(tiny)
  config = resolve(tiny)
  config.model.depth, config.model.dropout = 1, 0.3
  functions = step.program(config, tokens.vocab_size)
  batch = next(train_batches(tokens, config))

  def second_loss(seed, steps=1):
    state = functions.init(np.uint32(0))
    for _ in range(steps):  # the head starts at zero and hides the first step's dropout
      state, _ = functions.step(state, batch, np.float32(1e-2), np.uint32(0))
    state = state._replace(params=jax.tree.map(lambda x: x.copy(), state.params))
    nll = functions.evaluate(state.params, batch)[0]
    _, metrics = functions.step(state, batch, np.float32(0.0), np.uint32(seed))
    return float(metrics["loss_sum"]), float(nll.sum())

  assert second_loss(0) == second_loss(0)
  assert second_loss(0)[0] != second_loss(1)[0]
  assert second_loss(0)[0] != second_loss(0)[1]  # evaluation has none


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


def test_bits_per_byte_count_the_text_that_is_predicted(tiny, cache):
  """A model that knows nothing: ln V nats for each prediction, sentinels included."""
  tiny.objective, tiny.model.family = "span", "encoder_decoder"
  tiny.model.width, tiny.model.depth, tiny.model.heads = 16, 1, 2
  tiny.data.isolate_documents = False
  tiny.corruption.sentinels = 8
  config, tokens = resolve(tiny), dataset.prepare(tiny)
  functions = step.program(config, tokens.vocab_size)
  result = loop.evaluate(functions, functions.init(np.uint32(0)), tokens, config)
  targets = [b["targets_BT"][b["weights_BT"] == 1] for b in validation_batches(tokens, config)]
  targets = np.concatenate(targets)
  assert result["eval_tokens"] == len(targets)
  assert result["loss"] == pytest.approx(math.log(257 + 8), rel=1e-6)
  n_bytes = (targets < 256).sum()
  assert n_bytes < len(targets)
  assert result["bits_per_byte"] == pytest.approx(
    len(targets) * math.log2(257 + 8) / n_bytes, rel=1e-6
  )


def test_state_is_donated(tiny, cache):
  tokens = dataset.prepare(tiny)
  config = resolve(tiny)
  functions = step.program(config, tokens.vocab_size)
  state = functions.init(np.uint32(0))
  batch = next(train_batches(tokens, config, start_step=0))
  functions.step(state, batch, np.float32(1e-3), np.uint32(0))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_bad_configs_are_refused_in_one_line(tiny, tmp_path):
  for section, field, value, message in (
    ("optim", "warmup_tokens", 10_000, "shorten the warmup"),
    ("train", "tokens", 10**9, "epochs"),
    ("model", "size", 99, "ladder 'small' has"),
    ("model", "mlp", "gelo", "gelo"),
    ("model", "family", "encoder", "set model.family='decoder'"),
    ("data", "tokenizer", "bpe:600", "smaller than its embedding"),
  ):
    bad = tiny.copy_and_resolve_references()
    bad[section][field] = value
    with pytest.raises(ValueError, match=message) as error:
      loop.train(bad, tmp_path / "bad")
    assert "\n" not in str(error.value)
  assert not (tmp_path / "bad").exists()


def test_a_folder_has_one_owner(tiny, tmp_path):
  with files.owned(tmp_path), pytest.raises(files.FolderInUseError, match="in use by process"):
    loop.train(tiny, tmp_path)


def test_a_run_of_another_model_is_refused_and_its_checkpoints_stay(tiny, tmp_path):
  tiny.train.stop_at_step = 20
  tiny.model.dtype = "bfloat16"
  loop.train(tiny, tmp_path)
  kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
  record = json.loads((tmp_path / "run.json").read_text())
  for status in ("done", "running"):
    (tmp_path / "run.json").write_text(json.dumps(record | {"status": status}))
    for field, value in (("dtype", "float32"), ("weights", "bfloat16")):
      other = tiny.copy_and_resolve_references()
      other.model[field] = value
      with pytest.raises(ValueError, match=f"holds a run with model.{field}=.*{value}"):
        loop.train(other, tmp_path)
  assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == kept
  tiny.model.remat = "full"  # changes no number
  assert loop.train(tiny, tmp_path)["first_step"] == 20
