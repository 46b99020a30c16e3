"""Names of weights: for each architecture its modules, and which of ours they are."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from ml_collections import ConfigDict

from model.layers import GATED

LEAVES = {"kernel": "weight", "scale": "weight", "table": "weight", "bias": "bias"}
Modules = dict[str, tuple[str, ...]]  # theirs: ours


class Weight(NamedTuple):
  """One weight of theirs, or one per layer: the paths are of a stack of blocks then."""

  name: str  # theirs; {} stands for the layer
  paths: tuple[str, ...]  # ours; of several, theirs holds them side by side (last axis)
  transposed: bool  # theirs is (fan out, fan in)
  heads: int  # theirs holds several paths side by side in each of so many heads


def of_modules(
  modules: Modules, paths: Collection[str], in_first: bool, heads: int
) -> Iterator[Weight]:
  """Finds the weights of those parameters of ours (paths) that a model has."""
  ends = {"": ""} | {f"/{ours}": f".{theirs}" for ours, theirs in LEAVES.items()}
  for name, parts in modules.items():
    for end, their_end in ends.items():
      if parts[0] + end in paths:
        transposed = (parts[0] + end).endswith("kernel") and not (in_first and "{}" in name)
        whole = tuple(part + end for part in parts)
        yield Weight(name + their_end, whole, transposed, heads if len(parts) > 1 else 1)


def _table(modules: str, layer: str = "", layer_modules: str = "") -> Modules:
  """Reads pairs THEIRS=OURS, or OURS+OURS of fused ones; those of a layer follow its own pair."""
  theirs, _, ours = layer.partition("=")
  pairs = [pair.split("=") for pair in modules.split()]
  for name, parts in (pair.split("=") for pair in layer_modules.split()):
    pairs.append([f"{theirs}.{name}", "+".join(f"{ours}/{part}" for part in parts.split("+"))])
  return {name: tuple(parts.split("+")) for name, parts in pairs}


GPT2 = _table(
  "transformer.wte=embedding transformer.wpe=decoder/positions lm_head=head "
  "transformer.ln_f=decoder/final_norm",
  "transformer.h.{}=decoder/block",
  "ln_1=attention_norm attn.c_attn=attention/query+attention/key+attention/value "
  "attn.c_proj=attention/out ln_2=mlp_norm mlp.c_fc=mlp/up mlp.c_proj=mlp/down",
)
LLAMA = _table(
  "model.embed_tokens=embedding model.norm=decoder/final_norm lm_head=head",
  "model.layers.{}=decoder/block",
  "input_layernorm=attention_norm self_attn.q_proj=attention/query self_attn.k_proj=attention/key "
  "self_attn.v_proj=attention/value self_attn.o_proj=attention/out "
  "self_attn.q_norm=attention/query_norm self_attn.k_norm=attention/key_norm "
  "post_attention_layernorm=mlp_norm mlp.gate_proj=mlp/gate mlp.up_proj=mlp/up "
  "mlp.down_proj=mlp/down",
)
GPT_NEOX = _table(
  "gpt_neox.embed_in=embedding gpt_neox.final_layer_norm=decoder/final_norm embed_out=head",
  "gpt_neox.layers.{}=decoder/block",
  "attention.query_key_value=attention/query+attention/key+attention/value "
  "input_layernorm=attention_norm attention.dense=attention/out post_attention_layernorm=mlp_norm "
  "mlp.dense_h_to_4h=mlp/up mlp.dense_4h_to_h=mlp/down",
)
BERT = _table(
  "bert.embeddings.word_embeddings=embedding bert.embeddings.position_embeddings=encoder/positions "
  "bert.embeddings.token_type_embeddings=token_types bert.embeddings.LayerNorm=embedding_norm "
  "cls.predictions.transform.dense=head/transform cls.predictions.transform.LayerNorm=head/norm "
  "cls.predictions.bias=head/bias cls.predictions.decoder.weight=head/kernel",
  "bert.encoder.layer.{}=encoder/block",
  "attention.self.query=attention/query attention.self.key=attention/key "
  "attention.self.value=attention/value attention.output.dense=attention/out "
  "attention.output.LayerNorm=attention_norm intermediate.dense=mlp/up output.dense=mlp/down "
  "output.LayerNorm=mlp_norm",
)


def t5(c: ConfigDict) -> Modules:
  """Lists the modules of T5, whose MLP has other names where it is gated."""
  modules = _table("shared=embedding lm_head=head")
  up = "wi_1" if c.mlp in GATED else "wi"
  mlp = f"DenseReluDense.wi_0=mlp/gate DenseReluDense.{up}=mlp/up DenseReluDense.wo=mlp/down"
  attention = "{0}.q={1}/query {0}.k={1}/key {0}.v={1}/value {0}.o={1}/out"
  own = "layer_norm=attention_norm " + attention.format("SelfAttention", "attention")
  cross = "layer_norm=cross_norm " + attention.format("EncDecAttention", "cross_attention")
  for stack, branches in (("encoder", [own]), ("decoder", [own, cross])):
    first = f"{stack}.block.0.layer.0.SelfAttention"  # its table serves all layers
    modules |= _table(
      f"{stack}.final_layer_norm={stack}/final_norm "
      f"{first}.relative_attention_bias={stack}/relative"
    )
    for i, branch in enumerate((*branches, "layer_norm=mlp_norm " + mlp)):
      modules |= _table("", f"{stack}.block.{{}}.layer.{i}={stack}/block", branch)
  return modules
