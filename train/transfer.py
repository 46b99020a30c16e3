"""The parent of a warm start: its weights, mapped to another run's model; nothing else of it.

Leaves of other shapes are mapped axis by axis (`model.sharding.logical_axes` names them), as
`train.warm_start_rule` says:

  exact  The function of the weights stays: the first loss is the parent's. A table of learned
         positions may be longer than this run's sequences; what they do not reach is cut.
  grow   Special ids are matched by name. The rows of new ones, in embedding and head, are the mean
         of all rows, so that k new ids beside V raise no loss by more than log(1 + k/V) (Hewitt
         2021, nlp.stanford.edu/~johnhew/vocab-expansion.html). New layers are copies of the layers
         before them with output projections of 0: the function stays (LLaMA Pro: Wu et al. 2024,
         arXiv:2401.02415).
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from configs import base, ladders
from configs.errors import UsageError
from model import sharding
from model.block import OUTPUTS
from model.layers import mlp_width
from model.transformer import is_free
from train import restore
from train.objectives import registry


class Parent(NamedTuple):
  """The run that a warm start takes its weights from."""

  folder: Path
  config: ConfigDict  # resolved
  where: str  # the field that names it
  rows_V: np.ndarray  # of each id here, the id there; -1: it has none


def find(config: ConfigDict, data: dict) -> Parent:
  """Finds the run of `train.warm_start`, in which {size} stands for model.size, and checks it.

  `data` is what run.json says of the tokens of the run that starts: `vocab_size`, and the hash of
  the `tokenizer`, which without one is not compared.
  """
  path = config.train.warm_start.replace("{size}", str(config.model.size))
  where = f"train.warm_start={path}"
  folder, record = restore.find(path, where)
  theirs = record["data"]
  hashes = "", data.get("tokenizer", theirs["tokenizer"])  # "": an import that came without one
  if theirs["tokenizer"] not in hashes or theirs["vocab_size"] != data["vocab_size"]:
    file = folder / "tokenizer.json"
    name = f"file:{file}" if file.is_file() else record["config"]["data"]["tokenizer"]
    raise UsageError(
      f"{where}: has other tokens, of {theirs['vocab_size']:,} ids, than data.tokenizer="
      f"{config.data.tokenizer!r}, of {data['vocab_size']:,}; set data.tokenizer={name!r}"
    )
  old = ladders.resolve(base.from_json(record["config"], where))
  ids, old_ids = (registry.special_ids(c, data["vocab_size"]) for c in (config, old))
  special_rows = [old_ids.get(name, -1) for name in ids]
  parent = Parent(folder, old, where, np.array([*range(data["vocab_size"]), *special_rows]))
  _check_model(parent, config, data["vocab_size"])
  return parent


def _check_model(parent: Parent, config: ConfigDict, vocab_size: int) -> None:
  old, new = parent.config.model, config.model
  differ = [name for name in new if _value(old, name) != _value(new, name)]
  fields = ", ".join(f"model.{name}={_value(old, name)!r}" for name in differ)
  there, here = (registry.shapes(c, vocab_size) for c in (parent.config, config))
  for path in sorted(there.keys() & here.keys()):
    if remedy := _refusal(path, there[path], here[path], parent, config):
      raise UsageError(
        f"{parent.where}: {path} has the shape {there[path]} there and {here[path]} here; "
        + (f"no rule maps them, set {fields}" if fields else remedy)
      )
  if fields:
    raise UsageError(f"{parent.where}: its model computes something else; set {fields}")


def _value(model: ConfigDict, name: str) -> Any:
  """Returns a field as far as it decides the function of the weights."""
  if name == "mlp_width":
    return mlp_width(model)
  free = is_free(name, model) or name in ("depth", "encoder_depth")  # which the shapes show
  return None if free else model[name]


def _refusal(
  path: str, there: tuple[int, ...], here: tuple[int, ...], parent: Parent, config: ConfigDict
) -> str:
  """Returns what would let a parameter be taken; "": nothing stands against it."""
  grows = config.train.warm_start_rule == "grow"
  for axis, old, new in zip(_axes(path, len(here)), there, here, strict=True):
    if axis == "vocab":
      if not grows and not np.array_equal(parent.rows_V, np.arange(old)):
        return "train.warm_start_rule='grow' matches special ids by name"
    elif axis == "position":
      if new > old:
        return f"no rule lengthens it; set data.seq_len={old} or less"
    elif axis == "layer" and old != new:
      scaled = config.model.depth_scaling != "standard"  # by the depth: copies change the rest
      if new < old or scaled or config.model.norm_position == "post":
        return f"no rule maps it; set model.{_depth(path, config)}={old}"
      if not grows:
        return (
          f"train.warm_start_rule='grow' adds layers; or set model.{_depth(path, config)}={old}"
        )
    elif old != new:
      return "no rule maps it"
  return ""


def _depth(path: str, config: ConfigDict) -> str:
  both = config.model.family == "encoder_decoder"
  return "encoder_depth" if both and path.startswith("encoder/") else "depth"


def _axes(path: str, ndim: int) -> tuple[str, ...]:
  return sharding.logical_axes([jax.tree_util.DictKey(key) for key in path.split("/")], ndim)


def adapt(params: Any, parent: Parent, like: Any) -> Any:
  """Maps the parent's weights to the shapes of `like`; both are nested dicts."""
  old, new = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, like))
  mapped = {path: _adapt_leaf(path, old[path], parent.rows_V, new[path].shape) for path in new}
  return traverse_util.unflatten_dict(mapped, sep="/")


def _adapt_leaf(path: str, x: jax.Array, rows_V: np.ndarray, shape: tuple[int, ...]) -> jax.Array:
  x = x.astype(jnp.float32)
  for axis, name in enumerate(_axes(path, x.ndim)):
    size, new_size = x.shape[axis], shape[axis]
    along = (-1, *[1] * (x.ndim - axis - 1))  # broadcasts a vector along this axis
    if name == "vocab" and not np.array_equal(rows_V, np.arange(size)):
      known_V = (rows_V >= 0).reshape(along)
      x = jnp.where(known_V, jnp.take(x, rows_V, axis), jnp.mean(x, axis, keepdims=True))
    elif name == "position":
      x = jax.lax.slice_in_dim(x, 0, new_size, axis=axis)
    elif name == "layer" and new_size > size:
      source_L = np.arange(new_size) * size // new_size  # each layer, then its copies
      copies_L = np.append(False, source_L[1:] == source_L[:-1])
      x = jnp.take(x, source_L, axis)
      if re.search(OUTPUTS, path):
        x = jnp.where(copies_L.reshape(along), 0, x)
  return x
