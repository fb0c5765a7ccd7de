"""Promises of the reproduction: a kill changes nothing, and records give back what was measured as it is done today."""

import json
import os
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
from interp.knn import best_add
from interp.policies import load_policy
from interp.runs import Run
from steering.compare import compare_entries
from steering.episode import Episode
from steering.recipes import Recipe
from steering.reproduce.experiment import done, keep, restore, run
from steering.reproduce.plan import Arm, Plan, Study
from steering.reproduce.pool import Cluster
from steering.reproduce.records import read_records, write_costs, write_record
from steering.reproduce.work import perform, results_path, run_path
from steering.results import Result, result_path, save_result
from steering.suites import SUITES
from testbed.variation import TestbedError

ROOT = Path(__file__).parents[2]

# ---- records


def result(arm: str, suite: str, wins: str, first: int = 0, **changes: object) -> Result:
    episodes = [
        Episode(first + i, won == "1", 10 + i, None if won == "1" else ("time ran out", "dropped")[i % 2])
        for i, won in enumerate(wins)
    ]
    condition = SUITES[suite].condition("cube-in-bowl")
    return replace(
        Result(
            name=arm,
            arm=arm.split("-k")[0],
            task="cube-in-bowl",
            policy=f"pi0-{arm}",
            episodes=tuple(episodes),
            trainable_parameters={"expert query rows": 24, "expert output columns": 24},
            seconds={"train": 12.5, "evaluate": 3.25},
            peak_memory_mb=800.5,
            heads=("expert.L0H3", "expert.L1H2"),
            settings={
                "rolled_out": condition.task,
                **condition.options,
                "execute": 2,
                "recipe": {"name": "aligned", "betas": [0.9, 0.95]},
                "seed": 0,
                "data": "demos-x",
            },
            suite=suite,
            factor=SUITES[suite].factor,
            created="2026-01-01T00:00:00Z",
        ),
        **changes,
    )


def test_records_give_back_what_was_measured_and_say_nothing_of_the_clock(tmp_path: Path) -> None:
    kept = [
        (0, result("aligned", "in-domain", "1101")),
        (0, result("aligned", "lighting", "1001")),
        (1, result("aligned", "in-domain", "0111", policy="pi0-other")),
    ]
    path = write_record(tmp_path, kept, "robosteer reproduce")
    assert path is not None
    before = path.read_bytes()
    write_costs(tmp_path, kept)

    entries = read_records(tmp_path)
    for (_, was), entry in zip(kept, entries, strict=True):
        assert entry.arm == "aligned"
        found = entry.result
        assert (found.episodes, found.policy, found.heads) == (was.episodes, was.policy, was.heads)
        assert (found.suite, found.factor, found.condition) == (was.suite, was.factor, was.condition)
        assert found.seconds["train"] == 12.5
        assert found.peak_memory_mb == 800.5
    evaluated = {
        entry.result.seconds["evaluate"] for entry in entries if entry.result.policy == "pi0-aligned"
    }
    assert evaluated == {6.5}  # of all suites

    slower = [
        (seed, replace(r, seconds={"train": 99.0, "evaluate": 9.0}, created="2027")) for seed, r in kept
    ]
    assert write_record(tmp_path, reversed(slower), "robosteer reproduce") == path
    assert path.read_bytes() == before


def test_records_of_several_seeds_are_runs_of_one_arm(tmp_path: Path) -> None:
    write_record(tmp_path, [(0, result("base", "in-domain", "0101", heads=None))], "")
    runs = [
        (seed, result("aligned", "in-domain", wins)) for seed, wins in enumerate(("1111", "0111", "1101"))
    ]
    write_record(tmp_path, runs, "")
    found = compare_entries(read_records(tmp_path))
    cell = found.cell("aligned", "cube-in-bowl")
    assert cell is not None
    assert (cell.runs, cell.n, cell.success.value) == (3, 4, pytest.approx(10 / 12))
    assert cell.difference is not None
    assert cell.difference.value == pytest.approx(10 / 12 - 1 / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: text.replace('"schema": 2', '"schema": 9'), "schema 9, this version reads 2"),
        (lambda text: text.replace('"1101"', '"110"'), "is no record of results"),
        (lambda text: text.replace('"in-domain"', '"in-space"'), "is no record of results"),
    ],
)
def test_a_broken_record_is_named(tmp_path: Path, change, message: str) -> None:
    path = write_record(tmp_path, [(0, result("aligned", "in-domain", "1101"))], "")
    assert path is not None
    path.write_text(change(path.read_text()))
    with pytest.raises(UsageError, match=message) as caught:
        read_records(tmp_path)
    assert str(path) in str(caught.value)


def test_records_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make them with `robosteer reproduce`"):
        read_records(tmp_path)


# ---- the experiment

SMALL = Plan(
    "quick",
    (
        Study("success", "?", (Arm("base"), Arm("aligned", heads=3)), tasks=("press-button-hard",)),
        Study("more", "?", (Arm("retain", heads=3),), ("in-domain", "lighting"), ("press-button-hard",)),
    ),
    seeds=(0,),
    n=2,
    demos=4,
    steps=4,
    settings={"frames": 2, "pairs": 2},
)


def records(directory: Path) -> dict[str, bytes]:
    found = sorted(directory.glob("*/*.json"))
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


@pytest.mark.slow
def test_an_experiment_that_is_killed_ends_with_the_records_of_one_that_is_not(tmp_path: Path) -> None:
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
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not all(done(SMALL, work, job) for job in SMALL.jobs())

    said: list[str] = []
    run(SMALL, work, kept, 2, said.append, progress=False)
    assert not any("base" in line for line in said)  # it was there
    run(SMALL, tmp_path / "whole", tmp_path / "whole-results", 2, said.append, progress=False)
    assert records(kept) == records(tmp_path / "whole-results")
    assert set(records(kept)) == {
        f"press-button-hard/{arm}.json" for arm in ("base", "aligned-k3", "retain-k3")
    }

    said.clear()
    run(SMALL, work, kept, 2, said.append, progress=False)
    assert not said  # nothing left to do
    trained = json.loads((kept / "press-button-hard/aligned-k3.json").read_text())["runs"][0]
    assert len(trained["heads"]) == 3
    assert sum(trained["trainable_parameters"].values()) == 3 * 4096


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

    (job,) = SMALL.only(studies=["success"], arms=["aligned-k3"]).jobs()
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


ONE = Plan("quick", (Study("success", "?", (Arm("base"),), tasks=("press-button-hard",)),), seeds=(0,), n=2)


def test_what_records_hold_is_not_measured_again(tmp_path: Path) -> None:
    kept = tmp_path / "results"
    base = load_policy("tiny-pi0").fingerprint
    command = "robosteer reproduce --quick --tasks press-button-hard --arms base"
    measured = result("base", "in-domain", "10", task="press-button-hard", policy=base, heads=None)
    settings = {"rolled_out": "press-button-hard", "execute": 2, "seed": 0}
    path = write_record(kept, [(0, replace(measured, settings=settings))], command)
    assert path is not None
    before = path.read_bytes()

    restore(tmp_path / "new", kept)
    assert all(done(ONE, tmp_path / "new", job) for job in ONE.jobs())
    restore(tmp_path / "new", kept)
    keep(ONE, tmp_path / "new", kept, "press-button-hard", Arm("base"))
    assert path.read_bytes() == before

    more = replace(ONE, n=3)  # adds an episode, and does not run the two again: their made-up lengths stay
    assert not all(done(more, tmp_path / "new", job) for job in more.jobs())
    (job,) = more.jobs()
    (found,) = perform(more, tmp_path / "new", job)
    assert found.episodes[:2] == measured.episodes
    assert len(found.episodes) == 3


def test_what_was_trained_with_another_recipe_is_not_done(tmp_path: Path) -> None:
    arm = Arm("retain", heads=3)
    plan = Plan("quick", (Study("s", "?", (arm,), tasks=("press-button-hard",)),), seeds=(0, 1), n=1, steps=4)
    for seed, steps in ((0, 4), (1, 3)):
        recipe = {**Recipe.named("aligned", steps=steps).to_json(), "name": "retain", "of": "aligned"}
        made = result(arm.name, "in-domain", "1", task="press-button-hard")
        settings = {"rolled_out": "press-button-hard", "execute": 2, "recipe": recipe, "seed": seed}
        directory = results_path(tmp_path, "press-button-hard", seed)
        save_result(result_path(directory, arm.name, "in-domain"), replace(made, settings=settings))
    assert [done(plan, tmp_path, job) for job in plan.jobs()] == [True, False]
    keep(plan, tmp_path, tmp_path / "results", "press-button-hard", arm)
    assert [e.result.settings["seed"] for e in read_records(tmp_path / "results")] == [0]


def test_what_was_tried_before_a_suite_changed_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or rates under half the light and under hardly less would stand in one row."""
    task, base = "press-button-hard", load_policy("tiny-pi0").fingerprint
    plan = replace(ONE, studies=(replace(ONE.studies[0], suites=("lighting",)),))
    (job,) = plan.jobs()
    before = replace(SUITES["lighting"], options={"variation": {"light": 0.5}})
    ran = {"rolled_out": task, "execute": 2, **before.options}
    measured = result("base", "lighting", "11", task=task, policy=base, heads=None, settings=ran)
    kept = tmp_path / "results"
    write_record(kept, [(0, measured)], "")
    restore(tmp_path / "work", kept)
    assert [e.result.settings["variation"] for e in read_records(kept)] == [{"light": 0.5}]
    assert not done(plan, tmp_path / "work", job)

    with monkeypatch.context() as then:
        then.setitem(SUITES, "lighting", before)
        assert done(plan, tmp_path / "work", job)

    (found,) = perform(plan, tmp_path / "work", job)
    assert found.settings["variation"] == SUITES["lighting"].options["variation"]
    assert [e.steps for e in found.episodes] != [e.steps for e in measured.episodes]
    assert done(plan, tmp_path / "work", job)


@pytest.mark.slow
def test_suites_of_one_arm_are_of_one_policy(tmp_path: Path) -> None:
    """A record made where arithmetic differs is of another policy: its cells are measured again, not mixed in."""
    arm = Arm("aligned", heads=3, by="best-add")
    plan = Plan(
        "quick",
        (Study("more", "?", (arm,), ("lighting",), ("press-button-hard",)),),
        seeds=(0,),
        n=1,
        demos=2,
        steps=1,
    )
    strange = result(arm.name, "in-domain", "1", task="press-button-hard", policy="pi0-another")
    kept = tmp_path / "results"
    write_record(
        kept, [(0, replace(strange, settings={"rolled_out": "press-button-hard", "execute": 2}))], ""
    )
    restore(tmp_path / "work", kept)
    (job,) = plan.jobs()
    found = perform(plan, tmp_path / "work", job)
    assert {r.suite for r in found} == {"lighting", "in-domain"}
    assert len({r.policy for r in found}) == 1
    assert "pi0-another" not in {r.policy for r in found}
    together = best_add(Run.open(run_path(tmp_path / "work", "press-button-hard", 0, 2)), 3)
    assert found[0].heads == tuple(map(str, together.heads))


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
