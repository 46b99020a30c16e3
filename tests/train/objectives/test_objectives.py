"""Objectives: what is hidden can be put back, lengths are exact, chance is a function."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs import base
from train.objectives import corruption, registry

V = 257
EOS = V - 1


def make(objective, **fields):
  c = base.get_config()
  c.objective, c.model.family = objective, base.family_of(objective)
  c.data.isolate_documents = c.model.family != "encoder_decoder"
  c.data.prompt_field = "prompt" if registry.OBJECTIVES[objective].pairs else ""
  for name, value in fields.items():
    section = "corruption" if name in c.corruption else "data"
    c[section][name] = value
  return c


def batch_of(config, rows=8, seed=0, text=None, valid=None):
  """Returns random text and the objective's batch of it."""
  entry, n = registry.OBJECTIVES[config.objective], registry.lengths(config).text
  if text is None:
    text = np.random.default_rng(seed).integers(0, EOS, (rows, n + 1)).astype(np.int32)
  valid = np.ones((rows, n), bool) if valid is None else valid
  uniform = corruption.uniform(seed, 0, 0, rows, entry.draws(n))
  return text, entry.batch(text, valid, uniform, config, V)


def joined(source, targets, sentinels):
  """Puts the hidden spans back into the source, by the definition, one token after another."""
  assert source[-1] == targets[-1] == EOS
  hidden, spans = {}, []
  for token in targets[:-1]:
    if token in sentinels:
      spans.append(token)
      hidden[token] = []
    else:
      hidden[spans[-1]].append(token)
  found = [token for token in source[:-1] if token in sentinels]
  assert found == spans == list(sentinels[: len(spans)])  # descending, identical in both streams
  text = [hidden.get(token, [token]) for token in source[:-1]]
  return list(itertools.chain(*text)), hidden


densities = st.floats(0.02, 0.9)
span_means = st.floats(1.0, 12.0)


# ------------------------------------------------------------------------------------------- spans


@pytest.mark.parametrize(
  ("inputs", "text", "targets", "spans"),
  [
    (64, 70, 14, 3),
    (128, 141, 29, 7),
    (256, 284, 58, 14),
    (512, 568, 114, 28),
    (1024, 1137, 229, 57),
    (2048, 2274, 456, 114),
  ],
)
def test_span_lengths_are_those_of_t5(inputs, text, targets, spans):
  assert corruption.text_length(inputs, 0.15, 3.0) == text
  assert corruption.span_lengths(text, 0.15, 3.0) == (inputs, targets)
  assert corruption.span_counts(text, 0.15, 3.0) == (targets - spans - 1, spans)


@pytest.mark.parametrize(("mean", "text", "targets"), [(2.0, 70, 22), (1.0, 63, 27)])
def test_t5s_own_goldens(mean, text, targets):
  assert corruption.text_length(64, 0.20, mean) == text
  assert corruption.span_lengths(text, 0.20, mean) == (64, targets)


@settings(max_examples=150)
@given(st.integers(3, 300), densities, span_means, st.integers(0, 2**63))
def test_spans_give_the_text_back(inputs, density, mean, seed):
  n = corruption.text_length(inputs, density, mean)
  noise, spans = corruption.span_counts(n, density, mean)
  first = V + spans - 1
  text = np.random.default_rng(seed).integers(0, V, (3, n)).astype(np.int32)
  uniform = corruption.uniform(seed, 0, 0, 3, n - 2)
  source, targets = corruption.corrupt_spans(text, uniform, density, mean, first, EOS)
  assert source.shape == (3, n - noise + spans + 1)
  assert targets.shape == (3, noise + spans + 1)
  assert source.shape[1] <= inputs < corruption.span_lengths(n + 1, density, mean)[0]
  sentinels = range(first, V - 1, -1)
  for i in range(3):
    whole, hidden = joined(source[i].tolist(), targets[i].tolist(), sentinels)
    assert whole == text[i].tolist()
    assert [len(hidden) for hidden in (hidden, sum(hidden.values(), []))] == [spans, noise]
    assert all(hidden.values())  # no span is empty
    kept = "".join("s" if token in hidden else "k" for token in source[i, :-1].tolist())
    if spans > 1:  # the first token is never hidden, the last one always is; one span lies anywhere
      assert kept[0] == "k"
      assert kept[-1] == "s"
    assert "ss" not in kept


def test_every_composition_is_equally_likely():
  lengths = corruption.composition(np.random.default_rng(0).random((20_000, 5)), 3)
  assert (lengths.sum(axis=1) == 6).all()
  kinds, counts = np.unique(lengths, axis=0, return_counts=True)
  assert len(kinds) == 10  # 5 choose 2
  assert kinds.min() == 1
  assert ((counts - 2000) ** 2 / 2000).sum() < 30  # chi-square, 9 degrees of freedom: p < 5e-4


def test_span_batch():
  config = make("span", seq_len=128)
  text, batch = batch_of(config)
  assert {name: array.shape[1] for name, array in batch.items()} == {
    "source_BS": 128,
    "source_segments_BS": 128,
    "source_positions_BS": 128,
    "inputs_BT": 29,
    "targets_BT": 29,
    "segments_BT": 29,
    "positions_BT": 29,
    "weights_BT": 29,
  }
  assert registry.lengths(config) == (141, 128, 29, 29.0)
  assert registry.vocab_size(config, V) == V + 100
  assert (batch["inputs_BT"][:, 0] == EOS).all()
  assert (batch["inputs_BT"][:, 1:] == batch["targets_BT"][:, :-1]).all()
  assert (batch["targets_BT"][:, 0] == V + 99).all()  # the first sentinel is the last id
  assert (batch["weights_BT"] == 1).all()
  rows = zip(batch["source_BS"].tolist(), batch["targets_BT"].tolist(), text, strict=True)
  for source, targets, tokens in rows:
    assert joined(source, targets, range(V + 99, V - 1, -1))[0] == tokens[:-1].tolist()


# -------------------------------------------------------------------------------------------- masks


@settings(max_examples=80)
@given(st.integers(4, 200), st.floats(0.05, 0.95), st.integers(0, 2**63))
def test_masks_touch_what_is_selected_only(length, rate, seed):
  config = make("mlm", seq_len=length, mlm_rate=rate)
  text = np.random.default_rng(seed).integers(0, V, (4, length + 1)).astype(np.int32)
  valid = np.arange(length)[None] < np.array([length, length, length // 2, 0])[:, None]
  _, batch = batch_of(config, 4, seed, text, valid)
  chosen, inputs = batch["weights_BT"] == 1, batch["inputs_BT"]
  tokens = np.where(valid, text[:, :-1], EOS)
  assert (batch["targets_BT"] == tokens).all()
  assert (inputs == tokens)[~chosen].all()
  assert not chosen[tokens == EOS].any()  # neither boundaries nor padding
  n = (tokens != EOS).sum(axis=1)
  assert (
    (chosen.sum(axis=1) == np.floor(rate * n)) | (chosen.sum(axis=1) == np.floor(rate * n + 1))
  ).all()
  assert not (inputs[chosen] == EOS).any()  # a random token is one of text
  assert (batch["segments_BT"] > 0).sum() == valid.sum()


def test_masks_are_80_10_10_of_15_percent():
  config = make("mlm", seq_len=190)  # 28.5 are hidden on average
  text, batch = batch_of(config, 2000)
  chosen, inputs = batch["weights_BT"] == 1, batch["inputs_BT"]
  n = chosen.sum()
  assert n == pytest.approx(0.15 * chosen.size, abs=4 * 0.5 * np.sqrt(2000))

  def share(count, p, of=n):
    assert abs(count - p * of) < 4 * np.sqrt(p * (1 - p) * of), (count, p * of)

  assert registry.vocab_size(config, V) == V + 1
  share((inputs[chosen] == V).sum(), 0.8)
  share((inputs[chosen] == text[:, :-1][chosen]).sum(), 0.1 + 0.1 / 256)
  other = inputs[chosen & (inputs != V) & (inputs != text[:, :-1])]
  share(len(other), 0.1 * 255 / 256)
  counts = np.bincount(other, minlength=V)[:EOS]  # every token of text is equally likely
  assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 255 + 5 * np.sqrt(2 * 255)
  for t in (0, 100, 189):  # and every place
    share(chosen[:, t].sum(), 0.15, 2000)


# ---------------------------------------------------------------------------------- prefix and ul2


def test_a_prefix_is_visible_and_what_follows_is_predicted():
  config = make("prefix", seq_len=16)
  text, batch = batch_of(config, 4000)
  prefix = batch["prefix_BT"].sum(axis=1)
  assert (np.bincount(prefix, minlength=17)[1:] > 150).all()  # 1 to 16, 250 of each
  for i in range(50):
    p = prefix[i]
    assert batch["prefix_BT"][i].tolist() == [True] * p + [False] * (16 - p)
    assert batch["weights_BT"][i].tolist() == [0] * (p - 1) + [1] * (17 - p)
    visible, predicted = text[i, :p], batch["targets_BT"][i][batch["weights_BT"][i] == 1]
    assert np.concatenate([visible, predicted]).tolist() == text[i].tolist()
  expected = registry.lengths(config).predicted
  assert batch["weights_BT"].sum(axis=1).mean() == pytest.approx(expected, abs=4 * 4.6 / 63)


@settings(max_examples=30)
@given(st.integers(16, 200), st.integers(0, 2**63))
def test_ul2_gives_the_text_back(inputs, seed):
  config = make("ul2", seq_len=inputs)
  lengths = registry.lengths(config)
  assert lengths.source == inputs
  text, batch = batch_of(config, 40, seed)
  assert batch["source_BS"].shape == (40, lengths.source)
  assert batch["targets_BT"].shape == (40, lengths.target)
  sentinels = range(V + 3 + 99, V + 2, -1)
  for i in range(40):
    source = batch["source_BS"][i][batch["source_segments_BS"][i] == 1].tolist()
    seen = batch["segments_BT"][i] == 1
    assert (batch["weights_BT"][i] == seen).all()
    targets = batch["targets_BT"][i][seen].tolist()
    mode = source.pop(0)
    whole, hidden = joined(source, targets, sentinels)
    assert whole == text[i, :-1].tolist()
    share = sum(map(len, hidden.values())) / lengths.text
    if mode == V + 1:  # S: one suffix
      assert len(hidden) == 1
      assert source[-2] == sentinels[0]
    assert mode in (V, V + 1, V + 2)  # R, S, X
    if mode == V:
      assert share == pytest.approx(0.15, abs=1 / lengths.text)


def test_ul2_draws_each_denoiser_equally_and_predicts_what_it_says():
  config = make("ul2", seq_len=64)
  _, batch = batch_of(config, 6000)
  counts = np.bincount(batch["source_BS"][:, 0] - V)
  assert (abs(counts - 2000) < 4 * np.sqrt(6000 * 2 / 9)).all()
  predicted = batch["weights_BT"].sum(axis=1)
  error = predicted.std() / np.sqrt(6000)
  assert predicted.mean() == pytest.approx(registry.lengths(config).predicted, abs=4 * error)
  suffix_S = predicted[batch["source_BS"][:, 0] == V + 1] - 2  # beside a sentinel and eos
  text = registry.lengths(config).text
  assert suffix_S.min() + suffix_S.max() == 2 * (text // 4)
  of_x = [corruption.span_lengths(text, *setting)[1] for setting in ((0.5, 3.0), (0.15, 32.0))]
  assert {*predicted[batch["source_BS"][:, 0] == V + 2]} == {*of_x}
  config.corruption.denoisers = ("x",)
  _, batch = batch_of(config, 50)
  assert (batch["source_BS"][:, 0] == V + 2).all()


# ------------------------------------------------------------------------------------------- chance


@given(st.integers(0, 2**64 - 2), st.integers(0, 10**9), st.integers(1, 8), st.integers(0, 70))
@example(seed=2**63, first=0, rows=1, count=2)
def test_chance_is_a_function_of_seed_and_sequence(seed, first, rows, count):
  whole = corruption.uniform(seed, 0, first, rows + 3, count)
  assert (whole[rows:] == corruption.uniform(seed, 0, first + rows, 3, count)).all()
  if count > 1:
    assert (whole != corruption.uniform(seed, 1, first, rows + 3, count)).any()
    assert (whole != corruption.uniform(seed + 1, 0, first, rows + 3, count)).any()


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
  ("objective", "field", "value", "message"),
  [
    ("span", "data.seq_len", 2048, "corruption.sentinels=100: 2274 tokens of text have 114 spans"),
    ("ul2", "data.seq_len", 1024, "corruption.sentinels=100: .* set it to 189 or more"),
    ("span", "data.isolate_documents", True, "data.isolate_documents=True: .* set it to False"),
    ("ul2", "data.isolate_documents", True, "data.isolate_documents=True: .* set it to False"),
    ("span", "data.seq_len", 2, "data.seq_len=2: .* needs 3 at least"),
    ("ul2", "data.seq_len", 15, "data.seq_len=15: .* needs 16 at least"),
    ("mlm", "model.family", "decoder", "model.family='decoder': .* set model.family='encoder'"),
    ("clm", "model.family", "encoder", "model.family='encoder': .* set model.family='decoder'"),
    ("mlm", "corruption.mlm_random", 0.3, "corruption.mlm_random=0.3: must lie in"),
    ("ul2", "corruption.denoisers", ("r", "q"), "corruption.denoisers=.*some of r, s, x"),
    ("ul2", "corruption.denoisers", ("r", "r"), "corruption.denoisers=.*some of r, s, x"),
    ("clm", "objective", "spam", "objective='spam': unknown; choose one of .*span"),
    ("ul2", "corruption.denoisers", (), "corruption.denoisers=.*some of r, s, x"),
    ("clm", "data.prompt_field", "prompt", "data.prompt_field='prompt': .*wants text; set ''"),
    ("completion", "data.prompt_field", "", "data.prompt_field='': .*learns from pairs; name"),
    ("mlm", "data.bidirectional_prompt", True, "data.bidirectional_prompt=True: .*has no prompts"),
  ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(objective, field, value, message):
  config = make(objective, seq_len=128)
  registry.check_objective(config)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=message) as error:
    registry.check_objective(config)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [10, 40, 120])
def test_a_single_span_lies_anywhere(length):
  """As UL2's masks, which are rolled: a long span of a short text would else always be its end."""
  text_BN = np.tile(np.arange(length), (4000, 1))
  uniform_BU = np.random.default_rng(0).random((4000, length - 2))
  inputs_BS, targets_BT = corruption.corrupt_spans(text_BN, uniform_BU, 0.15, 32.0, 900, 901)
  noise, spans = corruption.span_counts(length, 0.15, 32.0)
  assert spans == 1
  first_B = targets_BT[:, 1]
  np.testing.assert_array_equal(targets_BT[:, 1:-1], first_B[:, None] + np.arange(noise))
  for inputs, first in zip(inputs_BS[:50], first_B, strict=False):
    kept = [*range(first), 900, *range(first + noise, length), 901]
    assert inputs.tolist() == kept
  counts = np.bincount(first_B, minlength=length - noise + 1)
  expected = 4000 / (length - noise + 1)
  assert len(counts) == length - noise + 1
  assert abs(counts - expected).max() < 5 * expected**0.5
