"""Grids of learning rates and batch sizes whose optimum is known."""

import numpy as np

BEST = {"lr": (4.0, -0.6, 0.2), "batch": (1.0, -0.1, 0.5), "timescale": (2.0, 0.1, 0.9)}
BEND = np.array([[0.012, -0.006, 0.0], [-0.006, 0.010, 0.0], [0.0, 0.0, 0.004]])
SIZES, TOKENS = (1e5, 3e5, 1e6), (1e7, 3e7, 1e8)
STEPS = {"lr": np.arange(-3, 4) * 0.35, "batch": np.arange(-2, 3) * 0.7, "timescale": (-1, 0, 1)}


def best(name, N, D, coefficients=BEST):
  constant, by_N, by_D = coefficients[name]
  return np.exp(constant + by_N * np.log(N) + by_D * np.log(D))


def make_table(
  names=("lr", "batch"), sizes=SIZES, tokens=TOKENS, noise=0.0, scatter=0.0, seed=0,
  coefficients=BEST, power=0.0, shift=0.0,
):  # fmt: skip
  """Makes N, D, loss and factors: a parabola in log loss about a known optimum of each cell."""
  rng, rows = np.random.default_rng(seed), []
  for N in sizes:
    for D in tokens:
      centre = np.log([best(name, N, D, coefficients) for name in names])
      optimum = centre + scatter * rng.standard_normal(len(names))
      mesh = np.meshgrid(*(STEPS[name] for name in names), indexing="ij")
      x = centre + shift + np.stack([m.ravel() for m in mesh], axis=1)
      A = BEND[: len(names), : len(names)] * (N / 3e5) ** power
      bend = np.einsum("nk,kl,nl->n", x - optimum, A, x - optimum)
      level = np.log(1.5 + 400 * N**-0.34 + 400 * D**-0.28) + rng.uniform(-0.05, 0.05)
      loss = np.exp(level + bend + noise * rng.standard_normal(len(x)))
      rows.append(np.c_[np.full(len(x), N), np.full(len(x), D), loss, np.exp(x)])
  table = np.concatenate(rows)
  return table[:, 0], table[:, 1], table[:, 2], dict(zip(names, table[:, 3:].T, strict=True))
