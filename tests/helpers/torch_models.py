"""Small models of the transformers library with random weights, and their logits.

As a script it writes the golden folders that `tests/model/test_convert.py` checks without torch:

  PYTHONPATH=. python tests/helpers/torch_models.py tests/golden
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from documents import documents, pad

V, LONGEST = 64, 48

# No two dimensions are alike, and nothing is at its default, so that no confusion stays hidden.
T5 = {
  "vocab_size": V,
  "d_model": 16,
  "d_kv": 4,
  "num_heads": 3,
  "d_ff": 24,
  "num_layers": 2,
  "num_decoder_layers": 3,
  "relative_attention_num_buckets": 8,
  "relative_attention_max_distance": 12,
  "layer_norm_epsilon": 1e-4,
}
LLAMA = {
  "vocab_size": V,
  "hidden_size": 16,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 6,
  "intermediate_size": 28,
  "num_hidden_layers": 2,
  "max_position_embeddings": LONGEST,
  "rms_norm_eps": 1e-3,
  "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
}
GPT2 = {
  "vocab_size": V,
  "n_positions": LONGEST,
  "n_embd": 16,
  "n_layer": 3,
  "n_head": 4,
  "n_inner": 40,
  "layer_norm_epsilon": 1e-3,
  "bos_token_id": None,
  "eos_token_id": None,
}
BERT = {
  "vocab_size": V,
  "hidden_size": 16,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "intermediate_size": 40,
  "max_position_embeddings": LONGEST,
  "layer_norm_eps": 1e-3,
}
NEOX = {
  "vocab_size": V,
  "hidden_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "intermediate_size": 24,
  "max_position_embeddings": LONGEST,
  "layer_norm_eps": 1e-3,
  "rope_parameters": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.4},
}
LLAMA3 = {
  "rope_type": "llama3",
  "rope_theta": 300.0,
  "factor": 5.0,
  "low_freq_factor": 1.5,
  "high_freq_factor": 3.5,
  "original_max_position_embeddings": 24,
}
LINEAR = {"rope_type": "linear", "rope_theta": 300.0, "factor": 2.5}
V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
GOLDEN = {
  "gpt2": ("GPT2", "GPT2LMHeadModel", GPT2),
  "llama": ("Llama", "LlamaForCausalLM", LLAMA),
  "qwen3": ("Qwen3", "Qwen3ForCausalLM", LLAMA),
  "gpt_neox": ("GPTNeoX", "GPTNeoXForCausalLM", NEOX),
  "bert": ("Bert", "BertForMaskedLM", BERT),
  "t5": ("T5", "T5ForConditionalGeneration", T5),
  "t5_v1_1": ("T5", "T5ForConditionalGeneration", T5 | V1_1),
}
OTHERS = {  # switches of the same architectures
  "gpt2": {
    "tie_word_embeddings": False,
    "scale_attn_weights": False,
    "activation_function": "gelu",
  },
  "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
  "bert": {"hidden_act": "relu"},
  "t5": {"feed_forward_proj": "gated-silu"},
  "qwen3": {
    "attention_bias": True,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_fast",
    "rope_parameters": LLAMA3,
    "use_sliding_window": True,
    "sliding_window": LONGEST,
    "max_window_layers": 1,
  },
  "gpt_neox": {
    "use_parallel_residual": False,
    "tie_word_embeddings": True,
    "hidden_act": "relu",
    "rope_parameters": LINEAR | {"partial_rotary_factor": 1.0},
  },
}
VARIANTS = GOLDEN | {
  f"{name}, otherwise": (*GOLDEN[name][:2], GOLDEN[name][2] | fields)
  for name, fields in OTHERS.items()
}
MISTRAL = ("Mistral", "MistralForCausalLM")
VARIANTS |= {
  "gpt2, gelu_fast": ("GPT2", "GPT2LMHeadModel", GPT2 | {"activation_function": "gelu_fast"}),
  "llama, llama3": ("Llama", "LlamaForCausalLM", LLAMA | {"rope_parameters": LLAMA3}),
  "llama, attention's biases": ("Llama", "LlamaForCausalLM", LLAMA | {"attention_bias": True}),
  "mistral": (*MISTRAL, LLAMA | {"sliding_window": None}),
  "mistral, wide": (*MISTRAL, LLAMA | {"sliding_window": LONGEST, "rope_parameters": LINEAR}),
}


def build(kind, class_name, fields, seed=0):
  """Returns a model with every weight at random, gains and biases included."""
  config = getattr(transformers, f"{kind}Config")(**fields)
  torch.manual_seed(seed)
  model = getattr(transformers, class_name)(config).eval()
  if (
    fields.get("tie_word_embeddings") is False and kind == "T5"
  ):  # the library ties it all the same
    model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
  with torch.no_grad():
    for name, weight in model.named_parameters():
      gain = weight.ndim == 1 and "bias" not in name
      weight.copy_(gain + torch.randn_like(weight) * (0.5 if weight.ndim == 1 else 0.2))
  return model


def load(folder):
  """Returns the model of a folder, after all its weights have found their place."""
  name = json.loads((Path(folder) / "config.json").read_text())["architectures"][0]
  model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
  assert not any(info.values()), info
  return model.eval()


@torch.no_grad()
def logits(model, batch, way):
  """Returns the logits of each document: "ragged", alone, or "padded", in one batch.

  In double precision but for norms and softmax, which the library computes in float32: in float32
  throughout, two processors' logits differ by as much as the bounds of some tests.
  """
  model.double()

  def run(tokens, types, source):
    (tokens, mask), (types, _), (source, source_mask) = tokens, types, source
    named = {"input_ids": tokens, "attention_mask": mask}
    if model.config.model_type == "t5":
      named = {"input_ids": source, "attention_mask": source_mask}
      named |= {"decoder_input_ids": tokens, "decoder_attention_mask": mask}
    if model.config.model_type == "bert":
      named["token_type_ids"] = types
    named = {k: None if x is None else torch.tensor(x) for k, x in named.items()}
    return model(**named, use_cache=False).logits.numpy()

  if way == "ragged":
    return [run(*((part[None], None) for part in (d.tokens, d.types, d.source)))[0] for d in batch]
  rows = run(*(pad([getattr(d, part) for d in batch]) for part in ("tokens", "types", "source")))
  return [row[: len(d.tokens)] for row, d in zip(rows, batch, strict=True)]


def write_goldens(root):
  """Writes a folder per architecture, with the logits of its documents, one after the other."""
  for name, arguments in GOLDEN.items():
    folder = root / name
    model = build(*arguments)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    ragged = logits(model, documents(V), "ragged")
    np.savez_compressed(folder / "logits.npz", logits=np.concatenate(ragged).astype(np.float32))


if __name__ == "__main__":
  write_goldens(Path(sys.argv[1]))
