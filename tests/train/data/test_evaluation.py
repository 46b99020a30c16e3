"""Further validation sets: their text, their tokens, and that nothing of them was trained on."""

import numpy as np
import pytest

from configs import base
from train.data import dataset, evaluation

SENTENCE = "the law of loss is a power of compute, and so are the costs.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A corpus of 200 documents, and a second one that has 20 of them beside 30 of its own."""
  path = tmp_path_factory.mktemp("sets")
  for name, numbers in (("text", range(200)), ("other", range(180, 230))):
    (path / name).mkdir()
    for i in numbers:
      (path / name / f"{name}-{i}.txt").write_text(f"{i}: {i % 7 * SENTENCE}{SENTENCE}é漢🙂")
  return path


def opened(folder, source, **fields):
  c = base.get_config()
  c.data.source, c.data.cache = f"text:{folder}/text", f"{folder}/cache"
  c.data.validation_percent = 20.0
  c.data.update(fields)
  tokens = dataset.prepare(c)
  return tokens, evaluation.open_set(c, tokens, source.format(folder))


def documents(tokens, stream):
  """The texts of a stream, without their boundaries."""
  ends = np.flatnonzero(stream == tokens.eos)
  return {bytes(part[1:].astype(np.uint8)) for part in np.split(stream, ends) if len(part) > 1}


def test_the_training_source_leaves_its_validation_split(folder):
  for tokenizer in ("bytes", "bpe:300"):
    tokens, same = opened(folder, "text:{}/text", tokenizer=tokenizer)
    np.testing.assert_array_equal(same.validation_tokens, tokens.validation_tokens)
    assert same.validation_documents == tokens.validation_documents
    assert same.fingerprint != tokens.fingerprint


def test_documents_of_the_training_split_are_left_out(folder, capfd):
  tokens, other = opened(folder, "text:{}/other")
  trained = documents(tokens, tokens.train_tokens)
  texts = documents(tokens, other.validation_tokens)
  whole = {path.read_bytes() for path in (folder / "other").iterdir()}
  assert texts == whole - trained
  assert len(whole & trained) > 10
  assert texts & documents(tokens, tokens.validation_tokens)  # held out: no leak
  assert len(texts) == other.validation_documents
  said = f"{len(whole & trained)} of 50 documents are in the training text"
  assert said in capfd.readouterr().err


def test_a_set_has_the_tokens_of_the_run_and_is_made_again_for_others(folder, capfd):
  _, as_bytes = opened(folder, "text:{}/other")
  tokens, as_bpe = opened(folder, "text:{}/other", tokenizer="bpe:300")
  lengths = tokens.token_bytes_V[as_bpe.validation_tokens]
  assert lengths.sum() == (as_bytes.validation_tokens != as_bytes.eos).sum()
  assert len(as_bpe.validation_tokens) < len(as_bytes.validation_tokens)
  less, _ = opened(folder, "text:{}/other", tokenizer="bpe:301")
  assert less.tokenizer_hash != tokens.tokenizer_hash
  made = {path.name for path in tokens.path.parent.iterdir()}
  assert sum(name.startswith("bpe-300-") for name in made) == 2  # of the two sources
  assert sum(name.startswith("bpe-301-") for name in made) == 1
  capfd.readouterr()
  opened(folder, "text:{}/other")
  assert capfd.readouterr().err == ""  # nothing is made twice


def test_a_text_that_was_trained_on_is_refused(folder, tmp_path):
  tokens, _ = opened(folder, "text:{}/other")
  trained = next(iter(sorted(documents(tokens, tokens.train_tokens))))
  (tmp_path / "a.txt").write_bytes(trained)
  with pytest.raises(ValueError, match=r"all of its 1 document\(s\) are in the training text"):
    opened(folder, f"text:{tmp_path}")
  with pytest.raises(ValueError, match="no such file or folder"):
    opened(folder, "text:{}/nowhere")
