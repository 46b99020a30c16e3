"""Writes the files of a fit: reads runs, fits the law, varies its choices, answers questions.

It writes fit.json, and runs.csv beside it where the runs are not those of a sweep's folder, so that
the report needs nothing else.
"""

import contextlib
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs.errors import UsageError, UserError
from scaling.claims import integrity
from scaling.laws import compare, estimators, fit, fit_json, sensitivity
from scaling.laws.intervals import predictions
from scaling.laws.questions import NOTHING, Questions, answers
from scaling.laws.tables import curves, read
from scaling.laws.tables.read import read_runs, validation_sets
from scaling.laws.tables.runs import Runs, UnidentifiableError
from train.system import files

BY = "by.json"
MAX_DRAWN = 10_000  # of more runs than this no copy is kept, and no figure is drawn


def write_fit(
  workdir: Path,
  options: ConfigDict,
  path: str = "",
  columns: str = "",
  where: Sequence[str] = (),
  exclude: Sequence[str] = (),
  questions: Questions = NOTHING,
  compare_forms: bool = False,
) -> fit.Fit:
  """Fits the law to the runs of a table and writes fit.json.

  Where the runs do not identify it, an earlier fit.json is removed; what runs along one line do
  tell is written to line.json.

  `path` is a table of runs, or another sweep's folder; "": the workdir is a sweep's. It and the
  next three are as `read_runs` has them. `compare_forms` holds other forms against the law, by
  held-out error, which takes up to a minute.
  """
  if path and (workdir / "sweep.json").exists():
    raise UsageError(f"workdir={workdir}: holds a sweep; fit --runs={path} in another workdir")
  if not path:
    from scaling.sweep import store  # imports jax, which the fit of a table does without

    store.read_sweep(workdir)  # or it says that there is none
  source = path or workdir
  integrity.check_source(Path(source))
  reading: dict[str, Any] = {"columns": columns, "where": list(where), "exclude": list(exclude)}
  counting: dict[str, Any] = {"params": options.params, "flops": options.flops}
  runs = read_runs(source, **reading, **counting, loss=options.loss)
  files.make_folder(workdir)
  for name in ("line.json", BY):  # of an earlier fit
    (workdir / name).unlink(missing_ok=True)
  try:
    law = fit.fit_runs(runs, options)
  except UnidentifiableError:
    for name in ("fit.json", "fit.npz", "runs.csv"):  # of an earlier fit
      (workdir / name).unlink(missing_ok=True)
    with contextlib.suppress(UserError):  # the runs are refused either way
      if line := compare.along(runs, options):
        files.write_json(workdir / "line.json", line)
    raise
  rows = curves.read_curves(workdir, law.runs.ids, law.runs.N, law.runs.D, law.runs.C)
  trained = None if path else estimators.make_curves(rows)
  forms = list(dict.fromkeys((law.form, *compare.DEFAULT)))
  record = fit_json.to_json(law, trained) | {
    "reading": reading,
    "choices": sensitivity.vary_choices(source, options, columns, where, exclude),
    "heldout": compare.compare_forms(runs, forms, options.delta) if compare_forms else None,
    "decisions": [],
    "sets": fit_sets(law, options, source, **reading, **counting),
  }
  if not record["undetermined"]:
    record["decisions"] = answers(law, questions, options.target_tokens_per_param)
  files.write_json(workdir / "fit.json", files.with_digests(record))
  _write_draws(workdir / "fit.npz", law)
  (workdir / "runs.csv").unlink(missing_ok=True)  # of an earlier fit
  if path and len(runs) <= MAX_DRAWN:
    _write_runs(workdir / "runs.csv", runs)
  return law


def write_fits_by(
  column: str, workdir: Path, options: ConfigDict, path: str, columns: str, where: Sequence[str],
  *how: Any,
) -> list[str]:  # fmt: skip
  """Fits the law to the runs of each value of a column, in a folder of its own; writes by.json.

  The other arguments are those of `write_fit`. Returns the values whose runs determine no law, each
  with the reason.
  """
  if not path or (workdir / "sweep.json").exists():
    raise UsageError(f"by={column}: name the runs with --runs, and a --workdir that is no sweep's")
  rows: list[dict[str, Any]] = []
  found: list[tuple[dict[str, Any], fit.Fit]] = []
  for value, condition in read.groups(path, column).items():
    folder = f"{column}={value}".replace("%", "%25").replace("/", "%2F")
    rows.append({"set": value, "folder": folder})
    try:
      law = write_fit(workdir / folder, options, path, columns, [*where, condition], *how)
      if reasons := predictions.undetermined(law):
        raise UnidentifiableError("; ".join(reasons))
      found.append((rows[-1], law))
    except UserError as error:
      rows[-1]["reason"] = str(error)
  C = max((float(law.runs.C.max()) for _, law in found), default=0.0)
  for row, law in found:
    optimum = predictions.known(predictions.optimum(law, C))
    row |= {"C": C, "optimum": optimum, **fit_json.law_json(law)}
  files.write_json(workdir / BY, {"column": column, "sets": rows})
  return [f"{column}={row['set']}: {row['reason']}" for row in rows if "reason" in row]


def fit_sets(
  law: fit.Fit, options: ConfigDict, source: str | Path, **reading: Any
) -> list[dict[str, Any]]:
  """Fits the law to the loss on each validation set of a table; [] where there is only one.

  Each row has its set; what fit.json has of a law, and the optimum at C, the largest budget; or the
  reason why there is none.
  """
  names, C = validation_sets(source), float(law.runs.C.max())
  rows = []
  for name in names if len(names) > 1 else ():
    row: dict[str, Any] = {"set": name, "C": C}
    try:
      runs = read_runs(source, **reading, loss=name)
      of_set = law if name == options.loss else fit.fit_runs(runs, options)
      predictions.check_sealable(of_set, C)
      row |= fit_json.law_json(of_set) | {"optimum": predictions.optimum(of_set, C)}
    except UserError as error:
      row["reason"] = str(error)
    rows.append(row)
  return rows


def _write_draws(path: Path, law: fit.Fit) -> None:
  """Writes the parameters' names, values [p], draws [R, p] and covariance [p, p]."""
  draws = np.stack([law.draws.params[name] for name in law.params], axis=1)
  values, covariance, content = list(law.params.values()), np.cov(draws.T), io.BytesIO()
  np.savez(content, names=[*law.params], values=values, draws=draws, covariance=covariance)
  files.write_bytes(path, content.getvalue())


def _write_runs(path: Path, runs: Runs) -> None:
  """Writes runs as a table with the columns of cells.csv, unknown ones left blank."""
  text = io.StringIO()
  writer = csv.DictWriter(text, read.CELL_COLUMNS, restval="", lineterminator="\n")
  writer.writeheader()
  for i, name in enumerate(runs.ids):
    row = {"cell": name, "kind": "fit", "status": "done"}
    row |= {key: getattr(runs, key)[i] for key in ("N", "D", "C", "loss")}
    writer.writerow(row)
  files.write_text(path, text.getvalue())
