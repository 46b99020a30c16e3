"""Layout as data: parameter path -> logical axes -> mesh axes, and what each strategy shards.

A mesh has three axes. `replica` and `shard` divide the batch; `shard` also divides whatever the
strategy keeps in shards; `tensor` divides the products inside a layer. ZeRO's stages (Rajbhandari
et al. 2020, arXiv:1910.02054) say which of the trees of the parameters' shape lie in shards.

The training step runs once per device on what it holds (`jax.shard_map`), so the collectives are
those written here: a parameter is all-gathered right before its use, and the derivative of that is
the reduce-scatter of its gradient.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from configs.errors import ConfigError
from model import ops

AXES = ("replica", "shard", "tensor")
BATCH = ("replica", "shard")  # the axes that divide a batch

# Which trees lie in shards.
STRATEGIES: dict[str, tuple[str, ...]] = {
  "ddp": (),
  "zero1": ("optimizer",),
  "zero2": ("optimizer", "gradients"),
  "zero3": ("optimizer", "gradients", "params"),
  "fsdp": ("optimizer", "gradients", "params"),
  "hybrid": ("optimizer", "gradients", "params"),
}

# Logical axes of a parameter, by the end of its path; the first match wins. Stacked layers have
# one more axis before these.
LOGICAL: tuple[tuple[str, tuple[str, ...]], ...] = (
  (r"embedding/table", ("vocab", "embed")),
  (r"relative/table", ("bucket", "heads")),
  (r"(positions|token_types)/table", ("position", "embed")),
  (r"(query|key|value)/kernel", ("embed", "heads")),
  (r"(query|key|value)/bias", ("heads",)),
  (r"out/kernel", ("heads", "embed")),
  (r"(up|gate)/kernel", ("embed", "mlp")),
  (r"(up|gate)/bias", ("mlp",)),
  (r"down/kernel", ("mlp", "embed")),
  (r"transform/kernel", ("embed", "hidden")),
  (r"head/kernel", ("embed", "vocab")),
  (r"head/bias", ("vocab",)),
  (r".*", ("unit",)),  # gains and biases of the model's or a head's width
)
TENSOR = ("heads", "mlp", "vocab")  # the axes that `tensor` divides
SHARD = ("embed", "mlp", "vocab", "heads", "unit", "hidden", "position")  # `shard`: first to divide


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device]) -> Mesh:
  """Makes the mesh of `config.sharding`."""
  shape = mesh_shape(config, len(devices))
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def mesh_shape(config: ConfigDict, devices: int) -> tuple[int, int, int]:
  """Returns the sizes of `AXES`; ConfigError: so many devices do not divide as asked."""
  _check_divides("tensor", config.tensor, devices, "devices")
  data = devices // config.tensor
  if config.strategy != "hybrid":
    if config.shard_factor not in (0, data):
      raise ConfigError(
        f"sharding.shard_factor={config.shard_factor}: {config.strategy} shards over all {data} "
        "devices; leave it at 0, or choose sharding.strategy='hybrid'"
      )
    return 1, data, config.tensor
  _check_divides("shard_factor", config.shard_factor, data, "devices that share a batch")
  return data // config.shard_factor, config.shard_factor, config.tensor


def check_batches(config: ConfigDict, devices: int, local_devices: int = 0) -> None:
  """Raises ConfigError where a run's batches do not divide among its devices.

  `local_devices` is how many each process has; 0: there is one process.
  """
  replicas, shards, tensor = mesh_shape(config.sharding, devices)
  of_process = "devices of each process, which reads the batch for its own"
  _check_divides("tensor", tensor, local_devices, of_process)
  parts, microbatches = replicas * shards, config.sharding.microbatches
  for field, rows, multiple in (
    ("data.batch_size", config.data.batch_size, parts * microbatches),
    ("train.eval_batch_size", config.train.eval_batch_size, parts),
  ):
    if rows % multiple:
      raise ConfigError(
        f"{field}={rows}: must be a multiple of {multiple} ({parts} devices share a batch, "
        f"sharding.microbatches={microbatches}); {multiple * -(-rows // multiple)} would do"
      )


def _check_divides(field: str, value: int, n: int, what: str) -> None:
  if value < 1 or n % value:
    raise ConfigError(f"sharding.{field}={value}: must divide the {n} {what}; one of {divisors(n)}")


def divisors(n: int) -> list[int]:
  """Returns the divisors of n, in order."""
  return [d for d in range(1, n + 1) if n % d == 0]


def logical_axes(path: Any, ndim: int) -> tuple[str, ...]:
  """Returns the logical axes of the parameter at a tree path."""
  name = jax.tree_util.keystr(path, simple=True, separator="/")
  axes = next(axes for pattern, axes in LOGICAL if re.search(f"(^|/){pattern}$", name))
  return ("layer",) * (ndim - len(axes)) + axes


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where the parameters, and the trees of their shape, lie on a mesh."""

  mesh: Mesh  # of the axes `AXES`
  sharded: tuple[str, ...]  # the trees that lie in shards: of "params", "gradients", "optimizer"
  ndims: Any  # per parameter, the number of its dimensions
  dims: Any  # per parameter, the dimension that `shard` divides; -1: none does
  tensor_dims: Any  # likewise for `tensor`

  def shardings(self, tree: str) -> Any:
    """Returns the NamedShardings of a tree, `tensor` included."""
    specs = self.specs(tree, tensor=self.mesh.shape["tensor"] > 1)
    return jax.tree.map(
      lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
    )

  def specs(self, tree: str, tensor: bool = False) -> Any:
    """Returns the PartitionSpecs of a tree; `tensor` is an axis that a step does not handle."""

    def one(ndim: int, shard_dim: int, tensor_dim: int) -> P:
      axes: list[str | None] = [None] * ndim  # all of them: jax tells P() from P(None)
      if tree in self.sharded and shard_dim >= 0:
        axes[shard_dim] = "shard"
      if tensor and tensor_dim >= 0:
        axes[tensor_dim] = "tensor"
      return P(*axes)

    return jax.tree.map(one, self.ndims, self.dims, self.tensor_dims)

  def place(self, rows: dict[str, Any]) -> dict[str, Array]:
    """Returns a batch from this host's rows of it (arrays whose first axis is the batch's)."""
    if (lies := self.batch) is None:
      return rows
    if jax.process_count() == 1:
      return jax.device_put(rows, lies)
    return {name: jax.make_array_from_process_local_data(lies, x) for name, x in rows.items()}

  @property
  def platform(self) -> str:
    """What the mesh's devices are: "cpu", "gpu" or "tpu"."""
    return self.mesh.devices.flat[0].platform

  @property
  def batch(self) -> NamedSharding | None:
    """The sharding of a batch, its rows over all devices that share it; None: it stays the host's.

    On a CPU the compiled functions read it where it is.
    """
    in_place = self.platform == "cpu" and jax.process_count() == 1
    return None if in_place else NamedSharding(self.mesh, P(BATCH))

  @property
  def replicated(self) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(self.mesh, P())

  # ---- What a step does with them, on each device ----

  def block_gathers(self) -> dict[str, Callable[[Any], Any]]:
    """Returns by stack what all-gathers one block's parameters (see `Transformer`)."""
    if "params" not in self.sharded or self.mesh.shape["shard"] == 1:
      return {}
    stacks = [name for name in ("encoder", "decoder") if name in self.dims]
    return {name: functools.partial(_gather_block, self.dims[name]["block"]) for name in stacks}

  def gather_outside_blocks(self, params: Any) -> Any:
    """All-gathers the parameters (ZeRO-3), but those of the blocks, which gather their own."""
    if "params" not in self.sharded:
      return params

    def gather(path: Any, w: Array, dim: int) -> Array:
      return w if "block" in jax.tree_util.keystr(path) else all_gather(w, dim)

    return jax.tree_util.tree_map_with_path(gather, params, self.dims)

  def all_reduce(self, tree: Any, *axes: str) -> Any:
    """Sums a tree's leaves over mesh axes; nothing is sent along axes of one device.

    Between processes on CPUs all leaves travel as one array: XLA sends each array by itself there,
    which takes a step of two processes with a core each from 31 to 86 ms (D=64, two layers).
    """
    axes = tuple(axis for axis in axes if self.mesh.shape[axis] > 1)
    if not axes:
      return tree
    total = jax.tree.map(_summable, tree)
    if ops.platform() == "cpu" and jax.process_count() > 1:
      flat_N, unravel = ravel_pytree(total)
      total = unravel(_sum_over_processes(flat_N, axes))
    else:
      total = jax.lax.psum(total, axes)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), total, tree)

  def reduce_grads(self, grads: Any) -> Any:
    """Sums each device's gradients over `shard`; reduce-scatters those that lie in shards."""
    if "gradients" not in self.sharded:
      return self.all_reduce(grads, "shard")
    # Where parameters lie in shards, the derivative of `all_gather` has reduced their gradients.
    reduced = "params" in self.sharded

    def reduce(g: Array, dim: int) -> Array:
      if dim < 0:
        return self.all_reduce(g, "shard")
      return g if reduced else reduce_scatter(g, dim)

    return jax.tree.map(reduce, grads, self.dims)

  def local_shard(self, tree: Any, kind: str) -> Any:
    """Returns what a device updates of "gradients" or "params": its shard, or without one all."""
    if "optimizer" not in self.sharded or kind in self.sharded:
      return tree
    return jax.tree.map(self._slice, tree, self.dims)

  def _slice(self, w: Array, dim: int) -> Array:
    if dim < 0:
      return w
    size = w.shape[dim] // self.mesh.shape["shard"]
    return jax.lax.dynamic_slice_in_dim(w, jax.lax.axis_index("shard") * size, size, dim)

  def on_whole(self, function: Callable[[Array], Array], tree: Any) -> Any:
    """Applies a function to the whole array of each layer, in a tree of parameters of blocks.

    They lie as the optimizer's: a layer is all-gathered where it is in shards; each device computes
    all of the result and keeps its shard. One layer at a time, as all at once would take several
    times the weights' memory.
    """
    dims = dict(jax.tree_util.tree_leaves_with_path(self.dims))

    def apply(path: Any, x: Array) -> Array:
      dim = dims[path] - 1 if "optimizer" in self.sharded else -1
      return jax.lax.map(lambda w: self._slice(function(all_gather(w, dim)), dim), x)

    return jax.tree_util.tree_map_with_path(apply, tree)

  def gather_updated(self, params: Any) -> Any:
    """All-gathers the new weights where only the optimizer's (and gradients) lie in shards.

    That is ZeRO-1 and ZeRO-2; in ddp and ZeRO-3 it returns them as they are.
    """
    if "optimizer" not in self.sharded or "params" in self.sharded:
      return params
    return jax.tree.map(all_gather, params, self.dims)

  def square_sum(self, grads: Any) -> Array:
    """Returns the sum of squares over the whole model of gradients in local shards."""
    leaves, dims = jax.tree.leaves(grads), jax.tree.leaves(self.dims)
    sums = [(jnp.sum(jnp.square(g)), d) for g, d in zip(leaves, dims, strict=True)]
    if "optimizer" not in self.sharded:
      return jnp.asarray(sum(s for s, _ in sums))
    split = sum(s for s, d in sums if d >= 0)
    return self.all_reduce(jnp.asarray(split), "shard") + sum(s for s, d in sums if d < 0)


def make_layout(config: ConfigDict, params: Any, mesh: Mesh) -> Layout:
  """Lays parameters (arrays or their shapes) out on a mesh by `config.sharding`."""
  shards, tensor = mesh.shape["shard"], mesh.shape["tensor"]

  def tensor_dim(path: Any, leaf: Any) -> int:
    axes = logical_axes(path, leaf.ndim)
    dims = (axes.index(a) for a in TENSOR if a in axes)
    return next((i for i in dims if leaf.shape[i] % tensor == 0), -1)

  def shard_dim(path: Any, leaf: Any) -> int:
    if shards == 1:
      return -1
    axes = logical_axes(path, leaf.ndim)
    taken = tensor_dim(path, leaf) if tensor > 1 else -1
    free = (axes.index(a) for a in SHARD if a in axes and axes.index(a) != taken)
    return next((i for i in free if leaf.shape[i] % shards == 0), -1)

  return Layout(
    mesh=mesh,
    sharded=STRATEGIES[config.strategy],
    ndims=jax.tree.map(lambda leaf: leaf.ndim, params),
    dims=jax.tree_util.tree_map_with_path(shard_dim, params),
    tensor_dims=jax.tree_util.tree_map_with_path(tensor_dim, params),
  )


# ---- Collectives over `shard` ----


def _gather(w: Array, dim: int) -> Array:
  """Returns a parameter from its shards along `dim`; -1: it is not in shards."""
  return w if dim < 0 else jax.lax.all_gather(w, "shard", axis=dim, tiled=True)


def reduce_scatter(g: Array, dim: int) -> Array:
  """Returns this device's shard along `dim` of an array's sum over `shard`."""
  parts = jax.lax.psum_scatter(_summable(g), "shard", scatter_dimension=dim, tiled=True)
  return parts.astype(g.dtype)


# The derivative is written out because XLA's CPU backend fails at bfloat16 sums: see `_summable`.
all_gather = jax.custom_vjp(_gather, nondiff_argnums=(1,))
all_gather.defvjp(
  lambda w, dim: (_gather(w, dim), None),
  lambda dim, _, g: (g if dim < 0 else reduce_scatter(g, dim),),
)


def _gather_block(dims: Any, params: Any) -> Any:
  """All-gathers one block's parameters, which have lost their leading layer axis."""
  return jax.tree.map(lambda w, d: all_gather(w, d - 1) if d >= 0 else w, params, dims)


def _sum_over_processes(x_N: Array, axes: tuple[str, ...]) -> Array:
  """Sums over mesh axes, between processes on CPUs.

  Two devices swap theirs, four do so twice; all of them get the same bits. For 115,000 numbers
  that takes 0.5 ms where XLA's own sum takes 4 (two processes with a core each); 4 instead of 11
  where four share the two cores. Among more devices XLA's sends less.
  """
  devices = jax.lax.axis_size(axes)
  if devices not in (2, 4):
    return jax.lax.psum(x_N, axes)
  for distance in (1, 2)[: devices // 2]:
    x_N += jax.lax.ppermute(x_N, axes, [(i, i ^ distance) for i in range(devices)])
  return x_N


def _summable(x: Array) -> Array:
  """Returns x in a type that the devices can add up: XLA's CPU backend adds no bfloat16."""
  return x.astype(jnp.float32) if ops.platform() == "cpu" else x
