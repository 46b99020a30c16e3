"""Runs over learning rates and batch sizes as cells of one (N, D), and which of them lie low."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from configs.errors import DataError

FACTORS = ("lr", "batch", "timescale")  # rate; tokens in a batch; tokens that weight decay spans
WINDOW = 0.01  # of a cell's lowest loss: runs above it obey no parabola
WIDEST = 4.0  # windows, where a cell has few runs within one
HIGH = 2.0  # times its cell's lowest loss: a run that ended there has diverged


@dataclasses.dataclass(frozen=True)
class Grid:
  """Runs of several (N, D), each over several values of the factors; arrays are [n]."""

  N: np.ndarray  # parameters
  D: np.ndarray  # tokens processed
  loss: np.ndarray  # validation loss [nats per token], inf where training diverged
  factors: dict[str, np.ndarray]  # of `FACTORS`, those that vary within cells
  cell: np.ndarray  # which (N, D) a run is of, counted from 0
  width: np.ndarray | None = None  # of the model, where it is known

  @property
  def cells(self) -> np.ndarray:
    """The N and D of each cell [cells, 2]."""
    _, first = np.unique(self.cell, return_index=True)
    return np.stack([self.N[first], self.D[first]], axis=1)

  @property
  def lowest(self) -> np.ndarray:
    """The lowest loss of each cell."""
    lowest = np.full(self.cell.max() + 1, np.inf)
    np.minimum.at(lowest, self.cell, self.loss)
    return lowest

  @property
  def logs(self) -> np.ndarray:
    """The logarithms of the factors [n, k]."""
    return np.log(np.stack(list(self.factors.values()), axis=1))

  def of(self, cells: ArrayLike) -> "Grid":
    """Selects the runs of some cells, which are counted anew."""
    some = np.isin(self.cell, cells)
    width = None if self.width is None else self.width[some]
    factors = {name: values[some] for name, values in self.factors.items()}
    return make_grid(self.N[some], self.D[some], self.loss[some], factors, width, list(factors))


def make_grid(
  N: ArrayLike,
  D: ArrayLike,
  loss: ArrayLike,
  factors: Mapping[str, ArrayLike],
  width: np.ndarray | None = None,
  varied: list[str] | None = None,
) -> Grid:
  """Groups runs into cells. A loss that is not finite, or `HIGH`, is that of a diverged run.

  Arguments are as in `Grid`. Without `varied`, which names the factors that vary, one that has
  fewer than three values in most cells is left out.

  Raises:
    DataError: no learning rate varies.
  """
  sizes, tokens, losses = (np.asarray(values, float) for values in (N, D, loss))
  cell = np.unique(np.stack([sizes, tokens], 1), axis=0, return_inverse=True)[1].ravel()
  columns = {name: np.asarray(factors[name], float) for name in FACTORS if name in factors}
  if varied is None:
    count = {
      name: np.median([len(np.unique(values[cell == c])) for c in range(cell.max() + 1)])
      for name, values in columns.items()
    }
    varied = [name for name, levels in count.items() if levels >= 3]
  if "lr" not in varied:
    raise DataError("tune: most (N, D) have fewer than 3 learning rates; train more at each")
  columns = {name: columns[name] for name in varied}
  grid = Grid(sizes, tokens, np.where(losses > 0, losses, np.inf), columns, cell, width)
  high = ~(grid.loss < HIGH * grid.lowest[cell])
  return dataclasses.replace(grid, loss=np.where(high, np.inf, grid.loss))


def near_bottom(grid: Grid, window: float = WINDOW) -> np.ndarray:
  """Tells which runs lie within a window of loss above their cell's lowest [n].

  A cell with few runs there has a wider one: as wide as it takes to hold two more runs than its
  parabola has coefficients, and at most `WIDEST` windows.
  """
  k = len(grid.factors)
  fewest = (k + 1) * (k + 2) // 2 + 2
  excess = grid.loss / grid.lowest[grid.cell] - 1
  near = np.zeros(len(excess), bool)
  for c in range(grid.cell.max() + 1):
    some = np.sort(excess[grid.cell == c])[:fewest]
    reach = float(np.clip(some[-1], window, WIDEST * window))
    near |= (grid.cell == c) & (excess <= reach)
  return near


def at_edge(grid: Grid) -> dict[int, list[str]]:
  """Lists the cells whose lowest run has the least or the largest value of a factor, and which.

  A rate is compared with those at the same batch, where there are three or more, and a decay's
  timescale with those at the same batch and rate.
  """
  edges: dict[int, list[str]] = {}
  for c in range(len(grid.cells)):
    best = np.flatnonzero(grid.cell == c)[np.argmin(grid.loss[grid.cell == c])]
    for name, values in grid.factors.items():
      among = values[grid.cell == c]
      if name != "batch":
        fixed = ("batch",) if name == "lr" else ("batch", "lr")
        others = [grid.factors[other] for other in fixed if other in grid.factors]
        same = np.all([other == other[best] for other in others], axis=0)
        row = values[(grid.cell == c) & same]
        among = row if len(np.unique(row)) > 2 else among
      if values[best] in (among.min(), among.max()) or np.isinf(grid.loss[best]):
        edges.setdefault(c, []).append(name)
  return edges
