"""Published architectures, and one modern default per family.

  isoflop train --config=configs/presets.py:gpt2 --workdir=runs/gpt2

A preset sets the switches of `config.model` and an objective that its family is trained with; the
shape stays with the ladder (`config.model.size`) or with you. Dropout is 0 in all of them: a run
of a sweep sees its data about once.

  gpt2             Radford et al. 2019
  llama            Touvron et al. 2023 (arXiv:2302.13971); kv_heads < heads since Llama 2
  gpt_neox         Black et al. 2022 (arXiv:2204.06745), as Pythia (Biderman et al. 2023)
  bert             Devlin et al. 2019 (arXiv:1810.04805)
  t5               Raffel et al. 2020 (arXiv:1910.10683)
  t5_v1_1          the same with a gated MLP (Shazeer 2020, arXiv:2002.05202) and an untied head
  decoder, encoder, encoder_decoder
                   the block of `configs/base.py` (RMS norm, SwiGLU, rotary positions, qk-norm, no
                   biases) in each family: what sweeps of the three compare
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.errors import ConfigError

GPT2 = {
  "family": "decoder",
  "mlp": "gelu",
  "norm": "layer",
  "norm_eps": 1e-5,
  "positions": "learned",
  "biases": True,
  "qk_norm": False,
  "tied": True,
  "init_std": 0.02,
}

LLAMA = {"family": "decoder", "norm_eps": 1e-5, "qk_norm": False, "init_std": 0.02}

GPT_NEOX = GPT2 | {
  "mlp": "gelu_exact",
  "positions": "rotary",
  "rotary_share": 0.25,
  "parallel": True,
  "tied": False,
}

BERT = {
  "family": "encoder",
  "mlp": "gelu_exact",
  "norm": "layer",
  "norm_position": "post",
  "norm_eps": 1e-12,
  "embedding_norm": True,
  "positions": "learned",
  "token_types": 2,
  "biases": True,
  "qk_norm": False,
  "tied": True,
  "head_transform": True,
  "head_bias": True,
  "init_std": 0.02,
}

T5 = {
  "family": "encoder_decoder",
  "mlp": "relu",
  "positions": "relative",
  "qk_norm": False,
  "scale_attention": False,
  "tied": True,
  "scale_logits": True,
}

T5_V1_1 = T5 | {"mlp": "geglu", "tied": False, "scale_logits": False}

PRESETS: dict[str, dict[str, Any]] = {
  "gpt2": GPT2,
  "llama": LLAMA,
  "gpt_neox": GPT_NEOX,
  "bert": BERT,
  "t5": T5,
  "t5_v1_1": T5_V1_1,
  "decoder": {"family": "decoder"},
  "encoder": {"family": "encoder"},
  "encoder_decoder": {"family": "encoder_decoder"},
}


def get_config(name: str = ""):
  """Configures a model whose switches are those of a preset."""
  if name not in PRESETS:
    raise ConfigError(
      f"preset {name!r}: unknown; write configs/presets.py:NAME with one of {', '.join(PRESETS)}"
    )
  c = base.get_config()
  c.model.update(PRESETS[name])
  set_family(c, c.model.family)
  return c


def set_family(config: ConfigDict, family: str) -> None:
  """Sets a family of models and the objective that it is trained with by default."""
  config.model.family, config.objective = family, base.FAMILIES[family][0]
  config.data.isolate_documents &= family != "encoder_decoder"  # spans are cut across documents
