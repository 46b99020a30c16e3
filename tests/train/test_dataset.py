"""Tokenizers, the token cache, and batches."""

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

from configs import base
from train.data import batches as batches_lib
from train.data import dataset as data_lib
from train.data import sources as corpora
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
  return data_lib.prepare(config)


def take(n, batches):
  return list(itertools.islice(batches, n))


def same(a, b):
  return all(
    x.keys() == y.keys() and all(x[k].dtype == y[k].dtype and np.array_equal(x[k], y[k]) for k in x)
    for x, y in zip(a, b, strict=True)
  )


# ------------------------------------------------------------------------------------ tokenizers


@pytest.fixture(scope="module")
def bpe():
  return tokenizers.train("bpe:280", iter([(WORDS * 50).encode()]))


@settings(max_examples=60)
@given(st.lists(st.text(max_size=80), max_size=4))
def test_tokenizers_give_any_text_back(bpe, texts):
  texts = [*texts, tokenizers.EOS, "the law \r\n\t\x00 é漢🙂" + WORDS]
  for tokenizer in (tokenizers.train("bytes", iter(())), bpe):
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
      assert tokenizer.decode(ids) == text.encode()
      assert tokenizer.token_bytes[ids.astype(int)].sum() == len(text.encode())
      assert len(ids) == 0 or ids.max() < tokenizer.eos


def test_byte_tokenizer_takes_any_bytes():
  tokenizer = tokenizers.train("bytes", iter(()))
  every = bytes(range(256))
  (ids,) = tokenizer.encode([every])
  assert ids.tolist() == list(range(256))
  assert tokenizer.decode([*ids, tokenizer.eos]) == every
  assert (tokenizer.vocab_size, tokenizer.eos) == (257, 256)
  assert tokenizer.token_bytes.tolist() == [1] * 256 + [0]


def test_bpe_learns_saves_and_repeats(bpe, tmp_path):
  assert (bpe.vocab_size, bpe.eos) == (280, 279)
  (ids,) = bpe.encode([WORDS])
  assert len(ids) < len(WORDS) / 2  # it has merged something
  again = tokenizers.train("bpe:280", iter([(WORDS * 50).encode()]))
  bpe.save(tmp_path)
  for other in (again, tokenizers.load("bpe:280", tmp_path)):
    assert (other.hash, other.table) == (bpe.hash, bpe.table)
    assert other.encode([WORDS])[0].tolist() == ids.tolist()
  other = tokenizers.train("bpe:270", iter([(WORDS * 50).encode()]))
  assert other.hash != bpe.hash


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
  data = data_lib.prepare(config)
  decode = tokenizers.load(data.tokenizer, data.path).decode
  found = {}
  for split, stream in (("train", data.train_tokens), ("validation", data.validation_tokens)):
    assert stream[0] == stream[-1] == data.eos
    assert stream.max() < data.vocab_size
    edges = np.flatnonzero(stream == data.eos)
    found[split] = [decode(stream[a + 1 : b]) for a, b in itertools.pairwise(edges)]
    assert data.token_bytes_V[stream].sum() == sum(map(len, found[split]))
  assert len(found["train"]) == data.train_documents
  assert len(found["validation"]) == data.validation_documents
  documents = corpora.open_source(config).documents()
  assert sorted(found["train"] + found["validation"]) == sorted(documents)
  assert data.train_token_count == len(data.train_tokens) - 1


def test_markov_data_carries_its_floor(tmp_path):
  config = make(tmp_path, source="markov", markov_tokens=131_072, seq_len=128)
  data = data_lib.prepare(config)
  assert (data.train_documents, data.validation_documents) == (1, 1)
  assert data.floor == pytest.approx(3.66657, abs=1e-5)
  config.data.tokenizer = "bpe:300"
  with pytest.raises(ValueError, match="data.tokenizer='bpe:300': markov is not text"):
    data_lib.prepare(config)


def test_fingerprint_follows_content_and_options(folder, data, tmp_path):
  shutil.copytree(folder / "text", tmp_path / "text")
  assert data_lib.prepare(make(tmp_path)).fingerprint == data.fingerprint
  fewer = data_lib.prepare(make(tmp_path, validation_percent=10.0))
  assert fewer.fingerprint != data.fingerprint
  assert fewer.validation_documents < data.validation_documents
  (tmp_path / "text" / "0.txt").write_text("changed")
  changed = data_lib.prepare(make(tmp_path))
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
@pytest.mark.parametrize("name", ["train.bin", data_lib.SIDECAR, data_lib.MANIFEST])
def test_a_damaged_cache_is_prepared_again(folder, data, config, name, how):
  train, validation = np.array(data.train_tokens), np.array(data.validation_tokens)
  damage(data.path / name, how)
  again = data_lib.prepare(config)
  assert np.array_equal(again.train_tokens, train)
  assert np.array_equal(again.validation_tokens, validation)


def test_damaged_documents_are_written_again(folder, data, config):
  train = np.array(data.train_tokens)
  shutil.rmtree(data.path)
  (record,) = (data.path.parent / "documents").rglob("*train.array_record*")
  damage(record, "flip")
  assert np.array_equal(data_lib.prepare(config).train_tokens, train)


def _prepare(config_json, barrier, results):
  config = base.get_config()
  config.data.update(json.loads(config_json))
  barrier.wait()
  data = data_lib.prepare(config)
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
  start = "import json, sys; from configs import base; from train.data import dataset, sources\n"
  start += "config = base.get_config(); config.data.update(json.loads(sys.argv[1]))\n"
  command = [sys.executable, "-c", start + code, config.data.to_json()]
  return subprocess.run(command, check=False, capture_output=True, text=True)


def test_killed_preparation_leaves_nothing_that_is_used(folder, data, tmp_path):
  config = make(folder, cache=str(tmp_path))
  for stage in ("_write", "read"):  # while the documents, then while the tokens are written
    code = (
      f"import os; sources.{stage} = lambda *_: os.kill(os.getpid(), 9); dataset.prepare(config)"
    )
    assert run(code, config).returncode == -9
    assert list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob(data_lib.SIDECAR))
  again = data_lib.prepare(config)
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
    data_lib.prepare(config)
  assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------- batches


def test_a_batch_is_a_function_of_seed_and_step(config, data):
  batches = take(12, batches_lib.train_batches(data, config))
  assert same(batches[7:], take(5, batches_lib.train_batches(data, config, start_step=7)))
  config.seed = 1
  assert not same(batches, take(12, batches_lib.train_batches(data, config)))


def test_windows_are_the_stream_shifted_by_one(config, data):
  stream = np.asarray(data.train_tokens).astype(np.int32)
  windows = {stream[i : i + 65].tobytes() for i in range(0, len(stream) - 64, 64)}
  for batch in take(5, batches_lib.train_batches(data, config)):
    for inputs, targets in zip(batch["inputs_BT"], batch["targets_BT"], strict=True):
      assert np.append(inputs, targets[-1]).tobytes() in windows
      assert np.array_equal(inputs[1:], targets[:-1])
    assert batch["weights_BT"].sum() == batch["inputs_BT"].size
    assert {k: v.dtype.name for k, v in batch.items()} == {
      "inputs_BT": "int32",
      "targets_BT": "int32",
      "weights_BT": "float32",
      "segments_BT": "int32",
      "positions_BT": "int32",
    }


def test_each_epoch_is_every_window_once_in_another_order(folder):
  config = make(folder, batch_size=1, seq_len=2048)
  data = data_lib.prepare(config)
  n = data.train_token_count // 2048
  rows = [b["inputs_BT"].tobytes() for b in take(2 * n, batches_lib.train_batches(data, config))]
  assert n > 50
  assert len(set(rows[:n])) == n
  assert set(rows[:n]) == set(rows[n:])
  assert rows[:n] != rows[n:]
  config.data.batch_size = 2 * n  # a batch may hold several epochs
  (batch,) = take(1, batches_lib.train_batches(data, config))
  assert [row.tobytes() for row in batch["inputs_BT"]] == rows


def test_hosts_get_contiguous_rows_of_the_same_batch(config, data):
  whole = take(3, batches_lib.train_batches(data, config))
  parts = [take(3, batches_lib.train_batches(data, config, 0, i, 4)) for i in range(4)]
  joined = [
    {k: np.concatenate([part[step][k] for part in parts]) for k in whole[step]} for step in range(3)
  ]
  assert same(whole, joined)
  whole = list(batches_lib.validation_batches(data, config))
  parts = [list(batches_lib.validation_batches(data, config, i, 2)) for i in range(2)]
  joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)]
  assert same(whole, joined)
  with pytest.raises(ValueError, match="data.batch_size=8: must be a positive multiple of 3 hosts"):
    next(batches_lib.train_batches(data, config, 0, 0, 3))


@pytest.mark.parametrize("isolate", [True, False])
def test_segments_and_positions_restart_at_documents(folder, isolate):
  config = make(folder, isolate_documents=isolate, seq_len=700)
  data = data_lib.prepare(config)
  boundaries = 0
  epoch = data.train_token_count // 700 // config.data.batch_size + 1
  for batch in take(epoch, batches_lib.train_batches(data, config)):  # one window starts with eos
    for inputs, segments, positions in zip(
      batch["inputs_BT"], batch["segments_BT"], batch["positions_BT"], strict=True
    ):
      segment, position = 1, 0
      for t, token in enumerate(inputs):  # the definition, spelt out
        if isolate and t and token == data.eos:
          segment, position = segment + 1, 0
          boundaries += 1
        assert (segments[t], positions[t]) == (segment, position)
        position += 1
  assert (boundaries > 20) == isolate


@pytest.mark.parametrize(("seq_len", "batch_size"), [(64, 32), (100, 7), (999, 1)])
def test_validation_is_the_same_tokens_for_any_shape(folder, seq_len, batch_size):
  config = make(folder, seq_len=seq_len)
  config.train.eval_tokens = 10_007
  config.train.eval_batch_size = batch_size
  data = data_lib.prepare(config)
  targets = []
  for batch in batches_lib.validation_batches(data, config):
    assert batch["inputs_BT"].shape == (batch_size, seq_len)
    counted = batch["weights_BT"] == 1
    assert np.array_equal(counted, batch["segments_BT"] > 0)
    assert np.array_equal(batch["weights_BT"], counted)
    targets.append(batch["targets_BT"][counted])
  expected = np.asarray(data.validation_tokens)[1:10_008]
  assert np.array_equal(np.concatenate(targets), expected)
  assert batches_lib.eval_token_count(data, config) == 10_007


def test_a_short_validation_split_is_used_whole(config, data):
  config.train.eval_tokens = 10**9
  count = sum(batch["weights_BT"].sum() for batch in batches_lib.validation_batches(data, config))
  assert count == data.validation_token_count == batches_lib.eval_token_count(data, config)


def test_check_refuses_what_the_data_cannot_feed(config, data):
  config.train.tokens = 4 * data.train_token_count
  batches_lib.check_tokens(config, data)
  config.train.tokens += 1
  with pytest.raises(ValueError, match=r"4\.0 epochs of .* more than data.max_epochs=4"):
    batches_lib.check_tokens(config, data)
  config.train.tokens = 1000
  config.data.seq_len = data.train_token_count + 1
  with pytest.raises(ValueError, match="data.seq_len=.*must be 1 to"):
    batches_lib.check_tokens(config, data)
