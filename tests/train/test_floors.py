"""Each objective trains to the least loss there is on a Markov chain, and not below it.

The least loss is computed in two ways: as an expectation over the source (`train.data.markov`), and
here on the very tokens that the model is evaluated on, as -log of the exact posterior of what is
hidden given what is seen. Model and posterior share their text, so that the difference of the two
is free of the text's own randomness: a leak of the target shows as a negative one.
"""

import itertools
import json

import jax
import numpy as np
import pytest

from configs import base
from configs.ladders import resolve
from model import sampling
from train import loop, optim, programs, restore
from train.data import dataset, markov
from train.data.batches import train_batches, validation_batches
from train.objectives import registry

EOS = 256

# ------------------------------------------------------------------------------ the exact posterior


def causal_nll(batch, symbols):
  """Returns -log P(x_t | x_t-1) of every target [nats], BT."""
  return -np.log(markov.transition(symbols)[batch["inputs_BT"], batch["targets_BT"]])


def powers(symbols, count):
  """Returns P^k for k = 0 ... count."""
  found = [np.eye(symbols)]
  for _ in range(count):
    found.append(found[-1] @ markov.transition(symbols))
  return np.stack(found)


def masked_nll(batch, symbols):
  """Returns -log P(x_t | nearest visible symbols) where x_t is hidden, and 0 elsewhere, BT.

  By Bayes' rule P(x | a at distance l, b at distance r) is P^l[a, x] P^r[x, b] / P^(l+r)[a, b].
  Where the window ends before a visible symbol, P^l[a, x] is the stationary law, and P^r[x, b] 1.
  """
  law, text, hidden = markov.stationary(symbols), batch["targets_BT"], batch["weights_BT"] == 1
  T = text.shape[1]
  P = powers(symbols, T + 1)
  nll = np.zeros(text.shape)
  for b, t in np.argwhere(hidden):
    x, left, right = text[b, t], t - 1, t + 1
    while left >= 0 and hidden[b, left]:
      left -= 1
    while right < T and hidden[b, right]:
      right += 1
    before = P[t - left][text[b, left]] if left >= 0 else law
    after = P[right - t][:, text[b, right]] if right < T else np.ones(symbols)
    joint = before * after
    nll[b, t] = -np.log(joint[x] / joint.sum())
  return nll


def span_nll(batch, symbols, first_sentinel):
  """Returns -log P(targets | source) of each sequence [nats], B.

  The lengths of the hidden spans are a uniformly random composition of their sum, whatever the
  text. So P is that of the paths through the hidden spans over the sum, for all compositions, of
  the probabilities to get from one side of each span to the other; the last span has no right side.
  """
  step_ = markov.transition(symbols)
  nll = []
  for source, targets in zip(batch["source_BS"], batch["targets_BT"], strict=True):
    starts = np.flatnonzero(targets >= EOS + 1)
    spans = np.split(targets[:-1], starts)[1:]
    places = [np.flatnonzero(source == first_sentinel - i)[0] for i in range(len(spans))]
    noise = sum(len(span) - 1 for span in spans)
    P = powers(symbols, noise + 1)
    log_path = 0.0
    ways = np.zeros(noise + 1)  # by hidden symbols so far: the sum over compositions
    ways[0] = 1.0
    for i, (span, place) in enumerate(zip(spans, places, strict=True)):
      last = i == len(spans) - 1
      path = np.concatenate([[source[place - 1]], span[1:], [] if last else [source[place + 1]]])
      path = path.astype(int)
      log_path += np.log(step_[path[:-1], path[1:]]).sum()
      across = [0.0] + [1.0 if last else P[n + 1][path[0], path[-1]] for n in range(1, noise + 1)]
      ways = np.convolve(ways, across)[: noise + 1]
    nll.append(np.log(ways[noise]) - log_path)
  return np.array(nll)


def least_nll(config, batch):
  """Returns the least loss of each sequence [nats], B."""
  symbols = config.data.markov_symbols
  if config.objective == "span":
    return span_nll(batch, symbols, EOS + config.corruption.sentinels)
  nll = masked_nll if config.objective == "mlm" else causal_nll
  return (nll(batch, symbols) * batch["weights_BT"]).sum(axis=1)


# ----------------------------------------------------------------------------------------- training


def make(objective, symbols, **fields):
  c = base.get_config()
  c.objective = objective
  c.model.family = base.family_of(objective)
  c.model.scan, c.model.heads = False, 4
  c.data.source, c.data.markov_symbols = "markov", symbols
  c.data.isolate_documents = False
  c.data.batch_size = 64
  c.data.max_epochs = 10.0
  c.corruption.mlm_mask, c.corruption.mlm_random = 1.0, 0.0  # what is seen is then not noise
  c.corruption.sentinels = 16
  c.optim.weight_decay = 0.0
  for name, value in fields.items():
    section = next(s for s in (c.model, c.data, c.corruption, c.optim, c.train) if name in s)
    section[name] = value
  return resolve(c)


def excess(config):
  """Trains a model on its own tokens, and holds its loss against the least one.

  Returns:
    loss - least loss on the same validation text, and its standard error; loss, and its standard
    error [nats per predicted token]; number of parameters.
  """
  tokens = dataset.prepare(config)
  functions = programs.program(config, tokens.vocab_size)
  state = functions.init(np.uint32(config.seed))
  per_step = registry.tokens_per_step(config)
  steps = round(config.train.tokens / per_step)
  batches = train_batches(tokens, config)
  for i in range(steps):
    lr = optim.learning_rate(config.optim, config.optim.lr, i, steps, per_step)
    state, _ = functions.step(state, next(batches), np.float32(lr), np.uint32(0))
  batches.close()
  gaps, losses, weights = [], [], []
  for batch in validation_batches(tokens, config):
    text = [batch[k] for k in ("inputs_BT", "targets_BT", "source_BS") if k in batch]
    # A window in which a document ends is no stretch of the chain (eos also starts a decoder).
    ends = [(part == EOS).sum(axis=1) for part in text]
    whole = sum(ends) == (3 if config.objective == "span" else 0)
    whole &= batch["weights_BT"].any(axis=1)
    part = {k: array[whole] for k, array in batch.items()}
    nll_B, weight_B = functions.evaluate(state.trainable, batch)["loss"]
    gaps.append(np.asarray(nll_B, float)[whole] - least_nll(config, part))
    losses.append(np.asarray(nll_B, float)[whole])
    weights.append(np.asarray(weight_B, float)[whole])
  gaps, losses, weights = (np.concatenate(x) for x in (gaps, losses, weights))

  def mean(nats):
    ratio = nats.sum() / weights.sum()
    return ratio, np.sqrt(((nats - ratio * weights) ** 2).sum()) / weights.sum()

  return mean(gaps), mean(losses), sum(x.size for x in jax.tree.leaves(state.trainable))


SPANS = {"seq_len": 16, "span_density": 0.3, "span_length": 2.0}


@pytest.mark.parametrize(
  ("objective", "symbols", "fields"),
  [
    ("clm", 16, {"seq_len": 32, "batch_size": 32, "lr": 1e-2, "tokens": 300_000, "depth": 1}),
    pytest.param(
      "mlm",
      8,
      {"seq_len": 16, "lr": 5e-3, "tokens": 1_000_000, "depth": 2, "mlm_rate": 0.3},
      marks=pytest.mark.slow,
    ),
    pytest.param(
      "span",
      16,
      {**SPANS, "lr": 3e-3, "tokens": 1_500_000, "depth": 1, "width": 64},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_trains_to_its_floor_and_not_below(cache, optimized, objective, symbols, fields):
  judge(make(objective, symbols, **{"width": 48, "markov_tokens": 2_000_000} | fields))


def judge(config):
  (gap, gap_error), (loss, loss_error), n_params = excess(config)
  print(f"{config.objective}: {loss:.4f}, {gap:+.4f} +- {gap_error:.4f} from the least")
  assert n_params < 500_000
  assert gap < 0.02
  assert gap > -3 * gap_error
  floor = dataset.prepare(config).floor  # the expectation, where it has a closed form
  assert (floor is None) == (config.objective != "clm")
  if floor is not None:
    assert loss > floor - 3 * loss_error
    assert loss < floor + 0.02 + 3 * loss_error


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_completion_that_its_prompt_decides_costs_nothing(
  cache, optimized, tmp_path, bidirectional
):
  """The prompt in upper case: no nats, when it is learned; and samples are that, too."""
  rng = np.random.default_rng(0)
  words = {"".join(rng.choice(list("abcdefgh"), rng.integers(3, 7))) for _ in range(3000)}
  rows = ({"ask": word, "answer": word.upper()} for word in sorted(words))
  (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  c = base.get_config()
  c.objective = "completion"
  c.model.update({"width": 64, "depth": 2, "heads": 4, "scan": False})
  c.data.update({"source": f"text:{tmp_path / 'pairs.jsonl'}", "seq_len": 16, "batch_size": 64})
  c.data.update({"prompt_field": "ask", "text_field": "answer", "max_epochs": 20.0})
  c.data.bidirectional_prompt = bidirectional
  c.optim.lr, c.train.tokens = 3e-3, 600_000
  record = loop.train(c, tmp_path / "run")
  assert record["loss"] < 0.01
  run = restore.restore(tmp_path / "run")
  prompts = [run.tokenizer.encode(word).ids for word in ("abcd", "hgfab")]
  padded = np.stack([np.resize(ids, 7) for ids in prompts])
  lengths = [len(ids) for ids in prompts]
  tokens_BN, counts_B = sampling.generate(
    run.model, padded, lengths, 9, jax.random.key(0), context=run.context, temperature=0.0,
    stop_token=run.stop, bidirectional=bidirectional,
  )  # fmt: skip
  texts = [run.tokenizer.decode(row[:n]) for row, n in zip(tokens_BN, counts_B, strict=True)]
  assert texts == ["ABCD", "HGFAB"]


# ----------------------------------------------------------------------------- floors and posterior


def test_posterior_of_a_mask_is_bayes_rule():
  """Against the joint law of the whole window, summed over everything else that is hidden."""
  V, T = 4, 6
  law, step_ = markov.stationary(V), markov.transition(V)
  joint = law
  for _ in range(T - 1):
    joint = joint[..., None] * step_
  rng = np.random.default_rng(0)
  for _ in range(20):
    text, hidden = rng.integers(0, V, T), rng.random(T) < 0.5
    batch = {"targets_BT": text[None], "weights_BT": hidden[None].astype(np.float32)}
    found = masked_nll(batch, V)[0]
    for t in np.flatnonzero(hidden):
      rest = tuple(slice(None) if hide else x for x, hide in zip(text, hidden, strict=True))
      own = tuple(x if i == t else r for i, (x, r) in enumerate(zip(text, rest, strict=True)))
      expected = -np.log(joint[own].sum() / joint[rest].sum())
      assert found[t] == pytest.approx(expected, rel=1e-9)


def test_posterior_of_spans_sums_to_one():
  """Over all targets that could belong to a source: every length and every content of its spans."""
  V, first = 3, EOS + 3
  for kept in ([[0], [2, 1]], [[1], [0], [2]]):
    source = [token for i, part in enumerate(kept) for token in (*part, first - i)] + [EOS]
    spans, noise, total = len(kept), len(kept) + 1, 0.0
    for cuts in itertools.combinations(range(1, noise), spans - 1):
      edges = (0, *cuts, noise)
      for symbols in itertools.product(range(V), repeat=noise):
        targets = []
        for i, (a, b) in enumerate(itertools.pairwise(edges)):
          targets += [first - i, *symbols[a:b]]
        batch = {"source_BS": np.array([source]), "targets_BT": np.array([[*targets, EOS]])}
        total += np.exp(-span_nll(batch, V, first)[0])
    assert total == pytest.approx(1.0, rel=1e-9)
