"""Corpora: where documents come from. A source is opened by no more than its fingerprint needs.

Documents of `text:` and `tfds:` longer than 64 KiB are cut at line ends. A corpus of fewer than 64
documents is cut finer, into about 64 pieces (of at least 1 KiB), so that even one file has a
validation split. With `data.prompt_field` a row is one document: prompt, PAIR, completion.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ml_collections import ConfigDict

from configs.errors import ConfigError, DataError
from train.data import markov

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}  # behind any of these
PIECE = 65_536  # the longest piece of a text [bytes]
PIECES = 64  # the fewest pieces a corpus is cut into
SMALLEST_PIECE = 1_024  # [bytes]
GROUP = 64  # examples read from a TFDS dataset together
PAIR = b"\xff"  # between the prompt and the completion of a document; no byte of UTF-8

_Item = TypeVar("_Item")


class Corpus(NamedTuple):
  """A source of documents, opened but not yet read."""

  name: str  # data.source
  fingerprint: str  # SHA-256 of the content, and of every option that changes the documents
  documents: Callable[[], Iterator[bytes]]  # every document from the first on, at each call
  floor: float | None = None  # least loss over bytes [nats per predicted token], where known
  pairs: bool = False  # documents are pairs: prompt, PAIR, completion


def open_source(config: ConfigDict) -> Corpus:
  """Opens `config.data.source`.

  UserError: it is unknown, missing or empty. Text that cannot be read (invalid UTF-8, a row without
  its field) raises when the documents are first read.
  """
  kind, _, argument = config.data.source.partition(":")
  prompts = config.data.prompt_field
  for usage, opener in SOURCES.items():
    if usage.partition(":")[0] == kind and (":" in usage) == bool(argument):
      if prompts and kind not in ("text", "tfds"):
        raise ConfigError(
          f"data.prompt_field={prompts!r}: data.source={config.data.source!r} has no fields; pairs "
          "are rows of .jsonl files or of a TFDS dataset"
        )
      return opener(argument, config)
  raise ConfigError(f"data.source={config.data.source!r}: unknown; choose {' | '.join(SOURCES)}")


def progress(items: Iterable[_Item], what: str) -> Iterator[_Item]:
  """Passes items through; after two seconds it counts them on stderr."""
  start = last = time.monotonic()
  count = 0
  for count, item in enumerate(items, 1):  # noqa: B007
    yield item
    if (now := time.monotonic()) - last > 2:
      print(f"{what}: {count:,} documents, {now - start:.0f} s", file=sys.stderr, flush=True)
      last = now
  if last > start:
    print(f"{what}: {count:,} documents, done", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------- sources


def _fingerprint(*parts: object) -> str:
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _fields(config: ConfigDict) -> dict[str, str]:
  """Returns the fields that make a document, in their order, by what names them in the config."""
  names = ("prompt_field", "text_field") if config.data.prompt_field else ("text_field",)
  return {f"data.{name}": config.data[name] for name in names}


def _walk(folder: str, skip: Callable[[str], bool]) -> Iterator[Path]:
  """Yields the files below a folder in a fixed order, without those `skip` names."""
  for parent, folders, files in os.walk(folder):
    folders[:] = sorted(name for name in folders if not skip(name))
    yield from (Path(parent, name) for name in sorted(files) if not skip(name))


def _digest(path: Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path, digest: str) -> bytes:
  """Reads and decompresses a file that has a SHA-256, by which what it gives is kept."""
  content = path.read_bytes()
  _check_unchanged(path, hashlib.sha256(content).hexdigest(), digest)
  if (codec := COMPRESSED.get(path.suffix.lower())) is None:
    return content
  import pyarrow

  try:
    return pyarrow.CompressedInputStream(pyarrow.BufferReader(content), codec).read()
  except (OSError, ValueError) as error:
    raise DataError(
      f"data.source: {path}: cannot be decompressed ({error}); is it whole?"
    ) from None


def _suffix(path: Path) -> str:
  """Returns what the content is, by the file's name: one of SUFFIXES, if it is text."""
  return Path(path.stem if path.suffix.lower() in COMPRESSED else path.name).suffix.lower()


def _check_unchanged(path: Path, now: str, digest: str) -> None:
  if now != digest:
    raise DataError(f"data.source: {path} changed while it was being read; start again")


def _markov(_: str, config: ConfigDict) -> Corpus:
  from train.objectives.registry import OBJECTIVES  # imports jax, which other sources do without

  tokens, symbols = config.data.markov_tokens, config.data.markov_symbols
  count = tokens // markov.DOCUMENT
  if count < 2:
    raise ConfigError(
      f"data.markov_tokens={tokens:,}: two documents of {markov.DOCUMENT:,} symbols are the least; "
      f"use {2 * markov.DOCUMENT:,} or more"
    )
  fingerprint = _fingerprint("markov", 2, markov.EXPONENT, markov.DOCUMENT, symbols, count)
  floor = markov.causal_floor(symbols) if OBJECTIVES[config.objective].causal else None
  return Corpus("markov", fingerprint, lambda: markov.documents(count, symbols), floor)


def _python_stdlib(*_: Any) -> Corpus:
  """Opens the source text of the running Python's standard library, without its tests."""
  left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}

  def skip(name: str) -> bool:  # ... and without what was generated when this Python was built
    return name in left_out or name.startswith(("config-", "_sysconfigdata"))

  folder = sysconfig.get_paths()["stdlib"]
  paths = [path for path in _walk(folder, skip) if path.suffix == ".py"]
  if not paths:
    raise ConfigError(
      f"data.source='python_stdlib': no .py files in {folder}; use text:PATH with a folder of yours"
    )
  digests = {path: _digest(path) for path in paths}
  fingerprint = _fingerprint("python_stdlib", sorted(digests.values()))
  return Corpus("python_stdlib", fingerprint, lambda: (_read(*item) for item in digests.items()))


def _text(argument: str, config: ConfigDict) -> Corpus:
  """Opens a file of SUFFIXES, or all of them below a folder, without hidden ones."""
  fields = _fields(config)
  root = Path(argument).expanduser()
  name = f"data.source='text:{argument}'"
  if root.is_file():
    paths = [root]
  elif root.is_dir():
    paths = list(_walk(str(root), lambda name: name.startswith(".")))
  else:
    raise DataError(f"{name}: no such file or folder: {root.absolute()}")
  paths = [path for path in paths if _suffix(path) in SUFFIXES]
  if not paths:
    raise DataError(f"{name}: no file ends in {', '.join((*SUFFIXES, *COMPRESSED))}")
  if odd := [path for path in paths if not path.is_file()]:
    raise DataError(f"{name}: {odd[0]} is no regular file (or a link to none); remove it")
  if unreadable := [path for path in paths if not os.access(path, os.R_OK)]:
    raise DataError(f"{name}: cannot read {unreadable[0]}; check its permissions")
  if not any(path.stat().st_size for path in paths):
    raise DataError(f"{name}: empty ({len(paths)} file(s) of 0 bytes); add text")

  def documents() -> Iterator[bytes]:
    for path, digest in digests.items():
      if _suffix(path) in ROWS:
        for row, place in ROWS[_suffix(path)](path, digest):
          places = {x: f"{name}={x!r}: {path} {place}" for name, x in fields.items()}
          yield PAIR.join(_field(row, x, where) for x, where in places.items())
      elif len(fields) > 1:
        raise DataError(f"data.prompt_field={config.data.prompt_field!r}: {path} has no fields")
      else:
        yield _utf8(_read(path, digest), f"data.source: {path}")

  digests = {path: _digest(path) for path in paths}
  kinds = sorted((_suffix(path) == ".jsonl", digest) for path, digest in digests.items())
  fingerprint = _fingerprint("text", 1, *fields.values(), kinds)
  return _rows_or_pieces(f"text:{argument}", fingerprint, documents, fields)


def _json_rows(path: Path, digest: str) -> Iterator[tuple[Any, str]]:
  """Yields each row of a .jsonl file that has a SHA-256, and its place."""
  offset, read, plain = 0, hashlib.sha256(), path.suffix.lower() not in COMPRESSED
  with open(path, "rb") if plain else io.BytesIO(_read(path, digest)) as file:
    for number, line in enumerate(file, 1):
      read.update(line)
      _utf8(line, f"data.source: {path}", offset)
      offset += len(line)
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except ValueError as error:
        raise ConfigError(f"data.source: {path} line {number} is not JSON: {error}") from error
      yield row, f"line {number}"
  if plain:
    _check_unchanged(path, read.hexdigest(), digest)


def _parquet_rows(path: Path, digest: str) -> Iterator[tuple[Any, str]]:
  """Yields each row of a Parquet file that has a SHA-256, and its place."""
  from pyarrow import ArrowException, BufferReader, parquet

  try:
    file = parquet.ParquetFile(BufferReader(_read(path, digest)))
  except ArrowException as error:
    raise DataError(f"data.source: {path} is not Parquet: {error}") from None
  rows = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches())
  return ((row, f"row {number}") for number, row in enumerate(rows, 1))


ROWS = {".jsonl": _json_rows, ".parquet": _parquet_rows}


def _field(row: Any, field: str, where: str) -> bytes:
  if not isinstance(row, dict) or field not in row:
    reason = f"its fields are {sorted(row)}" if isinstance(row, dict) else "it is not an object"
    raise DataError(f"{where} has no such field; {reason}")
  if not isinstance(row[field], str):
    raise DataError(f"{where} holds {type(row[field]).__name__}, not text")
  try:
    return row[field].encode()
  except UnicodeEncodeError as error:  # half of a surrogate pair
    raise DataError(f"{where} is not valid Unicode: {error}") from error


def _tfds(argument: str, config: ConfigDict) -> Corpus:
  """Opens a dataset of tensorflow-datasets: its train split, or all splits where it has none.

  The dataset's own test and validation splits stay untouched; ours is cut from its train split. A
  version of a dataset is taken not to change: it is known by its name and the sizes of its shards.
  """
  import tensorflow_datasets as tfds

  where, fields = f"data.source='tfds:{argument}'", _fields(config)
  try:
    builder = tfds.builder(argument, file_format="array_record")
    if not builder.is_prepared():
      print(
        f"tfds:{builder.info.full_name} is not prepared in {builder.data_dir}: this takes the "
        "network, and for some TensorFlow or Apache Beam; without them it fails, in some minutes",
        file=sys.stderr,
        flush=True,
      )
      with contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare()
    splits = ["train"] if "train" in builder.info.splits else sorted(builder.info.splits)
    sources = [builder.as_data_source(split=split) for split in splits]
  except (AssertionError, ImportError, OSError, ValueError) as error:  # no such one, or by hand
    reason = next(iter(str(error).strip().splitlines()), "")
    raise DataError(f"{where}: {type(error).__name__}: {reason}") from error
  features = builder.info.features
  for name, field in fields.items():
    if field not in features:
      raise ConfigError(f"{name}={field!r}: {argument} has the fields {sorted(features)}")

  def texts(example: dict, place: str) -> Iterator[bytes]:
    for name, field in fields.items():
      if not isinstance(example[field], bytes):
        kind = type(example[field]).__name__
        raise ConfigError(f"{name}={field!r}: {argument} holds {kind}, not text")
      yield _utf8(example[field], place)

  def documents() -> Iterator[bytes]:
    for split, source in zip(splits, sources, strict=True):
      for i, example in enumerate(examples(source)):
        yield PAIR.join(texts(example, f"{where}: example {i} of {split}"))

  infos = [builder.info.splits[split] for split in splits]
  shards = [(x.name, x.shard_lengths, [os.path.getsize(f) for f in x.filepaths]) for x in infos]
  fingerprint = _fingerprint("tfds", 1, builder.info.full_name, *fields.values(), shards)
  return _rows_or_pieces(f"tfds:{argument}", fingerprint, documents, fields)


def _utf8(text: bytes, where: str, offset: int = 0) -> bytes:
  """Passes on a text that is valid UTF-8."""
  try:
    text.decode()
  except UnicodeDecodeError as error:
    at = f"byte {text[error.start]:#04x} at offset {offset + error.start:,}"
    raise DataError(f"{where}: invalid UTF-8, {at}; convert it to UTF-8") from error
  return text


SOURCES: dict[str, Callable[[str, ConfigDict], Corpus]] = {  # how `data.source` is written
  "python_stdlib": _python_stdlib,
  "text:PATH": _text,
  "tfds:NAME[/CONFIG][:VERSION]": _tfds,
  "markov": _markov,
}


# ---------------------------------------------------------------------------------- documents


def _rows_or_pieces(
  name: str, fingerprint: str, documents: Callable[[], Iterator[bytes]], fields: dict[str, str]
) -> Corpus:
  """Makes the corpus of pairs, or of text that is cut into pieces."""
  if len(fields) > 1:
    return Corpus(name, fingerprint, documents, pairs=True)
  return Corpus(name, fingerprint, lambda: _cut(documents))


def _cut(documents: Callable[[], Iterator[bytes]]) -> Iterator[bytes]:
  """Yields documents cut into pieces (see the top of this file)."""
  sizes = [len(document) for document in itertools.islice(documents(), PIECES)]
  limit = PIECE
  if len(sizes) < PIECES:
    limit = min(max(sum(sizes) // PIECES, SMALLEST_PIECE), PIECE)
  for document in documents():
    yield from pieces(document, limit)


def pieces(document: bytes, limit: int) -> Iterator[bytes]:
  """Cuts UTF-8 text after the last line end within `limit` bytes, else between two characters."""
  start = 0
  while len(document) - start > limit:
    end = document.rfind(b"\n", start, start + limit) + 1
    if not end:
      end = start + limit
      while document[end] & 0xC0 == 0x80:  # inside a character
        end -= 1
    yield document[start:end]
    start = end
  yield document[start:]


def examples(source: Any) -> Iterator[dict]:
  """Yields every example, read in groups (ten times faster than one by one)."""
  for first in range(0, len(source), GROUP):
    yield from source.__getitems__(range(first, min(first + GROUP, len(source))))
