"""The documents of a corpus, split into train and validation, as a TFDS dataset.

A document is in `validation` when its SHA-256, and that of each of its near copies, is among the
lowest `data.validation_percent`: adding documents moves only their near copies, and a document with
many of these is training text. `data.validation_seed` chooses by another hash. Of a small corpus
the lowest 64 are held out, as long as that is at most twice the share. Exact duplicates are
dropped. TFDS orders documents by a hash of their key, here the content again.
"""

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from configs.errors import ConfigError
from train.data import duplicates, sources

# Given the sketch of each document, by digest (SHA-256), returns the digests of each split.
Split = Callable[[dict[bytes, np.ndarray]], dict[str, set[bytes]]]

HELD_OUT = 64  # documents that an evaluation should rest on, if it can


def hold_out(
  name: str, percent: float, sketches: dict[bytes, np.ndarray], seed: int = 0
) -> dict[str, set[bytes]]:
  """Splits a corpus into train and validation; `sketches` are its documents' by digest.

  `seed` 0 takes them in the order of their digests, another in that of hashes with the seed.
  """

  def rank(digest: bytes) -> bytes:
    return hashlib.sha256(b"%d" % seed + digest).digest() if seed else digest

  digests, n = sorted(sketches, key=rank), len(sketches)
  if n < 2:
    raise ConfigError(
      f"data.source={name!r}: too small; {n} different document(s) of at least "
      f"{sources.SMALLEST_PIECE:,} bytes, and training and validation need one each; add text"
    )
  group_X = duplicates.groups([sketches[digest] for digest in digests])
  if not group_X.any():
    print(f"{name}: all documents are near copies; they are held out one by one", file=sys.stderr)
    group_X = np.arange(n)
  highest_G = np.zeros(group_X.max() + 1, int)
  np.maximum.at(highest_G, group_X, np.arange(n))
  threshold = round(percent / 100 * 2**64)
  count = sum(int.from_bytes(rank(digests[i])[:8], "big") < threshold for i in highest_G)
  count = max(count, min(HELD_OUT, int(2 * percent / 100 * n)), 1)
  held_out_G = np.argsort(highest_G)[: min(count, len(highest_G) - 1)]
  held_out = {digests[i] for i in np.flatnonzero(np.isin(group_X, held_out_G))}
  return {"train": {*digests} - held_out, "validation": held_out}


def build(corpus: sources.Corpus, folder: Path, split: Split) -> None:
  """Writes a corpus as a TFDS dataset (array_record), split by the sketches of its documents."""

  def digests() -> Iterator[tuple[bytes, bytes]]:
    for document in corpus.documents():
      if document.strip():
        yield hashlib.sha256(document).digest(), document

  sketches: dict[bytes, np.ndarray] = {}
  for digest, document in sources.progress(digests(), f"reading {corpus.name}"):
    if digest not in sketches:
      sketches[digest] = duplicates.sketch(document)
  parts = split(sketches)

  def examples(split: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    missing = {*parts[split]}
    for digest, document in sources.progress(digests(), f"writing {split} documents"):
      if digest in missing:
        missing.remove(digest)
        yield digest.hex(), {"text": document}
    if missing:
      raise ConfigError(
        f"data.source={corpus.name!r}: changed while it was being read; start again"
      )

  _write({split: examples(split) for split in parts}, folder)


def _write(splits: dict[str, Iterator], folder: Path) -> None:
  import tensorflow_datasets as tfds

  class IsoflopCorpus(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Documents as bytes; the folder, not the version, tells one content from another."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # nothing to download, so no file of checksums beside the code

    def _info(self) -> tfds.core.DatasetInfo:
      features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
      info = tfds.core.DatasetInfo(builder=self, features=features)
      # It would look on the network for a prepared one, and leave a temporary folder behind.
      info.initialize_from_bucket = lambda: None  # type: ignore[method-assign]
      return info

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
      return splits

    def _generate_examples(self) -> Iterator:  # abstract there; the splits above hold all examples
      yield from ()

  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(None):  # TFDS announces the folder, which is a temporary one
    IsoflopCorpus(data_dir=folder, file_format="array_record").download_and_prepare()


def read(folder: Path, split: str) -> Iterator[bytes]:
  """Yields the documents of one split of what `build` has written."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(folder / "isoflop_corpus" / "1.0.0")
  return (example["text"] for example in sources.examples(builder.as_data_source(split)))
