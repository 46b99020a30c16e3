"""Operations whose derivatives are written out equal their plain references, in value and slope."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import assert_trees_close, normal

from model import ops

FLOAT32 = jnp.dtype("float32")
pytestmark = pytest.mark.usefixtures("no_silent_broadcasting")

MASK_B1TS = jnp.arange(8)[None, None, :, None] >= jnp.arange(8)[None, None, None, :]
CASES = [  # operation, shapes of the operands that have derivatives, static arguments
  *(
    pytest.param(ops.matmul, shapes, (FLOAT32,), id=f"matmul {shapes}")
    for shapes in (((7, 3), (3, 5)), ((7, 5), (5, 3)), ((4, 4), (4, 4)))
  ),
  *(
    pytest.param(ops.norm, (shape, (1,) * (len(shape) - 1) + (7,)), (center, 0.1), id=f"{shape}")
    for shape in ((7,), (4, 7), (2, 3, 2, 7))
    for center in (False, True)
  ),
  *(
    pytest.param(ops.attention, ((2, 4, 8, 6),) * 3, (mask, bias, 0.3, FLOAT32), id=name)
    for name, mask, bias in (
      ("attention", None, None),
      ("masked attention", MASK_B1TS, None),
      ("biased attention", MASK_B1TS, 3 * normal(9, 1, 4, 8, 8)),
    )
  ),
]


@pytest.mark.parametrize(("op", "shapes", "options"), CASES)
def test_written_out_derivatives_equal_those_of_the_reference(op, shapes, options):
  operands = [1 + 2 * normal(i, *shape) for i, shape in enumerate(shapes)]

  def outcome(function):
    def total(*operands):
      y = function(*operands, *options)
      return jnp.sum(jnp.sin(y)), y

    return jax.grad(total, tuple(range(len(operands))), has_aux=True)(*operands)

  assert_trees_close(outcome(op), outcome(ops.REFERENCES[op]), rtol=0, atol=1e-5)


def test_bfloat16_gradients_are_summed_in_float32():
  def total(w_DF):
    return jnp.sum(ops.matmul(jnp.ones((1001, 2)), w_DF, jnp.dtype("bfloat16")))

  gradient_DF = jax.grad(total)(jnp.ones((2, 3)))
  np.testing.assert_array_equal(gradient_DF, np.full((2, 3), 1001.0))  # in bfloat16: 1000
