"""Evaluations of a state: the objective's loss on the held-out tokens, and on further sets.

The held-out tokens are the same for every run. `data.evaluate` names further sets, each a source of
text, or EVALUATOR@SOURCE where another evaluator than the loss shall be used.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from configs.errors import ConfigError, UserError
from train.data import batches, evaluation
from train.data.dataset import TokenData
from train.objectives import registry
from train.objectives.losses import LOSS
from train.programs import Program
from train.step import TrainState, all_params
from train.system import distributed

# By metric its sum and its weight, each by example [S], or of all.
Sums = dict[str, tuple[np.ndarray, np.ndarray]]
Evaluator = Callable[[Program, TrainState, TokenData, ConfigDict], Sums]


def losses(program: Program, state: TrainState, tokens: TokenData, config: ConfigDict) -> Sums:
  """Sums each entry of the objective's loss over each document of the validation set.

  `bits_per_byte` are of the predicted tokens' text; special ids have none.
  """
  params, parts, n_bytes = all_params(state), [], 0
  bytes_V = np.zeros(registry.vocab_size(config, tokens.vocab_size), int)
  bytes_V[: tokens.vocab_size] = tokens.token_bytes_V
  for batch in batches.validation_batches(tokens, config, jax.process_index(), jax.process_count()):
    parts.append(program.evaluate(params, program.place(batch)))
    n_bytes += int(np.sum(bytes_V[batch["targets_BT"]] * batch["weights_BT"]))  # of this host
  sums: Sums = {}
  documents_S = batches.validation_documents(tokens, config)  # whose sequences are alike
  for name in parts[0]:
    of_S = np.concatenate([np.asarray(p[name], np.float64) for p in parts], axis=1)
    sum_D, weight_D = (np.bincount(documents_S, x_S) for x_S in of_S)
    sums[name] = sum_D, weight_D
  bits, n_bytes = sums[LOSS][0].sum() / math.log(2), distributed.sum_over_processes(n_bytes)
  return sums | {"bits_per_byte": (np.asarray(bits), np.asarray(max(1, n_bytes)))}


EVALUATORS: dict[str, Evaluator] = {"loss": losses}


class EvaluationSet(NamedTuple):
  """A further set, and how it is evaluated."""

  evaluator: Evaluator
  tokens: TokenData


def open_sets(config: ConfigDict, tokens: TokenData) -> dict[str, EvaluationSet]:
  """Opens the sets of `data.evaluate`, by name; tokenises them first, once.

  Raises:
    ConfigError: the name, the evaluator or the source of a set cannot be used.
  """
  sets = {}
  for name, value in config.data.evaluate.items():
    head, at, rest = value.partition("@")
    evaluator, source = (head, rest) if at and head.isidentifier() else (LOSS, value)
    try:
      if name == "main" or f"{name}_".startswith("stderr_"):  # columns have such names
        raise ConfigError("its name stands for something else in tables; choose another")
      if evaluator not in EVALUATORS:
        raise ConfigError(f"no evaluator {evaluator!r}; choose one of {', '.join(EVALUATORS)}")
      sets[name] = EvaluationSet(EVALUATORS[evaluator], evaluation.open_set(config, tokens, source))
      batches.eval_token_count(sets[name].tokens, config)
      batches.check_predictions(sets[name].tokens, config, train=False)
    except UserError as error:
      raise ConfigError(f"data.evaluate.{name}={value!r}: {error}") from error
  return sets


def evaluate(
  program: Program,
  state: TrainState,
  tokens: TokenData,
  config: ConfigDict,
  evaluator: Evaluator = losses,
) -> dict[str, float]:
  """Evaluates a state on a validation stream.

  Returns:
    each metric of the evaluator by its name (`loss`: nats per predicted token), and its standard
    error over examples (of `losses`: documents), NAME_stderr; eval_tokens, the weight of a loss.
  """
  result: dict[str, float] = {}
  for name, (sums, weights) in evaluator(program, state, tokens, config).items():
    result[name], error = ratio(np.atleast_1d(sums), np.atleast_1d(weights))
    if np.ndim(sums):
      result[f"{name}_stderr"] = error
    if name == LOSS:
      result["eval_tokens"] = int(np.sum(weights))
  return result


def ratio(sum_S: np.ndarray, weight_S: np.ndarray) -> tuple[float, float]:
  """Divides a sum over examples by its weight; returns the quotient and its standard error."""
  sum_S, weight_S = sum_S[weight_S > 0], weight_S[weight_S > 0]
  n, total = len(sum_S), weight_S.sum()
  quotient = sum_S.sum() / total
  variance = np.sum((sum_S - quotient * weight_S) ** 2) * n / max(1, n - 1)
  return float(quotient), float(np.sqrt(variance) / total)
