"""Folders of the transformers library (config.json, safetensors, tokenizer.json), in and out.

Without PyTorch. Every weight of a folder finds its home and every home its weight, or an error
names it; `architectures.py` has the tables.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from configs import ladders, presets
from configs.errors import DataError, UserError
from model import accounting
from model.block import OUTPUTS, depth_ratio
from model.huggingface.architectures import ARCHITECTURES, Architecture
from model.huggingface.fields import MOST, MOST_LAYERS, refuse, token_id, typed
from model.huggingface.weights import Weight, of_modules
from model.layers import mlp_width
from model.positions import rotary_width
from model.transformer import is_free

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
INDEX = f"{WEIGHTS}.index.json"  # which of several files holds a weight

# Fields that an export folds into weights.
FOLDED = ("depth_scaling", "mup_base_depth", "completep_alpha")
EFFECTIVE = {"mlp_width": mlp_width, "rotary_share": rotary_width}  # what a field comes to

MASK = "[MASK]"

Arrays = dict[str, np.ndarray]


class Imported(NamedTuple):
  """What a folder holds."""

  model_config: ConfigDict  # resolved
  params: Arrays  # float32 arrays by path, such as "decoder/block/mlp/up/kernel"
  vocab_size: int  # V
  seq_len: int  # T, the longest sequence [tokens]
  tokenizer_json: str | None  # the text of tokenizer.json; None: there is none
  model_type: str  # as in config.json; "bert without a head", whose embedding serves as one
  start: int | None  # id that a decoder reads first; None: the config names none
  stop: int | None  # id that ends a text, likewise


def import_folder(path: str | Path) -> Imported:
  """Reads a folder that `save_pretrained` of the transformers library wrote."""
  folder = Path(path)
  try:
    config = _json(folder / CONFIG)
    architecture = _find(config)
    theirs = _named(architecture, _load(folder))
    model_config, vocab_size, seq_len = _read(architecture, config, theirs)
    shapes = _shapes(model_config, vocab_size, seq_len)
    weights = _weights(architecture, model_config, shapes)
    homes = {name for weight in weights for name in _names(weight, shapes)}
    theirs = _without_copies(architecture, theirs, homes)
    params: Arrays = {}
    for weight in weights:
      params |= _take(weight, theirs, shapes)
    if theirs:
      raise DataError(f"weight {min(theirs)}: has no home in this {architecture.model_type}")
    text = _text(folder / TOKENIZER) if (folder / TOKENIZER).exists() else None
    start = (
      token_id(config, f"{name}_token_id", vocab_size) for name in ("decoder_start", "bos", "pad")
    )
    start_id = next((index for index in start if index is not None), None)
    stop_id = token_id(config, "eos_token_id", vocab_size)
  except UserError as error:
    raise DataError(f"{folder}: {error}") from None
  except UnicodeDecodeError as error:
    raise DataError(f"{folder}: {TOKENIZER}: not UTF-8 ({error})") from None
  kind = architecture.model_type
  if model_config.family == "encoder" and not model_config.head_transform:
    kind += " without a head"
  return Imported(model_config, params, vocab_size, seq_len, text, kind, start_id, stop_id)


def export_folder(
  path: str | Path,
  model_config: ConfigDict,
  params: Mapping[str, np.ndarray],
  vocab_size: int,
  seq_len: int,
  architecture: str,
  tokenizer_json: str | None = None,
  token_ids: Mapping[str, int] | None = None,
) -> None:
  """Writes a folder, new or empty, that `from_pretrained` of the transformers library loads.

  The model config is resolved, V has the special ids, and `token_ids` are further fields of
  config.json and generation_config.json, such as {"eos_token_id": 256}.
  """
  folder = Path(path)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise DataError(f"{folder}: exists; an export wants a new folder")
  family, config = _write(architecture, model_config, vocab_size, seq_len)
  shapes = _shapes(model_config, vocab_size, seq_len)
  for path in filter(re.compile(OUTPUTS).search, params):  # [L, ...]
    scale = depth_ratio(model_config, len(params[path])) ** -model_config.completep_alpha
    params = {**params, path: scale * params[path]}
  theirs: Arrays = {}
  for weight in _weights(family, model_config, shapes):
    theirs |= _give(weight, params, shapes)
  folder.mkdir(parents=True, exist_ok=True)
  token_ids = dict(token_ids or {})
  config |= token_ids
  _write_json(folder / CONFIG, config)
  save_file(theirs, folder / WEIGHTS, metadata={"format": "pt"})
  if model_config.family != "encoder":
    _write_json(folder / "generation_config.json", token_ids)
  if tokenizer_json is not None:
    _write_tokenizer(folder, tokenizer_json, token_ids, model_config, seq_len)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
  """Writes a file of the library."""
  path.write_text(json.dumps(content, indent=2) + "\n")


def _write_tokenizer(
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
  _write_json(folder / "tokenizer_config.json", config | special)


def _find(config: Mapping) -> Architecture:
  for architecture in ARCHITECTURES.values():
    if architecture.model_type == config.get("model_type"):
      return architecture
  known = ", ".join(sorted({a.model_type for a in ARCHITECTURES.values()}))
  raise DataError(f"model_type={config.get('model_type')!r}: unknown; it must be one of {known}")


def _read(
  architecture: Architecture, config: Mapping, names: Collection[str]
) -> tuple[ConfigDict, int, int]:
  """Translates a config.json, which comes with the weights of those names: model config, V, T."""
  for field, value in {"quantization_config": None, **architecture.only}.items():
    refuse(field, config.get(field, value), value)
  ours = {}
  complete = presets.get_config(architecture.preset)
  for field, (our_field, default) in architecture.fields.items():
    kind = type(complete.model[our_field]) if our_field in complete.model else int
    most = MOST_LAYERS if our_field.endswith("depth") else MOST
    ours[our_field] = typed(config, field, kind, default, most)
  activations = {name: mlp for mlp, all_ in architecture.activations.items() for name in all_}
  if ours["mlp"] not in activations:
    raise DataError(f"activation {ours['mlp']!r}: unknown; known are {', '.join(activations)}")
  ours["mlp"] = activations[ours["mlp"]]
  architecture.read(config, ours, names)
  vocab_size, seq_len = ours.pop("vocab_size"), ours.pop("seq_len")
  for field, value in ours.items():
    complete.model[field] = type(complete.model[field])(value)
  model_config = ladders.resolve(complete).model
  model_config.mlp_width = mlp_width(model_config)
  return model_config, vocab_size, seq_len


def _write(
  name: str, model_config: ConfigDict, vocab_size: int, seq_len: int
) -> tuple[Architecture, dict]:
  """Translates a model config of ours, the reverse of `_read`: architecture, config.json."""
  if name not in ARCHITECTURES:
    raise DataError(f"architecture {name!r}: unknown; choose one of {', '.join(ARCHITECTURES)}")
  architecture, c = ARCHITECTURES[name], model_config
  family = presets.PRESETS[architecture.preset]["family"]
  if c.family != family:
    raise DataError(_misfit(name, "family", c.family, family))
  if c.mlp not in architecture.activations:
    raise DataError(_misfit(name, "mlp", c.mlp, " or ".join(architecture.activations)))
  values = dict(c) | {"vocab_size": vocab_size, "seq_len": seq_len, "mlp_width": mlp_width(c)}
  values["mlp"] = architecture.activations[c.mlp][0]
  config: dict[str, Any] = {
    "architectures": [architecture.class_name],
    "model_type": architecture.model_type,
  }
  config |= {theirs: values[ours] for theirs, (ours, _) in architecture.fields.items()}
  config |= {**architecture.only, **architecture.constants, **architecture.write(c)}
  names = [x.name for x in _weights(architecture, c, _shapes(c, vocab_size, seq_len))]
  understood = _read(architecture, config, names)[0]
  for field, value in understood.items():  # what a reader would make of it
    effective = EFFECTIVE.get(field, lambda c, field=field: c[field])
    if field not in FOLDED and not is_free(field, c) and effective(c) != effective(understood):
      raise DataError(_misfit(name, field, c[field], value))
  return architecture, config


def _misfit(name: str, field: str, value: Any, theirs: Any) -> str:
  preset = name if name in presets.PRESETS else ARCHITECTURES[name].preset
  return (
    f"model.{field}={value!r}: {name} has {theirs!r}; choose another architecture, or train with "
    f"configs/presets.py:{preset}"
  )


def _json(path: Path) -> dict:
  try:
    content = json.loads(_text(path))
  except (ValueError, RecursionError) as error:
    if isinstance(error, UserError):
      raise
    raise DataError(f"{path.name}: not JSON ({error})") from None
  if not isinstance(content, dict):
    raise DataError(f"{path.name}: holds a {type(content).__name__}, not an object")
  return content


def _text(path: Path) -> str:
  if not path.is_file():  # a FIFO would be waited for
    raise DataError(f"{path.name}: missing; choose the folder that holds it")
  return path.read_text("utf-8")


def _load(folder: Path) -> Arrays:
  """Reads all weights of a folder, of one file or of several."""
  files = [WEIGHTS]
  if (folder / INDEX).exists():
    places = _json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict):
      raise DataError(f"{INDEX}: has no weight_map; choose the folder that holds whole weights")
    for file in places.values():
      if not isinstance(file, str) or Path(file).name != file:
        raise DataError(f"{INDEX}: {str(file)[:60]!r} is no file's name; weights lie in the folder")
    files = sorted(set(places.values()))
  theirs: Arrays = {}
  for file in files:
    if not (folder / file).is_file():
      raise DataError(f"{file}: missing; weights are read from safetensors only")
    try:
      theirs |= load_file(folder / file)
    except SafetensorError as error:
      raise DataError(f"{file}: damaged ({error})") from None
  return theirs


def _named(architecture: Architecture, theirs: Arrays) -> Arrays:
  """Returns the weights that matter, by the names that the class with the head gives them."""
  bare = not any(name.startswith(architecture.prefix) for name in theirs)

  def named(name: str) -> str:
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")  # TensorFlow's names, in old BERTs
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    headed = name.startswith(("lm_head", "embed_out", "cls"))
    return architecture.prefix + name if bare and not headed else name

  return {named(k): w for k, w in theirs.items() if not k.endswith(architecture.ignored)}


def _without_copies(architecture: Architecture, theirs: Arrays, homes: set[str]) -> Arrays:
  """Returns the weights without those that only repeat another one; DataError if one differs."""
  theirs = dict(theirs)
  for copy, name in architecture.copies.items():
    if copy in homes or copy not in theirs:
      continue
    weight = theirs.pop(copy)
    if not np.array_equal(weight, theirs.setdefault(name, weight)):
      raise DataError(f"weight {copy}: differs from {name}, to which the config ties it")
  return theirs


def _shapes(model_config: ConfigDict, vocab_size: int, seq_len: int) -> dict[str, tuple[int, ...]]:
  source_len = seq_len if model_config.family == "encoder_decoder" else 0
  return accounting.shapes(model_config, vocab_size, seq_len, source_len)


def _weights(architecture: Architecture, c: ConfigDict, shapes: Mapping) -> list[Weight]:
  heads = c.heads if architecture.by_head else 1
  return [*of_modules(architecture.modules(c), shapes, architecture.in_first, heads)]


def _names(weight: Weight, shapes: Mapping) -> list[str]:
  """Returns the names of a weight, of all layers."""
  if "{}" not in weight.name:
    return [weight.name]
  return [weight.name.format(i) for i in range(shapes[weight.paths[0]][0])]


def _take(weight: Weight, theirs: Arrays, shapes: Mapping) -> Arrays:
  """Moves a weight out of theirs: returns ours, by path."""
  layered = "{}" in weight.name
  shape = shapes[weight.paths[0]][layered:]
  shape = (*shape[:-1], sum(shapes[path][-1] for path in weight.paths))
  shape = shape[::-1] if weight.transposed else shape
  layers = []
  for name in _names(weight, shapes):
    if name not in theirs:
      raise DataError(f"weight {name}: missing; {weight.paths[0]} needs it")
    layer = theirs.pop(name)
    if layer.shape != shape:
      raise DataError(f"weight {name}: shape {layer.shape}; the config asks for {shape}")
    if not jnp.issubdtype(layer.dtype, jnp.floating):
      raise DataError(f"weight {name}: holds {layer.dtype}; weights are floating-point numbers")
    with np.errstate(over="ignore"):  # of float64: seen below
      layer = np.ascontiguousarray(layer.T if weight.transposed else layer, np.float32)
    if not np.isfinite(layer).all():
      raise DataError(f"weight {name}: has NaN or infinite values, or ones too large for float32")
    layers.append(layer)
  whole = np.stack(layers) if layered else layers[0]
  if weight.heads > 1:  # (head, part, K) to (part, head, K)
    parts = whole.reshape(*whole.shape[:-1], weight.heads, len(weight.paths), -1)
    whole = parts.swapaxes(-3, -2).reshape(whole.shape)
  ends = np.cumsum([shapes[path][-1] for path in weight.paths])[:-1]
  return dict(zip(weight.paths, np.split(whole, ends, axis=-1), strict=True))


def _give(weight: Weight, params: Mapping[str, np.ndarray], shapes: Mapping) -> Arrays:
  """Returns a weight of ours by their names: the reverse of `_take`."""
  whole = np.concatenate([np.asarray(params[path], np.float32) for path in weight.paths], axis=-1)
  if weight.heads > 1:
    parts = whole.reshape(*whole.shape[:-1], len(weight.paths), weight.heads, -1)
    whole = parts.swapaxes(-3, -2).reshape(whole.shape)
  layers = list(whole) if "{}" in weight.name else [whole]
  if weight.transposed:
    layers = [layer.T for layer in layers]
  arrays = map(np.ascontiguousarray, layers)  # safetensors writes memory as it lies
  return dict(zip(_names(weight, shapes), arrays, strict=True))
