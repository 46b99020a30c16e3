"""Sources of text, and their split."""

import functools
import hashlib
import io
import json
import os
import tempfile

import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st

from configs import base
from configs.errors import ConfigError, DataError
from train.data import dataset, splits, tokenizer
from train.data import sources as corpora


def config(source, **fields):
  c = base.get_config()
  c.data.source = source
  c.data.update(fields)
  return c


def build(source, folder, percent=20.0, **fields):
  """Returns the documents of each split after a round trip through TFDS."""
  folder.mkdir()
  hold_out = functools.partial(splits.hold_out, source, percent)
  splits.build(corpora.open_source(config(source, **fields)), folder, hold_out)
  return {split: list(splits.read(folder, split)) for split in ("train", "validation")}


def write(folder, texts):
  folder.mkdir(exist_ok=True)
  for i, text in enumerate(texts):
    (folder / f"{i:03}.txt").write_bytes(text)


# ------------------------------------------------------------------------------------- documents


@given(st.text(st.sampled_from("ab\né漢🙂"), max_size=300), st.integers(4, 60))
def test_pieces_are_the_text_again_and_break_no_character(text, limit):
  document = text.encode()
  cut = list(corpora.pieces(document, limit))
  assert b"".join(cut) == document
  assert all(len(piece) <= limit for piece in cut)
  for piece in cut:
    piece.decode()
  for piece, following in zip(cut, cut[1:], strict=False):
    if b"\n" in piece:  # at a line end wherever there is one
      assert piece.endswith(b"\n")
    assert following


def test_stdlib_is_python_source_without_tests():
  documents = list(corpora.open_source(config("python_stdlib")).documents())
  import argparse
  import unittest.case

  for module in (argparse, unittest.case):
    with open(module.__file__, "rb") as file:
      assert file.read() in documents
  assert sum(map(len, documents)) > 5e6
  assert not any(b"\nfrom test import support" in document for document in documents)
  assert not any(b"build_time_vars = {" in document[:200] for document in documents)


def test_split_is_by_content_and_duplicates_are_dropped(tmp_path):
  texts = [f"document {i}\n".encode() * 50 for i in range(400)]
  write(tmp_path / "a", [*texts, *texts[:30], b"", b" \n"])
  splits = build(f"text:{tmp_path}/a", tmp_path / "built")
  assert sorted(splits["train"] + splits["validation"]) == sorted(texts)
  threshold = int(0.2 * 2**64)
  for document in texts:  # the rule, in its own words
    low = int(hashlib.sha256(document).hexdigest()[:16], 16) < threshold
    assert (document in splits["validation"]) == low

  write(tmp_path / "a", [*texts[::-1], *(b"another %d\n" % i for i in range(50))])
  larger = build(f"text:{tmp_path}/a", tmp_path / "larger")
  assert set(splits["validation"]) <= set(larger["validation"])
  assert set(splits["train"]) <= set(larger["train"])


def test_a_share_too_small_still_holds_out_a_document(tmp_path):
  write(tmp_path / "a", [b"%d\n" % i * 600 for i in range(70)])
  splits = build(f"text:{tmp_path}/a", tmp_path / "low", percent=1e-6)
  assert len(splits["validation"]) == 1
  splits = build(f"text:{tmp_path}/a", tmp_path / "high", percent=100 - 1e-6)
  assert len(splits["train"]) == 1


def test_one_file_is_cut_into_enough_documents(tmp_path):
  text = "".join(f"line {i}, as long as any other one of them\n" for i in range(20_000))
  (tmp_path / "one.md").write_text(text)
  splits = build(f"text:{tmp_path}/one.md", tmp_path / "built", percent=5.0)
  documents = splits["train"] + splits["validation"]
  assert 64 <= len(documents) <= 70
  assert sum(map(len, documents)) == len(text)
  assert splits["validation"]


def test_many_files_stay_whole(tmp_path):
  texts = [b"%d\n" % i * 5_000 for i in range(64)]
  write(tmp_path / "a", texts)
  assert sorted(corpora.open_source(config(f"text:{tmp_path}/a")).documents()) == sorted(texts)


def test_jsonl_rows_are_documents_of_their_field(tmp_path):
  rows = [{"id": i, "body": f"row {i} é\n"} for i in range(80)]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
  source = corpora.open_source(config(f"text:{tmp_path}", text_field="body"))
  assert list(source.documents()) == [row["body"].encode() for row in rows]


def test_rows_with_a_prompt_are_pairs_and_are_not_cut(tmp_path):
  rows = [{"ask": f"row {i} é", "text": "\n".join("abc" * 400 for _ in range(i))} for i in range(9)]
  (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
  source = corpora.open_source(config(f"text:{tmp_path}", prompt_field="ask"))
  expected = [row["ask"].encode() + b"\xff" + row["text"].encode() for row in rows]
  assert list(source.documents()) == expected
  alone = corpora.open_source(config(f"text:{tmp_path}"))
  assert (source.pairs, alone.pairs) == (True, False)
  assert alone.fingerprint != source.fingerprint


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("a.txt", r"data.prompt_field='ask': .*a\.txt has no fields"),
    ("a.jsonl", r"data.prompt_field='ask': .*line 1 has no such field; its fields are \['text'\]"),
  ],
)
def test_text_without_prompts_is_refused(tmp_path, name, message):
  (tmp_path / name).write_text('{"text": "x"}')
  with pytest.raises(ValueError, match=message):
    list(corpora.open_source(config(f"text:{tmp_path}", prompt_field="ask")).documents())
  with pytest.raises(ValueError, match="data.prompt_field='ask': .*'markov' has no fields"):
    corpora.open_source(config("markov", prompt_field="ask"))


def test_fingerprint_is_of_content_and_not_of_names(tmp_path):
  def fingerprint():
    return corpora.open_source(config(f"text:{tmp_path}")).fingerprint

  (tmp_path / "a.txt").write_text("one\n")
  first = fingerprint()
  (tmp_path / "a.txt").rename(tmp_path / "b.txt")
  (tmp_path / ".hidden.txt").write_text("not part of it")
  (tmp_path / "c.bin").write_text("nor this")
  assert fingerprint() == first
  (tmp_path / "b.txt").write_text("One\n")
  assert fingerprint() != first


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".parquet"])
@pytest.mark.parametrize("codec", ["", "gzip", "zstd"])
def test_compressed_text_is_the_text(tmp_path, ending, codec):
  texts = [f"row {i} é\n" * 400 for i in range(80)]
  rows = [{"body": text, "id": i} for i, text in enumerate(texts)]
  content = {
    ".txt": "".join(texts).encode(),
    ".jsonl": "\n".join(map(json.dumps, rows)).encode(),
    ".parquet": None,
  }[ending]
  if content is None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink := io.BytesIO())
    content = sink.getvalue()
  path = tmp_path / f"a{ending}{ {'': '', 'gzip': '.gz', 'zstd': '.zst'}[codec] }"
  path.write_bytes(pyarrow.compress(content, codec, asbytes=True) if codec else content)
  opened = corpora.open_source(config(f"text:{tmp_path}", text_field="body"))
  documents = list(opened.documents())
  assert b"".join(documents) == "".join(texts).encode()
  assert len(documents) >= 64
  if ending != ".txt":
    assert documents == [text.encode() for text in texts]
    with pytest.raises(DataError, match=r"field='text': .* 1 has no such field; .*'body'"):
      list(corpora.open_source(config(f"text:{tmp_path}")).documents())
  path.write_bytes(path.read_bytes()[:-30])
  damaged = corpora.open_source(config(f"text:{tmp_path}", text_field="body"))
  if codec or ending == ".parquet":
    with pytest.raises(DataError, match=f"data.source: {path}") as error:
      list(damaged.documents())
    assert "\n" not in str(error.value)


def test_a_dataset_that_has_to_be_made_first_says_what_that_takes(tmp_path, monkeypatch, capfd):
  class WantsTensorflow(tfds.core.GeneratorBasedBuilder):
    """Its files are read by TensorFlow."""

    VERSION = tfds.core.Version("2.1.0")

    def _info(self):
      features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      raise ModuleNotFoundError("No module named 'tensorflow'")

    def _generate_examples(self):
      yield from ()

  monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  with pytest.raises(DataError, match="'tfds:wants_tensorflow': ModuleNotFoundError: No module"):
    corpora.open_source(config("tfds:wants_tensorflow"))
  said = capfd.readouterr().err.splitlines()[0]
  assert said.startswith(f"tfds:wants_tensorflow/2.1.0 is not prepared in {tmp_path}")
  assert "TensorFlow" in said


def test_tfds_source_reads_the_train_split_of_a_dataset(tmp_path, monkeypatch):
  texts = [f"example {i}\n".encode() * 20 for i in range(90)]
  write(tmp_path / "a", texts)
  splits = build(f"text:{tmp_path}/a", tmp_path / "data")
  monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(tmp_path / "data"))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
  for name in ("isoflop_corpus", "isoflop_corpus:1.0.0"):
    source = corpora.open_source(config(f"tfds:{name}"))
    assert list(source.documents()) == splits["train"]
  with pytest.raises(ValueError, match=r"data.text_field='body': .*has the fields \['text'\]"):
    corpora.open_source(config("tfds:isoflop_corpus", text_field="body"))


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.txt", b"fine\n\xff\n", r"a\.txt: invalid UTF-8, byte 0xff at offset 5"),
    ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', r"line 2 has no such field; .*\['txt'\]"),
    ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "line 2 holds int, not text"),
    ("a.jsonl", b'{"text": "x"}\n"text"\n', "line 2 has no such field; it is not an object"),
    ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
    ("a.jsonl", b'{"text": "x"}\n{"text": "\xc3"}\n', "invalid UTF-8, byte 0xc3 at offset 24"),
    ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1 is not valid Unicode"),
    ("a.txt", b"\n \n", "too small; 0 different"),
    ("a.txt", b"one short text", "too small; 1 different"),
    ("a.txt", b"", "empty"),
    ("a.csv", b"x", "no file ends in .txt, .md, .jsonl"),
  ],
)
def test_bad_text_is_refused_in_one_line(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message) as error:
    build(f"text:{tmp_path}", tmp_path / "built")
  assert "\n" not in str(error.value)
  assert str(error.value).startswith("data.")


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("text:/no/such/folder", "no such file or folder: /no/such/folder"),
    ("text:", "unknown; choose python_stdlib"),
    ("books", "unknown; choose python_stdlib"),
    ("markov:2", "unknown; choose python_stdlib"),
    ("tfds:no_such_dataset_anywhere", "DatasetNotFoundError"),
  ],
)
def test_bad_source_is_refused_in_one_line(source, message):
  with pytest.raises(ValueError, match=message) as error:
    corpora.open_source(config(source))
  assert "\n" not in str(error.value)


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path):
  texts = iter([[b"a\n", b"b\n"], [b"a\n", b"b\n"], [b"a\n", b"c\n"]])
  corpus = corpora.Corpus("text:x", "", lambda: iter(next(texts)))
  with pytest.raises(ValueError, match="changed while it was being read"):
    splits.build(corpus, tmp_path, functools.partial(splits.hold_out, "", 50.0))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_what_was_read_is_what_was_fingerprinted(tmp_path, name):
  """Else its tokens would be kept under the fingerprint of another text."""
  path = tmp_path / name
  row = '{{"text": "{}"}}\n' if name == "a.jsonl" else "{}\n"
  path.write_text(row.format("before") * 200)
  corpus = corpora.open_source(config(f"text:{tmp_path}"))
  assert list(corpus.documents())
  path.write_text(row.format("after!") * 200)
  with pytest.raises(DataError, match=f"{path} changed while it was being read"):
    list(corpus.documents())


def test_only_regular_files_are_read(tmp_path):
  """A FIFO or a device would be waited for, for ever."""
  (tmp_path / "a.txt").write_text("text\n" * 900)
  odd = tmp_path / "b.txt"
  for make in (
    lambda: os.mkfifo(odd), lambda: odd.symlink_to("/dev/zero"), lambda: odd.symlink_to("nowhere"),
  ):  # fmt: skip
    make()
    with pytest.raises(DataError, match=f"{odd} is no regular file"):
      corpora.open_source(config(f"text:{tmp_path}"))
    odd.unlink()
  os.mkfifo(odd)
  with pytest.raises(ConfigError, match="no such file; name the tokenizer.json of a run"):
    tokenizer.size(f"file:{odd}")


def test_a_preparation_leaves_no_temporary_folder(tmp_path, monkeypatch):
  (tmp_path / "a.txt").write_text("\n".join(map(str, range(9000))))
  (tmp_path / "temporary").mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
  dataset.prepare(config(f"text:{tmp_path / 'a.txt'}", cache=str(tmp_path / "cache")))
  assert not list((tmp_path / "temporary").iterdir())
