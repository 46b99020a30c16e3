"""Sampling: the cache changes nothing, the distributions are exact, one program serves all."""

import functools
import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from scipy import stats

from configs import base, ladders
from model import sampling, transformer
from model.transformer import Source

V, T, S = 23, 16, 12
KEY = jax.random.key(7)
FILTER = jax.jit(sampling.filter_logits)
SAMPLED = {"temperature": 4.0, "top_k": 18, "top_p": 0.95}
DECODERS = {
  "rotary": {},
  "learned": {"positions": "learned", "norm": "layer", "biases": True},
  "relative": {"positions": "relative", "scan": False},
  "sinusoidal": {"positions": "sinusoidal", "norm_position": "post"},
  "grouped": {"kv_heads": 2},
}
SEQ2SEQ = {
  "t5": {"family": "encoder_decoder", "positions": "relative", "encoder_depth": 1},
  "rotary_pair": {"family": "encoder_decoder", "kv_heads": 1},
}
T5 = pytest.param(SEQ2SEQ["t5"], marks=pytest.mark.slow)
OTHERS = [
  pytest.param(switches, marks=pytest.mark.slow)
  for name, switches in (DECODERS | SEQ2SEQ).items()
  if name not in ("rotary", "t5")
]


def make(vocab_size=V, **switches):
  """A small model with weights large enough that its logits differ clearly."""
  return _made(vocab_size, tuple(switches.items()))


@functools.cache
def _made(vocab_size, switches):
  c = base.get_config()
  c.model.update({"width": 16, "depth": 2, "heads": 4, **dict(switches)})
  c = ladders.resolve(c)

  def build():
    return transformer.Transformer(c.model, vocab_size, T, nnx.Rngs(0), source_len=S)

  graphdef, params = nnx.split(nnx.eval_shape(build))
  rng = np.random.default_rng(0)
  return nnx.merge(
    graphdef, jax.tree.map(lambda w: jnp.asarray(rng.normal(0, 0.7, w.shape), w.dtype), params)
  )


def forward(model, tokens_BT, **options):
  """All logits, without a cache."""
  graphdef, params = nnx.split(model)
  return np.asarray(_forward(graphdef, params, tokens_BT, options))


@functools.partial(jax.jit, static_argnames="graphdef")
def _forward(graphdef, params, tokens_BT, options):
  return nnx.merge(graphdef, params)(tokens_BT, **options)


def ragged(model, rows=4, longest=7):
  """Prompts of different lengths, padded with tokens that must not matter, and their sources."""
  rng = np.random.default_rng(0)
  prompts_BP = rng.integers(0, V, (rows, longest))
  lengths_B = np.resize([3, longest, 1, 5], rows)
  if model.encoder is None:
    return prompts_BP, lengths_B, None
  segments_BS = (np.arange(S)[None] < np.resize([S, 5, 9], rows)[:, None]).astype(np.int32)
  return prompts_BP, lengths_B, Source(rng.integers(0, V, (rows, S)), segments_BS)


def reference(model, prompts_BP, lengths_B, new, source, options, prefix_BT=None):
  """Generation without a cache: the whole sequence goes through the model for every token."""
  tokens_BT = np.zeros((len(prompts_BP), T + 1), np.int32)
  tokens_BT[:, : prompts_BP.shape[1]] = prompts_BP
  segments_BT = np.ones_like(tokens_BT[:, :-1])
  rows_B, out = np.arange(len(prompts_BP)), []
  for position_B in (lengths_B + i for i in range(new)):
    inputs = {"segments_BT": segments_BT, "source": source, "prefix_BT": prefix_BT}
    logits_BTV = forward(model, tokens_BT[:, :-1], **inputs)
    logits_BV = logits_BTV[rows_B, position_B - 1]
    filtered_BV = FILTER(logits_BV, **options)
    out.append(np.asarray(sampling.draw(filtered_BV, jnp.asarray(position_B), KEY)))
    tokens_BT[rows_B, position_B] = out[-1]
  return np.stack(out, axis=1)


@pytest.mark.parametrize("switches", [DECODERS["rotary"], T5, *OTHERS], ids=str)
def test_the_cache_changes_no_token(switches):
  model = make(**switches)
  prompts_BP, lengths_B, source = ragged(model)
  for options in ({"temperature": 0.0, "top_k": 0, "top_p": 1.0}, SAMPLED):
    expected_BN = reference(model, prompts_BP, lengths_B, 9, source, options)
    with jax.numpy_rank_promotion("raise"):
      tokens_BN, counts_B = sampling.generate(
        model, prompts_BP, lengths_B, 9, KEY, context=T, source=source, **options
      )
    np.testing.assert_array_equal(tokens_BN, expected_BN)
    np.testing.assert_array_equal(counts_B, 9)
  assert len(np.unique(tokens_BN)) > 8  # not a constant


def test_a_bidirectional_prompt_is_seen_as_the_prefix_of_a_prefix_lm():
  model, greedy = make(**DECODERS["rotary"]), {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
  prompts_BP, lengths_B, _ = ragged(model)
  prefix_BT = np.arange(T)[None] < lengths_B[:, None]
  causal_BN, expected_BN = (
    reference(model, prompts_BP, lengths_B, 9, None, greedy, prefix) for prefix in (None, prefix_BT)
  )
  tokens_BN, _ = sampling.generate(
    model, prompts_BP, lengths_B, 9, KEY, context=T, bidirectional=True, **greedy
  )
  np.testing.assert_array_equal(tokens_BN, expected_BN)
  assert (causal_BN != expected_BN).any()


@pytest.mark.slow
@pytest.mark.parametrize("switches", [DECODERS["learned"], SEQ2SEQ["t5"]], ids=str)
def test_a_row_does_not_depend_on_the_others(switches):
  model = make(**switches)
  prompts_BP, lengths_B, source = ragged(model)

  def run(rows, width, **options):
    part = None if source is None else Source(*(x[rows] for x in source[:2]))
    prompts = prompts_BP[rows, :width]
    tokens_BN, _ = sampling.generate(
      model, prompts, lengths_B[rows], 6, KEY, context=T, source=part, **options
    )
    return tokens_BN

  everything = run(slice(None), None, temperature=0)
  alone = run([2], lengths_B[2], temperature=0)  # the shortest
  np.testing.assert_array_equal(alone[0], everything[2])
  # The draws are a function of (key, row, position): fewer rows, other padding, the same tokens.
  np.testing.assert_array_equal(run([0], 3, **SAMPLED), run(slice(None), None, **SAMPLED)[:1])


def exact(logits_V, temperature, top_k, top_p):
  """The distribution in float64, by the definition and one token at a time."""
  order = sorted(range(len(logits_V)), key=lambda v: (-logits_V[v], v))
  if temperature == 0:
    order, temperature = order[:1], 1.0
  order = order[: top_k or None]
  p = np.exp((np.float64(logits_V)[order] - np.max(logits_V)) / temperature)
  p /= p.sum()
  enough = (i for i in range(1, len(p)) if top_p < 1 and p[:i].sum() >= top_p)
  count = next(enough, len(p))
  result = np.zeros(len(logits_V))
  result[order[:count]] = p[:count] / p[:count].sum()
  return result


@pytest.mark.parametrize(
  ("temperature", "top_k", "top_p"),
  [(1.0, 0, 1.0), (0.5, 0, 1.0), (2.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.7), (1.3, 5, 0.8)],
)
def test_draws_have_the_exact_distribution(temperature, top_k, top_p):
  """Pairs of new tokens: a wrong distribution fails, and so does randomness that is used twice."""
  draws, small = 20_000, 7
  options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
  model = make(vocab_size=small)
  prompt = [2, 5, 1]
  tokens_BN, _ = sampling.generate(
    model, np.tile(prompt, (draws, 1)), np.full(draws, 3), 2, KEY, context=T, **options
  )
  continued = np.array([[*prompt, v] for v in range(small)])
  logits = forward(model, continued)
  first = exact(logits[0, 2], **options)
  second = np.stack([exact(logits[v, 3], **options) for v in range(small)])
  expected = draws * (first[:, None] * second).reshape(-1)
  counts = np.bincount(tokens_BN[:, 0] * small + tokens_BN[:, 1], minlength=small**2)
  assert not counts[expected == 0].any()
  frequent = expected >= 5
  assert frequent.sum() >= 4
  counts = np.append(counts[frequent], counts[~frequent].sum())
  expected = np.append(expected[frequent], expected[~frequent].sum())
  keep = expected > 0
  assert stats.chisquare(counts[keep], expected[keep]).pvalue > 1e-3


@settings(max_examples=200, deadline=None)
@given(
  # In steps of 1/1024: none is so near 0 that dividing it gives a number that XLA flushes to 0.
  logits=st.lists(st.integers(-8192, 8192).map(lambda i: i / 1024), min_size=12, max_size=12),
  temperature=st.floats(0.1, 4),
  top_k=st.integers(0, 14),
  top_p=st.floats(0.001, 1),
)
def test_top_p_keeps_the_smallest_sufficient_set(logits, temperature, top_k, top_p):
  logits_V = np.array(logits, np.float32)
  filtered_V = np.asarray(FILTER(logits_V, np.float32(temperature), top_k, np.float32(top_p)))
  kept = np.isfinite(filtered_V)
  p = exact(logits_V / np.float32(temperature), 1.0, top_k, 1.0)
  assert kept.sum() >= 1
  assert not kept[p == 0].any()
  assert logits_V[kept].min() >= logits_V[~kept & (p > 0)].max(initial=-np.inf)
  assert p[kept].sum() >= min(top_p, 1) - 1e-5
  if kept.sum() > 1:
    assert p[kept].sum() - p[kept].min() < top_p + 1e-5
  np.testing.assert_allclose(
    filtered_V[kept], (logits_V / np.float32(temperature))[kept], rtol=1e-6
  )


def test_filters_at_their_ends():
  logits_V = np.array([1.0, 3.0, 3.0, -2.0, 0.0], np.float32)
  kept = {
    "all": FILTER(logits_V, 1.0, 0, 1.0),
    "greedy": FILTER(logits_V, 0.0, 0, 1.0),
    "two": FILTER(logits_V, 1.0, 2, 1.0),
    "one of equals": FILTER(logits_V, 1.0, 1, 1.0),
    "tiny nucleus": FILTER(logits_V, 1.0, 0, 1e-6),
    "more than there are": FILTER(logits_V, 1.0, 99, 1.0),
  }
  kept = {name: np.flatnonzero(np.isfinite(x)).tolist() for name, x in kept.items()}
  assert kept == {
    "all": [0, 1, 2, 3, 4],
    "greedy": [1],
    "two": [1, 2],
    "one of equals": [1],
    "tiny nucleus": [1],
    "more than there are": [0, 1, 2, 3, 4],
  }


def test_top_p_of_one_keeps_what_rounding_would_drop():
  logits_V = np.zeros(50_000, np.float32)
  logits_V[:3] = 30
  assert np.isfinite(FILTER(logits_V, 1.0, 0, 1.0)).all()


@pytest.mark.parametrize("switches", [DECODERS["rotary"], T5], ids=str)
def test_a_stop_token_ends_its_row_only(switches):
  model = make(**switches)
  prompts_BP, lengths_B, source = ragged(model)
  args = (model, prompts_BP, lengths_B, 8, KEY)
  free_BN, _ = sampling.generate(*args, context=T, source=source, **SAMPLED)
  stop = free_BN[0, 3]
  tokens_BN, counts_B = sampling.generate(
    *args, context=T, source=source, stop_token=stop, **SAMPLED
  )
  for free_N, tokens_N, count in zip(free_BN, tokens_BN, counts_B, strict=True):
    hits = np.flatnonzero(free_N == stop)
    assert count == (hits[0] if len(hits) else 8)
    np.testing.assert_array_equal(tokens_N[:count], free_N[:count])
    assert (tokens_N[count:] == stop).all()
  assert counts_B[0] <= 3
  assert counts_B.max() > counts_B.min()


@pytest.mark.parametrize("switches", [DECODERS["rotary"], T5], ids=str)
def test_one_compilation_serves_all_options(switches):
  model = make(**switches)
  prompts_BP, lengths_B, source = ragged(model)
  compiled = []

  def listen(event, seconds, **kwargs):
    if event == "/jax/core/compile/backend_compile_duration":
      compiled.append(kwargs.get("fun_name"))

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    outputs = [
      sampling.generate(
        model,
        prompts_BP,
        lengths_B,
        3,  # as in no other test: nothing is compiled yet
        jax.random.wrap_key_data(np.array([0, seed], np.uint32)),
        context=T,
        source=source,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_token=stop_token,
      )[0]
      for seed, (temperature, top_k, top_p, stop_token) in enumerate(
        itertools.product((0.0, 0.7, 2.0), (0, 4), (0.8, 1.0), (-1, 3))
      )
    ]
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert len(compiled) == 1, compiled
  assert len({output.tobytes() for output in outputs}) > 10


GOOD = {"max_new_tokens": 4, "context": T}


@pytest.mark.parametrize(
  ("bad", "line"),
  [
    ({"temperature": -0.1}, "temperature=-0.1: use 0"),
    ({"temperature": float("nan")}, "temperature=nan"),
    ({"top_k": -1}, "top_k=-1: use 0"),
    ({"top_p": 0.0}, "top_p=0.0: a probability"),
    ({"top_p": 1.1}, "top_p=1.1: a probability"),
    ({"max_new_tokens": 0}, "max_new_tokens=0"),
    ({"max_new_tokens": 13}, "prompt of 5 tokens the model's context of 16 has room for 12; ask"),
    ({"context": 4}, "its 5 tokens are more than the model's context of 4"),
    ({"context": 99, "max_new_tokens": 13}, "context of 16"),  # learned positions
    ({"prompts_BP": np.full((1, 5), V)}, f"token {V} is not in the model's vocabulary of {V}"),
    ({"prompts_BP": np.full((1, 5), -1)}, "token -1 is not"),
    ({"lengths_B": [0]}, "1 to 5 for each of 1 prompts"),
    ({"lengths_B": [6]}, "1 to 5 for each of 1 prompts"),
    ({"lengths_B": [5, 5]}, "for each of 1 prompts"),
  ],
)
def test_refusals(bad, line):
  model = make(positions="learned")
  args = {"prompts_BP": np.ones((1, 5)), "lengths_B": [5], **GOOD, **bad}
  with pytest.raises(ValueError, match="=|:") as error:
    sampling.generate(model, key=KEY, **args)
  assert line in str(error.value)
  assert "\n" not in str(error.value)


def test_exactly_the_context_is_allowed():
  """The last of the new tokens is predicted from a sequence of T."""
  model = make(**DECODERS["learned"])
  prompt_BP, all_B = np.ones((1, 5), int), np.array([5])
  args = (prompt_BP, all_B, T - 4)
  tokens_BN, _ = sampling.generate(model, *args, KEY, context=T, **SAMPLED)
  np.testing.assert_array_equal(tokens_BN, reference(model, *args, None, SAMPLED))


def test_masks_are_filled_with_the_most_probable_tokens():
  model = make(family="encoder", head_transform=True, head_bias=True, tied=True)
  mask = V - 1
  tokens_BT = np.random.default_rng(0).integers(0, V - 1, (2, 9))
  tokens_BT[0, [2, 5]] = tokens_BT[1, 0] = mask
  blanks = sampling.fill_mask(model, tokens_BT, mask, context=T, top=4)
  assert list(zip(blanks.rows_X, blanks.positions_X, strict=True)) == [(0, 2), (0, 5), (1, 0)]
  logits_BTV = forward(model, tokens_BT).astype(np.float64)[..., :mask]
  p_XV = np.exp(logits_BTV)[blanks.rows_X, blanks.positions_X]
  p_XV /= p_XV.sum(axis=1, keepdims=True)
  best_XK = np.argsort(-p_XV, axis=1)[:, :4]
  np.testing.assert_array_equal(blanks.tokens_XK, best_XK)
  np.testing.assert_allclose(blanks.probs_XK, np.take_along_axis(p_XV, best_XK, 1), rtol=1e-4)
  with pytest.raises(ValueError, match="no mask"):
    sampling.fill_mask(model, tokens_BT[:1, :2], mask, context=T)
  with pytest.raises(ValueError, match="its 9 tokens are more than the model's context of 8"):
    sampling.fill_mask(model, tokens_BT, mask, context=8)


@given(
  pieces=st.lists(
    st.tuples(*[st.lists(st.integers(0, 9), max_size=4)] * 2), min_size=1, max_size=6
  ),
  noise=st.lists(st.integers(0, 9), max_size=3),
)
def test_spans_return_to_their_text(pieces, noise):
  sentinels, eos = range(99, 79, -1), 10
  text = [token for kept, hidden in pieces for token in (*kept, *hidden)]
  source = [t for i, (kept, _) in enumerate(pieces) for t in (*kept, sentinels[i])]
  output = [t for i, (_, hidden) in enumerate(pieces) for t in (sentinels[i], *hidden)]
  spans = sampling.parse_spans([*noise, *output, eos, *noise, sentinels[0], 5], sentinels, eos)
  assert sampling.splice(source, spans) == text
