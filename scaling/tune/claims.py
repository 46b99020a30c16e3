"""Seals the optimum of a held-out (N, D) before its grid is trained, and says whether it held."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np

from configs.errors import DataError, UsageError
from scaling.claims.kinds import Claim
from scaling.formats import bracket, ratio, si
from scaling.laws.rates import optimum, rules
from scaling.laws.rates.grid import Grid
from scaling.sweep import plan
from scaling.sweep.training import Arm
from scaling.tune import rule
from train.system import files

NAME, VERDICT = "tune_prediction.json", "tune_verification.json"
VERSION = 1  # of both
FACTORS = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the predicted rate, that are trained
DECAYS = (1 / 3, 1.0, 3.0)  # of the predicted weight decay, where the law has one


def seal(arm: Arm, tuned: dict, at: tuple[int, int]) -> dict:
  """Writes tune_prediction.json, once: claims on the best rate and batch, and the loss lost.

  Its `batch_sizes`, `lr_factors` and `decay_factors` (of the config's rule and decay) are those of
  the grid that tests it.
  """
  law, level, path = optimum.load(tuned), arm.config.fit.level, arm.workdir / NAME
  if sealed := files.read_record(path):
    if sealed["rests_on"] != tuned["rests_on"]:
      raise UsageError(f"{path}: was sealed on other runs; use another workdir")
    return sealed
  size, tokens = at
  plain = plan.tune_cells(arm.config, arm.tokens.vocab_size, size, tokens, 1, 1.0)[0]
  N, each = plain.N, plain.tokens_per_step
  best, ends = law.best(N, tokens), law.best_interval(N, tokens, level)
  if ends is None:
    raise DataError("tune: too few (N, D) for an interval; add to tune.sizes or tune.token_counts")
  batches, given = list(arm.config.tune.batch_sizes), {}
  if "batch" in best:
    middle = 2 ** max(0, round(math.log2(best["batch"] / each)))
    batches = sorted({max(1, middle // 2), middle, 2 * middle})
    given = {"batch": middle * each}
  usual = plain.lr * math.sqrt(given.get("batch", each * batches[0]) / each)
  at_batch = law.best(N, tokens, **given)
  factors, decays = [float(f"{at_batch['lr'] / usual * f:.4g}") for f in FACTORS], [1.0]
  if "timescale" in best:
    spans = at_batch["timescale"] * at_batch["lr"] * arm.config.optim.weight_decay
    decays = [float(f"{given.get('batch', each * batches[0]) / spans * f:.4g}") for f in DECAYS]
  names = [
    cell.id
    for point in itertools.product(batches, factors, decays)
    for cell in plan.tune_cells(arm.config, arm.tokens.vocab_size, size, tokens, *point)
  ]
  if any((arm.workdir / "cells" / name / "run.json").exists() for name in names):
    raise UsageError(f"{path}: missing, and what would test it is trained; use another workdir")
  place = {"N": float(N), "D": float(tokens)}
  claims = [
    Claim(name, place, best[name], ends[name], level, tuned["rests_on"], names) for name in best
  ]
  lost = law.draw_loss_lost(N, tokens)
  most = float(np.quantile(lost, level))
  claims.append(
    Claim("loss_lost", place, float(np.median(lost)), [0.0, most], level, tuned["rests_on"], names)
  )
  record = {
    "version": VERSION, "level": level, "claims": [dataclasses.asdict(claim) for claim in claims],
    "rests_on": tuned["rests_on"], "lr_factors": factors, "batch_sizes": batches,
    "decay_factors": decays,
  }  # fmt: skip
  files.write_json(path, files.with_digests(record))
  told = ", ".join(f"{name} {best[name]:.3g} {bracket(ends[name], ratio)}" for name in best)
  arm.display.say(f"sealed: at N = {si(N)}, D = {si(tokens)} the best is {told}; of the loss "
                  f"there it costs {rule.at_most(most)}")  # fmt: skip
  return record


def judge(arm: Arm, tuned: dict, sealed: dict, heldout: Grid) -> dict:
  """Judges each claim by the held-out cell's own surface; writes tune_verification.json."""
  law, claims = optimum.load(tuned), [Claim(**claim) for claim in sealed["claims"]]
  place = claims[0].at
  measured: dict[str, float] = {}
  why = ""
  try:
    own = rules.Judge(heldout, 0, arm.config.tune.window)
    measured = own.best | {"loss_lost": own.lost(law.best(**place))}
  except DataError as error:
    why = f"Its own runs do not say where its optimum is ({error})."
  rows: list[dict[str, Any]] = []
  for claim in claims:
    value = measured.get(claim.what)
    low, high = claim.interval
    held = None if value is None else low <= value <= high
    rows.append(dataclasses.asdict(claim) | {"measured": value, "held": held})
  told = []
  for row in rows:
    told.append(f"{row['what']} {row['predicted']:.3g} {bracket(row['interval'], ratio)}")
    if measured:
      told[-1] += f", trained {row['measured']:.3g}: {'inside' if row['held'] else 'OUTSIDE'}"
  verdict = f"At N = {si(place['N'])}, D = {si(place['D'])}: {'; '.join(told)}. {why}".strip()
  result = {
    "version": VERSION, "verdict": verdict, "claims": rows,
    "held": all(row["held"] for row in rows) if measured else None,
  }  # fmt: skip
  files.write_json(arm.workdir / VERDICT, files.with_digests(result))
  return result
