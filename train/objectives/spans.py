"""The objectives of encoder-decoders: spans behind sentinels (T5), and a mixture of them (UL2)."""

from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from configs.errors import ConfigError
from train.objectives import corruption
from train.objectives.corruption import span_counts, span_lengths
from train.objectives.objective import Batch, Lengths, Objective, positions

# UL2's denoisers as (density, mean span length); S hides a suffix. Tay et al. 2022
# (arXiv:2205.05131), table 1 and section 3.1.
DENOISERS: dict[str, tuple[tuple[float, float], ...]] = {
  "r": ((0.15, 3.0),),
  "s": (),
  "x": ((0.5, 3.0), (0.15, 32.0)),
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


def _ul2_specials(config: ConfigDict) -> tuple[str, ...]:
  return (*map(mode, DENOISERS), *_sentinels(config))


def _pair(source_BS, source_seen_BS, targets_BT, target_seen_BT, valid_BN, eos: int) -> Batch:
  """Makes the batch of encoder and decoder sequences; rows that are not all text weigh 0."""
  return {
    "source_BS": source_BS,
    "source_segments_BS": source_seen_BS.astype(np.int32),
    "source_positions_BS": positions(source_BS),
    "inputs_BT": np.pad(targets_BT[:, :-1], ((0, 0), (1, 0)), constant_values=eos),
    "segments_BT": target_seen_BT.astype(np.int32),
    "positions_BT": positions(targets_BT),
    "targets_BT": targets_BT,
    "weights_BT": (target_seen_BT * valid_BN.all(axis=1, keepdims=True)).astype(np.float32),
  }


def _span(text_BN1, valid_BN, uniform_BU, config, vocab_size) -> Batch:
  c, eos = config.corruption, vocab_size - 1
  first_sentinel = vocab_size + c.sentinels - 1  # the last id
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
  ids = {name: vocab_size + i for i, name in enumerate(_ul2_specials(config))}
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


def _check_span(config: ConfigDict) -> None:
  c = config.corruption
  _check(config, 3, _span_lengths, [(c.span_density, c.span_length)])


def _check_ul2(config: ConfigDict) -> None:
  _check(config, 16, _ul2_lengths, [setting for _, setting, _ in _mixture(config) if setting])


def _check(
  config: ConfigDict,
  shortest: int,
  lengths: Callable[[ConfigDict], Lengths],
  settings: list[tuple[float, float]],
) -> None:
  """Raises ConfigError where a window is too short, or has more spans than sentinels."""
  if config.data.isolate_documents:
    raise ConfigError(
      f"data.isolate_documents=True: objective={config.objective!r} cuts its text across "
      "documents; set it to False"
    )
  if config.data.seq_len < shortest:
    raise ConfigError(
      f"data.seq_len={config.data.seq_len}: objective={config.objective!r} needs {shortest} at "
      "least"
    )
  text = lengths(config).text
  spans = max((span_counts(text, *setting)[1] for setting in settings), default=1)
  if spans > config.corruption.sentinels:
    raise ConfigError(
      f"corruption.sentinels={config.corruption.sentinels}: {text} tokens of text have {spans} "
      f"spans; set it to {spans} or more"
    )


SPAN = Objective(
  batch=_span,
  lengths=_span_lengths,
  draws=lambda text: text - 2,
  specials=_sentinels,
  check=_check_span,
  whole_windows=True,
  template="$A {eos}",
)
UL2 = SPAN._replace(
  batch=_ul2,
  lengths=_ul2_lengths,
  draws=lambda text: text - 1,
  specials=_ul2_specials,
  check=_check_ul2,
  pads=True,
)
