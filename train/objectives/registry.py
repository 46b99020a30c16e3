"""What a model is trained to predict: one table of objectives.

An objective makes a batch of windows of text and of random numbers, a pure function of both, and
computes a model's losses on it. All batches are dicts of `inputs_BT`, `targets_BT`, `segments_BT`,
`positions_BT` (int32) and `weights_BT` (float32, 0 where nothing is predicted); the encoder of span
and ul2 reads `source_BS`, `source_segments_BS`, `source_positions_BS`; prefix adds `prefix_BT`
(bool), as does completion with `data.bidirectional_prompt`. Segment 0 is padding.

  clm     every token from those before it
  prefix  every token after a random point; all see what is before that point
  completion  what follows the separator of a pair, from its prompt
  mlm     hidden tokens from the rest (BERT, RoBERTa)
  span    hidden spans, behind sentinels, from the rest (T5)
  ul2     a mixture of spans and suffixes, named by a mode token (UL2)

`configs.base.FAMILIES` says which family of models trains which. The tokenizer's ids, of which the
last is eos, keep their meaning; special ids follow in the order of `Objective.specials`. A decoder
that follows an encoder starts from eos (T5: from its padding, of which there is none here).
"""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from configs import base
from configs.errors import ConfigError
from model import accounting
from train.objectives import corruption, spans
from train.objectives.objective import Batch, Lengths, Objective, positions

MASK = "[MASK]"
SEPARATOR = "[SEP]"  # its id is the first after the tokenizer's: see `train.data.dataset`


def _clm(text_BN1, valid_BT, uniform_BU, config, vocab_size) -> Batch:
  """Segments number the documents in a window from 1; positions count from 0 in each."""
  eos = vocab_size - 1
  inputs_BT = np.where(valid_BT, text_BN1[:, :-1], eos)
  positions_BT = positions(inputs_BT)
  segments_BT = np.ones_like(inputs_BT)
  if config.data.isolate_documents:
    starts_BT = inputs_BT == eos
    starts_BT[:, 0] = False  # the window itself starts segment 1
    segments_BT += np.cumsum(starts_BT, axis=1, dtype=np.int32)
    firsts_BT = np.maximum.accumulate(np.where(starts_BT, positions_BT, 0), axis=1)
    positions_BT = positions_BT - firsts_BT
  return {
    "inputs_BT": inputs_BT,
    "targets_BT": np.where(valid_BT, text_BN1[:, 1:], eos),
    "weights_BT": valid_BT.astype(np.float32),
    "segments_BT": np.where(valid_BT, segments_BT, 0),
    "positions_BT": positions_BT,
  }


def _prefix(text_BN1, valid_BT, uniform_BU, config, vocab_size) -> Batch:
  """The prefix is 1 to n of a window's n inputs, and its last one predicts the first token after.

  Raffel et al. 2019 (arXiv:1910.10683), section 3.2.1.
  """
  batch = _clm(text_BN1, valid_BT, uniform_BU, config, vocab_size)
  last_B1 = (uniform_BU * valid_BT.sum(axis=1, keepdims=True)).astype(int)
  index_1T = np.arange(valid_BT.shape[1])[None]
  weights_BT = batch["weights_BT"] * (index_1T >= last_B1)
  return batch | {"prefix_BT": index_1T <= last_B1, "weights_BT": weights_BT}


def _completion(text_BN1, valid_BT, uniform_BU, config, vocab_size) -> Batch:
  """The separator predicts the first token of the completion, whose last token predicts the end."""
  batch = _clm(text_BN1, valid_BT, uniform_BU, config, vocab_size)
  separator_BT = batch["inputs_BT"] == special_ids(config, vocab_size)[SEPARATOR]
  completion_BT = np.cumsum(separator_BT, axis=1) > 0
  batch["weights_BT"] *= completion_BT
  if config.data.bidirectional_prompt:
    batch["prefix_BT"] = valid_BT & (~completion_BT | separator_BT)
  return batch


def _mlm(text_BN1, valid_BT, uniform_BU, config, vocab_size) -> Batch:
  """Document boundaries are seen and never hidden."""
  c = config.corruption
  batch = _clm(text_BN1, valid_BT, uniform_BU, config, vocab_size)
  tokens_BT = batch["inputs_BT"]
  real_BT = valid_BT & (tokens_BT != vocab_size - 1)
  shares = c.mlm_rate, c.mlm_mask, c.mlm_random
  inputs_BT, chosen_BT = corruption.mask_tokens(tokens_BT, real_BT, uniform_BU, *shares, vocab_size)
  weights_BT = chosen_BT.astype(np.float32)
  return batch | {"inputs_BT": inputs_BT, "targets_BT": tokens_BT, "weights_BT": weights_BT}


# --------------------------------------------------------------------------------------- the table


def _text_lengths(predicted: Callable[[ConfigDict], float]) -> Callable[[ConfigDict], Lengths]:
  """Makes the lengths of an objective whose one sequence is the text itself."""
  return lambda config: Lengths(config.data.seq_len, 0, config.data.seq_len, predicted(config))


OBJECTIVES: dict[str, Objective] = {
  "clm": Objective(
    batch=_clm, lengths=_text_lengths(lambda config: config.data.seq_len), causal=True
  ),
  "prefix": Objective(
    batch=_prefix,
    lengths=_text_lengths(lambda config: (config.data.seq_len + 1) / 2),
    draws=lambda text: 1,
    prefix=True,
    causal=True,
  ),
  "completion": Objective(
    batch=_completion,
    lengths=_text_lengths(lambda config: config.data.seq_len),  # at most
    specials=lambda config: (SEPARATOR,),
    pads=True,
    whole_windows=True,
    pairs=True,
    template="{eos} $A " + SEPARATOR,
  ),
  "mlm": Objective(
    batch=_mlm,
    lengths=_text_lengths(lambda config: config.corruption.mlm_rate * config.data.seq_len),
    draws=lambda text: 2 * text + 1,
    specials=lambda config: (MASK,),
    pads=True,
  ),
  "span": spans.SPAN,
  "ul2": spans.UL2,
}


def lengths(config: ConfigDict) -> Lengths:
  """Returns the tokens of one sequence."""
  return OBJECTIVES[config.objective].lengths(config)


def specials(config: ConfigDict) -> tuple[str, ...]:
  """Returns the names of the ids that follow the tokenizer's."""
  return OBJECTIVES[config.objective].specials(config)


def special_ids(config: ConfigDict, tokenizer_vocab_size: int) -> dict[str, int]:
  """Returns the ids that follow the tokenizer's, by name."""
  return {name: tokenizer_vocab_size + i for i, name in enumerate(specials(config))}


def vocab_size(config: ConfigDict, tokenizer_vocab_size: int) -> int:
  """Returns the model's whole vocabulary: the tokenizer's, and the objective's special ids."""
  return tokenizer_vocab_size + len(specials(config))


def shapes(config: ConfigDict, tokenizer_vocab_size: int) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every parameter of a resolved config's model, by its path."""
  return accounting.shapes(config.model, *model_shape(config, tokenizer_vocab_size))


def model_shape(config: ConfigDict, tokenizer_vocab_size: int) -> tuple[int, int, int]:
  """Returns V, T and S of the model, as `model.accounting` takes them."""
  _, source, target, _ = lengths(config)
  return vocab_size(config, tokenizer_vocab_size), target, source


def segments(config: ConfigDict) -> str:
  """Returns what attention stays inside of: "documents", "text" (of padding), or "": everything."""
  if config.data.isolate_documents:
    return "documents"
  return "text" if OBJECTIVES[config.objective].pads else ""


def has_prefix(config: ConfigDict) -> bool:
  """Returns whether a batch has `prefix_BT`: tokens that a decoder sees from before them, too."""
  return OBJECTIVES[config.objective].prefix or config.data.bidirectional_prompt


def coefficients(config: ConfigDict) -> dict[str, float]:
  """Returns the coefficients, other than 0, of the auxiliary entries that are minimised."""
  by_name = OBJECTIVES[config.objective].coefficients(config)
  return {name: coefficient for name, coefficient in by_name.items() if coefficient}


def tokens_per_step(config: ConfigDict) -> int:
  """Returns the text tokens of a batch, over all hosts."""
  return config.data.batch_size * lengths(config).text


def check_objective(config: ConfigDict) -> None:
  """Raises ConfigError where the objective cannot be trained as the config says."""
  c, family = config.corruption, base.family_of(config.objective)
  if config.model.family != family:
    raise ConfigError(
      f"model.family={config.model.family!r}: objective={config.objective!r} trains an {family}; "
      f"set model.family={family!r}"
    )
  pairs, prompts = OBJECTIVES[config.objective].pairs, config.data.prompt_field
  if pairs != bool(prompts):
    wants = "learns from pairs; name the field of their prompts" if pairs else "wants text; set ''"
    raise ConfigError(f"data.prompt_field={prompts!r}: objective={config.objective!r} {wants}")
  if config.data.bidirectional_prompt and not pairs:
    raise ConfigError(
      f"data.bidirectional_prompt=True: objective={config.objective!r} has no prompts; set it to "
      "False"
    )
  if c.mlm_random > 1 - c.mlm_mask + 1e-9:
    raise ConfigError(f"corruption.mlm_random={c.mlm_random}: must lie in [0, 1 - mlm_mask]")
  if not 0 < len(c.denoisers) == len({*c.denoisers} & {*spans.DENOISERS}):
    raise ConfigError(
      f"corruption.denoisers={c.denoisers}: must be some of {', '.join(spans.DENOISERS)}, each once"
    )
  OBJECTIVES[config.objective].check(config)
