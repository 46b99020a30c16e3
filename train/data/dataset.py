"""Tokens on disk, and batches that are a pure function of (seed, step).

A split is one stream of ids: `eos doc eos doc ... eos`. It is tokenised once into a cache folder
that is named by the content and every option it depends on, appears there complete or not at all
(written aside, listed with sizes and checksums, flushed, renamed), and is verified when it is
opened. Whatever does not verify is prepared again.
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
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs.errors import ConfigError
from train.data import sources as corpora
from train.data import tokenizer as tokenizers
from train.objectives import corruption, registry
from train.objectives.registry import Batch
from train.system import process

FORMAT = 1  # raise it when the same options would give other tokens
SIDECAR = "tokens.json"
MANIFEST = "complete.json"  # size and checksum of every other file in a folder; written last
SPLITS = ("train", "validation")
DOCUMENTS_PER_CALL = 64  # encoded together
BLOCK, BLOCKS = 4 << 20, 64  # a checksum covers at most 64 blocks of 4 MiB of a file


@dataclasses.dataclass(frozen=True, eq=False)
class TokenData:
  """A tokenised corpus.

  Attributes:
    source: `data.source`.
    fingerprint: SHA-256 of the documents and of how they are split.
    tokenizer: `data.tokenizer`.
    tokenizer_hash: SHA-256 of all that decides the ids.
    vocab_size: V, with `eos`.
    eos: id of the document boundary.
    token_bytes_V: bytes of text that each id stands for; 0 for `eos`.
    train_tokens: the training stream (memory-mapped).
    validation_tokens: the validation stream (memory-mapped).
    train_documents: documents in the training split.
    validation_documents: documents in the validation split.
    floor: least loss of the objective [nats per predicted token], where the source has a known one.
    path: the cache folder; it also holds `tokenizer.json` of a BPE tokenizer.
  """

  source: str
  fingerprint: str
  tokenizer: str
  tokenizer_hash: str
  vocab_size: int
  eos: int
  token_bytes_V: np.ndarray  # noqa: N815
  train_tokens: np.ndarray
  validation_tokens: np.ndarray
  train_documents: int
  validation_documents: int
  floor: float | None
  path: Path

  @property
  def train_token_count(self) -> int:
    """Tokens that can be predicted in the training stream (all but its first `eos`)."""
    return len(self.train_tokens) - 1

  @property
  def validation_token_count(self) -> int:
    """Tokens that can be predicted in the validation stream."""
    return len(self.validation_tokens) - 1


# --------------------------------------------------------------------------------- preparation


def prepare(config: ConfigDict) -> TokenData:
  """Returns the tokens of `config.data`, from the cache or prepared now.

  Any number of processes may call this at once: one prepares, the others wait for it.

  Raises:
    ConfigError: the source, the tokenizer or the cache cannot be used.
  """
  name = config.data.tokenizer
  tokenizers.size(name)
  corpus = corpora.open_source(config)
  if corpus.name == "markov" and name != "bytes":
    raise ConfigError(f"data.tokenizer={name!r}: {corpus.name} is not text; use 'bytes'")
  options = (FORMAT, corpus.fingerprint, config.data.validation_percent)
  fingerprint = hashlib.sha256(json.dumps(options).encode()).hexdigest()
  kind = corpus.name.partition(":")[0]
  folder = process.cache_folder(config.data.cache).absolute() / f"{kind}-{fingerprint[:16]}"
  path = folder / name.replace(":", "-")
  if (data := _open(path, corpus, fingerprint, name)) is None:
    try:
      _prepare(path, corpus, fingerprint, name, config.data.validation_percent)
    except OSError as error:
      raise ConfigError(
        f"data.cache={str(folder.parent)!r}: cannot prepare the corpus there ({error}); "
        "set data.cache or ISOFLOP_CACHE to a writable folder with space"
      ) from error
    data = _open(path, corpus, fingerprint, name)
  if data is None:
    raise ConfigError(f"data.cache: {path} does not read back as written; is the disk healthy?")
  return data


def _prepare(
  path: Path, corpus: corpora.Corpus, fingerprint: str, name: str, validation_percent: float
) -> None:
  """Writes the documents (once for all tokenizers) and their tokens, under a lock."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with _lock(path.parent / "lock"):
    if _open(path, corpus, fingerprint, name) is not None:
      return  # another process was faster
    documents = path.parent / "documents"
    if not _intact(documents):
      with _complete(documents) as partial:
        corpora.build(corpus, partial, validation_percent)
    with _complete(path) as partial:
      tokenizer = tokenizers.train(name, corpora.read(documents, "train"))
      tokenizer.save(partial)
      sidecar = {
        "source": corpus.name,
        "fingerprint": fingerprint,
        "tokenizer": name,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "eos": tokenizer.eos,
        "dtype": "uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
        "token_bytes": tokenizer.token_bytes.tolist(),
      }
      for split in SPLITS:
        file, dtype = partial / f"{split}.bin", sidecar["dtype"]
        count = _tokenise(corpora.read(documents, split), tokenizer, dtype, file)
        sidecar[f"{split}_documents"] = count
      (partial / SIDECAR).write_text(json.dumps(sidecar))


def _tokenise(
  documents: Iterator[bytes], tokenizer: tokenizers.Tokenizer, dtype: str, path: Path
) -> int:
  """Writes one stream; returns its number of documents."""
  eos = np.array([tokenizer.eos], dtype)
  count = 0
  documents = corpora.progress(documents, f"tokenising {path.stem}")
  with open(path, "wb") as file:
    file.write(eos.tobytes())
    while group := list(itertools.islice(documents, DOCUMENTS_PER_CALL)):
      count += len(group)
      for ids in tokenizer.encode(group):
        if len(ids) and int(ids.max()) >= tokenizer.eos:
          raise ConfigError(
            f"data.tokenizer={tokenizer.name!r}: id {ids.max()}, text has 0 to {tokenizer.eos - 1}"
          )
        file.write(ids.astype(dtype).tobytes())
        file.write(eos.tobytes())
  return count


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
  """Holds an exclusive lock on a file; the kernel lets go of it if this process dies."""
  with open(path, "a") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print("waiting for another process to prepare the corpus", file=sys.stderr, flush=True)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def _complete(path: Path) -> Iterator[Path]:
  """Gives a folder to fill that takes the place of `path` only when it is complete and on disk."""
  partial = path.with_name(path.name + ".partial")
  if path.exists():
    print(f"{path} does not verify: preparing it again", file=sys.stderr, flush=True)
  for left in (partial, path):  # what a killed process left, and what did not verify
    shutil.rmtree(left, ignore_errors=True)
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


def _intact(path: Path) -> bool:
  """Returns whether a folder is there with all its files as they were written."""
  try:
    manifest = json.loads((path / MANIFEST).read_text())
    return all(_checksum(path / name) == written for name, written in manifest.items())
  except (OSError, ValueError):
    return False


def _checksum(path: Path) -> list[int]:
  """Returns size and CRC-32 of a file; above 256 MiB, of 64 blocks spread evenly over it."""
  size, crc = path.stat().st_size, 0
  stride = max(BLOCK, (size - BLOCK) // (BLOCKS - 1))
  with open(path, "rb") as file:
    for offset in range(0, size, stride):
      file.seek(offset)
      crc = zlib.crc32(file.read(BLOCK), crc)
  return [size, crc]


def _open(path: Path, corpus: corpora.Corpus, fingerprint: str, tokenizer: str) -> TokenData | None:
  """Returns the tokens in a cache folder, or None when they are not there or do not verify."""
  if not _intact(path):
    return None
  try:
    sidecar = json.loads((path / SIDECAR).read_text())
    streams = {split: np.memmap(path / f"{split}.bin", sidecar["dtype"], "r") for split in SPLITS}
  except FileNotFoundError:  # another process replaces it
    return None
  if sidecar["fingerprint"] != fingerprint:
    return None
  return TokenData(
    source=corpus.name,
    fingerprint=fingerprint,
    tokenizer=tokenizer,
    tokenizer_hash=sidecar["tokenizer_hash"],
    vocab_size=sidecar["vocab_size"],
    eos=sidecar["eos"],
    token_bytes_V=np.array(sidecar["token_bytes"], np.int32),
    train_tokens=streams["train"],
    validation_tokens=streams["validation"],
    train_documents=sidecar["train_documents"],
    validation_documents=sidecar["validation_documents"],
    floor=corpus.floor,
    path=path,
  )


# ------------------------------------------------------------------------------------- batches


def check(config: ConfigDict, data: TokenData) -> None:
  """Refuses a run that its data cannot feed.

  Raises:
    ConfigError: a sequence is longer than the training split, nothing is left to evaluate, or D
      repeats the data more than `data.max_epochs` times.
  """
  text, count = registry.lengths(config).text, data.train_token_count
  if not 0 < text <= count:
    raise ConfigError(
      f"data.seq_len={config.data.seq_len:,}: must be 1 to {count:,}, the training tokens of "
      f"{data.source}"
    )
  eval_token_count(data, config)
  epochs = config.train.tokens / count
  if epochs > config.data.max_epochs:
    raise ConfigError(
      f"train.tokens={config.train.tokens:,}: {epochs:.1f} epochs of the {count:,} training tokens "
      f"of {data.source}, more than data.max_epochs={config.data.max_epochs:g}; "
      "train on fewer tokens or add text"
    )


def train_batches(
  data: TokenData,
  config: ConfigDict,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> Generator[Batch, None, None]:
  """Yields the batch of each step from `start_step` on, for ever.

  The stream is cut into windows, one for each sequence, which are shuffled anew in each epoch. The
  batch of a step depends on (seed, step) only; process i of n gets its rows [i B/n, (i+1) B/n).

  Yields:
    what the objective makes of the windows: see `train.objectives.registry`.

  Raises:
    ConfigError: n does not divide B.
  """
  batch_size = config.data.batch_size
  rows = _rows("data.batch_size", batch_size, process_index, process_count)
  stream, count = np.asarray(data.train_tokens), data.train_token_count
  text = registry.lengths(config).text
  windows = count // text

  @functools.lru_cache(maxsize=1)
  def order(epoch: int) -> np.ndarray:  # of the windows, 8 bytes each
    return np.argsort(corruption.uniform(config.seed, 2 + epoch, 0, 1, windows)[0], kind="stable")

  def batch(step: int) -> Batch:
    first, last = step * batch_size + rows.start, step * batch_size + rows.stop
    epochs_B, index_B = np.divmod(np.arange(first, last), windows)
    epochs = range(epochs_B[0], epochs_B[-1] + 1)
    windows_B = np.concatenate([order(epoch)[index_B[epochs_B == epoch]] for epoch in epochs])
    chance = (config.seed, 0, first)
    return _batch(stream, windows_B, text, config, data.vocab_size, count, chance)

  return (batch(step) for step in itertools.count(start_step))


def validation_batches(
  data: TokenData, config: ConfigDict, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
  """Yields the validation set: the first tokens of the validation stream, always in this order.

  There are `eval_token_count` tokens of text, whatever the batch and the sequence length; what
  fills up the last batch has weight 0. What is hidden of them is the same for every seed.
  """
  size = config.train.eval_batch_size
  rows = _rows("train.eval_batch_size", size, process_index, process_count)
  stream, count = np.asarray(data.validation_tokens), eval_token_count(data, config)
  text = registry.lengths(config).text
  for first in range(0, -(-count // text), size):
    windows_B = np.arange(first, first + size)[rows]
    chance = (0, 1, first + rows.start)
    yield _batch(stream, windows_B, text, config, data.vocab_size, count, chance)


def eval_token_count(data: TokenData, config: ConfigDict) -> int:
  """Returns the tokens of text that are evaluated: `train.eval_tokens`, or all if there are fewer.

  An objective that cuts its text across documents evaluates whole windows.

  Raises:
    ConfigError: `train.eval_tokens` is not enough for a window.
  """
  count = min(config.train.eval_tokens, data.validation_token_count)
  lengths = registry.lengths(config)
  if lengths.source and count < lengths.text:
    raise ConfigError(
      f"train.eval_tokens={config.train.eval_tokens}: of {data.validation_token_count:,} there "
      f"are, and objective={config.objective!r} evaluates whole sequences of {lengths.text:,}; "
      "allow more, hold out more, or shorten data.seq_len"
    )
  return count - count % lengths.text if lengths.source else count


def _rows(field: str, batch_size: int, process_index: int, process_count: int) -> slice:
  """Returns this process's contiguous share of a batch."""
  if batch_size < 1 or batch_size % process_count:
    raise ConfigError(f"{field}={batch_size}: must be a positive multiple of {process_count} hosts")
  share = batch_size // process_count
  return slice(process_index * share, (process_index + 1) * share)


def _batch(
  stream: np.ndarray,
  windows_B: np.ndarray,
  text: int,
  config: ConfigDict,
  vocab_size: int,
  count: int,
  chance: tuple[int, int, int],
) -> Batch:
  """Returns what the objective makes of windows of a stream's first `count` tokens.

  Args:
    stream: ids.
    windows_B: number of each window.
    text: tokens of a window.
    config: the run's.
    vocab_size: V of the tokenizer.
    count: see above; one more token of the stream is the last target.
    chance: seed, split and number of the first sequence, for `corruption.uniform`.
  """
  objective = registry.get(config.objective)
  index_BT = windows_B[:, None] * text + np.arange(text + 1)
  text_BT = stream[np.minimum(index_BT, count)].astype(np.int32)
  uniform_BU = corruption.uniform(*chance, len(windows_B), objective.draws(text))
  return objective.batch(text_BT, index_BT[:, 1:] <= count, uniform_BU, config, vocab_size)
