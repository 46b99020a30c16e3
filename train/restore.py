"""A run read back: its model, and its tokens as text."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
from flax import nnx
from ml_collections import ConfigDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from configs import base, ladders
from configs.errors import ConfigError, UsageError
from model import transformer
from model.transformer import Transformer
from train import checkpoint, step
from train.data import dataset, tokenizer
from train.objectives import registry
from train.system import files


class Restored(NamedTuple):
  """A run's newest checkpoint.

  Attributes:
    config: the run's, resolved.
    model: with its trained weights.
    vocab_size: V of the model, special ids included.
    tokenizer: text to all of the model's ids and back; None: an import came without one.
    start: what a decoder reads first, if the prompt has nothing; None: there is no such id.
    stop: what ends a text; None: there is no such id.
    context: T, the longest sequence of a decoder, or of a lone encoder [tokens].
    source_context: S, the longest that an encoder-decoder encodes [tokens].
  """

  config: ConfigDict
  model: Transformer
  vocab_size: int
  tokenizer: Tokenizer | None
  start: int | None
  stop: int | None
  context: int
  source_context: int


def find(path: str) -> tuple[Path, dict]:
  """Returns a run's folder and record (run.json).

  Args:
    path: the folder, or the checkpoints/ in it.

  Raises:
    UserError: it is neither.
  """
  if not path:
    raise UsageError("--checkpoint is missing; name a run's folder, --checkpoint=runs/one")
  folder = Path(path).expanduser().absolute()
  if folder.name == "checkpoints":
    folder = folder.parent
  record = files.read_json(folder / "run.json") if folder.is_dir() else None
  if record is None or not (folder / "checkpoints").is_dir():
    raise UsageError(
      f"checkpoint={path}: no run.json with checkpoints/ beside it; name the folder of a run"
    )
  return folder, record


def restore(folder: Path, record: dict, config: ConfigDict) -> Restored:
  """Returns the newest checkpoint of a run.

  Args:
    folder: the run's.
    record: its run.json.
    config: the config in it.

  Raises:
    UserError: there is no sound checkpoint, or no tokenizer.
  """
  config = ladders.resolve(config)
  config.sharding = base.get_config().sharding  # whole, on one device
  tokenizer_vocab_size, imported = record["data"]["vocab_size"], record.get("imported")
  state = _state(folder, config, tokenizer_vocab_size)
  lengths = registry.lengths(config)
  vocab_size = registry.vocab_size(config, tokenizer_vocab_size)

  def build():
    shape = config.model, vocab_size, lengths.target, nnx.Rngs(0), lengths.source
    return transformer.build(*shape)

  model = nnx.merge(nnx.graphdef(nnx.eval_shape(build)), state.master or state.params)
  if imported:
    length, roles = config.data.seq_len, (imported["start"], imported["stop"])
    path = folder / tokenizer.FILE
    library = Tokenizer.from_str(path.read_text("utf-8")) if path.is_file() else None
    return Restored(config, model, vocab_size, library, *roles, length, length)
  eos = tokenizer_vocab_size - 1
  library = tokenizer_of(config, record)
  return Restored(config, model, vocab_size, library, eos, eos, lengths.target, lengths.source)


def _state(folder: Path, config: ConfigDict, tokenizer_vocab_size: int) -> step.TrainState:
  state = step.program(config, tokenizer_vocab_size).state
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
    state,
  )
  with checkpoint.opened(folder / "checkpoints", read_only=True) as checkpoints:
    if not checkpoints.steps():
      raise UsageError(f"checkpoint={folder}: the run has not saved one yet")
    try:
      return checkpoints.restore(checkpoints.steps()[-1], like)
    except checkpoint.DamagedCheckpointError as error:
      raise UsageError(f"checkpoint={folder}: {error}; train the run again") from None


# --------------------------------------------------------------------------------- tokens as text


def tokenizer_of(config: ConfigDict, record: dict) -> Tokenizer:
  """Returns a trained run's tokenizer, with names for the special ids of its objective.

  The ids are those of `train.objectives`; an encoded text has eos where training had it.

  Raises:
    UserError: the corpus that it was trained on is another one now.
  """
  library = _bytes() if config.data.tokenizer == "bytes" else _bpe(config, record)
  library.add_special_tokens(list(registry.specials(config)))
  first = config.model.family != "encoder_decoder"
  library.post_processor = processors.TemplateProcessing(
    single=f"{tokenizer.EOS} $A" if first else f"$A {tokenizer.EOS}",
    special_tokens=[(tokenizer.EOS, library.token_to_id(tokenizer.EOS))],
  )
  return library


def _bytes() -> Tokenizer:
  """Returns the tokenizer `bytes` as a BPE that merges nothing."""
  library = Tokenizer(
    models.BPE({character: i for i, character in enumerate(tokenizer.byte_characters())}, [])
  )
  library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  library.decoder = decoders.ByteLevel()
  library.add_special_tokens([tokenizer.EOS])
  return library


def _bpe(config: ConfigDict, record: dict) -> Tokenizer:
  """Returns the BPE that was trained for the run, from the cache, or trained again."""
  serialized = (dataset.prepare(config).path / tokenizer.FILE).read_text("utf-8")
  if hashlib.sha256(serialized.encode()).hexdigest() != record["data"]["tokenizer"]:
    raise ConfigError(
      f"data.source={config.data.source!r}: its text is another one than this run's, and so is "
      f"{config.data.tokenizer}; restore the text"
    )
  return Tokenizer.from_str(serialized)
