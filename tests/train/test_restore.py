"""Runs read back: the weights, on any number of devices, and the tokenizer."""

import re
import shutil

import numpy as np
import pytest
from flax import nnx

from configs import base
from train import loop, programs, restore, step
from train.data import dataset
from train.data import tokenizer as tokenizers
from train.objectives import registry
from train.system import files


def test_a_restored_model_is_the_trained_one(trained):
  """Its validation loss is the one in the run's record."""
  run, record = restore.restore(str(trained("gpt2"))), files.read_json(trained("gpt2") / "run.json")
  result = loop.evaluate(
    programs.program(run.config, run.vocab_size),
    step.TrainState(0, nnx.to_pure_dict(nnx.state(run.model)), {}, (), None),
    dataset.prepare(run.config),
    run.config,
  )
  assert result["loss"] == pytest.approx(record["loss"], rel=1e-6)
  assert run.tokenizer.encode("the day").ids == [256, *b"the day"]


@pytest.mark.parametrize("fields", [{"tensor": 2}, {"strategy": "hybrid", "shard_factor": 2}])
def test_a_run_on_several_devices_is_read_on_one(trained, tmp_path, fields):
  folder = shutil.copytree(trained("gpt2"), tmp_path / "run")
  whole = restore.restore(str(folder))
  record = files.read_json(folder / "run.json")
  record["config"]["sharding"] |= fields
  files.write_json(folder / "run.json", files.with_digests(record))
  read = restore.restore(str(folder))
  ids = np.array([[256, *b"the day"]])
  np.testing.assert_array_equal(read.model(ids), whole.model(ids))


def test_a_special_token_that_is_spelt_out_is_text_as_in_training(tiny):
  bpe = tokenizers.train("bpe:260", iter([b"some words, and others <|eos|>"] * 9))
  text = "a<|eos|>b [SEP]"
  pieces = {"": [*text.encode()], bpe.serialized: bpe.encode([text.encode()])[0].tolist()}
  for serialized, ids in pieces.items():
    for tiny.objective in ("clm", "completion"):
      library = restore.tokenizer_of(tiny, serialized)
      encoded = library.encode(text).ids
      assert [x for x in encoded if x < library.token_to_id("<|eos|>")] == ids
      assert encoded[0] == library.token_to_id("<|eos|>")
      assert len(encoded) == len(ids) + 1 + (tiny.objective == "completion")
  tiny.objective, tiny.model.family = "mlm", "encoder"
  blank = restore.tokenizer_of(tiny, "")
  assert blank.token_to_id("[MASK]") in blank.encode("a [MASK] b").ids


@pytest.mark.parametrize("objective", ["mlm", "span", "ul2"])
def test_special_ids_have_the_names_that_training_gave_them(tiny, objective):
  """Batches of known text, written out by the tokenizer that a restored run has."""
  tiny.objective = objective
  tiny.model.family = base.family_of(objective)
  tiny.corruption.sentinels = 9
  table = restore.tokenizer_of(tiny, "")
  N, rng = registry.lengths(tiny).text, np.random.default_rng(0)
  text_BN1 = rng.integers(97, 123, (20, N + 1))
  valid_BN, uniform_BU = (
    np.ones((20, N), bool),
    rng.random((20, registry.OBJECTIVES[objective].draws(N))),
  )
  batch = registry.OBJECTIVES[objective].batch(text_BN1, valid_BN, uniform_BU, tiny, 257)

  def written(tokens):
    return table.decode(list(tokens), skip_special_tokens=False)

  assert table.get_vocab_size() == registry.vocab_size(tiny, 257)
  if objective == "mlm":
    assert sum(written(row).count("[MASK]") for row in batch["inputs_BT"]) > 20
    return
  modes = set()
  for row, text in enumerate(text_BN1[:, :-1]):
    source = written(batch["source_BS"][row])
    modes.add(source[:3])
    hidden = re.split(r"<extra_id_\d+>", written(batch["targets_BT"][row]).split("<|eos|>")[0])
    for i, span in enumerate(hidden[1:]):
      source = source.replace(f"<extra_id_{i}>", span)
    assert source.split("<|eos|>")[0].removeprefix(source[: source.find("]") + 1]) == (
      bytes(text.tolist()).decode()
    )
  assert objective == "span" or modes == {"[R]", "[S]", "[X]"}
