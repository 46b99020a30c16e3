"""Counts how often the quick sweep's prediction holds: other seeds, other splits, other texts.

  python docs/repeats.py runs/repeats docs/records/quick_repeats.json \
    --texts=python_stdlib,text:~/books --seeds=1,2,3

Every text is swept with every seed, which is also that of the split. What is finished is not run
again, so texts and seeds can be added. The record has a row for each sweep.
"""

import argparse
import datetime
import json
import platform
import re
import subprocess
from pathlib import Path

from scaling.claims import prediction_json
from scaling.formats import duration
from scaling.launch import child

COLUMNS = [
  "text", "seed", "predicted [nats]", "trained", "off by", "held-out cells inside",
  "N\\* predicted", "minimum where predicted", "minutes", "of these training",
]  # fmt: skip


def main() -> None:
  """Runs the sweeps that are missing, and writes the record of all that were asked for."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("workdir", type=Path)
  parser.add_argument("record", type=Path)
  parser.add_argument("--texts", default="python_stdlib")
  parser.add_argument("--seeds", default="1,2,3")
  parser.add_argument("--machine", default=platform.machine())
  args = parser.parse_args()
  rows, held = list[list[str]](), 0
  for text in args.texts.split(","):
    for seed in map(int, args.seeds.split(",")):
      folder = args.workdir / f"{re.sub('[^a-z0-9]+', '_', text.lower())}_{seed}"
      if not (folder / "verification.json").exists():
        fields = {"data.source": text, "seed": seed, "data.validation_seed": seed}
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        config = "--config=configs/sweeps/quick.py"
        command = child.command("scaling.main", "sweep", config, f"--workdir={folder}", *flags)
        subprocess.run(command, env=child.environment(), cwd=child.ROOT, check=True)
      cells, inside = read(text, seed, folder)
      rows.append(cells)
      held += inside
      print(*cells, sep="\t", flush=True)
  record = {
    "command": "python docs/repeats.py runs/repeats docs/records/quick_repeats.json",
    "date": str(datetime.date.today()),
    "machine": args.machine,
    "columns": COLUMNS,
    "rows": rows,
  }
  args.record.write_text(json.dumps(record, indent=1) + "\n")
  print(f"{held} of {len(rows)} predictions of the loss at the optimum held")


def read(text: str, seed: int, folder: Path) -> tuple[list[str], bool]:
  """Reads the row of a finished sweep, and whether its loss at the optimum was inside."""
  sealed = prediction_json.read(folder)
  assert sealed is not None
  (budget,) = sealed["budgets"]
  verification, costs = (
    json.loads((folder / f"{name}.json").read_text()) for name in ("verification", "costs")
  )
  (result,) = verification["budgets"]
  (low, high), (least, most) = budget["interval"], budget["N_interval"]
  cells = verification["cells"]
  minimum = {True: "yes", False: "no", None: "outside what was trained"}
  row = [
    text.rpartition("/")[2], str(seed),
    f"{budget['loss']:.3f} [{low:.3f}, {high:.3f}]", f"{result['trained_loss']:.3f}",
    f"{result['relative_error']:+.1%}", f"{sum(c['inside'] for c in cells)} of {len(cells)}",
    f"{budget['N'] / 1e3:.0f}k [{least / 1e3:.0f}k, {most / 1e3:.0f}k]",
    minimum[result["minimum_where_predicted"]], duration(seconds := sum(costs["parts"].values())),
    f"{costs['parts']['train'] / seconds:.0%}",
  ]  # fmt: skip
  return row, verification["held"]


if __name__ == "__main__":
  main()
