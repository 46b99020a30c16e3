"""Runs out to folders of the transformers library, and such folders in as runs."""

import hashlib
import importlib.metadata
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from ml_collections import ConfigDict

from configs import base, ladders, presets
from configs.errors import UsageError
from model import accounting
from model.huggingface import convert
from train import checkpoint, optim, record, step
from train.objectives import registry
from train.restore import Restored
from train.system import files


def export_run(run: Restored, architecture: str, output: Path) -> None:
  """Writes a run's newest checkpoint as config.json, model.safetensors and tokenizer.json.

  Raises:
    UsageError: the architecture lacks something that the model has, or the folder is not new.
  """
  ids = {
    "bos_token_id": run.start,
    "eos_token_id": run.stop,
    "decoder_start_token_id": run.start if run.model.encoder and run.model.decoder else None,
    "pad_token_id": run.start,
  }
  params = nnx.to_pure_dict(nnx.state(run.model))
  convert.export_folder(
    output,
    run.config.model,
    jax.tree.map(np.asarray, traverse_util.flatten_dict(params, sep="/")),
    run.vocab_size,
    max(run.context, run.source_context),
    architecture,
    run.tokenizer.to_str(pretty=True) if run.tokenizer else None,
    {name: value for name, value in ids.items() if value is not None},
  )


def import_run(source: Path, workdir: Path) -> dict:
  """Makes a run of a folder: run.json and a checkpoint at step 0. Returns the record.

  Raises:
    UsageError: `model.huggingface.convert` cannot read it, or there is something in the workdir.
  """
  if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
    raise UsageError(f"workdir={workdir}: exists; an import wants a new folder")
  if not source.is_dir():
    raise UsageError(f"input={source}: no such folder")
  imported = convert.import_folder(source)
  theirs = json.loads((source / convert.CONFIG).read_text())
  config = _config(imported)
  specials = registry.vocab_size(config, 0)
  tokenizer_vocab_size = imported.vocab_size - specials
  if tokenizer_vocab_size < 1:
    raise UsageError(f"input={source}: its vocabulary is smaller than {specials} special ids")
  state = step.program(config, tokenizer_vocab_size).init(np.uint32(0))
  params = traverse_util.unflatten_dict(imported.params, sep="/")
  state = state._replace(params=jax.tree.map(jnp.asarray, params))
  head = {
    "objective": config.objective,
    "size": config.model.size,
    "width": config.model.width,
    "depth": config.model.depth,
    "heads": config.model.heads,
  }
  groups = record.size_of(config, tokenizer_vocab_size).groups
  n_params = accounting.n_params(groups, "body_head")
  head |= {
    "params": groups,
    "N": n_params,
    "D": 0,
    "C": 0.0,
    "steps": 0,
    "lr": optim.base_learning_rate(config.optim, n_params),
    "seed": config.seed,
    "data": {
      "source": "",
      "fingerprint": "",
      "tokenizer": hashlib.sha256((imported.tokenizer_json or "").encode()).hexdigest(),
      "vocab_size": tokenizer_vocab_size,
    },
    "imported": {
      "model_type": theirs["model_type"],
      "start": _first(theirs, "decoder_start_token_id", "bos_token_id", "pad_token_id"),
      "stop": _first(theirs, "eos_token_id"),
    },
    "versions": {name: importlib.metadata.version(name) for name in ("isoflop", *record.LIBRARIES)},
    "config": record.plain(config.to_dict()),
    "config_diff": record.diff(config),
    "status": "imported",
  }
  files.make_folder(workdir)
  if imported.tokenizer_json is not None:
    files.write_text(workdir / convert.TOKENIZER, imported.tokenizer_json)
  with checkpoint.opened(workdir / "checkpoints") as checkpoints:
    checkpoints.save(0, state)
  files.write_json(workdir / "run.json", head)
  return head


def _config(imported: convert.Imported) -> ConfigDict:
  """Returns the config of a run that would go on training what was imported."""
  config = base.get_config()
  config.model.update(imported.model_config)
  config.objective = presets.OBJECTIVES[config.model.family]
  config.data.isolate_documents = config.model.family != "encoder_decoder"
  config.data.seq_len = imported.seq_len
  return ladders.resolve(config)


def _first(theirs: dict, *fields: str) -> int | None:
  """Returns the first of some fields that has an id; of several ids, the first."""
  for field in fields:
    value = theirs.get(field)
    if value is not None:
      return value[0] if isinstance(value, list) else value
  return None
