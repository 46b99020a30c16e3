"""Writes the results in README, docs and config docstrings from the records of their runs.

  python docs/results.py                                    writes every marked block again
  python docs/results.py keep quick runs/quick "AMD EPYC"   keeps what is quoted of a sweep

In Markdown a block stands between `<!-- quick.verdict -->` and `<!-- end -->`; it shows the part
`verdict` of docs/records/quick.json. In a config's docstring it is the paragraph that begins with
"Result (docs/records/quick.json)". A record is what `keep` makes of a sweep, or a table (`columns`,
`rows`). tests/test_docs.py compares blocks and records.
"""

import datetime
import json
import platform
import re
import shutil
import sys
import textwrap
from importlib import metadata
from pathlib import Path
from typing import Any

from scaling.formats import duration, si

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "records"
BLOCK = re.compile(r"(<!-- (\w+)\.(\w+) -->\n).*?(<!-- end -->)", re.S)
RESULT = re.compile(r"Result \(docs/records/(\w+)\.json\).*?(?=\n\n|\n\"\"\"|\"\"\")", re.S)
Record = dict[str, Any]


def keep(name: str, workdir: Path, machine: str) -> None:
  """Writes the record of a finished sweep: what of it is quoted, and where it ran."""
  from scaling.claims import prediction_json
  from scaling.report import document

  fit, verification, costs = (
    json.loads((workdir / f"{file}.json").read_text()) for file in ("fit", "verification", "costs")
  )
  sealed = prediction_json.read(workdir)
  rule = Path(json.loads((workdir / "sweep.json").read_text())["config"]["optim"]["rule"])
  flag = f" --config.optim.rule=runs/{name}_tune/{rule.name.partition('#')[0]}" if rule.name else ""
  unquoted = ("claims", "cells", "runs", "digests")
  budgets = [{key: x[key] for key in x if key not in unquoted} for x in sealed["budgets"]]
  record = {
    "command": f"isoflop sweep --config=configs/sweeps/{name}.py{flag} --workdir=runs/{name}",
    "date": str(datetime.date.today()),
    "machine": machine,
    "versions": f"Python {platform.python_version()}, jax {metadata.version('jax')}",
    "seconds": sum(costs["parts"].values()),
    "n_runs": fit["n_runs"],
    "params": fit["params"],
    "intervals": fit["intervals"],
    "optimum": [row for row in fit["optimum"] if row["extrapolation"] == 1.0],
    "prediction": {key: sealed[key] for key in sealed if key not in unquoted}
    | {"budgets": budgets},
    "verification": {key: verification[key] for key in ("budgets", "cells", "verdict")},
    "terminal": document.terminal(workdir),
  }
  (RECORDS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
  shutil.copy(workdir / "figures" / "isoflop_profiles.png", ROOT / "docs" / f"{name}_isoflop.png")


def within(row: Record, key: str, form: Any) -> str:
  """Formats a value with its interval."""
  low, high = row[f"{key}_interval"]
  return f"{form(row[key])} [{form(low)}, {form(high)}]"


def loss(value: float) -> str:
  """Formats a loss [nats per token]."""
  return f"{value:.3f}"


def of_budgets(record: Record) -> list[tuple[Record, Record]]:
  """Pairs what was sealed of each held-out budget with its verdict; earlier records have one."""
  p, v = record["prediction"], record["verification"]
  return list(zip(p.get("budgets", [p]), v.get("budgets", [v]), strict=True))


def verdict(record: Record) -> str:
  """Says what was predicted and what was trained, in a sentence per held-out budget."""
  return "; ".join(_verdict(p, v) for p, v in of_budgets(record))


def _verdict(p: Record, v: Record) -> str:
  low, high = v["interval"]
  where = "the minimum lies where it was predicted" if v["minimum_where_predicted"] else (
    "the minimum does not lie where it was predicted"
  )  # fmt: skip
  return (
    f"predicted **{loss(v['predicted_loss'])} [{loss(low)}, {loss(high)}]** nats per token at "
    f"{p['C']:.3g} FLOPs, trained to **{loss(v['trained_loss'])}** "
    f"({v['relative_error']:+.1%}); {where}, at "
    f"{within(p, 'tokens_per_param', lambda x: f'{x:.0f}')} tokens per parameter"
  )


def optima(record: Record) -> str:
  """Tabulates the optimum of each budget and of those held out."""
  sealed = []
  for p, _ in of_budgets(record):
    row = {"C": p["C"], "loss": p["loss"], "loss_interval": p["interval"]}
    for key in ("N", "D"):
      row |= {f"{key}_opt": p[key], f"{key}_opt_interval": p[f"{key}_interval"]}
    sealed.append(row | {k: p[k] for k in ("tokens_per_param", "tokens_per_param_interval")})
  rows = [
    [
      f"{row['C']:.2g}" if row not in sealed else f"**{row['C']:.2g}, held out**",
      within(row, "N_opt", si),
      within(row, "D_opt", si),
      within(row, "tokens_per_param", lambda x: f"{x:.0f}"),
      within(row, "loss", loss),
    ]
    for row in [*record["optimum"], *sealed]
  ]
  head = ["C [FLOPs]", "N_opt", "D_opt", "tokens per parameter", "loss [nats/token]"]
  return table({"columns": head, "rows": rows})


def cells(record: Record) -> str:
  """Tabulates the held-out cells: predicted, trained, inside or not."""
  level = record["prediction"]["level"]
  rows = [
    [
      f"N = {si(cell['N'])}, D = {si(cell['D'])}",
      loss(cell["predicted_loss"]),
      f"[{loss(cell['interval'][0])}, {loss(cell['interval'][1])}]",
      loss(cell["trained_loss"]),
      "yes" if cell["inside"] else "no",
    ]
    for cell in record["verification"]["cells"]
  ]
  head = ["held-out cell", "predicted", f"{level:.0%} interval", "trained", "inside"]
  return table({"columns": head, "rows": rows})


def terminal(record: Record) -> str:
  """Quotes what the sweep said at its end: its verdict, and the table of held-out cells."""
  first, *rest = record["terminal"].strip().splitlines()
  last = rest[max(i for i, line in enumerate(rest) if line.startswith("cell ")) :]
  return "\n".join(["```", *textwrap.wrap(first, 118), "", *last, "```"])


def source(record: Record) -> str:
  """Says where and how a record was made."""
  parts = [f"`{record['command']}`", record["machine"], record.get("versions"), record["date"]]
  took = duration(record["seconds"]) if "seconds" in record else None
  return ", ".join(part for part in (*parts, took) if part)


def table(record: Record) -> str:
  """Formats columns and rows as a table of Markdown."""
  lines = [record["columns"], ["---"] * len(record["columns"]), *record["rows"]]
  return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def result(name: str, record: Record) -> str:
  """Says a sweep's result in a paragraph of a docstring."""
  text = (
    f"{verdict(record)} ({record['machine']}, {record['date']}, {duration(record['seconds'])})."
  )
  return textwrap.fill(f"Result (docs/records/{name}.json): {text.replace('**', '')}", 100)


PARTS = {
  "verdict": verdict,
  "optima": optima,
  "cells": cells,
  "terminal": terminal,
  "source": source,
  "table": table,
}


def written(text: str) -> str:
  """Returns a file's text with its marked blocks made from their records."""

  def record(name: str) -> Record:
    return json.loads((RECORDS / f"{name}.json").read_text())

  text = BLOCK.sub(lambda m: f"{m[1]}{PARTS[m[3]](record(m[2]))}\n{m[4]}", text)
  return RESULT.sub(lambda m: result(m[1], record(m[1])), text)


def marked_files() -> list[Path]:
  """Lists the files in which blocks may stand."""
  return [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "configs" / "sweeps").glob("*.py")),
  ]


if __name__ == "__main__":
  if sys.argv[1:2] == ["keep"]:
    keep(sys.argv[2], Path(sys.argv[3]), sys.argv[4])
  for path in marked_files():
    path.write_text(written(path.read_text()))
