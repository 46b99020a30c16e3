"""The law's optimum, against brute force along the curve of equal compute."""

import numpy as np
import pytest

from scaling.laws import chinchilla

LAW = chinchilla.Chinchilla(*map(np.float64, (1.81724, 477.84, 2143.86, 0.34731, 0.36718)))
CURVED = [
  chinchilla.Compute(6.0, 0.0),
  chinchilla.Compute(6.0, 300.0),
  chinchilla.Compute(5.8, -200.0),
]


def test_hoffmann_equation_4():
  """N = G (C/6)^a, D = (C/6)^b / G, G = (alpha A / beta B)^(1 / (alpha + beta))."""
  total = LAW.alpha + LAW.beta
  g = (LAW.alpha * LAW.A / (LAW.beta * LAW.B)) ** (1 / total)
  best = chinchilla.optimum(LAW, 5.76e23)
  np.testing.assert_allclose(best.N, g * (5.76e23 / 6) ** (LAW.beta / total))
  np.testing.assert_allclose(best.D, (5.76e23 / 6) ** (LAW.alpha / total) / g)
  assert 15 < best.D / best.N < 30  # Besiroglu et al. 2024: about 20 tokens per parameter
  a, b = chinchilla.exponents(LAW)
  np.testing.assert_allclose([a, b], [LAW.beta / total, LAW.alpha / total])


@pytest.mark.smoke
@pytest.mark.parametrize("compute", CURVED)
@pytest.mark.parametrize("budget", [1e12, 1e15, 1e21])
def test_optimum_is_the_least_loss_at_equal_compute(compute, budget):
  best = chinchilla.optimum(LAW, budget, compute)
  assert compute.flops_per_token(best.N) * best.D == pytest.approx(budget)
  for factor in (0.5, 0.99, 0.999, 1.001, 1.01, 2.0):
    n = best.N * factor
    assert chinchilla.loss(LAW, n, compute.tokens(n, budget)) > best.loss


def test_draws_broadcast():
  draws = chinchilla.Chinchilla(*(value * np.linspace(0.98, 1.02, 7) for value in LAW))
  many = chinchilla.optimum(draws, 1e18, CURVED[1])
  for i in range(7):
    one = chinchilla.optimum(chinchilla.Chinchilla(*(draw[i] for draw in draws)), 1e18, CURVED[1])
    np.testing.assert_allclose([part[i] for part in many], one)


@pytest.mark.parametrize("compute", CURVED)
def test_compute_is_recovered_and_inverted(compute):
  n = np.geomspace(2e4, 1e7, 9)
  d = 30 * n
  found = chinchilla.estimate_compute(n, d, compute.flops_per_token(n) * d)
  np.testing.assert_allclose((found.k, found.q), (compute.k, compute.q), rtol=1e-9, atol=1e-9)
  assert found.error < 1e-12
  budget = compute.flops_per_token(n) * d
  np.testing.assert_allclose(compute.params(budget, 30.0), n)
  slope = np.log(compute.flops_per_token(n * 1.001) / compute.flops_per_token(n / 1.001))
  np.testing.assert_allclose(compute.elasticity(n), slope / (2 * np.log(1.001)), rtol=1e-6)
