"""Prints text from a trained model: what follows a prompt, or what fills its blanks.

  isoflop sample --checkpoint=runs/one --prompt="Once upon"

clm, prefix: continues the prompt (a prefix LM reads it causally, too).
completion: completes the prompt, read as it was in training.
mlm: a blank is written [MASK] and is one token; prints the text with the most probable tokens,
  and --top_k candidates for each blank (0: 5) with their probabilities.
span, ul2: blanks are written <0>, <1>, ... in order; prints the text with them filled in.

Several texts (more than one --prompt, or --num_samples) are each preceded by a line "=== 1".
"""

import re
from typing import TYPE_CHECKING

from absl import flags

from configs.bounds import at_least_1, seed
from configs.errors import UsageError
from scaling.arguments import CHECKPOINT, Flag, restored_run

if TYPE_CHECKING:
  import numpy as np
  from tokenizers import Tokenizer

  from model.transformer import Source
  from train.restore import Restored

FLAGS: tuple[Flag, ...] = (
  CHECKPOINT,
  ("prompt", [], "Text to continue or fill in; may be given several times."),
  ("num_samples", at_least_1(1), "Texts for each prompt."),
  ("temperature", 0.8, "Logits are divided by it; 0: always the most probable token."),
  ("top_k", 0, "Draws from so many most probable tokens; 0: all."),
  ("top_p", 0.95, "Draws from the smallest set of tokens with this probability; 1: all."),
  ("max_new_tokens", 0, "Tokens to add at most; 0: 64, or what the context has room for."),
  ("seed", seed(0), "Of the draws."),
)
NEW_TOKENS = 64  # of --max_new_tokens=0, where the context has room for them
CANDIDATES = 5  # for each [MASK]
BLANK = re.compile(r"<(\d+)>")


def run(args: flags.FlagValues) -> None:
  from model import sampling

  if not args.prompt:
    raise UsageError("--prompt is missing; write one, --prompt='Once upon'")
  max_new_tokens = args.max_new_tokens or NEW_TOKENS
  sampling.check_options(max_new_tokens, args.temperature, args.top_k, args.top_p)
  run = restored_run(args)
  if run.tokenizer is None:
    raise UsageError("checkpoint: the run came without a tokenizer.json; put it in its folder")
  make = {"decoder": continue_texts, "encoder": fill_masks, "encoder_decoder": fill_spans}
  texts = make[run.config.model.family](run, run.tokenizer, args)
  for i, text in enumerate(texts, start=1):
    print(text if len(texts) == 1 else f"=== {i}\n{text}")


def continue_texts(run: "Restored", tokenizer: "Tokenizer", args: flags.FlagValues) -> list[str]:
  """Continues each prompt with a decoder, --num_samples times."""
  start = [] if run.start is None else [run.start]
  rows = [tokenizer.encode(prompt).ids or start for prompt in args.prompt]
  if not all(rows):
    raise UsageError("prompt: is empty, and this model has no id to start from; write some text")
  rows = [row for row in rows for _ in range(args.num_samples)]
  new = draw_tokens(run, rows, args)
  return [tokenizer.decode(row + more) for row, more in zip(rows, new, strict=True)]


def fill_masks(run: "Restored", tokenizer: "Tokenizer", args: flags.FlagValues) -> list[str]:
  """Fills each prompt's [MASK]s with an encoder; a line of candidates per blank follows."""
  import numpy as np

  from model import sampling
  from train.objectives import registry

  mask = token_id(tokenizer, registry.MASK)
  rows = [tokenizer.encode(prompt).ids for prompt in args.prompt]
  for prompt, row in zip(args.prompt, rows, strict=True):
    if mask not in row:
      raise UsageError(f"prompt {prompt!r}: has no blank; this model fills in {registry.MASK}")
  tokens_BT, real_BT = pad(rows)
  segments_BT, top = real_BT.astype(np.int32), args.top_k or CANDIDATES
  blanks = sampling.fill_mask(
    run.model, tokens_BT, mask, context=run.context, top=top, segments_BT=segments_BT
  )
  tokens_BT[blanks.rows_X, blanks.positions_X] = blanks.tokens_XK[:, 0]
  texts = []
  for i, row in enumerate(rows):
    lines = [tokenizer.decode(tokens_BT[i, : len(row)].tolist())]
    for x in np.flatnonzero(blanks.rows_X == i):
      candidates = zip(blanks.tokens_XK[x].tolist(), blanks.probs_XK[x].tolist(), strict=True)
      named = [
        f"{tokenizer.decode([t]) or tokenizer.id_to_token(t)!r} {p:.3f}" for t, p in candidates
      ]
      lines.append(f"  blank {len(lines)}: {', '.join(named)}")
    texts.append("\n".join(lines))
  return texts


def fill_spans(run: "Restored", tokenizer: "Tokenizer", args: flags.FlagValues) -> list[str]:
  """Fills each prompt's <0>, <1>, ... with an encoder-decoder, --num_samples times."""
  import jax.numpy as jnp

  from model import sampling
  from model.transformer import Source
  from train.objectives.spans import sentinel

  rows = []
  for prompt in args.prompt:
    if not (numbers := [int(number) for number in BLANK.findall(prompt)]):
      raise UsageError(f"prompt {prompt!r}: has no blank; this model fills in <0>, <1>, ...")
    if numbers != list(range(len(numbers))):
      raise UsageError(f"prompt {prompt!r}: its blanks are {numbers}; number them 0, 1, 2, ...")
    row = tokenizer.encode(BLANK.sub(lambda match: sentinel(int(match[1])), prompt)).ids
    rows.append(denoiser_mode(run, tokenizer, prompt) + row)
    if len(rows[-1]) > run.source_context:
      raise UsageError(
        f"prompt: its {len(rows[-1])} tokens are more than the encoder's {run.source_context}; "
        "shorten it"
      )
  if run.start is None:
    raise UsageError("checkpoint: its config names no id for the decoder to start from")
  rows = [row for row in rows for _ in range(args.num_samples)]
  source_BS, real_BS = pad(rows)
  source = Source(jnp.asarray(source_BS), jnp.asarray(real_BS, jnp.int32))
  new = draw_tokens(run, [[run.start]] * len(rows), args, source)
  ids = (tokenizer.token_to_id(sentinel(i)) for i in range(run.vocab_size))
  sentinels = [token for token in ids if token is not None]
  spans = (sampling.parse_spans(tokens, sentinels, sampling.NO_STOP) for tokens in new)
  return [
    tokenizer.decode(sampling.splice(row, span)) for row, span in zip(rows, spans, strict=True)
  ]


def denoiser_mode(run: "Restored", tokenizer: "Tokenizer", prompt: str) -> list[int]:
  """Returns the mode that a prompt is for, if there are any: S continues, R fills holes (UL2)."""
  from train.objectives import registry
  from train.objectives.spans import mode

  specials = registry.specials(run.config)
  modes = [name for name in map(mode, run.config.corruption.denoisers) if name in specials]
  if not modes:
    return []
  wanted = mode("s" if BLANK.split(prompt)[2:] in ([""], ["\n"]) else "r")
  return [token_id(tokenizer, wanted if wanted in modes else modes[0])]


def draw_tokens(
  run: "Restored", rows: list[list[int]], args: flags.FlagValues, source: "Source | None" = None
) -> list[list[int]]:
  """Draws the new tokens of each row."""
  import jax

  from model import sampling

  lengths = [len(row) for row in rows]
  room = max(1, run.context - max(lengths) + 1)
  tokens_BN, counts_B = sampling.generate(
    run.model,
    pad(rows)[0],
    lengths,
    args.max_new_tokens or min(NEW_TOKENS, room),
    jax.random.key(args.seed),
    context=run.context,
    temperature=args.temperature,
    top_k=args.top_k,
    top_p=args.top_p,
    stop_token=sampling.NO_STOP if run.stop is None else run.stop,
    source=source,
    bidirectional=run.config.data.bidirectional_prompt,
  )
  return [tokens_BN[i, :count].tolist() for i, count in enumerate(counts_B)]


def token_id(tokenizer: "Tokenizer", token: str) -> int:
  """Returns the id of a special token."""
  if (index := tokenizer.token_to_id(token)) is None:
    raise UsageError(f"checkpoint: its tokenizer.json has no {token}")
  return index


def pad(rows: list[list[int]]) -> "tuple[np.ndarray, np.ndarray]":
  """Returns tokens_BT, filled up with 0 on the right, and where they are real."""
  import numpy as np

  real_BT = np.arange(max(map(len, rows)))[None] < np.array([len(row) for row in rows])[:, None]
  tokens_BT = np.zeros(real_BT.shape, np.int32)
  tokens_BT[real_BT] = np.concatenate([np.array(row, np.int32) for row in rows])
  return tokens_BT, real_BT
