"""Batches: windows of the stream, by (seed, step) alone, on any number of hosts."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from configs import base
from train.data import dataset
from train.data import tokenizer as tokenizers
from train.data.batches import (
  check_tokens,
  eval_token_count,
  largest_share,
  train_batches,
  validation_batches,
  validation_documents,
)
from train.objectives import registry


def write_pairs(folder, texts):
  folder.mkdir(exist_ok=True)
  rows = ({"prompt": text, "completion": text.upper()} for text in texts)
  (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


TEXTS = [f"{i} é " + "abcdefgh" * (i % 7) for i in range(300)]  # from 4 to 54 tokens, twice


@pytest.fixture
def prepare(cache, corpus, tmp_path):
  """Makes a config of an objective, and its tokens."""

  def make(objective="clm", **fields):
    c = base.get_config()
    c.objective, c.model.family = objective, base.family_of(objective)
    c.data.source = f"text:{corpus}"
    if registry.OBJECTIVES[objective].pairs:
      write_pairs(tmp_path / "pairs", TEXTS)
      c.data.update({"prompt_field": "prompt", "text_field": "completion"})
      c.data.source = f"text:{tmp_path / 'pairs'}"
    c.data.isolate_documents = c.model.family != "encoder_decoder"
    c.data.update({"seq_len": 64} | fields)
    return c, dataset.prepare(c)

  return make


def take(n, batches):
  return list(itertools.islice(batches, n))


def same(a, b):
  return all(
    x.keys() == y.keys() and all(x[k].dtype == y[k].dtype and np.array_equal(x[k], y[k]) for k in x)
    for x, y in zip(a, b, strict=True)
  )


def joined(parts):
  """The batches of all hosts, row after row."""
  return [
    {k: np.concatenate([b[k] for b in step]) for k in step[0]} for step in zip(*parts, strict=True)
  ]


@pytest.mark.parametrize("objective", registry.OBJECTIVES)
def test_batches_are_a_function_of_seed_and_step_on_any_number_of_hosts(prepare, objective):
  config, data = prepare(objective)
  whole = take(4, train_batches(data, config))
  assert same(whole[2:], take(2, train_batches(data, config, start_step=2)))
  for hosts in (2, 8):
    parts = [take(4, train_batches(data, config, 0, i, hosts)) for i in range(hosts)]
    assert same(whole, joined(parts))
  config.seed = 1
  assert not same(whole, take(4, train_batches(data, config)))


def test_hosts_must_divide_a_batch(prepare):
  config, data = prepare()
  with pytest.raises(ValueError, match="data.batch_size=8: must be a positive multiple of 3 hosts"):
    train_batches(data, config, 0, 0, 3)


def test_windows_are_the_stream_shifted_by_one(prepare):
  config, data = prepare()
  stream = np.asarray(data.train_tokens).astype(np.int32)
  windows = {stream[i : i + 65].tobytes() for i in range(0, len(stream) - 64, 64)}
  for batch in take(5, train_batches(data, config)):
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


def test_each_epoch_is_every_window_once_in_another_order(prepare):
  config, data = prepare(batch_size=1, seq_len=2048)
  n = data.train_token_count // 2048
  rows = [b["inputs_BT"].tobytes() for b in take(2 * n, train_batches(data, config))]
  assert n > 50
  assert len(set(rows[:n])) == n
  assert set(rows[:n]) == set(rows[n:])
  assert rows[:n] != rows[n:]
  config.data.batch_size = 2 * n  # a batch may hold several epochs
  (batch,) = take(1, train_batches(data, config))
  assert [row.tobytes() for row in batch["inputs_BT"]] == rows


@pytest.mark.parametrize("objective", ["mlm", "span", "ul2", "prefix"])
def test_each_epoch_hides_something_else(prepare, objective):
  config, data = prepare(objective, batch_size=1, seq_len=512)
  windows = data.train_token_count // registry.lengths(config).text
  epochs = take(2 * windows, train_batches(data, config))
  names = {"mlm": ("inputs_BT",), "prefix": ("inputs_BT", "prefix_BT")}
  first, second = (
    {b"".join(b[k].tobytes() for k in names.get(objective, ("source_BS",))) for b in epoch}
    for epoch in (epochs[:windows], epochs[windows:])
  )
  assert len(second - first) > 0.6 * len(second)


@pytest.mark.parametrize("isolate", [True, False])
def test_segments_and_positions_restart_at_documents(prepare, isolate):
  config, data = prepare(isolate_documents=isolate, seq_len=700)
  boundaries = 0
  epoch = data.train_token_count // 700 // config.data.batch_size + 1
  for batch in take(epoch, train_batches(data, config)):  # one window starts with eos
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


# ----------------------------------------------------------------------------------------- pairs


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_a_row_is_a_pair_of_which_the_completion_is_predicted(prepare, tokenizer):
  config, data = prepare("completion", seq_len=64, tokenizer=tokenizer)
  encode = tokenizers.load(tokenizer, data.path).encode
  separator, expected = data.vocab_size, {}
  parts = (encode([text.encode() for text in texts]) for texts in (TEXTS, map(str.upper, TEXTS)))
  for prompt, completion in zip(*parts, strict=True):
    row = [data.eos, *prompt.tolist(), separator, *completion.tolist(), data.eos]
    first = len(prompt) + 1  # where the separator is read
    n = min(len(row) - 1, 64)  # what is predicted of it, with its prompt
    inputs, targets = ((x[:n] + [data.eos] * 64)[:64] for x in (row, row[1:]))
    weights = [first <= t < n for t in range(64)]
    expected[tuple(inputs)] = targets, weights, [int(t < n) for t in range(64)]
  n_windows = data.train_documents
  assert data.train_token_count == 64 * n_windows  # an epoch is every pair once
  assert n_windows + data.validation_documents == len(TEXTS)
  seen = set()
  config.data.batch_size = n_windows
  train, *validation = *take(1, train_batches(data, config)), *validation_batches(data, config)
  assert set(train) == {"inputs_BT", "targets_BT", "weights_BT", "segments_BT", "positions_BT"}
  for batch in (train, *validation):
    for i, inputs in enumerate(batch["inputs_BT"].tolist()):
      if not batch["segments_BT"][i].any():
        continue  # fills up the last batch
      targets, weights, segments = expected[tuple(inputs)]
      seen.add(tuple(inputs))
      assert batch["targets_BT"][i].tolist() == targets
      assert batch["weights_BT"][i].tolist() == weights
      assert batch["segments_BT"][i].tolist() == segments
      assert batch["positions_BT"][i][: sum(segments)].tolist() == list(range(sum(segments)))
  assert seen == expected.keys()
  config.data.bidirectional_prompt = True
  (batch,) = take(1, train_batches(data, config))
  is_prompt_BT = np.cumsum(batch["inputs_BT"] == separator, axis=1) == 0
  np.testing.assert_array_equal(
    batch["prefix_BT"], is_prompt_BT | (batch["inputs_BT"] == separator)
  )


def test_a_pair_does_not_depend_on_the_others(prepare, tmp_path):
  """The rows of the pairs that stay are the same where the rest is others, longer ones."""
  config, data = prepare("completion")

  def rows(data):
    config.data.batch_size = data.train_documents
    (batch,) = take(1, train_batches(data, config))
    return {b"".join(x[i].tobytes() for x in batch.values()) for i in range(data.train_documents)}

  before = rows(data)
  write_pairs(tmp_path / "pairs", TEXTS[:150] + [text + " and more" for text in TEXTS[150:]])
  changed = rows(dataset.prepare(config))
  kept = len(before & changed)
  assert 120 < kept <= 150
  assert len(changed - before) == len(changed) - kept


# ------------------------------------------------------------------------------------ validation


@pytest.mark.parametrize("objective", registry.OBJECTIVES)
def test_validation_is_the_same_for_every_seed_host_and_batch_size(prepare, objective):
  config, data = prepare(objective)
  config.train.eval_tokens = 1500
  rows = {}
  for seed, size, hosts in ((0, 32, 1), (7, 4, 1), (0, 8, 2)):
    config.seed, config.train.eval_batch_size = seed, size
    batches = joined([list(validation_batches(data, config, i, hosts)) for i in range(hosts)])
    whole = {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}
    weighed = whole["weights_BT"].any(axis=1)
    rows[size] = {k: array[weighed] for k, array in whole.items()}
  assert same([rows[32]], [rows[4]])
  assert same([rows[32]], [rows[8]])
  if registry.OBJECTIVES[objective].whole_windows:
    text, wanted = registry.lengths(config).text, eval_token_count(data, config)
    n_tokens = len(rows[32]["weights_BT"]) * text
    assert wanted - 2 * text <= n_tokens <= wanted  # excerpts are whole tokens of each document


@pytest.mark.parametrize(("seq_len", "batch_size"), [(64, 32), (100, 7), (999, 1)])
def test_validation_is_the_same_tokens_for_any_shape(prepare, seq_len, batch_size):
  config, data = prepare()
  config.train.eval_tokens = 10_007

  def targets():
    for batch in validation_batches(data, config):
      counted = batch["weights_BT"] == 1
      assert np.array_equal(counted, batch["segments_BT"] > 0)
      assert np.array_equal(batch["weights_BT"], counted)
      yield batch["targets_BT"][counted]

  before = np.concatenate(list(targets()))
  config.data.seq_len, config.train.eval_batch_size = seq_len, batch_size
  assert next(validation_batches(data, config))["inputs_BT"].shape == (batch_size, seq_len)
  assert np.array_equal(np.concatenate(list(targets())), before)
  assert 10_007 - 60 < len(before) <= eval_token_count(data, config) == 10_007


def stream(lengths, eos=0):
  """Documents of these lengths, their ends included, each of one number of its own."""
  documents = (np.append(np.full(n - 1, i + 1), eos) for i, n in enumerate(lengths))
  return np.concatenate([[eos], *documents])


@pytest.mark.parametrize(
  ("lengths", "limit", "count", "share"),
  [
    ([3000] * 100, 50_000, 50_000, 0.02),  # fifty documents, an excerpt of each
    ([64, 8000, 300] * 40, 20_000, 20_000, 0.02),
    ([10**6] + [500] * 199, 90_000, 90_000, 0.02),  # one is most of the text
    ([7] * 3 + [900] * 60, 60_000, 54_021, 900 / 54_021),  # all there is
    ([50_000] * 45 + [50] * 9, 60_000, 45_000, 0.022),  # too few are long
    ([5000] * 20, 40_000, 40_000, 0.05),  # twenty documents: a twentieth each
    ([70_000], 50_000, 50_000, 1.0),
  ],
)
def test_no_document_is_much_of_an_evaluation(prepare, lengths, limit, count, share):
  config, data = prepare()
  data = dataclasses.replace(data, eos=0, vocab_size=301, validation_tokens=stream(lengths))
  config.train.eval_tokens = limit
  batches = list(validation_batches(data, config))
  targets, weights = (np.concatenate([b[x] for b in batches]) for x in ("targets_BT", "weights_BT"))
  _, counts = np.unique(targets[(weights == 1) & (targets > 0)], return_counts=True)
  assert weights.sum() == pytest.approx(count, rel=0.01)
  assert counts.max() <= share * weights.sum()
  assert largest_share(data, config) == pytest.approx(share, rel=0.01)
  inside = (weights[:, 0] == 1) & (targets[:, 0] > 0)  # the first target is not a document's end
  documents = validation_documents(data, config)
  assert np.array_equal(targets[inside, 0] - 1, documents[inside])


def test_excerpts_lie_all_over_their_documents(prepare):
  config, data = prepare()
  tokens = np.tile(np.append(0, np.arange(1, 1001)), 60)
  data = dataclasses.replace(data, eos=0, vocab_size=1001, validation_tokens=np.append(tokens, 0))
  config.train.eval_tokens = 10_000
  seen = np.concatenate(
    [b["targets_BT"][b["weights_BT"] == 1] for b in validation_batches(data, config)]
  )
  low, middle, high = np.histogram(seen, 3, (1, 1000))[0] / len(seen)
  assert min(low, middle, high) > 0.2


def test_a_run_that_its_data_cannot_feed_is_refused(prepare):
  config, data = prepare()
  config.train.tokens = 4 * data.train_token_count
  check_tokens(config, data)
  config.train.tokens += 1
  with pytest.raises(ValueError, match=r"4\.0 epochs of .* more than data.max_epochs=4"):
    check_tokens(config, data)
  config.train.tokens = 1000
  config.data.seq_len = data.train_token_count + 1
  with pytest.raises(ValueError, match="data.seq_len=.*must be 1 to"):
    check_tokens(config, data)
