"""Fits the law to a sweep's cells, or to any table of runs, and answers questions about it.

  isoflop fit --workdir=runs/quick
  isoflop fit --runs=runs.csv --columns=N=params,D=tokens --workdir=runs/fit

Runs along one line (a single size, or one ratio of tokens to parameters) are refused; a law in the
variable that varies is fitted to them, printed, and written to line.json.
"""

from typing import Any

from absl import flags

from configs.bounds import at_least_0
from scaling.arguments import RUNS, WORKDIR, Flag, workdir_of

CONFIG = "configs/base.py"
FLAGS: tuple[Flag, ...] = (
  WORKDIR,
  *RUNS,
  ("by", "", "A column, as dataset: fits the runs of each of its values by themselves."),
  ("target_flops", "", "Asks for the best model of this compute: 1e21, or 0.5PFs-days."),
  ("target_loss", at_least_0(0.0), "Asks for the least compute that reaches this loss."),
  ("inference_tokens", at_least_0(0.0), "Asks for the cheapest model to serve so many tokens."),
  ("max_tokens", at_least_0(0.0), "Asks for the best model of only so many unique tokens."),
  ("predict", [], "Asks for the loss of one run, as N=7e9,D=4e12; may be given several times."),
  ("compare_forms", False, "Compares the law with other forms by held-out error: a minute."),
)


def run(args: flags.FlagValues) -> None:
  from scaling.laws import compare, questions
  from scaling.laws.intervals import predictions
  from scaling.laws.tables.runs import UnidentifiableError
  from scaling.report import document
  from scaling.sweep import fit_files
  from train.system import files

  flops, runs = questions.parse_flops(args.target_flops), map(questions.parse_run, args.predict)
  targets = questions.Questions(
    flops, args.target_loss, args.inference_tokens, args.max_tokens, tuple(runs)
  )
  workdir, reading = workdir_of(args), (args.runs, args.columns, args.where, args.exclude)
  how: tuple[Any, ...] = (args.config.fit, *reading, targets, args.compare_forms)
  if args.by:
    refused = fit_files.write_fits_by(args.by, workdir, *how)
    print(document.terminal(workdir), flush=True)
    if refused:
      raise UnidentifiableError(f"fit: undetermined: {'; '.join(refused)}")
    return
  try:
    law = fit_files.write_fit(workdir, *how)
  except UnidentifiableError:
    if line := files.read_json(workdir / "line.json"):
      print(compare.line_text(line) + "\n", flush=True)
    raise
  print(document.terminal(workdir), flush=True)
  if reasons := predictions.undetermined(law):
    raise UnidentifiableError(f"fit: undetermined: {'; '.join(reasons)}")
