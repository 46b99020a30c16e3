"""The least time in which a target can execute a compiled program: a bound, and not a forecast.

Each instruction takes the longer of its products at the peak of their operands and of its bytes at
the memory's rate, one instruction after the other. What is asynchronous (start and done apart)
goes on beside what lies between: copies with the rate of memory that the others leave free,
collectives one after the other on the links. What is left of them at their done is waited for.
"""

from typing import Any, NamedTuple

from scaling.targets.catalog import Target
from scaling.targets.executed import Work, flat

QUEUES = ("memory", "links")


class Times(NamedTuple):
  """Of a program, on one device [s]."""

  total: float
  products: float  # all products at their peaks
  memory: float  # all bytes at the memory's rate
  links: float  # all collectives
  waiting: float  # of these, what nothing hides


def times(works: tuple[Work, ...], target: Target) -> Times:
  """Computes the least times of a program (`executed.read`) on a target."""
  products = memory = links = waiting = now = 0.0
  queues: dict[str, dict[str, float]] = {name: {} for name in QUEUES}  # seconds left, by name

  def advance(seconds: float, busy: float = 0.0) -> None:
    """Lets time pass, in which the memory is busy for some of it."""
    nonlocal now
    now += seconds
    for queue, free in zip(queues.values(), (seconds - busy, seconds), strict=True):
      for name in [*queue]:
        done = min(free, queue[name])
        queue[name], free = queue[name] - done, free - done
        if not queue[name]:
          del queue[name]

  for work in works:
    if work.kind == "loop":
      inner = times(work.body, target)
      products += work.trips * inner.products
      memory += work.trips * inner.memory
      links += work.trips * inner.links
      waiting += work.trips * inner.waiting
      advance(work.trips * inner.total, work.trips * inner.memory)
    elif work.kind in ("compute", "copy"):
      computes, moves, _ = alone(work, target)
      products, memory = products + computes, memory + moves
      if work.is_async:
        queues["memory"][work.name] = moves
      else:
        advance(max(computes, moves), moves)
    elif work.kind == "done":
      for name, queue in queues.items():
        if work.name in queue:
          until = [*queue].index(work.name) + 1
          left = sum([*queue.values()][:until])
          waiting += left if name == "links" else 0.0
          advance(left)
    else:
      sends = alone(work, target)[2]
      links += sends
      if work.is_async:
        queues["links"][work.name] = sends
      else:
        waiting += sends
        advance(sends)
  return Times(
    now + max(sum(queue.values()) for queue in queues.values()), products, memory, links, waiting
  )


def alone(work: Work, target: Target) -> tuple[float, float, float]:
  """Computes the seconds that an instruction needs of products, of memory, and of links."""
  chip = target.chip
  products = sum(flops / chip.peaks[peak] for peak, flops in work.flops.items())
  sends = target.seconds(work.kind, work.payload, work.group) if work.payload else 0.0
  return products, work.nbytes / chip.hbm, sends


def slowest(works: tuple[Work, ...], target: Target, most: int) -> list[dict[str, Any]]:
  """Lists the instructions that take the most time, all their executions together."""
  rows: list[dict[str, Any]] = []
  for work, count in flat(works):
    seconds = alone(work, target)
    bound = ("products", "memory", "links")[seconds.index(max(seconds))]
    head = {"name": work.name, "source": work.source, "times": count, "bound": bound}
    rows.append(head | {"seconds": count * max(seconds)})
  return sorted(rows, key=lambda row: row["seconds"], reverse=True)[:most]
