"""The schema: fields have meanings, numbers have bounds, names have implementations."""

from pathlib import Path

import pytest

from configs import base, ladders
from model import accounting, sharding
from model.layers import ACTIVATIONS
from scaling.laws import bootstrap
from train.objectives import registry

pytestmark = pytest.mark.smoke
BOUNDED_WHERE_USED = {
  *("model.size", "model.relative_buckets", "model.relative_distance"),  # configs.ladders
  "sharding.tensor",  # model.sharding
}


def choices(section, name):
  return set(base.SCHEMA[section][name].choices)


def test_every_field_has_its_meaning():
  """Beside it, or as the names that it may have."""
  schema = Path(base.__file__).read_text().partition("\nRUN: ")[2].partition("\nSCHEMA = ")[0]
  rows = [line for line in schema.splitlines() if line.startswith('  "')]
  assert len(rows) == sum(map(len, base.SCHEMA.values()))
  assert not [row for row in rows if "#" not in row and "one_of(" not in row]


def test_every_number_has_bounds_or_is_bounded_where_it_is_used():
  bare = {
    f"{section}.{name}"
    for section, fields in base.SCHEMA.items()
    for name, field in fields.items()
    if type(field) in (int, float) and section not in ("sweep", "fit")
  }
  assert bare == BOUNDED_WHERE_USED


def test_defaults_are_allowed():
  base.check_fields(base.get_config())


def test_allowed_names_are_those_that_are_implemented():
  assert choices("", "objective") == registry.OBJECTIVES.keys()
  assert choices("model", "ladder") == ladders.LADDERS.keys()
  assert choices("model", "mlp") == ACTIVATIONS.keys()
  assert choices("sharding", "strategy") == sharding.STRATEGIES.keys()
  assert choices("fit", "params") == accounting.CONVENTIONS.keys()
  assert choices("fit", "resampling") == set(bootstrap.RESAMPLINGS)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("model.mlp", "gelo", "model.mlp='gelo': unknown; choose one of .*gelu"),
    ("optim.schedule", "cosin", "optim.schedule='cosin': unknown; choose one of wsd, cosine"),
    ("objective", "spam", "objective='spam': unknown; choose one of .*span"),
    ("optim.b1", 1.0, r"optim.b1=1.0: must lie in \[0, 1\)"),
    ("seed", -1, r"seed=-1: must lie in \[0, 2\^32\)"),
  ],
)
def test_a_value_that_is_not_allowed_is_refused_in_one_line(field, value, message):
  config = base.get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=f"^{message}"):
    base.check_fields(config)


def test_an_unknown_field_is_an_error():
  with pytest.raises(AttributeError, match="size"):
    base.get_config().model.sizee = 3
