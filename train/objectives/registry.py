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
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs import base
from configs.errors import ConfigError
from train.objectives import corruption, losses
from train.objectives.corruption import span_counts, span_lengths

Batch = dict[str, np.ndarray]

MASK = "[MASK]"
SEPARATOR = "[SEP]"  # its id is the first after the tokenizer's: see `train.data.dataset`

# UL2's denoisers as (density, mean span length); S hides a suffix. Tay et al. 2022
# (arXiv:2205.05131), table 1 and section 3.1.
DENOISERS: dict[str, tuple[tuple[float, float], ...]] = {
  "r": ((0.15, 3.0),),
  "s": (),
  "x": ((0.5, 3.0), (0.15, 32.0)),
}


class Lengths(NamedTuple):
  """Tokens of one sequence."""

  text: int  # consumed; D counts these
  source: int  # S, read by the encoder of an encoder-decoder; 0: there is none
  target: int  # T, the main sequence
  predicted: float  # expected


class Objective(NamedTuple):
  """One row of the table.

  Attributes:
    batch: (text_BN1, valid_BN, uniform_BU, config, tokenizer's V) -> Batch, where `text_BN1` is N
      tokens and the one after them, and `valid_BN` False where there is no text left.
    lengths: config -> Lengths.
    draws: text tokens N -> random numbers for a sequence, U.
    specials: config -> names of the ids beyond the tokenizer's, in their order.
    pads: some of what attention could see is padding.
    whole_windows: a window that validation text does not fill is left out.
    pairs: a window is a pair, prompt and completion; `data.prompt_field` names where prompts are.
    template: how a text ($A) is written for the model to go on from, or to fill in.
    loss: (model, batch, keys_B of the dropout or None, segments, coefficients) -> entries, of which
      `loss` is minimised, with those that have a coefficient. All are logged, and evaluated.
    coefficients: config -> those of the auxiliary entries that are minimised, too: of their sums
      over the weight of `loss`. An entry whose coefficient is 0 need not be computed.
  """

  batch: Callable[[np.ndarray, np.ndarray, np.ndarray, ConfigDict, int], Batch]
  lengths: Callable[[ConfigDict], Lengths]
  draws: Callable[[int], int] = lambda text: 0
  specials: Callable[[ConfigDict], tuple[str, ...]] = lambda config: ()
  pads: bool = False
  whole_windows: bool = False
  pairs: bool = False
  template: str = "{eos} $A"
  loss: Callable[..., losses.Entries] = losses.language_model_loss
  coefficients: Callable[[ConfigDict], dict[str, float]] = lambda config: {
    "z_loss": config.optim.z_loss
  }


def sentinel(i: int) -> str:
  """Names sentinel i, as T5's tokenizers do."""
  return f"<extra_id_{i}>"


def mode(denoiser: str) -> str:
  """Names a mode of ul2."""
  return f"[{denoiser.upper()}]"


def _sentinels(config: ConfigDict) -> tuple[str, ...]:
  """Names the sentinels in the order of their ids: the first is the last of all ids."""
  return tuple(sentinel(i) for i in reversed(range(config.corruption.sentinels)))


# -------------------------------------------------------------------------- decoders and encoders


def _clm(text_BN1, valid_BT, uniform_BU, config, vocab_size) -> Batch:
  """Segments number the documents in a window from 1; positions count from 0 in each."""
  eos = vocab_size - 1
  inputs_BT = np.where(valid_BT, text_BN1[:, :-1], eos)
  positions_BT = _positions(inputs_BT)
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


# ------------------------------------------------------------------------------ encoder-decoders


def _positions(tokens_BT: np.ndarray) -> np.ndarray:
  return np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)


def _pair(source_BS, source_seen_BS, targets_BT, target_seen_BT, valid_BN, eos: int) -> Batch:
  """Makes the batch of encoder and decoder sequences; rows that are not all text weigh 0."""
  return {
    "source_BS": source_BS,
    "source_segments_BS": source_seen_BS.astype(np.int32),
    "source_positions_BS": _positions(source_BS),
    "inputs_BT": np.pad(targets_BT[:, :-1], ((0, 0), (1, 0)), constant_values=eos),
    "segments_BT": target_seen_BT.astype(np.int32),
    "positions_BT": _positions(targets_BT),
    "targets_BT": targets_BT,
    "weights_BT": (target_seen_BT * valid_BN.all(axis=1, keepdims=True)).astype(np.float32),
  }


def _span(text_BN1, valid_BN, uniform_BU, config, vocab_size) -> Batch:
  c, eos = config.corruption, vocab_size - 1
  first_sentinel = special_ids(config, vocab_size)[sentinel(0)]
  source_BS, targets_BT = corruption.corrupt_spans(
    text_BN1[:, :-1], uniform_BU, c.span_density, c.span_length, first_sentinel, eos
  )
  all_BS, all_BT = np.ones_like(source_BS), np.ones_like(targets_BT)
  return _pair(source_BS, all_BS, targets_BT, all_BT, valid_BN, eos)


def _span_lengths(config: ConfigDict) -> Lengths:
  c, data = config.corruption, config.data
  text = corruption.text_length(data.seq_len, c.span_density, c.span_length)
  source, target = span_lengths(text, c.span_density, c.span_length)
  return Lengths(text, source, target, float(target))


def _ul2(text_BN1, valid_BN, uniform_BU, config, vocab_size) -> Batch:
  """Each sequence draws one of `corruption.denoisers`, and then one of its settings."""
  eos, lengths, low_high = vocab_size - 1, _ul2_lengths(config), _suffixes(config)
  ids = special_ids(config, vocab_size)
  ends = ids[sentinel(0)], eos
  text_BN, chance_B, uniform_BU = text_BN1[:, :-1], uniform_BU[:, 0], uniform_BU[:, 1:]
  B, mixture = len(text_BN), _mixture(config)
  source_BS = np.full((B, lengths.source), eos, text_BN.dtype)
  targets_BT = np.full((B, lengths.target), eos, text_BN.dtype)
  ends_B2 = np.zeros((B, 2), int)
  drawn_B = np.searchsorted(np.cumsum([share for _, _, share in mixture])[:-1], chance_B, "right")
  for i, (denoiser, setting, _) in enumerate(mixture):
    rows = np.flatnonzero(drawn_B == i)
    if setting:
      kept, hidden = corruption.corrupt_spans(text_BN[rows], uniform_BU[rows], *setting, *ends)
      ends_B2[rows] = 1 + kept.shape[1], hidden.shape[1]
    else:
      kept, hidden, suffix_B = corruption.cut_suffix(
        text_BN[rows], uniform_BU[rows, 0], *low_high, *ends
      )
      ends_B2[rows] = np.stack([lengths.text - suffix_B + 3, suffix_B + 2], axis=1)
    kept, hidden = kept[:, : lengths.source - 1], hidden[:, : lengths.target]
    source_BS[rows, 0] = ids[mode(denoiser)]
    source_BS[rows, 1 : 1 + kept.shape[1]] = kept
    targets_BT[rows, : hidden.shape[1]] = hidden
  seen_BS, seen_BT = (
    np.arange(length)[None] < end_B[:, None]
    for length, end_B in zip((lengths.source, lengths.target), ends_B2.T, strict=True)
  )
  return _pair(source_BS, seen_BS, targets_BT, seen_BT, valid_BN, eos)


def _mixture(config: ConfigDict) -> list[tuple[str, tuple[float, float] | None, float]]:
  """Lists what ul2 draws from: (mode, spans or None for a suffix, probability)."""
  names = config.corruption.denoisers
  return [
    (name, setting, 1 / len(names) / len(DENOISERS[name] or (None,)))
    for name in names
    for setting in DENOISERS[name] or (None,)
  ]


def _ul2_lengths(config: ConfigDict) -> Lengths:
  """R's sources and X's targets are the longest; a mode token precedes the source."""
  text = corruption.text_length(config.data.seq_len - 1, *DENOISERS["r"][0])
  longest = [span_lengths(text, *setting) for name in DENOISERS for setting in DENOISERS[name]]
  source, target = (max(lengths) for lengths in zip(*longest, strict=True))
  predicted = sum(
    share * (span_lengths(text, *setting)[1] if setting else sum(_suffixes(config)) / 2 + 2)
    for _, setting, share in _mixture(config)
  )
  return Lengths(text, 1 + source, target, predicted)


def _suffixes(config: ConfigDict) -> tuple[int, int]:
  """Bounds the suffixes that S hides, shortest and longest: a quarter of the text on average."""
  text = corruption.text_length(config.data.seq_len - 1, *DENOISERS["r"][0])
  low = max(1, text + 3 - config.data.seq_len)
  return low, 2 * (text // 4) - low


# --------------------------------------------------------------------------------------- the table


def _text_lengths(predicted: Callable[[ConfigDict], float]) -> Callable[[ConfigDict], Lengths]:
  """Makes the lengths of an objective whose one sequence is the text itself."""
  return lambda config: Lengths(config.data.seq_len, 0, config.data.seq_len, predicted(config))


OBJECTIVES: dict[str, Objective] = {
  "clm": Objective(batch=_clm, lengths=_text_lengths(lambda config: config.data.seq_len)),
  "prefix": Objective(
    batch=_prefix,
    lengths=_text_lengths(lambda config: (config.data.seq_len + 1) / 2),
    draws=lambda text: 1,
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
  "span": Objective(
    batch=_span,
    lengths=_span_lengths,
    draws=lambda text: text - 2,
    specials=_sentinels,
    whole_windows=True,
    template="$A {eos}",
  ),
  "ul2": Objective(
    batch=_ul2,
    lengths=_ul2_lengths,
    draws=lambda text: text - 1,
    specials=lambda config: (*map(mode, DENOISERS), *_sentinels(config)),
    pads=True,
    whole_windows=True,
    template="$A {eos}",
  ),
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


def segments(config: ConfigDict) -> str:
  """Returns what attention stays inside of: "documents", "text" (of padding), or "": everything."""
  if config.data.isolate_documents:
    return "documents"
  return "text" if OBJECTIVES[config.objective].pads else ""


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
  if not 0 < len(c.denoisers) == len({*c.denoisers} & {*DENOISERS}):
    raise ConfigError(
      f"corruption.denoisers={c.denoisers}: must be some of {', '.join(DENOISERS)}, each once"
    )
  if family == "encoder_decoder":
    _check_spans(config)


def _check_spans(config: ConfigDict) -> None:
  c, ul2 = config.corruption, config.objective == "ul2"
  if config.data.isolate_documents:
    raise ConfigError(
      f"data.isolate_documents=True: objective={config.objective!r} cuts its text across "
      "documents; set it to False"
    )
  shortest = 16 if ul2 else 3
  if config.data.seq_len < shortest:
    raise ConfigError(
      f"data.seq_len={config.data.seq_len}: objective={config.objective!r} needs {shortest} at "
      "least"
    )
  text = lengths(config).text
  settings = [s for _, s, _ in _mixture(config) if s] if ul2 else [(c.span_density, c.span_length)]
  spans = max((span_counts(text, *setting)[1] for setting in settings), default=1)
  if spans > c.sentinels:
    raise ConfigError(
      f"corruption.sentinels={c.sentinels}: {text} tokens of text have {spans} spans; set it to "
      f"{spans} or more"
    )
