"""Promises of the reproduction's work directory: what records hold is not measured again, what the plan asks otherwise
is, and all suites of an arm are of one policy."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from record_kit import result

from interp.knn import best_add
from interp.policies import load_policy
from interp.runs import Run
from steering.recipes import Recipe
from steering.reproduce.experiment import done, keep, restore, run
from steering.reproduce.plan import Arm, Plan, Study
from steering.reproduce.records import read_records, write_record
from steering.reproduce.work import as_planned, perform, recipe_of, results_of, results_path, run_path
from steering.results import Result, load_result, result_path, save_result
from steering.suites import SUITES

ROOT = Path(__file__).parents[2]

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

    restore(ONE, tmp_path / "new", kept)
    assert all(done(ONE, tmp_path / "new", job) for job in ONE.jobs())
    restore(ONE, tmp_path / "new", kept)
    keep(ONE, tmp_path / "new", kept, "press-button-hard", Arm("base"))
    assert path.read_bytes() == before

    more = replace(ONE, n=3)  # adds an episode, and does not run the two again: their made-up lengths stay
    assert not all(done(more, tmp_path / "new", job) for job in more.jobs())
    (job,) = more.jobs()
    (found,) = perform(more, tmp_path / "new", job)
    assert found.episodes[:2] == measured.episodes
    assert len(found.episodes) == 3


def test_workers_are_given_directories_that_do_not_depend_on_where_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = result("base", "in-domain", "10", task="press-button-hard", heads=None)
    measured = replace(measured, policy=load_policy("tiny-pi0").fingerprint)
    write_record(tmp_path / "results", [(0, measured)], "")
    given: list[Path] = []
    monkeypatch.setattr(
        "steering.reproduce.experiment._make_maps", lambda pool, plan, *paths: given.extend(paths[:2])
    )
    monkeypatch.chdir(tmp_path)
    run(ONE, Path("work"), Path("results"), 1, progress=False)
    assert given == [tmp_path / "work", tmp_path / "results"]


def test_a_record_never_loses_episodes_of_a_policy(tmp_path: Path) -> None:
    """Records that grew elsewhere, `git pull`ed beside a work directory that holds less of the same cells."""
    kept, work, base = tmp_path / "results", tmp_path / "work", load_policy("tiny-pi0").fingerprint

    def of_base(suite: str, wins: str, **changes: object) -> Result:
        made = result("base", suite, wins, task="press-button-hard", heads=None)
        return replace(made, **{"policy": base, **changes})

    directory = results_path(work, "press-button-hard", 0)
    short = of_base("in-domain", "10")
    save_result(result_path(directory, "base"), short)
    long = [of_base("in-domain", "10110100"), of_base("lighting", "0101")]
    write_record(kept, [(0, r) for r in long], "")
    keep(ONE, work, kept, "press-button-hard", Arm("base"))  # even if it was pulled a moment ago
    assert [e.result.episodes for e in read_records(kept)] == [r.episodes for r in long]

    restore(ONE, work, kept)
    assert load_result(result_path(directory, "base")).episodes == long[0].episodes
    keep(ONE, work, kept, "press-button-hard", Arm("base"))
    assert [e.result.episodes for e in read_records(kept)] == [r.episodes for r in long]

    longer = of_base("in-domain", "1011010011")  # and the other way round
    save_result(result_path(directory, "base"), longer)
    restore(ONE, work, kept)
    assert load_result(result_path(directory, "base")) == longer
    keep(ONE, work, kept, "press-button-hard", Arm("base"))
    assert [len(e.result.episodes) for e in read_records(kept)] == [10, 4]


def test_of_two_policies_the_longer_result_stays(tmp_path: Path) -> None:
    arm, task = Arm("aligned", heads=2), "press-button-hard"
    plan = Plan("quick", (Study("s", "?", (arm,), tasks=(task,)),), seeds=(0,), n=1, steps=4)
    recipe = Recipe.named("aligned", steps=4).to_json()
    settings = {**result(arm.name, "in-domain", "1", task=task).settings, "recipe": recipe}

    def of(policy: str, wins: str, **changes: object) -> Result:
        asked = {**settings, **changes}
        return replace(result(arm.name, "in-domain", wins, task=task), policy=policy, settings=asked)

    def after(recorded: Result, there: Result) -> str:
        kept, path = tmp_path / "results", result_path(results_path(tmp_path, task, 0), arm.name)
        write_record(kept, [(0, recorded)], "")
        save_result(path, there)
        restore(plan, tmp_path, kept)
        return load_result(path).policy

    assert after(recorded=of("pi0-theirs", "1101"), there=of("pi0-ours", "10")) == "pi0-theirs"
    assert after(recorded=of("pi0-theirs", "11"), there=of("pi0-ours", "10")) == "pi0-ours"
    earlier = {"recipe": {**recipe, "lr": 1.0}}  # nothing that the plan asks for
    assert after(recorded=of("pi0-theirs", "1101", **earlier), there=of("pi0-ours", "1")) == "pi0-ours"
    assert after(recorded=of("pi0-theirs", "1"), there=of("pi0-ours", "10", **earlier)) == "pi0-theirs"


def test_what_was_trained_with_another_recipe_is_not_done(tmp_path: Path) -> None:
    arm = Arm("retain", heads=3)
    plan = Plan("quick", (Study("s", "?", (arm,), tasks=("press-button-hard",)),), seeds=(0, 1), n=1, steps=4)
    for seed, steps in ((0, 4), (1, 3)):
        recipe = {**Recipe.named("aligned", steps=steps).to_json(), "name": "retain", "of": "aligned"}
        made = result(arm.name, "in-domain", "1", task="press-button-hard", heads=None)
        settings = {"rolled_out": "press-button-hard", "execute": 2, "recipe": recipe, "seed": seed}
        directory = results_path(tmp_path, "press-button-hard", seed)
        save_result(result_path(directory, arm.name, "in-domain"), replace(made, settings=settings))
    assert [done(plan, tmp_path, job) for job in plan.jobs()] == [True, False]
    keep(plan, tmp_path, tmp_path / "results", "press-button-hard", arm)
    assert [e.result.settings["seed"] for e in read_records(tmp_path / "results")] == [0]


PLANNED = Plan("quick", (), n=1, demos=4, steps=4, settings={"frames": 8})
BY_ABLATION = {"base": "pi0-today", "demos": 4, "scores": {"frames": 8}}
RETAIN = {"name": "retain", "of": "aligned", "coefficient": 0.5}


@pytest.mark.parametrize(
    ("arm", "said", "planned"),
    [
        (Arm("retain"), {"recipe": RETAIN}, True),
        (Arm("retain"), {"recipe": {}}, True),  # what an old result does not say
        (Arm("retain"), {"recipe": {**RETAIN, "coefficient": 0.9}}, False),
        (Arm("aligned"), {"recipe": {"name": "random-k"}}, False),
        (Arm("aligned"), {"heads": 2}, False),
        (Arm("aligned", tower="vlm"), {}, False),  # the result's are the expert's
        (Arm("paper"), {"heads": 10}, True),  # the dead are left out
        (Arm("paper"), {"heads": 16}, False),
        (Arm("aligned", by="ablation"), {"adapted_from": BY_ABLATION}, True),
        (Arm("aligned", by="ablation"), {"adapted_from": {**BY_ABLATION, "base": "pi0-before"}}, False),
        (Arm("aligned", by="ablation"), {"adapted_from": {**BY_ABLATION, "demos": 20}}, False),
        (Arm("aligned", by="ablation"), {"adapted_from": {**BY_ABLATION, "scores": {"frames": 60}}}, False),
        (Arm("aligned"), {"adapted_from": {"scores": {"ks": [5]}}}, False),
        (Arm("random-k"), {"adapted_from": {"scores": {"ks": [5]}}}, True),  # takes none of them
    ],
)
def test_what_the_plan_asks_otherwise_is_not_as_planned(
    arm: Arm, said: dict, planned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a result does not say is not held against it."""
    monkeypatch.setattr("steering.reproduce.work.base", lambda: "pi0-today")
    made = result(arm.name, "in-domain", "1")
    recipe = {**recipe_of(PLANNED, arm).to_json(), "name": arm.recipe, **said.get("recipe", {})}
    settings = {k: v for k, v in {**made.settings, **said, "recipe": recipe}.items() if k != "heads"}
    heads = tuple(f"expert.L{i // 8}H{i % 8}" for i in range(said.get("heads", arm.heads)))
    assert as_planned(PLANNED, arm, replace(made, settings=settings, heads=heads)) is planned


@pytest.mark.parametrize("policy", ["pi0-today", "pi0-before"])
def test_the_base_that_was_trained_anew_is_tried_anew(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steering.reproduce.work.base", lambda: "pi0-today")
    made = result("base", "in-domain", "1", policy=policy)
    assert as_planned(PLANNED, Arm("base"), made) is (policy == "pi0-today")


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
    restore(plan, tmp_path / "work", kept)
    assert [e.result.settings["variation"] for e in read_records(kept)] == [{"light": 0.5}]
    assert not done(plan, tmp_path / "work", job)

    with monkeypatch.context() as then:
        then.setitem(SUITES, "lighting", before)
        assert done(plan, tmp_path / "work", job)

    (found,) = perform(plan, tmp_path / "work", job)
    assert found.settings["variation"] == SUITES["lighting"].options["variation"]
    assert [e.steps for e in found.episodes] != [e.steps for e in measured.episodes]
    assert done(plan, tmp_path / "work", job)


TWO_SUITES = Plan(
    "quick",
    (Study("s", "?", (Arm("aligned", heads=3, by="best-add"),), ("lighting",), ("press-button-hard",)),),
    seeds=(0,),
    n=1,
    demos=2,
    steps=1,
)


@pytest.mark.slow
def test_suites_of_one_arm_are_of_one_policy_whatever_is_killed_when(tmp_path: Path) -> None:
    """A record made where arithmetic differs is of another policy: its cells are measured again, not mixed in."""
    (job,) = TWO_SUITES.jobs()
    recipe = recipe_of(TWO_SUITES, job.arm).to_json()
    strange = [
        result(job.arm.name, suite, "1", task=job.task, policy="pi0-another", heads=("expert.L0H0",) * 3)
        for suite in ("in-domain", "paraphrase")
    ]
    strange = [replace(r, settings={**r.settings, "recipe": recipe}) for r in strange]
    kept, work = tmp_path / "results", tmp_path / "work"
    path = write_record(kept, [(0, r) for r in strange], "")
    assert path is not None
    before = path.read_bytes()
    restore(TWO_SUITES, work, kept)

    script = tmp_path / "perform.py"
    script.write_text(
        "import os, signal, sys\nfrom pathlib import Path\nimport steering.suites as suites\n"
        "from steering.reproduce.work import perform\nfrom test_reproduce_restore import TWO_SUITES\n"
        "save = suites.save_result\n"
        "def save_and_die(path, result):\n"
        "    save(path, result)\n"
        "    if result.suite == 'lighting':\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "suites.save_result = save_and_die\n"
        "if __name__ == '__main__':\n    perform(TWO_SUITES, Path(sys.argv[1]), *TWO_SUITES.jobs())\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests/steering"), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run(
        [sys.executable, script, work], env={**os.environ, "PYTHONPATH": paths}, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    there = {r.suite: r.policy for r in results_of(work, job.task, 0, job.arm.name)}
    assert there["in-domain"] == there["lighting"] != there["paraphrase"]  # none is missing, one is old

    assert not done(TWO_SUITES, work, job)
    keep(TWO_SUITES, work, kept, job.task, job.arm)
    assert json.loads(path.read_bytes())["runs"] == json.loads(before)["runs"]

    found = perform(TWO_SUITES, work, job)
    assert {r.suite for r in found} == {"lighting", "paraphrase"}
    assert {r.policy for r in results_of(work, job.task, 0, job.arm.name)} == {there["lighting"]}
    assert done(TWO_SUITES, work, job)
    keep(TWO_SUITES, work, kept, job.task, job.arm)
    again = [e.result for e in read_records(kept)]
    assert [r.policy for r in again] == [there["lighting"]] * 3
    by = {"ks": [10, 20, 30, 40], "metric": "cosine", "target": "current"}
    today = {"base": load_policy("tiny-pi0").fingerprint, "demos": 2, "scores": by}
    assert [r.settings["adapted_from"] for r in again] == [today] * 3

    for r in results_of(
        work, job.task, 0, job.arm.name
    ):  # as if they were of scores that chose the same heads
        of_other = {**r.settings, "adapted_from": {**today, "scores": {"ks": [5]}}}
        save_result(
            result_path(results_path(work, job.task, 0), r.name, r.suite), replace(r, settings=of_other)
        )
    assert not done(TWO_SUITES, work, job)
    assert [r.episodes for r in perform(TWO_SUITES, work, job)] == [found[0].episodes]
    assert done(TWO_SUITES, work, job)
    together = best_add(Run.open(run_path(work, job.task, 0, 2)), 3)
    assert found[0].heads == tuple(map(str, together.heads))
