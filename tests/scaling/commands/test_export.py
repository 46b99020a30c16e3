"""`isoflop export` and `import`: a run goes out to the transformers library and comes back."""

import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from train import loop

slow = pytest.mark.slow
PROMPTS = {"gpt2": "the day", "bert": "the [MASK] d[MASK]y", "t5": "the <0> day<1>"}


@pytest.mark.parametrize("name", ["gpt2", *(pytest.param(x, marks=slow) for x in ("bert", "t5"))])
def test_export_and_import_return_the_run(isoflop, trained, tmp_path, name):
  exported, imported = tmp_path / "out", tmp_path / "in"
  code, _, err = isoflop(
    "export", f"--checkpoint={trained(name)}", f"--architecture={name}", f"--output={exported}"
  )
  assert code == 0, err
  written = {path.name for path in exported.iterdir()}
  assert written >= {"config.json", "model.safetensors", "tokenizer.json"}
  argv = ("import", f"--input={exported}", f"--workdir={imported}")
  assert isoflop(*argv)[0] == 0
  draw = [f"--prompt={PROMPTS[name]}", "--max_new_tokens=6", "--temperature=2"]
  texts = [isoflop("sample", f"--checkpoint={run}", *draw) for run in (imported, trained(name))]
  assert texts[0] == texts[1]
  assert "imported" in isoflop("runs", f"--workdir={imported}")[1]
  code, _, err = isoflop(*argv)
  assert (code, "an import wants a new folder" in err) == (2, True)


def test_what_an_architecture_cannot_express_is_refused(isoflop, trained, tmp_path):
  checkpoint, out = f"--checkpoint={trained('gpt2')}", tmp_path / "out"
  code, _, err = isoflop("export", checkpoint, "--architecture=llama", f"--output={out}")
  assert (code, "llama has" in err) == (2, True)
  assert not out.exists()


def test_a_tokenizer_that_is_damaged_or_another_models_is_refused(isoflop, tmp_path):
  folder = shutil.copytree(Path(__file__).parents[2] / "golden" / "gpt2", tmp_path / "gpt2")
  file = folder / "tokenizer.json"
  for content, message in (
    (b"garbage", "tokenizer.json is damaged"),
    (b"\xff", "tokenizer.json: not UTF-8"),
    (Tokenizer(models.WordLevel({"a": 5000}, "a")).to_str().encode(), "has an id 5,000"),
  ):
    file.write_bytes(content)
    code, _, err = isoflop("import", f"--input={folder}", f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert message in err
    assert not (tmp_path / "run").exists()
  file.unlink()
  assert isoflop("import", f"--input={folder}", f"--workdir={tmp_path / 'run'}")[0] == 0
  for content in (b"garbage", b"\xff"):
    (tmp_path / "run" / "tokenizer.json").write_bytes(content)
    code, _, err = isoflop("sample", f"--checkpoint={tmp_path / 'run'}", "--prompt=a")
    assert code == 2
    assert len(err.splitlines()) == 1


@slow
def test_a_run_is_read_without_the_text_it_was_trained_on(isoflop, make_tiny, tmp_path):
  """Its folder holds all that `sample`, `export` and `runs` need, and may be moved itself."""
  config = make_tiny()
  text = shutil.copytree(config.data.source.removeprefix("text:"), tmp_path / "text")
  config.data.source, config.data.tokenizer = f"text:{text}", "bpe:300"
  config.data.cache = str(tmp_path / "cache")
  config.train.tokens, config.optim.schedule = 4 * 128, "constant"
  loop.train(config, tmp_path / "run")
  shutil.rmtree(text)
  shutil.rmtree(tmp_path / "cache")
  run = (tmp_path / "run").rename(tmp_path / "moved")
  read = f"--checkpoint={run}"
  assert isoflop("sample", read, "--prompt=a", "--max_new_tokens=2")[0] == 0
  assert isoflop("runs", f"--workdir={run}")[0] == 0
  code, _, err = isoflop("export", read, "--architecture=gpt2", f"--output={tmp_path / 'x'}")
  assert (code, "model." in err) == (2, True)  # GPT-2 is another model
