"""The training step as a GPU would be given it, lowered on a machine that has none."""

import re

import jax
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from configs import base, ladders
from model import ops
from train import aot, programs
from train.objectives import registry

T, B, V = 1024, 4, 5000
SCORES = r"tensor<4x2x\d{3,}x\d{3,}xf32>"  # of queries and keys, for each head


@pytest.fixture
def for_gpus(monkeypatch):
  """Programs are made for GPUs, with a cuDNN that jax finds new enough."""
  monkeypatch.setattr(ops, "platform", lambda: "gpu")
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
  programs._program.cache_clear()
  jax.clear_caches()
  yield
  programs._program.cache_clear()
  jax.clear_caches()


def lowered(family, **changes):
  """(text of the step for CUDA, config, lengths, arrays of the state)."""
  c = base.get_config()
  c.model.update({"family": family, "width": 128, "depth": 2, "heads": 2, "dtype": "bfloat16"})
  c.model.update({"logits_at_once": 2**20} | changes)
  c.objective, c.corruption.sentinels = base.FAMILIES[family][0], 20
  c.data.update({"seq_len": T, "batch_size": B, "isolate_documents": False})
  config = ladders.resolve(c)
  functions, lengths = programs.program(config, V), registry.lengths(config)
  arguments = functions.state, aot.abstract_batch(config, V, B), np.float32(0), np.uint32(0)
  text = functions.step.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
  return text, registry.vocab_size(config, V), lengths, len(jax.tree.leaves(functions.state))


@pytest.mark.parametrize(("remat", "forwards"), [("none", 1), ("dots", 1), ("full", 2)])
def test_the_backward_pass_repeats_flash_attention_under_full_remat_only(remat, forwards, for_gpus):
  text = lowered("decoder", remat=remat)[0]
  assert text.count("@__cudnn$fmhaSoftmax(") == forwards
  assert text.count("@__cudnn$fmhaSoftmaxBackward(") == 1


def whole_logits(lengths, vocab):
  return rf"<({B}x{lengths.target}|{B * lengths.target})x{vocab}x"


@pytest.mark.parametrize(
  ("family", "attentions"), [("decoder", 1), ("encoder", 1), ("encoder_decoder", 3)]
)
def test_a_gpu_is_given_flash_attention_donated_states_and_no_whole_logits(
  family, attentions, for_gpus
):
  """mlm tells padding by lengths; span's own, 1,023 and 229, are odd."""
  text, vocab, lengths, leaves = lowered(family)
  calls = re.findall(r"custom_call @(__cudnn\$\w*)", text)
  # Blocks are scanned: each attention is there once, forward and backward.
  forward = "__cudnn$fmhaSoftmax"
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
