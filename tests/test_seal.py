"""What a begun sweep may change, and what its sealed prediction holds on to."""

import dataclasses

import pytest

from scaling import store
from scaling import sweep as sweeps
from train import data

@pytest.fixture
def begun(tiny, tmp_path):
  """The config and the text of a begun sweep, and its folder."""
  tokens = data.prepare(tiny)
  store.write_sweep(tmp_path, sweeps.begin(tiny, tmp_path, tokens), [])
  return tiny, tokens, tmp_path


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("fit.delta", 0.5), ("fit.bootstraps", 300), ("fit.level", 0.8), ("fit.seed", 1),
    ("fit.resampling", "stratified"), ("fit.target_tokens_per_param", 30.0),
    ("data.max_epochs", 10.0),
  ],
)  # fmt: skip
def test_how_it_is_fitted_and_how_often_text_may_repeat_can_change(begun, name, value):
  config, tokens, workdir = begun
  config.update_from_flattened_dict({name: value})
  head = sweeps.begin(config, workdir, tokens)
  assert head["config_diff"][name] == value  # of which the report says how to reproduce it


@pytest.mark.parametrize(("name", "value"), [("fit.flops", "6nd"), ("fit.params", "total")])
def test_what_its_cells_are_counted_by_stays(begun, name, value):
  config, tokens, workdir = begun
  config.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=f"holds a sweep with {name}=.*, asked '{value}'"):
    sweeps.begin(config, workdir, tokens)


def test_its_tokens_stay(begun):
  config, tokens, workdir = begun
  tokens = dataclasses.replace(tokens, tokenizer_hash="0" * 64)
  with pytest.raises(ValueError, match="on other tokens .data.tokenizer='bytes' has changed"):
    sweeps.begin(config, workdir, tokens)


def test_the_law_of_a_sealed_sweep_stays(begun):
  config, tokens, workdir = begun
  (workdir / "prediction.json").write_text("{}")
  config.fit.level = 0.8
  sweeps.begin(config, workdir, tokens)
  config.fit.delta = 0.5
  with pytest.raises(ValueError, match="holds a sealed sweep with fit.delta=0.001, asked 0.5"):
    sweeps.begin(config, workdir, tokens)
