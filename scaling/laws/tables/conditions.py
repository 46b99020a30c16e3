"""Conditions on the rows of a table: comparisons and arithmetic over its columns and numbers.

  evaluate("D / N > 5 and not 3 < loss < 4", {"N": [n], "D": [n], "loss": [n]})     # bool [n]
  evaluate("`data set` == 'A' and ok == True", {"data set": [n], "ok": [n]})

The text is parsed and walked, never run: there are numbers, columns by name (one that is not a
plain word in backquotes), + - * / **, comparisons (chained as in Python), `and`, `or`, `not` and
parentheses, and nothing else. Text, True and False may be equal or not, to columns of their kind.
"""

import ast
import re
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
NOT_NUMBERS = {"U": "text", "b": "True or False"}
OF_KIND = NOT_NUMBERS | {"f": "a number"}  # of a dtype; others may hold anything
LOGIC: dict[type, Any] = {ast.And: np.logical_and, ast.Or: np.logical_or}


def names(text: str, option: str = "") -> list[str]:
  """Lists the columns that an expression reads, by name.

  Raises:
    DataError: it is not an expression of this language; the message begins with the option.
  """
  tree = _parse(text, option)
  columns = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
  evaluate(text, dict.fromkeys(columns, np.empty(0, object)), option)  # of any kind
  return columns


def evaluate(text: str, columns: Mapping[str, np.ndarray], option: str = "") -> np.ndarray:
  """Evaluates where an expression holds [n], from columns of n numbers, texts or booleans.

  nan compares as false.

  Raises:
    DataError: it is not a condition, or reads a column that is not there.
  """
  tree = _parse(text, option)
  try:
    with np.errstate(all="ignore"):
      value = _boolean(tree, columns)
  except _NotUnderstoodError as error:
    raise DataError(f"{option}{text[:80]!r}: {error}; {EXAMPLE}") from None
  return np.broadcast_to(value, len(next(iter(columns.values()), ())))


def _parse(text: str, option: str) -> ast.expr:
  quoted = {f"_column_{i}_": name for i, name in enumerate(re.findall("`([^`]+)`", text))}
  places = iter(quoted)
  try:
    tree = ast.parse(re.sub("`[^`]+`", lambda _: next(places), text.strip()), mode="eval")
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    reason = error.msg if isinstance(error, SyntaxError) else error
    raise DataError(
      f"{option}{text[:80]!r}: not an expression ({reason}); {EXAMPLE}, and a column of several "
      "words in backquotes"
    ) from None
  for node in ast.walk(tree):
    if isinstance(node, ast.Name):
      node.id = quoted.get(node.id, node.id)
  return tree.body


class _NotUnderstoodError(Exception):
  """A part of an expression that is not of the language."""


def _boolean(node: ast.expr, columns: Mapping[str, np.ndarray]) -> np.ndarray:
  match node:
    case ast.BoolOp(op, values):
      return LOGIC[type(op)].reduce(np.broadcast_arrays(*[_boolean(v, columns) for v in values]))
    case ast.UnaryOp(ast.Not(), operand):
      return np.logical_not(_boolean(operand, columns))
    case ast.Compare(left, operators, rest) if all(type(o) in COMPARISONS for o in operators):
      sides = [(side, _value(side, columns)) for side in (left, *rest)]
      pairs = [
        _compare(operator, *two)
        for operator, *two in zip(operators, sides, sides[1:], strict=False)
      ]
      return np.logical_and.reduce(np.broadcast_arrays(*pairs))
  raise _NotUnderstoodError(f"{ast.unparse(node)!r} is not a condition that holds or does not")


def _compare(operator: ast.cmpop, *sides: tuple[ast.expr, Any]) -> np.ndarray:
  """Compares two values, each beside its node; texts and booleans only for being equal."""
  kinds = [OF_KIND.get(value.dtype.kind, "") for _, value in sides]
  if all(kinds) and kinds[0] != kinds[1]:
    one, other = (
      f"{ast.unparse(node)} is {kind}" for (node, _), kind in zip(sides, kinds, strict=True)
    )
    raise _NotUnderstoodError(f"{one}, but {other}; quote a text, and put a column in backquotes")
  if {"text", "True or False"} & set(kinds) and not isinstance(operator, (ast.Eq, ast.NotEq)):
    raise _NotUnderstoodError(f"{ast.unparse(sides[0][0])} is {kinds[0]}: compare it by == or !=")
  return COMPARISONS[type(operator)](*(value for _, value in sides))


def _value(node: ast.expr, columns: Mapping[str, np.ndarray]) -> Any:
  match node:
    case ast.Constant(bool() | str() as value):
      return np.array(value)
    case ast.Constant(int() | float() as value):
      try:
        return np.float64(value)
      except OverflowError:
        raise _NotUnderstoodError("it has a number that is too large, beyond 1e308") from None
    case ast.Name(name):
      if name not in columns:
        raise _NotUnderstoodError(f"there is no column {name!r}, but {', '.join(columns)}")
      return columns[name]
    case ast.BinOp(left, operator, right) if type(operator) in ARITHMETIC:
      return ARITHMETIC[type(operator)](_number(left, columns), _number(right, columns))
    case ast.UnaryOp(operator, operand) if type(operator) in ARITHMETIC:
      return ARITHMETIC[type(operator)](_number(operand, columns))
  raise _NotUnderstoodError(f"{ast.unparse(node)!r} is neither a number nor a column")


def _number(node: ast.expr, columns: Mapping[str, np.ndarray]) -> Any:
  value = _value(node, columns)
  if kind := NOT_NUMBERS.get(value.dtype.kind):
    raise _NotUnderstoodError(f"{ast.unparse(node)} is {kind}, not a number")
  return value
