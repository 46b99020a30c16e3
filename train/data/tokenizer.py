"""Tokenizers: bytes, and byte-level BPE trained on the corpus.

Ids 0 to V-2 stand for bytes of text and V-1 is `eos`, which serves as document boundary: it is the
input before the first token of a document and the target after its last. Objectives that need more
special ids (mask, sentinels) take them from V on, so that no id ever changes its meaning.
"""

import dataclasses
import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from configs.errors import ConfigError

FILE = "tokenizer.json"
EOS = "<|eos|>"
SMALLEST = 257  # the 256 bytes and eos


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Text to ids."""

  hash: str  # SHA-256 of everything that decides the ids
  table: tuple[bytes, ...]  # the bytes that each id stands for; none for eos
  encode: Callable[[Sequence[bytes]], list[np.ndarray]]  # ids of each document, without eos
  serialized: str = ""  # the JSON of a BPE, for the library `tokenizers`; "" for bytes

  @property
  def vocab_size(self) -> int:
    """V, with `eos`."""
    return len(self.table)

  @property
  def eos(self) -> int:
    """The id of the document boundary."""
    return len(self.table) - 1

  @property
  def token_bytes(self) -> np.ndarray:
    """Bytes of text that each id stands for [V]; 0 for `eos`."""
    return np.array([len(text) for text in self.table], np.int32)

  def save(self, folder: Path) -> None:
    """Writes a BPE into a folder."""
    if self.serialized:
      (folder / FILE).write_text(self.serialized, "utf-8")


def size(name: str) -> int:
  """Returns the vocabulary size of a `data.tokenizer`; ConfigError: it is unknown or too small."""
  kind, _, number = name.partition(":")
  if name == "bytes":
    return SMALLEST
  if kind == "file":
    return _bpe(name, _read(name)).vocab_size
  if kind != "bpe" or not (number.isascii() and number.isdigit()):
    raise ConfigError(
      f"data.tokenizer={name!r}: unknown; choose bytes | bpe:SIZE, as in bpe:4096 | file:PATH"
    )
  if int(number) < SMALLEST:
    raise ConfigError(
      f"data.tokenizer={name!r}: too small; {SMALLEST} (256 bytes and {EOS}) is the least"
    )
  return int(number)


def train(name: str, documents: Iterator[bytes]) -> Tokenizer:
  """Makes the tokenizer `name`; BPE is trained on the documents."""
  vocab_size = size(name)
  if name == "bytes":
    return _bytes()
  if name.startswith("file:"):
    return _bpe(name, _read(name))
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers

  print(f"training {name}", file=sys.stderr, flush=True)
  library = tokenizers.Tokenizer(models.BPE())
  library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  library.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size - 1,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  library.train_from_iterator((_text(name, document) for document in documents), trainer)
  library.add_special_tokens([EOS])
  if library.get_vocab_size() < vocab_size:
    raise ConfigError(
      f"data.tokenizer={name!r}: the corpus has only {library.get_vocab_size()} tokens to learn; "
      f"use bpe:{library.get_vocab_size()} or a larger corpus"
    )
  return _bpe(name, library.to_str(pretty=True))


def load(name: str, folder: Path) -> Tokenizer:
  """Reads the tokenizer `name` from the folder that it was saved in."""
  return _bytes() if name == "bytes" else _bpe(name, (folder / FILE).read_text("utf-8"))


def folder_name(name: str) -> str:
  """Names the folder of the tokens that a tokenizer makes; a file's by its content."""
  if name.startswith("file:"):
    return f"file-{hashlib.sha256(_read(name).encode()).hexdigest()[:16]}"
  return name.replace(":", "-")


def _read(name: str) -> str:
  path = Path(name.removeprefix("file:")).expanduser()
  try:
    if path.is_file():  # and no FIFO, at which it would wait
      return path.read_text("utf-8")
    raise FileNotFoundError
  except (OSError, UnicodeDecodeError):
    raise ConfigError(
      f"data.tokenizer={name!r}: no such file; name the tokenizer.json of a run"
    ) from None


def _bytes() -> Tokenizer:
  def encode(documents: Sequence[bytes]) -> list[np.ndarray]:
    return [np.frombuffer(document, np.uint8) for document in documents]

  table = (*(bytes([i]) for i in range(256)), b"")
  return Tokenizer(hashlib.sha256(b"bytes").hexdigest(), table, encode)


def _bpe(name: str, serialized: str) -> Tokenizer:
  """Reads a byte-level BPE; the first id after those of text is eos, whatever it is called."""
  import tokenizers

  try:
    library = tokenizers.Tokenizer.from_str(serialized)
    special = library.get_added_tokens_decoder()
    text = {i: token for token, i in library.get_vocab().items() if i not in special}
    byte_of = {character: i for i, character in enumerate(byte_characters())}
    table = (*(bytes(byte_of[c] for c in text[i]) for i in range(len(text))), b"")
  except Exception as error:  # the library raises nothing narrower
    raise ConfigError(
      f"data.tokenizer={name!r}: not a byte-level BPE whose special ids follow those of text "
      f"({error}); name one, as GPT-2's"
    ) from None
  library.encode_special_tokens = True  # text that spells out eos is text

  def encode(documents: Sequence[bytes]) -> list[np.ndarray]:
    texts = [_text(name, document) for document in documents]
    encodings = library.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, np.uint32) for encoding in encodings]

  return Tokenizer(hashlib.sha256(serialized.encode()).hexdigest(), table, encode, serialized)


def byte_characters() -> list[str]:
  """Lists what byte-level BPE writes for each byte: its character, or one from 256 upwards."""
  printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
  substitutes = itertools.count(256)
  return [chr(i) if i in printable else chr(next(substitutes)) for i in range(256)]


def _text(name: str, document: bytes) -> str:
  try:
    return document.decode()
  except UnicodeDecodeError as error:
    raise ConfigError(
      f"data.tokenizer={name!r}: a document is not UTF-8 text; use data.tokenizer='bytes'"
    ) from error
