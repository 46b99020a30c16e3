"""Further validation sets: each has the loss that its text has, and they are the run's own."""

import math

import numpy as np
import pytest

from configs import ladders
from train import evaluate, loop
from train.data import dataset
from train.system import files

LETTERS = {"coin": "ab", "dice": "cdefghijklmnopqr"}  # each as likely as another
LENGTH = 512  # of a document: its end cannot be foreseen either


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Texts of 2 and of 16 letters: both to train on, and more of each."""
  path, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
  for name, letters in LETTERS.items():
    for part, count in (("both", 150), (name, 30)):
      (path / part).mkdir(exist_ok=True)
      for i in range(count):
        (path / part / f"{name}-{i}.txt").write_text("".join(rng.choice(list(letters), LENGTH)))
  return path


@pytest.fixture(scope="module")
def make(make_tiny, folder):
  def config(**sets):
    c = make_tiny()
    c.data.source, c.data.seq_len, c.data.batch_size = f"text:{folder}/both", 64, 8
    c.train.tokens, c.train.eval_tokens, c.train.eval_every_steps = 120 * 512, 4096, 50
    c.optim.lr = 0.01
    c.data.evaluate = {name: value.format(folder) for name, value in sets.items()}
    return c

  return config


SETS = {"coin": "text:{}/coin", "dice": "loss@text:{}/dice", "same": "text:{}/both"}


@pytest.fixture(scope="module")
def trained(make, tmp_path_factory):
  """A run with three sets, one of which is the validation text itself."""
  config, workdir = make(**SETS), tmp_path_factory.mktemp("run")
  return config, workdir, loop.train(config, workdir)


def test_each_set_has_the_entropy_of_its_text(trained):
  _, _, record = trained
  for name, letters in LETTERS.items():
    result = record["evaluations"][name]
    assert result["loss"] == pytest.approx(math.log(len(letters)), abs=0.05)
    assert (
      result["loss"] > math.log(len(letters)) * LENGTH / (LENGTH + 1) - 3 * result["loss_stderr"]
    )
    assert result["eval_tokens"] == 4096
    # A byte a token, but for the ends of documents.
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / math.log(2), rel=0.01)
  low, high = (record["evaluations"][name]["loss"] for name in LETTERS)
  assert low < record["loss"] < high


def test_the_standard_error_is_over_documents_whose_windows_are_alike(trained):
  """They have one entropy or the other; 30 are held out, each with three windows."""
  _, _, record = trained
  low, high = (record["evaluations"][name]["loss"] for name in LETTERS)
  share = (high - record["loss"]) / (high - low)
  expected = (high - low) * math.sqrt(share * (1 - share) / 30)
  assert record["loss_stderr"] == pytest.approx(expected, rel=0.1)


def test_a_mean_of_few_documents_has_the_error_of_a_sample():
  """Of equal weights it is that of an ordinary mean; what weighs 0 is no example."""
  sum_S, weight_S = np.array([1.0, 2.0, 4.0, 9.0]), np.array([2.0, 2.0, 2.0, 0.0])
  mean, error = evaluate.ratio(sum_S, weight_S)
  assert mean == pytest.approx(7 / 6)
  assert error == pytest.approx(np.std(sum_S[:3] / 2, ddof=1) / math.sqrt(3))


def test_the_loss_on_the_validation_text_is_the_main_loss(trained):
  _, _, record = trained
  same = record["evaluations"]["same"]
  assert same == {key: record[key] for key in same}
  assert {"loss", "loss_stderr", "bits_per_byte"} <= set(same)


def test_sets_are_evaluated_along_the_way(trained):
  _, workdir, record = trained
  rows = [row for row in files.read_rows(workdir / "metrics.jsonl") if "eval_loss" in row]
  assert [row["step"] for row in rows] == [50, 100, 120]
  assert rows[-1]["evaluations"] == record["evaluations"]
  for name in SETS:
    losses = [row["evaluations"][name]["loss"] for row in rows]
    assert losses[0] > losses[-1]


def test_a_finished_run_is_not_evaluated_on_another_set(trained, make, folder):
  config, workdir, record = trained
  assert loop.train(config, workdir) == record
  more = make(**SETS, more="text:{}/coin")
  with pytest.raises(ValueError, match=r"data.evaluate.more=None, asked 'text:.*another folder"):
    loop.train(more, workdir)
  path = folder / "coin" / "coin-0.txt"
  text = path.read_text()
  path.write_text(text[::-1])
  with pytest.raises(ValueError, match=r"another text \(data.evaluate.coin has changed"):
    loop.train(config, workdir)
  path.write_text(text)


@pytest.mark.parametrize(
  ("name", "value", "said"),
  [
    ("books", "text:{}/nowhere", "data.evaluate.books='text:.*nowhere'.*no such file or folder"),
    (
      "books",
      "blue@text:{}/coin",
      "books=.*: no evaluator 'blue'; choose one of loss",
    ),
    ("books", "novels", "data.evaluate.books='novels': .*unknown; choose"),
    ("main", "text:{}/coin", "stands for something else"),
    ("stderr_2", "text:{}/coin", "stands for something else"),
  ],
)
def test_a_set_that_cannot_be_used_is_named_before_anything_is_spent(
  make, tmp_path, name, value, said
):
  with pytest.raises(ValueError, match=said) as error:
    loop.train(make(**{name: value}), tmp_path / "run")
  assert "\n" not in str(error.value)
  assert not (tmp_path / "run").exists()


def test_an_evaluator_is_a_row_of_a_table(make, trained, monkeypatch):
  """One of its own sums and weights, here by document: as a task's accuracy would be."""
  config, _, _ = trained

  def lengths(program, state, tokens, config):
    ends = np.flatnonzero(tokens.validation_tokens == tokens.eos)
    return {"long": (np.diff(ends) > LENGTH, np.ones(len(ends) - 1))}

  monkeypatch.setitem(evaluate.EVALUATORS, "lengths", lengths)
  config = ladders.resolve(make(coin="lengths@text:{}/coin"))
  tokens = dataset.prepare(config)
  coin = evaluate.open_sets(config, tokens)["coin"]
  result = evaluate.evaluate(None, None, coin.tokens, config, coin.evaluator)
  assert result == {"long": 1.0, "long_stderr": 0.0}
