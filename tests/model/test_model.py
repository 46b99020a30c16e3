"""The three transformers: what they may see, what their switches change, and what they must not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import (
  FAMILIES,
  POSITIONS,
  SOURCE_BS,
  TOKENS_BT,
  S,
  T,
  V,
  assert_trees_close,
  build,
  built,
  outcome,
  random_model,
  source_of,
)

from model.transformer import Source

pytestmark = pytest.mark.usefixtures("no_silent_broadcasting")

# An encoder-decoder has all that the other two have.
MOST = ["decoder", pytest.param("encoder", marks=pytest.mark.slow), "encoder_decoder"]


# ---------------------------------------------------------------------------------------------
# What a token sees: read off the derivatives of the logits
# ---------------------------------------------------------------------------------------------

PACKED_T = np.array([1] * 5 + [2] * 4 + [0] * 3)
PACKED_S = np.array([1] * 4 + [2] * 3 + [0] * 3)
PREFIX_T = np.array([1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0], bool)


def influence(family, *inputs, source=(), **changes):
  """Whether each position's logits depend on each input token, of its own sequence and the source.

  All input tokens are distinct, so a token's influence is that of its row of the embedding table.
  """
  params, apply = random_model(family=family, **changes)
  weights_V1 = np.random.default_rng(0).normal(size=(V, 1))
  named = source_of(family, SOURCE_BS, *source)
  if inputs and inputs[-1] is not None:
    *inputs, named["prefix_BT"] = inputs

  def logits_T(table):
    changed = nnx.clone(params)
    changed["embedding"]["table"] = params["embedding"]["table"].replace(table)
    return (apply(changed, TOKENS_BT, *inputs, **named)[0] @ weights_V1)[:, 0]

  _, pull_back = jax.vjp(logits_T, params["embedding"]["table"][...])
  gradients_TVD = np.array(jax.vmap(pull_back)(jnp.eye(T))[0])
  return np.any(gradients_TVD != 0, axis=-1)[:, : T + S]


@pytest.mark.parametrize("positions", [pytest.param("rotary", marks=pytest.mark.smoke), "relative"])
def test_a_decoder_sees_what_came_before(positions):
  seen_TS = influence("decoder", positions=positions)
  np.testing.assert_array_equal(seen_TS[:, :T], np.tri(T, dtype=bool))


@pytest.mark.parametrize("positions", ["learned", "relative"])
def test_an_encoder_sees_everything(positions):
  assert influence("encoder", positions=positions)[:, :T].all()


@pytest.mark.parametrize("positions", ["sinusoidal", "relative"])
def test_an_encoder_decoder_sees_the_source_and_what_came_before(positions):
  seen_TS = influence("encoder_decoder", positions=positions)
  np.testing.assert_array_equal(seen_TS[:, :T], np.tri(T, dtype=bool))
  assert seen_TS[:, T:].all()


def test_a_prefix_is_seen_as_a_whole():
  segments_BT, prefix_BT = jnp.ones((1, T), int), jnp.arange(T)[None] < 4
  seen_TS = influence("decoder", None, None, prefix_BT)
  expected_TS = np.tri(T, dtype=bool)
  expected_TS[:, :4] = True
  np.testing.assert_array_equal(seen_TS[:, :T], expected_TS)
  np.testing.assert_array_equal(influence("decoder", segments_BT, None, prefix_BT), seen_TS)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_documents_do_not_see_each_other(family, prefix):
  """Nor padding: it is segment 0, which sees and is seen by no other."""
  segments_BT, prefix_BT = jnp.array(PACKED_T)[None], jnp.array(PREFIX_T)[None]
  inputs = (segments_BT, None, prefix_BT if prefix else None)
  seen_TS = influence(
    family, *inputs[: 3 if prefix else 2], source=(jnp.array(PACKED_S)[None],), positions="relative"
  )
  order_TS = np.ones((T, T), bool) if family == "encoder" else np.tri(T, dtype=bool)
  if prefix:
    order_TS |= PREFIX_T[None, :]
  same_TS = PACKED_T[:, None] == PACKED_T[None, :]
  np.testing.assert_array_equal(seen_TS[:, :T], same_TS & order_TS)
  if family == "encoder_decoder":
    np.testing.assert_array_equal(seen_TS[:, T:], PACKED_T[:, None] == PACKED_S[None, :])


def pack(*documents, length):
  """(tokens, segments, positions) of one row: the documents, then padding."""
  rest = length - sum(map(len, documents))
  numbers = [np.full(len(document), i + 1) for i, document in enumerate(documents)]
  places = [np.arange(len(document)) for document in documents]
  parts = ([*documents, np.zeros(rest)], [*numbers, np.zeros(rest)], [*places, np.arange(rest)])
  return tuple(jnp.array(np.concatenate(part), jnp.int32)[None] for part in parts)


FIRST, SECOND = np.arange(1, 5), np.arange(10, 14)
FIRST_SOURCE, SECOND_SOURCE = np.arange(20, 24), np.arange(24, 28)


@pytest.mark.parametrize(
  ("family", "positions"),
  [
    (family, positions)
    if family == "decoder" or positions == "relative"
    else pytest.param(family, positions, marks=pytest.mark.slow)
    for family, positions in itertools.product(FAMILIES, POSITIONS)
  ],
)
def test_packed_documents_equal_documents_alone(family, positions):
  """Two documents and padding in one row, against each in a row of its own."""
  params, apply = random_model(family=family, positions=positions)
  source = source_of(family, *pack(FIRST_SOURCE, SECOND_SOURCE, length=S))
  packed_BTV = apply(params, *pack(FIRST, SECOND, length=T), **source)
  assert np.isfinite(packed_BTV).all()
  for document, read, part in (
    (FIRST, FIRST_SOURCE, slice(0, 4)),
    (SECOND, SECOND_SOURCE, slice(4, 8)),
  ):
    alone_BTV = apply(params, jnp.array(document)[None], **source_of(family, jnp.array(read)[None]))
    np.testing.assert_allclose(packed_BTV[:, part], alone_BTV, rtol=1e-4, atol=1e-5)
  crossing_BTV = apply(params, pack(FIRST, SECOND, length=T)[0], **source)
  assert not np.allclose(packed_BTV[:, 4:8], crossing_BTV[:, 4:8], atol=1e-2)


@pytest.mark.parametrize("family", MOST)
def test_padding_changes_nothing_and_does_no_harm(family):
  """Whatever stands there, the gradients of the real tokens' loss are the same, and finite."""
  params, apply = random_model(family=family)
  segments_BT = jnp.minimum(jnp.array(PACKED_T), 1)[None]
  segments_BS = jnp.minimum(jnp.array(PACKED_S), 1)[None]

  def loss(params, segments_BT, filling, *source):
    tokens_BT = jnp.where(segments_BT == 1, TOKENS_BT, filling)
    logits_BTV = apply(params, tokens_BT, segments_BT, **source_of(family, *source))
    losses_BT = -jax.nn.log_softmax(logits_BTV)[:, :, 3]
    return jnp.sum(losses_BT * segments_BT), losses_BT

  gradient = jax.grad(loss, has_aux=True)
  filled = [
    gradient(params, segments_BT, i, jnp.where(segments_BS == 1, SOURCE_BS, i), segments_BS)
    for i in (0, 5)
  ]
  assert_trees_close(filled[0][0], filled[1][0], rtol=0)
  # A row of padding alone; and, where the source has no padding, queries that see nothing.
  empty = gradient(params, 0 * segments_BT, 0, SOURCE_BS, segments_BS)
  alone = gradient(params, segments_BT, 0, SOURCE_BS, jnp.ones_like(SOURCE_BS))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((filled, empty, alone)))
  assert not any(np.any(x) for x in jax.tree.leaves(empty[0]))


def test_without_segments_all_is_segment_one():
  params, apply = random_model(family="encoder_decoder")
  source = Source(*pack(FIRST_SOURCE, length=S))
  plain = Source(jnp.array(FIRST_SOURCE)[None])
  ones_BT = jnp.ones_like(TOKENS_BT)
  expected = apply(params, TOKENS_BT, source=plain)
  for segments_BT, read in ((None, source), (ones_BT, source), (ones_BT, plain)):
    found = apply(params, TOKENS_BT, segments_BT, source=read)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------
# Switches
# ---------------------------------------------------------------------------------------------

SWITCHES = [
  {"mlp": "relu"},
  {"mlp": "gelu_exact"},
  {"mlp": "geglu"},
  {"mlp": "swiglu"},
  {"mlp_ratio": 2.5},
  {"mlp_width": 40},
  {"norm": "layer"},
  {"norm_position": "post"},
  {"norm_eps": 0.1},
  {"embedding_norm": True},
  *({"positions": positions} for positions in POSITIONS if positions != "rotary"),
  {"rotary_base": 100.0},
  {"positions": "relative", "relative_buckets": 8},
  {"token_types": 3},
  {"biases": True},
  {"biases": True, "norm": "layer"},
  {"qk_norm": False},
  {"scale_attention": False},
  {"scale_embedding": True},
  {"scale_logits": True},
  {"tied": True},
  {"head_transform": True},
  {"head_bias": True},
  {"kv_heads": 1},
  {"head_width": 12},
  {"width_scaling": "mup"},
  {"depth_scaling": "completep", "mup_base_depth": 1},
  {"dtype": "bfloat16"},
]


PRESETS = [
  {"positions": "learned", "norm": "layer", "biases": True, "qk_norm": False, "tied": True},
  {"mlp": "swiglu", "kv_heads": 1, "qk_norm": False},
  {
    **{"positions": "learned", "norm": "layer", "biases": True, "norm_position": "post"},
    **{"embedding_norm": True, "token_types": 2, "head_transform": True, "head_bias": True},
  },
]


@pytest.mark.parametrize(
  ("family", "changes"),
  [pytest.param("encoder_decoder", changes, marks=pytest.mark.slow) for changes in SWITCHES]
  + [(family, changes) for family in ("decoder", "encoder") for changes in PRESETS],
  ids=str,
)
def test_every_switch_changes_the_function(family, changes):
  """And every parameter has a gradient; an encoder-decoder has all that the others have."""
  kind = {"positions": "relative"} if "relative_buckets" in changes else {}
  a, _ = outcome(family=family, **kind)
  b, gradients = outcome(family=family, **changes)
  assert a.shape == b.shape == (1, T, V)
  assert b.dtype == jnp.float32
  assert np.isfinite(b).all()
  # The two forms of gelu differ by 5e-4 at most.
  tolerance = 1e-5 if changes == {"mlp": "gelu_exact"} else 1e-3
  assert not np.allclose(a, b, rtol=tolerance, atol=tolerance)
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.isfinite(gradient).all()
    assert np.any(gradient), path


def test_the_depth_of_the_encoder_is_its_own():
  params, apply = random_model(family="encoder_decoder", encoder_depth=1)
  assert params["encoder"]["block"]["mlp"]["up"]["kernel"].shape == (1, 16, 64)
  assert params["decoder"]["block"]["mlp"]["up"]["kernel"].shape == (2, 16, 64)
  a, _ = outcome(family="encoder_decoder")
  b = apply(params, TOKENS_BT, source=Source(SOURCE_BS))
  assert not np.allclose(a, b, atol=1e-3)


def test_learned_positions_end_somewhere():
  params, apply = random_model(positions="learned")
  with pytest.raises(ValueError, match="data.seq_len=13: the model was built with 12 learned"):
    apply(params, jnp.zeros((1, T + 1), jnp.int32))


# ---------------------------------------------------------------------------------------------
# What must not change the function
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "changes",
  [
    {"family": "decoder"},
    *(
      pytest.param(
        {"family": "encoder_decoder", "positions": "relative", "remat": remat},
        marks=pytest.mark.slow,
      )
      for remat in ("none", "dots", "full")
    ),
  ],
  ids=str,
)
def test_scanned_and_rematerialised_layers_equal_unrolled_ones(changes):
  unrolled = outcome(**(changes | {"remat": "none"}))
  assert_trees_close(outcome(scan=True, **changes), unrolled, rtol=1e-4, atol=1e-5)


def test_remat_policies_keep_what_they_say():
  """The bytes that XLA needs for a gradient fall from none to dots to full."""

  def temporary(remat):
    params, apply = random_model(remat=remat, depth=4, scan=True)
    tokens_BT = jnp.zeros((16, T), jnp.int32)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(apply(params, tokens_BT) ** 2)))
    return gradient.lower(params).compile().memory_analysis().temp_size_in_bytes

  none, dots, full = (temporary(remat) for remat in ("none", "dots", "full"))
  assert none > 1.1 * dots > 1.1 * 1.1 * full


@pytest.mark.parametrize("family", MOST)
def test_bfloat16_stays_within_its_rounding(family):
  """Operands rounded to 8 bits move a product by at most 2 * 2**-8 of its terms' sizes.

  A logit lies behind 6 products a block (values, scores, weighted sum, out, up, down), 4 more where
  there is cross-attention, and the head's. In root mean square over terms of random sign the errors
  do not exceed their plain sum.
  """
  exact, rounded = (outcome(family=family, dtype=dtype) for dtype in ("float32", "bfloat16"))
  blocks = {"decoder": 2 * 6, "encoder": 2 * 6, "encoder_decoder": 2 * 6 + 2 * 10}[family]
  error = np.sqrt(np.mean((rounded[0] - exact[0]) ** 2) / np.mean(exact[0] ** 2))
  assert 1e-4 < error < (blocks + 1) * 2 * 2**-8
  assert {g.dtype for g in jax.tree.leaves(rounded)} == {jnp.dtype("float32")}


# ---------------------------------------------------------------------------------------------
# Initialisation
# ---------------------------------------------------------------------------------------------


def first_loss(**changes):
  family = changes.get("family", "decoder")
  logits_BTV = build(**changes)(TOKENS_BT, **source_of(family))
  assert logits_BTV.dtype == jnp.float32
  return -jnp.mean(jax.nn.log_softmax(logits_BTV)[:, :, 3])


@pytest.mark.parametrize("family", MOST)
def test_the_first_loss_is_that_of_a_uniform_guess(family):
  assert first_loss(family=family, init_std=1.0) == pytest.approx(np.log(V), rel=1e-6)
  # Tied logits are of order 1 at most, whatever the scale of the embedding.
  assert first_loss(family=family, tied=True) == pytest.approx(np.log(V), abs=0.1)
  assert first_loss(family=family, tied=True, init_std=1.0) < np.log(V) + 2


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_initialisation_depends_on_the_seed_only(family):
  _, params = built(seed=3, family=family)
  for changes in ({"scan": False}, {"remat": "full"}, {"dtype": "bfloat16"}, {"norm": "layer"}):
    assert_trees_close(built(seed=3, family=family, **changes)[1], params, rtol=0)
  _, other = built(seed=4, family=family)
  assert not np.array_equal(params["embedding"]["table"][...], other["embedding"]["table"][...])
  query_LDD = params["decoder"]["block"]["attention"]["query"]["kernel"][...]
  assert not np.array_equal(query_LDD[0], query_LDD[1])
  if family == "encoder_decoder":
    encoder_LDD = params["encoder"]["block"]["attention"]["query"]["kernel"][...]
    cross_LDD = params["decoder"]["block"]["cross_attention"]["query"]["kernel"][...]
    assert not np.array_equal(query_LDD, encoder_LDD)
    assert not np.array_equal(query_LDD, cross_LDD)


def test_initial_scales():
  """The branches of a stack, two of a layer and three with cross-attention, share one variance."""
  _, params = built(width=128, depth=3, encoder_depth=5, family="encoder_decoder")
  for stack, branches in (("encoder", 2 * 5), ("decoder", 3 * 3)):
    block = params[stack]["block"]
    spread = {
      "embedding": (params["embedding"]["table"], 0.02),
      "dense": (block["attention"]["query"]["kernel"], 128**-0.5),
      "up": (block["mlp"]["up"]["kernel"], 128**-0.5),
      "residual": (block["attention"]["out"]["kernel"], (128 * branches) ** -0.5),
      "down": (block["mlp"]["down"]["kernel"], (512 * branches) ** -0.5),
    }
    for name, (w, expected) in spread.items():
      assert np.std(w[...]) == pytest.approx(expected, rel=0.05), name
    if stack == "decoder":
      cross = block["cross_attention"]["out"]["kernel"][...]
      assert np.std(cross) == pytest.approx((128 * branches) ** -0.5, rel=0.05)
  assert not np.any(params["head"]["kernel"][...])
