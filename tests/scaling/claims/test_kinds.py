"""What trained cells say of a claim on where the minimum of the loss lies."""

import math

import pytest

from scaling.claims import kinds


def cells(loss, sizes):
  return [
    {"N": n, "D": 12 / n, "tokens_per_param": 12 / n**2, "trained_loss": loss(n)} for n in sizes
  ]


def judge(what, predicted, interval, trained):
  claim = kinds.Claim(what, {"C": 72.0}, predicted, interval, 0.9, "", ["a", "b", "c"])
  return kinds.judge(claim, dict(zip("abc", trained, strict=False)))


def test_minimum_of_three():
  trained = cells(lambda n: 2 + math.log(n / 2.3) ** 2, (4.0, 1.0, 2.0))
  lowest = kinds.minimum(trained)
  assert lowest["N"] == pytest.approx(2.3)
  assert lowest["D"] == pytest.approx(12 / 2.3)
  assert lowest["tokens_per_param"] == pytest.approx(12 / 2.3**2)
  assert lowest["trained_loss"] == pytest.approx(2)
  assert kinds.minimum(cells(math.log, (1.0, 2.0, 4.0))) is None
  assert kinds.minimum(trained[:2]) is None
  assert judge("least_loss", 1.9, [1.8, 2.1], trained)["held"] is True
  assert judge("least_loss", 1.9, [1.8, 1.95], trained)["held"] is False
  assert judge("N_opt", 4.0, [3.0, 5.0], trained)["held"] is False
  assert judge("D_opt", 3.0, [2.5, 5.5], trained)["held"] is True
  assert (
    judge("N_opt", 2.2, [2.1, 2.25], trained)["held"] is True
  )  # of the cells the best is nearest
  assert judge("N_opt", 2.2, [2.1, 2.5], trained[:2]) | {"measured": None, "held": None} == judge(
    "N_opt", 2.2, [2.1, 2.5], trained[:2]
  )
  assert judge("least_loss", 1.9, [1.8, 2.1], trained[:2])["held"] is None


@pytest.mark.parametrize(
  ("interval", "expected"),
  [([0.25, 4.0], None), ([0.6, 4.0], None), ([0.25, 1.5], False), ([0.6, 1.9], False)],
)
def test_a_minimum_at_the_edge_of_the_trained_sizes(interval, expected):
  at_edge = cells(lambda n: 3 - n, (0.5, 1.0, 2.0))
  judged = judge("N_opt", 1.0, interval, at_edge)
  assert (judged["measured"], judged["held"]) == (None, expected)


def test_a_loss_is_judged_by_its_own_cell():
  trained = cells(lambda n: n, (2.0, 1.0))
  assert judge("loss", 2.1, [1.9, 2.2], trained)["held"] is True
  assert judge("loss", 1.1, [0.9, 1.2], trained)["held"] is False
  assert judge("loss", 2.0, [2.0, 2.0], trained)["held"] is True  # an end is inside
  assert judge("loss", 1.1, [0.9, 1.2], [])["held"] is None
