"""Presets: each is the published architecture, counted in its published sizes."""

import pytest

from configs import ladders, presets
from model import accounting

# Vocabulary, longest sequence (and the encoder's), shape, and the number of parameters.
PUBLISHED = {
  "gpt2": (50_257, 1024, 0, {"width": 768, "depth": 12, "heads": 12}, 124_439_808),
  # Without the pooler, which its masked language model does not use.
  "bert": (30_522, 512, 0, {"width": 768, "depth": 12, "heads": 12}, 109_514_298),
  # 7B
  "llama": (
    32_000,
    2048,
    0,
    {"width": 4096, "depth": 32, "heads": 32, "mlp_width": 11_008},
    6_738_415_616,
  ),
  # small
  "t5": (32_128, 512, 512, {"width": 512, "depth": 6, "heads": 8}, 60_506_624),
  # small
  "t5_v1_1": (
    32_128,
    512,
    512,
    {"width": 512, "depth": 8, "heads": 6, "head_width": 64, "mlp_width": 1024},
    76_961_152,
  ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size(name):
  vocab_size, seq_len, source_len, shape, n_params = PUBLISHED[name]
  c = presets.get_config(name)
  c.model.update(shape)
  m = ladders.resolve(c).model
  assert accounting.param_groups(m, vocab_size, seq_len, source_len)["total"] == n_params


def test_defaults_of_the_three_families_differ_in_nothing_else():
  decoder, encoder, both = (
    presets.get_config(name) for name in ("decoder", "encoder", "encoder_decoder")
  )
  assert [c.objective for c in (decoder, encoder, both)] == ["clm", "mlm", "span"]
  for c in (encoder, both):
    c.model.family, c.objective, c.data.isolate_documents = "decoder", "clm", True
    assert c == decoder


@pytest.mark.parametrize("name", ["", "gpt3"])
def test_an_unknown_preset_is_refused_with_the_known_ones(name):
  with pytest.raises(
    ValueError, match=f"preset '{name}'.*gpt2, llama, gpt_neox, bert, t5, t5_v1_1"
  ):
    presets.get_config(name)
