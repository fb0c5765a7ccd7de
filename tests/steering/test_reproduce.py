"""Promises of the reproduction: a kill changes nothing, a cluster does the same, arms train what they say."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from interp.errors import UsageError
from interp.runs import Run
from steering.checkpoint import steps_in
from steering.finetune import CHECKPOINT, SUMMARY
from steering.reproduce.experiment import done, run
from steering.reproduce.plan import Arm, Plan, Study
from steering.reproduce.pool import Cluster
from steering.reproduce.records import COSTS, read_records
from steering.reproduce.report import report
from steering.reproduce.work import perform, run_path
from steering.results import Result
from testbed.variation import TestbedError

ROOT = Path(__file__).parents[2]

SMALL = Plan(
    "quick",
    (
        Study("success", "?", (Arm("base"), Arm("aligned")), tasks=("press-button-hard",)),
        Study("more", "?", (Arm("retain"),), ("in-domain", "lighting"), ("press-button-hard",)),
    ),
    seeds=(0,),
    n=2,
    demos=4,
    steps=12,
    checkpoint_every=2,
    settings={"frames": 2, "pairs": 2},
)


def records(directory: Path) -> dict[str, bytes]:
    found = sorted(directory.glob("*/*.json"))
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


@pytest.mark.slow
def test_an_experiment_that_is_killed_ends_with_the_records_and_report_of_one_that_is_not(
    tmp_path: Path,
) -> None:
    script = tmp_path / "reproduce.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom steering.reproduce.experiment import run\n"
        "from test_reproduce import SMALL\n"
        "if __name__ == '__main__':\n    run(SMALL, Path(sys.argv[1]), Path(sys.argv[2]), 1)\n"
    )
    work, kept = tmp_path / "killed", tmp_path / "killed-results"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/steering"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, script, work, kept],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (kept / "press-button-hard/base.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    with pytest.raises(UsageError, match=rf"process {process.pid} is reproducing there"):
        run(SMALL, work, kept, 1, progress=False)
    training = run_path(work, "press-button-hard", 0, SMALL.demos) / "jobs/aligned"
    while not (training / CHECKPOINT).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < steps_in(training / CHECKPOINT) < SMALL.steps
    assert not (training / SUMMARY).exists()
    assert not all(done(SMALL, work, job) for job in SMALL.jobs())

    said: list[str] = []
    run(SMALL, work, kept, 2, said.append, progress=False)
    assert not any("base" in line for line in said)  # it was there
    run(SMALL, tmp_path / "whole", tmp_path / "whole-results", 2, said.append, progress=False)
    whole = tmp_path / "whole-results"
    assert records(kept) == records(whole)
    assert set(records(kept)) == {f"press-button-hard/{arm}.json" for arm in ("base", "aligned", "retain")}

    shutil.copy(whole / COSTS, kept / COSTS)  # the clock is the machine's
    reports = [report(SMALL, read_records(results), results) for results in (kept, whole)]
    assert reports[0] == reports[1]
    assert all(f"| {arm} |" in reports[0] for arm in ("base", "aligned", "retain"))

    said.clear()
    run(SMALL, work, kept, 2, said.append, progress=False)
    assert not said  # nothing left to do
    trained = json.loads((kept / "press-button-hard/aligned.json").read_text())["runs"][0]
    assert len(trained["heads"]) == 12
    assert sum(trained["trainable_parameters"].values()) == 12 * 4096


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray cluster of this machine alone, and its address."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # no token is left in the home directory
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    here = ["--node-ip-address=127.0.0.1", f"--port={address.split(':')[1]}", "--num-cpus=2"]
    subprocess.run(
        [*ray, "start", "--head", *here, "--include-dashboard=false"], check=True, capture_output=True
    )
    yield address
    subprocess.run([*ray, "stop", "--force"], check=True, capture_output=True)


@pytest.mark.slow
def test_a_cluster_does_the_same_jobs(tmp_path: Path, cluster: str) -> None:
    def same(result: Result) -> Result:
        return replace(result, seconds={}, peak_memory_mb=None, created="")

    (job,) = SMALL.only(studies=["success"], arms=["aligned"]).jobs()
    with Cluster(cluster) as pool:
        assert pool.processes == 2
        (there,) = pool.submit(perform, SMALL, tmp_path / "there", job).result()
        wrong = pool.submit(perform, SMALL, tmp_path / "there", replace(job, task="nothing"))
        with pytest.raises(TestbedError, match=r"^task 'nothing': unknown"):  # a job's error, as it is
            wrong.result()
    (here,) = perform(SMALL, tmp_path / "here", job)
    assert same(there) == same(here)


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--ray nowhere: no cluster answers \(.+\); `ray start --head` starts one"
    ):
        run(SMALL, tmp_path, tmp_path / "results", ray="nowhere")


@pytest.mark.slow
def test_arms_that_reach_the_vlm_train_what_they_say(tmp_path: Path) -> None:
    arms = (
        Arm("aligned", heads=3, tower="both"),
        Arm("random-k", heads=3, tower="both"),
        Arm("lora", targets="all-linear"),
    )
    plan = Plan(
        "quick", (Study("s", "?", arms, tasks=("press-button-hard",)),), seeds=(0,), n=1, demos=2, steps=1
    )
    chosen, drawn, everywhere = (perform(plan, tmp_path, job)[0] for job in plan.jobs())
    scores = Run.open(run_path(tmp_path, "press-button-hard", 0, 2))
    best = [str(h) for t in ("expert", "vlm") for h in scores.read_scores(f"knn-{t}").best(3, t)]
    assert chosen.name == "aligned-both-k3"
    assert list(chosen.heads or ()) == best
    assert [head[0] for head in drawn.heads or ()] == list("eeevvv")
    assert {name.split()[0] for name in chosen.trainable_parameters} == {"expert", "vlm"}
    assert everywhere.name == "lora-all-linear"
    assert everywhere.settings["recipe"]["lora_targets"] == "all-linear"
    assert set(everywhere.trainable_parameters) == {"lora expert", "lora vlm"}
    assert all(done(plan, tmp_path, job) for job in plan.jobs())
