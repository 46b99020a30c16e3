"""The architectures of the transformers library, in tables: config fields and weight names.

`convert.py` reads these tables in both directions. What our model lacks (sliding windows, other
scalings of rotary positions, ...) is refused by name, never ignored.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from model.huggingface import switches
from model.huggingface.fields import REQUIRED
from model.layers import GATED

# Their activations, by ours; the first of several is the one that is written.
PLAIN = {
  "gelu": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
  "gelu_exact": ("gelu",),
  "relu": ("relu",),
}
GATED_BY = {"swiglu": ("silu", "swish"), "geglu": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")}
T5_ACTIVATIONS = PLAIN | {"geglu": ("gated-gelu", "gated-gelu_new"), "swiglu": ("gated-silu",)}


class Weight(NamedTuple):
  """One weight of theirs, or one per layer: the paths are of a stack of blocks then.

  Attributes:
    name: theirs; {} stands for the layer.
    paths: ours; where there are several, theirs holds them side by side (last axis).
    transposed: theirs is (fan out, fan in).
    heads: theirs holds several paths side by side in each of so many heads.
  """

  name: str
  paths: tuple[str, ...]
  transposed: bool = False
  heads: int = 1


class Architecture(NamedTuple):
  """One model class of the transformers library.

  Attributes:
    preset: the preset (`configs/presets.py`) whose switches hold where the config has none.
    model_type: as in config.json.
    class_name: the class with the head, as in config.json's `architectures`.
    prefix: what names start with; checkpoints of the class without a head lack it.
    fields: their config's fields: ours, and the value that holds where there is none.
    activations: their activation functions, by ours.
    only: their fields that must have this value, or be absent.
    constants: their fields with the value to write.
    weights: the weights that a model config asks for.
    copies: names of weights that may be there again: the weight that they must equal.
    ignored: the last parts of names of no use here: buffers, and heads for other purposes.
    read: changes our fields (given: their config, ours so far, their weights' names).
    write: the fields of theirs that `fields` does not give.
  """

  preset: str
  model_type: str
  class_name: str
  prefix: str
  fields: dict[str, tuple[str, Any]]
  activations: Mapping[str, tuple[str, ...]]
  only: Mapping[str, Any]
  constants: dict[str, Any]
  weights: Callable[[ConfigDict], Iterator[Weight]]
  copies: Mapping[str, str]
  ignored: tuple[str, ...] = ()
  read: Callable[[Mapping, dict, Collection[str]], None] = lambda theirs, ours, names: None
  write: Callable[[ConfigDict], dict] = lambda model_config: {}


QKV = ("query", "key", "value")


def _dense(name: str, path: str, biases: bool) -> Iterator[Weight]:
  yield Weight(f"{name}.weight", (f"{path}/kernel",), transposed=True)
  if biases:
    yield Weight(f"{name}.bias", (f"{path}/bias",))


def _layer_norm(name: str, path: str) -> Iterator[Weight]:
  yield Weight(f"{name}.weight", (f"{path}/scale",))
  yield Weight(f"{name}.bias", (f"{path}/bias",))


def _head(c: ConfigDict, name: str = "lm_head.weight") -> Iterator[Weight]:
  if not c.tied:
    yield Weight(name, ("head/kernel",), transposed=True)


def _gpt2(c: ConfigDict) -> Iterator[Weight]:
  layer, block = "transformer.h.{}", "decoder/block"
  yield Weight("transformer.wte.weight", ("embedding/table",))
  yield Weight("transformer.wpe.weight", ("decoder/positions/table",))
  yield from _layer_norm(f"{layer}.ln_1", f"{block}/attention_norm")
  yield from _layer_norm(f"{layer}.ln_2", f"{block}/mlp_norm")
  yield from _layer_norm("transformer.ln_f", "decoder/final_norm")
  for ours, theirs in (("kernel", "weight"), ("bias", "bias")):  # (fan in, fan out), like ours
    attention = f"{block}/attention"
    fused = tuple(f"{attention}/{part}/{ours}" for part in QKV)
    yield Weight(f"{layer}.attn.c_attn.{theirs}", fused)
    yield Weight(f"{layer}.attn.c_proj.{theirs}", (f"{attention}/out/{ours}",))
    yield Weight(f"{layer}.mlp.c_fc.{theirs}", (f"{block}/mlp/up/{ours}",))
    yield Weight(f"{layer}.mlp.c_proj.{theirs}", (f"{block}/mlp/down/{ours}",))
  yield from _head(c)


def _llama(c: ConfigDict) -> Iterator[Weight]:
  layer, block = "model.layers.{}", "decoder/block"
  yield Weight("model.embed_tokens.weight", ("embedding/table",))
  yield Weight(f"{layer}.input_layernorm.weight", (f"{block}/attention_norm/scale",))
  yield Weight(f"{layer}.post_attention_layernorm.weight", (f"{block}/mlp_norm/scale",))
  yield Weight("model.norm.weight", ("decoder/final_norm/scale",))
  attention, biases = f"{block}/attention", c.biases or c.attention_biases
  for part in (*QKV, "out"):
    yield from _dense(f"{layer}.self_attn.{part[0]}_proj", f"{attention}/{part}", biases)
  for part in ("query", "key") if c.qk_norm else ():
    yield Weight(f"{layer}.self_attn.{part[0]}_norm.weight", (f"{attention}/{part}_norm/scale",))
  for part in ("gate", "up", "down"):
    yield from _dense(f"{layer}.mlp.{part}_proj", f"{block}/mlp/{part}", c.biases)
  yield from _head(c)


def _gpt_neox(c: ConfigDict) -> Iterator[Weight]:
  layer, block = "gpt_neox.layers.{}", "decoder/block"
  yield Weight("gpt_neox.embed_in.weight", ("embedding/table",))
  yield from _layer_norm(f"{layer}.input_layernorm", f"{block}/attention_norm")
  yield from _layer_norm(f"{layer}.post_attention_layernorm", f"{block}/mlp_norm")
  yield from _layer_norm("gpt_neox.final_layer_norm", "decoder/final_norm")
  for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
    fused = tuple(f"{block}/attention/{part}/{ours}" for part in QKV)
    name = f"{layer}.attention.query_key_value.{theirs}"
    yield Weight(name, fused, transposed=ours == "kernel", heads=c.heads)
  yield from _dense(f"{layer}.attention.dense", f"{block}/attention/out", True)
  yield from _dense(f"{layer}.mlp.dense_h_to_4h", f"{block}/mlp/up", True)
  yield from _dense(f"{layer}.mlp.dense_4h_to_h", f"{block}/mlp/down", True)
  yield from _head(c, "embed_out.weight")


def _bert(c: ConfigDict) -> Iterator[Weight]:
  layer, block = "bert.encoder.layer.{}", "encoder/block"
  yield Weight("bert.embeddings.word_embeddings.weight", ("embedding/table",))
  yield Weight("bert.embeddings.position_embeddings.weight", ("encoder/positions/table",))
  yield Weight("bert.embeddings.token_type_embeddings.weight", ("token_types/table",))
  yield from _layer_norm("bert.embeddings.LayerNorm", "embedding_norm")
  for part in QKV:
    yield from _dense(f"{layer}.attention.self.{part}", f"{block}/attention/{part}", True)
  yield from _dense(f"{layer}.attention.output.dense", f"{block}/attention/out", True)
  yield from _layer_norm(f"{layer}.attention.output.LayerNorm", f"{block}/attention_norm")
  yield from _dense(f"{layer}.intermediate.dense", f"{block}/mlp/up", True)
  yield from _dense(f"{layer}.output.dense", f"{block}/mlp/down", True)
  yield from _layer_norm(f"{layer}.output.LayerNorm", f"{block}/mlp_norm")
  if not c.head_transform:
    return
  yield from _dense("cls.predictions.transform.dense", "head/transform", True)
  yield from _layer_norm("cls.predictions.transform.LayerNorm", "head/norm")
  yield Weight("cls.predictions.bias", ("head/bias",))
  yield from _head(c, "cls.predictions.decoder.weight")


def _t5(c: ConfigDict) -> Iterator[Weight]:
  yield Weight("shared.weight", ("embedding/table",))
  up = {"gate": "wi_0", "up": "wi_1"} if c.mlp in GATED else {"up": "wi"}
  for stack, layers in (("encoder", ("attention", "mlp")), ("decoder", T5_LAYERS)):
    yield Weight(f"{stack}.final_layer_norm.weight", (f"{stack}/final_norm/scale",))
    first = f"{stack}.block.0.layer.0.SelfAttention"  # its table serves all layers
    yield Weight(f"{first}.relative_attention_bias.weight", (f"{stack}/relative/table",))
    for i, ours in enumerate(layers):
      theirs, norm, dense = T5_LAYERS[ours]
      layer, block = f"{stack}.block.{{}}.layer.{i}", f"{stack}/block"
      yield Weight(f"{layer}.layer_norm.weight", (f"{block}/{norm}/scale",))
      for path, name in (dense or up | {"down": "wo"}).items():
        yield from _dense(f"{layer}.{theirs}.{name}", f"{block}/{ours}/{path}", False)
  yield from _head(c)


T5_DENSE = {"query": "q", "key": "k", "value": "v", "out": "o"}
T5_LAYERS: dict[str, tuple[str, str, dict[str, str]]] = {
  "attention": ("SelfAttention", "attention_norm", T5_DENSE),
  "cross_attention": ("EncDecAttention", "cross_norm", T5_DENSE),
  "mlp": ("DenseReluDense", "mlp_norm", {}),  # depends on the gate
}


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
    constants={"attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None},
    weights=_gpt2,
    copies={"lm_head.weight": "transformer.wte.weight"},
    ignored=(".attn.bias", ".attn.masked_bias"),
    write=lambda c: {"embd_pdrop": c.dropout},
  ),
  "llama": Architecture(
    preset="llama",
    model_type="llama",
    class_name="LlamaForCausalLM",
    prefix="model.",
    fields={
      "vocab_size": ("vocab_size", REQUIRED),
      "max_position_embeddings": ("seq_len", 2048),
      "hidden_size": ("width", REQUIRED),
      "num_hidden_layers": ("depth", REQUIRED),
      "num_attention_heads": ("heads", REQUIRED),
      "num_key_value_heads": ("kv_heads", 0),
      "head_dim": ("head_width", 0),
      "intermediate_size": ("mlp_width", REQUIRED),
      "hidden_act": ("mlp", "silu"),
      "rms_norm_eps": ("norm_eps", 1e-6),
      "attention_bias": ("attention_biases", False),
      "tie_word_embeddings": ("tied", False),
    },
    activations=GATED_BY,
    only={"sliding_window": None},
    constants={"bos_token_id": None, "eos_token_id": None},
    weights=_llama,
    copies={"lm_head.weight": "model.embed_tokens.weight"},
    ignored=("rotary_emb.inv_freq",),
    read=switches.read_llama,
    write=switches.write_llama,
  ),
  "gpt_neox": Architecture(
    preset="gpt_neox",
    model_type="gpt_neox",
    class_name="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    fields={
      "vocab_size": ("vocab_size", REQUIRED),
      "max_position_embeddings": ("seq_len", REQUIRED),
      "hidden_size": ("width", REQUIRED),
      "num_hidden_layers": ("depth", REQUIRED),
      "num_attention_heads": ("heads", REQUIRED),
      "intermediate_size": ("mlp_width", REQUIRED),
      "hidden_act": ("mlp", "gelu"),
      "layer_norm_eps": ("norm_eps", 1e-5),
      "use_parallel_residual": ("parallel", True),
      "tie_word_embeddings": ("tied", False),
      "hidden_dropout": ("dropout", 0.0),
    },
    activations=PLAIN,
    only={"attention_bias": True},
    constants={"attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": None},
    weights=_gpt_neox,
    copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
    ignored=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    read=switches.read_rotary,
    write=switches.write_gpt_neox,
  ),
  "bert": Architecture(
    preset="bert",
    model_type="bert",
    class_name="BertForMaskedLM",
    prefix="bert.",
    fields={
      "vocab_size": ("vocab_size", REQUIRED),
      "max_position_embeddings": ("seq_len", REQUIRED),
      "hidden_size": ("width", REQUIRED),
      "num_hidden_layers": ("depth", REQUIRED),
      "num_attention_heads": ("heads", REQUIRED),
      "intermediate_size": ("mlp_width", REQUIRED),
      "hidden_act": ("mlp", "gelu"),
      "layer_norm_eps": ("norm_eps", 1e-12),
      "type_vocab_size": ("token_types", 2),
      "tie_word_embeddings": ("tied", True),
      "hidden_dropout_prob": ("dropout", 0.0),
    },
    activations=PLAIN,
    only={
      "position_embedding_type": "absolute",
      "is_decoder": False,
      "add_cross_attention": False,
    },
    constants={"attention_probs_dropout_prob": 0.0},
    weights=_bert,
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
    read=switches.read_bert,
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
    weights=_t5,
    copies={
      "encoder.embed_tokens.weight": "shared.weight",
      "decoder.embed_tokens.weight": "shared.weight",
      "lm_head.weight": "shared.weight",
    },
    ignored=("EncDecAttention.relative_attention_bias.weight",),
    read=switches.read_t5,
    write=switches.write_t5,
  ),
}
ARCHITECTURES["t5_v1_1"] = ARCHITECTURES["t5"]  # one class, told apart by its config
_LLAMA = ARCHITECTURES["llama"]
# What these classes' own defaults would fill in differently is required.
_NAMED = {
  "num_key_value_heads": ("kv_heads", REQUIRED),
  "max_position_embeddings": ("seq_len", REQUIRED),
}
ARCHITECTURES["mistral"] = _LLAMA._replace(
  model_type="mistral",
  class_name="MistralForCausalLM",
  fields={k: v for k, v in (_LLAMA.fields | _NAMED).items() if k != "attention_bias"},
  only={},
  constants=_LLAMA.constants | {"sliding_window": None},
  read=switches.read_window,
  write=switches.write_rotary,
)
ARCHITECTURES["qwen3"] = ARCHITECTURES["mistral"]._replace(
  preset="decoder",
  model_type="qwen3",
  class_name="Qwen3ForCausalLM",
  fields=_LLAMA.fields | _NAMED | {"head_dim": ("head_width", REQUIRED)},
)
