"""What fields of a config.json of the transformers library mean, read by type and within bounds.

Where no table can say, `read` and `write` of an architecture do.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.errors import ConfigError
from model.positions import rotary_width

SHARE = "partial_rotary_factor"
REQUIRED = object()  # in place of a default

KINDS = {bool: "true or false", int: "a count from 1 to {most}", float: "a number", str: "a name"}
MOST = 2**28  # of a count that could be meant
MOST_LAYERS = 2**12


def typed(theirs: Mapping, field: str, kind: type, default: Any, most: int = MOST) -> Any:
  """Reads a field of theirs, of a kind, within bounds; the default where it is absent or null."""
  value = theirs.get(field)
  if value is None and default is REQUIRED:
    raise ConfigError(f"{field}: missing; a config.json of this model_type names it")
  if value is None:
    return default
  right = isinstance(value, (int, float) if kind is float else kind)
  right &= isinstance(value, bool) == (kind is bool)
  if right and kind is int:
    right = 1 <= value <= most
  if right and kind is float:
    right = -1e30 < value < 1e30  # and no NaN
  if not right:
    need = KINDS[kind].format(most=f"{most:,}")
    raise ConfigError(f"{field}={str(value)[:60]!r}: must be {need}")
  return value


def token_id(theirs: Mapping, field: str, vocab_size: int) -> int | None:
  """Reads a token id, of several the first; None where there is none."""
  value = theirs.get(field)
  ids = value if isinstance(value, list) else [value]
  for index in ids:
    if type(index) is int and 0 <= index < vocab_size:
      return index
    if index is not None:
      break
  if ids in ([], [None]):
    return None
  raise ConfigError(
    f"{field}={str(value)[:60]}: must be a token id, 0 to {vocab_size - 1:,}, or a list of them"
  )


def refuse(field: str, value: Any, only: Any) -> None:
  """Raises ConfigError where a field of theirs has another value than the only one of ours."""
  if value != only:
    raise ConfigError(f"{field}={value!r}: not supported; our model has {only!r} only")


def read_rotary(theirs: Mapping, ours: dict, names: Collection[str] = ()) -> None:
  """Reads the base of rotary positions, their share of a head, and their scaling."""
  rope = theirs.get("rope_scaling") or theirs.get("rope_parameters") or {}
  if not isinstance(rope, dict):
    raise ConfigError(f"rope_parameters={str(rope)[:60]}: must be an object")
  neox = theirs.get("model_type") == "gpt_neox"  # has names and a default of its own
  base, part = ("rotary_emb_base", "rotary_pct") if neox else ("rope_theta", SHARE)
  rope = {"rope_theta": theirs.get(base), SHARE: theirs.get(part)} | rope
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind not in ("default", "linear", "llama3"):
    raise ConfigError(f"rope_type={kind!r}: not supported; ours are default, linear and llama3")
  ours["rotary_base"] = typed(rope, "rope_theta", float, 10_000.0)
  ours["rotary_share"] = typed(rope, SHARE, float, 0.25 if neox else 1.0)
  if not neox:
    refuse(SHARE, ours["rotary_share"], 1.0)
  elif int(ours["width"] // ours["heads"] * ours["rotary_share"]) not in range(2, MOST, 2):
    raise ConfigError(
      f"{SHARE}={ours['rotary_share']}: not supported; our model rotates an even part of a head"
    )
  ours["rotary_factor"] = 1.0 if kind == "default" else typed(rope, "factor", float, REQUIRED)
  if kind == "llama3" and ours["rotary_factor"] != 1:
    length = "original_max_position_embeddings"
    ours["rotary_original"] = typed(rope, length, int, ours["seq_len"])
    refuse(length, theirs.get(length, ours["rotary_original"]), ours["rotary_original"])
    for end in ("low", "high"):
      ours[f"rotary_{end}"] = typed(rope, f"{end}_freq_factor", float, REQUIRED)


def write_rotary(c: ConfigDict) -> dict:
  """Writes what `read_rotary` reads."""
  scaling: dict[str, Any] = {"rope_type": "default"}
  if c.rotary_factor != 1:
    scaling = {"rope_type": "linear", "factor": c.rotary_factor}
  if c.rotary_factor != 1 and c.rotary_original:
    scaling |= {"rope_type": "llama3", "original_max_position_embeddings": c.rotary_original}
    scaling |= {"low_freq_factor": c.rotary_low, "high_freq_factor": c.rotary_high}
  # Since version 5 all is in `rope_parameters`; before, the base had a field of its own.
  rope = {"rope_theta": c.rotary_base}
  scaled = {"rope_scaling": scaling} if c.rotary_factor != 1 else {}
  return {"rope_parameters": scaling | rope} | rope | scaled


def read_llama(theirs: Mapping, ours: dict, names: Collection[str]) -> None:
  """Reads rotary positions, and which layers have biases."""
  read_rotary(theirs, ours)
  ours["biases"] = typed(theirs, "mlp_bias", bool, False)
  if ours["biases"] and not ours["attention_biases"]:
    raise ConfigError(
      "mlp_bias=True: not supported without attention_bias=True; our model has biases in all dense "
      "layers, in those of attention, or in none"
    )
  ours["attention_biases"] &= not ours["biases"]


def write_llama(c: ConfigDict) -> dict:
  """Writes what `read_llama` reads."""
  biases = {"attention_bias": c.biases or c.attention_biases, "mlp_bias": c.biases}
  return write_rotary(c) | biases


def read_window(theirs: Mapping, ours: dict, names: Collection[str]) -> None:
  """Reads Mistral's and Qwen3's; a window that holds the longest sequence hides nothing."""
  read_rotary(theirs, ours)
  used = theirs.get("model_type") == "mistral" or typed(theirs, "use_sliding_window", bool, False)
  kinds = theirs.get("layer_types") or []
  known = ["full_attention", *["sliding_attention"] * used]
  if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
    raise ConfigError(f"layer_types={str(kinds)[:60]}: not supported; our model has full attention")
  window = theirs.get(field := "sliding_window", 4096)
  if used and window is not None and typed({field: window}, field, int, 0) < ours["seq_len"]:
    raise ConfigError(
      f"sliding_window={window}: not supported below max_position_embeddings={ours['seq_len']}; "
      "set that to the window, or less"
    )


def write_gpt_neox(c: ConfigDict) -> dict:
  """Writes rotary positions, by the names of version 4 too."""
  share = c.rotary_share
  if int(c.head_width * share) != rotary_width(c):
    share = (rotary_width(c) + 0.5) / c.head_width  # the library rounds down
  theirs = write_rotary(c) | {"rotary_emb_base": c.rotary_base, "rotary_pct": share}
  theirs["rope_parameters"] |= {SHARE: theirs["rotary_pct"]}
  return theirs


def read_bert(theirs: Mapping, ours: dict, names: Collection[str]) -> None:
  """Reads whether there is a head: for a BertModel, the embedding serves as one."""
  if theirs.get("architectures") == ["BertModel"]:
    ours |= {"head_transform": False, "head_bias": False, "tied": True}


def read_t5(theirs: Mapping, ours: dict, names: Collection[str]) -> None:
  """Reads whether the head is tied and scaled; the decoder is as deep as the encoder by default."""
  # Before version 5 the scale of a tied head was implied by its being tied. Since then there is a
  # field for it, and `tie_word_embeddings` is written as true also where the file has a head.
  tied = typed(theirs, "tie_word_embeddings", bool, True)
  ours["scale_logits"] = typed(theirs, "scale_decoder_outputs", bool, tied)
  ours["tied"] = tied and (ours["scale_logits"] or "lm_head.weight" not in names)
  ours["depth"] = ours["depth"] or ours["encoder_depth"]


def write_t5(c: ConfigDict) -> dict:
  """Writes what `read_t5` reads."""
  return {"tie_word_embeddings": c.tied, "scale_decoder_outputs": c.scale_logits}
