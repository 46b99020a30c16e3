"""What a folder holds is the run that is asked for, or it is refused; so is what makes no sense."""

import math

import numpy as np
import pytest

from configs import base
from train import checkpoint, loop, optim, step
from train.data import dataset
from train.system import files


@pytest.fixture(scope="module")
def done(make_tiny, tmp_path_factory):
  """A config and the folder in which it was trained."""
  config, folder = make_tiny(), tmp_path_factory.mktemp("runs") / "done"
  config.train.tokens, config.model.dtype = 10 * 128, "bfloat16"
  loop.train(config, folder)
  return config, folder


OTHERS = {
  "seed": 5,
  "model.dtype": "float32",
  "model.weights": "bfloat16",
  "optim.b2": 0.5,
  "optim.weight_decay": 0.0,
  "optim.clip_norm": 0.0,
  "optim.schedule": "cosine",
  "data.batch_size": 8,
  "data.seq_len": 16,
  "data.isolate_documents": False,
  "train.tokens": 20 * 128,
  "train.eval_tokens": 1024,
  "corruption.mlm_rate": 0.3,
}


def test_a_folder_of_another_run_is_refused(done):
  """Finished, or to be gone on with: by the field that differs; what is there stays."""
  config, folder = done[0].copy_and_resolve_references(), done[1]
  stored = files.read_json(folder / "run.json")
  kept = sorted((folder / "checkpoints").rglob("*"))
  for status in ("done", "running"):
    files.write_json(folder / "run.json", files.with_digests(stored | {"status": status}))
    for field, value in OTHERS.items():
      other = config.copy_and_resolve_references()
      other.update_from_flattened_dict({field: value})
      if field in ("data.batch_size", "data.seq_len"):  # as many steps
        other.train.tokens = 10 * other.data.batch_size * other.data.seq_len
      name = "steps" if field == "train.tokens" else field
      with pytest.raises(ValueError, match=f"workdir=.* holds a run with {name}="):
        loop.train(other, folder)
  assert sorted((folder / "checkpoints").rglob("*")) == kept
  config.train.eval_batch_size, config.data.max_epochs, config.optim.lr_ref = 8, 2.0, 6e-3
  config.model.remat = "full"  # changes no number, as the others
  assert loop.train(config, folder)["first_step"] == 10


def test_a_branch_is_of_a_trunk_of_its_own_batches_at_a_constant_rate(make_tiny, tmp_path):
  config = make_tiny()
  config.train.tokens = 20 * 128
  trunk = config.copy_and_resolve_references()
  trunk.optim.schedule, trunk.train.keep_steps, trunk.train.tokens = "constant", (16,), 16 * 128
  loop.train(trunk, tmp_path / "trunk")
  config.train.branch_from = str(tmp_path / "trunk" / "checkpoints")
  for field, value in (("seed", 3), ("data.batch_size", 8), ("optim.b2", 0.5)):
    other = config.copy_and_resolve_references()
    other.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=f"branch_from=.* holds a run with {field}="):
      loop.train(other, tmp_path / "branch")
  other = config.copy_and_resolve_references()
  other.optim.schedule = "cosine"
  with pytest.raises(ValueError, match="optim.schedule='cosine': a branch is the cooldown"):
    loop.train(other, tmp_path / "branch")
  held = files.read_json(tmp_path / "trunk" / "run.json")
  held["config"]["optim"]["schedule"] = "wsd"
  files.write_json(tmp_path / "trunk" / "run.json", files.with_digests(held))
  with pytest.raises(ValueError, match="stays as it is until step 13, .* begins at step 16"):
    loop.train(config, tmp_path / "branch")
  assert optim.cooldown_start(config.optim, 20) == 16
  held["config"]["optim"]["schedule"] = "constant"
  files.write_json(tmp_path / "trunk" / "run.json", files.with_digests(held))
  assert loop.train(config, tmp_path / "branch")["first_step"] == 16


def test_a_run_that_ends_early_is_recorded_as_it_was_trained_and_may_go_on(tiny, tmp_path):
  """Its rate is that of the whole schedule."""
  whole = loop.train(tiny, tmp_path / "whole")
  tiny.train.stop_at_step = 20
  early = loop.train(tiny, tmp_path / "early")
  assert (early["status"], early["steps"], early["D"]) == ("done", 20, 20 * 128)
  assert early["C"] == pytest.approx(whole["C"] / 3)
  assert loop.train(tiny, tmp_path / "early") == early
  tiny.train.stop_at_step = 0
  late = loop.train(tiny, tmp_path / "early")
  assert (late["first_step"], late["steps"], late["loss"]) == (20, 60, whole["loss"])
  tiny.train.stop_at_step = 20
  with pytest.raises(ValueError, match="stop_at_step=20: the run has come to step 60"):
    loop.train(tiny, tmp_path / "early")


def test_evaluations_on_the_way_survive_a_stop_at_their_step(tiny, tmp_path):
  tiny.train.eval_every_steps = 20
  calls = iter(range(1, 1000))
  with pytest.raises(loop.Interrupted):
    loop.train(tiny, tmp_path, should_stop=lambda: next(calls) == 20)
  loop.train(tiny, tmp_path)
  # A kill between the last checkpoint and run.json: the last evaluation is made again.
  made = files.read_json(tmp_path / "run.json")
  files.write_json(tmp_path / "run.json", files.with_digests(made | {"status": "running"}))
  assert loop.train(tiny, tmp_path)["loss"] == made["loss"]
  rows = files.read_rows(tmp_path / "metrics.jsonl")
  assert [row["step"] for row in rows if "eval_loss" in row] == [20, 40, 60]


@pytest.mark.parametrize(
  "error",
  [MemoryError(), OSError(24, "Too many open files"), ValueError("RESOURCE_EXHAUSTED: memory")],
)
def test_what_the_machine_cannot_read_now_is_not_damaged(done, monkeypatch, error):
  config, folder = done
  with checkpoint.Checkpoints(folder / "checkpoints") as kept:
    monkeypatch.setattr(kept._manager, "restore", lambda *_, **__: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
      kept.restore_latest(step.TrainState(np.int32(0), {"w": np.zeros(1)}, {}, (), ()))
  assert (folder / "checkpoints" / "10").is_dir()
  assert not (folder / "damaged").exists()


@pytest.mark.slow
def test_a_batch_with_nothing_to_predict_changes_no_weight_by_its_gradient(tiny, tmp_path):
  tiny.objective, tiny.model.family, tiny.corruption.mlm_rate = "mlm", "encoder", 1e-3
  tiny.data.seq_len = 32
  result = loop.train(tiny, tmp_path)
  assert result["status"] == "done"
  assert any(row.get("train_loss") == 0 for row in files.read_rows(tmp_path / "metrics.jsonl"))


@pytest.mark.parametrize(
  ("field", "value"), [("seed", -1), ("model.mlp", "gelo"), ("optim.lr", math.nan)]
)
def test_a_value_that_is_not_allowed_is_named_before_the_text_is_read(field, value, monkeypatch):
  config = base.get_config()
  config.update_from_flattened_dict({field: value})
  monkeypatch.setattr(dataset, "prepare", lambda _: pytest.fail("the text was read"))
  with pytest.raises(ValueError, match=rf"^{field}=.*: (must|unknown)") as refused:
    loop.train(config, "/nonexistent")
  assert "\n" not in str(refused.value)
