"""Promises of `evaluate --env`: which environment, task and suites a name means, and that the policy fits it."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from libero_kit import INSTALLED, needs_libero
from random_policy import build_policy

import robosteer
from interp.errors import UsageError
from interp.policies import Policy, PolicySpec
from steering.environments import LIBERO_SUITES, place
from steering.fit import fit, seen_by
from steering.rollouts import evaluate
from steering.suites import SUITES, choose
from testbed.libero import ACTION_NAMES, CAMERAS, STATE_NAMES, VARIANTS
from testbed.tabletop import Tabletop


class Cell(gymnasium.Env[Any, Any]):
    """Spaces without a simulator."""

    def __init__(self, *images: str, action: int = 7, state: int = 8) -> None:
        image = spaces.Box(0, 255, (32, 32, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "images": spaces.Dict(dict.fromkeys(images, image)),
                "state": spaces.Box(-np.inf, np.inf, (state,)),
                "instruction": spaces.Text(99),
            }
        )
        self.action_space = spaces.Box(-1, 1, (action,))


def test_a_name_means_an_environment_a_task_and_its_suites() -> None:
    assert place("tabletop", "pick").suites is SUITES
    libero = place("libero_spatial:3")
    assert (libero.task, libero.suites) == ("libero_spatial:3", LIBERO_SUITES)
    assert place("libero_spatial:3", "libero_spatial:3") == libero
    other = place("toy_env:Toy-v0", "sum")
    assert (other.env, other.task, list(other.suites)) == ("toy_env:Toy-v0", "sum", ["in-domain"])
    with pytest.raises(UsageError, match="--task is missing: say which task of tabletop"):
        place("tabletop")
    with pytest.raises(UsageError, match="names the task already; leave --task out"):
        place("libero_spatial:3", "libero_spatial:4")
    with pytest.raises(UsageError, match=r"unknown environment 'table': use tabletop, a LIBERO task"):
        place("table", "pick")


def test_liberos_variants_are_suites_of_the_three_factors() -> None:
    def names(*chosen: str) -> list[str]:
        return [suite.name for suite in choose(chosen, LIBERO_SUITES)]

    assert names("visual") == ["object"]
    assert names("linguistic") == ["language", "task"]
    assert names("physical") == ["position"]
    assert names("all") == ["in-domain", "object", "language", "task", "position"]
    assert {s.options["variant"] for s in LIBERO_SUITES.values() if s.options} == set(VARIANTS)
    with pytest.raises(UsageError, match=r"unknown suite 'lighting': known are all, visual"):
        choose(["lighting"], LIBERO_SUITES)
    with pytest.raises(UsageError, match="unknown suite 'unseen'"):
        choose(["unseen"], LIBERO_SUITES)


@pytest.fixture
def spec(policy: Policy) -> PolicySpec:
    return policy.spec  # cameras front and wrist, a state of 8, actions of 7


def test_cameras_are_found_by_name_by_role_or_as_the_user_says(spec: PolicySpec) -> None:
    env = Tabletop(image_size=32)
    assert fit(env, spec, {}) == {"front": "front", "wrist": "wrist"}
    env.close()
    assert fit(Cell(*CAMERAS), spec, {}) == {"front": "agentview", "wrist": "robot0_eye_in_hand"}
    turned = {"front": "robot0_eye_in_hand", "wrist": "agentview"}
    assert fit(Cell(*CAMERAS), spec, turned) == turned
    images = {camera: np.full((2, 2, 3), i, np.uint8) for i, camera in enumerate(CAMERAS)}
    seen = seen_by({"images": images, "state": np.zeros(8), "instruction": "push"}, turned)
    assert {camera: image[0, 0, 0] for camera, image in seen.images.items()} == {"front": 1, "wrist": 0}


@pytest.mark.parametrize(
    ("cell", "given", "says"),
    [
        (
            Cell("left", "right", "hand"),
            {},
            r"camera front of the policy is none of the environment's \(hand, left, right\)",
        ),
        (Cell("top"), {}, "camera wrist of the policy is none of the environment's"),
        (Cell("hand"), {"front": "hand"}, "camera wrist of the policy: which of the environment's images"),
        (
            Cell(*CAMERAS),
            {"front": "agentvew"},
            "unknown image of the environment 'agentvew'.*mean agentview",
        ),
        (Cell(*CAMERAS), {"fornt": "agentview"}, "unknown camera of the policy 'fornt'.*mean front"),
        (Cell(*CAMERAS, action=8), {}, "the environment's action has 8 numbers, the policy's 7"),
        (Cell(*CAMERAS, state=9), {}, "the environment's state has 9 numbers, the policy's 8"),
    ],
)
def test_what_does_not_fit_is_told_before_any_episode(
    spec: PolicySpec, cell: Cell, given: dict[str, str], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        fit(cell, spec, given)


def test_libero_has_the_state_and_action_that_released_policies_have() -> None:
    """openpi's LIBERO policies read 8 numbers and write 7 (docs/serve.md)."""
    assert (len(STATE_NAMES), len(ACTION_NAMES)) == (8, 7)


@pytest.mark.skipif(INSTALLED, reason="LIBERO is installed here")
def test_evaluating_without_libero_ends_with_one_line(
    tiny_policy_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = robosteer.main(
        ["evaluate", "--policy", str(tiny_policy_dir), "--env", "libero_spatial:3", "--n", "1"]
    )
    assert ends == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("robosteer evaluate: LIBERO is not installed: `make setup-libero`")


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ("nosuch:Env-v0", "environment nosuch:Env-v0: No module named 'nosuch'"),
        ("gymnasium:Nope-v0", "environment gymnasium:Nope-v0: Environment `Nope` doesn't exist"),
        ("gymnasium:CartPole-v1", "environment gymnasium:CartPole-v1 must take task, image_size"),
        (":Env-v0", "unknown environment ':Env-v0': use tabletop, "),
    ],
)
def test_an_environment_that_is_not_there_ends_with_one_line(
    tiny_policy_dir: Path, capfd: pytest.CaptureFixture[str], env: str, says: str
) -> None:
    words = ["evaluate", "--policy", str(tiny_policy_dir), "--task", "x", "--n", "1", "--workers", "1"]
    assert robosteer.main([*words, "--env", env]) == 2
    (said,) = capfd.readouterr().err.strip().splitlines()
    assert said.startswith(f"robosteer evaluate: {says}")


@needs_libero
def test_a_random_policy_is_rolled_out_in_libero_and_fails_for_a_reason(tmp_path: Path) -> None:
    policy = build_policy(tmp_path / "random")
    settings = json.loads((policy / "robosteer.json").read_text())
    (policy / "robosteer.json").write_text(json.dumps({**settings, "max_tokens": 40}))
    where = place("libero_spatial:0")
    done = evaluate(
        policy,
        where.task,
        1,
        workers=1,
        execute=6,
        env=where.env,
        env_options={"image_size": 32},
        progress=False,
    )
    (episode,) = done.episodes
    assert (episode.success, episode.steps) == (False, 220)  # the suite's published number of steps
    assert episode.failure is not None
    assert episode.failure.endswith("not on(akita_black_bowl_1, plate_1)")


@needs_libero
@pytest.mark.parametrize(
    ("env", "says"),
    [
        ("libero_spatial:12", "task libero_spatial:12: libero_spatial has tasks 0 to 9"),
        ("libero_spatial_lan:1", "LIBERO suite 'libero_spatial_lan': use one of libero_spatial"),
    ],
)
def test_a_wrong_task_of_libero_ends_with_one_line(
    tiny_policy_dir: Path, env: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert robosteer.main(["evaluate", "--policy", str(tiny_policy_dir), "--env", env, "--n", "1"]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"robosteer evaluate: {says}")
