"""What the transformers library reads beside a model's weights: its tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

TOKENIZER = "tokenizer.json"
MASK = "[MASK]"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
  """Writes a file of the library."""
  path.write_text(json.dumps(content, indent=2) + "\n")


def write(
  folder: Path, tokenizer_json: str, token_ids: Mapping[str, int], c: ConfigDict, seq_len: int
) -> None:
  """Writes tokenizer.json, and a tokenizer_config.json that names its special tokens.

  Without that the library has no token to pad with or to mask, guesses a class by the model's type
  (which then refuses the file), and takes sequences of any length.
  """
  (folder / TOKENIZER).write_text(tokenizer_json)
  tokens = json.loads(tokenizer_json).get("added_tokens", [])
  added = {token["id"]: token["content"] for token in tokens}
  special = {
    f"{kind}_token": added[token_ids[f"{kind}_token_id"]]
    for kind in ("bos", "eos", "pad")
    if token_ids.get(f"{kind}_token_id") in added
  }
  if MASK in added.values():
    special["mask_token"] = MASK
  types = ["token_type_ids"] if c.token_types else []  # other models embed them as text
  config = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": seq_len,
    "model_input_names": ["input_ids", *types, "attention_mask"],
    "clean_up_tokenization_spaces": False,
    "split_special_tokens": c.family == "decoder",  # what spells one out is text
  }
  write_json(folder / "tokenizer_config.json", config | special)
