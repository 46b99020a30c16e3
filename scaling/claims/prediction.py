"""Reads a sealed prediction, and refuses one that was altered or rests on other runs."""

import hashlib
import itertools
import re
from pathlib import Path
from typing import Any

from configs.errors import DataError
from train.system import files

NAME = "prediction.json"
VERSION = 3
# Claims about a budget, each with the field that holds it in version 1 and in the report.
FIELDS = {
  "least_loss": ("loss", "interval"),
  "N_opt": ("N", "N_interval"),
  "D_opt": ("D", "D_interval"),
  "tokens_per_param": ("tokens_per_param", "tokens_per_param_interval"),
}
OF_VERSION_1 = ("input_hash", "n_runs", "level", "C", "cells", *sum(FIELDS.values(), ()))


def read(source: Path) -> dict[str, Any] | None:
  """Reads a sweep's prediction.json, or another file; None where nothing is sealed.

  Beside the claims each of its `budgets` has what they say by name: N, D, tokens_per_param and loss
  at the optimum, each with its interval, and `cells`, a row per held-out run. `cells` are those of
  all budgets, and `sha256` is the hash of the file. Versions 1 and 2 have one budget.

  Raises:
    DataError: it is not as it was sealed, or of a later version.
  """
  path = source if source.is_file() else source / NAME
  record = files.read_json(path)
  if record is None:
    return None
  fault = files.fault(record)
  if fault is None:  # no digests, as in version 1
    keys = OF_VERSION_1 if record.get("version") == 1 else ("version", "digests")
    fault = next((f"{key} is missing" for key in keys if key not in record), "")
  if fault:
    place = re.match(r"claims\[(\d+)\]", fault)
    for claim in record.get("claims", [])[int(place[1]) :][:1] if place else ():
      fault += f" (a claim on {claim.get('what')}, tested by {claim.get('tested_by')})"
    raise files.damaged(path, fault)
  if record["version"] > VERSION:
    raise DataError(
      f"{path}: is of version {record['version']}; this isoflop reads up to {VERSION}: update it"
    )
  if record["version"] == 1:
    record |= _claims(record)
  if record["version"] < 3:
    one = {"C": record["C"], "passed_over": record.get("passed_over", {})}
    record |= {"budgets": [_fields(one, record["claims"])], "refused": []}
  else:
    record |= {"budgets": [_fields(x, of_budget(record["claims"], x)) for x in record["budgets"]]}
  cells = itertools.chain(*(budget["cells"] for budget in record["budgets"]))
  sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
  return record | {"cells": [*cells], "sha256": sha256}


def of_budget(claims: list[dict[str, Any]], budget: dict[str, Any]) -> list[dict[str, Any]]:
  """Selects the claims of a held-out budget, on its optimum and on its cells."""
  return [claim for claim in claims if claim["at"].get("budget", claim["at"]["C"]) == budget["C"]]


def _fields(budget: dict[str, Any], claims: list[dict[str, Any]]) -> dict[str, Any]:
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


def _claims(record: dict[str, Any]) -> dict[str, Any]:
  common = {"level": record["level"], "rests_on": record["input_hash"]}
  claims = [
    {"what": "loss", "at": {key: cell[key] for key in "NDC"}, "predicted": cell["predicted_loss"]}
    | {"interval": cell["interval"], "tested_by": [cell["cell"]], **common}
    for cell in record["cells"]
  ]
  cells = [cell["cell"] for cell in record["cells"]]
  for what, (value, interval) in FIELDS.items():
    claim = {"what": what, "at": {"C": record["C"]}, "predicted": record[value]}
    claims.append(claim | {"interval": record[interval], "tested_by": cells, **common})
  return {"claims": claims}
