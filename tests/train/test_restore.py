"""Runs read back: sampled, exported, imported, each by its verb."""

import functools
import re

import numpy as np
import pytest
from flax import nnx

from configs import base, presets
from scaling import main
from train import loop, restore, step
from train.data import dataset
from train.objectives import registry


def run(capsys, *argv):
  code = main.main(list(argv))
  output = capsys.readouterr()
  return code, output.out, output.err


BLANKS = {"gpt2": "the day", "bert": "the [MASK] d[MASK]y", "t5": "the <0> day<1>"}


@pytest.fixture(scope="module")
def trained(make_tiny, tmp_path_factory):
  """Trains four steps of a family, once, and returns the run's folder: by its architecture."""
  workdir = tmp_path_factory.mktemp("runs")

  @functools.cache
  def train(name):
    c = make_tiny()
    preset = presets.get_config(name)
    with c.unlocked():
      c.model, c.objective = preset.model, preset.objective
    c.model.size = 0
    c.seed, c.optim.lr = 3, 0.03  # far from any other initialisation
    c.data.isolate_documents = name != "t5"
    c.data.tokenizer = "bpe:300" if name == "bert" else "bytes"
    c.optim.warmup_tokens = 0
    c.optim.schedule = "constant"
    c.train.tokens = 4 * 4 * 32
    assert loop.train(c, workdir / name)["status"] == "done"
    return workdir / name

  return train


def sample(capsys, folder, *argv):
  code, out, err = run(capsys, "sample", f"--checkpoint={folder}", *argv)
  assert code == 0, err
  return out


def test_sample_continues_a_prompt(capsys, trained):
  draw = [trained("gpt2"), "--prompt=the day", "--temperature=2", "--max_new_tokens=12"]
  text = sample(capsys, *draw)
  assert text.startswith("the day")
  assert len(text) > len("the day\n")
  assert sample(capsys, trained("gpt2") / "checkpoints", *draw[1:]) == text
  assert sample(capsys, *draw, "--seed=1") != text
  several = sample(capsys, *draw, "--prompt=a", "--num_samples=2")
  assert re.findall("^=== (.)\n(the day|a)", several, re.M) == [
    ("1", "the day"),
    ("2", "the day"),
    ("3", "a"),
    ("4", "a"),
  ]
  assert several.startswith(f"=== 1\n{text}")  # more rows do not change the first


def test_a_restored_model_is_the_trained_one(capsys, trained):
  """Its validation loss is the one in the run's record, and what it says is the most probable."""
  folder, record = restore.find(str(trained("gpt2")))
  config = base.from_json(record["config"])
  run_ = restore.restore(folder, record, config)
  functions = step.program(config, run_.vocab_size)
  result = loop.evaluate(
    functions,
    step.TrainState(0, nnx.to_pure_dict(nnx.state(run_.model)), (), None),
    dataset.prepare(config),
    config,
  )
  assert result["loss"] == pytest.approx(record["loss"], rel=1e-6)
  ids = [256, *b"the day"]
  assert run_.tokenizer.encode("the day").ids == ids
  best = int(np.argmax(run_.model(np.array([ids]))[0, -1]))
  text = sample(capsys, folder, "--prompt=the day", "--temperature=0", "--max_new_tokens=1")
  assert text == f"the day{run_.tokenizer.decode([best])}\n"


@pytest.mark.slow
def test_sample_fills_in_masks(capsys, trained):
  text = sample(capsys, trained("bert"), f"--prompt={BLANKS['bert']}", "--top_k=3")
  first, *blanks = text.splitlines()
  assert re.fullmatch("the .+ d.+y", first)
  assert [line.split(":")[0] for line in blanks] == ["  blank 1", "  blank 2"]
  for line in blanks:
    shares = [float(share) for share in re.findall(r" (0\.\d{3})(?:,|$)", line)]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)


@pytest.mark.slow
def test_sample_fills_in_spans(capsys, trained):
  text = sample(capsys, trained("t5"), f"--prompt={BLANKS['t5']}", "--temperature=3")
  assert re.fullmatch("the .* day.*\n", text, re.DOTALL)
  assert "<" not in text.replace("the <0>", "")


@pytest.mark.parametrize(
  ("name", "prompt", "line"),
  [
    ("gpt2", "x" * 40, "its 41 tokens are more than the model's context of 32"),
    pytest.param(
      "bert",
      "[MASK]" * 40,
      "its 41 tokens are more than the model's context of 32",
      marks=pytest.mark.slow,
    ),
    pytest.param(
      "t5", "x" * 40 + "<0>", "its 42 tokens are more than the encoder's 32", marks=pytest.mark.slow
    ),
    pytest.param(
      "bert", "the day", "has no blank; this model fills in [MASK]", marks=pytest.mark.slow
    ),
    pytest.param("t5", "the day", "has no blank; this model fills in <0>", marks=pytest.mark.slow),
    pytest.param("t5", "the <1> day", "its blanks are [1]", marks=pytest.mark.slow),
  ],
)
def test_prompts_that_a_model_cannot_use(capsys, trained, name, prompt, line):
  code, out, err = run(capsys, "sample", f"--checkpoint={trained(name)}", f"--prompt={prompt}")
  assert (code, out) == (2, "")
  assert line in err
  assert err.count("\n") == 1


@pytest.mark.parametrize(
  "name", ["gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "t5"))]
)
def test_export_and_import_return_the_run(capsys, trained, tmp_path, name):
  code, _, err = run(
    capsys,
    "export",
    f"--checkpoint={trained(name)}",
    f"--architecture={name}",
    f"--output={tmp_path / 'out'}",
  )
  assert code == 0, err
  written = {path.name for path in (tmp_path / "out").iterdir()}
  assert written >= {"config.json", "model.safetensors", "tokenizer.json"}
  imported = ("import", f"--input={tmp_path / 'out'}", f"--workdir={tmp_path / 'in'}")
  assert run(capsys, *imported)[0] == 0
  draw = [f"--prompt={BLANKS[name]}", "--max_new_tokens=6", "--temperature=2"]
  assert sample(capsys, tmp_path / "in", *draw) == sample(capsys, trained(name), *draw)
  code, out, _ = run(capsys, "runs", f"--workdir={tmp_path / 'in'}")
  assert (code, "imported" in out) == (0, True)
  code, _, err = run(capsys, *imported)
  assert (code, "an import wants a new folder" in err) == (2, True)


@pytest.mark.parametrize("fields", [{"tensor": 2}, {"strategy": "hybrid", "shard_factor": 2}])
def test_a_run_on_several_devices_is_read_on_one(trained, fields):
  folder, record = restore.find(str(trained("gpt2")))
  config = base.from_json(record["config"])
  whole = restore.restore(folder, record, config)
  config.sharding.update(fields)
  read = restore.restore(folder, record, config)
  ids = np.array([[256, *b"the day"]])
  np.testing.assert_array_equal(read.model(ids), whole.model(ids))


def test_what_an_architecture_cannot_express_is_refused(capsys, trained, tmp_path):
  folder, out = trained("gpt2"), tmp_path / "out"
  argv = ("export", f"--checkpoint={folder}", "--architecture=llama", f"--output={out}")
  code, _, err = run(capsys, *argv)
  assert (code, "llama has" in err) == (2, True)
  assert not out.exists()


@pytest.mark.parametrize("objective", ["mlm", "span", "ul2"])
def test_special_ids_have_the_names_that_training_gave_them(tiny, objective):
  """Batches of known text, written out by the tokenizer that a restored run has."""
  tiny.objective = objective
  tiny.model.family = base.family_of(objective)
  tiny.corruption.sentinels = 9
  table = restore.tokenizer_of(tiny, {})
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
