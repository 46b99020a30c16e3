"""Text from models: continue a prompt, fill in masked tokens, fill in hidden spans.

`generate` is one compiled program: the prompts go through the model once, then a loop adds a token
per row from the cache. Temperature, top-k and top-p are arguments of that program, not constants.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from configs.errors import UsageError
from model.transformer import Source, Stack, Transformer

NO_STOP = -1  # a stop token that is never drawn


def filter_logits(
  logits_XV: Array, temperature: Array | float, top_k: Array | int, top_p: Any
) -> Array:
  """Sets to -inf the logits of tokens that are never drawn, and divides the rest.

  First the temperature (0: only the most probable token is left), then top-k (0: all), then top-p
  on what top-k has left, renormalised: the smallest set of most probable tokens whose probability
  reaches it stays (nucleus sampling, Holtzman et al. 2020, section 3.1). Of equal logits the
  smaller id counts as the more probable.
  """
  axis, V = logits_XV.ndim - 1, logits_XV.shape[-1]
  greedy = temperature == 0
  logits_XV = logits_XV / jnp.where(greedy, 1.0, temperature)
  top_k = jnp.where(greedy, 1, jnp.where(top_k == 0, V, top_k))
  order_XV = jnp.argsort(-logits_XV, axis=axis)
  index_XV = jax.lax.broadcasted_iota(jnp.int32, logits_XV.shape, axis)
  sorted_XV = jnp.take_along_axis(logits_XV, order_XV, axis=axis)
  p_XV = jax.nn.softmax(jnp.where(index_XV < top_k, sorted_XV, -jnp.inf), axis=axis)
  likelier_XV = jnp.roll(jnp.cumsum(p_XV, axis=axis), 1, axis=axis)  # probability before each
  inside_XV = (likelier_XV < top_p) | (top_p >= 1) | (index_XV == 0)
  count_X1 = jnp.sum(inside_XV & (index_XV < top_k), axis=axis, keepdims=True)
  rank_XV = jnp.argsort(order_XV, axis=axis)
  return jnp.where(rank_XV < count_X1, logits_XV, -jnp.inf)


def draw(logits_BV: Array, positions_B: Array, key: Array) -> Array:
  """Draws a token_B per row; the randomness is a function of (key, row, position) only."""

  def one(logits_V, row, position):
    row_key = jax.random.fold_in(jax.random.fold_in(key, row), position)
    return jax.random.categorical(row_key, logits_V)

  return jax.vmap(one)(logits_BV, jnp.arange(len(positions_B)), positions_B).astype(jnp.int32)


def generate(
  model: Transformer,
  prompts_BP: np.ndarray,
  lengths_B: Sequence[int] | np.ndarray,
  max_new_tokens: int,
  key: Array,
  *,
  context: int,
  temperature: float = 1.0,
  top_k: int = 0,
  top_p: float = 1.0,
  stop_token: int = NO_STOP,
  source: Source | None = None,
  bidirectional: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """Continues a batch of prompts, which are padded on the right with any ids.

  The model is a decoder, or an encoder-decoder with its `source`; `context` is T, the longest
  sequence that it was made for [tokens]. How a token is drawn: see `filter_logits`.
  With `bidirectional` the tokens of a prompt see all of it, as a prefix LM's do.

  Returns:
    the new tokens_BN, `stop_token` where the row has ended, and lengths_B without it.
  """
  prompts_BP, lengths_B = np.asarray(prompts_BP, np.int32), np.asarray(lengths_B, np.int32)
  check_options(max_new_tokens, temperature, top_k, top_p)
  B, P = prompts_BP.shape
  if lengths_B.shape != (B,) or lengths_B.min() < 1 or lengths_B.max() > P:
    raise UsageError(f"lengths={lengths_B.tolist()}: one of 1 to {P} for each of {B} prompts")
  check_tokens(model, prompts_BP[np.arange(P)[None] < lengths_B[:, None]])
  longest = int(lengths_B.max())
  check_length(model.decoder, longest, context, max_new_tokens)
  prompts_BP = prompts_BP[:, :longest]
  graphdef, params = nnx.split(model)
  options = np.float32(temperature), np.int32(top_k), np.float32(top_p)
  prompts, stop = (prompts_BP, lengths_B, source), np.int32(stop_token)
  tokens_BN = _generate(
    graphdef, params, prompts, key, options, stop, max_new_tokens, bidirectional
  )
  tokens_BN = np.asarray(tokens_BN)
  return tokens_BN, np.sum(tokens_BN != stop_token, axis=1)


@functools.partial(jax.jit, static_argnames=("graphdef", "max_new_tokens", "bidirectional"))
def _generate(graphdef, params, prompts, key, options, stop, max_new_tokens, bidirectional):
  model = nnx.merge(graphdef, params)
  prompts_BP, lengths_B, source = prompts
  B, P = prompts_BP.shape

  def choose(logits_BV, positions_B):
    return draw(filter_logits(logits_BV, *options), positions_B, key)

  # All prompts at once. What the padding leaves in the cache is overwritten before it is visible.
  state = model.start_decoding(B, P + max_new_tokens - 1, source)
  positions_BP = jnp.broadcast_to(jnp.arange(P)[None], (B, P))
  last_BP = jnp.maximum(positions_BP, lengths_B[:, None] - 1) if bidirectional else None
  logits_BPV, state = model.extend(prompts_BP, positions_BP, state, last_BP)
  last_B11 = (lengths_B - 1)[:, None, None]
  token_B = choose(jnp.take_along_axis(logits_BPV, last_B11, axis=1)[:, 0], lengths_B)
  tokens_BN = jnp.full((B, max_new_tokens), stop).at[:, 0].set(token_B)

  def unfinished(carry):
    n, tokens_BN, _ = carry
    return (n < max_new_tokens) & jnp.any(tokens_BN[:, n - 1] != stop)

  def add_token(carry):
    n, tokens_BN, state = carry
    token_B, position_B = tokens_BN[:, n - 1], lengths_B + n - 1
    logits_B1V, state = model.extend(token_B[:, None], position_B[:, None], state)
    next_B = jnp.where(token_B == stop, stop, choose(logits_B1V[:, 0], position_B + 1))
    return n + 1, tokens_BN.at[:, n].set(next_B), state

  return jax.lax.while_loop(unfinished, add_token, (1, tokens_BN, state))[1]


def check_options(max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
  """Raises UsageError where an option of sampling is out of range."""
  if max_new_tokens < 1:
    raise UsageError(f"max_new_tokens={max_new_tokens}: ask for at least one")
  if not 0 <= temperature < float("inf"):
    raise UsageError(f"temperature={temperature}: use 0 (greedy) or a positive number")
  if top_k < 0:
    raise UsageError(f"top_k={top_k}: use 0 (all tokens) or a positive number")
  if not 0 < top_p <= 1:
    raise UsageError(f"top_p={top_p}: a probability above 0 and up to 1 (all tokens)")


def check_length(stack: Stack | None, length: int, context: int, max_new_tokens: int = 0) -> None:
  """Raises UsageError where a prompt, and what is added to it, is longer than T, the context."""
  assert stack is not None
  if stack.positions is not None:
    context = min(context, stack.positions.table.shape[0])
  if length > context:
    raise UsageError(
      f"prompt: its {length} tokens are more than the model's context of {context}; shorten it"
    )
  room = context - length + 1  # the last token is not read again
  if max_new_tokens > room:
    raise UsageError(
      f"max_new_tokens={max_new_tokens}: after a prompt of {length} tokens the model's context of "
      f"{context} has room for {room}; ask for fewer or shorten the prompt"
    )


def check_tokens(model: Transformer, tokens: np.ndarray) -> None:
  """Raises UsageError where an id is not in the vocabulary (a lookup would take another's row)."""
  V = model.embedding.table.shape[0]
  if tokens.min(initial=0) < 0 or tokens.max(initial=0) >= V:
    bad = int(tokens.max()) if tokens.max() >= V else int(tokens.min())
    raise UsageError(f"prompt: token {bad} is not in the model's vocabulary of {V}")


# --------------------------------------------------------------------------------- masked tokens


class Blanks(NamedTuple):
  """The masked positions of a batch, in reading order, with their most probable tokens."""

  rows_X: np.ndarray
  positions_X: np.ndarray
  tokens_XK: np.ndarray  # the most probable first
  probs_XK: np.ndarray


def fill_mask(
  model: Transformer,
  tokens_BT: np.ndarray,
  mask_id: int,
  *,
  context: int,
  top: int = 5,
  segments_BT: np.ndarray | None = None,
) -> Blanks:
  """Finds the `top` most probable tokens of each mask, given all that is not masked.

  The mask is never an answer itself; `context` is as in `generate`, segment 0 is padding.
  """
  tokens_BT = np.asarray(tokens_BT, np.int32)
  check_tokens(model, tokens_BT)
  check_length(model.encoder, tokens_BT.shape[1], context)
  rows_X, positions_X = np.nonzero(tokens_BT == mask_id)
  if not len(rows_X):
    raise UsageError("prompt: has no mask to fill in")
  graphdef, params = nnx.split(model)
  probs_BTK, tokens_BTK = _most_probable(graphdef, params, tokens_BT, segments_BT, mask_id, top)
  at = rows_X, positions_X
  return Blanks(*at, np.asarray(tokens_BTK)[at], np.asarray(probs_BTK)[at])


@functools.partial(jax.jit, static_argnames=("graphdef", "top"))
def _most_probable(graphdef, params, tokens_BT, segments_BT, mask_id, top):
  logits_BTV = nnx.merge(graphdef, params)(tokens_BT, segments_BT).at[..., mask_id].set(-jnp.inf)
  return jax.lax.top_k(jax.nn.softmax(logits_BTV), min(top, logits_BTV.shape[-1]))


# --------------------------------------------------------------------------------- hidden spans


def parse_spans(tokens: Iterable[int], sentinels: Iterable[int], eos: int) -> dict[int, list[int]]:
  """Splits an output by its sentinels: `S0 z0 S1 z1 ... eos` as {S0: z0, S1: z1, ...}.

  Whatever stands before the first sentinel, or follows `eos`, belongs to none; a sentinel that is
  not mentioned hides nothing.
  """
  spans: dict[int, list[int]] = {sentinel: [] for sentinel in sentinels}
  span: list[int] = []
  for token in tokens:
    if token == eos:
      break
    if token in spans:
      span = spans[token]
    else:
      span.append(token)
  return spans


def splice(tokens: Iterable[int], spans: Mapping[int, Sequence[int]]) -> list[int]:
  """Replaces every sentinel of a text by its span."""
  return [t for token in tokens for t in spans.get(token, [token])]
