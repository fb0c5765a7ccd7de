"""Promises for episodes whose task changes on the way: what a frame is told is what its own row says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lerobot_writer import random_episodes, write_dataset
from random_policy import random_observations

from interp.capture import capture
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.explain import ExplainSettings, explain
from interp.factors.edits import edited_pairs
from interp.filming import footage
from interp.footage import Footage, footage_of
from interp.patching import Pairs
from interp.policies import Policy
from interp.watching import watch, words_of

RED, PRESS, BLUE = "pick up the red cube", "press the button", "pick up the blue cube"


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    """Two episodes that pick first and press then, and one that presses all the time."""
    path = write_dataset(tmp_path_factory.mktemp("data") / "demos", random_episodes((6, 6, 6)))
    task = np.array([0, 0, 0, 1, 1, 1] + [2, 2, 2, 1, 1, 1] + [1] * 6)
    return replace(Demonstrations.open(path), instructions=(RED, PRESS, BLUE), task=task)


def test_an_explanation_says_what_its_frame_was_told(policy: Policy, demos: Demonstrations) -> None:
    settings = ExplainSettings(shown=12, examples=3, reference=4, scanned=18)
    found = explain(policy, demos, 0, 4, settings)
    assert found.instruction == PRESS
    assert [word for word, _ in found.looks[0].words] == PRESS.split()
    examples = [example for look in found.looks for example in look.examples]
    told = {
        (e.episode, e.frame): demos.instruction(demos.episodes[e.episode].start + e.frame) for e in examples
    }
    assert {(e.episode, e.frame): e.instruction for e in examples} == told
    assert len({*told.values()}) > 1


def test_pairs_of_frames_are_told_the_same_or_as_much(policy: Policy, demos: Demonstrations) -> None:
    pairs = Pairs.of_frames(policy, demos, len(demos))
    told = [(a.instruction, b.instruction) for a, b in zip(pairs.clean, pairs.corrupt, strict=True)]
    assert (
        len(told) == len(demos) - 3
    )  # what the third episode is told at first, none else is at that part of its way
    assert told[:6] == [(RED, BLUE)] * 3 + [(PRESS, PRESS)] * 3
    assert told[6:12] == [(BLUE, RED)] * 3 + [(PRESS, PRESS)] * 3
    assert told[12:] == [(PRESS, PRESS)] * 3


def test_another_instruction_of_the_data_may_come_late_in_an_episode(
    policy: Policy, demos: Demonstrations
) -> None:
    late = replace(demos, instructions=(RED, PRESS, BLUE), task=np.array([0] * 5 + [2] + [0] * 12))
    pairs = edited_pairs(policy, late, "linguistic", 6, edits=["other-instruction"])
    assert {(t.clean.instruction, t.corrupt.instruction) for t in pairs.twins} <= {(RED, BLUE), (BLUE, RED)}


def test_such_an_episode_is_not_filmed(policy: Policy, demos: Demonstrations, tmp_path: Path) -> None:
    run = capture(policy, demos, tmp_path / "run", towers=["expert"], thumbnails=False, progress=False)
    assert run.signals().instruction[2:4] == [RED, PRESS]
    with pytest.raises(UsageError, match="the task of episode 1 changes on the way") as refused:
        footage(policy, demos, run, episodes=[2, 1], progress=False)
    assert "\n" not in str(refused.value)
    assert not footage_of(run)
    with pytest.warns(UserWarning, match="2 such episodes are left out"):
        footage(policy, demos, run, progress=False)
    assert list(footage_of(run)) == [2]
    assert Footage.open(run, 2).words == tuple(PRESS.split())


def test_frames_of_two_instructions_are_not_watched_together(policy: Policy) -> None:
    with pytest.raises(UsageError, match="frames of 2 instructions"):
        watch(policy, random_observations(2), policy.noise(2, 0))


def test_words_are_those_that_the_policy_reads(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """openpi's prompts have no underscores: the cleaned text is tokenised, and its words are the words."""
    monkeypatch.setattr(policy, "preprocessing", replace(policy.preprocessing, clean_prompt=True))
    told = replace(random_observations(1)[0], instruction=" press_the\nbutton ")
    assert words_of(policy, told.instruction) == (("press", "the", "button"), [[1], [2], [3]])
    words = policy.batch([told])["input_ids"][0, policy.spec.span("language").slice]
    assert policy.tokenizer.convert_ids_to_tokens(words[1:4].tolist()) == ["press", "the", "button"]
    assert watch(policy, [told], policy.noise(1, 0)).words["expert"][..., 1].max() > 0
