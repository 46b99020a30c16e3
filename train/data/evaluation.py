"""The text of a further validation set: a source of its own, in the tokens of the run.

A set is the whole of its source but for documents that are also in the training split, exactly; so
nothing is left of a training text but its validation split, and that in the same order.
"""

import hashlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs.errors import DataError
from train.data import dataset, sources, splits
from train.data import tokenizer as tokenizers
from train.data.dataset import TokenData

STREAM = "validation.bin"


def open_set(config: ConfigDict, tokens: TokenData, source: str) -> TokenData:
  """Opens a source as the validation stream of a run's corpus; tokenises it first, once."""
  config = config.copy_and_resolve_references()
  config.data.source = source
  corpus = sources.open_source(config)
  dataset.check_tokenizer(config.data.tokenizer, corpus)
  decides = (dataset.FORMAT, corpus.fingerprint, tokens.fingerprint, tokens.tokenizer_hash)
  fingerprint = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
  path = tokens.path.with_name(f"{tokens.path.name}-{fingerprint[:16]}")
  if not dataset.intact(path):
    with dataset.lock(path.parent / "lock"):
      if not dataset.intact(path):
        _prepare(path, corpus, tokens)
  stream = np.memmap(path / STREAM, tokens.validation_tokens.dtype, "r")
  return replace(
    tokens,
    source=corpus.name,
    fingerprint=fingerprint,
    validation_tokens=stream,
    **json.loads((path / dataset.SIDECAR).read_text()),
    floor=corpus.floor,
  )


def _prepare(path: Path, corpus: sources.Corpus, tokens: TokenData) -> None:
  """Writes the stream of a set into its folder of the cache."""
  training = tokens.path.parent / dataset.DOCUMENTS
  trained = {hashlib.sha256(document).digest() for document in splits.read(training, "train")}

  def split(sketches: dict[bytes, np.ndarray]) -> dict[str, set[bytes]]:
    new = {*sketches} - trained
    if not new:
      raise DataError(f"all of its {len(sketches)} document(s) are in the training text")
    if len(new) < len(sketches):
      left_out = f"{len(sketches) - len(new):,} of {len(sketches):,} documents"
      print(f"{corpus.name}: {left_out} are in the training text, left out", file=sys.stderr)
    return {"validation": new}

  with dataset.complete(path) as partial:
    splits.build(corpus, partial / dataset.DOCUMENTS, split)
    documents = splits.read(partial / dataset.DOCUMENTS, "validation")
    tokenizer = tokenizers.load(tokens.tokenizer, tokens.path)
    dtype = tokens.validation_tokens.dtype.name
    count = dataset.tokenise(documents, tokenizer, dtype, partial / STREAM, corpus.pairs)
    overlap = dataset.measure_overlap(corpus.name, training, partial / dataset.DOCUMENTS)
    sidecar = {"validation_documents": count, "overlap": overlap}
    (partial / dataset.SIDECAR).write_text(json.dumps(sidecar))
    shutil.rmtree(partial / dataset.DOCUMENTS)  # the tokens are all that is read again
