"""The decoder: what it may see, what its switches change, and what they must not change."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from configs import base, ladders
from model import attention, layers, transformer

V, T = 19, 12
TOKENS_BT = jnp.arange(T, dtype=jnp.int32)[None]  # all distinct


@pytest.fixture(autouse=True)
def _no_silent_broadcasting():
  with jax.numpy_rank_promotion("raise"):
    yield


def model_config(**changes):
  c = base.get_config()
  fixed = {"width": 16, "depth": 2, "heads": 2, "mlp": "gelu", "init_std": 0.02, "scan": False}
  c.model.update(fixed | changes)
  return ladders.resolve(c).model


def build(seed=0, **changes):
  return transformer.build(model_config(**changes), V, T, nnx.Rngs(seed))


def built(seed=0, **changes):
  return nnx.split(build(seed, **changes))


def randomised(params):
  """Parameters at random, each by its path alone; no gain is 1 and no head 0."""

  def draw(path, w):
    rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
    noise = rng.normal(size=w.shape) / np.sqrt(w.shape[-2] if w.ndim > 1 else 10)
    return jnp.asarray(noise + ("scale" in jax.tree_util.keystr(path)), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, params)


def random_model(**changes):
  """(params, apply) of a model whose parameters are all at random."""
  graphdef, params = nnx.split(nnx.eval_shape(lambda: build(**changes)))
  return randomised(params), jax.jit(lambda params, *x: nnx.merge(graphdef, params)(*x))


@functools.cache
def outcome(**changes):
  """(logits_BTV, gradients) of a model whose parameters are all at random."""
  params, apply = random_model(**changes)

  def objective(params):
    logits_BTV = apply(params, TOKENS_BT)
    return jnp.sum(jax.nn.log_softmax(logits_BTV)[:, :, 3]), logits_BTV

  gradients, logits_BTV = jax.jit(jax.grad(objective, has_aux=True))(params)
  return logits_BTV, gradients


def assert_trees_close(a, b, **bounds):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **bounds), a, b)


@pytest.mark.parametrize(("positions", "scan"), [("rotary", True), ("learned", False)])
def test_a_token_depends_on_itself_and_on_all_before_it(positions, scan):
  params, apply = random_model(positions=positions, scan=scan)

  def logits_TV(table):
    changed = nnx.clone(params)
    changed["embedding"]["table"] = params["embedding"]["table"].replace(table)
    return apply(changed, TOKENS_BT)[0]

  table = params["embedding"]["table"][...]
  influence_TS = np.abs(jax.jacrev(logits_TV)(table)).sum(axis=(1, 3))[:, :T]
  np.testing.assert_array_equal(influence_TS > 0, np.tri(T, dtype=bool))


def pack(first, second):
  tokens = jnp.concatenate([first, second])[None]
  segments = jnp.array([1] * len(first) + [2] * len(second))[None]
  positions = jnp.concatenate([jnp.arange(len(first)), jnp.arange(len(second))])[None]
  return tokens, segments, positions


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_packed_documents_are_isolated(positions):
  params, apply = random_model(positions=positions)
  first, other, second = jnp.array([1, 2, 3, 4, 5]), jnp.array([9, 9, 8, 7, 6]), jnp.arange(10, 17)
  packed_BTV = apply(params, *pack(first, second))
  changed_BTV = apply(params, *pack(other, second))
  np.testing.assert_array_equal(packed_BTV[:, 5:], changed_BTV[:, 5:])
  assert not np.allclose(packed_BTV[:, :5], changed_BTV[:, :5])
  for alone, part in ((first, slice(0, 5)), (second, slice(5, None))):
    np.testing.assert_allclose(
      packed_BTV[:, part], apply(params, alone[None]), rtol=1e-5, atol=1e-5
    )
  crossing_BTV = apply(params, pack(first, second)[0])
  assert not np.allclose(packed_BTV[:, 5:], crossing_BTV[:, 5:], atol=1e-2)


def test_one_segment_is_the_causal_fast_path():
  params, apply = random_model()
  np.testing.assert_allclose(
    apply(params, TOKENS_BT, jnp.ones_like(TOKENS_BT)), apply(params, TOKENS_BT), rtol=1e-6
  )


def test_rotary_positions_are_relative():
  params, apply = random_model(positions="rotary")
  place_BT = jnp.arange(T)[None]
  at, shifted, stretched = (
    apply(params, TOKENS_BT, None, p_BT) for p_BT in (place_BT, place_BT + 100, 2 * place_BT)
  )
  np.testing.assert_allclose(shifted, at, rtol=1e-3, atol=1e-3)
  assert not np.allclose(stretched, at, atol=1e-1)


def test_rotation_is_a_rotation_by_the_angles_of_the_paper():
  x_BTHK = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
  y = attention.rotate(x_BTHK, attention.rotation(jnp.array([[5]]), 4))[0, 0, 0]
  pairs = np.array([1 + 3j, 2 + 4j]) * np.exp(1j * 5 * np.array([1, 10_000**-0.5]))
  np.testing.assert_allclose(y, [*pairs.real, *pairs.imag], rtol=1e-5)


def test_scanned_layers_equal_unrolled_ones():
  assert_trees_close(outcome(scan=True), outcome(scan=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_policies_give_the_same_gradients(remat):
  assert_trees_close(outcome(scan=True, remat=remat), outcome(scan=True), rtol=1e-4, atol=1e-5)


def test_remat_policies_keep_what_they_say():
  """The bytes that XLA needs for a gradient fall from none to dots to full."""

  def temporary(remat):
    params, apply = random_model(remat=remat, depth=4, scan=True)
    tokens_BT = jnp.zeros((16, T), jnp.int32)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(apply(params, tokens_BT) ** 2)))
    return gradient.lower(params).compile().memory_analysis().temp_size_in_bytes

  none, dots, full = (temporary(remat) for remat in ("none", "dots", "full"))
  assert none > 1.1 * dots > 1.1 * 1.1 * full


def first_loss(**changes):
  graphdef, params = built(**changes)
  logits_BTV = nnx.merge(graphdef, params)(TOKENS_BT)
  assert logits_BTV.dtype == jnp.float32
  return -jnp.mean(jax.nn.log_softmax(logits_BTV)[:, :, 3])


def test_the_first_loss_is_that_of_a_uniform_guess():
  assert first_loss(init_std=1.0) == pytest.approx(np.log(V), rel=1e-6)
  # Tied logits are of order 1 at most, whatever the scale of the embedding.
  assert first_loss(tied=True) == pytest.approx(np.log(V), abs=0.1)
  assert first_loss(tied=True, init_std=1.0) < np.log(V) + 1.5


def test_bfloat16_stays_within_its_rounding():
  """Operands rounded to 8 bits move a product by at most 2 * 2**-8 of its terms' sizes.

  A logit lies behind 6 products a block (values, scores, weighted sum, out, up, down) and the
  head's. In root mean square over terms of random sign the errors do not exceed their plain sum.
  """
  params, exact = random_model(dtype="float32")
  _, rounded = random_model(dtype="bfloat16")
  a, b = exact(params, TOKENS_BT), rounded(params, TOKENS_BT)
  error = np.sqrt(np.mean((a - b) ** 2) / np.mean(a**2))
  assert 1e-4 < error < (6 * 2 + 1) * 2 * 2**-8
  assert b.dtype == jnp.float32
  gradients = outcome(dtype="bfloat16")[1]
  assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("shape", [(7, 3, 5), (7, 5, 3), (4, 4, 4)])
def test_the_written_out_derivative_of_a_product(shape):
  n, d, f = shape
  x_ND = jax.random.normal(jax.random.key(0), (n, d))
  w_DF = jax.random.normal(jax.random.key(1), (d, f))

  def ours(x_ND, w_DF):
    return jnp.sum(jnp.sin(layers.matmul(x_ND, w_DF, jnp.dtype("float32"))))

  def plain(x_ND, w_DF):
    return jnp.sum(jnp.sin(x_ND @ w_DF))

  check_grads(ours, (x_ND, w_DF), order=1, modes=["rev"], rtol=1e-2)
  a, b = (jax.grad(f, (0, 1))(x_ND, w_DF) for f in (ours, plain))
  assert_trees_close(a, b, rtol=1e-5, atol=1e-6)


def test_bfloat16_gradients_are_summed_in_float32():
  def total(w_DF):
    return jnp.sum(layers.matmul(jnp.ones((1001, 2)), w_DF, jnp.dtype("bfloat16")))

  gradient_DF = jax.grad(total)(jnp.ones((2, 3)))
  np.testing.assert_array_equal(gradient_DF, np.full((2, 3), 1001.0))  # in bfloat16: 1000


@pytest.mark.parametrize("masked", [False, True])
def test_attend_equals_the_librarys_attention(masked):
  q_BTHK, k_BTHK, v_BTHK = (
    jax.random.normal(jax.random.key(i), (2, 8, 3, 4)) * 3 for i in range(3)
  )
  mask_BTS = None
  if masked:
    segments_BT = jnp.array([[1] * 3 + [2] * 5, [1] * 7 + [2]])
    mask_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]

  def ours(q, k, v):
    return jnp.sin(attention.attend(q, k, v, mask_BTS, jnp.dtype("float32"))).sum()

  def library(q, k, v):
    mask = None if mask_BTS is None else mask_BTS[:, None]
    return jnp.sin(jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True)).sum()

  a, b = (jax.value_and_grad(f, (0, 1, 2))(q_BTHK, k_BTHK, v_BTHK) for f in (ours, library))
  assert_trees_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("mlp", "relu"),
    ("mlp", "geglu"),
    ("mlp", "swiglu"),
    ("norm", "layer"),
    ("positions", "learned"),
    ("biases", True),
    ("qk_norm", False),
    ("tied", True),
    ("dtype", "bfloat16"),
    ("mlp_ratio", 2.0),
  ],
)
def test_every_switch_changes_the_function(field, value):
  a, _ = outcome()
  b, gradients = outcome(**{field: value})
  assert a.shape == b.shape == (1, T, V)
  assert np.isfinite(b).all()
  assert not np.allclose(a, b, rtol=1e-4, atol=1e-4)
  assert all(np.any(g) for g in jax.tree.leaves(gradients))


def test_initialisation_depends_on_the_seed_only():
  _, params = built(seed=3)
  for changes in ({"scan": False}, {"remat": "full"}, {"dtype": "bfloat16"}, {"norm": "layer"}):
    assert_trees_close(built(seed=3, **changes)[1], params, rtol=0)
  _, other = built(seed=4)
  assert not np.array_equal(params["embedding"]["table"][...], other["embedding"]["table"][...])
  query_LDD = params["block"]["attention"]["query"]["kernel"][...]
  assert not np.array_equal(query_LDD[0], query_LDD[1])


def test_initial_scales():
  _, params = built(width=128, depth=3)
  block = params["block"]
  spread = {
    "embedding": (params["embedding"]["table"], 0.02),
    "dense": (block["attention"]["query"]["kernel"], 128**-0.5),
    "up": (block["mlp"]["up"]["kernel"], 128**-0.5),
    "residual": (block["attention"]["out"]["kernel"], (128 * 2 * 3) ** -0.5),
    "down": (block["mlp"]["down"]["kernel"], (512 * 2 * 3) ** -0.5),
  }
  for name, (w, expected) in spread.items():
    assert np.std(w[...]) == pytest.approx(expected, rel=0.05), name
  assert not np.any(params["head"]["kernel"][...])


@pytest.mark.parametrize("field", ["family", "mlp", "norm", "positions", "dtype", "remat"])
def test_an_unknown_switch_is_named(field):
  with pytest.raises(ValueError, match=rf"^model\.{field}='odd': unknown; choose one of [^\n]+$"):
    built(**{field: "odd"})


def test_learned_positions_end_somewhere():
  params, apply = random_model(positions="learned")
  with pytest.raises(ValueError, match="data.seq_len=13: the model was built with 12 learned"):
    apply(params, jnp.zeros((1, T + 1), jnp.int32))
