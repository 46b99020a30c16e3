"""Fits how the best learning rate and batch size grow with N and D, and judges published rules.

  isoflop tune --runs=grid.csv --columns=lr=lr,batch=tokens,loss=val_loss --workdir=runs/tune

The table has several rates (and batches) at each of several (N, D). A run whose loss is missing or
not finite has diverged. It writes tune.json and its figures to --workdir, and prints the optimum,
what the law loses at cells that it was not fitted to, and what published rules lose there.
"""

from absl import flags

from configs.bounds import positive
from scaling.arguments import RUNS, WORKDIR, Flag, workdir_of

FLAGS: tuple[Flag, ...] = (
  WORKDIR,
  *RUNS,
  ("seq_len", positive(1), "Tokens per sequence, where the batch column counts sequences."),
  ("window", positive(0.01), "Runs within this share of their cell's lowest loss are fitted."),
  ("level", positive(0.9), "Probability content of every interval."),
)


def run(args: flags.FlagValues) -> None:
  from configs.errors import UsageError
  from scaling.laws.rates import grid, record
  from scaling.laws.tables import read
  from scaling.report.figures import rates
  from train.system import files

  workdir = workdir_of(args)
  if not args.runs:
    raise UsageError("--runs is missing; name a table of runs, --runs=grid.csv for instance")
  runs = read.read_runs(
    args.runs, args.columns, where=args.where, exclude=args.exclude, diverged=True
  )
  factors = {name: runs.extra[name] for name in grid.FACTORS if name in runs.extra}
  if "lr" not in factors:
    raise UsageError("--columns: no column is named for the learning rate; add lr=COLUMN")
  if "batch" in factors:
    factors["batch"] = factors["batch"] * args.seq_len
  cells = grid.make_grid(runs.N, runs.D, runs.loss, factors, runs.extra.get("width"))
  result = record.make(cells, args.window, args.level)
  files.make_folder(workdir)
  files.write_json(workdir / "tune.json", files.with_digests(result))
  rates.draw(workdir, result, cells)
  print(record.text(result))
