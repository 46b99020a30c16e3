"""Documents, and a converted model's logits of them: alone, padded and packed.

The tests against torch and those against its golden logits ask the same questions with it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from model import transformer

LENGTHS = (19, 1, 8)  # of the documents
SOURCE_LENGTHS = (6, 21, 1)  # of what an encoder-decoder's encoder reads
WAYS = ("ragged", "padded", "packed")


class Document(NamedTuple):
  """One document; `source` is for encoder-decoders, `types` for models with token types."""

  tokens: np.ndarray
  source: np.ndarray
  types: np.ndarray


def documents(vocab_size):
  """Returns documents of different lengths."""
  rng = np.random.default_rng(0)
  return [
    Document(
      tokens=rng.integers(vocab_size, size=length),
      source=rng.integers(vocab_size, size=source_length),
      types=rng.integers(2, size=length),
    )
    for length, source_length in zip(LENGTHS, SOURCE_LENGTHS, strict=True)
  ]


def model(imported):
  """Returns (graphdef, params) of the converted model."""
  c, seq_len = imported.model_config, imported.seq_len
  source_len = seq_len if c.family == "encoder_decoder" else 0
  build = functools.partial(transformer.Transformer, c, imported.vocab_size, seq_len)
  graphdef, params = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0), source_len)))
  by_path = {tuple(path.split("/")): jnp.asarray(w) for path, w in imported.params.items()}
  nnx.replace_by_pure_dict(params, nnx.traversals.unflatten_mapping(by_path))
  return graphdef, params


def logits(imported, batch, way):
  """Returns the logits of each document, asked for in one of the WAYS."""
  graphdef, params = model(imported)
  both = imported.model_config.family == "encoder_decoder"
  typed = imported.model_config.token_types > 0

  @jax.jit
  def apply(params, tokens, types, source):
    extra = {"source": transformer.Source(*source)} if both else {}
    if typed:
      extra["token_types_BT"] = types
    return nnx.merge(graphdef, params)(*tokens, **extra)

  tokens, sources, types = ([getattr(d, k) for d in batch] for k in ("tokens", "source", "types"))
  layout = {"ragged": _alone, "padded": _padded, "packed": _packed}[way]
  rows = [
    np.asarray(apply(params, *arguments))
    for arguments in zip(
      layout(tokens), [t[0] for t in layout(types)], layout(sources), strict=True
    )
  ]
  ends = np.cumsum([len(d.tokens) for d in batch])
  if way == "ragged":
    return [row[0] for row in rows]
  if way == "padded":
    return [row[: len(d.tokens)] for row, d in zip(rows[0], batch, strict=True)]
  return np.split(rows[0][0, : ends[-1]], ends[:-1])


def pad(rows):
  """(values, mask): rows of different lengths, right-padded with 0 to the longest."""
  width = max(map(len, rows))
  values = np.array([np.pad(row, (0, width - len(row))) for row in rows])
  return values, np.array([np.arange(width) < len(row) for row in rows], int)


def _alone(rows):
  return [(row[None],) for row in rows]


def _padded(rows):
  return [pad(rows)]


def _packed(rows):
  """One row of all, with segments from 1 on, their positions, and three tokens of padding."""
  segments = [np.full(len(row), i) for i, row in enumerate(rows, 1)]
  positions = [np.arange(len(row)) for row in rows]
  gap = [np.zeros(3, int)]
  return [tuple(np.concatenate(part + gap)[None] for part in (rows, segments, positions))]


def difference(ours, theirs):
  """Returns the largest difference, relative to the largest logit."""
  ours, theirs = np.concatenate(ours), np.concatenate(theirs)
  return np.abs(ours - theirs).max() / np.abs(theirs).max()
