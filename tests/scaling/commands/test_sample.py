"""`isoflop sample`: prompts continued, masks and spans filled in."""

import re

import numpy as np
import pytest

from train import restore

slow = pytest.mark.slow


@pytest.fixture
def sample(isoflop):
  def run(folder, *argv):
    code, out, err = isoflop("sample", f"--checkpoint={folder}", *argv)
    assert code == 0, err
    return out

  return run


def test_a_prompt_is_continued(sample, trained):
  draw = [trained("gpt2"), "--prompt=the day", "--temperature=2", "--max_new_tokens=12"]
  text = sample(*draw)
  assert text.startswith("the day")
  assert len(text) > len("the day\n")
  assert sample(trained("gpt2") / "checkpoints", *draw[1:]) == text
  assert sample(*draw, "--seed=1") != text
  several = sample(*draw, "--prompt=a", "--num_samples=2")
  numbered = [("1", "the day"), ("2", "the day"), ("3", "a"), ("4", "a")]
  assert re.findall("^=== (.)\n(the day|a)", several, re.M) == numbered
  assert several.startswith(f"=== 1\n{text}")  # more rows do not change the first


def test_temperature_0_draws_the_most_probable_token(sample, trained):
  folder = trained("gpt2")
  run = restore.restore(str(folder))
  best = int(np.argmax(run.model(np.array([[256, *b"the day"]]))[0, -1]))
  text = sample(folder, "--prompt=the day", "--temperature=0", "--max_new_tokens=1")
  assert text == f"the day{run.tokenizer.decode([best])}\n"


@slow
def test_masks_are_filled_in(sample, trained):
  text = sample(trained("bert"), "--prompt=the [MASK] d[MASK]y", "--top_k=3")
  first, *blanks = text.splitlines()
  assert re.fullmatch("the .+ d.+y", first)
  assert [line.split(":")[0] for line in blanks] == ["  blank 1", "  blank 2"]
  for line in blanks:
    shares = [float(share) for share in re.findall(r" (0\.\d{3})(?:,|$)", line)]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)


@slow
def test_spans_are_filled_in(sample, trained):
  text = sample(trained("t5"), "--prompt=the <0> day<1>", "--temperature=3")
  assert re.fullmatch("the .* day.*\n", text, re.DOTALL)
  assert "<" not in text.replace("the <0>", "")


TOO_LONG = "its 41 tokens are more than the model's context of 32"


@pytest.mark.parametrize(
  ("name", "prompt", "message"),
  [
    ("gpt2", "x" * 40, TOO_LONG),
    pytest.param("bert", "[MASK]" * 40, TOO_LONG, marks=slow),
    pytest.param("bert", "the day", "has no blank; this model fills in [MASK]", marks=slow),
    pytest.param("t5", "x" * 40 + "<0>", "are more than the encoder's 32", marks=slow),
    pytest.param("t5", "the day", "has no blank; this model fills in <0>", marks=slow),
    pytest.param("t5", "the <1> day", "its blanks are [1]", marks=slow),
  ],
)
def test_prompts_that_a_model_cannot_use(isoflop, trained, name, prompt, message):
  code, out, err = isoflop("sample", f"--checkpoint={trained(name)}", f"--prompt={prompt}")
  assert (code, out, err.count("\n")) == (2, "", 1)
  assert message in err
