"""Training a part of the weights: the head and the norms of a model, on one device and on eight."""

import math

import jax
import numpy as np
import pytest
from eight_devices import trained

from configs.ladders import resolve
from train import checkpoint, loop, optim, programs, step
from train.data import dataset
from train.data.batches import train_batches

PATTERNS = ("head/.*", ".*norm.*")


@pytest.mark.smoke
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_frozen_weights_stay_and_trained_ones_move(tiny, cache, tmp_path, weights):
  tiny.train.trainable, tiny.model.weights, tiny.model.dtype = PATTERNS, weights, weights
  config = resolve(tiny)
  tokens = dataset.prepare(config)
  functions = programs.program(config, tokens.vocab_size)
  state, batches = functions.init(np.uint32(0)), train_batches(tokens, config)
  before = jax.tree.map(np.asarray, state)
  for _ in range(3):
    state, _ = functions.step(state, next(batches), np.float32(1e-2), np.uint32(0))
  batches.close()
  assert set(state.trainable) == {"decoder", "head"}
  jax.tree.map(np.testing.assert_array_equal, state.frozen, before.frozen)
  assert not any(map(np.array_equal, *map(jax.tree.leaves, (state.trainable, before.trainable))))
  n_trained = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
  arrays = 2 + (weights == "bfloat16")
  kept = sum(leaf.size for leaf in jax.tree.leaves((state.master, state.opt_state)))
  assert arrays * n_trained <= kept <= arrays * n_trained + 2
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(3, state)
    restored = checkpoints.restore(3, functions.state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  again = functions.init_from(step.all_params(state))
  jax.tree.map(np.testing.assert_array_equal, again[1:3], state[1:3])
  assert int(again.step) == 0


def test_a_run_records_how_much_it_trains(tiny, tmp_path):
  tiny.train.trainable, tiny.train.tokens = ("head/kernel",), 640
  tiny.optim.warmup_tokens = 64
  record = loop.train(tiny, tmp_path)
  assert record["status"] == "done"
  assert record["params_trained"] == record["params"]["head"] < record["params"]["total"]
  tiny.train.trainable = (".*",)
  with pytest.raises(ValueError, match="train.trainable"):  # it is another run
    loop.train(tiny, tmp_path)


@pytest.mark.parametrize(
  ("patterns", "message"),
  [
    ((), "trains nothing"),
    (("head",), "'head' matches no parameter; there are decoder/kernel, head/kernel"),
    (("head/.*", "["), r"'\['.*unterminated"),
  ],
)
def test_patterns_that_train_nothing_are_refused(patterns, message):
  with pytest.raises(ValueError, match=message) as error:
    optim.trainable(patterns, ["head/kernel", "decoder/kernel"])
  assert "\n" not in str(error.value)


CASES = {
  "zero3": "strategy=zero3",
  "ddp": "strategy=ddp,microbatches=2",
  "zero1": "strategy=zero1",
  "zero2": "strategy=zero2",
  "hybrid": "strategy=hybrid,shard_factor=4",
  "tensor": "strategy=zero3,tensor=2",
}


@pytest.mark.slow
def test_eight_devices_train_a_part_as_one_does():
  patterns = f",trainable=['{'|'.join(PATTERNS)}']"
  one = trained(1, "decoder", {"one": CASES["zero3"] + patterns})["one"]
  runs = trained(8, "decoder", {name: case + patterns for name, case in CASES.items()})
  bound = 20 * math.log2(16 * 16 * 64) * np.finfo(np.float32).eps
  assert one["losses"][-1] < one["losses"][0] - 0.3
  assert 0 < one["n_trained"] < one["n_params"] / 4
  for name, run in {"one": one, **runs}.items():
    np.testing.assert_allclose(run["losses"], one["losses"], rtol=bound, err_msg=name)
    trainable, frozen = run["unmoved"]
    assert not any(trainable), name
    assert all(frozen), name
    held, planned = run["bytes"], run["planned"]
    assert held["params"] == planned["weights"], name
    assert planned["optimizer"] <= held["optimizer"] <= planned["optimizer"] + 8, name
    if "microbatches" not in CASES.get(name, ""):
      assert held["gradients"] == planned["gradients"], name
