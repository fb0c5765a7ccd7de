"""A job is a process of its own that nobody loses: it outlives who started it, and its death is noticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from app_kit import POLICY, make_run
from job_kit import PROGRAM, until

from app import jobs
from app.jobs import Point, Request, cancel, jobs_of, launch, remaining, resume, thinned
from interp.errors import UsageError
from interp.heads import Head
from interp.runs import Run
from steering.finetune import LOCK
from steering.headset import HeadSet
from testbed.processes import claimed

HEADS = HeadSet((Head("expert", 3, 2),), policy=POLICY, method="by hand")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(jobs, "PROGRAM", PROGRAM)
    return make_run(tmp_path / "runs" / "first")


def state(run: Run, name: str) -> str:
    return {job.id: job.state for job in jobs_of(run)}[name]


def asked(name: str = "mine", recipe: str = "aligned", steps: int = 4, pace: float = 0.02) -> Request:
    return Request(name, recipe, HEADS, {"steps": (str(steps),), "lr": (str(pace),)})


def test_a_job_runs_to_its_end_and_leaves_what_was_asked(run: Run) -> None:
    job = launch(run, asked())
    until(lambda: state(run, "mine") == "done", "the job's end")
    record = json.loads((run.path / "jobs" / "mine" / "heads.json").read_text())
    assert record["heads"] == [{"tower": "expert", "layer": 3, "head": 2, "score": None}]
    (again,) = jobs_of(run)
    assert again.recipe == "aligned"
    assert [(p.step, p.loss) for p in again.points()] == [(i, 1 / i) for i in (1, 2, 3, 4)]
    assert "--heads" in again.log().splitlines()[0]
    assert again.log().endswith("stand-in is done")
    assert again.config["command"][:3] == ["finetune", "--run", str(run.path)]
    assert job.path == again.path


def test_it_outlives_the_process_that_started_it(run: Run) -> None:
    script = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]\n"
        "from app import jobs; from interp.runs import Run; import job_kit\n"
        "jobs.PROGRAM = job_kit.PROGRAM\n"
        "options = {'steps': ('2000',), 'lr': ('0.05',)}\n"
        "jobs.launch(Run.open(sys.argv[1]), jobs.Request('mine', 'aligned', None, options))\n"
        "os.killpg(os.getpgid(0), signal.SIGKILL)\n"
    )
    paths = [str(Path(jobs.__file__).parents[1]), str(Path(__file__).parent)]
    words = [sys.executable, "-c", script, str(run.path), *paths]
    died = subprocess.run(words, start_new_session=True, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    until(lambda: len(jobs_of(run)[0].points()) > 2, "steps of the orphan")
    cancel(run, "mine")
    until(lambda: state(run, "mine") == "cancelled", "the job to be cancelled")


def test_cancelled_it_saves_and_later_goes_on_from_there(run: Run) -> None:
    launch(run, asked(steps=60))
    until(lambda: len(jobs_of(run)[0].points()) > 3, "some steps")
    assert cancel(run, "mine").state == "cancelling"
    until(lambda: state(run, "mine") == "cancelled", "the job to stop")
    reached = len(jobs_of(run)[0].points())
    assert reached < 60
    with pytest.raises(UsageError, match="nothing to cancel"):
        cancel(run, "mine")
    assert resume(run, "mine").active
    until(lambda: state(run, "mine") == "done", "the job's end")
    assert f"starts at step {reached}" in jobs_of(run)[0].log()
    with pytest.raises(UsageError, match="job mine is done"):
        resume(run, "mine")


def test_a_second_cancel_does_not_wait(run: Run) -> None:
    launch(run, asked(steps=2, pace=60))  # deaf for a minute: it sees the first signal only after a step
    until(lambda: "starts at" in jobs_of(run)[0].log(), "the job to begin")
    cancel(run, "mine")
    assert state(run, "mine") == "cancelling"
    cancel(run, "mine")
    until(lambda: state(run, "mine") == "cancelled", "the job to die")


def test_a_job_that_is_killed_is_shown_as_such(run: Run) -> None:
    launch(run, asked(steps=400))
    until(lambda: len(jobs_of(run)[0].points()) > 1, "some steps")
    os.killpg(jobs_of(run)[0].config["pid"], signal.SIGKILL)
    until(lambda: state(run, "mine") == "killed", "its death to be noticed")
    assert "died without a word after step" in str(jobs_of(run)[0].message)


def test_a_number_that_was_given_out_again_is_not_the_job(run: Run) -> None:
    folder = run.path / "jobs" / "old"
    folder.mkdir(parents=True)
    mine = {"pid": os.getpid(), "born": jobs.born(os.getpid()), "recipe": "aligned", "command": []}
    (folder / "status.json").write_text('{"state": "running", "step": 5, "total": 9}')
    (folder / "config.json").write_text(json.dumps(mine))
    assert state(run, "old") == "running"
    (folder / "config.json").write_text(json.dumps({**mine, "born": "earlier"}))
    assert state(run, "old") == "killed"
    with pytest.raises(UsageError, match="nothing to cancel"):
        cancel(run, "old")  # which would have ended this very test


def test_one_job_at_a_time_over_all_runs(run: Run) -> None:
    other = make_run(run.path.parent / "second")
    launch(run, asked(steps=400), [run, other])
    with pytest.raises(UsageError, match="one job at a time"):
        launch(other, asked("theirs"), [run, other])
    assert not (other.path / "jobs").exists()
    cancel(run, "mine")
    until(lambda: state(run, "mine") == "cancelled", "the job to stop")
    launch(other, asked("theirs"), [run, other])
    until(lambda: state(other, "theirs") == "done", "the other job's end")


def test_what_failed_says_why(run: Run) -> None:
    launch(run, asked(recipe="full"))
    until(lambda: state(run, "mine") == "failed", "the failure")
    assert jobs_of(run)[0].message == "robosteer finetune: there is no room for that"


@pytest.mark.parametrize("name", ["../mine", "a/b", ".hidden", "", "x" * 101])
def test_names_stay_in_their_folder(run: Run, name: str) -> None:
    with pytest.raises(UsageError, match="name of the job"):
        launch(run, asked(name))
    assert not (run.path / "jobs").exists()


def test_a_name_is_used_once(run: Run) -> None:
    assert jobs.free_name(run, "aligned") == "aligned"
    launch(run, asked("aligned", steps=1))
    until(lambda: state(run, "aligned") == "done", "the job's end")
    with pytest.raises(UsageError, match="job aligned exists"):
        launch(run, asked("aligned"))
    assert jobs.free_name(run, "aligned") == "aligned-2"
    with pytest.raises(UsageError, match="unknown job"):
        cancel(run, "../first")


def test_trainings_from_a_terminal_are_listed_by_their_files(run: Run) -> None:
    folder = run.path / "jobs" / "typed"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text('{"recipe": {"name": "lora"}}')
    (folder / "status.json").write_text('{"state": "running", "step": 5, "total": 9}')
    (folder / "progress.jsonl").write_text('{"step": 1, "seconds": 1, "loss": 2}\n{"step": 2, "sec')
    (job,) = jobs_of(run)
    assert (job.recipe, job.state, job.step, job.total) == ("lora", "running", 5, 9)
    assert job.points() == [Point(1, 1.0, 2.0)]  # the line that is being written is left out
    os.utime(folder / "status.json", (0, 0))
    assert jobs_of(run)[0].state == "silent"
    (folder / "summary.json").write_text("{}")
    assert jobs_of(run)[0].state == "done"


def test_a_training_from_a_terminal_is_at_work_as_long_as_it_holds_its_lock(run: Run) -> None:
    """Minutes pass between its recipe and its first status, and before a stopped one that goes on says anything."""
    folder = run.path / "jobs" / "typed"
    with claimed(folder / LOCK, UsageError("taken")):
        (folder / "recipe.json").write_text('{"recipe": {"name": "lora"}}')
        assert state(run, "typed") == "running"
        (folder / "status.json").write_text('{"state": "interrupted", "step": 5, "total": 9}')
        assert state(run, "typed") == "running"
    assert state(run, "typed") == "interrupted"
    (folder / "status.json").unlink()
    assert state(run, "typed") == "silent"


def test_a_log_looks_as_on_a_terminal(run: Run) -> None:
    folder = run.path / "jobs" / "typed"
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text("{}")
    (folder / "log").write_bytes(b"first\n 1%|\r 50%|\r100%|\nlast\n")
    assert jobs_of(run)[0].log() == "first\n100%|\nlast"


def test_estimates_follow_the_latest_pace() -> None:
    slow = [Point(i, 10.0 * i, 1.0) for i in range(1, 11)]
    fast = [Point(10 + i, 100.0 + i, 1.0) for i in range(1, 31)]
    assert remaining([*slow, *fast], 100) == pytest.approx(
        60
    )  # 60 steps at a second each, the slow start forgotten
    assert remaining(slow[:1], 100) is None
    assert remaining(slow, None) is None
    assert remaining(slow, 10) == 0


def test_thinning_keeps_the_mean_and_the_end() -> None:
    points = [Point(i, float(i), float(i % 7)) for i in range(1, 1201)]
    shown = thinned(points, most=600)
    assert len(shown) == 600
    assert shown[-1].step == 1200
    assert sum(p.loss for p in shown) / 600 == pytest.approx(sum(p.loss for p in points) / 1200)
    assert thinned([]) == []
