"""Text from a restored run: a prompt continued, or its blanks filled in."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from configs.errors import UsageError
from model import sampling
from model.transformer import Source
from train import restore
from train.restore import Restored

NEW_TOKENS = 64  # unless something else is asked for, or the context is shorter
CANDIDATES = 5  # for each [MASK]
BLANK = re.compile(r"<(\d+)>")


class Options(NamedTuple):
  """How to draw: see `model.sampling.generate`."""

  temperature: float
  top_k: int
  top_p: float
  max_new_tokens: int  # 0: NEW_TOKENS, or as many as the context has room for
  seed: int
  samples: int  # drawn for each prompt


def check(prompts: Sequence[str], options: Options) -> None:
  """Raises UsageError where these cannot be used with any model."""
  if not prompts:
    raise UsageError("--prompt is missing; write one, --prompt='Once upon'")
  if options.samples < 1:
    raise UsageError(f"num_samples={options.samples}: ask for at least one")
  sampling.check_options(
    options.max_new_tokens or NEW_TOKENS, options.temperature, options.top_k, options.top_p
  )


def texts(run: Restored, prompts: Sequence[str], options: Options) -> list[str]:
  """Returns a text for each prompt and sample, of whatever kind the model makes.

  Raises:
    UsageError: a prompt is too long, or lacks the blanks that the model would fill.
  """
  check(prompts, options)
  if run.tokenizer is None:
    raise UsageError("checkpoint: the run came without a tokenizer.json; put it in its folder")
  verbs = {"decoder": _continued, "encoder": _unmasked, "encoder_decoder": _filled}
  return verbs[run.config.model.family](run, run.tokenizer, prompts, options)


def _continued(
  run: Restored, tokenizer: Tokenizer, prompts: Sequence[str], options: Options
) -> list[str]:
  start = [] if run.start is None else [run.start]
  rows = [tokenizer.encode(prompt).ids or start for prompt in prompts]
  if not all(rows):
    raise UsageError("prompt: is empty, and this model has no id to start from; write some text")
  new = _generate(run, rows, options)
  rows = _repeated(rows, options.samples)
  return [tokenizer.decode(row + more) for row, more in zip(rows, new, strict=True)]


def _unmasked(
  run: Restored, tokenizer: Tokenizer, prompts: Sequence[str], options: Options
) -> list[str]:
  """Returns each text with its most probable filling, and a line of candidates per blank."""
  mask = _id(tokenizer, restore.MASK)
  rows = [tokenizer.encode(prompt).ids for prompt in prompts]
  _need_blanks(prompts, lambda i: mask in rows[i], restore.MASK)
  tokens_BT, real_BT = _padded(rows)
  blanks = sampling.fill_mask(
    run.model,
    tokens_BT,
    mask,
    context=run.context,
    top=options.top_k or CANDIDATES,
    segments_BT=real_BT.astype(np.int32),
  )
  tokens_BT[blanks.rows_X, blanks.positions_X] = blanks.tokens_XK[:, 0]
  result = []
  for i, row in enumerate(rows):
    lines = [tokenizer.decode(tokens_BT[i, : len(row)].tolist())]
    for x in np.flatnonzero(blanks.rows_X == i):
      candidates = zip(blanks.tokens_XK[x].tolist(), blanks.probs_XK[x].tolist(), strict=True)
      named = (
        f"{tokenizer.decode([t]) or tokenizer.id_to_token(t)!r} {p:.3f}" for t, p in candidates
      )
      lines.append(f"  blank {len(lines)}: " + ", ".join(named))
    result.append("\n".join(lines))
  return result


def _filled(
  run: Restored, tokenizer: Tokenizer, prompts: Sequence[str], options: Options
) -> list[str]:
  rows = []
  _need_blanks(prompts, lambda i: BLANK.search(prompts[i]) is not None, "<0>, <1>, ...")
  for prompt in prompts:
    numbers = [int(number) for number in BLANK.findall(prompt)]
    if numbers != list(range(len(numbers))):
      raise UsageError(f"prompt {prompt!r}: its blanks are {numbers}; number them 0, 1, 2, ...")
    row = tokenizer.encode(BLANK.sub(lambda match: restore.sentinel(int(match[1])), prompt)).ids
    rows.append(_mode(run, tokenizer, prompt) + row)
    if len(rows[-1]) > run.source_context:
      raise UsageError(
        f"prompt: its {len(rows[-1])} tokens are more than the encoder's {run.source_context}; "
        "shorten it"
      )
  source_BS, real_BS = _padded(_repeated(rows, options.samples))
  source = Source(jnp.asarray(source_BS), jnp.asarray(real_BS, jnp.int32))
  if run.start is None:
    raise UsageError("checkpoint: its config names no id for the decoder to start from")
  new = _generate(run, [[run.start]] * len(prompts), options, source)
  ids = (tokenizer.token_to_id(restore.sentinel(i)) for i in range(run.vocab_size))
  sentinels = [token for token in ids if token is not None]
  spans = (sampling.parse_spans(tokens, sentinels, sampling.NO_STOP) for tokens in new)
  rows = _repeated(rows, options.samples)
  return [
    tokenizer.decode(sampling.splice(row, span)) for row, span in zip(rows, spans, strict=True)
  ]


def _mode(run: Restored, tokenizer: Tokenizer, prompt: str) -> list[int]:
  """Returns the mode of ul2 that a prompt is for: S continues a text, R fills holes in it."""
  if run.config.objective != "ul2":
    return []
  denoisers = run.config.corruption.denoisers
  wanted = "s" if BLANK.split(prompt)[2:] in ([""], ["\n"]) else "r"
  return [_id(tokenizer, restore.mode(wanted if wanted in denoisers else denoisers[0]))]


def _generate(
  run: Restored, rows: list[list[int]], options: Options, source: Source | None = None
) -> list[list[int]]:
  """Returns the new tokens of each sample of each row."""
  lengths = [len(row) for row in rows]
  room = max(1, run.context - max(lengths) + 1)
  stop = sampling.NO_STOP if run.stop is None else run.stop
  prompts_BP, _ = _padded(_repeated(rows, options.samples))
  tokens_BN, counts_B = sampling.generate(
    run.model,
    prompts_BP,
    np.repeat(lengths, options.samples),
    options.max_new_tokens or min(NEW_TOKENS, room),
    jax.random.key(options.seed),
    context=run.context,
    temperature=options.temperature,
    top_k=options.top_k,
    top_p=options.top_p,
    stop_token=stop,
    source=source,
  )
  return [tokens_BN[i, :count].tolist() for i, count in enumerate(counts_B)]


def _id(tokenizer: Tokenizer, token: str) -> int:
  found = tokenizer.token_to_id(token)
  if found is None:
    raise UsageError(f"checkpoint: its tokenizer.json has no {token}")
  return found


def _repeated(rows: list[list[int]], samples: int) -> list[list[int]]:
  return [row for row in rows for _ in range(samples)]


def _padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
  """Returns tokens_BT, filled up with 0 on the right, and where they are real."""
  real_BT = np.arange(max(map(len, rows)))[None] < np.array([len(row) for row in rows])[:, None]
  tokens_BT = np.zeros(real_BT.shape, np.int32)
  tokens_BT[real_BT] = np.concatenate([np.array(row, np.int32) for row in rows])
  return tokens_BT, real_BT


def _need_blanks(prompts: Sequence[str], has: Callable[[int], bool], blank: str) -> None:
  for i, prompt in enumerate(prompts):
    if not has(i):
      raise UsageError(f"prompt {prompt!r}: has no blank; this model fills in {blank}")
