"""Every program of the matrix compiles for an H100 and a TPU v5e, or one line refuses its config.

  pytest tests/release/test_targets.py          (with isoflop[plan-gpu,plan-tpu]; no device needed)

With TARGET_MATRIX=record.json the outcomes are kept there, row by row, for `target_table.py`.
"""

import itertools
import os
from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest
import target_matrix
from target_matrix import MATRIX, SIZES

from configs import presets
from scaling.targets import catalog
from train.system import files

RECORD = os.environ.get("TARGET_MATRIX")


@pytest.fixture(scope="module", params=list(SIZES))
def compiler(request):
  try:
    catalog.check_installed(catalog.parse(request.param))
  except ValueError as error:
    pytest.skip(str(error))
  compiler = target_matrix.Compiler(request.param)
  yield request.param, compiler
  compiler.close()


@pytest.mark.parametrize("row", MATRIX, ids=str)
def test_programs_compile_or_one_line_refuses_them(row, compiler):
  kind, compile_all = compiler
  target = catalog.parse(SIZES[kind][row.devices])
  config = target_matrix.config_of(row, target.devices)
  programs = row.programs.split(",")
  arguments = config, target.name, target_matrix.VOCABULARY, programs, int(row.pack)
  answers = compile_all(target_matrix.task_of(*arguments))
  if RECORD:
    keep(Path(RECORD), kind, row, answers)
  if row.refused:
    assert len(answers) == 1
    assert answers[0].get("refused", "").startswith(row.refused), answers
    assert "\n" not in answers[0]["refused"]
  else:
    assert [answer.get("program") for answer in answers] == programs, answers
    assert not [answer["error"] for answer in answers if "error" in answer]


def keep(path, kind, row, answers):
  """Writes a row's outcome into the record, in place of an earlier one."""
  key = {"jax": metadata.version("jax"), "kind": kind, "row": str(row)}
  record = [old for old in files.read_json(path) or [] if not key.items() <= old.items()]
  files.write_json(path, [*record, key | {"programs": row.programs, "answers": answers}])


def test_the_matrix_covers_every_value_twice_and_the_pairs_that_matter():
  """Families by strategy, flash attention and documents, pack; strategies by type of number."""
  families = {name: fields["family"] for name, fields in presets.PRESETS.items()}

  def strategy(row):
    return "tensor" if "+tensor" in row.strategy else row.strategy

  strategies = ("ddp", "zero1", "zero2", "zero3", "hybrid", "tensor")
  kinds, switches = ("decoder", "encoder", "encoder_decoder"), ("on", "off")
  compiled = [row for row in MATRIX if not row.refused]
  seen = Counter((families[row.preset], strategy(row)) for row in compiled)
  assert not {*itertools.product(kinds, strategies)} - {*seen}
  seen = Counter((families[row.preset], row.flash, row.documents) for row in MATRIX)
  assert not {*itertools.product(kinds, switches, ("isolated", "joined"))} - {*seen}
  seen = Counter((strategy(row), row.numbers) for row in compiled)
  assert not {*itertools.product(strategies, target_matrix.NUMBERS)} - {*seen}
  seen = Counter((families[row.preset], row.pack) for row in compiled)
  assert not {*itertools.product(kinds, ("1", "4", "16"))} - {*seen}
  values = Counter(
    (column, value)
    for row in compiled
    for column, cell in row._asdict().items()
    for value in cell.replace("+", ",").split(",")
  )
  assert not [value for value, count in values.items() if count < 2]
