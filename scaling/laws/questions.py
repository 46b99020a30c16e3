"""Decisions from a fitted law: what to train for a budget, for a loss, to be served, on few data.

answers(fit, Questions(flops=1e21, inference_tokens=2e12))
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from configs.errors import UsageError
from scaling.formats import pf_days
from scaling.laws import chinchilla
from scaling.laws.chinchilla import Optimum
from scaling.laws.fitted import Fit
from scaling.laws.intervals.bootstrap import FEWEST_DRAWS, interval
from scaling.laws.intervals.predictions import (
  far,
  form_noise,
  known,
  optimum,
  predict_loss,
  ratio_cost,
  undetermined,
)
from scaling.laws.law import CLOSED

NEVER = 1e60  # stands for what is beyond all reach
FLAGS = {"flops": "target_flops", "loss": "target_loss"}  # the others are their names
NUMBERS = ("flops", "loss", "inference_tokens", "max_tokens")
GROWING = ("C", "N", "D", "epochs", "total_flops")  # what has no end where a loss is not reached


@dataclasses.dataclass(frozen=True)
class Questions:
  """What is asked of a law; 0: not asked."""

  flops: float = 0.0  # training compute [FLOPs]
  loss: float = 0.0  # a loss to reach [nats per token]
  inference_tokens: float = 0.0  # tokens that the model will serve in its life
  max_tokens: float = 0.0  # unique tokens that there are
  predict: tuple[tuple[float, float], ...] = ()  # (N, D) of single runs

  def __post_init__(self):
    for name in NUMBERS:
      flag, value = FLAGS.get(name, name), getattr(self, name)
      if not 0 <= value < np.inf:
        raise UsageError(f"{flag}={value:g}: must be a positive number")
    for name in ("inference_tokens", "max_tokens"):
      if getattr(self, name) and not (self.flops or self.loss):
        raise UsageError(
          f"{name}={getattr(self, name):g}: of which model? add --target_flops=C (the best one for "
          "that compute) or --target_loss=L"
        )


NOTHING = Questions()


def parse_flops(text: str, flag: str = "target_flops") -> float:
  """Parses a compute in FLOPs: "1e21" (FLOPs) or "0.5PFs-days" (petaflop/s-days); "": 0.

  Raises:
    UsageError: it is neither.
  """
  if not text:
    return 0.0
  parts = re.fullmatch(r"\s*([-+.\deE]+?)\s*(PFs-days?)?\s*", text)
  try:
    value = float(parts[1]) if parts else np.nan
  except ValueError:
    value = np.nan
  if not 0 < value < np.inf:
    raise UsageError(f"{flag}={text}: write FLOPs as 1e21, or petaflop/s-days as 0.5PFs-days")
  return value / pf_days(1.0) if parts and parts[2] else value


def parse_run(text: str) -> tuple[float, float]:
  """Parses the N and D of a run: "N=7e9,D=4e12"; raises UsageError where it is not that."""
  try:
    (n, N), (d, D) = sorted(part.split("=") for part in text.replace(" ", "").split(","))[::-1]
    if (n, d) == ("N", "D") and 1 <= float(N) < np.inf and 1 <= float(D) < np.inf:
      return float(N), float(D)
  except ValueError:
    pass
  raise UsageError(f"predict={text}: write a run as N=7e9,D=4e12: its parameters and its tokens")


def answers(fit: Fit, questions: Questions, tokens_per_param: float = 20.0) -> list[dict[str, Any]]:
  """Answers each question by a decision, with intervals; JSON of plain numbers.

  `tokens_per_param` is the rule of thumb to compare with.

  Returns:
    Decisions: the question, the answer's row, rows to compare it with, how far it extrapolates.

  Raises:
    UsageError: the loss asked for lies below what the law reaches, or below what so few tokens
      allow; the runs determine no optimum, and more is asked than a loss for a budget; or tokens
      are repeated under another form than Chinchilla's.
  """
  q = questions
  _check(fit, q)
  decisions = []
  if q.flops:
    rows = _at_flops(fit, q.flops, tokens_per_param)
    decisions.append(_decision(fit, "target_flops", q.flops, rows))
  if q.loss:
    decisions.append(_decision(fit, "target_loss", q.loss, [_reaching(fit, q)]))
  if q.inference_tokens:
    decisions.append(_decision(fit, "inference_tokens", q.inference_tokens, _serving(fit, q)))
  if q.max_tokens:
    rows = _constrained(fit, q) if q.flops else _reaching_on_few(fit, q)
    published = {
      "R_D": chinchilla.REPEATED_TOKENS,
      "R_N": chinchilla.EXCESS_PARAMS,
      "source": "arXiv:2305.16264",
    }
    decision = _decision(fit, "max_tokens", q.max_tokens, rows)
    decisions.append(decision | {"published": published})
  if q.predict:
    rows = [_run(fit, *run) for run in q.predict]
    decisions.append(_decision(fit, "predict", [list(run) for run in q.predict], rows))
  return decisions


def _check(fit: Fit, q: Questions) -> None:
  reasons = undetermined(fit)
  for name in ("loss", "inference_tokens", "max_tokens"):
    if reasons and (value := getattr(q, name)):
      raise UsageError(f"{FLAGS.get(name, name)}={value:g}: no best model: {reasons[0]}")
  if q.max_tokens and fit.form not in CLOSED:
    raise UsageError(
      f"max_tokens={q.max_tokens:g}: what repeated tokens are worth is published for "
      f"Chinchilla's form, and fit.form is {fit.form}; fit that"
    )
  if q.loss and q.loss <= (floor := fit.params.get("E", 0.0)):
    raise UsageError(
      f"target_loss={q.loss:g}: the law's floor is E = {floor:.4f}; no compute "
      "reaches less: ask for more"
    )
  if q.loss and not np.isfinite(fit.law.cheapest(q.loss).N):
    raise UsageError(f"target_loss={q.loss:g}: no model that the law tells of reaches it")


def _decision(fit: Fit, question: str, value: Any, rows: list[dict]) -> dict[str, Any]:
  farthest = max(fit.outside(row["C"], row["N"], row["D"]) for row in rows)
  return {
    "question": question,
    "asked": value,
    "rows": rows,
    "extrapolation": farthest,
    "extrapolated": far(farthest),
  }


def _row(fit: Fit, name: str, values: Mapping[str, Any], draws: Mapping[str, Any]) -> dict:
  """Makes a row from the values of the law, with intervals from those of its bootstrap.

  Of resamples that reach no such loss the `GROWING` are beyond every number; what else they say
  does not count.
  """
  row: dict[str, Any] = {"name": name}
  for key, value in values.items():
    row[key] = float(value)
    sample = np.broadcast_to(draws[key], fit.options.bootstraps)
    if key in GROWING:
      sample = np.minimum(np.nan_to_num(sample, nan=NEVER), NEVER)
    else:
      sample = sample[np.isfinite(sample)]
    if len(sample) >= FEWEST_DRAWS and np.ptp(sample) > 1e-9 * abs(row[key]):
      ends = interval(sample, fit.options.level, row[key])
      row[f"{key}_interval"] = [end if abs(end) < 1e-9 * NEVER else None for end in ends]
  row["petaflop_s_days"] = pf_days(row["C"])
  return row


def _form(fit: Fit, model: Mapping[str, Any]) -> np.ndarray:
  """Draws the factor [R] by which the law's form errs on the loss of a model."""
  return np.exp(form_noise(fit, *(float(model[key]) for key in ("C", "N", "D"))))


@np.errstate(invalid="ignore")  # inf / inf, where no model reaches a loss
def _model(fit: Fit, best: Optimum) -> dict[str, Any]:
  N, D, loss = best
  C = fit.compute.flops_per_token(N) * D
  return {"N": N, "D": D, "tokens_per_param": D / N, "C": C, "loss": loss}


def _at_flops(fit: Fit, C: float, tokens_per_param: float) -> list[dict[str, Any]]:
  """Makes the rows of the best model for a compute, and of a fixed ratio D/N."""
  best, rule = known(optimum(fit, C)), ratio_cost(fit, C, tokens_per_param)
  row: dict[str, Any] = {"name": "optimum", "C": C}
  names = {"N": "N_opt", "D": "D_opt", "tokens_per_param": "tokens_per_param", "loss": "loss"}
  for key, name in names.items():
    row |= {key: best[name], f"{key}_interval": best[f"{name}_interval"]}
  rule["name"] = f"{tokens_per_param:g} tokens per parameter"
  return [each | {"petaflop_s_days": pf_days(C)} for each in (row, rule)]


def _run(fit: Fit, N: float, D: float) -> dict[str, Any]:
  """Makes the row of one run that is yet to be trained, its scatter in the interval of its loss."""
  loss, interval = predict_loss(fit, N, D)
  model = _model(fit, Optimum(np.array(N), np.array(D), np.array(loss)))
  row: dict[str, Any] = {name: float(value) for name, value in model.items()}
  row |= {"loss_interval": interval, "outside": fit.outside(row["C"], N, D)}
  return {"name": "one run", **row, "petaflop_s_days": pf_days(row["C"])}


def _targets(fit: Fit, q: Questions) -> tuple[np.ndarray, np.ndarray]:
  """Computes the loss to reach, as the law sees it and as each of its bootstrap does [R].

  Beyond the fitted runs the law's form errs by some share of the loss: so does the loss that the
  law must be asked for. The quality of the best model for a budget is what each law says it is.
  """
  if not q.loss:
    return fit.law.optimum(q.flops).loss, fit.draws.optimum(q.flops).loss
  return np.array(q.loss), q.loss / _form(fit, _model(fit, fit.law.cheapest(q.loss)))


def _reaching(fit: Fit, q: Questions) -> dict[str, Any]:
  """Makes the row of the cheapest model to train of a quality."""
  values, draws = (
    _model(fit, law.cheapest(target)) | {"loss": q.loss}
    for law, target in zip((fit.law, fit.draws), _targets(fit, q), strict=True)
  )
  return _row(fit, "optimum", values, draws)


def _serving(fit: Fit, q: Questions) -> list[dict[str, Any]]:
  """Makes the rows of the cheapest model of a quality, counting inference and not."""

  @np.errstate(invalid="ignore")  # 0 x inf, where no model reaches the loss
  def both(law, target):
    models = []
    for tokens in (q.inference_tokens, 0.0):
      best = law.cheapest(target, tokens)
      served = best.D + q.inference_tokens / 3
      total = {"total_flops": fit.compute.flops_per_token(best.N) * served}
      models.append(_model(fit, best) | {"loss": q.loss or target} | total)
    models[0]["saved"] = 1 - models[0]["total_flops"] / models[1]["total_flops"]
    return models

  value, draws = _targets(fit, q)
  samples = both(fit.draws, draws)
  if not q.loss:
    loss = draws * _form(fit, _model(fit, fit.law.optimum(q.flops)))
    samples = [sample | {"loss": loss} for sample in samples]
  names = ("optimum", "not counting inference")
  return [_row(fit, *row) for row in zip(names, both(fit.law, value), samples, strict=True)]


def _epochs(D: np.ndarray, unique: float) -> dict[str, Any]:
  epochs = D / unique
  worth = np.exp(-np.maximum(0.0, epochs - 1) / chinchilla.REPEATED_TOKENS)
  return {"epochs": epochs, "worth": worth}


def _reaching_on_few(fit: Fit, q: Questions) -> list[dict[str, Any]]:
  """Makes the rows of the least compute that reaches a loss, on few data and on any number."""
  law, draws = fit.law.numbers, fit.draws.numbers
  unique, floor = q.max_tokens, chinchilla.least_loss(law, q.max_tokens, fit.compute)
  if q.loss <= floor:
    raise UsageError(
      f"target_loss={q.loss:g}: {unique:g} unique tokens, however often repeated, reach no "
      f"less than {float(floor):.4f}: ask for more, or raise max_tokens"
    )

  def answer(law, target):
    best = chinchilla.cheapest_constrained(law, target, unique, fit.compute)
    return _model(fit, best) | {"loss": q.loss} | _epochs(best.D, unique)

  values = answer(law, q.loss)
  return [
    _row(fit, "optimum", values, answer(draws, q.loss / _form(fit, values))),
    _reaching(fit, q) | {"name": "unlimited data"},
  ]


def _constrained(fit: Fit, q: Questions) -> list[dict[str, Any]]:
  """Makes the rows of the best model for a compute on few data, and what it compares with.

  Beyond the `chinchilla.saturation` of so few data it is the model that saturates them: the loss of
  larger ones differs by rounding.
  """
  law, draws = fit.law.numbers, fit.draws.numbers
  C, unique = q.flops, q.max_tokens
  enough = min(C, float(chinchilla.saturation(law, unique, fit.compute)))

  def repeated(law):
    best = chinchilla.data_constrained(law, enough, unique, fit.compute)
    excess = best.loss - chinchilla.optimum(law, C, fit.compute).loss
    return _model(fit, best) | {"excess": excess} | _epochs(best.D, unique)

  def once(law):
    n = fit.compute.params_on_tokens(C, unique)
    loss = chinchilla.repeated_loss(law, n, unique, unique, fit.compute)
    return _model(fit, Optimum(n, np.array(unique), loss)) | {"epochs": np.float64(1.0)}

  def unlimited(law):
    return _model(fit, chinchilla.optimum(law, C, fit.compute))

  def row(name, budget, answer):  # of the loss, the error of the law's form counts too
    values, sample = answer(law), answer(draws)
    error = _form(fit, values | {"C": budget})
    return _row(fit, name, values, {**sample, "loss": sample["loss"] * error})

  rows = [row("optimum", enough, repeated), row("unlimited data", C, unlimited)]
  if rows[0]["epochs"] > 1:
    rows.insert(1, row("one epoch", C, once))
  return rows
