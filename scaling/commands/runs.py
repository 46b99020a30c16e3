"""Lists the runs of a folder: their size, tokens, loss, status, and the parents of warm starts.

isoflop runs --workdir=runs/quick

Of a cell under way it says with which loss it is expected to end, from all curves so far.
"""

from pathlib import Path

from absl import flags

from configs.errors import UsageError
from scaling.arguments import WORKDIR, Flag, workdir_of

FLAGS: tuple[Flag, ...] = (WORKDIR,)


def run(args: flags.FlagValues) -> None:
  print(runs_table(workdir_of(args, exists=True)))


def runs_table(workdir: Path) -> str:
  """Makes the table of a sweep's cells, or of the runs in a folder and its subfolders."""
  from scaling.formats import bracket, headed, nats, text_table
  from scaling.report import expected
  from scaling.sweep import store
  from train import record

  records = []
  if (workdir / "sweep.json").exists():
    head, cells = store.read_sweep(workdir)
    if arms := head["config"]["sweep"].get("arms"):
      return headed({x: runs_table(workdir / x) for x in arms if (workdir / x).is_dir()})
    for cell in cells:
      stored = store.outcome(workdir, cell)
      for name in ("N", "D", "C", "lr"):
        stored.setdefault(name, getattr(cell, name))
      records.append((cell.id, stored))
    for name, (loss, interval) in expected.final_losses(workdir, head, cells).items():
      dict(records)[name]["expected"] = f"{nats(loss)} {bracket(interval)}"
  else:
    for path in sorted([*workdir.glob("run.json"), *workdir.glob("*/run.json")]):
      records.append((path.parent.name, record.read(path.parent) or {}))
  if not records:
    raise UsageError(f"workdir={workdir}: no runs there (no sweep.json, no run.json)")
  rows, sets = [], set[str]()
  for _, stored in records:
    for further, metrics in stored.get("evaluations", {}).items():
      sets.add(f"loss_{further}")
      if "loss" in metrics:
        stored[f"loss_{further}"] = metrics["loss"]
    if "N" in stored:  # else it failed before it began
      stored["D/N"] = stored["D"] / stored["N"]
  columns = {"N": ",", "D": ",", "C": ".3e", "D/N": ".1f", "lr": ".2e", "loss": ".4f"}
  columns |= {"loss_stderr": ".4f", "bits_per_byte": ".4f", "seconds": ".1f"}
  columns |= dict.fromkeys(sorted(sets), ".4f")
  for name, stored in records:
    status = stored["status"] + (f": {stored['error']}" if stored["status"] == "failed" else "")
    numbers = (f"{stored[key]:{form}}" if key in stored else "" for key, form in columns.items())
    parent = stored.get("warm_start")
    origin = f"{Path(parent['folder']).name} at step {parent['step']}" if parent else ""
    rows.append((name, status, *numbers, stored.get("expected", ""), origin))
  titles = {"loss_stderr": "stderr", "bits_per_byte": "bits/byte"}
  header = ["run", "status", *(titles.get(key, key) for key in columns)]
  header += ["expected loss", "started from"]
  kept = [i for i, name in enumerate(header) if i < len(header) - 2 or any(r[i] for r in rows)]
  return text_table([header[i] for i in kept], [[row[i] for i in kept] for row in rows])
