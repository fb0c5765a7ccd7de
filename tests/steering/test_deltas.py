"""Promises of policies that act in deltas: what goes in and what comes out is the robot's own actions, as with openpi.

The independent computation is openpi's chain of transforms in numpy (transforms.py: DeltaActions before Normalize in
training; Unnormalize before AbsoluteActions in deployment), on a twin with the same weights that knows of no deltas.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_writer import random_episodes, write_dataset
from pi0_directories import as_lerobot, as_openpi, edit_json
from random_policy import build_policy, random_observations
from training_kit import SMALL

from interp.ablation import AblationSettings, ablate
from interp.capture import capture
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.explain import ExplainSettings, explain
from interp.policies import Policy, load_policy
from interp.policies.preprocessing import relative_mask
from interp.watching import watch
from steering import pi0_lerobot
from steering.export import export
from steering.frames import TrainingFrames

NAMES = ["j1.pos", "j2.pos", "j3.pos", "j4.pos", "j5.pos", "j6.pos", "gripper.pos"]
MASK = [True, True, True, True, True, True, False]  # openpi's make_bool_mask(6, -1): the gripper is absolute
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def twins(tmp_path: Path) -> tuple[Policy, Policy]:
    """The same weights, with deltas and without."""
    return load_policy(deltas(build_policy(tmp_path / "deltas"))), load_policy(
        build_policy(tmp_path / "plain")
    )


@pytest.fixture
def demos(tmp_path: Path) -> Demonstrations:
    return Demonstrations.open(write_dataset(tmp_path / "demos", random_episodes((5, 4))))


def deltas(directory: Path) -> Path:
    edit_json(directory / "robosteer.json", delta_actions=MASK)
    return directory


def less_the_state(actions: np.ndarray, state: np.ndarray) -> np.ndarray:
    """DeltaActions: actions [frame horizon action], state [frame state]."""
    actions = actions.copy()
    actions[..., :7] -= np.where(MASK, state[..., :7], 0)[:, None]
    return actions


def test_what_is_sampled_has_its_own_state_added(twins: tuple[Policy, Policy]) -> None:
    policy, plain = twins
    seen = random_observations(3)
    states = np.stack([observation.state for observation in seen])
    noise = policy.noise(6, 0)  # two draws of each observation
    with torch.no_grad():
        chunk, bare = (p.sample(p.batch(seen), noise).numpy() for p in twins)
    expected = bare.copy()
    expected[..., :7] += np.where(MASK, states[..., :7], 0).repeat(2, axis=0)[:, None]
    np.testing.assert_allclose(chunk, expected, **CLOSE)
    assert not np.allclose(chunk, bare, atol=0.1)
    assert policy.fingerprint != plain.fingerprint


def test_training_and_its_losses_see_deltas(twins: tuple[Policy, Policy], demos: Demonstrations) -> None:
    """Every action of a chunk is less the state at the chunk's start, which one action a frame could not say."""
    policy, plain = twins
    frames = TrainingFrames(policy, demos, SMALL, cache_mb=100, show=False)
    chunks, _ = demos.chunks(policy.spec.horizon)
    moved = less_the_state(chunks, demos.state)
    expected = plain.normalise_actions(torch.from_numpy(moved).float())
    torch.testing.assert_close(frames._actions, expected, **CLOSE)
    back = policy.unnormalise_actions(frames._actions, torch.from_numpy(demos.state))
    torch.testing.assert_close(back, torch.from_numpy(chunks).float(), **CLOSE)

    settings = AblationSettings(mode="zero", effect="loss", draws=1)
    ours = ablate(policy, demos, settings, towers=["expert"]).tower("expert").value
    absolute = ablate(plain, demos, settings, towers=["expert"]).tower("expert").value
    assert not np.allclose(ours, absolute, atol=1e-4)


def test_predictions_of_a_run_of_watch_and_of_explain_are_the_robots(
    twins: tuple[Policy, Policy], demos: Demonstrations, tmp_path: Path
) -> None:
    policy, plain = twins
    run = capture(policy, demos, tmp_path / "run", towers=["expert"], thumbnails=False, progress=False)
    other = capture(plain, demos, tmp_path / "other", towers=["expert"], thumbnails=False, progress=False)
    offset = np.where(MASK, demos.state[:, :7], 0)
    np.testing.assert_allclose(
        run.signals().prediction, other.signals().prediction + offset[:, None], **CLOSE
    )
    ours, theirs = (np.asarray(r.activations("expert", "first_action")) for r in (run, other))
    np.testing.assert_array_equal(ours, theirs)

    seen, noise = list(demos.observations([0, 3])), policy.noise(2, 0)
    shown, bare = (watch(p, seen, noise).prediction for p in twins)
    np.testing.assert_allclose(shown, bare + offset[[0, 3]], **CLOSE)

    settings = ExplainSettings(scanned=4, reference=4)
    told, untold = (explain(p, demos, 1, 1, settings) for p in twins)
    np.testing.assert_allclose(told.predicted, untold.predicted + offset[6], **CLOSE)
    np.testing.assert_allclose(told.unit, untold.unit, **CLOSE)
    np.testing.assert_array_equal(told.demonstrated, untold.demonstrated)


def test_actions_without_the_state_that_they_start_from_are_refused(twins: tuple[Policy, Policy]) -> None:
    policy, plain = twins
    actions = torch.zeros(2, 6, 7)
    for change in (policy.normalise_actions, policy.unnormalise_actions):
        with pytest.raises(UsageError, match=r"acts in deltas .* need the state that they start from"):
            change(actions)
        with pytest.raises(UsageError, match="2 rows of actions and 3 states: every row needs its own"):
            change(actions, torch.zeros(3, 8))
    assert torch.equal(plain.normalise_actions(actions), plain.normalise_actions(actions, torch.ones(2, 8)))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (MASK[:6], "delta_actions .* must say true or false of each of the 7 action dimensions"),
        ([1, 1, 1, 1, 1, 1, 0], "must say true or false"),
        ("x", "must say true or false"),
        (6, "is broken: TypeError"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(given: object, reason: str, tmp_path: Path) -> None:
    directory = build_policy(tmp_path / "policy")
    edit_json(directory / "robosteer.json", delta_actions=given)
    with pytest.raises(UsageError, match=reason):
        load_policy(directory)


def test_a_delta_beyond_the_state_is_refused(tmp_path: Path) -> None:
    directory = as_openpi(build_policy(tmp_path / "policy"), tmp_path / "openpi")
    edit_json(directory / "robosteer.json", state_dim=5, delta_actions=MASK)
    with pytest.raises(UsageError, match=r"true only where the state \(of 5\) has one too"):
        load_policy(directory)


@pytest.mark.parametrize(
    ("step", "mask"),
    [
        ({"enabled": True, "exclude_joints": ["gripper"], "action_names": NAMES}, MASK),
        ({"enabled": True, "exclude_joints": ["J1", "gripper"], "action_names": NAMES}, [False, *MASK[1:]]),
        ({"enabled": True, "exclude_joints": ["gripper"], "action_names": None}, [True] * 7),
        ({"enabled": True, "exclude_joints": [], "action_names": NAMES}, [True] * 7),
        ({"enabled": True, "exclude_joints": ["gripper"], "action_names": NAMES[:5]}, [True] * 7),
        ({"enabled": False, "exclude_joints": ["gripper"], "action_names": NAMES}, []),
    ],
)
def test_lerobots_relative_actions_are_deltas(
    step: dict[str, object], mask: list[bool], tmp_path: Path
) -> None:
    """relative_action_processor.py, `_build_mask`, of LeRobot 0.5; whose border is black."""
    directory = as_lerobot(build_policy(tmp_path / "policy"), tmp_path / "lerobot")
    assert load_policy(directory).preprocessing.images == "lerobot"  # type: ignore[attr-defined]
    file = directory / "policy_preprocessor.json"
    steps = json.loads(file.read_text())["steps"]
    edit_json(file, steps=[{"registry_name": "relative_actions_processor", "config": step}, *steps])
    edit_json(directory / "config.json", use_relative_actions=step["enabled"])
    about = load_policy(directory).preprocessing  # type: ignore[attr-defined]
    assert (list(about.delta_actions), about.images) == (mask, "lerobot-0.5")


def test_exports_act_in_deltas_too_or_are_refused(tmp_path: Path) -> None:
    """openpi's layout of a policy that openpi trained on deltas, finetuned or not."""
    source = as_openpi(build_policy(tmp_path / "policy"), tmp_path / "openpi")
    policy, seen = load_policy(deltas(source)), random_observations(2)
    base = {"base": {"source": "random", "fingerprint": policy.fingerprint}}
    for form in ("openpi", "merged", "lerobot"):
        done = export(policy, tmp_path / "out" / form, seen, base, form=form)  # compares the actions
        again = load_policy(done.directory)
        assert again.preprocessing.delta_actions == tuple(MASK)  # type: ignore[attr-defined]
    notes = export(policy, tmp_path / "noted", seen, base, form="openpi").notes
    assert any("DeltaActions and AbsoluteActions with mask (True, True" in note for note in notes)


@pytest.mark.parametrize("mask", [MASK, [True] * 7, [False, *MASK[1:]], [True, False, *[True] * 5]])
@pytest.mark.parametrize("names", [NAMES, ["x", "y", "z", "rx", "ry", "rz", "grip"]])
def test_lerobots_settings_say_the_mask_by_names(mask: list[bool], names: list[str], tmp_path: Path) -> None:
    """A name that is a part of another one (x of rx) would take that along: numbered names say it then."""
    directory = build_policy(tmp_path / "policy")
    edit_json(directory / "robosteer.json", delta_actions=mask, action_names=names)
    about = load_policy(directory).preprocessing  # type: ignore[attr-defined]
    step = pi0_lerobot._relative_step(about)
    assert list(relative_mask({"config": step}, 7)) == mask
    delta, absolute = ([n for n, d in zip(names, mask, strict=True) if d is kind] for kind in (True, False))
    apart = not any(each in other for each in absolute for other in delta)
    assert (step["action_names"] == names) == apart
