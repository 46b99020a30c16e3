"""Seals a prediction before it is tested: prediction.json."""

import dataclasses
from pathlib import Path

from ml_collections import ConfigDict

from configs.errors import UsageError
from scaling.claims import integrity, kinds, prediction_json
from scaling.laws import fit
from scaling.laws.intervals import predictions
from scaling.laws.tables import runs
from scaling.sweep import plan
from train.system import files


def seal(
  config: ConfigDict, workdir: Path, law: fit.Fit, cells: list[plan.Cell], corpus: plan.Corpus
) -> tuple[dict, list[plan.Cell]]:
  """Writes prediction.json, once, and returns it with the held-out cells that will test it.

  It covers the held-out budgets that can be trained and whose optimum the law determines; where
  there is none, sealing is refused. A prediction that is already sealed stays, and is returned with
  its own cells, as long as the runs that it was fitted on are the same.
  """
  if sealed := prediction_json.read(workdir):
    integrity.check_runs(workdir, sealed, law.runs)
    return sealed, plan.sealed_cells(config, corpus[0], sealed)
  for path in sorted((workdir / "cells").glob("heldout_*/run.json")):
    raise UsageError(
      f"{workdir / prediction_json.NAME}: missing, and {path.parent.name} is trained already; what "
      "is sealed now would be no prediction: put the file back, or use another workdir"
    )

  def n_opt(C: float) -> float:
    predictions.check_sealable(law, C)
    return predictions.optimum(law, C)["N_opt"]

  planned = plan.heldout(config, corpus, cells, n_opt)
  budgets = [budget for budget in planned if not budget.reason]
  input_hash = runs.input_hash(law.runs)
  claims, heldout = [], list[plan.Cell]()
  for budget in budgets:
    every = plan.with_seeds(config, budget.cells)
    heldout += every
    for what, kind in kinds.KINDS.items():
      if kind.of_each == "cell":
        for cell in budget.cells:
          at = {"N": cell.params(config.fit.params), "D": cell.D, "C": cell.C, "budget": budget.C}
          names = [repeat.id for repeat in plan.with_seeds(config, [cell])]
          claims.append(kinds.predict(what, at, law, input_hash, names))
      else:
        names = [cell.id for cell in every]
        claims.append(kinds.predict(what, {"C": budget.C}, law, input_hash, names))
  record = {
    "version": prediction_json.VERSION,
    "level": law.options.level,
    "counting": {name: config.fit[name] for name in ("params", "flops", "loss")},
    "budgets": [{"C": x.C, "times": x.times, "passed_over": x.passed_over} for x in budgets],
    "refused": [{"C": x.C, "times": x.times, "reason": x.reason} for x in planned if x.reason],
    "claims": [dataclasses.asdict(claim) for claim in claims],
    "input_hash": input_hash,
    "n_runs": len(law.runs),
    "runs": integrity.rows(law.runs),
  }
  files.write_json(workdir / prediction_json.NAME, files.with_digests(record))
  sealed = prediction_json.read(workdir)
  assert sealed is not None
  return sealed, heldout
