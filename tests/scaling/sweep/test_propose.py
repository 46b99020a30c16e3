"""A design proposed for a compute: it costs that, and tells more than one that costs as much."""

import io
import runpy
from types import SimpleNamespace

import numpy as np
import pytest

from configs.errors import ConfigError, UsageError
from configs.sweeps import quick
from scaling import main
from scaling.laws import chinchilla
from scaling.progress import Display
from scaling.sweep import plan, propose

V = 512


@pytest.fixture(scope="module")
def sizes():
  return propose.known_sizes(quick.get_config(), V)


def scaled(sizes, *shape, compute=1e13):
  return propose.scaled(quick.get_config(), V, sizes, shape, compute, propose.flops_of)


@pytest.mark.parametrize(
  ("text", "parsed"),
  [("2h", (0, 7200)), ("30min", (0, 1800)), ("1e15", (1e15, 0)), ("1PFs-day", (8.64e19, 0))],
)
def test_compute_is_flops_or_a_time(text, parsed):
  assert propose.parse_compute(text) == pytest.approx(parsed)


@pytest.mark.parametrize("text", ["", "two hours", "5s", "-1e15"])
def test_compute_that_is_neither_is_refused(text):
  with pytest.raises(UsageError, match="compute"):
    propose.parse_compute(text)


def test_design_costs_what_may_be_spent_and_brackets_the_presumed_optima(sizes):
  config, cells = scaled(sizes, 4, 5.0, 7, 3.0)
  assert propose.total(config, cells, sizes, propose.flops_of) == pytest.approx(1e13, rel=0.03)
  for budget in config.sweep.budgets:
    n = [cell.N for cell in cells if cell.budget == budget]
    best = propose.presumed(config, sizes, budget).n_params
    assert min(n) < best / 1.5
    assert max(n) > best * 1.5


def test_laws_have_the_presumed_optimum_at_the_farthest_budget(sizes):
  config, cells = scaled(sizes, 3, 5.0, 5, 2.0)
  C = plan.heldout_budgets(config, cells)[-1]
  arrays = np.array([(cell.N, cell.D, cell.C) for cell in cells]).T
  compute = chinchilla.estimate_compute(*arrays)
  best = [chinchilla.optimum(law, C, compute) for law, _ in propose.laws(config, cells, 200)]
  ratios = np.array([float(x.D / x.N) for x in best])
  assert np.exp(np.mean(np.log(ratios))) == pytest.approx(20, rel=0.25)
  assert np.mean((ratios > 5) & (ratios < 80)) == pytest.approx(0.9, abs=0.06)
  assert [float(x.loss) for x in best] == pytest.approx([3.0] * 200)


def test_budgets_that_span_little_are_expected_to_miss_more(sizes):
  wide, narrow = (propose.expected_error(*scaled(sizes, 4, span, 7, 3.0)) for span in (8.0, 1.5))
  assert narrow > 1.5 * wide


def test_more_compute_narrows_the_expected_intervals(sizes, monkeypatch):
  monkeypatch.setattr(propose, "FITTED", 3)
  little, much = (
    propose.expected_intervals(*scaled(sizes, 4, 8.0, 7, 3.0, compute=compute))
    for compute in (1e12, 1e15)
  )
  (factor, loss, undetermined), (less, lower, fewer) = little, much
  assert less < 0.95 * factor
  assert lower < 0.8 * loss
  assert fewer < undetermined


def test_text_that_is_too_little_is_said(sizes, monkeypatch):
  monkeypatch.setattr(propose, "BUDGETS", (3,))
  monkeypatch.setattr(propose, "SPANS", (5.0,))
  text = SimpleNamespace(vocab_size=V, train_token_count=100_000)
  display = Display("", io.StringIO())
  with pytest.raises(ConfigError, match=r"data\.source=.*tokens would be read .*max_epochs"):
    propose.propose(quick.get_config(), text, 1e15, propose.flops_of, display)


@pytest.mark.slow
def test_verb_writes_a_config_that_can_be_planned(monkeypatch, capsys, tmp_path, cache):
  for name, value in {"BUDGETS": (4,), "SPANS": (8.0,), "SIZES": (7,), "LAWS": 4}.items():
    monkeypatch.setattr(propose, name, value)
  output = tmp_path / "mine.py"
  command = ["design", "--config=configs/sweeps/markov.py", "--compute=2e13", f"--output={output}"]
  assert main.main(command) == 0
  assert "N* within a factor" in capsys.readouterr().out
  config = runpy.run_path(str(output))["get_config"]()
  assert (config.sweep.name, len(config.sweep.budgets)) == ("mine", 4)
  assert plan.design_cells(config, 257)
  assert main.main(command) == 2
  assert "exists already" in capsys.readouterr().err
