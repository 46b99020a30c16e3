"""Tokenizers, and the token cache."""

import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from configs import base
from train.data import dataset, sources
from train.data import tokenizer as tokenizers

WORDS = "the law of loss is a power of compute, and so are the costs.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A corpus of 300 documents of one to forty lines."""
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp("corpus")
  (path / "text").mkdir()
  for i in range(300):
    lines = (f"{i} {j} {WORDS}" for j in range(rng.integers(1, 40)))
    (path / "text" / f"{i}.txt").write_text("".join(lines) + "é漢🙂")
  return path


def make(folder, **fields):
  c = base.get_config()
  c.data.source = f"text:{folder}/text"
  c.data.cache = f"{folder}/cache"
  c.data.validation_percent = 20.0
  c.data.seq_len = 64
  c.data.update(fields)
  return c


@pytest.fixture
def config(folder):
  return make(folder)


@pytest.fixture
def data(config):
  return dataset.prepare(config)


# ------------------------------------------------------------------------------------ tokenizers


def decode(tokenizer, ids):
  return b"".join(tokenizer.table[i] for i in ids)


@pytest.fixture(scope="module")
def bpe():
  return tokenizers.train("bpe:280", iter([(WORDS * 50).encode()]))


@settings(max_examples=60)
@given(st.lists(st.text(max_size=80), max_size=4))
def test_tokenizers_give_any_text_back(bpe, texts):
  texts = [*texts, tokenizers.EOS, "the law \r\n\t\x00 é漢🙂" + WORDS]
  documents = [text.encode() for text in texts]
  for tokenizer in (tokenizers.train("bytes", iter(())), bpe):
    for document, ids in zip(documents, tokenizer.encode(documents), strict=True):
      assert decode(tokenizer, ids) == document
      assert tokenizer.token_bytes[ids.astype(int)].sum() == len(document)
      assert len(ids) == 0 or ids.max() < tokenizer.eos


def test_byte_tokenizer_takes_any_bytes():
  tokenizer = tokenizers.train("bytes", iter(()))
  every = bytes(range(256))
  (ids,) = tokenizer.encode([every])
  assert ids.tolist() == list(range(256))
  assert decode(tokenizer, [*ids, tokenizer.eos]) == every
  assert (tokenizer.vocab_size, tokenizer.eos) == (257, 256)
  assert tokenizer.token_bytes.tolist() == [1] * 256 + [0]


def test_bpe_learns_saves_and_repeats(bpe, tmp_path):
  assert (bpe.vocab_size, bpe.eos) == (280, 279)
  (ids,) = bpe.encode([WORDS.encode()])
  assert len(ids) < len(WORDS) / 2  # it has merged something
  again = tokenizers.train("bpe:280", iter([(WORDS * 50).encode()]))
  assert (again.hash, again.table) == (bpe.hash, bpe.table)
  assert again.encode([WORDS.encode()])[0].tolist() == ids.tolist()
  bpe.save(tmp_path)
  library = Library.from_file(str(tmp_path / tokenizers.FILE))
  assert library.encode(WORDS).ids == ids.tolist()
  smaller = tokenizers.train("bpe:270", iter([(WORDS * 50).encode()]))
  assert smaller.hash != bpe.hash


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("bpe:256", "too small; 257"),
    ("bpe:", "unknown; choose bytes"),
    ("bpe:4k", "unknown; choose bytes"),
    ("bytes:300", "unknown; choose bytes"),
    ("words", "unknown; choose bytes"),
    ("bpe:5000", "only 2.. tokens to learn; use bpe:2"),
  ],
)
def test_bad_tokenizers_are_refused(name, message):
  with pytest.raises(ValueError, match=f"data.tokenizer='{name}': .*{message}"):
    tokenizers.train(name, iter([b"a few words only"]))


# ----------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:400"])
def test_streams_are_the_documents_between_boundaries(folder, tokenizer):
  config = make(folder, tokenizer=tokenizer)
  data = dataset.prepare(config)
  library = data.path / tokenizers.FILE

  def decode(ids):
    if tokenizer == "bytes":
      return bytes(ids.tolist())
    return Library.from_file(str(library)).decode(ids.tolist()).encode()

  documents = {}
  for split, stream in (("train", data.train_tokens), ("validation", data.validation_tokens)):
    assert stream[0] == stream[-1] == data.eos
    assert stream.max() < data.vocab_size
    edges = np.flatnonzero(stream == data.eos)
    documents[split] = [decode(stream[a + 1 : b]) for a, b in itertools.pairwise(edges)]
    assert data.token_bytes_V[stream].sum() == sum(map(len, documents[split]))
  assert len(documents["train"]) == data.train_documents
  assert len(documents["validation"]) == data.validation_documents
  assert sorted(documents["train"] + documents["validation"]) == sorted(
    sources.open_source(config).documents()
  )
  assert data.train_token_count == len(data.train_tokens) - 1


def test_markov_data_carries_its_floor(tmp_path):
  config = make(tmp_path, source="markov", markov_tokens=131_072, seq_len=128)
  data = dataset.prepare(config)
  assert (data.train_documents, data.validation_documents) == (1, 1)
  assert data.floor == pytest.approx(3.66657, abs=1e-5)
  config.data.tokenizer = "bpe:300"
  with pytest.raises(ValueError, match="data.tokenizer='bpe:300': markov is not text"):
    dataset.prepare(config)


def test_fingerprint_follows_content_and_options(folder, data, tmp_path):
  shutil.copytree(folder / "text", tmp_path / "text")
  assert dataset.prepare(make(tmp_path)).fingerprint == data.fingerprint
  fewer = dataset.prepare(make(tmp_path, validation_percent=10.0))
  assert fewer.fingerprint != data.fingerprint
  assert fewer.validation_documents < data.validation_documents
  (tmp_path / "text" / "0.txt").write_text("changed")
  changed = dataset.prepare(make(tmp_path))
  assert changed.fingerprint != data.fingerprint  # a stale cache would answer as before
  assert changed.path != data.path


def damage(path, how):
  match how:
    case "flip":
      with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    case "truncate":
      os.truncate(path, path.stat().st_size - 2)
    case "remove":
      path.unlink()


@pytest.mark.parametrize("how", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("name", ["train.bin", dataset.SIDECAR, dataset.MANIFEST])
def test_a_damaged_cache_is_prepared_again(folder, data, config, name, how):
  train, validation = np.array(data.train_tokens), np.array(data.validation_tokens)
  damage(data.path / name, how)
  again = dataset.prepare(config)
  assert np.array_equal(again.train_tokens, train)
  assert np.array_equal(again.validation_tokens, validation)


def test_damaged_documents_are_written_again(folder, data, config):
  train = np.array(data.train_tokens)
  shutil.rmtree(data.path)
  (record,) = (data.path.parent / "documents").rglob("*train.array_record*")
  damage(record, "flip")
  assert np.array_equal(dataset.prepare(config).train_tokens, train)


def _prepare(config_json, barrier, results):
  config = base.get_config()
  config.data.update(json.loads(config_json))
  barrier.wait()
  data = dataset.prepare(config)
  results.put((data.path.stat().st_ino, int(np.sum(data.train_tokens, dtype=np.int64))))


def test_two_processes_prepare_once(folder, tmp_path):
  config = make(folder, cache=str(tmp_path))
  context = multiprocessing.get_context("spawn")
  barrier, results = context.Barrier(2), context.Queue()
  arguments = (config.data.to_json(), barrier, results)
  processes = [context.Process(target=_prepare, args=arguments) for _ in range(2)]
  for process in processes:
    process.start()
  first, second = results.get(timeout=900), results.get(timeout=900)
  for process in processes:
    process.join(timeout=900)
  assert first == second  # the same folder: the second process did not write it once more


def run(code, config):
  """Runs a program of which `config` is a variable in a process of its own."""
  start = "import json, sys; from configs import base; from train.data import dataset, splits\n"
  start += "config = base.get_config(); config.data.update(json.loads(sys.argv[1]))\n"
  command = [sys.executable, "-c", start + code, config.data.to_json()]
  return subprocess.run(command, check=False, capture_output=True, text=True)


def test_killed_preparation_leaves_nothing_that_is_used(folder, data, tmp_path):
  config = make(folder, cache=str(tmp_path))
  for stage in ("_write", "read"):  # while the documents, then while the tokens are written
    code = (
      f"import os; splits.{stage} = lambda *_: os.kill(os.getpid(), 9); dataset.prepare(config)"
    )
    assert run(code, config).returncode == -9
    assert list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob(dataset.SIDECAR))
  again = dataset.prepare(config)
  assert np.array_equal(again.train_tokens, data.train_tokens)
  assert not list(tmp_path.rglob("*.partial"))


def test_a_warm_start_imports_nothing_slow(config, data):
  loaded = run("dataset.prepare(config); print(*sys.modules)", config).stdout.split()
  assert "numpy" in loaded
  assert not {"tensorflow", "tensorflow_datasets", "tokenizers", "jax"} & set(loaded)


def test_unwritable_cache_is_one_clear_line(folder, tmp_path):
  (tmp_path / "file").write_text("in the way")
  config = make(folder, cache=str(tmp_path / "file" / "cache"))
  with pytest.raises(ValueError, match="data.cache='.*': cannot prepare .*set data.cache") as error:
    dataset.prepare(config)
  assert "\n" not in str(error.value)


def test_held_out_text_that_is_in_the_training_text_is_measured_and_warned_about(tmp_path, capfd):
  rng = np.random.default_rng(0)
  (tmp_path / "text").mkdir()
  common, *own = ("".join(rng.choice(list("abcdefgh "), 1000)) for _ in range(81))
  for i, text in enumerate(own):
    (tmp_path / "text" / f"{i}.txt").write_text(f"{common}\n{text}\n")
  data = dataset.prepare(make(tmp_path))
  assert 0.1 < data.overlap < 0.9
  assert (
    f"{data.overlap:.0%} of the held-out text stands in the training text" in capfd.readouterr().err
  )
  assert dataset.prepare(make(tmp_path)).overlap == data.overlap
  assert capfd.readouterr().err == ""
