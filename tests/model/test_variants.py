"""The parts of the model, each by its definition: positions, norms, dropout, muP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import (
  FAMILIES,
  SOURCE_BS,
  TOKENS_BT,
  S,
  T,
  build,
  model_config,
  normal,
  random_model,
  source_of,
  trainer,
)

from model import layers, positions, transformer

pytestmark = pytest.mark.usefixtures("no_silent_broadcasting")


# ---------------------------------------------------------------------------------------------
# Positions
# ---------------------------------------------------------------------------------------------


def test_rotary_positions_are_relative():
  params, apply = random_model(positions="rotary")
  place_BT = jnp.arange(T)[None]
  at, shifted, stretched = (
    apply(params, TOKENS_BT, None, p_BT) for p_BT in (place_BT, place_BT + 100, 2 * place_BT)
  )
  np.testing.assert_allclose(shifted, at, rtol=1e-3, atol=1e-3)
  assert not np.allclose(stretched, at, atol=1e-1)


@pytest.mark.parametrize("base", [10_000.0, 500.0])
def test_rotation_is_a_rotation_by_the_angles_of_the_paper(base):
  x_BTHK = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
  angles = positions.rotation(jnp.array([[5]]), 4, base)
  y = positions.rotate(x_BTHK, angles)[0, 0, 0]
  pairs = np.array([1 + 3j, 2 + 4j]) * np.exp(1j * 5 * np.array([1, base**-0.5]))
  np.testing.assert_allclose(y, [*pairs.real, *pairs.imag], rtol=1e-5)


def test_scaled_rotation_stretches_long_wavelengths_alone():
  def rates(*scaling):
    cos_K, sin_K = (x[0, 0, 0] for x in positions.rotation(jnp.array([[1]]), 32, 1e4, *scaling))
    return np.arctan2(sin_K[16:], cos_K[16:])

  plain = rates()
  np.testing.assert_allclose(rates(8.0), plain / 8, rtol=1e-4)  # linear
  share = rates(8.0, 256, 1.0, 4.0) / plain
  wavelengths = 2 * np.pi / plain
  short, long = wavelengths < 256 / 4, wavelengths > 256
  middle = ~(short | long)
  assert [part.any() for part in (short, middle, long)] == [True] * 3
  np.testing.assert_allclose(share[short], 1, rtol=1e-4)
  np.testing.assert_allclose(share[long], 1 / 8, rtol=1e-4)
  kept = (256 / wavelengths - 1) / 3  # of those between, smoothly
  np.testing.assert_allclose(share[middle], (kept + (1 - kept) / 8)[middle], rtol=1e-3)


def test_a_narrow_rotation_leaves_the_rest_of_a_head():
  x_BTHK = jax.random.normal(jax.random.key(0), (1, 3, 2, 6))
  narrow = positions.rotation(jnp.arange(3)[None], 4, 100.0)
  y_BTHK = positions.rotate(x_BTHK, narrow)
  np.testing.assert_array_equal(y_BTHK[..., 4:], x_BTHK[..., 4:])
  np.testing.assert_array_equal(y_BTHK[..., :4], positions.rotate(x_BTHK[..., :4], narrow))


def test_buckets_of_the_decoder_follow_the_paper():
  """16 single distances, then 16 buckets that grow to 128: the k-th from 16 * 8^(k/16) on.

  Compared in integers, d^16 >= 2^(64 + 3k), where no rounding can move a boundary.
  """
  for d in range(300):
    expected = d if d < 16 else 16 + sum(d**16 >= 2 ** (64 + 3 * k) for k in range(1, 16))
    assert positions.relative_bucket(jnp.array(-d), 32, 128, True) == expected, d
  assert not np.any(positions.relative_bucket(jnp.arange(300), 32, 128, True))  # what comes after


def test_buckets_of_the_encoder_follow_the_paper():
  """Half for each side; 8 single distances, then boundaries at 8 * 2^(k/2), by hand."""
  starts = [*range(8), 8, 12, 16, 23, 32, 46, 64, 91]
  distances = np.arange(300)
  expected = np.searchsorted(starts, distances, side="right") - 1
  before, after = (
    positions.relative_bucket(jnp.array(sign * distances), 32, 128, False) for sign in (-1, 1)
  )
  np.testing.assert_array_equal(before, expected)
  np.testing.assert_array_equal(after[1:], expected[1:] + 16)


def test_one_table_of_biases_serves_all_layers_of_a_stack():
  """A bias far above all scores makes tokens see their predecessor alone; the first has none."""
  params, apply = random_model(family="encoder", positions="relative")
  table = jnp.zeros((32, 2)).at[1].set(1000.0)  # one token before
  params = nnx.clone(params)
  params["encoder"]["relative"]["table"] = params["encoder"]["relative"]["table"].replace(table)
  changed_BT = TOKENS_BT.at[0, 4].set(20)
  a_BTV, b_BTV = apply(params, TOKENS_BT), apply(params, changed_BT)
  different_T = np.any(np.abs(a_BTV - b_BTV) > 1e-5, axis=(0, 2))
  np.testing.assert_array_equal(np.flatnonzero(different_T), [0, 1, 4, 5, 6])
  deep, _ = random_model(family="encoder_decoder", positions="relative", depth=3)
  assert deep["encoder"]["relative"]["table"].shape == (32, 2)
  assert deep["decoder"]["relative"]["table"].shape == (32, 2)


@pytest.mark.parametrize("prefix", [False, True])
def test_a_prefix_lm_tells_the_tokens_after_one_apart(prefix):
  """Two tokens of a prefix change places: those before them see it, where they see them at all."""
  params, apply = random_model(positions="relative", prefix=prefix, depth=1)
  swapped_BT = TOKENS_BT.at[0, 4].set(TOKENS_BT[0, 7]).at[0, 7].set(TOKENS_BT[0, 4])
  prefix_BT = jnp.arange(T)[None] < 9 if prefix else None
  a_BTV, b_BTV = (apply(params, x_BT, prefix_BT=prefix_BT) for x_BT in (TOKENS_BT, swapped_BT))
  before_TV = np.abs(a_BTV - b_BTV)[0, :4]
  assert (before_TV.max(axis=1) > 1e-4).all() if prefix else not before_TV.any()


def test_sinusoids_follow_the_paper():
  """Sine and cosine at the rates 1 and 10,000^(-1/2), the sines first."""
  x_D = positions.sinusoids(jnp.array([[3]]), 4)[0, 0]
  np.testing.assert_allclose(x_D, [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)], rtol=1e-5)


def test_sinusoids_follow_the_positions_that_are_given():
  params, apply = random_model(positions="sinusoidal")
  place_BT = jnp.arange(T)[None]
  np.testing.assert_array_equal(apply(params, TOKENS_BT), apply(params, TOKENS_BT, None, place_BT))
  moved = apply(params, TOKENS_BT, None, place_BT + 7)
  assert not np.allclose(apply(params, TOKENS_BT), moved, atol=1e-2)


# ---------------------------------------------------------------------------------------------
# Norms, activations, heads: one block in numpy
# ---------------------------------------------------------------------------------------------


def numpy_encoder(params, *, post, eps):
  """An encoder of one block and one head, layer norms with biases, tanh gelu, learned positions."""
  w = jax.tree.map(lambda x: np.array(x, np.float64), nnx.to_pure_dict(params))
  stack, tokens = w["encoder"], np.array(TOKENS_BT[0])
  block = jax.tree.map(lambda x: x[0], stack["block"])

  def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]

  def dense(x, p):
    return x @ p["kernel"] + p["bias"]

  def attend(x):
    q, k, v = (dense(x, block["attention"][name]) for name in ("query", "key", "value"))
    scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
    return dense(scores / scores.sum(-1, keepdims=True) @ v, block["attention"]["out"])

  def mlp(x):
    h = dense(x, block["mlp"]["up"])
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return dense(h, block["mlp"]["down"])

  x = w["embedding"]["table"][tokens] + stack["positions"]["table"][: len(tokens)]
  for layer, name in ((attend, "attention_norm"), (mlp, "mlp_norm")):
    x = norm(x + layer(x), block[name]) if post else x + layer(norm(x, block[name]))
  if not post:
    x = norm(x, stack["final_norm"])
  return x @ w["head"]["kernel"]


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_a_block_equals_its_formula(norm_position):
  params, apply = random_model(
    family="encoder", depth=1, heads=1, norm="layer", biases=True, qk_norm=False,
    positions="learned", norm_position=norm_position, norm_eps=0.01,
  )  # fmt: skip
  expected_TV = numpy_encoder(params, post=norm_position == "post", eps=0.01)
  np.testing.assert_allclose(apply(params, TOKENS_BT)[0], expected_TV, rtol=1e-4, atol=1e-4)


def test_rms_norm_equals_its_formula():
  x_BD, gain_D = normal(0, 3, 16), normal(1, 16)
  norm = layers.Norm(model_config(norm_eps=0.1), 16)
  norm.scale[...] = gain_D
  rms_B1 = np.sqrt(np.mean(np.square(x_BD), axis=-1, keepdims=True) + 0.1)
  np.testing.assert_allclose(norm(x_BD), x_BD / rms_B1 * gain_D[None], rtol=1e-5)


# ---------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------


def test_dropout_keeps_the_mean_and_drops_the_share_it_says():
  n, rate = 100_000, 0.3
  y_BN = layers.dropout(jnp.full((4, n // 4), 2.0), rate, jax.random.split(jax.random.key(0), 4))
  np.testing.assert_allclose(np.unique(y_BN), [0.0, 2 / 0.7], rtol=1e-6)
  dropped = np.mean(y_BN == 0)
  assert dropped == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / n))
  assert np.mean(y_BN) == pytest.approx(2.0, abs=5 * 2 * np.sqrt(rate / (1 - rate) / n))


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_a_row_is_a_function_of_its_key(family):
  """Whatever the other rows' keys are, and in which row it stands."""
  params, apply = random_model(family=family, dropout=0.2)
  tokens_BT, source = jnp.tile(TOKENS_BT, (3, 1)), source_of(family, jnp.tile(SOURCE_BS, (3, 1)))
  one, two, three = jax.random.split(jax.random.key(0), 3)
  a_BTV = apply(params, tokens_BT, keys_B=jnp.stack([one, two, one]), **source)
  b_BTV = apply(params, tokens_BT, keys_B=jnp.stack([three, one, two]), **source)
  plain_BTV = apply(params, tokens_BT, **source)
  for same in (a_BTV[2], b_BTV[1]):
    np.testing.assert_allclose(same, a_BTV[0], rtol=1e-4, atol=1e-5)
  for other in (a_BTV[1], b_BTV[0], plain_BTV[0]):
    assert not np.allclose(other, a_BTV[0], atol=1e-2)
  without, apply = random_model(family=family)
  keys_B = jnp.stack([one, two, three])
  np.testing.assert_array_equal(plain_BTV, apply(without, tokens_BT, keys_B=keys_B, **source))


@pytest.mark.slow
def test_every_place_has_dropout_of_its_own():
  """A model that does nothing but sum its masks, each times a power of two, so that each is seen.

  Embeddings 1; attention, cross-attention and MLP of the two layers 2 ... 64; the head shows the
  residual stream. At a rate of one half, a kept entry counts twice.
  """
  rows = 200
  config = model_config(
    family="encoder_decoder", biases=True, dropout=0.5, scan=True, positions="none"
  )
  graphdef, params = nnx.split(transformer.Transformer(config, 16, T, nnx.Rngs(0), S))
  params = jax.tree.map(jnp.zeros_like, params)  # also the gains, so that layers give their biases
  params["embedding"]["table"][...] += 1
  params["head"]["kernel"][...] += jnp.eye(16)
  block = params["decoder"]["block"]
  block["attention"]["out"]["bias"][...] += jnp.array([[2], [16]])
  block["cross_attention"]["out"]["bias"][...] += jnp.array([[4], [32]])
  block["mlp"]["down"]["bias"][...] += jnp.array([[8], [64]])
  model = nnx.merge(graphdef, params)
  model.decoder.final_norm = None
  tokens_BT, tokens_BS = jnp.zeros((rows, T), int), jnp.zeros((rows, S), int)
  source = transformer.Source(tokens_BS)
  sums_BTD = jax.jit(lambda keys_B: model(tokens_BT, source=source, keys_B=keys_B))(
    jax.random.split(jax.random.key(0), rows)
  )
  masks_P = [np.array(sums_BTD / 2).astype(int) >> i & 1 for i in range(7)]
  n = rows * T * 16
  for i in range(7):
    assert np.mean(masks_P[i]) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(n))
    for j in range(i):
      agreement = np.mean(masks_P[i] == masks_P[j])
      assert agreement == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(n)), (i, j)


# ---------------------------------------------------------------------------------------------
# Training: muP, programs of any depth
# ---------------------------------------------------------------------------------------------


def moved(width, **changes):
  """Root mean square of the change of the logits in 3 steps of Adam."""
  fixed = {"heads": width // 16, "mup_base_width": 32, "init_std": 1.0, "depth": 1}
  changes |= fixed | {"width": width}
  step, params, state = trainer(model_config(**changes), build(**changes))
  state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
  logits = []
  for _ in range(4):
    params, state, logits_BTV = step(params, state)
    logits.append(logits_BTV)
  return float(jnp.sqrt(jnp.mean((logits[3] - logits[0]) ** 2)))


def growth(**changes):
  return moved(256, **changes) / moved(32, **changes)


@pytest.mark.slow
def test_updates_do_not_grow_with_the_width_under_mup():
  """Yang et al. 2022: at one rate, the logits move as far at every width. Otherwise, ever more."""
  assert growth(width_scaling="standard") > 2.5
  assert 0.5 < growth(width_scaling="mup") < 1.2
  assert 0.5 < growth(width_scaling="mup", tied=True) < 1.2


def test_a_scanned_program_does_not_grow_with_depth():
  """Of a training step, as it is given to the compiler; unrolled, each layer adds its own lines."""

  def length(depth, scan):
    changes = {"depth": depth, "scan": scan, "mlp": "swiglu"}
    model = nnx.eval_shape(lambda: build(**changes))
    step, params, state = trainer(model_config(**changes), model)
    return step.lower(params, state).as_text().count("\n")

  two, eight = length(2, True), length(8, True)
  assert eight == two
  assert length(8, False) > 2 * length(2, False)
