"""Reads a sealed prediction, and refuses one that was altered or rests on other runs."""

import re
from pathlib import Path
from typing import Any

from train.system import files

NAME = "prediction.json"
VERSION = 2
# Claims about the budget, each with the field that holds it in version 1 and in the report.
FIELDS = {
  "least_loss": ("loss", "interval"),
  "N_opt": ("N", "N_interval"),
  "D_opt": ("D", "D_interval"),
  "tokens_per_param": ("tokens_per_param", "tokens_per_param_interval"),
}
OF_VERSION_1 = ("input_hash", "n_runs", "level", "C", "cells", *sum(FIELDS.values(), ()))


def read(workdir: Path) -> dict[str, Any] | None:
  """Reads prediction.json; None where nothing is sealed.

  Beside the claims it has what they say by name: N, D, tokens_per_param and loss at the optimum,
  each with its interval, and `cells`, a row per held-out cell.

  Raises:
    DataError: it is not as it was sealed.
  """
  path = workdir / NAME
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
  return record | (_claims(record) if record["version"] == 1 else _fields(record))


def _fields(record: dict[str, Any]) -> dict[str, Any]:
  cells = [
    {"cell": claim["tested_by"][0], **claim["at"]}
    | {"predicted_loss": claim["predicted"], "interval": claim["interval"]}
    for claim in record["claims"]
    if claim["what"] == "loss"
  ]
  result: dict[str, Any] = {"cells": cells}
  for claim in record["claims"]:
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
