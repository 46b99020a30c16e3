"""A sweep's arms: the same design once per objective, each with a config of its own."""

import ast

from ml_collections import ConfigDict

from configs import base
from configs.errors import ConfigError


def split(config: ConfigDict) -> dict[str, ConfigDict]:
  """Makes the config of each arm, by objective.

  It differs from `config` in the objective, in the family of models that the objective trains, and
  in the fields that `config.sweep.overrides` sets for it.

  Raises:
    ConfigError: an objective or an override cannot be used.
  """
  s = config.sweep
  names = tuple(s.objectives)
  if len(set(names)) < len(names):
    raise ConfigError(f"sweep.objectives={names}: one of them is there twice; name each once")
  if s.design != "isoflop":
    raise ConfigError(
      f"sweep.design={s.design!r}: objectives are compared at equal budgets; choose isoflop, or "
      "sweep.objectives=()"
    )
  arms = {}
  for name in names:
    arm = arms[name] = config.copy_and_resolve_references()
    arm.objective = name
    arm.model.family = base.family_of(name)
    arm.sweep.name = f"{s.name}, {name}"
    arm.sweep.objectives = arm.sweep.overrides = ()
  for override in s.overrides:
    path, equals, text = override.partition("=")
    name, _, field = path.partition(".")
    if name not in arms or not equals:
      raise ConfigError(
        f"sweep.overrides: {override!r} is not OBJECTIVE.FIELD=VALUE with an objective from {names}"
      )
    try:
      value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
      value = text
    try:
      arms[name].update_from_flattened_dict({field: value})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
      raise ConfigError(f"sweep.overrides: {override!r} cannot be used ({error})") from None
  return arms
