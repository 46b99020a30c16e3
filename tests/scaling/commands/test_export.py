"""`isoflop export` and `import`: a run goes out to the transformers library and comes back."""

import pytest

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
