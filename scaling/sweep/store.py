"""The run store: a sweep's folder, its files, and its table.

sweep.json            config, corpus, the probe's outcome, every planned cell
cells/<id>/run.json   the record of one run, with metrics.jsonl and checkpoints/ beside it
trunks/<id>/...       likewise, for the runs that cells are branched from
cells.csv             one row per cell
fit.json, prediction.json, verification.json, report.md, report.html, figures/
"""

import csv
import dataclasses
import io
import time
from collections.abc import Iterable
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.errors import UsageError
from scaling.laws.tables.read import CELL_COLUMNS
from scaling.sweep import plan
from scaling.sweep.plan import Cell, Trunk
from train import record
from train.data.dataset import TokenData
from train.evaluate import open_sets
from train.system import files

OF_CELL = ("kind", "size", "width", "depth", "N", "D", "C", "C_6nd", "flops_spent", "lr", "seed",
           "D_predicted")  # fmt: skip
OF_RECORD = ("loss", "loss_stderr", "bits_per_byte", "seconds")

FREE = (  # fields that change no number of a begun sweep's runs, beyond the order of a sum
  "fit.form", "fit.response", "fit.E", "fit.delta", "fit.reach", "fit.bootstraps", "fit.level",
  "fit.resampling", "fit.seed",
  "fit.target_tokens_per_param", "sharding.", "model.remat", "data.max_epochs", "sweep.workers",
  "sweep.launcher", "sweep.command",
  "sweep.pack", "sweep.name", "sweep.arms.", "sweep.adaptive_flops", "train.checkpoint_every",
  "tune.",
)  # fmt: skip
OTHER_LAW = ("fit.form", "fit.response", "fit.E", "fit.delta", "fit.reach")  # fields that make one


def folder(workdir: Path, run: Cell | Trunk) -> Path:
  """Returns the folder of a run."""
  return workdir / ("trunks" if isinstance(run, Trunk) else "cells") / run.id


def with_trunks(cells: Iterable[Cell]) -> list[Cell | Trunk]:
  """Returns the trunks of some cells, and the cells."""
  cells = list(cells)
  return [*plan.trunks(cells), *cells]


def outcome(workdir: Path, run: Cell | Trunk, loss: str = "") -> dict:
  """Reads the record of a run; {"status": "planned"} before it has begun.

  `loss` is the validation set whose loss takes the place of the main one's.
  """
  stored = record.read(folder(workdir, run)) or {"status": "planned"}
  if loss and "evaluations" in stored:
    stored.update(stored["evaluations"][loss])
  return stored


def row(workdir: Path, cell: Cell, objective: str) -> dict[str, Any]:
  """Makes a cell's row of cells.csv."""
  result = outcome(workdir, cell)
  values = {
    "cell": cell.id,
    "objective": objective,
    "status": result["status"],
    "trunk": cell.trunk or "",
    "tokens_per_param": cell.D / cell.N,
    **{f"params_{name}": count for name, count in cell.groups.items()},
    **{name: getattr(cell, name) for name in OF_CELL},
    **{name: result.get(name, "") for name in OF_RECORD},
  }
  further = {
    f"{metric}_{name}": value
    for name, metrics in result.get("evaluations", {}).items()
    for metric, value in metrics.items()
    if metric != "eval_tokens"
  }
  return {name: values[name] for name in CELL_COLUMNS} | further


def write_table(workdir: Path, cells: Iterable[Cell], objective: str) -> None:
  """Writes cells.csv."""
  text, table = io.StringIO(), [row(workdir, cell, objective) for cell in cells]
  columns = list(dict.fromkeys([*CELL_COLUMNS, *(name for row in table for name in row)]))
  writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
  writer.writeheader()
  writer.writerows(table)
  files.write_text(workdir / "cells.csv", text.getvalue())


def new_head(config: ConfigDict, tokens: TokenData) -> dict[str, Any]:
  """Makes the head of sweep.json: all but its cells."""
  sets = open_sets(config, tokens)
  sized = plan.at_size(config, config.sweep.sizes[0])
  return {
    "name": config.sweep.name,
    "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "objective": config.objective,
    "libraries": record.describe(sized, tokens, "")["versions"],
    "corpus": {
      "source": config.data.source,
      "fingerprint": tokens.fingerprint,
      "tokenizer": config.data.tokenizer,
      "tokenizer_hash": tokens.tokenizer_hash,
      "vocab_size": tokens.vocab_size,
      "train_tokens": tokens.train_token_count,
      "validation_tokens": tokens.validation_token_count,
      "overlap": tokens.overlap,
      "floor": tokens.floor,
      "evaluate": {name: x.tokens.fingerprint for name, x in sets.items()},
    },
    "config": record.plain(config),
    "config_diff": record.diff(config),
  }


def write_sweep(workdir: Path, head: dict, cells: Iterable[Cell]) -> None:
  """Writes sweep.json: its head, and the cells planned so far."""
  planned = [dataclasses.asdict(cell) | {"D": cell.D} for cell in cells]
  files.write_json(workdir / "sweep.json", files.with_digests(head | {"cells": planned}))


def read_sweep(workdir: Path) -> tuple[dict, list[Cell]]:
  """Reads sweep.json: its head, and the cells."""
  head = files.read_record(workdir / "sweep.json")
  if head is None:
    raise UsageError(f"workdir={workdir}: no sweep.json there; `isoflop sweep` makes one")
  fields = dataclasses.fields(Cell)
  cells = [
    Cell(**{x.name: cell[x.name] for x in fields if x.name in cell or x.default is MISSING})
    for cell in head["cells"]
  ]
  for name in ("cells", "digests", "hash"):
    head.pop(name, None)
  return head, cells


def open_sweep(
  config: ConfigDict, workdir: Path, tokens: TokenData
) -> tuple[dict[str, Any], list[Cell]]:
  """Returns the head of sweep.json and the cells planned so far: the folder's, or new ones."""
  new = new_head(config, tokens)
  stored = files.read_record(workdir / "sweep.json")
  if stored is None:
    return new, []
  check_same_sweep(workdir, stored, config, tokens)
  head, cells = read_sweep(workdir)
  return head | {key: new[key] for key in ("config", "config_diff")}, cells


def check_same_sweep(
  workdir: Path, stored: dict[str, Any], config: ConfigDict, tokens: TokenData
) -> None:
  """Raises UsageError where the folder's sweep.json (`stored`) is of another sweep."""
  defaults = record.defaults()
  old = defaults | record.flat(base.renamed(stored["config"]))
  new = defaults | record.flat(record.plain(config))
  is_sealed = (workdir / "prediction.json").exists()
  if bool(stored["config"].get("sweep", {}).get("arms")) != bool(config.sweep.arms):
    raise UsageError(
      f"workdir={workdir}: holds a sweep {'without' if config.sweep.arms else 'of several'} arms; "
      "name another workdir"
    )
  for name in sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)):
    if not name.startswith(FREE) or (is_sealed and name in OTHER_LAW):
      raise UsageError(
        f"workdir={workdir}: holds a {'sealed ' * is_sealed}sweep with {name}={old.get(name)!r}, "
        f"asked {new.get(name)!r}; name another workdir"
      )
  for key, what in (
    ("fingerprint", f"another text (data.source={config.data.source!r}"),
    ("tokenizer_hash", f"other tokens (data.tokenizer={config.data.tokenizer!r}"),
  ):
    if stored["corpus"][key] != getattr(tokens, key):
      raise UsageError(
        f"workdir={workdir}: holds a sweep on {what} has changed since); name another workdir"
      )
  for name, further in open_sets(config, tokens).items():
    if stored["corpus"].get("evaluate", {}).get(name) != further.tokens.fingerprint:
      raise UsageError(
        f"workdir={workdir}: holds a sweep evaluated on another text (data.evaluate.{name} has "
        "changed since); name another workdir"
      )


def new_cells(workdir: Path, stored: Iterable[Cell], planned: Iterable[Cell]) -> list[Cell]:
  """Returns the planned cells that are not stored yet; none may differ from one that is."""
  by_id = {cell.id: cell for cell in stored}
  new = []
  for cell in planned:
    old = by_id.get(cell.id)
    if old is None:
      new.append(cell)
    elif old != cell:
      names = (field.name for field in dataclasses.fields(Cell))
      name = next(name for name in names if getattr(old, name) != getattr(cell, name))
      raise UsageError(
        f"workdir={workdir}: holds {cell.id} with {name}={getattr(old, name)!r}, planned now with "
        f"{getattr(cell, name)!r}; name another workdir, or go on with the version that began it"
      )
  return new
