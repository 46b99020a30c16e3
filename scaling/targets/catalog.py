"""Devices that programs are compiled for without having them: what each holds, computes and sends.

A target is a GPU (h100, h100:8, or h100:2x8 for two hosts of eight) or a slice of a TPU in libtpu's
names (v5e:2x4, v5p:2x2x1).
"""

import difflib
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from configs.errors import UsageError


class Chip(NamedTuple):
  """One device, as its maker describes it."""

  kind: str  # as in jax's `device_kind`
  memory: int  # bytes
  peaks: dict[str, float]  # dense products by operands [FLOP/s]
  hbm: float  # bytes/s
  link: float  # bytes/s one way: of all NVLinks of a GPU, of one ICI link of a TPU
  network: float = 0.0  # bytes/s one way between hosts, for each GPU
  wrap: int = 0  # a TPU's axis is a ring where this divides its length
  gpu: dict[str, Any] = {}  # what XLA must know of a GPU


class Target(NamedTuple):
  """Devices that are not here."""

  name: str
  chip: Chip
  dims: tuple[int, ...]  # hosts and GPUs of each, or chips of a TPU along its axes

  @property
  def tpu(self) -> bool:
    """Whether it is a TPU."""
    return not self.chip.gpu

  @property
  def devices(self) -> int:
    """How many there are."""
    return math.prod(self.dims)

  def seconds(self, kind: str, payload: float, group: tuple[int, ...]) -> float:
    """Computes the least time of a collective, as rings send it.

    A TPU's rings use the links that every chip of the slice has: 2 along an axis that closes to a
    ring, else 1. GPUs send by NVLink within a host, and between hosts each by its own adapter. The
    payload is that of the whole array: gathered, reduced or sent [bytes].
    """

    def sent(members: int) -> float:
      if kind == "collective-permute":
        return payload
      return (2 if kind == "all-reduce" else 1) * payload * (members - 1) / members

    if len(group) < 2:
      return 0.0
    if self.tpu:
      closed = [n % self.chip.wrap == 0 for n in self.dims]
      if len(self.dims) == 3:  # by whole cubes
        closed = [all(closed)] * 3
      links = sum(1 + ring for n, ring in zip(self.dims, closed, strict=True) if n > 1)
      return sent(len(group)) / (self.chip.link * (links if kind != "collective-permute" else 1))
    hosts = {device // self.dims[1] for device in group}
    between = sent(len(hosts)) if len(hosts) > 1 else 0.0
    adapters = self.chip.network * len(group) / len(hosts)
    return max(sent(len(group)) / self.chip.link, between / adapters)


def _gpu(kind, memory, bfloat16, tensorfloat32, float32, hbm, link, network, *description) -> Chip:
  peaks = {"bfloat16": bfloat16, "tensorfloat32": tensorfloat32, "float32": float32}
  names = ("major", "cores", "fpus", "shared", "optin", "cache", "ghz")
  gpu = {"name": f"NVIDIA {kind}", "memory": memory, "hbm": int(hbm)}
  gpu |= zip(names, description, strict=True)
  return Chip(kind, memory, peaks, hbm, link, network, gpu=gpu)


def _tpu(kind, gib, bfloat16, hbm, link, wrap) -> Chip:
  # Operands of float32 are rounded to bfloat16, or multiplied in six such passes (jax's precisions
  # "default" and "highest", docs.jax.dev/en/latest/_autosummary/jax.lax.Precision.html).
  peaks = {"bfloat16": bfloat16, "tensorfloat32": bfloat16, "float32": bfloat16 / 6}
  return Chip(kind, gib * 2**30, peaks, hbm, link, wrap=wrap)


# GPUs: peaks, NVLink (half of it one way) and HBM from NVIDIA's data sheets of the SXM boards
# (nvidia.com/en-us/data-center/{a100,h100,h200,dgx-b200}; those of H100 and later state sparse
# peaks, twice the dense ones), an adapter for each GPU between hosts from those of DGX A100 (200
# Gb/s), H100, H200 and B200 (400 Gb/s); memory, cores, caches and clocks as CUDA reports them, from
# XLA's specifications (github.com/openxla/xla, xla/backends/gpu/target_config/specs).
# TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}: a chip's both ways of all links are 400
# (v5e), 800 (v6e), 1,200 GB/s (v5p), over 4, 4 and 6 links; v4's links have 50 GB/s (Jouppi et al.
# 2023, arXiv:2304.01433). v5e and v6e close to a ring where an axis has all 16 chips of a pod, v4
# and v5p where the slice consists of cubes of 4 x 4 x 4.
CHIPS: dict[str, Chip] = {
  "a100": _gpu("A100-SXM4", 85100068864, 312e12, 156e12, 19.5e12, 2039e9, 300e9, 25e9,
               8, 108, 64, 167936, 166912, 41943040, 1.41),
  "h100": _gpu("H100 80GB HBM3", 84942979072, 989e12, 494e12, 67e12, 3350e9, 450e9, 50e9,
               9, 132, 128, 233472, 232448, 52428800, 1.98),
  "h200": _gpu("H200", 151397597184, 989e12, 494e12, 67e12, 4800e9, 450e9, 50e9,
               9, 132, 128, 233472, 232448, 52428800, 1.98),
  "b200": _gpu("B200", 191514411008, 2250e12, 1125e12, 80e12, 8000e9, 900e9, 50e9,
               10, 148, 128, 233472, 232448, 132644864, 1.965),
  "v4": _tpu("TPU v4", 32, 275e12, 1200e9, 50e9, wrap=4),
  "v5e": _tpu("TPU v5 lite", 16, 197e12, 819e9, 50e9, wrap=16),
  "v5p": _tpu("TPU v5", 95, 459e12, 2765e9, 100e9, wrap=4),
  "v6e": _tpu("TPU v6 lite", 32, 918e12, 1638e9, 100e9, wrap=16),
}  # fmt: skip
# XLA's GpuTargetConfigProto. The fields that differ among GPUs are in `CHIPS`.
DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin} core_count: {cores} fpus_per_core: {fpus}
  memory_bandwidth: {hbm} device_memory_size: {memory} l2_cache_size: {cache} clock_rate_ghz: {ghz}
  cuda_compute_capability {{ major: {major} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 2 }}
device_description_str: "{name}"
"""
GPU_PACKAGES = ("jax_cuda12_plugin", "jax_cuda13_plugin")
# libtpu asks the machine, or these. They describe no slice: the topology's name does.
TPU_ENVIRONMENT = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes compile at once
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
}


def parse(name: str) -> Target:
  """Parses a target's name; raises UsageError where there is none."""
  kind, _, size = name.partition(":")
  if kind not in CHIPS:
    near = difflib.get_close_matches(kind.lower(), CHIPS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of"
    raise UsageError(f"target={name!r}: unknown; {hint} ({', '.join(CHIPS)})")
  chip = CHIPS[kind]
  axes = 2 if chip.gpu or chip.wrap == 16 else 3
  least = 1 if chip.gpu else axes
  known = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size)
  if size and not (known and least <= 1 + size.count("x") <= axes):
    gpus, slices = f"{kind}:8, or {kind}:2x8 for two hosts", f"{kind}:{'x'.join('224'[-axes:])}"
    raise UsageError(f"target={name!r}: write {gpus if chip.gpu else slices}")
  dims = [int(n) for n in size.split("x")] if size else []
  return Target(name, chip, tuple([1] * (axes - len(dims)) + dims))


def check_installed(target: Target) -> None:
  """Raises UsageError, with the remedy, where the packages that describe a target are missing."""
  extra, packages = ("plan-tpu", ("libtpu",)) if target.tpu else ("plan-gpu", GPU_PACKAGES)
  if not any(importlib.util.find_spec(package) for package in packages):
    raise UsageError(
      f"target={target.name!r}: {' or '.join(packages)} is not installed; "
      f"pip install 'isoflop[{extra}]'"
    )


def devices(target: Target) -> list[Any]:
  """Describes a target to XLA; returns its `jax.Device`s, to compile programs for."""
  import jax
  from jax.experimental import topologies

  check_installed(target)
  shape = "x".join(str(n) for n in target.dims)
  try:
    if target.tpu:
      for key, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
      kind = target.name.partition(":")[0]
      one_device = {"chip_config_name": "megacore"} if kind == "v4" else {}  # of a chip's two cores
      topology = topologies.get_topology_desc(
        platform="tpu",
        topology_name=f"{kind}:{shape}",
        chips_per_host_bounds=(min(2, target.dims[0]), min(2, target.dims[1]), 1),
        **one_device,
      )
    else:
      gpu, text = target.chip.gpu, DESCRIPTION.format(**target.chip.gpu)
      topology = topologies.get_topology_desc(
        gpu["name"], "cuda", target_config=text, topology=f"1x{shape}"
      )
  except jax.errors.JaxRuntimeError as error:
    raise UsageError(f"target={target.name!r}: XLA does not describe it ({error})") from None
  return list(topology.devices)
