"""Promises of perturbation suites: solvable, fair, named by factor; what is done is not run again."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_env  # noqa: F401 (registers Toy-v0)

import robosteer
from interp.errors import UsageError
from interp.policies import Policy
from steering.episode import Episode
from steering.progress import Progress
from steering.results import Result, load_result, result_path, save_result
from steering.rollouts import RolloutError
from steering.suites import FACTORS, GROUPS, SUITES, Subject, Suite, choose, custom, run_suites
from testbed.expert import Expert
from testbed.tabletop import Tabletop
from testbed.tasks import PRETRAINING, TARGETS, TASKS, UNSEEN

TOY = "toy_env:Toy-v0"
EASY = Suite("easy", "visual", options={"variation": {"offset": 1000.0}})
HARD = Suite("hard", "physical", options={"variation": {"offset": -1000.0}})


def names(*chosen: str) -> list[str]:
    return [suite.name for suite in choose(chosen)]


def test_suites_are_chosen_by_name_factor_or_all() -> None:
    assert names("camera", "lighting", "camera") == ["lighting", "camera"]
    assert names("visual") == ["lighting", "form", "distractors", "camera"]
    assert names("linguistic") == ["paraphrase", "other-object"]
    assert names("physical") == ["pose-shift", "robot-start", "gripper-offset"]
    assert names("forgetting") == [f"forgetting:{task}" for task in PRETRAINING]
    assert names("unseen") == [f"unseen:{task}" for task in UNSEEN]
    assert names("all") == list(SUITES)
    with pytest.raises(UsageError, match=r"unknown suite 'lightning'.*did you mean lighting"):
        choose(["lightning"])


@pytest.mark.parametrize("task", TARGETS)
def test_the_expert_solves_every_suite(task: str) -> None:
    """So a policy that fails has failed: no suite asks for the impossible."""
    env, seeds, failed = Tabletop(image_size=16), range(6), {}
    for suite in choose(FACTORS):
        condition = suite.condition(task)
        for seed in seeds:
            env.reset(seed=seed, options={"task": condition.task, **condition.options})
            expert, over = Expert(env), False
            while not over:
                _, terminated, truncated, info = env.advance(expert())
                over = terminated or truncated
            if not info["success"]:
                failed.setdefault(suite.name, []).append((seed, info["failure"]))
    env.close()
    # the expert's own rate is 99 %, and a crowded or tilted start costs it an episode now and then
    assert {name: found for name, found in failed.items() if len(found) > 1} == {}


@pytest.mark.parametrize("task", TARGETS)
def test_a_suite_changes_what_it_says_and_nothing_else(task: str) -> None:
    env = Tabletop(task, image_size=16)
    for seed in range(3):
        env.reset(seed=seed)
        usual = env.layout
        for suite in choose(FACTORS):
            env.reset(seed=seed, options=dict(suite.condition(task).options))
            layout, visual = env.layout, suite.factor == "visual"
            changed = {
                f.name
                for f in dataclasses.fields(layout.variation)
                if getattr(layout.variation, f.name) != getattr(usual.variation, f.name)
            }
            assert (layout.instruction != usual.instruction) == (suite.factor == "linguistic"), suite.name
            assert bool(changed) == (suite.factor != "linguistic"), suite.name
            same_place = all(np.array_equal(layout.position[b], p) for b, p in usual.position.items())
            may_move = suite.name == "pose-shift" or (
                suite.name == "other-object" and env.task.kind == "push"
            )
            assert same_place or may_move, suite.name
            assert np.array_equal(layout.joints, usual.joints) == (suite.name != "robot-start"), suite.name
            if visual:
                assert layout.target == usual.target
    env.close()


def test_other_tasks_are_rolled_out_as_they_are() -> None:
    for name in (*GROUPS["unseen"], *GROUPS["forgetting"]):
        condition = SUITES[name].condition("marker-in-mug")
        assert condition.task == name.split(":")[1] in TASKS
        assert not condition.options


def run(policy: Path | str, directory: Path, suites: list[Suite], n: int = 2, **more: Any) -> list[Any]:
    fingerprint = more.pop("fingerprint", None)
    subject = Subject(policy, more.pop("name", "tuned"), "aligned", None, fingerprint)
    found = run_suites(subject, "sum", suites, n, directory=directory, env=TOY, progress=False, **more)
    return [(r.suite, [(e.seed, e.success) for e in r.episodes], new) for r, _, new in found]


def test_what_is_done_is_not_run_again(tiny_policy_dir: Path, policy: Policy, tmp_path: Path) -> None:
    first = run_suites(
        Subject(tiny_policy_dir, "tuned", "aligned"), "sum", [EASY, HARD], 2,
        directory=tmp_path, env=TOY, workers=1, progress=False,
    )  # fmt: skip
    result, path, new = next(first)
    first.close()  # interrupted after the first suite, which is on disk by now
    assert path == result_path(tmp_path, "tuned", "easy")
    assert load_result(path) == result
    assert (result.task, result.suite, result.factor, new) == ("sum", "easy", "visual", 2)
    assert not result_path(tmp_path, "tuned", "hard").exists()

    both = [("easy", [(0, True), (1, True)]), ("hard", [(0, False), (1, False)])]
    resumed = run(tiny_policy_dir, tmp_path, [EASY, HARD], workers=1)
    assert resumed == [(*both[0], 0), (*both[1], 2)]
    # nothing is left to do: not even the policy is needed
    known: dict[str, Any] = {"fingerprint": policy.fingerprint}
    assert run("no-such-policy", tmp_path, [EASY, HARD], **known) == [(*found, 0) for found in both]
    for bad, said in (({"n": 0}, "n = 0"), ({"n": -3}, "n = -3"), ({"workers": 0}, "workers = 0")):
        with pytest.raises(UsageError, match=said):
            run("no-such-policy", tmp_path, [EASY, HARD], **known, **bad)
    # more episodes: only those that are missing; and as many as that is what pairs with it
    assert run(tiny_policy_dir, tmp_path, [EASY], n=3, **known) == [
        ("easy", [(0, True), (1, True), (2, True)], 1)
    ]
    with pytest.raises(
        UsageError, match=r"base would have 2 episodes .* tuned \(easy\) has 3 .* same n and seed"
    ):
        run("no-such-policy", tmp_path, [EASY], name="base", against="tuned")


def test_what_an_interruption_leaves_unfinished_is_kept(
    tiny_policy_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the third of four episodes of two suites: one suite is whole, of the other there is one episode."""
    update = Progress.update

    def interrupting(self: Progress, step: int, **values: float) -> None:
        update(self, step, **values)
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_policy_dir, tmp_path, [EASY, HARD], workers=1)
    hard = result_path(tmp_path, "tuned", "hard")
    part = load_result(hard)
    assert [e.seed for e in part.episodes] == [0]
    assert (part.suite, part.factor, part.paired) == ("hard", "physical", None)
    whole = [("easy", [(0, True), (1, True)], 0), ("hard", [(0, False), (1, False)], 1)]
    assert run(tiny_policy_dir, tmp_path, [EASY, HARD], workers=1) == whole

    before = hard.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_policy_dir, tmp_path, [EASY, HARD], workers=1, again=True)
    assert hard.read_bytes() == before, "a whole result is replaced by a whole one"


@pytest.mark.parametrize("allowed", ["again", "retrained"])
def test_a_part_never_takes_the_place_of_another_policys_result(
    tiny_policy_dir: Path, tmp_path: Path, allowed: str
) -> None:
    """The new policy's worker dies in the episode with seed 3, after three that were run."""
    crash = Suite("crash", task="crash")
    whole = Result("tuned", "aligned", "sum", "pi0-1", (Episode(0, True, 1),), suite="crash")
    path = save_result(result_path(tmp_path, "tuned", "crash"), whole)
    before = path.read_bytes()
    with pytest.raises(RolloutError, match="died in the episode with seed 3"):
        run(tiny_policy_dir, tmp_path, [crash], n=5, workers=1, **{allowed: True})
    assert path.read_bytes() == before


def test_what_was_run_before_a_worker_died_is_kept(tiny_policy_dir: Path, tmp_path: Path) -> None:
    crash = Suite("crash", task="crash")  # in the episode with seed 3
    with pytest.raises(RolloutError, match="died in the episode with seed 3"):
        run(tiny_policy_dir, tmp_path, [crash], n=5, workers=1)
    found = run(tiny_policy_dir, tmp_path, [crash], n=3, workers=1)
    assert [(suite, len(episodes), new) for suite, episodes, new in found] == [("crash", 3, 0)]


def test_another_condition_than_the_baselines_is_told_before_anything_is_run(tmp_path: Path) -> None:
    settings = {"rolled_out": "sum", **EASY.options}
    base = Result("base", "base", "sum", "pi0-1", (Episode(0, True, 1),), settings=settings, suite="easy")
    save_result(result_path(tmp_path, "base", "easy"), base)
    harder = dataclasses.replace(EASY, options=HARD.options)
    with pytest.raises(UsageError, match=r"tuned has variation .*-1000.*, base has .*1000.*only like"):
        run("no-such-policy", tmp_path, [harder], n=1, against="base")
    with pytest.raises(UsageError, match="tuned has task crash, base has sum: only like"):
        run("no-such-policy", tmp_path, [dataclasses.replace(EASY, task="crash")], n=1, against="base")


def test_results_of_another_policy_or_condition_are_neither_believed_nor_replaced(
    tiny_policy_dir: Path, other_policy_dir: Path, policy: Policy, tmp_path: Path
) -> None:
    settings = {"seed0": 0, "execute": policy.spec.execute, "env": TOY, "rolled_out": "sum", **EASY.options}
    kept = Result(
        "tuned", "aligned", "sum", policy.fingerprint, (Episode(0, True, 1),), settings=settings, suite="easy"
    )
    once: dict[str, Any] = {"n": 1, "workers": 1}
    path = save_result(result_path(tmp_path, "tuned", "easy"), kept)
    assert run(tiny_policy_dir, tmp_path, [EASY], **once) == [("easy", [(0, True)], 0)]
    before = path.read_bytes()
    with pytest.raises(
        UsageError,
        match=rf"easy.json holds episodes of another policy, aligned \({policy.fingerprint}\).*--name.*--again",
    ):
        run(other_policy_dir, tmp_path, [EASY], **once)
    assert path.read_bytes() == before
    for allowed in ("again", "retrained"):
        found = run(other_policy_dir, tmp_path, [EASY], **once, **{allowed: True})
        assert found == [("easy", [(0, True)], 1)]
        assert load_result(path).policy != policy.fingerprint
        save_result(path, kept)
    harder = dataclasses.replace(EASY, options=HARD.options)
    known = {**once, "fingerprint": policy.fingerprint}
    for suite, changes, apart in (
        (harder, {}, r"variation {'offset': 1000.0}, not {'offset': -1000.0}"),
        (EASY, {"seed0": 100}, r"seed 0, not 100"),
        (EASY, {"execute": 1}, r"execute 2, not 1"),
        (EASY, {"cameras": {"front": "top"}}, r"cameras None, not {'front': 'top'}"),
        (dataclasses.replace(EASY, task="bug"), {"seed0": 1}, r"task sum, not bug; seed 0, not 1"),
    ):
        with pytest.raises(UsageError, match=rf"easy.json holds .* with {apart}: .*--name.* --again"):
            run("no-such-policy", tmp_path, [suite], **{**known, **changes})
    save_result(path, dataclasses.replace(kept, settings={**settings, "cameras": {"front": "top"}}))
    with pytest.raises(UsageError, match=r"with cameras {'front': 'top'}, not None"):
        run("no-such-policy", tmp_path, [EASY], **known)
    assert run(tiny_policy_dir, tmp_path, [harder], again=True, **once) == [("easy", [(0, False)], 1)]
    with pytest.raises(UsageError, match="its directory has changed"):
        run(other_policy_dir, tmp_path, [EASY], fingerprint=policy.fingerprint, again=True, **once)


def test_a_missing_baseline_is_told_before_anything_is_run(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"base--easy.json does not exist: evaluate base on suite easy first"
    ):
        run("no-such-policy", tmp_path, [EASY], against="base")


def test_a_baseline_without_a_run_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert robosteer.main(["evaluate", "--task", "pick", "--n", "1", "--against", "base"]) == 2
    said = capsys.readouterr().err
    assert said == "robosteer evaluate: --against base: name the --run that holds these results\n"


def test_a_suite_of_ones_own_beside_others_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--env", TOY, "--task", "sum", "--vary", "offset=1", "--suite", "in-domain"]
    assert robosteer.main([*words, "--policy", "no-such-policy", "--n", "1"]) == 2
    assert "--suite in-domain: --vary is a suite of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    "foreign", ['{"loss": 0.1}', '{"schema": 1, "policy": "x", "recipe": "mine"}', "[1]"]
)
def test_a_summary_beside_the_policy_that_is_not_ours_says_nothing(
    tiny_policy_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    foreign: str,
) -> None:
    (tmp_path / "pol").symlink_to(tiny_policy_dir)
    (tmp_path / "summary.json").write_text(foreign)
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "--env", TOY, "--task", "sum", "--n", "1", "--workers", "1", "--policy", "pol"]
    assert robosteer.main(words) == 0
    assert capsys.readouterr().out.startswith("pol on sum: ")


def test_a_suite_of_ones_own_is_of_no_factor() -> None:
    suite = custom({"light": 0.5})
    assert (suite.factor, suite.condition("pick").options) == (None, {"variation": {"light": 0.5}})
