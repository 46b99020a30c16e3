"""The cells of a sweep, planned before it trains: probes, fit cells, held-out cells."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from scaling.sweep import arms, plan, seal
from train.data import dataset
from train.system import files


class Design(NamedTuple):
  """A sweep's cells."""

  config: ConfigDict  # with the learning-rate rule of its folder, if that has one
  tokens: dataset.TokenData
  probe_cells: list[plan.Cell]
  fit_cells: list[plan.Cell]
  heldout_cells: list[plan.Cell]
  sealed: bool  # else the held-out cells are placed at the middle size

  @property
  def cells(self) -> list[plan.Cell]:
    """All of them, in the order in which they train."""
    return [*self.probe_cells, *self.fit_cells, *self.heldout_cells]


def designs(config: ConfigDict, workdir: Path | None) -> Iterator[tuple[str, Design]]:
  """Plans the sweep of each of `config.sweep.objectives`, by its name; of a single one, by "".

  Held-out cells are at the fit's N* if the folder has a sealed prediction, else at the middle size,
  as their sizes are known only after the fit.

  Raises:
    UserError: a sweep cannot be run.
  """
  configs = arms.split(config) if config.sweep.objectives else {"": config}
  for name, own_config in configs.items():
    yield name, _design(own_config, workdir and workdir / name)


def _design(config: ConfigDict, workdir: Path | None) -> Design:
  tokens = dataset.prepare(config)
  plan.check(config, tokens)
  probe_cells = [
    cell
    for size in config.sweep.probe_sizes
    for cell in plan.probe_cells(config, tokens.vocab_size, size, config.sweep.probe_factors)
  ]
  head = files.read_json(workdir / "sweep.json") if workdir else None
  if head and "lr_rule" in head:
    config = with_rule(config, head["lr_rule"])
  fit_cells = plan.fit_cells(config, tokens.vocab_size)
  sealed = files.read_json(workdir / "prediction.json") if workdir else None
  if sealed:
    heldout_cells = seal.sealed_cells(config, tokens.vocab_size, sealed)
  else:
    middle = float(np.median([cell.params(config.fit.params) for cell in fit_cells]))
    corpus = tokens.vocab_size, tokens.train_token_count
    budget = plan.heldout_budget(config, fit_cells)
    heldout_cells = plan.heldout_cells(config, *corpus, middle, budget)
  return Design(config, tokens, probe_cells, fit_cells, heldout_cells, bool(sealed))


def with_rule(config: ConfigDict, rule: dict) -> ConfigDict:
  """Returns the config with the learning-rate rule that a probe found."""
  config = config.copy_and_resolve_references()
  config.optim.lr_ref = rule["lr_ref"]
  config.optim.lr_exponent = rule["lr_exponent"]
  return config
