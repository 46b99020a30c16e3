"""Flash kernels give what plain attention gives: here interpreted, as no device of theirs is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, ladders
from model import flash, ops
from model.attention import AttentionMask
from train import programs
from train.objectives import registry

RNG = np.random.default_rng(0)
DOCUMENTS = np.array([[1] * 40 + [2] * 60 + [3] * 35 + [0] * 15, [1] * 100 + [2] * 50])
PADDED = np.array([[1] * 90 + [0] * 60, [1] * 150])


def plain(q_BTHK, k_BSGK, v_BSGK, view, scale):
  k_BSHK, v_BSHK = (jnp.repeat(x, q_BTHK.shape[2] // x.shape[2], 2) for x in (k_BSGK, v_BSGK))
  scores_BHTS = scale * jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK)
  visible_BTS = jnp.ones(scores_BHTS[:, 0].shape, bool)
  if view.causal:
    visible_BTS = jnp.tril(visible_BTS)
  mask_BTS = view.dense().mask_BTS
  if mask_BTS is not None:
    visible_BTS &= mask_BTS
  w_BHTS = jax.nn.softmax(jnp.where(visible_BTS[:, None], scores_BHTS, -1e30), axis=-1)
  return jnp.einsum("BHTS,BSHK->BTHK", w_BHTS, v_BSHK)


def sequences(T, S, H, G, K=16):
  shapes = (2, T, H, K), (2, S, G, K), (2, S, G, K)
  return [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in shapes]


def outcome(attend, inputs, real_BT):
  """(result, gradients) of what real tokens attend to."""
  weight_BTHK = jnp.asarray(np.random.default_rng(1).normal(size=inputs[0].shape), jnp.float32)
  weight_BTHK *= real_BT[:, :, None, None]
  y_BTHK, backward = jax.vjp(attend, *inputs)
  return y_BTHK * real_BT[:, :, None, None], *backward(weight_BTHK)


@pytest.mark.parametrize(
  ("kernel", "T", "S", "H", "G", "causal", "segments"),
  [
    ("triton", 150, 150, 2, 2, True, DOCUMENTS),
    ("triton", 128, 128, 4, 2, False, DOCUMENTS[:, :128]),
    ("splash", 150, 150, 4, 2, True, DOCUMENTS),
    ("splash", 150, 150, 2, 2, False, PADDED),
    ("splash", 128, 128, 2, 2, True, None),
    ("splash", 29, 150, 2, 1, False, None),  # across, of odd lengths
    ("cudnn", 150, 150, 4, 2, True, PADDED),
    ("cudnn", 29, 150, 2, 2, False, PADDED),
    ("cudnn", 29, 149, 2, 2, False, None),
  ],
)
def test_a_kernel_attends_as_plain_attention_does(
  kernel, T, S, H, G, causal, segments, monkeypatch
):
  ids, real_BT, tail = None, np.ones((2, T)), segments is PADDED
  if segments is not None:
    of_queries = segments if T == S else np.ones((2, T), int)
    ids, real_BT = (jnp.asarray(of_queries), jnp.asarray(segments)), of_queries > 0
  view = AttentionMask(causal, segments=ids, right_padded=tail)
  inputs = sequences(T, S, H, G)
  if kernel == "cudnn":  # the arguments that it is given, computed by XLA
    xla = jax.nn.dot_product_attention
    monkeypatch.setattr(
      jax.nn,
      "dot_product_attention",
      lambda *x, **options: xla(*x, **options | {"implementation": "xla"}),
    )
  else:
    call = functools.partial(flash.KERNELS[kernel], interpret=True)
    monkeypatch.setitem(flash.KERNELS, kernel, call)
  ours = outcome(lambda *x: flash.attend(kernel, *x, 0.3, causal, ids), inputs, real_BT)
  expected = outcome(lambda *x: plain(*x, view, 0.3), inputs, real_BT)
  for a, b in zip(ours, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_several_runs_attend_as_each_alone(monkeypatch):
  """A pack's step is mapped over its runs, and a kernel with it."""
  ids = jnp.asarray(DOCUMENTS), jnp.asarray(DOCUMENTS)
  runs = [sequences(150, 150, 2, 2) for _ in range(3)]
  for kernel in ("triton", "splash"):
    call = functools.partial(flash.KERNELS[kernel], interpret=True)
    monkeypatch.setitem(flash.KERNELS, kernel, call)

    def attend(q, k, v, kernel=kernel):
      return flash.attend(kernel, q, k, v, 0.3, True, ids)

    together = jax.vmap(attend)(*map(jnp.stack, zip(*runs, strict=True)))
    for run, y_BTHK in zip(runs, together, strict=True):
      np.testing.assert_allclose(y_BTHK, attend(*run), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("platform", "T", "S", "H", "G", "K", "dtype", "segments", "tail", "kernel"),
  [
    ("gpu", 1024, 1024, 12, 12, 64, "bfloat16", False, False, "cudnn"),
    ("gpu", 1024, 1024, 12, 4, 64, "bfloat16", True, False, "triton"),  # isolated documents
    ("gpu", 1024, 1024, 12, 4, 64, "bfloat16", True, True, "cudnn"),  # padding alone
    ("gpu", 229, 1023, 8, 8, 64, "bfloat16", False, False, "cudnn"),
    ("gpu", 229, 1023, 8, 8, 64, "bfloat16", True, False, ""),  # documents of two sequences
    ("gpu", 128, 128, 2, 2, 12, "bfloat16", False, False, ""),  # a width that is no multiple of 8
    ("gpu", 128, 128, 2, 2, 256, "bfloat16", False, False, ""),  # Hopper only
    ("gpu", 128, 128, 2, 2, 64, "float32", False, False, ""),
    ("tpu", 229, 1023, 8, 8, 64, "bfloat16", True, False, "splash"),
    ("tpu", 128, 128, 2, 2, 64, "float32", False, False, ""),
    ("cpu", 128, 128, 2, 2, 64, "bfloat16", False, False, ""),
  ],
)
def test_a_kernel_serves_only_what_it_takes(platform, T, S, H, G, K, dtype, segments, tail, kernel):
  chosen = flash.choose(platform, (2, T, H, K), (2, S, G, K), dtype, segments, tail)
  assert chosen == kernel


@pytest.mark.slow
@pytest.mark.parametrize(
  ("platform", "objective", "family", "isolated"),
  [
    ("gpu", "clm", "decoder", True),  # Triton
    ("tpu", "mlm", "encoder", False),  # splash; padding
    ("tpu", "ul2", "encoder_decoder", False),  # padding of two sequences, also across
    ("gpu", "mlm", "encoder", False),  # cuDNN's arguments; padding
  ],
)
def test_a_model_learns_the_same_by_flash_attention(
  platform, objective, family, isolated, monkeypatch
):
  """Loss and gradients of a whole step, in bfloat16, with documents and rows that end early."""
  xla = jax.nn.dot_product_attention
  monkeypatch.setattr(
    jax.nn,
    "dot_product_attention",
    lambda *x, **options: xla(*x, **options | {"implementation": "xla"}),
  )
  used = []
  for name in ("triton", "splash"):
    call = functools.partial(flash.KERNELS[name], interpret=True)
    monkeypatch.setitem(flash.KERNELS, name, call)
  for name, call in [*flash.KERNELS.items()]:
    monkeypatch.setitem(
      flash.KERNELS, name, lambda *x, name=name, call=call, **y: used.append(name) or call(*x, **y)
    )
  monkeypatch.setattr(ops, "platform", lambda: platform)
  c = base.get_config()
  c.objective, c.data.isolate_documents, c.corruption.sentinels = objective, isolated, 30
  c.model.update({"family": family, "width": 64, "depth": 1, "heads": 2, "dtype": "bfloat16"})
  c.data.update({"seq_len": 96, "batch_size": 4})
  V, length = 50, registry.lengths(c).text
  rng = np.random.default_rng(0)
  text_BN1 = rng.integers(0, V, (4, length + 1)).astype(np.int32)
  valid_BN = np.arange(length) < np.array([[length], [length], [length - 30], [length]])
  objective_row = registry.OBJECTIVES[objective]
  batch = objective_row.batch(
    text_BN1, valid_BN, rng.random((4, objective_row.draws(length))), c, V
  )

  outcomes = []
  for use_flash in (True, False):
    c.model.flash = use_flash
    programs._program.cache_clear()
    functions = programs.program(ladders.resolve(c), V)
    state = functions.init(np.uint32(0))
    head = state.trainable["head"]  # one of zeros would leave the rest without gradients
    head["kernel"] = jnp.asarray(
      np.random.default_rng(1).normal(size=head["kernel"].shape), jnp.float32
    )
    params = state.trainable
    nll_B, weight_B = functions.evaluate(params, batch)["loss"]
    outcomes.append((jnp.sum(nll_B) / jnp.sum(weight_B), functions.gradients(params, batch)))
  programs._program.cache_clear()
  (loss, grads), (plain_loss, plain_grads) = outcomes
  assert set(used) == {"splash" if platform == "tpu" else "triton" if isolated else "cudnn"}
  np.testing.assert_allclose(loss, plain_loss, rtol=2e-3)
  for g, plain_g in zip(jax.tree.leaves(grads), jax.tree.leaves(plain_grads), strict=True):
    assert jnp.linalg.norm(g - plain_g) < 0.02 * jnp.linalg.norm(plain_g) + 1e-6
