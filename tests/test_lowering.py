"""The training step as a GPU would be given it, lowered on a machine that has none."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_bytes import batch_of
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from configs import base, ladders
from model import attention, layers
from model.attention import View, attend
from train import objectives, step

T, B, V = 1024, 4, 5000
SCORES = r"tensor<4x2x\d{3,}x\d{3,}xf32>"  # of queries and keys, for each head
OBJECTIVES = {"decoder": "clm", "encoder": "mlm", "encoder_decoder": "span"}


@pytest.fixture
def for_gpus(monkeypatch):
  """Programs are made for GPUs, with a cuDNN that jax finds new enough."""
  monkeypatch.setattr(layers, "platform", lambda: "gpu")
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
  step._program.cache_clear()
  jax.clear_caches()
  yield
  step._program.cache_clear()
  jax.clear_caches()


def lowered(family, **changes):
  """(text of the step for CUDA, config, lengths, arrays of the state)."""
  c = base.get_config()
  c.model.update({"family": family, "width": 128, "depth": 2, "heads": 2, "dtype": "bfloat16"})
  c.model.update({"logits_at_once": 2**20} | changes)
  c.objective, c.corruption.sentinels = OBJECTIVES[family], 20
  c.data.update({"seq_len": T, "batch_size": B, "isolate_documents": False})
  config = ladders.resolve(c)
  functions, lengths = step.program(config, V), objectives.lengths(config)
  arguments = functions.state, batch_of(config, lengths), np.float32(0), np.uint32(0)
  text = functions.step.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
  return text, objectives.vocab_size(config, V), lengths, len(jax.tree.leaves(functions.state))


@pytest.mark.parametrize(("remat", "forwards"), [("none", 1), ("dots", 1), ("full", 2)])
def test_the_backward_pass_repeats_flash_attention_under_full_remat_only(remat, forwards, for_gpus):
  text = lowered("decoder", remat=remat)[0]
  assert text.count("@__cudnn$fmhaSoftmax(") == forwards
  assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 1


def whole_logits(lengths, vocab):
  return rf"<({B}x{lengths.target}|{B * lengths.target})x{vocab}x"


@pytest.mark.parametrize(
  ("family", "attentions", "kind"),
  [
    ("decoder", 1, "Softmax"),
    ("encoder", 1, "ScaleBiasSoftmax"),
    ("encoder_decoder", 3, "Softmax"),
  ],
)
def test_a_gpu_is_given_flash_attention_donated_states_and_no_whole_logits(
  family, attentions, kind, for_gpus
):
  """mlm tells padding by a mask, a bias to cuDNN; span's lengths, 1,023 and 229, are odd."""
  text, vocab, lengths, leaves = lowered(family)
  calls = re.findall(r"custom_call @(__cudnn\$\w*)", text)
  # Blocks are scanned: each attention is there once, forward and backward.
  forward = f"__cudnn$fmha{kind}"
  assert sorted(calls) == sorted([forward, f"{forward}Backward"] * attentions)
  assert not re.findall(SCORES, text)
  assert text.count("tf.aliasing_output") + text.count("jax.buffer_donor") == leaves
  stacks = 2 if lengths.source else 1
  assert text.count("stablehlo.while") >= 2 * (stacks + 1)  # blocks and turns, there and back
  assert not re.findall(whole_logits(lengths, vocab), text)
  assert f"x{vocab}xf32" in text  # those of a turn


def test_whole_logits_and_scores_would_be_seen(for_gpus):
  """What the test above looks for is there where the config asks for it."""
  text, vocab, lengths, _ = lowered("decoder", logits_at_once=0, dtype="float32")
  assert re.findall(whole_logits(lengths, vocab), text)
  assert "__cudnn" not in text
  assert re.findall(SCORES, text)


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_lengths_made_even_change_nothing(causal, for_gpus, monkeypatch):
  """What cuDNN is given, computed by XLA instead."""
  rng = np.random.default_rng(0)
  q, k, v = (
    jnp.asarray(rng.normal(size=(2, n, 2, 8)), jnp.bfloat16)
    for n in ((7, 7, 7) if causal else (7, 5, 5))
  )
  by_cudnn = jax.nn.dot_product_attention

  def by_xla(q, k, *args, **options):
    asked.append((options["implementation"], q.shape[1], k.shape[1]))
    return by_cudnn(q, k, *args, **options | {"implementation": "xla"})

  def loss(q, k, v):
    return jnp.sum(jnp.sin(attend(q, k, v, View(causal), 1.0, jnp.bfloat16)))

  asked, outcomes = [], []
  monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
  for serves in (True, False):
    monkeypatch.setattr(attention, "flash_serves", lambda *_, serves=serves: serves)
    outcomes.append(jax.value_and_grad(loss, (0, 1, 2))(q, k, v))
  S = k.shape[1]
  assert asked == [("cudnn", 8, S + 1), (None, 7, S)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2), *outcomes)
