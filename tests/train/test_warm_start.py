"""A warm start takes another run's weights as they are, maps them by a rule, or refuses."""

import functools
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util

from configs import base, ladders, presets
from scaling.commands import import_
from train import loop, pack, programs, restore, start, step, transfer
from train.evaluate import evaluate
from train.record import plain
from train.system import files

GOLDEN = Path(__file__).parents[1] / "golden" / "gpt2"
STILL = 1e-30  # a learning rate that changes no weight


@pytest.fixture(scope="module")
def other_text(tmp_path_factory):
  folder = tmp_path_factory.mktemp("other")
  rng = np.random.default_rng(7)
  for i in range(60):
    (folder / f"{i}.txt").write_text(" ".join(rng.choice(["alpha", "beta", "gamma"], 300)) + ".\n")
  return folder


def with_objective(config, objective):
  config.objective, config.model.family = objective, base.family_of(objective)
  config.data.isolate_documents = config.model.family != "encoder_decoder"
  config.corruption.sentinels = 9
  return config


@pytest.fixture(scope="module")
def parent(make_tiny, tmp_path_factory):
  """Trains a run of an objective, once, and returns its folder."""
  runs = tmp_path_factory.mktemp("parents")

  @functools.cache
  def train(objective):
    config = with_objective(make_tiny(), objective)
    config.train.tokens, config.optim.lr, config.seed = 20 * 4 * 32, 0.02, 3
    loop.train(config, runs / objective)
    return runs / objective

  return train


@pytest.fixture
def child(make_tiny, other_text):
  """Makes the config of a run on other text that starts from a parent."""

  def make(folder, objective, **fields):
    config = with_objective(make_tiny(), objective)
    config.data.source, config.data.max_epochs = f"text:{other_text}", 100.0
    config.train.warm_start, config.train.tokens = str(folder), 10 * 4 * 32
    config.update_from_flattened_dict({x.replace("__", "."): y for x, y in fields.items()})
    return config

  return make


def weights(state):
  """Returns a state's weights by path, as they are updated."""
  params = step.merge(state.master or state.trainable, state.frozen)
  return jax.tree.map(np.asarray, traverse_util.flatten_dict(params, sep="/"))


def weights_of(folder):
  model = restore.restore(str(folder)).model
  params = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)), sep="/")
  return jax.tree.map(np.asarray, params)


def begin(config, folder):
  """Starts a run: returns its state, and its evaluation before the first step."""
  with loop.Run(config, folder, lambda: False, lambda _: None) as run:
    state = run.start()
    return state, evaluate(run.program, state, run._tokens, run.config)["loss"]


def evaluated(folder, config):
  """Returns the loss of a parent on a child's data: of a run of none but the parent's weights."""
  model = restore.restore(str(folder)).model
  with loop.Run(config, folder.parent / "none", lambda: False, lambda _: None) as run:
    state = run.program.init_from(nnx.to_pure_dict(nnx.state(model)))
    return evaluate(run.program, state, run._tokens, run.config)["loss"]


@pytest.mark.parametrize(
  ("before", "after"),
  [
    ("clm", "prefix"),
    *(pytest.param(x, x, marks=pytest.mark.slow) for x in ("clm", "mlm", "span")),
  ],
)
def test_a_run_on_other_text_starts_from_its_parents_weights_and_loss(
  parent, child, tmp_path, before, after
):
  config = child(parent(before) / "checkpoints", after, data__seq_len=24)
  state, loss = begin(config, tmp_path)
  assert loss == evaluated(parent(before), config)
  assert int(state.step) == 0
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
  expected = weights_of(parent(before))
  jax.tree.map(np.testing.assert_array_equal, weights(state), expected)
  record = loop.train(config, tmp_path)
  assert record["loss"] < loss - 0.1
  steps = files.read_json(parent(before) / "run.json")["steps"]
  assert record["warm_start"]["folder"] == str(parent(before))
  assert record["warm_start"]["step"] == steps


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero3", "zero1"])
def test_on_eight_devices_the_first_loss_is_the_parents(parent, child, tmp_path, strategy):
  config = child(parent("clm"), "clm", optim__lr=STILL, data__batch_size=8)
  argv = [
    f"--config.{name}={getattr(config, section)[field]}"
    for name in ("data.source", "data.seq_len", "data.batch_size", "data.max_epochs", "optim.lr",
                 "train.warm_start", "train.tokens", "train.eval_tokens", "model.size",
                 "optim.warmup_tokens")
    for section, field in [name.split(".")]
  ]  # fmt: skip
  command = [sys.executable, "-m", "scaling.main", "train", f"--workdir={tmp_path / 'run'}", *argv]
  command += [f"--config.sharding.strategy={strategy}", "--config.model.dtype=bfloat16"]
  command += ["--config.model.weights=bfloat16"]
  environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  config.model.dtype = config.model.weights = "bfloat16"
  record = files.read_json(tmp_path / "run" / "run.json")
  assert record["loss"] == pytest.approx(evaluated(parent("clm"), config), rel=1e-6)
  ours, theirs = weights_of(tmp_path / "run"), weights_of(parent("clm"))  # the float32 masters
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_new_special_ids_are_matched_by_name_and_cost_at_most_their_number(parent, child, tmp_path):
  """span's 9 sentinels become 12: the new ones stand before the old, as sentinel 0 is the last."""
  fields = {"corruption__sentinels": 12, "train__warm_start_rule": "grow"}
  state, loss = begin(child(parent("span"), "span", **fields), tmp_path / "span")
  old = evaluated(parent("span"), child(parent("span"), "span"))
  assert old < loss <= old + math.log1p(3 / (257 + 9))
  theirs = weights_of(parent("span"))["embedding/table"]
  table_VD = weights(state)["embedding/table"]
  np.testing.assert_array_equal(table_VD[:257], theirs[:257])
  np.testing.assert_array_equal(table_VD[257 + 3 :], theirs[257:])
  np.testing.assert_allclose(table_VD[257:260], np.tile(theirs.mean(axis=0), (3, 1)), rtol=1e-5)
  state, _ = begin(child(parent("span"), "ul2", **fields), tmp_path / "ul2")  # three modes before
  np.testing.assert_array_equal(weights(state)["embedding/table"][257 + 3 + 3 :], theirs[257:])


@pytest.mark.parametrize("objective", ["clm", pytest.param("span", marks=pytest.mark.slow)])
def test_new_layers_keep_the_loss_and_are_trained(parent, child, tmp_path, objective):
  shape = {"model__width": 12, "model__heads": 2, "model__depth": 5, "model__encoder_depth": 4}
  config = child(parent(objective), objective, train__warm_start_rule="grow", **shape)
  state, loss = begin(config, tmp_path)
  expected = evaluated(parent(objective), child(parent(objective), objective))
  assert loss == pytest.approx(expected, rel=1e-6)
  assert loop.train(config, tmp_path)["loss"] < loss - 0.1
  before, after = weights(state), weights_of(tmp_path)
  changed_L = np.any(
    before["decoder/block/mlp/down/kernel"] != after["decoder/block/mlp/down/kernel"], axis=(1, 2)
  )
  assert changed_L.all()


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"model__size": 1}, r"\(3, 12, 12\) there and \(3, 16, 16\) here.*model.width=12"),
    ({"model__rotary_base": 500.0}, "computes something else; set model.rotary_base=10000.0"),
    ({"model__mlp": "geglu"}, "set model.mlp='swiglu'"),
    (
      {"model__width": 12, "model__heads": 2, "model__depth": 4},
      r"\(3, .*\) there and \(4, .*\) here; train.warm_start_rule='grow' adds layers",
    ),
    (
      {"model__width": 12, "model__heads": 2, "model__depth": 2, "train__warm_start_rule": "grow"},
      r"\(3, .*\) there and \(2, .*\) here; no rule maps it; set model.depth=3",
    ),
    ({"data__tokenizer": "bpe:260"}, "other tokens, of 257 ids, than data.tokenizer='bpe:260'"),
    ({"train__warm_start": "/nowhere"}, "nowhere: no run.json"),
  ],
)
def test_what_no_rule_maps_is_refused(parent, child, tmp_path, fields, message):
  config = child(parent("clm"), "clm", **fields)
  with pytest.raises(ValueError, match=f"^train.warm_start=.*{message}") as refused:
    loop.train(config, tmp_path)
  assert "\n" not in str(refused.value)
  assert not (tmp_path / "run.json").exists()


def test_layers_are_not_added_where_the_depth_scales_all_of_them(tiny):
  tiny.model.update({"depth_scaling": "completep", "depth": 4})
  tiny.train.warm_start_rule = "grow"
  parent = transfer.Parent(Path(), tiny, "", np.arange(3))
  path, config = "decoder/block/mlp_norm/scale", tiny.copy_and_resolve_references()
  remedy = transfer._refusal(path, (3, 16), (4, 16), parent, config)
  assert remedy == "no rule maps it; set model.depth=3"
  config.model.depth_scaling = "standard"
  assert not transfer._refusal(path, (3, 16), (4, 16), parent, config)


@pytest.mark.parametrize(
  ("before", "after", "message"),
  [
    ("mlm", "clm", "set .*model.family='encoder'"),
    (
      "span",
      "ul2",
      r"\(266, 12\) there and \(269, 12\) here; train.warm_start_rule='grow' matches",
    ),
  ],
)
def test_objectives_that_do_not_fit_are_refused(
  make_tiny, parent, child, tmp_path, before, after, message
):
  """By what the parent's record says: its weights are not read."""
  folder = shutil.copytree(parent("clm"), tmp_path / "parent")
  stored = files.read_json(folder / "run.json")
  stored["config"] = plain(with_objective(make_tiny(), before))
  files.write_json(folder / "run.json", files.with_digests(stored))
  with pytest.raises(ValueError, match=f"^train.warm_start=.*{message}"):
    loop.train(child(folder, after), tmp_path / "child")


def test_a_stopped_child_goes_on_bit_for_bit_without_its_parent(parent, child, tmp_path):
  folder = shutil.copytree(parent("clm"), tmp_path / "parent")
  config = child(folder, "clm")
  whole = loop.train(config, tmp_path / "whole")
  calls = iter(range(1, 1000))
  with pytest.raises(loop.Interrupted):
    loop.train(config, tmp_path / "cut", should_stop=lambda: next(calls) == 6)
  shutil.rmtree(folder)
  cut = loop.train(config, tmp_path / "cut")
  assert (cut["first_step"], cut["loss"], cut["warm_start"]) == (
    6,
    whole["loss"],
    whole["warm_start"],
  )
  jax.tree.map(
    np.testing.assert_array_equal, weights_of(tmp_path / "cut"), weights_of(tmp_path / "whole")
  )


def test_a_start_that_saved_nothing_is_repeated_from_the_same_weights_only(parent, child, tmp_path):
  folder = shutil.copytree(parent("clm"), tmp_path / "parent")
  begin(child(folder, "clm"), tmp_path / "run")
  begin(child(folder, "clm"), tmp_path / "run")
  shutil.rmtree(folder)
  loop.train(child(parent("clm"), "clm"), folder)  # other weights of the same shapes
  with pytest.raises(ValueError, match="has other weights .* than this run started from"):
    begin(child(folder, "clm"), tmp_path / "run")


def test_a_cooldown_inherits_the_parent_of_its_trunk(parent, child, tmp_path):
  trunk = child(parent("clm"), "clm", optim__schedule="constant", train__keep_steps=(8,))
  stored = loop.train(trunk, tmp_path / "trunk")
  config = child(parent("clm"), "clm", train__branch_from=str(tmp_path / "trunk" / "checkpoints"))
  record = loop.train(config, tmp_path / "branch")
  assert (record["first_step"], record["warm_start"]) == (8, stored["warm_start"])


def test_a_part_of_the_weights_is_trained_on_a_parents(parent, child, tmp_path):
  """A pack of two runs, in bfloat16 with float32 masters."""
  fields = {"model__dtype": "bfloat16", "model__weights": "bfloat16"}
  config = child(parent("clm"), "clm", train__trainable=("head/.*",), **fields)
  other = config.copy_and_resolve_references()
  other.seed = 5
  ended = {}
  runs = [(config, tmp_path / "0"), (other, tmp_path / "1")]
  pack.train(runs, lambda: False, lambda *_: None, ended.__setitem__)
  theirs = weights_of(parent("clm"))
  for i in (0, 1):
    assert ended[i]["warm_start"]["folder"] == str(parent("clm"))
    ours = weights_of(tmp_path / str(i))
    rounded = {
      path: np.asarray(x.astype(jax.numpy.bfloat16), np.float32) for path, x in theirs.items()
    }
    assert [path for path in ours if np.any(ours[path] != rounded[path])] == ["head/kernel"]


def test_an_imported_gpt2_keeps_its_logits_and_is_trained(tmp_path):
  """It came without a tokenizer: vocabulary sizes are compared. Its 48 positions are cut to 32."""
  import_.import_run(GOLDEN, tmp_path / "parent")
  config = presets.get_config("gpt2")
  shape = {"width": 16, "depth": 3, "heads": 4, "mlp_width": 40, "norm_eps": 1e-3}
  config.model.update(shape)
  config.data.seq_len, config.data.batch_size = 32, 4
  config.train.warm_start = str(tmp_path / "parent")
  config = ladders.resolve(config)
  program = programs.program(config, 64, jax.devices()[:1])
  head = {"data": {"tokenizer": "ours", "vocab_size": 64}}
  state = start.warm_start(config, program, head, None).state
  model = nnx.merge(program.setup.graphdef, step.all_params(state))
  ids_BT = np.random.default_rng(0).integers(0, 64, (4, 32)).astype(np.int32)
  golden = restore.restore(str(tmp_path / "parent")).model
  np.testing.assert_array_equal(model(ids_BT), golden(ids_BT))
  ones_BT = np.ones_like(ids_BT)
  batch = {
    "inputs_BT": ids_BT,
    "targets_BT": np.roll(ids_BT, -1, axis=1),
    "weights_BT": ones_BT.astype(np.float32),
    "segments_BT": ones_BT,
    "positions_BT": np.tile(np.arange(32, dtype=np.int32), (4, 1)),
  }
  losses = []
  for _ in range(10):
    state, metrics = program.step(state, program.place(batch), np.float32(1e-2), np.uint32(0))
    loss, weight = metrics["sums"]["loss"]
    losses.append(float(loss / weight))
  assert losses[-1] < losses[0] - 0.5
  head["data"]["vocab_size"] = 65
  with pytest.raises(ValueError, match="other tokens, of 64 ids, .* of 65"):
    start.warm_start(config, program, head, None)


def test_a_parents_bpe_is_that_of_other_text(make_tiny, child, tmp_path):
  """Trained anew on the other text, bpe:270 would be another tokenizer."""
  config, folder = make_tiny(), tmp_path / "parent"
  config.data.tokenizer, config.train.tokens = "bpe:270", 4 * 4 * 32
  config.optim.warmup_tokens = 0
  loop.train(config, folder)
  config = child(folder, "clm", data__tokenizer="bpe:268")
  with pytest.raises(ValueError, match=f"set data.tokenizer='(file:{folder}/tokenizer.json)'") as e:
    loop.train(config, tmp_path / "child")
  config.data.tokenizer = str(e.value).split("'")[-2]
  assert loop.train(config, tmp_path / "child")["warm_start"]["step"] == 4
  ours, theirs = (restore.restore(str(path)) for path in (tmp_path / "child", folder))
  assert ours.tokenizer.encode("the day").ids == theirs.tokenizer.encode("the day").ids
  assert ours.vocab_size == theirs.vocab_size == 270


def test_an_import_is_trained_on_with_the_tokenizer_that_it_came_with(
  isoflop, trained, child, tmp_path
):
  exported, imported = tmp_path / "out", tmp_path / "in"
  for argv in (
    ("export", f"--checkpoint={trained('gpt2')}", "--architecture=gpt2", f"--output={exported}"),
    ("import", f"--input={exported}", f"--workdir={imported}"),
  ):
    assert isoflop(*argv)[0] == 0
  config = child(imported, "clm", data__tokenizer=f"file:{imported}/tokenizer.json")
  config.model = presets.get_config("gpt2").model
  config.model.size = 0
  losses = [begin(config, tmp_path / "child")[1]]
  config.train.warm_start, config.data.tokenizer = str(trained("gpt2")), "bytes"
  losses.append(begin(config, tmp_path / "of the original")[1])
  assert losses[0] == losses[1]
  code, out, _ = isoflop("runs", f"--workdir={tmp_path}")
  assert (code, "in at step 0" in out, "gpt2 at step 4" in out) == (0, True, True)


def test_a_sweep_starts_each_size_from_a_parent_of_it(isoflop, corpus, tmp_path):
  argv = ("--config=configs/base.py", "--config.sweep.sizes=(0,1)", "--config.sweep.probe_sizes=()")
  argv += ("--config.sweep.budgets=(8e9,1.2e10,1.6e10)", "--config.optim.warmup_tokens=0")
  argv += (f"--config.data.source=text:{corpus}", "--config.data.max_epochs=100")
  start = f"--config.train.warm_start={tmp_path}/parents/{{size}}"
  code, _, err = isoflop("sweep", f"--workdir={tmp_path / 'sweep'}", *argv, start)
  assert (code, f"train.warm_start={tmp_path}/parents/0: no run.json" in err) == (2, True), err
  assert not (tmp_path / "sweep" / "sweep.json").exists()
