"""Writes report.md, report.html and figures/ of a workdir from the records in it.

isoflop report --workdir=runs/quick
"""

from absl import flags

from configs.errors import UsageError
from scaling.arguments import WORKDIR, Flag, workdir_of

FLAGS: tuple[Flag, ...] = (WORKDIR,)


def run(args: flags.FlagValues) -> None:
  from scaling.report import document

  workdir = workdir_of(args, exists=True)
  if not any((workdir / name).exists() for name in ("sweep.json", "fit.json", "by.json")):
    raise UsageError(f"workdir={workdir}: no sweep.json and no fit.json there; nothing to report")
  print(document.write(workdir))
