"""Promises of the reproduction's plan: which arms, tasks, seeds and suites there are, and in which order they run."""

from pathlib import Path

import pytest

from interp.errors import UsageError
from steering.reproduce import maps
from steering.reproduce.plan import FULL, PLANS, Arm
from testbed.tasks import PRETRAINING, TARGETS


def test_the_full_plan_fills_every_cell_of_the_paper_once() -> None:
    cells = [(job.task, job.arm.name, job.seed, suite) for job in FULL.jobs() for suite in job.suites]
    assert len(cells) == len(set(cells))
    suites = ("in-domain", "lighting", "form", "distractors", "paraphrase", "pose-shift", "unseen:pick-mug")
    suites += tuple(f"forgetting:{task}" for task in PRETRAINING)
    arms = [
        "aligned",
        "paper",
        "all-heads",
        "random-k",
        "bottom-k",
        "generic-k",
        "ffn-only",
        "lora",
        "full",
        "retain",
    ]
    for task in TARGETS:
        for arm in arms:
            for seed in (0, 1, 2):
                assert {(task, arm, seed, suite) for suite in suites} <= set(cells)
    base = [(task, suite) for task, arm, _, suite in cells if arm == "base"]
    assert len(base) == len(set(base)) == 5 * 6 + 5  # what is not the task's own is rolled out for one task


@pytest.mark.parametrize("name", PLANS)
def test_the_base_runs_under_everything_that_arms_are_tried_under(name: str) -> None:
    """`--quick` has no robustness on the first of its tasks; its arms need a base to be compared with."""
    suites: dict[bool, set[str]] = {True: set(), False: set()}
    for job in PLANS[name].jobs():
        suites[job.arm.trained].update(job.suites)
    assert suites[True] == suites[False]


def test_a_plan_answers_from_one_seed_before_it_takes_the_next() -> None:
    seeds = [job.seed for job in FULL.jobs()]
    assert seeds == sorted(seeds)
    first = next(iter(FULL.jobs()))
    assert (first.arm.name, first.seed, first.suites) == ("base", 0, ("in-domain",))


def test_the_base_and_the_maps_are_of_the_first_seed_whatever_seeds_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or `--seeds 1 --n 25` rolls the base out again, and its few rollouts stand in for the many."""
    part = FULL.only(arms=["base", "aligned"], seeds=[2, 1])
    assert {job.seed for job in part.jobs() if job.arm.name == "aligned"} == {1, 2}
    base = [(job.task, job.arm, job.seed, job.suites) for job in part.jobs() if job.arm.name == "base"]
    assert base == [(j.task, j.arm, 0, j.suites) for j in FULL.jobs() if j.arm.name == "base"]

    class Asked(Exception):
        pass

    def prepare(work: Path, task: str, seed: int, demos: int) -> None:
        raise Asked(seed)

    monkeypatch.setattr(maps, "prepare", prepare)
    for what in ("knn", "factors"):
        with pytest.raises(Asked, match=r"^0$"):
            maps.make(part, tmp_path, tmp_path, "pick-cube", what)


def test_arms_are_named_by_what_sets_them_apart() -> None:
    assert Arm("aligned").name == "aligned"
    assert Arm("aligned", heads=4, by="atp").name == "aligned-atp-k4"
    assert Arm("random-k", tower="vlm", demos=5, steps=50).name == "random-k-vlm-demos5-steps50"
    for plan in PLANS.values():
        arms = {arm for study in plan.studies for arm in study.arms}
        assert len({arm.name for arm in arms}) == len(arms)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"studies": ["succes"]}, "unknown study 'succes'"),
        ({"tasks": ["pick"]}, "unknown task 'pick'"),
        ({"arms": ["aligned-k5"]}, "unknown arm 'aligned-k5'"),
        ({"seeds": [-1]}, "seed -1: seeds start at 0"),
        ({"n": 0}, "n = 0 rollouts"),
        (
            {"studies": ["success", "methods"], "tasks": ["pick-cube"], "arms": ["aligned", "aligned-k4"]},
            "arm aligned-k4 on pick-cube: no study of success, methods runs it there; it runs on marker-in-mug, press-",
        ),
    ],
)
def test_a_part_that_the_plan_does_not_have_is_one_line(part: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FULL.only(**part)
