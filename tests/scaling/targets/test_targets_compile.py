"""A few rows of the matrix, where the packages are that compile for GPUs and TPUs.

All of it: `pytest tests/release/test_targets.py`.
"""

import pytest
import target_matrix

from scaling.targets import catalog


@pytest.mark.parametrize(
  ("kind", "row", "programs"),
  [
    ("h100", "llama ddp+tensor few off scan float32 isolated dots - 1", "step"),
    ("v5e", "decoder zero3+tensor 8 on scan weights isolated full grouped 1", "step"),
  ],
)
def test_a_row_of_the_matrix_compiles(kind, row, programs):
  (row,) = (r for r in target_matrix.MATRIX if str(r) == row)
  target = catalog.parse(target_matrix.SIZES[kind][row.devices])
  try:
    catalog.check_installed(target)
  except ValueError as error:
    pytest.skip(str(error))
  config = target_matrix.config_of(row, target.devices)
  compiler = target_matrix.Compiler(kind)
  try:
    arguments = config, target.name, target_matrix.VOCABULARY, programs.split(","), int(row.pack)
    answers = compiler(target_matrix.task_of(*arguments))
  finally:
    compiler.close()
  assert [answer["program"] for answer in answers] == programs.split(","), answers
  assert all(answer["temp"] > 0 for answer in answers), answers
