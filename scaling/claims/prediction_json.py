"""Reads a sealed prediction, and refuses one that was altered or rests on other runs."""

import hashlib
import re
from pathlib import Path
from typing import Any

from configs.errors import DataError
from train.system import files

NAME = "prediction.json"
VERSION = 3
# Claims about a budget, each with the field that holds it in the report.
FIELDS = {
  "least_loss": ("loss", "interval"),
  "N_opt": ("N", "N_interval"),
  "D_opt": ("D", "D_interval"),
  "tokens_per_param": ("tokens_per_param", "tokens_per_param_interval"),
}


def read(source: Path) -> dict[str, Any] | None:
  """Reads a sweep's prediction.json, or another file; None where nothing is sealed.

  Beside the claims each of its `budgets` has what they say by name: N, D, tokens_per_param and loss
  at the optimum, each with its interval, and `cells`, a row per held-out run. `cells` are those of
  all budgets, and `sha256` is the hash of the file. Version 2 has one budget.
  """
  path = source if source.is_file() else source / NAME
  record = files.read_json(path)
  if record is None:
    return None
  fault, known = files.fault(record), record.get("version") in (2, VERSION)
  if fault := "digests is missing" if fault is None and known else fault:
    place = re.match(r"claims\[(\d+)\]", fault)
    for claim in record.get("claims", [])[int(place[1]) :][:1] if place else ():
      fault += f" (a claim on {claim.get('what')}, tested by {claim.get('tested_by')})"
    raise files.damaged(path, fault)
  if not known:
    raise DataError(
      f"{path}: is a seal of version {record.get('version')}, and this isoflop reads 2 and "
      f"{VERSION}; use the one that sealed it"
    )
  if record["version"] == 2:
    for claim in record["claims"]:
      claim["at"]["budget"] = record["C"]
    one = {"C": record["C"], "passed_over": record.get("passed_over", {})}
    record |= {"budgets": [one], "refused": []}
  budgets = [_fields(budget, record["claims"]) for budget in record["budgets"]]
  cells = [cell for budget in budgets for cell in budget["cells"]]
  sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
  return record | {"budgets": budgets, "cells": cells, "sha256": sha256}


def _fields(budget: dict[str, Any], claims: list[dict[str, Any]]) -> dict[str, Any]:
  """Adds to a held-out budget its claims, and what they say by name."""
  claims = [x for x in claims if x["at"].get("budget", x["at"]["C"]) == budget["C"]]
  cells = [
    {"cell": name, **claim["at"]}
    | {"predicted_loss": claim["predicted"], "interval": claim["interval"]}
    for claim in claims
    if claim["what"] == "loss"
    for name in claim["tested_by"]
  ]
  result: dict[str, Any] = {**budget, "cells": cells, "claims": claims}
  for claim in claims:
    if claim["what"] in FIELDS:
      value, interval = FIELDS[claim["what"]]
      result |= {value: claim["predicted"], interval: claim["interval"]}
  return result
