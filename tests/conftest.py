"""Shared by the tests: a small corpus, and a config that trains on it in seconds."""

import functools
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

if any("tests/gpu" in argument for argument in sys.argv):  # tests of this machine's device
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a sweep's worker uses it, too
else:
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  # Most of the time of the default and the slow group goes into compiling, which takes a third
  # without optimizations; a step then takes four times as long. The other groups compile as users
  # do, and so do tests that ask for `optimized`. What is set here holds for pytest-xdist's workers.
  as_users = any(name in a for name in ("tests/oracle", "tests/release") for a in sys.argv)
  os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "0" if as_users else "1")
  if not as_users and metadata.version("jaxlib").startswith("0.10."):  # the others lack the flag
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # more would wait busily beside other tests

import numpy as np
import pytest

from configs import base, presets

# Files with the most to do, which pytest-xdist's workers take first: one of them that was left for
# the end would run alone.
LONGEST = ("test_sweep", "test_sharding", "test_contributing", "test_worker", "test_warm_start")


def pytest_configure(config):
  if hasattr(config.option, "loadscopereorder"):  # by number of tests: short ones first
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
  """A cache folder of this test session, also for the processes that tests start.

  What one test has compiled, the next one does not compile again, nor do the processes that tests
  start and the other workers of pytest-xdist, each of which has such a session of its own.
  """
  import jax

  from train.system import process

  folder = tmp_path_factory.mktemp("cache")
  if "PYTEST_XDIST_WORKER" in os.environ:  # whose temporary folders are beside each other
    programs = tmp_path_factory.getbasetemp().parent / "xla"
    programs.mkdir(exist_ok=True)
    (folder / "xla").symlink_to(programs)
  os.environ["ISOFLOP_CACHE"] = str(folder)
  process.use_compile_cache()
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
  return folder


@pytest.fixture
def optimized(monkeypatch):
  """Programs are compiled as users' are, here and in processes that the test starts."""
  import jax

  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def no_silent_broadcasting():
  """Arrays of different rank are an error where they meet: in the tests of the models."""
  import jax

  with jax.numpy_rank_promotion("raise"):
    yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
  """A folder of text: sentences of a few hundred words with Zipf's frequencies."""
  folder = tmp_path_factory.mktemp("corpus")
  rng = np.random.default_rng(0)
  letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
  words = np.array(["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(300)])
  p = 1 / np.arange(1, 301)
  for i in range(200):
    (folder / f"{i}.txt").write_text(" ".join(rng.choice(words, 400, p=p / p.sum())) + ".\n")
  return folder


@pytest.fixture(scope="session")
def make_tiny(cache, corpus):
  """Makes configs of runs of 60 steps of a 13k-parameter model."""

  def make():
    c = base.get_config()
    c.model.size = 0
    c.data.source = f"text:{corpus}"
    c.data.seq_len = 32
    c.data.batch_size = 4
    c.optim.warmup_tokens = 512
    c.train.tokens = 60 * 4 * 32
    c.train.eval_tokens = 2048
    c.train.log_every_steps = 5
    return c

  return make


@pytest.fixture
def tiny(make_tiny):
  return make_tiny()


@pytest.fixture(scope="session")
def trained(make_tiny, tmp_path_factory):
  """Trains four steps of a preset, once, and returns the run's folder: by its name."""
  workdir = tmp_path_factory.mktemp("runs")

  @functools.cache
  def train(name):
    from train import loop

    c = make_tiny()
    preset = presets.get_config(name)
    with c.unlocked():
      c.model, c.objective = preset.model, preset.objective
    c.model.size = 0
    c.seed, c.optim.lr = 3, 0.03  # far from any other initialisation
    c.data.isolate_documents = preset.data.isolate_documents
    c.data.tokenizer = "bpe:300" if name == "bert" else "bytes"
    c.optim.warmup_tokens = 0
    c.optim.schedule = "constant"
    c.train.tokens = 4 * 4 * 32
    assert loop.train(c, workdir / name)["status"] == "done"
    return workdir / name

  return train


@pytest.fixture
def isoflop(capsys):
  """Runs the command in this process; returns its exit code, output and errors."""
  from scaling import main

  def run(*argv):
    code = main.main([str(argument) for argument in argv])
    output = capsys.readouterr()
    return code, output.out, output.err

  return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """A finished sweep with its report, and with what stands behind its law; not to be changed."""
  import synthetic

  return synthetic.reported(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of the finished sweep, without the report, for a test to change."""
  skip = shutil.ignore_patterns("figures", "report.*")
  return Path(shutil.copytree(finished, tmp_path / "sweep", ignore=skip))
