"""Reads a run back: its model, and its tokens as text."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from configs import base, ladders
from configs.errors import DataError, UsageError
from model import sharding
from model.transformer import Transformer
from train import checkpoint, programs, record, step
from train.data import tokenizer
from train.objectives import registry


class Restored(NamedTuple):
  """A run's newest checkpoint."""

  config: ConfigDict  # the run's, resolved
  model: Transformer  # with its trained weights
  vocab_size: int  # V of the model, special ids included
  tokenizer: Tokenizer | None  # all of the model's ids to text; None: an import came without one
  start: int | None  # what a decoder reads first, if the prompt has nothing; None: no such id
  stop: int | None  # what ends a text; None: no such id
  context: int  # T, the longest sequence of a decoder, or of a lone encoder [tokens]
  source_context: int  # S, the longest that an encoder-decoder encodes [tokens]


def find(path: str, where: str) -> tuple[Path, dict]:
  """Finds a run's folder and record, from its folder or the checkpoints/ in it.

  Raises:
    UserError: `where`, which names field and path, is neither.
  """
  folder = Path(path).expanduser().absolute()
  if folder.name == "checkpoints":
    folder = folder.parent
  stored = record.read(folder) if folder.is_dir() else None
  if stored is None or not (folder / "checkpoints").is_dir():
    raise UsageError(f"{where}: no run.json with checkpoints/ beside it; name the folder of a run")
  return folder, stored


def newest_weights(folder: Path, where: str, setup: step.Setup) -> tuple[int, Any, str]:
  """Reads the weights of a run's newest checkpoint, laid out as a setup lays out its own.

  Returns:
    Its step, the weights as nested dicts, of the run's own shapes, and a hash of them.

  Raises:
    UserError: there is no sound checkpoint.
  """

  def place(shapes: Any) -> Any:
    layout = sharding.make_layout(setup.sharding, shapes, setup.layout.mesh)
    return jax.tree.map(
      lambda x, lies: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=lies),
      shapes,
      layout.shardings("params"),
    )

  with checkpoint.Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
    if not checkpoints.steps():
      raise UsageError(f"{where}: the run has not saved a checkpoint yet")
    newest = checkpoints.steps()[-1]
    return newest, *checkpoints.restore_weights(newest, place)


def restore(path: str) -> Restored:
  """Reads the newest checkpoint of the run that `find` finds, whole, onto one device.

  Raises:
    UserError: there is no run, no sound checkpoint, or no tokenizer.
  """
  folder, stored = find(path, where := f"checkpoint={path}")
  config = ladders.resolve(base.from_json(stored["config"], where))
  config.sharding = base.get_config().sharding  # whole, on one device
  tokenizer_vocab_size, imported = stored["data"]["vocab_size"], stored.get("imported")
  functions = programs.program(config, tokenizer_vocab_size, jax.devices()[:1])
  _, params, _ = newest_weights(folder, where, functions.setup)
  model = nnx.merge(functions.setup.graphdef, step.cast(params, jnp.float32))
  lengths = registry.lengths(config)
  context, source_context = lengths.target, lengths.source
  start = stop = tokenizer_vocab_size - 1  # eos
  file = folder / tokenizer.FILE
  try:
    serialized = file.read_text("utf-8") if file.is_file() else ""
  except UnicodeDecodeError as error:
    raise DataError(f"{where}: its {file.name} is not UTF-8 ({error}); put it back") from None
  if imported:
    library = read_tokenizer(serialized, where) if serialized else None
    start, stop = imported["start"], imported["stop"]
    context = source_context = config.data.seq_len
  elif serialized or config.data.tokenizer == "bytes":
    library = tokenizer_of(config, serialized, where)
  else:
    raise UsageError(f"{where}: its {file.name} is missing; put it back")
  vocab_size = functions.setup.vocab_size
  return Restored(config, model, vocab_size, library, start, stop, context, source_context)


# --------------------------------------------------------------------------------- tokens as text


def read_tokenizer(serialized: str, where: str) -> Tokenizer:
  """Reads a tokenizer.json; `where` names its folder. DataError: the library cannot."""
  try:
    return Tokenizer.from_str(serialized)
  except Exception as error:  # the library raises nothing narrower
    raise DataError(f"{where}: its {tokenizer.FILE} is damaged ({error}); put it back") from None


def tokenizer_of(config: ConfigDict, serialized: str, where: str = "") -> Tokenizer:
  """Makes a trained run's tokenizer, with names for the special ids of its objective.

  The ids are those of `train.objectives`; an encoded text has eos where training had it. What
  spells out a special token is text, as in training, unless the model fills blanks: prompts name
  those.
  `serialized` is the run's tokenizer.json; "": it reads bytes.
  """
  library = read_tokenizer(serialized, where) if serialized else _bytes()
  eos = min(library.get_added_tokens_decoder().items())[1].content
  specials = registry.specials(config)
  library.add_special_tokens(list(specials))
  library.encode_special_tokens = config.model.family == "decoder"
  library.post_processor = processors.TemplateProcessing(
    single=registry.OBJECTIVES[config.objective].template.format(eos=eos),
    special_tokens=[(x, library.token_to_id(x)) for x in (eos, *specials)],
  )
  return library


def _bytes() -> Tokenizer:
  """Makes the tokenizer `bytes` as a BPE that merges nothing."""
  vocab = {character: i for i, character in enumerate(tokenizer.byte_characters())}
  library = Tokenizer(models.BPE(vocab, []))
  library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  library.decoder = decoders.ByteLevel()
  library.add_special_tokens([tokenizer.EOS])
  return library
