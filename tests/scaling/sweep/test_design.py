"""Arms of a sweep: one config per objective."""

import pytest

from configs import base
from scaling.sweep import design


@pytest.fixture
def config():
  c = base.get_config()
  c.sweep.objectives = ("clm", "mlm", "span")
  c.data.isolate_documents = False
  return c


def test_each_arm_has_its_family_and_its_overrides(config):
  config.sweep.overrides = ("mlm.optim.lr_ref=0.25", "span.sweep.sizes=(0, 2)")
  configs = design.split(config)
  assert {name: arm.model.family for name, arm in configs.items()} == {
    "clm": "decoder", "mlm": "encoder", "span": "encoder_decoder"
  }  # fmt: skip
  for name, arm in configs.items():
    assert arm.objective == name
    assert arm.sweep.objectives == ()
    assert arm.optim.lr_ref == (0.25 if name == "mlm" else config.optim.lr_ref)
    assert arm.sweep.sizes == ((0, 2) if name == "span" else config.sweep.sizes)
  assert config.objective == "clm"
  assert config.optim.lr_ref != 0.25


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("objectives", ("clm", "clm"), "twice"),
    ("objectives", ("clm", "bert"), "bert"),
    ("design", "grid", "choose isoflop"),
    ("overrides", ("mlm.optim.lr_reff=1.0",), "lr_reff"),
    ("overrides", ("mlm.optim.lr_ref='fast'",), "lr_ref"),
    ("overrides", ("ul2.optim.lr_ref=1.0",), "not OBJECTIVE.FIELD=VALUE"),
    ("overrides", ("mlm.optim.lr_ref",), "not OBJECTIVE.FIELD=VALUE"),
  ],
)
def test_a_bad_objective_or_override_is_refused_in_one_line(config, field, value, message):
  config.sweep[field] = value
  with pytest.raises(ValueError, match=message) as error:
    design.split(config)
  assert "\n" not in str(error.value)
