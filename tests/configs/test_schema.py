"""The schema: fields have meanings, numbers have bounds, names have implementations."""

import json
import math
from pathlib import Path

import pytest
from ml_collections import FrozenConfigDict

from configs import base, ladders
from configs.errors import ConfigError
from model import accounting, sharding
from model.layers import ACTIVATIONS
from scaling.laws.intervals import bootstrap
from train import optim, record
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
  assert choices("optim", "name") == optim.OPTIMIZERS.keys()
  assert choices("sharding", "strategy") == sharding.STRATEGIES.keys()
  assert choices("fit", "params") == accounting.CONVENTIONS.keys()
  assert choices("fit", "resampling") == set(bootstrap.RESAMPLINGS)


OUT_OF_BOUNDS = {
  "seed": (-1, 2**32),
  "model.heads": (-2,),
  "model.dropout": (-0.5, 1.0, 1.5),
  "model.norm_eps": (-1.0,),
  "model.init_std": (-1.0, 0.0),
  "model.mup_base_width": (0, -64),
  "model.mup_base_depth": (0,),
  "model.completep_alpha": (0.0, 1.5),
  "corruption.mlm_rate": (0.0, 1.1),
  "corruption.mlm_mask": (1.1,),
  "corruption.span_density": (0.0, 1.0),
  "data.validation_percent": (0.0, 100.0),
  "data.markov_symbols": (1, 257),
  "optim.lr": (-1.0, math.nan, math.inf),
  "optim.lr_exponent": (math.nan,),
  "optim.b1": (1.0, -0.1),
  "train.tokens": (0, -5),
  "train.checkpoint_every_seconds": (math.nan, -1.0),
}


@pytest.mark.parametrize(
  ("field", "value"), [(field, x) for field, values in OUT_OF_BOUNDS.items() for x in values]
)
def test_a_number_out_of_its_bounds_is_named(field, value):
  config = base.get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ConfigError, match=rf"^{field}=.*: must [^\n]+$"):
    ladders.resolve(config)


def test_an_unknown_name_is_refused_with_the_known_ones():
  for section, fields in base.SCHEMA.items():
    for name in [name for name, field in fields.items() if getattr(field, "choices", ())]:
      config, field = base.get_config(), f"{section}.{name}".lstrip(".")
      config.update_from_flattened_dict({field: "odd"})
      with pytest.raises(ConfigError, match=rf"^{field}='odd': unknown; choose one of [^\n]+$"):
        ladders.resolve(config)


def test_an_unknown_field_is_an_error():
  with pytest.raises(AttributeError, match="size"):
    base.get_config().model.sizee = 3


@pytest.fixture
def mapped():
  """A config with names of its own in the mappings."""
  config = base.get_config()
  config.data.evaluate = {"books": "text:a.b/c.txt"}
  config.sweep.arms = {"adamw": {}, "muon": {"optim": {"lr": 0.5}, "sweep": {"sizes": (1, 2)}}}
  return config


def test_a_mapping_comes_back_from_json_and_from_copies(mapped):
  stored = json.loads(json.dumps(record.plain(mapped)))
  for copy in (base.from_json(stored), mapped.copy_and_resolve_references()):
    assert copy == mapped
    assert copy.sweep.arms.muon.sweep.sizes == (1, 2)
    copy.data.evaluate.code = "markov"  # still takes names
    with pytest.raises(AttributeError, match="codes"):
      copy.data.codes = "markov"
  assert FrozenConfigDict(mapped).data.evaluate.books == "text:a.b/c.txt"
  assert hash(FrozenConfigDict(mapped)) != hash(FrozenConfigDict(base.get_config()))
  assert record.diff(mapped) == {
    "data.evaluate.books": "text:a.b/c.txt",
    "sweep.arms.adamw": {},
    "sweep.arms.muon.optim.lr": 0.5,
    "sweep.arms.muon.sweep.sizes": [1, 2],
  }


def test_a_field_of_a_mapping_is_set_by_its_dotted_name(mapped):
  base.set_field(mapped, "data.evaluate.code", "text:x.py")
  base.set_field(mapped, "sweep.arms.muon.optim.lr", "0.25")
  assert mapped.data.evaluate.to_dict() == {"books": "text:a.b/c.txt", "code": "text:x.py"}
  assert mapped.sweep.arms.muon.optim.lr == 0.25


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("data.evaluate", {"my-books": "markov"}, r"data\.evaluate\.my-books: .*letters"),
    ("data.evaluate", {"books": 3}, r"data\.evaluate\.books=3: must be text"),
    ("sweep.arms", {"muon": "optim"}, r"sweep\.arms\.muon='optim': must be fields"),
    ("sweep.arms", {"a/b": {}}, r"sweep\.arms\.a/b: .*letters"),
  ],
)
def test_a_name_or_value_of_no_use_is_refused(field, value, message):
  config, (section, name) = base.get_config(), field.split(".")
  config[section][name] = value
  with pytest.raises(ConfigError, match=message):
    base.check_fields(config)
