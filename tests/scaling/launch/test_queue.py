"""Which tasks are trained together, and in which order."""

from scaling.launch.queue import Failure, Queue, Task
from train.system import files


def ids(pack):
  return [task.id for task in pack.tasks], pack.slots


def test_packs_follow_the_plan_and_not_what_is_done(tmp_path):
  def task(name, cost, needs=None, shape=0):
    return Task(name, tmp_path / name, {}, cost, needs, shape, pack=2)

  tasks = [task("trunk", 5), task("a", 1, "trunk"), task("b", 3, "trunk"), task("c", 2, "trunk")]
  tasks.append(task("other", 4, shape=1))
  queue = Queue(tasks)
  assert [ids(queue.pop()) for _ in range(2)] == [(["trunk"], 1), (["other"], 1)]
  assert queue.pop() is None
  queue.finish(tasks[0])
  assert [ids(queue.pop()) for _ in range(2)] == [(["b", "c"], 2), (["a"], 1)]
  assert not queue
  for name in ("trunk", "b"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "run.json").write_text('{"status": "done"}')
  queue = Queue(tasks)
  assert [ids(queue.pop()) for _ in range(3)] == [
    (["other"], 1), (["c"], 2), (["a"], 1)
  ]  # fmt: skip
  (tmp_path / "trunk/run.json").unlink()
  queue = Queue(tasks[:4])
  assert ids(queue.pop()) == (["trunk"], 1)
  queue.fail(tasks[0], Failure("it broke"))
  assert queue.pop() is None
  assert not queue
  reason = "trunk did not finish: it broke"
  errors = {name: failure.error for name, failure in queue.failures.items()}
  assert errors == {"trunk": "it broke", "c": reason, "a": reason}


def test_the_next_program_is_another(tmp_path):
  tasks = [Task(f"{s}{i}", tmp_path, {}, 9 - i - s, None, s, 2) for s in (0, 1) for i in range(4)]
  queue = Queue(tasks)
  first = queue.pop()
  assert first.tasks[0].shape == 0
  assert queue.another({first.program}).tasks[0].shape == 1
  assert Queue(tasks[:4]).another({first.program}) is None


def test_a_run_refused_because_its_folder_is_in_use_leaves_the_running_runs_record(tmp_path):
  task = Task("a", tmp_path, {}, 1.0)
  task.path.write_text('{"status": "running", "N": 5}')
  with files.owned(tmp_path):
    task.record_failure(Failure("in use by process 7"))
  assert files.read_json(task.path) == {"status": "running", "N": 5}
  task.record_failure(Failure("it broke"))
  assert files.read_json(task.path)["error"] == "it broke"


def test_a_failed_run_carries_no_digests_of_what_it_was(tmp_path):
  task = Task("a", tmp_path, {}, 1.0)
  files.write_json(task.path, files.with_digests({"status": "diverged", "N": 5}))
  task.record_failure(Failure("it broke"))
  assert files.read_record(task.path)["status"] == "failed"
