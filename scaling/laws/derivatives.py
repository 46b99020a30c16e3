"""The derivatives that the solver needs, of a form that has none by hand: JAX's, compiled."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

JAX_ROWS = (1, 8, 64)  # starts or resamples in one call of a compiled derivative: each compiles
JAX_VALUES = 320_000  # rows x runs of it, at most: what memory holds


@functools.cache
def by_jax(
  loss: Callable[[Any, Any], Any], kinds: tuple[tuple[str, Any], ...]
) -> tuple[Callable, Callable, Callable]:
  """Differentiates and compiles a form's loss: for one row of theta, then for many."""
  import jax
  import jax.numpy as jnp

  def value(logs, theta):
    p = {n: jnp.exp(theta[i]) if kind.log else theta[i] for i, (n, kind) in enumerate(kinds)}
    x = {name: jnp.exp(log) for name, log in logs.items()}
    return loss(SimpleNamespace(**p), SimpleNamespace(**x))

  def slopes(logs, theta):
    return jax.jacfwd(value, 1)(logs, theta)  # [n, p]

  def sums(logs, theta, phi, omega, major):
    slope = slopes(logs, theta)
    bend = jax.hessian(lambda theta: phi @ value(logs, theta))(theta)
    return phi @ slope, (slope.T * omega) @ slope + bend, major @ slope**2

  # Compiled plainly: a fit runs for less long than its optimisation by the compiler takes.
  plain = {"xla_backend_optimization_level": "0"}
  values = jax.jit(jax.vmap(value, (None, 0)), compiler_options=plain)
  gradient = jax.jit(jax.vmap(slopes, (None, 0)), compiler_options=plain)
  contract = jax.jit(jax.vmap(sums, (None, 0, 0, 0, 0)), compiler_options=plain)
  return (
    lambda logs, theta: (theta, _in_blocks(values, logs, theta)),
    lambda logs, terms: _in_blocks(gradient, logs, terms[0]).swapaxes(1, 2),
    lambda logs, terms, *weights: _in_blocks(contract, logs, terms[0], *weights),
  )


def _in_blocks(compiled, logs, *arrays):
  """Calls a compiled function on rows of arrays [S, ...], in blocks of one shape."""
  import jax

  rows, runs = len(arrays[0]), len(next(iter(logs.values())))
  block = next(size for size in JAX_ROWS if rows <= size or size == JAX_ROWS[-1])
  size = max(1, min(block, JAX_VALUES // runs))
  index = np.minimum(np.arange(-(-rows // size) * size), rows - 1).reshape(-1, size)
  with jax.enable_x64(True):
    blocks = jax.device_get([compiled(logs, *(a[block] for a in arrays)) for block in index])
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:rows], *blocks)
