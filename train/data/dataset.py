"""A corpus as tokens on disk.

A split is one stream of ids: `eos doc eos doc ... eos`, where a document that is a pair is `prompt
separator completion`; the separator is the first id after the tokenizer's. It is tokenised once
into a cache folder that is named by the content and every option it depends on, appears there
complete or not at all (written aside, listed with sizes and checksums, flushed, renamed), and is
verified when it is opened. What does not verify is prepared again.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs.errors import ConfigError
from train.data import duplicates, sources, splits
from train.data import tokenizer as tokenizers
from train.system import process

FORMAT = 2  # raise it when the same options would give other tokens
SIDECAR = "tokens.json"
OVERLAP = "overlap.json"  # share of the held-out text that stands in the training text
COPIED = 0.1  # share from which on that is worth a warning
DOCUMENTS = "documents"  # folder of a corpus, once for all tokenizers
MANIFEST = "complete.json"  # size and checksum of every other file in a folder; written last
SPLITS = ("train", "validation")
DOCUMENTS_PER_CALL = 64  # encoded together
BLOCK, BLOCKS = 4 << 20, 64  # a checksum covers at most 64 blocks of 4 MiB of a file


@dataclasses.dataclass(frozen=True, eq=False)
class TokenData:
  """A tokenised corpus."""

  source: str  # data.source
  fingerprint: str  # SHA-256 of the documents and of how they are split
  tokenizer: str  # data.tokenizer
  tokenizer_hash: str  # SHA-256 of all that decides the ids
  vocab_size: int  # V, with eos
  eos: int  # id of the document boundary
  token_bytes_V: np.ndarray  # bytes of text that each id stands for; 0 for eos
  train_tokens: np.ndarray  # the training stream (memory-mapped)
  validation_tokens: np.ndarray  # the validation stream (memory-mapped)
  train_documents: int
  validation_documents: int
  overlap: float  # share of the held-out text that stands in the training text, too
  floor: float | None  # least loss [nats per predicted token], where the source has a known one
  path: Path  # the cache folder; it also holds `tokenizer.json` of a BPE tokenizer
  pair_length: int  # what a document counts that is a pair (`data.seq_len`); 0: they are text

  @property
  def train_token_count(self) -> int:
    """Counts the tokens of an epoch: all but the first `eos`; of pairs, the rows that they fill."""
    return self.train_documents * self.pair_length or len(self.train_tokens) - 1

  @property
  def validation_token_count(self) -> int:
    """Counts the tokens of the validation stream likewise."""
    return self.validation_documents * self.pair_length or len(self.validation_tokens) - 1

  def copy_tokenizer(self, folder: Path) -> None:
    """Copies the tokenizer.json of a BPE into a folder."""
    file = self.path / tokenizers.FILE
    if file.is_file():
      shutil.copy(file, folder)


def prepare(config: ConfigDict) -> TokenData:
  """Opens the tokens of `config.data`, which are made first where the cache does not have them.

  Any number of processes may call this at once: one prepares, the others wait for it.
  """
  name = config.data.tokenizer
  tokenizers.size(name)  # refuses a wrong name before the source is read
  corpus = sources.open_source(config)
  check_tokenizer(name, corpus)
  seed = config.data.validation_seed
  options = [FORMAT, corpus.fingerprint, config.data.validation_percent, *([seed] if seed else [])]
  fingerprint = hashlib.sha256(json.dumps(options).encode()).hexdigest()
  kind = corpus.name.partition(":")[0]
  folder = process.cache_folder(config.data.cache).absolute() / f"{kind}-{fingerprint[:16]}"
  path = folder / tokenizers.folder_name(name)
  pair_length = config.data.seq_len if corpus.pairs else 0
  if (data := _open(path, corpus, fingerprint, pair_length)) is None:
    try:
      _prepare(path, corpus, fingerprint, config.data)
    except OSError as error:
      raise ConfigError(
        f"data.cache={str(folder.parent)!r}: cannot prepare the corpus there ({error}); "
        "set data.cache or ISOFLOP_CACHE to a writable folder with space"
      ) from error
    data = _open(path, corpus, fingerprint, pair_length)
  if data is None:
    raise ConfigError(f"data.cache: {path} does not read back as written; is the disk healthy?")
  return data


def check_tokenizer(name: str, corpus: sources.Corpus) -> None:
  """Raises ConfigError where a tokenizer is not one for a corpus."""
  if corpus.name == "markov" and name != "bytes":
    raise ConfigError(f"data.tokenizer={name!r}: {corpus.name} is not text; use 'bytes'")


def _prepare(path: Path, corpus: sources.Corpus, fingerprint: str, data: ConfigDict) -> None:
  """Writes the documents (once for all tokenizers) and their tokens, under a lock."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with lock(path.parent / "lock"):
    if _open(path, corpus, fingerprint, 0) is not None:
      return  # another process was faster
    documents = path.parent / DOCUMENTS
    if not intact(documents):
      with complete(documents) as partial:
        hold_out = functools.partial(
          splits.hold_out, corpus.name, data.validation_percent, seed=data.validation_seed
        )
        splits.build(corpus, partial, hold_out)
        overlap = measure_overlap(corpus.name, partial, partial)
        (partial / OVERLAP).write_text(json.dumps(overlap))
    with complete(path) as partial:
      training = splits.read(documents, "train")
      texts = (text for pair in training for text in pair.split(sources.PAIR))
      tokenizer = tokenizers.train(data.tokenizer, texts if corpus.pairs else training)
      tokenizer.save(partial)
      sidecar = {
        "source": corpus.name,
        "fingerprint": fingerprint,
        "tokenizer": data.tokenizer,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "eos": tokenizer.eos,
        "dtype": "uint16" if tokenizer.vocab_size + corpus.pairs <= 2**16 else "uint32",
        "token_bytes": tokenizer.token_bytes.tolist(),
        "overlap": json.loads((documents / OVERLAP).read_text()),
      }
      for split in SPLITS:
        text, stream = splits.read(documents, split), partial / f"{split}.bin"
        count = tokenise(text, tokenizer, sidecar["dtype"], stream, corpus.pairs)
        sidecar[f"{split}_documents"] = count
      (partial / SIDECAR).write_text(json.dumps(sidecar))


def measure_overlap(name: str, training: Path, held_out: Path) -> float:
  """Measures what share of a held-out split stands in a training split; warns where it is much."""
  texts = splits.read(training, "train"), splits.read(held_out, "validation")
  overlap = duplicates.overlap(*texts)
  if overlap > COPIED:
    print(
      f"{name}: {overlap:.0%} of the held-out text stands in the training text, word by word; "
      "its loss says less of new text",
      file=sys.stderr,
    )
  return overlap


def tokenise(
  documents: Iterator[bytes], tokenizer: tokenizers.Tokenizer, dtype: str, path: Path, pairs: bool
) -> int:
  """Writes one stream; returns its number of documents."""
  eos = np.array([tokenizer.eos], dtype)
  count = 0
  documents = sources.progress(documents, f"tokenising {path.stem}")
  with open(path, "wb") as file:
    file.write(eos.tobytes())
    while group := list(itertools.islice(documents, DOCUMENTS_PER_CALL)):
      count += len(group)
      for ids in _encode_pairs(tokenizer, group) if pairs else tokenizer.encode(group):
        file.write(ids.astype(dtype).tobytes() + eos.tobytes())
  return count


def _encode_pairs(tokenizer: tokenizers.Tokenizer, pairs: list[bytes]) -> Iterator[np.ndarray]:
  parts = zip(*(pair.split(sources.PAIR) for pair in pairs), strict=True)
  prompts, completions = (tokenizer.encode(texts) for texts in parts)
  for prompt, completion in zip(prompts, completions, strict=True):
    yield np.concatenate([prompt, [tokenizer.vocab_size], completion])


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
  """Holds an exclusive lock on a file; the kernel lets go of it if this process dies."""
  with open(path, "a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print("waiting for another process to prepare the corpus", file=sys.stderr, flush=True)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def complete(path: Path) -> Iterator[Path]:
  """Gives a folder to fill that takes the place of `path` only when it is complete and on disk."""
  partial = path.with_name(path.name + ".partial")
  if path.exists():
    print(f"{path} does not verify: preparing it again", file=sys.stderr, flush=True)
  for leftover in (partial, path):
    shutil.rmtree(leftover, ignore_errors=True)
  partial.mkdir()
  yield partial
  files = [file for file in partial.rglob("*") if file.is_file()]
  manifest = {str(file.relative_to(partial)): _checksum(file) for file in files}
  (partial / MANIFEST).write_text(json.dumps(manifest))
  for written in (*partial.rglob("*"), partial):
    _sync(written)
  partial.rename(path)
  _sync(path.parent)


def _sync(path: Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def intact(path: Path) -> bool:
  """Tells whether a folder is there with all its files as they were written."""
  try:
    manifest = json.loads((path / MANIFEST).read_text())
    return all(_checksum(path / name) == written for name, written in manifest.items())
  except (OSError, ValueError):
    return False


def _checksum(path: Path) -> list[int]:
  """Computes size and CRC-32 of a file; above 256 MiB, of 64 blocks spread evenly over it."""
  size, crc = path.stat().st_size, 0
  stride = max(BLOCK, (size - BLOCK) // (BLOCKS - 1))
  with open(path, "rb") as file:
    for offset in range(0, size, stride):
      file.seek(offset)
      crc = zlib.crc32(file.read(BLOCK), crc)
  return [size, crc]


def _open(
  path: Path, corpus: sources.Corpus, fingerprint: str, pair_length: int
) -> TokenData | None:
  """Opens the tokens in a cache folder; None where they are missing or do not verify."""
  if not intact(path):
    return None
  try:
    sidecar = json.loads((path / SIDECAR).read_text())
    dtype = sidecar.pop("dtype")
    streams = {f"{split}_tokens": np.memmap(path / f"{split}.bin", dtype, "r") for split in SPLITS}
  except FileNotFoundError:  # another process replaces it
    return None
  if sidecar["fingerprint"] != fingerprint:
    return None
  token_bytes_V = np.array(sidecar.pop("token_bytes"), np.int32)
  fields = sidecar | streams | {"source": corpus.name, "floor": corpus.floor}
  return TokenData(**fields, token_bytes_V=token_bytes_V, path=path, pair_length=pair_length)
