"""What has to be quick is: bounds on seconds, ratios of seconds, and how they grow."""

import gc
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from models import build, model_config
from surfaces import problem_of, published_chinchilla
from test_fit import fit_a_million_runs
from test_memory import held, large_run
from test_variants import trainer

from configs import ladders, large
from scaling import laws
from scaling.bench import steps, timing
from scaling.launch.queue import Queue, Task
from scaling.laws import solve
from scaling.laws.intervals import bootstrap
from scaling.targets import layouts
from train.data import dataset

ROOT = Path(__file__).parents[2]
HOFFMANN = (1.69, 406.4, 410.7, 0.34, 0.28)


def script(program, *argv, **environment):
  """What a program prints, run in a process of its own."""
  return subprocess.run(
    [sys.executable, "-c", program, *argv],
    capture_output=True, text=True, check=True, **environment,
  ).stdout  # fmt: skip


def test_seventy_billion_parameters_are_quick_to_count():
  config = large_run("70b")
  held(config, 512)
  began = time.perf_counter()
  for microbatches in (1, 2, 4):
    config.sharding.microbatches = microbatches
    held(config, 512)
  assert time.perf_counter() - began < 0.5


def test_a_plan_on_imagined_devices_is_quick():
  """And touches none of this machine's."""
  code = (
    "import time; from configs import large; from scaling.targets import layouts;"
    "start = time.time();"
    "layouts.run_report(large.get_config('70b'), 512, '80GiB'); print(time.time() - start)"
  )
  environment = {"PATH": "", "JAX_PLATFORMS": "nowhere", "PYTHONPATH": str(ROOT)}
  assert float(script(code, env=environment)) < 1.0


def test_a_search_that_finds_nothing_is_quick():
  config = ladders.resolve(large.get_config("70b"))
  began = time.perf_counter()
  assert layouts.advise(config, 64, 2**30)[-1].startswith("nothing fits 1.0 GiB")
  assert time.perf_counter() - began < 2.0


def test_handing_out_grows_with_the_tasks_and_not_with_their_square(tmp_path):
  def took(n):
    tasks = [Task(f"t{i}", tmp_path, {}, float(i), f"t{i // 9 * 9}" if i % 9 else None, i % 7)
             for i in range(n)]  # fmt: skip
    began = time.perf_counter()
    queue = Queue(tasks)
    count = 0
    while own := queue.pop():
      for done in own.tasks:
        queue.finish(done)
        count += 1
    assert count == n
    return time.perf_counter() - began

  def seconds(n):  # the least: what else this process and the machine do only adds to it
    return min(took(n) for _ in range(5))

  gc.disable()  # it looks through what all tests before have left
  try:
    assert seconds(10_000) < 40 * seconds(1000)
  finally:
    gc.enable()


def test_compile_time_does_not_grow_with_depth():
  """Of a training step, in seconds of the processor; unrolled, 32 layers take over 8 times 2's."""

  def seconds(depth):
    changes = {"depth": depth, "scan": True, "mlp": "swiglu"}
    model = nnx.eval_shape(lambda: build(**changes))
    step, params, state = trainer(model_config(**changes), model)
    start = time.process_time()
    step.lower(params, state).compile()
    return time.process_time() - start

  jax.config.update("jax_enable_compilation_cache", False)
  try:
    two, eight, thirty_two = (seconds(depth) for depth in (2, 8, 32))
  finally:
    jax.config.update("jax_enable_compilation_cache", True)
  assert max(eight, thirty_two) < 2 * two


def test_4000_resamples_take_less_than_100_fits_of_scipy():
  """Speed as a ratio: the usual script's single fit, against our whole bootstrap."""
  optimize = pytest.importorskip("scipy.optimize")
  table = published_chinchilla()
  runs = laws.make_runs(table.N[table.keep], table.D[table.keep], table.loss[table.keep])
  problem = problem_of(runs.N, runs.D, runs.loss)
  best = solve.minimum(problem, 1e-3)[1].theta[0]
  began = time.perf_counter()
  found = bootstrap.resample(problem, runs, best, 1e-3, 4000, 0)
  ours = time.perf_counter() - began
  log_n, log_d, log_l = map(np.log, (runs.N, runs.D, runs.loss))

  def cost(p):
    r = np.log(np.exp(p[0]) + np.exp(p[1] - p[3] * log_n) + np.exp(p[2] - p[4] * log_d)) - log_l
    size = np.abs(r)
    return np.where(size < 1e-3, r**2 / 2, 1e-3 * (size - 5e-4)).sum()

  start = np.array([*np.log(HOFFMANN[:3]), *HOFFMANN[3:]])
  began = time.perf_counter()
  for _ in range(10):
    optimize.minimize(cost, start, method="BFGS")
  theirs = (time.perf_counter() - began) / 10
  print(
    f"4000 resamples {ours:.2f} s, one fit of scipy {theirs:.4f} s: {ours / theirs:.0f} of them"
  )
  assert found.converged.all()
  assert ours < 100 * theirs


def test_one_fit_with_intervals_from_a_fresh_process_takes_three_seconds():
  """Start-up, imports, 240 runs, 1,000 resamples, every interval: processor time, of both kinds."""
  program = """
import resource
import numpy as np
from configs import base
from scaling import laws
from scaling.laws import chinchilla
N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e10, 16), np.geomspace(1e9, 1e11, 15)))
law = chinchilla.Chinchilla(*map(np.float64, (1.8, 480.0, 2100.0, 0.35, 0.37)))
loss = chinchilla.loss(law, N, D) * np.exp(0.005 * np.random.default_rng(0).standard_normal(240))
options = base.get_config().fit
found = laws.fit_runs(laws.make_runs(N, D, loss), options)
laws.optimum(found, 1e23)
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""
  seconds = float(script(program))
  print(f"{seconds:.2f} s")
  assert seconds < 3


def test_a_fit_of_a_million_runs_takes_a_minute_of_one_core():
  assert fit_a_million_runs() < 60


def test_the_same_case_twice_is_as_fast(make_tiny):
  config = make_tiny()
  config.data.batch_size = 8
  case = steps.cases(config, "32/1/2", tokens=300)[0].config
  tokens = dataset.prepare(case)
  takers = {name: timing.training(case, tokens)[0] for name in "ab"}
  found = timing.round_robin(takers, 15)
  assert 0.5 < timing.ratio(found["a"], found["b"]) < 2


def test_a_step_is_slower_than_the_best_product_of_its_run(make_tiny, tmp_path):
  grid = steps.cases(make_tiny(), "16/1,48/1/2", "decoder", "float32,bfloat16", 300)
  result = steps.bench(grid[:3], tmp_path / "bench", rounds=3)
  for row in result["cases"]:
    assert 0 < row["peak_fraction"] < 1
    assert 0 < row["dispatch_seconds"] < row["step_seconds_max"]
    assert row["compile_seconds"] > 0.05


def test_a_product_counts_its_flops():
  """Twice the side is eight times the work: were it miscounted, the rates would be far apart."""
  takers = {side: timing.product(side, "float32") for side in (512, 1024)}
  rates = {side: max(found) for side, found in timing.round_robin(takers, 8).items()}
  assert 1 / 3 < rates[1024] / rates[512] < 3
  assert 1e9 < rates[512] < 1e14
