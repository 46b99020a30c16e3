"""Random models of the transformers library: their logits, out and in, or a refusal by name."""

import random

import pytest
from documents import difference, documents, logits

from configs.errors import UserError
from model.huggingface import convert

pytest.importorskip("transformers", reason="needs torch and transformers")
pytest.importorskip("torch", reason="needs torch and transformers")
import torch_models  # noqa: E402

BATCH = documents(torch_models.V)
NAMES = {"Llama": "llama", "Mistral": "mistral", "Qwen3": "qwen3", "GPTNeoX": "gpt_neox"}


def draw_rotary(choose):
  rope = {"rope_type": choose("default", "linear", "llama3", "dynamic"), "rope_theta": 300.0}
  if rope["rope_type"] != "default":
    rope["factor"] = choose(1.5, 8.0)
    rope["original_max_position_embeddings"] = choose(16, 48)
  if rope["rope_type"] == "llama3":
    rope |= {"low_freq_factor": choose(1.0, 0.5), "high_freq_factor": choose(4.0, 2.0)}
  return rope


def draw(kind, choose):
  """Draws a config: fields by name."""
  heads, width = choose(2, 4), choose(12, 16)
  fields = {
    "vocab_size": torch_models.V,
    "hidden_size": heads * width,
    "num_attention_heads": heads,
    "intermediate_size": choose(12, 28),
    "num_hidden_layers": 2,
    "max_position_embeddings": torch_models.LONGEST,
    "tie_word_embeddings": choose(True, False),
    "hidden_act": choose("gelu_fast", "gelu_new", "gelu" if kind == "GPTNeoX" else "silu"),
    "rope_parameters": draw_rotary(choose),
  }
  if kind == "GPTNeoX":
    fields["rope_parameters"]["partial_rotary_factor"] = choose(0.25, 0.5, 1.0)
    return fields | {"use_parallel_residual": choose(True, False)}
  fields |= {"num_key_value_heads": choose(1, 2), "head_dim": choose(6, width)}
  fields["attention_bias"] = kind != "Mistral" and choose(True, False)
  if kind == "Llama":
    return fields | {"mlp_bias": choose(True, False)}
  return fields | {"use_sliding_window": choose(True, False), "sliding_window": choose(None, 8, 48)}


@pytest.mark.parametrize("kind", NAMES)
def test_a_random_model_is_equal_or_refused_by_name(kind, tmp_path):
  equal, refusals = 0, []
  for seed in range(5):
    choices = random.Random(f"{kind} {seed}")
    fields = draw(kind, lambda *values, choices=choices: choices.choice(values))
    model = torch_models.build(kind, f"{kind}ForCausalLM", fields, seed)
    model.save_pretrained(folder := tmp_path / str(seed))
    try:
      imported = convert.import_folder(folder)
    except UserError as error:
      refusals.append(str(error).removeprefix(f"{folder}: "))
      continue
    equal += 1
    theirs = torch_models.logits(model, BATCH, "ragged")
    assert difference(logits(imported, BATCH, "padded"), theirs) < 1e-5
    convert.export_folder(folder / "out", *imported[:4], NAMES[kind])
    again = torch_models.load(folder / "out")
    assert difference(torch_models.logits(again, BATCH, "ragged"), theirs) < 1e-5
  assert equal
  names = ("rope_type='dynamic'", "sliding_window=8", "mlp_bias=True", "partial_rotary_factor=")
  assert all(refusal.startswith(names) for refusal in refusals), refusals
