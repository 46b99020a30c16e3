"""Writes docs/targets_matrix.md from the records that test_targets.py has kept.

TARGET_MATRIX=record.json pytest tests/release/test_targets.py      (with each version of jax)
python tests/release/target_table.py record.json
"""

import datetime
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from target_matrix import MATRIX  # noqa: E402

HEAD = """# Programs compiled for GPUs and TPUs

Made by `tests/release/target_table.py` on {date}. Each row is a small config (width 128, two
layers, 128 tokens); its programs were compiled for H100s (1, 2 or 8) and TPU v5e (1, 4 or 8 chips)
on a machine that has neither. *ok*: they compile; *refused*: a line says what does not go together
before anything is compiled; else the first line of the compiler's error.

"""


def cell(answers):
  """Returns the outcome of a row."""
  errors = [f"{a['program']}: {a['error']}" for a in answers if "error" in a]
  refused = [f"refused: {a['refused']}" for a in answers if "refused" in a]
  return "<br>".join(errors or refused or ["ok"]).replace("|", "/")


def table(record):
  """Returns the record as a table of Markdown."""
  columns = sorted({(entry["kind"], entry["jax"]) for entry in record})
  rows = {(str(row), row.programs): {} for row in MATRIX}
  for entry in record:
    if (row := rows.get((entry["row"], entry["programs"]))) is not None:
      row[entry["kind"], entry["jax"]] = cell(entry["answers"])
  heads = ["preset strategy devices flash layers numbers documents remat more pack", "programs"]
  heads += [f"{kind}, jax {version}" for kind, version in columns]
  lines = [" | ".join(heads), "|".join(["---"] * len(heads))]
  for (name, programs), found in rows.items():
    cells = [found.get(column, "not run") for column in columns]
    lines.append(" | ".join([name, programs.replace(",", ", "), *cells]))
  return "".join(f"| {line} |\n" for line in lines)


if __name__ == "__main__":
  entries = [entry for path in sys.argv[1:] for entry in json.loads(Path(path).read_text())]
  text = HEAD.format(date=datetime.date.today()) + table(entries)
  (ROOT / "docs" / "targets_matrix.md").write_text(text)
