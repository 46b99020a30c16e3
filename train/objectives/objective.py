"""What an objective is: a row of `train.objectives.registry`."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from train.objectives import losses

Batch = dict[str, np.ndarray]


class Lengths(NamedTuple):
  """Tokens of one sequence."""

  text: int  # consumed; D counts these
  source: int  # S, read by the encoder of an encoder-decoder; 0: there is none
  target: int  # T, the main sequence
  predicted: float  # expected


class Objective(NamedTuple):
  """One row of the table."""

  # (text_BN1, valid_BN, uniform_BU, config, tokenizer's V) -> Batch, where `text_BN1` is N tokens
  # and the one after them, and `valid_BN` False where there is no text left.
  batch: Callable[[np.ndarray, np.ndarray, np.ndarray, ConfigDict, int], Batch]
  lengths: Callable[[ConfigDict], Lengths]
  draws: Callable[[int], int] = lambda text: 0  # text tokens N -> random numbers of a sequence, U
  # Names of the ids beyond the tokenizer's, in their order.
  specials: Callable[[ConfigDict], tuple[str, ...]] = lambda config: ()
  pads: bool = False  # some of what attention could see is padding
  whole_windows: bool = False  # a window that validation text does not fill is left out
  pairs: bool = False  # a window is a prompt (`data.prompt_field` names where) and its completion
  prefix: bool = False  # a decoder sees `prefix_BT` from before it, too
  # Each token is predicted from those before it: their entropy, where known, is the loss's floor.
  causal: bool = False
  template: str = "{eos} $A"  # how a text ($A) is written for the model to go on from, or fill in
  check: Callable[[ConfigDict], None] = lambda config: None  # raises ConfigError
  # (model, batch, keys_B of the dropout or None, segments, coefficients) -> entries, of which
  # `loss` is minimised, with those that have a coefficient. All are logged, and evaluated.
  loss: Callable[..., losses.Entries] = losses.language_model_loss
  # What an auxiliary entry's sum is multiplied by before it is minimised with that of `loss`; both
  # are divided by the weight of `loss`. An entry whose coefficient is 0 need not be computed.
  coefficients: Callable[[ConfigDict], dict[str, float]] = lambda config: {
    "z_loss": config.optim.z_loss
  }


def positions(tokens_BT: np.ndarray) -> np.ndarray:
  """Counts positions from 0 in each row."""
  return np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
