"""Makes a run of a Hugging Face folder (docs/checkpoints.md: of which): a checkpoint at step 0.

  isoflop import --input=gpt2 --workdir=runs/imported

The run's folder has run.json, checkpoints/ and tokenizer.json. It can be sampled and exported.
"""

import hashlib
from pathlib import Path

from absl import flags

from configs import base, ladders, presets
from configs.errors import UsageError
from scaling.arguments import WORKDIR, Flag, workdir_of

FLAGS: tuple[Flag, ...] = (WORKDIR, ("input", "", "Folder with config.json and model.safetensors."))


def run(args: flags.FlagValues) -> None:
  workdir = workdir_of(args)
  if not args.input:
    raise UsageError("--input is missing; name a folder with config.json and model.safetensors")
  record = import_run(Path(args.input).expanduser().absolute(), workdir)
  kind, total = record["imported"]["model_type"], record["params"]["total"]
  print(f"{workdir}: {kind}, {total:,} parameters")


def import_run(folder: Path, workdir: Path) -> dict:
  """Writes the run's folder; returns its record."""
  from flax import traverse_util

  from model.huggingface import convert
  from train import checkpoint, programs, record, restore
  from train.objectives import registry
  from train.system import files

  if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
    raise UsageError(f"workdir={workdir}: exists; an import wants a new folder")
  if not folder.is_dir():
    raise UsageError(f"input={folder}: no such folder")
  imported = convert.import_folder(folder)
  config = base.get_config()  # of a run that would go on training the model
  config.model.update(imported.model_config)
  presets.set_family(config, config.model.family)
  config.data.seq_len = imported.seq_len
  config = ladders.resolve(config)
  json_text = imported.tokenizer_json or ""
  if json_text:
    library = restore.read_tokenizer(json_text, f"input={folder}")
    if (most := max(library.get_vocab().values(), default=0)) >= imported.vocab_size:
      raise UsageError(
        f"input={folder}: its tokenizer.json has an id {most:,}, beyond the model's vocabulary of "
        f"{imported.vocab_size:,}; take the one that belongs to it"
      )
  special_ids = registry.vocab_size(config, 0)
  vocab_size = imported.vocab_size - special_ids
  if vocab_size < 1:
    raise UsageError(f"input={folder}: its vocabulary is smaller than {special_ids} special ids")
  params = traverse_util.unflatten_dict(imported.params, sep="/")
  state = programs.program(config, vocab_size).init_from(params)
  size = record.size_of(config, vocab_size)
  head = record.describe_model(config, size) | {
    "D": 0,
    "C": 0.0,
    "steps": 0,
    "data": {
      "source": "",
      "fingerprint": "",
      "tokenizer": json_text and hashlib.sha256(json_text.encode()).hexdigest(),
      "vocab_size": vocab_size,
    },
    "imported": {name: getattr(imported, name) for name in ("model_type", "start", "stop")},
    "status": "imported",
  }
  files.make_folder(workdir)
  if json_text:
    files.write_text(workdir / convert.TOKENIZER, json_text)
  with checkpoint.Checkpoints(workdir / "checkpoints") as checkpoints:
    checkpoints.save(0, state)
  files.write_json(workdir / "run.json", files.with_digests(head))
  return head
