"""Seals the prediction of a sweep's fit, trains what is left of its held-out cells, judges.

  isoflop verify --workdir=runs/quick
  isoflop verify --seal=prediction.json --runs=runs.csv --columns=N=params,D=tokens

With --seal it trains nothing: it prints the hash of somebody's seal, and judges each of its claims
by the runs that answer it. A run answers the claim on a cell whose N and D it has, within
--tolerance. The exit code is 0 where the sealed losses held at every budget that these runs tell
of, 1 where they did not, and 2 where nothing can be told, or the seal is not as it was sealed.
"""

from pathlib import Path
from typing import Any

from absl import flags

from configs import base
from configs.bounds import between_0_and_1
from configs.errors import DataError, RunError, UsageError
from scaling.arguments import RUNS, WORKDIR, Flag, workdir_of

RESUMABLE = True
FLAGS: tuple[Flag, ...] = (
  WORKDIR,
  ("seal", "", "A prediction.json, from whomever: judges it by --runs, or by those beside it."),
  ("tolerance", between_0_and_1(0.01), "How far N and D of a run may be off those of a claim."),
  *RUNS,
)


def run(args: flags.FlagValues) -> None:
  from scaling.progress import Display
  from scaling.report import document
  from scaling.sweep import run as sweep_run
  from scaling.sweep import store
  from train.system import process

  if args.seal:
    check_seal(args)
    return
  if args.runs:
    raise UsageError("--runs: a sweep has its runs; name the --seal that these shall test")
  workdir = workdir_of(args)
  stored = store.read_sweep(workdir)[0]["config"]
  config = base.from_json(stored, f"{workdir}/sweep.json")
  should_stop = process.StopSignal().install()
  with Display(config.sweep.name) as display:
    sweep_run.sweep(config, workdir, display, should_stop, began=process.BEGAN)
  print(document.terminal(workdir))


def check_seal(args: flags.FlagValues) -> None:
  """Judges a seal by a table of runs, and prints what it says of each claim."""
  from scaling.claims import integrity, prediction_json, verdict
  from scaling.laws.tables import read

  path = Path(args.seal).expanduser()
  sealed = prediction_json.read(path) if path.is_file() else None
  if sealed is None:
    raise UsageError(f"--seal={path}: no such file")
  print(f"{path} is as it was sealed, on {sealed['n_runs']} runs\nsha256:{sealed['sha256']}")
  source = Path(args.runs or path.parent).expanduser()
  integrity.check_source(source)
  runs = read.read_runs(
    source, args.columns, where=args.where, exclude=args.exclude, kinds=("fit", "heldout"),
    **sealed.get("counting", {}),
  )  # fmt: skip
  addressed, trained = verdict.addressed(sealed, runs, args.tolerance)
  if not trained:
    raise DataError(
      f"--runs={source}: none of {len(runs)} runs has the N and D of a sealed cell within "
      f"{args.tolerance:.1%}; train the cells that the seal names, or raise --tolerance"
    )
  result = verdict.assess(addressed, trained)
  result |= verdict.conclude(result["budgets"], sealed)
  print(
    f"\n{claims_table(result['claims'])}\n", *(x["verdict"] for x in result["budgets"]), sep="\n"
  )
  if not result["held"]:
    raise RunError(f"--seal={path}: {result['verdict']}")


def claims_table(claims: list[dict[str, Any]]) -> str:
  """Makes the table of judged claims, with how many runs tell each."""
  from scaling.formats import bracket, flops, nats, ratio, si, text_table, yes_no

  rows = []
  for claim in claims:
    at, form = claim["at"], nats if "loss" in claim["what"] else si
    form = ratio if claim["what"] == "tokens_per_param" else form
    where = f"N = {si(at['N'])}, D = {si(at['D'])}" if "N" in at else "the optimum"
    rows.append(
      (claim["what"], flops(at.get("budget", at["C"])), where, form(claim["predicted"]),
       bracket(claim["interval"], form), str(len(claim["tested_by"])), form(claim["measured"]),
       yes_no(claim["held"]))
    )  # fmt: skip
  columns = "claim|C [FLOPs]|of|sealed|interval|runs|trained|held"
  return text_table(columns.split("|"), rows)
