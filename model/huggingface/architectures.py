"""The architectures of the transformers library, in tables: config fields and weight names.

`convert.py` reads these tables in both directions. What our model lacks (sliding windows, other
scalings of rotary positions, ...) is refused by name, never ignored.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from model.huggingface import fields, weights
from model.huggingface.fields import REQUIRED

# Their activations, by ours; the first of several is the one that is written.
PLAIN = {
  "gelu": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
  "gelu_exact": ("gelu",),
  "relu": ("relu",),
}
GATED_BY = {"swiglu": ("silu", "swish"), "geglu": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")}
T5_ACTIVATIONS = PLAIN | {"geglu": ("gated-gelu", "gated-gelu_new"), "swiglu": ("gated-silu",)}


class Architecture(NamedTuple):
  """One model class of the transformers library."""

  preset: str  # of `configs/presets.py`, whose switches hold where the config has none
  model_type: str  # as in config.json
  class_name: str  # the class with the head, as in config.json's `architectures`
  prefix: str  # what names start with; checkpoints of the class without a head lack it
  fields: dict[str, tuple[str, Any]]  # their config's: ours, and the value where there is none
  activations: Mapping[str, tuple[str, ...]]  # theirs, by ours
  only: Mapping[str, Any]  # their fields that must have this value, or be absent
  constants: dict[str, Any]  # their fields with the value to write
  modules: Callable[[ConfigDict], weights.Modules]  # that a model config asks for
  copies: Mapping[str, str]  # weights that may be there again, and the one that they must equal
  in_first: bool = False  # kernels in layers are (fan in, fan out)
  by_head: bool = False  # a fused projection holds query, key and value head by head
  ignored: tuple[str, ...] = ()  # ends of names of no use here: buffers, heads for other purposes
  # Changes our fields, given their config, ours so far, and their weights' names.
  read: Callable[[Mapping, dict, Collection[str]], None] = lambda theirs, ours, names: None
  # The fields of theirs that `fields` does not give.
  write: Callable[[ConfigDict], dict] = lambda model_config: {}


COMMON: dict[str, tuple[str, Any]] = {
  "vocab_size": ("vocab_size", REQUIRED),
  "max_position_embeddings": ("seq_len", REQUIRED),
  "hidden_size": ("width", REQUIRED),
  "num_hidden_layers": ("depth", REQUIRED),
  "num_attention_heads": ("heads", REQUIRED),
  "intermediate_size": ("mlp_width", REQUIRED),
  "hidden_act": ("mlp", REQUIRED),
}
NO_IDS = {"bos_token_id": None, "eos_token_id": None}

ARCHITECTURES = {
  "gpt2": Architecture(
    preset="gpt2",
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    prefix="transformer.",
    fields={
      "vocab_size": ("vocab_size", REQUIRED),
      "n_positions": ("seq_len", REQUIRED),
      "n_embd": ("width", REQUIRED),
      "n_layer": ("depth", REQUIRED),
      "n_head": ("heads", REQUIRED),
      "n_inner": ("mlp_width", 0),
      "activation_function": ("mlp", "gelu_new"),
      "layer_norm_epsilon": ("norm_eps", 1e-5),
      "scale_attn_weights": ("scale_attention", True),
      "tie_word_embeddings": ("tied", True),
      "resid_pdrop": ("dropout", 0.0),
    },
    activations=PLAIN,
    only={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    constants={"attn_pdrop": 0.0, **NO_IDS},
    modules=lambda c: weights.GPT2,
    in_first=True,
    copies={"lm_head.weight": "transformer.wte.weight"},
    ignored=(".attn.bias", ".attn.masked_bias"),
    write=lambda c: {"embd_pdrop": c.dropout},
  ),
  "llama": Architecture(
    preset="llama",
    model_type="llama",
    class_name="LlamaForCausalLM",
    prefix="model.",
    fields=COMMON
    | {
      "num_key_value_heads": ("kv_heads", 0),
      "head_dim": ("head_width", 0),
      "rms_norm_eps": ("norm_eps", 1e-6),
      "attention_bias": ("attention_biases", False),
      "tie_word_embeddings": ("tied", False),
    },
    activations=GATED_BY,
    only={"sliding_window": None},
    constants=NO_IDS,
    modules=lambda c: weights.LLAMA,
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    ignored=("rotary_emb.inv_freq",),
    read=fields.read_llama,
    write=fields.write_llama,
  ),
  "gpt_neox": Architecture(
    preset="gpt_neox",
    model_type="gpt_neox",
    class_name="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    fields=COMMON
    | {
      "layer_norm_eps": ("norm_eps", 1e-5),
      "use_parallel_residual": ("parallel", True),
      "tie_word_embeddings": ("tied", False),
      "hidden_dropout": ("dropout", 0.0),
    },
    activations=PLAIN,
    only={"attention_bias": True},
    constants={"attention_dropout": 0.0, **NO_IDS},
    modules=lambda c: weights.GPT_NEOX,
    by_head=True,
    copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
    ignored=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    read=fields.read_rotary,
    write=fields.write_gpt_neox,
  ),
  "bert": Architecture(
    preset="bert",
    model_type="bert",
    class_name="BertForMaskedLM",
    prefix="bert.",
    fields=COMMON
    | {
      "layer_norm_eps": ("norm_eps", 1e-12),
      "type_vocab_size": ("token_types", 2),
      "tie_word_embeddings": ("tied", True),
      "hidden_dropout_prob": ("dropout", 0.0),
    },
    activations=PLAIN,
    only={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    constants={"attention_probs_dropout_prob": 0.0},
    modules=lambda c: weights.BERT,
    copies={
      "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
      "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=(
      "embeddings.position_ids",
      "pooler.dense.weight",
      "pooler.dense.bias",
      "cls.seq_relationship.weight",
      "cls.seq_relationship.bias",
    ),
    read=fields.read_bert,
  ),
  "t5": Architecture(
    preset="t5",
    model_type="t5",
    class_name="T5ForConditionalGeneration",
    prefix="",
    fields={
      "vocab_size": ("vocab_size", REQUIRED),
      "n_positions": ("seq_len", 512),
      "d_model": ("width", REQUIRED),
      "num_layers": ("encoder_depth", REQUIRED),
      "num_decoder_layers": ("depth", 0),
      "num_heads": ("heads", REQUIRED),
      "d_kv": ("head_width", REQUIRED),
      "d_ff": ("mlp_width", REQUIRED),
      "feed_forward_proj": ("mlp", "relu"),
      "layer_norm_epsilon": ("norm_eps", 1e-6),
      "relative_attention_num_buckets": ("relative_buckets", 32),
      "relative_attention_max_distance": ("relative_distance", 128),
      "dropout_rate": ("dropout", 0.0),
    },
    activations=T5_ACTIVATIONS,
    only={"is_encoder_decoder": True},
    constants={},
    modules=weights.t5,
    copies={
      "encoder.embed_tokens.weight": "shared.weight",
      "decoder.embed_tokens.weight": "shared.weight",
      "lm_head.weight": "shared.weight",
    },
    ignored=("EncDecAttention.relative_attention_bias.weight",),
    read=fields.read_t5,
    write=fields.write_t5,
  ),
}
ARCHITECTURES["t5_v1_1"] = ARCHITECTURES["t5"]  # one class, told apart by its config
_llama = ARCHITECTURES["llama"]
# What these classes would fill in otherwise than Llama is required.
_mistral = _llama.fields | {"num_key_value_heads": ("kv_heads", REQUIRED)}
ARCHITECTURES["mistral"] = _llama._replace(
  model_type="mistral",
  class_name="MistralForCausalLM",
  fields={field: ours for field, ours in _mistral.items() if field != "attention_bias"},
  only={},
  constants=NO_IDS | {"sliding_window": None},
  read=fields.read_window,
  write=fields.write_rotary,
)
ARCHITECTURES["qwen3"] = ARCHITECTURES["mistral"]._replace(
  preset="decoder",
  model_type="qwen3",
  class_name="Qwen3ForCausalLM",
  fields=_mistral | {"head_dim": ("head_width", REQUIRED)},
)
