"""`isoflop plan --target`: what is refused before compiling, and what is made of rows."""

import json
import sys
from pathlib import Path

import pytest

from configs import base, large
from scaling.sweep.design import designs
from scaling.targets import catalog, compiled, layouts, summary
from train import record

LARGE = Path(large.__file__)
GIB = 2**30


@pytest.fixture
def compiler(monkeypatch):
  """Stands in for the compiler: keeps the tasks, and answers with rows of a second each."""
  seen, answers = [], {}

  def compile_all(tasks):
    seen.extend(tasks)
    needs = {"arguments": 4 * GIB, "temporaries": 2 * GIB, "outputs": 4 * GIB, "donated": 4 * GIB}
    needs |= {"held": 6 * GIB, "flops": 1e12, "bytes": 1e9, "collectives": {}, "slowest": []}
    needs |= {"seconds": 1.0, "seconds_alone": dict.fromkeys(TIMES, 0.5), "compile_seconds": 1.0}
    rows = []
    for task in tasks:
      for program in task.programs:
        answer = answers.get(program, {})
        answer = answer if "error" in answer else needs | answer
        rows.append({"case": task.case, "program": program} | answer)
    return rows

  monkeypatch.setattr(catalog, "check_installed", lambda target: None)
  monkeypatch.setattr(compiled, "compile_all", compile_all)
  return seen, answers


TIMES = ("total", "products", "memory", "links", "waiting")


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    (("--target=h10",), "target='h10': unknown; did you mean 'h100'?"),
    (("--target=h100", "--devices=2"), "--target has its devices"),
    (("--target=h100", "--device_memory=80GiB"), "--target has its devices"),
    (("--target=h100", "--next"), "--target has its devices"),
    (("--target=h100:3",), "data.batch_size=256: must be a multiple of 3"),
    (("--target=h100:8", "--config.sharding.tensor=3"), "sharding.tensor=3: must divide"),
    (("--target=h100", "--config.model.remat=some"), "model.remat='some': unknown"),
    (("--target=h100", "--config.data.tokenizer=words"), "data.tokenizer='words': unknown"),
  ],
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(isoflop, compiler, flags, line):
  code, out, err = isoflop("plan", f"--config={LARGE}:1b", *flags)
  assert code == 2
  assert out == ""
  assert line in err
  assert len(err.splitlines()) == 1
  assert not compiler[0]


def test_a_run_is_its_three_programs_and_their_hours(isoflop, compiler, tmp_path):
  code, out, err = isoflop(
    "plan", f"--config={LARGE}:1b", "--target=h100:8", f"--workdir={tmp_path}"
  )
  assert code == 0, err
  assert sorted(p for task in compiler[0] for p in task.programs) == sorted(compiled.PROGRAMS)
  plan = json.loads((tmp_path / "plan.json").read_text())
  step = next(row for row in plan["programs"] if row["program"] == "step")
  config = compiler[0][0].config
  size = record.size_of(layouts.resolve(large.get_config("1b"), 8), 32_000)
  assert config["model"]["width"] == 2048
  exact = size.flops_per_token * size.tokens_per_step
  assert step["share_of_peak"] == pytest.approx(exact / (8 * 67e12))  # its products are float32
  assert step["tokens_per_second"] == size.tokens_per_step
  assert step["fits"] == "yes"
  # A second for each step, and one for the only batch of its evaluation.
  assert plan["hours"] == pytest.approx((size.steps + 1) / 3600)
  assert f"{8 * plan['hours']:.3g} device hours" in out
  assert "a bound that the program permits, not a forecast" in out


def test_evaluation_beside_the_optimizers_state_must_fit(isoflop, compiler):
  compiler[1]["step"] = {"arguments": 40 * GIB, "held": 50 * GIB}
  compiler[1]["evaluate"] = {"arguments": 10 * GIB, "held": 30 * GIB}
  code, out, _ = isoflop("plan", f"--config={LARGE}:1b", "--target=h100")
  assert code == 0
  rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("run ")}
  assert "yes" in rows["step"]
  assert "with XLA_CLIENT_MEM_FRACTION=0.95" in rows["evaluate"]  # 60 of 79, jax takes 59


def test_what_does_not_fit_has_its_remedy(isoflop, compiler):
  compiler[1]["step"] = {"held": 100 * GIB}
  code, out, _ = isoflop("plan", f"--config={LARGE}:1b", "--target=h100")
  assert code == 0
  assert any(line.startswith("run step") and " no " in line for line in out.splitlines())
  assert "run: nothing fits" in out or "run: fits" in out
  assert "--config." in out


def test_a_program_that_does_not_compile_is_a_row_with_its_reason(isoflop, compiler):
  compiler[1]["step"] = {"error": "JaxRuntimeError: RESOURCE_EXHAUSTED: Used 20.1G of 15.75G hbm"}
  compiler[1]["init"] = {"error": "JaxRuntimeError: INTERNAL: no"}
  code, out, _ = isoflop("plan", f"--config={LARGE}:1b", "--target=v5e:16x16")
  assert code == 0
  lines = out.splitlines()
  assert "run step: JaxRuntimeError: RESOURCE_EXHAUSTED: Used 20.1G of 15.75G hbm" in lines
  assert next(line for line in lines if line.startswith("run init")).endswith("does not compile")
  assert "device hours" not in out


def test_a_sweep_is_every_size_of_its_plan(compiler, make_tiny):
  config = make_tiny()
  config.sweep.sizes, config.sweep.budgets = (0, 1, 2), (2e9, 4e9)
  config.sweep.probe_sizes, config.data.max_epochs = (0,), 1000.0
  config.optim.warmup_tokens = 0
  summary.target_report(config, "h100", None)
  ((_, design),) = designs(config, None)
  cells = design.cells
  assert [task.case for task in compiler[0]] == [
    f"size {size}" for size in sorted({cell.size for cell in cells})
  ]
  planned = [*summary.plan_cases(config, None, catalog.parse("h100"))]
  assert sum(case.evaluations for case in planned) == len(cells)
  spent = sum(cell.flops_spent for cell in cells)
  flops = {cell.size: cell.flops_per_token * cell.tokens_per_step for cell in cells}
  steps = sum(case.steps * flops[int(case.name.split()[1])] for case in planned)
  assert steps == pytest.approx(spent)


def test_a_compiler_that_dies_is_a_row(monkeypatch):
  monkeypatch.setattr(sys, "executable", "/bin/false")
  task = compiled.Task("run", base.get_config().to_dict(), 257, "h100", programs=["step"])
  (row,) = compiled.compile_all([task])
  assert "the compiler ended: exit code 1" in row["error"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2", "h100"])
def test_a_runs_flops_and_bytes_on_a_target(name):
  """The state is donated; products are the model's, and what is repeated."""
  target = catalog.parse(name)
  try:
    catalog.check_installed(target)
  except ValueError as error:
    pytest.skip(str(error))
  c = base.get_config()
  c.model.update({"width": 256, "depth": 2, "heads": 4, "dtype": "bfloat16", "remat": "dots"})
  c.data.seq_len, c.data.batch_size, c.data.isolate_documents = 256, 8 * target.devices, False
  c = layouts.resolve(c, target.devices)
  (row,) = compiled.rows(compiled.Task("run", c.to_dict(), 8000, name, programs=["step"]))
  size = record.size_of(c, 8000)
  exact = size.flops_per_token * size.tokens_per_step / target.devices
  product = 2 * 8 * 4 * 256 * 64 * c.model.depth  # of all queries with one key
  if target.tpu:  # splash attention, in one block: 2 products forward, 3 and 4 back
    expected = exact + product * ((2 + 3 + 4) * 256 - 6 * 257 / 2)
  else:  # cuDNN's backward pass is five products
    expected = exact + product * 257 / 2
  assert row["flops"] == pytest.approx(expected, rel=1e-3)
  assert row["donated"] > 0.99 * row["outputs"]
