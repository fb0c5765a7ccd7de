"""Promises of factor pairs: one thing differs, and whether the right action does is what the expert would say."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from lerobot_writer import write_dataset
from random_policy import IMAGE_SIZE

import robosteer
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.factors import edits, tabletop_edits
from interp.factors.pairs import FACTORS, FactorPairs, as_long
from interp.factors.tabletop import tabletop_pairs, tasks_saying
from interp.patching import prompt_lengths
from interp.policies import Observation, Policy, load_policy
from interp.runs import Run
from testbed.expert import Expert
from testbed.scene import kind_of
from testbed.tabletop import Tabletop
from testbed.tasks import PRETRAINING, TARGETS
from testbed.variation import TestbedError


@pytest.fixture(scope="module")
def tiny_pi0() -> Policy:
    return load_policy("tiny-pi0")


@pytest.fixture(scope="module")
def pairs(tiny_pi0: Policy) -> dict[str, FactorPairs]:
    return {factor: tabletop_pairs(tiny_pi0, factor, 18) for factor in FACTORS}


@pytest.fixture(scope="module")
def env() -> Iterator[Tabletop]:
    env = Tabletop()
    yield env
    env.close()


def stopped(env: Tabletop, policy: Policy, task: str, steps: int, seed: int = 0) -> tabletop_edits.Scene:
    env.reset(seed=seed, options={"task": task})
    expert = Expert(env)
    for _ in range(steps):
        env.advance(expert())
    return tabletop_edits.Scene(env, policy, tabletop_edits.seen(env), np.random.default_rng(seed))


def looks_same(a: Observation, b: Observation) -> bool:
    return all(np.array_equal(a.images[camera], b.images[camera]) for camera in a.images)


# ---- the testbed


def test_a_pair_differs_in_its_factor_alone(tiny_pi0: Policy, pairs: dict[str, FactorPairs]) -> None:
    for twin in pairs["visual"].twins:
        assert not looks_same(twin.clean, twin.corrupt), twin.edit
        assert np.array_equal(twin.clean.state, twin.corrupt.state)
        assert twin.clean.instruction == twin.corrupt.instruction
    for twin in pairs["linguistic"].twins:
        assert looks_same(twin.clean, twin.corrupt)
        assert np.array_equal(twin.clean.state, twin.corrupt.state)
        assert twin.clean.instruction != twin.corrupt.instruction
        clean, corrupt = prompt_lengths(tiny_pi0, [twin.clean, twin.corrupt])
        assert clean == corrupt == len(twin.clean.instruction.split()) + 1  # words, and the beginning
    for twin in pairs["physical"].twins:
        assert not looks_same(twin.clean, twin.corrupt), twin.edit
        assert twin.clean.instruction == twin.corrupt.instruction
        moved = not np.array_equal(twin.clean.state, twin.corrupt.state)
        assert moved == (twin.edit in ("arm", "gripper")), twin.edit


def test_every_factor_is_measured_on_the_same_states(pairs: dict[str, FactorPairs]) -> None:
    for seen, heard, felt in zip(*(pairs[factor].twins for factor in FACTORS), strict=True):
        for other in (heard, felt):
            assert looks_same(seen.clean, other.clean)
            assert np.array_equal(seen.clean.state, other.clean.state)
            assert (seen.clean.instruction, seen.group) == (other.clean.instruction, other.group)


def test_pairs_are_a_function_of_the_seed(tiny_pi0: Policy, pairs: dict[str, FactorPairs]) -> None:
    again = tabletop_pairs(tiny_pi0, "physical", 3)
    first = dataclasses.replace(pairs["physical"], twins=pairs["physical"].twins[:3])
    assert again.pairs.fingerprint == first.pairs.fingerprint
    assert tabletop_pairs(tiny_pi0, "physical", 3, seed=1).pairs.fingerprint != first.pairs.fingerprint


def test_edits_take_turns_and_go_with_every_task(pairs: dict[str, FactorPairs]) -> None:
    for factor, kinds in (("linguistic", 4), ("physical", 5)):
        counts = pairs[factor].edits
        assert len(counts) == kinds
        assert max(counts.values()) - min(counts.values()) <= 1
        met = Counter((twin.edit, at % len(PRETRAINING)) for at, twin in enumerate(pairs[factor].twins))
        assert max(met.values()) == 2 - (factor == "physical")


@pytest.mark.parametrize("task", ["put", "press-button-hard", "marker-in-mug"])
@pytest.mark.parametrize("steps", [4, 14])
def test_an_edit_leaves_the_episode_as_it_was(env: Tabletop, tiny_pi0: Policy, task: str, steps: int) -> None:
    scene = stopped(env, tiny_pi0, task, min(steps, 6 if task.startswith("press") else 99))
    before, layout = env.world.data.qpos.copy(), env.layout
    applied = 0
    for factor in FACTORS:
        for edit in tabletop_edits.EDITS[factor].values():
            applied += edit.corrupt(scene) is not None
            assert np.array_equal(env.world.data.qpos, before)
            assert env.layout is layout
    assert looks_same(tabletop_edits.seen(env), scene.clean)
    unedited = env.twin({})
    assert all(
        np.array_equal(unedited["images"][camera], image) for camera, image in scene.clean.images.items()
    )
    assert applied >= 14


def test_the_expert_agrees_with_what_should_change_the_action(
    env: Tabletop, tiny_pi0: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked in the edited state what it would do, the expert answers otherwise if and only if the edit is semantic."""
    answers: list[np.ndarray] = []
    seen = tabletop_edits.seen

    def asked(env: Tabletop) -> Observation:
        observation, target = seen(env), env._position_target
        env._position_target = observation.state[
            :3
        ]  # as if the controller had brought the arm where it now is
        answers.append(Expert(env)())
        env._position_target = target
        return observation

    monkeypatch.setattr(tabletop_edits, "seen", asked)
    for task in (*PRETRAINING, *TARGETS):
        scene = stopped(env, tiny_pi0, task, 1, seed=3)
        asked(env)
        right = answers[-1]
        for name in ("object-pose", "arm", "bystander-pose"):
            edit = tabletop_edits.EDITS["physical"][name]
            assert edit.corrupt(scene) is not None
            change = np.abs(answers[-1] - right).max()
            assert change > 2e-3 if edit.kind == "semantic" else change < 1e-6, (task, name, change)


def test_words_mean_what_their_label_says(env: Tabletop, tiny_pi0: Policy) -> None:
    for task in (*PRETRAINING, *TARGETS):
        for seed in range(3):
            scene = stopped(env, tiny_pi0, task, 0, seed)
            colour, own = (
                env.layout.colour,
                {text.format(colour=env.layout.colour) for text in env.task.instructions},
            )
            said = {
                name: twin.instruction
                for name, edit in tabletop_edits.EDITS["linguistic"].items()
                if (twin := edit.corrupt(scene)) is not None
            }
            colour_edit = "colour-word" if scene.rivals else "absent-colour"
            assert set(said) - {"verb"} == {colour_edit, "object-word", "paraphrase"}, task
            assert said["paraphrase"] in own - {env.instruction}
            assert not {said[name] for name in set(said) - {"paraphrase"}} & own
            words, clean = said[colour_edit].split(), env.instruction.split()
            (place,) = [at for at, word in enumerate(words) if word != clean[at]]
            assert clean[place] == colour
            # The right action differs if and only if an object of that colour and that noun lies there.
            there = {(colour, kind_of(body)) for body, colour in env.layout.colours.items()}
            meant = (words[place], env.task.target) in there
            assert tabletop_edits.EDITS["linguistic"][colour_edit].kind == (
                "semantic" if meant else "nuisance"
            )


def test_a_carried_object_goes_with_the_hand(env: Tabletop, tiny_pi0: Policy) -> None:
    scene = next(scene for steps in range(8, 30) if (scene := stopped(env, tiny_pi0, "put", steps)).held)
    target = env.layout.target
    offset = env.position_of(target) - env.grip()[0]
    places: list[np.ndarray] = []
    with tabletop_edits._another_state(env):
        grip, rotation = env.grip()
        env.world.data.qpos[:7] += 0.05
        tabletop_edits.seen(env)
        tabletop_edits._carry_along(scene, grip, rotation)
        tabletop_edits.seen(env)
        turned = env.grip()[1] @ rotation.T @ offset
        places.append(env.position_of(target) - env.grip()[0])
    np.testing.assert_allclose(places[0], turned, atol=1e-9)


def test_the_tasks_of_a_run_are_known_by_what_is_said() -> None:
    assert tasks_saying(["lift the purple cube"]) == ("pick-cube",)
    assert set(tasks_saying(["put the red cube in the bowl"])) == {"put", "cube-in-bowl"}
    assert tasks_saying(["press the red button hard", "stack the plates"]) == ()
    assert tasks_saying([]) == ()


def test_mistakes_are_one_line(tiny_pi0: Policy) -> None:
    attempts: list[tuple[Callable[[], object], str]] = [
        (lambda: tabletop_pairs(tiny_pi0, "acoustic"), "unknown factor 'acoustic'"),
        (lambda: tabletop_pairs(tiny_pi0, "visual", 0), "0 pairs"),
        (lambda: tabletop_pairs(tiny_pi0, "visual", 3, tasks=()), "0 tasks"),
        (lambda: tabletop_pairs(tiny_pi0, "visual", 3, edits=["lihgt"]), "edit 'lihgt'.*did you mean light"),
        (lambda: tabletop_pairs(tiny_pi0, "visual", 3, edits=[]), "none chosen"),
    ]
    for attempt, message in attempts:
        with pytest.raises(UsageError, match=message):
            attempt()
    with pytest.raises(TestbedError, match="'juggle'"):
        tabletop_pairs(tiny_pi0, "visual", 3, tasks=["juggle"])


# ---- recordings


def recording(path: Path, instructions: Sequence[str]) -> Demonstrations:
    rng = np.random.default_rng(0)
    episodes = [
        {
            "task": instruction,
            "state": rng.normal(size=(5, 8)).astype(np.float32),
            "action": rng.normal(size=(5, 7)).astype(np.float32),
            "images": {
                camera: rng.integers(0, 256, (5, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
                for camera in ("front", "wrist")
            },
        }
        for instruction in instructions
    ]
    return Demonstrations.open(write_dataset(path, episodes))


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    said = ["pick up the red cube", "press the button", "put the blue cube in the bowl"]
    return recording(tmp_path_factory.mktemp("recorded") / "demos", said)


def test_edits_of_recordings_are_labelled_and_differ_in_their_factor_alone(
    policy: Policy, demos: Demonstrations
) -> None:
    by_factor = {factor: edits.edited_pairs(policy, demos, factor, 18) for factor in FACTORS}
    assert {found.source for found in by_factor.values()} == {"stand-in"}
    for factor, found in by_factor.items():
        assert {twin.kind for twin in found.twins} >= {"semantic"}
        assert {twin.group for twin in found.twins} == {0, 1, 2}
        for twin in found.twins:
            same = (
                looks_same(twin.clean, twin.corrupt),
                twin.clean.instruction == twin.corrupt.instruction,
                np.array_equal(twin.clean.state, twin.corrupt.state),
            )
            assert same == (factor != "visual", factor != "linguistic", factor != "physical"), twin.edit
        assert found.check_prompts(policy) is found
    assert set(by_factor["visual"].edits) == set(edits.EDITS["visual"])
    assert set(by_factor["physical"].edits) == set(edits.EDITS["physical"])
    for twin in by_factor["physical"].twins:
        changed = set(np.flatnonzero(twin.clean.state != twin.corrupt.state))
        assert twin.edit != "gripper" or changed <= {6, 7}  # the fingers
        assert twin.edit != "arm-offset" or changed == {0, 1, 2, 3, 4, 5}
    again = edits.edited_pairs(policy, demos, "visual", 18)
    assert again.pairs.fingerprint == by_factor["visual"].pairs.fingerprint


def test_words_that_a_policy_does_not_know_or_that_are_longer_are_not_said(
    policy: Policy, demos: Demonstrations
) -> None:
    clean = demos.observation(0)
    options = ["pick up the blue cube", "pick up the plaid cube", "pick the red cube", clean.instruction]
    too_long = "put the red cube in the bowl in the bowl in the bowl"
    assert as_long(policy, clean, [*options, too_long]) == ["pick up the blue cube"]


def test_a_recording_without_another_word_says_so(policy: Policy, tmp_path: Path) -> None:
    silent = recording(tmp_path / "demos", ["red"])
    with pytest.raises(UsageError, match=r"no linguistic edit .scrambled. applies to 'red': no other words"):
        edits.edited_pairs(policy, silent, "linguistic", 2, edits=["scrambled"])


# ---- the command


@pytest.fixture
def run(policy: Policy, tiny_policy_dir: Path, demos: Demonstrations, tmp_path: Path) -> Run:
    return Run.create(
        tmp_path / "run",
        policy=policy.fingerprint,
        source=str(tiny_policy_dir),
        spec=policy.spec,
        data={**demos.describe(), "tasks": ["stack the plates"]},
    )


def test_the_command_measures_a_run_of_recordings(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["factors", "--run", str(run.path), "--pairs", "3", "--method", "atp", "--towers", "expert"]
    assert robosteer.main(command) == 0
    told = capsys.readouterr().out
    assert "control: no instruction at all moves it by" in told
    assert "stand in for a change of the world" in told
    entries = Run.open(run.path).info["factors"]
    assert [entry["factor"] for entry in entries] == ["visual", "linguistic", "physical"]
    assert {entry["from"] for entry in entries} == {"stand-in"}
    assert entries[1]["control"]["empty_prompt"]["value"] > 0
    # A task of the testbed may be named: then the pairs are rendered.
    assert robosteer.main([*command, "--factors", "visual", "--task", "pick"]) == 0
    assert [entry["from"] for entry in Run.open(run.path).info["factors"]].count("testbed") == 1


def test_the_command_refuses_in_one_line(
    run: Run, other_policy_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["factors", "--run", str(run.path), "--method", "atp"]
    for words, message in (
        (["--policy", str(other_policy_dir)], "is of policy"),
        (["--factors", "olfactory"], "unknown factor 'olfactory'"),
        (["--towers", "arm"], "unknown tower 'arm'"),
        (["--pairs", "0"], "0 pairs"),
        (["--task", "juggle"], "'juggle'"),
    ):
        assert robosteer.main([*command, *words]) == 2
        told = capsys.readouterr().err.strip().splitlines()
        assert len([line for line in told if line.startswith("robosteer")]) == 1
        assert message in told[-1]
