"""A run on paper: its size, whether it can be trained, and the head of its record."""

import dataclasses
import importlib.metadata
import json
import math
import tomllib
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from configs import base
from configs.errors import ConfigError, UsageError
from model import accounting
from train import optim
from train.data import dataset
from train.data.batches import check_tokens, largest_share
from train.objectives import registry
from train.system import files

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class Size:
  """What a config amounts to."""

  groups: dict[str, int]  # parameters by group
  trained: int  # parameters that are trained
  steps: int  # updates
  tokens_per_step: int  # of text
  flops_per_token: float  # training, exact, per token of text
  predicted_per_token: float  # tokens predicted per token of text, expected

  @property
  def n_params(self) -> int:
    """N: body + head."""
    return accounting.n_params(self.groups, "body_head")

  @property
  def tokens(self) -> int:
    """D."""
    return self.steps * self.tokens_per_step

  @property
  def flops(self) -> float:
    """C, exact."""
    return self.flops_per_token * self.tokens


def size_of(config: ConfigDict, vocab_size: int) -> Size:
  """Counts parameters, steps and FLOPs; `vocab_size` is the tokenizer's."""
  lengths, tokens_per_step = registry.lengths(config), registry.tokens_per_step(config)
  shape, shapes = registry.model_shape(config, vocab_size), registry.shapes(config, vocab_size)
  trained = optim.trainable(config.train.trainable, shapes)
  return Size(
    groups=accounting.param_groups(config.model, *shape),
    trained=sum(math.prod(shapes[path]) for path in trained),
    steps=max(1, round(config.train.tokens / tokens_per_step)),
    tokens_per_step=tokens_per_step,
    flops_per_token=accounting.train_flops_per_sequence(config.model, *shape) / lengths.text,
    predicted_per_token=lengths.predicted / lengths.text,
  )


def check_config(config: ConfigDict) -> None:
  """Raises UserError where a resolved config cannot be trained, whatever the text."""
  registry.check_objective(config)
  if config.train.branch_from and config.optim.schedule != "wsd":
    raise ConfigError(
      f"optim.schedule={config.optim.schedule!r}: a branch is the cooldown of a trunk; set 'wsd', "
      "or leave train.branch_from empty"
    )


def check_run(config: ConfigDict, tokens: dataset.TokenData) -> None:
  """Raises UserError where a resolved config cannot be trained on these tokens."""
  check_config(config)
  check_tokens(config, tokens)
  size = size_of(config, tokens.vocab_size)
  if size.groups["body"] < size.groups["embedding"]:
    raise ConfigError(
      f"model.size={config.model.size}: its body ({size.groups['body']:,} parameters) is smaller "
      f"than its embedding ({size.groups['embedding']:,}); use a larger size or a smaller "
      "vocabulary"
    )
  if config.train.tokens < size.tokens_per_step:
    raise ConfigError(
      f"train.tokens={config.train.tokens:,}: less than a step of {size.tokens_per_step:,}; train "
      "on more, or make data.batch_size or data.seq_len smaller"
    )
  wsd = config.optim.schedule == "wsd"
  rise = optim.cooldown_start(config.optim, size.steps) if wsd else size.steps
  warmup = math.ceil(config.optim.warmup_tokens / size.tokens_per_step)
  if rise < warmup:  # the rate on record would never be reached
    end = "the cooldown begins" if wsd else "the run ends"
    raise ConfigError(
      f"optim.warmup_tokens={config.optim.warmup_tokens}: {end} at step {rise}, within the warmup "
      f"of {warmup} steps; shorten the warmup or train on more tokens"
    )


def read(folder: Path) -> dict[str, Any] | None:
  """Reads the run.json of a folder; None where there is none.

  DataError: it is not as it was written, or its loss is not the last of metrics.jsonl.
  """
  path = folder / "run.json"
  record = files.read_json(path)
  if record is None or (difference := files.fault(record)) == "":
    return record
  rows = files.read_rows(folder / "metrics.jsonl")
  losses = [row["eval_loss"] for row in rows if "eval_loss" in row]
  logged = f" (its metrics.jsonl says that its loss was {losses[-1]!r})" if losses else ""
  if difference:
    raise files.damaged(path, f"{difference} since it was written{logged}")
  if record.get("status") == "done" and logged and record["loss"] != losses[-1]:
    raise files.damaged(path, f"loss is {record['loss']!r}{logged}")
  return record


def describe(config: ConfigDict, tokens: dataset.TokenData, device_kind: str) -> dict:
  """Describes a run by all that makes it what it is: the head of run.json."""
  size = size_of(config, tokens.vocab_size)
  scheduled = size.steps
  size = dataclasses.replace(size, steps=min(config.train.stop_at_step or scheduled, scheduled))
  return describe_model(config, size) | {
    "D": size.tokens,
    "D_predicted": round(size.predicted_per_token * size.tokens),
    "C": size.flops,
    "C_6nd": 6.0 * size.n_params * size.tokens,
    "steps": size.steps,
    "scheduled_steps": scheduled,
    "data": {
      "source": config.data.source,
      "fingerprint": tokens.fingerprint,
      "tokenizer": tokens.tokenizer_hash,
      "vocab_size": tokens.vocab_size,
      "train_tokens": tokens.train_token_count,
      "epochs": size.tokens / tokens.train_token_count,
      "overlap": tokens.overlap,
      "largest_document": largest_share(tokens, config),
    },
    "device": device_kind,
  }


def describe_model(config: ConfigDict, size: Size) -> dict:
  """Describes what a record says of a model, trained here or imported."""
  return {
    "objective": config.objective,
    **{name: config.model[name] for name in ("size", "width", "depth", "heads")},
    "params": size.groups,
    "params_trained": size.trained,
    "N": size.n_params,
    "lr": optim.base_learning_rate(config.optim, size.n_params),
    "seed": config.seed,
    "versions": versions(),
    "config": plain(config),
    "config_diff": diff(config),
  }


def versions() -> dict[str, str]:
  """Returns the versions of this package and of the libraries that a run's numbers depend on."""
  try:
    isoflop = importlib.metadata.version("isoflop")
  except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    project = Path(__file__).parents[1] / "pyproject.toml"
    isoflop = tomllib.loads(project.read_text())["project"]["version"]
  return {"isoflop": isoflop} | {name: importlib.metadata.version(name) for name in LIBRARIES}


def diff(config: ConfigDict) -> dict[str, Any]:
  """Returns the fields that differ from the defaults, by dotted name."""
  default = defaults()
  return {name: x for name, x in flat(plain(config)).items() if x != default.get(name)}


def defaults() -> dict[str, Any]:
  """Returns the default of each field, by dotted name."""
  return flat(plain(base.get_config()))


def flat(tree: dict) -> dict[str, Any]:
  """Returns a nested dict's leaves by dotted name; an empty dict is one."""
  leaves = traverse_util.flatten_dict(tree, keep_empty_nodes=True, sep=".")
  return {name: {} if x is traverse_util.empty_node else x for name, x in leaves.items()}


def plain(config: ConfigDict) -> dict[str, Any]:
  """Returns a config as a dict that comes back from JSON as it is: tuples are lists."""
  return json.loads(json.dumps(config.to_dict()))


# What a run may differ in from the one that a folder holds: where its text lies (its content is
# compared), what the learning rate was derived from (the rate is compared), and what changes none
# of its numbers.
_FREE = {
  *("model.remat", "model.scan"),
  *("data.source", "data.text_field", "data.tokenizer", "data.cache", "data.max_epochs"),
  *("optim.lr", "optim.lr_ref", "optim.lr_ref_params", "optim.lr_exponent", "optim.rule"),
}
_SCHEDULE = {"optim.schedule", "optim.cooldown_fraction", "optim.final_lr_fraction"}


def check_same_run(stored: dict, wanted: dict, where: str, branch: bool = False) -> None:
  """Raises UserError where a stored record is of another run than the one that is described.

  `where` names the field and folder. With `branch` the record is of a trunk, whose length, schedule
  and evaluation may differ.
  """
  old, new = _numbers(stored, branch), _numbers(wanted, branch)
  for name, value in new.items():
    if old.get(name) != value:
      raise UsageError(
        f"{where}: holds a run with {name}={old.get(name)!r}, asked {value!r}; name another folder"
      )
  for name in ("fingerprint", "tokenizer"):
    if stored["data"][name] != wanted["data"][name]:
      raise UsageError(f"{where}: holds a run on other data ({name}); name another folder")
  for name, fingerprint in wanted["data"].get("evaluate", {}).items() if not branch else ():
    if stored["data"].get("evaluate", {}).get(name) != fingerprint:
      raise UsageError(
        f"{where}: holds a run that was evaluated on another text (data.evaluate.{name} has "
        "changed since); name another folder"
      )


def _numbers(record: dict, branch: bool) -> dict[str, Any]:
  """Returns what decides a run's numbers, by name."""
  fields = defaults() | flat(record["config"])
  train = (f"train.{name}" for name in ("eval_tokens", "trainable", "warm_start"))
  sections = ("model.", "data.", "corruption.", "optim.", *train)
  free = _FREE | _SCHEDULE | {"train.eval_tokens"} if branch else _FREE
  decisive = {x: y for x, y in fields.items() if x.startswith(sections) and x not in free}
  if branch:
    decisive = {x: y for x, y in decisive.items() if not x.startswith("data.evaluate")}
  steps = {} if branch else {"steps": record.get("scheduled_steps", record.get("steps"))}
  return decisive | steps | {x: record.get(x) for x in ("N", "lr", "seed", "objective")}


def constant_until(record: dict) -> float:
  """Returns the step until which the schedule of a record's run leaves its rate as it is."""
  config = base.get_config().optim
  config.update(record["config"]["optim"])
  if config.schedule == "constant":
    return math.inf
  steps = record.get("scheduled_steps", record["steps"])
  return optim.cooldown_start(config, steps) if config.schedule == "wsd" else 0
