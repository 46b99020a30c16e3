"""Fits how the best learning rate and batch size grow with N and D, and judges published rules.

  isoflop tune --runs=grid.csv --columns=lr=lr,batch=tokens,loss=val_loss --workdir=runs/tune
  isoflop tune --config=configs/sweeps/quick.py --workdir=runs/tune

--runs is a table with several rates (and batches) at each of several (N, D); a run whose loss is
missing or not finite has diverged. Without it, the grid of config.tune is trained; the optimum of a
held-out (N, D) is sealed, its grid is trained, the verdict said, and tune_all.json written: the law
of all these runs. Both write tune.json and figures to --workdir, and print the optimum and what the
law and published rules lose at held-out cells. A sweep takes rates and batches from either file, as
--config.optim.rule=runs/tune/tune_all.json.
"""

from absl import flags

from configs.bounds import positive
from scaling.arguments import RUNS, WORKDIR, Flag, workdir_of

CONFIG = "configs/sweeps/quick.py"
RESUMABLE = True
FLAGS: tuple[Flag, ...] = (
  WORKDIR,
  *RUNS,
  ("seq_len", positive(1), "Tokens per sequence, where the batch column counts sequences."),
  ("window", positive(0.01), "Runs within this share of their cell's lowest loss are fitted."),
  ("level", positive(0.9), "Probability content of every interval."),
)


def run(args: flags.FlagValues) -> None:
  if args.runs:
    fit(args)
    return
  from scaling.progress import Display
  from scaling.tune import run as tune_run
  from train.system import process

  should_stop = process.StopSignal().install()
  with Display(f"{args.config.sweep.name}, tune") as display:
    result = tune_run.tune(args.config, workdir_of(args), display, should_stop, process.BEGAN)
  print(result["verdict"])


def fit(args: flags.FlagValues) -> None:
  """Fits the runs of --runs."""
  from configs.errors import UsageError
  from scaling.laws.rates import grid, tune_json
  from scaling.laws.tables import read
  from scaling.report.figures import rates
  from train.system import files

  workdir = workdir_of(args)
  runs = read.read_runs(
    args.runs, args.columns, where=args.where, exclude=args.exclude, diverged=True
  )
  factors = {name: runs.extra[name] for name in grid.FACTORS if name in runs.extra}
  if "lr" not in factors:
    raise UsageError("--columns: no column is named for the learning rate; add lr=COLUMN")
  if "batch" in factors:
    factors["batch"] = factors["batch"] * args.seq_len
  cells = grid.make_grid(runs.N, runs.D, runs.loss, factors, runs.extra.get("width"))
  result = tune_json.make(cells, args.window, args.level)
  files.make_folder(workdir)
  files.write_json(workdir / "tune.json", files.with_digests(result))
  rates.draw(workdir, result, cells)
  print(tune_json.text(result))
