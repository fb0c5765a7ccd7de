"""Promises about seeds: one that cannot be is one line, before anything is computed or written for it."""

import argparse
from pathlib import Path

import pytest
from lerobot_writer import random_episodes, write_dataset

import robosteer
from interp.capture import capture
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.knn import rank
from interp.noise import keyed_noise
from interp.patching import Pairs
from interp.policies import load_policy
from steering.headset import random_heads


def verbs_with_seeds() -> list[tuple[str, str]]:
    """(verb, option) of every option of the command line that takes seeds, but for the testbed's `record`: it imports
    nothing of ours, and tests/testbed/test_demos.py has its refusal."""
    parser = robosteer.build_parser()
    (verbs,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [
        (verb, option)
        for verb, below in verbs.choices.items()
        if verb != "record"
        for action in below._actions
        for option in action.option_strings
        if "seed" in option or action.metavar == "SEED"
    ]


@pytest.mark.parametrize(("verb", "option"), verbs_with_seeds())
@pytest.mark.parametrize(
    ("seed", "said"), [("-1", "seed -1: seeds start at 0"), (str(2**63), "63 bits"), ("one", "'one'")]
)
def test_a_seed_that_cannot_be_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, option: str, seed: str, said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        robosteer.main([verb, option, seed])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert option in line


def test_every_verb_that_draws_is_covered() -> None:
    found = {verb for verb, _ in verbs_with_seeds()}
    assert found >= {"capture", "rank", "factors", "patch", "attribute", "select", "finetune", "evaluate"}


def test_the_library_refuses_it_and_capture_leaves_no_run(tiny_policy_dir: Path, tmp_path: Path) -> None:
    policy = load_policy(tiny_policy_dir)
    demos = Demonstrations.open(write_dataset(tmp_path / "demos", random_episodes((3, 3))))
    make = {"towers": ("expert",), "thumbnails": False, "progress": False}
    with pytest.raises(UsageError, match="seed -1: seeds start at 0"):
        capture(policy, demos, tmp_path / "run", seed=-1, **make)
    assert not (tmp_path / "run").exists()
    run = capture(policy, demos, tmp_path / "run", seed=0, **make)
    for drawn in (
        lambda: rank(run, seed=-1),
        lambda: Pairs.of_frames(policy, demos, 2, seed=-1),
        lambda: random_heads(policy.spec, 2, "expert", seed=-1),
        lambda: keyed_noise(policy, -1, 0),
    ):
        with pytest.raises(UsageError, match="seed -1: seeds start at 0"):
            drawn()
