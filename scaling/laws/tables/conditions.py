"""Conditions on the rows of a table: comparisons and arithmetic over its columns and numbers.

  evaluate("D / N > 5 and not 3 < loss < 4", {"N": [n], "D": [n], "loss": [n]})     # bool [n]

The text is parsed and walked, never run: there are numbers, columns by name, + - * / **,
comparisons (chained as in Python), `and`, `or`, `not` and parentheses, and nothing else.
"""

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np

from configs.errors import DataError

EXAMPLE = "write one like D/N > 5 and loss < 4"
ARITHMETIC: dict[type, Any] = {
  ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide,
  ast.Pow: np.power, ast.UAdd: np.positive, ast.USub: np.negative,
}  # fmt: skip
COMPARISONS: dict[type, Any] = {
  ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater, ast.GtE: np.greater_equal,
  ast.Eq: np.equal, ast.NotEq: np.not_equal,
}  # fmt: skip
LOGIC: dict[type, Any] = {ast.And: np.logical_and, ast.Or: np.logical_or}


def names(text: str, option: str = "") -> list[str]:
  """Lists the columns that an expression reads, by name.

  Raises:
    DataError: it is not an expression of this language; the message begins with the option.
  """
  tree = _parse(text, option)
  columns = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
  evaluate(text, dict.fromkeys(columns, np.empty(0)), option)
  return columns


def evaluate(text: str, columns: Mapping[str, np.ndarray], option: str = "") -> np.ndarray:
  """Evaluates where an expression holds [n], from columns of n numbers; nan compares as false.

  Raises:
    DataError: it is not a condition, or reads a column that is not there.
  """
  tree = _parse(text, option)
  try:
    with np.errstate(all="ignore"):
      value = _boolean(tree, columns)
  except _NotUnderstoodError as error:
    raise DataError(f"{option}{text!r}: {error}; {EXAMPLE}") from None
  return np.broadcast_to(value, len(next(iter(columns.values()), ())))


def _parse(text: str, option: str) -> ast.expr:
  try:
    return ast.parse(text.strip(), mode="eval").body
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    reason = error.msg if isinstance(error, SyntaxError) else error
    raise DataError(f"{option}{text[:80]!r}: not an expression ({reason}); {EXAMPLE}") from None


class _NotUnderstoodError(Exception):
  """A part of an expression that is not of the language."""


def _boolean(node: ast.expr, columns: Mapping[str, np.ndarray]) -> np.ndarray:
  match node:
    case ast.BoolOp(op, values):
      return LOGIC[type(op)].reduce(np.broadcast_arrays(*[_boolean(v, columns) for v in values]))
    case ast.UnaryOp(ast.Not(), operand):
      return np.logical_not(_boolean(operand, columns))
    case ast.Compare(left, operators, rest) if all(type(o) in COMPARISONS for o in operators):
      values = [_number(side, columns) for side in (left, *rest)]
      pairs = [
        COMPARISONS[type(operator)](*sides)
        for operator, *sides in zip(operators, values, values[1:], strict=False)
      ]
      return np.logical_and.reduce(np.broadcast_arrays(*pairs))
  raise _NotUnderstoodError(f"{ast.unparse(node)!r} is not a condition that holds or does not")


def _number(node: ast.expr, columns: Mapping[str, np.ndarray]) -> Any:
  match node:
    case ast.Constant(value) if isinstance(value, (int, float)) and not isinstance(value, bool):
      return np.float64(value)
    case ast.Name(name):
      if name not in columns:
        raise _NotUnderstoodError(f"there is no column {name!r}, but {', '.join(columns)}")
      return columns[name]
    case ast.BinOp(left, operator, right) if type(operator) in ARITHMETIC:
      return ARITHMETIC[type(operator)](_number(left, columns), _number(right, columns))
    case ast.UnaryOp(operator, operand) if type(operator) in ARITHMETIC:
      return ARITHMETIC[type(operator)](_number(operand, columns))
  raise _NotUnderstoodError(f"{ast.unparse(node)!r} is neither a number nor a column")
