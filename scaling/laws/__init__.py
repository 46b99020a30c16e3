"""Scaling laws of runs as arrays, with how sure they are: the library behind `isoflop fit`.

  from configs import base
  from scaling import laws

  N, D = 3 * [1e6] + 3 * [3e6] + 3 * [1e7], [2e7, 6e7, 2e8, 6e7, 2e8, 6e8, 2e8, 6e8, 2e9]
  loss = [5.706, 4.828, 4.251, 4.272, 3.681, 3.342, 3.284, 2.950, 2.712]
  runs = laws.make_runs(N, D, loss)  # or laws.read_runs("runs.csv"); C = 6 N D unless given
  law = laws.fit_runs(runs, base.get_config().fit)
  best = laws.optimum(law, 1e17)  # N_opt, D_opt, tokens_per_param, loss, each with its interval
  value, interval = laws.predict_loss(law, 3e7, 6e8)  # of one run that is yet to be trained

What else there is, by question:

- Can it be quoted at all? `undetermined(law)` lists why not, and what would help.
- Which estimator? `side_by_side(law)` runs the three approaches of Hoffmann et al. 2022.
- Which runs matter? `jackknife(law)`.
- What can this design tell at all? `identifiability(runs)`.
- Another form? `options.form`, or `fit_runs(runs, options, FORMS["kaplan_nd"])`;
  `compare_forms(runs)` says which one forecasts the larger budgets from the smaller ones.
- A record? `to_json(law)` is the content of fit.json.

N counts parameters, D tokens, C FLOPs; losses are in nats per token. Needs numpy; and jax, where
another form than Chinchilla's is fitted.
"""

import importlib
from typing import Any

MODULES = {
  "compare": ("compare_forms",),
  "estimators": ("Curve", "isoflop_profiles", "make_curves", "side_by_side"),
  "fit": ("fit_runs",),
  "fit_json": ("to_json",),
  "forms": ("FORMS", "Form", "evaluate"),
  "fitted": ("Fit", "Options"),
  "intervals.bootstrap": ("interval", "seed_noise"),
  "intervals.predictions": (
    "check_sealable", "new_run_noise", "optimum", "predict_loss", "ratio_cost", "undetermined",
  ),
  "law": ("Law",),
  "tables.read": ("read_runs",),
  "tables.runs": ("Runs", "identifiability", "input_hash", "make_runs"),
  "sensitivity": ("jackknife",),
}  # fmt: skip
__all__ = sorted(name for names in MODULES.values() for name in names)


def __getattr__(name: str) -> Any:
  """Imports a name from its module when it is first used."""
  for module, names in MODULES.items():
    if name in names:
      return getattr(importlib.import_module(f"scaling.laws.{module}"), name)
  raise AttributeError(f"scaling.laws has no {name!r}; it has {', '.join(__all__)}")
