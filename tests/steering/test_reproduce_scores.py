"""Promises of the scores by which the reproduction chooses heads."""

from pathlib import Path

import pytest
from lerobot_writer import random_episodes, write_dataset

from interp.capture import capture
from interp.demos import Demonstrations
from interp.policies import Policy
from steering.reproduce.scores import choose, head_scores


@pytest.mark.parametrize("lengths", [(13,), (13, 9)])
def test_heads_are_chosen_from_a_single_short_demonstration(
    policy: Policy, tmp_path: Path, lengths: tuple[int, ...]
) -> None:
    """Of which the published rule, frames 30 apart, leaves nothing."""
    demos = Demonstrations.open(write_dataset(tmp_path / "demos", random_episodes(lengths)))
    run = capture(policy, demos, tmp_path / "run", towers=("expert",), thumbnails=False, progress=False)
    scores = head_scores("knn", policy, demos, run, "expert", {})
    assert scores.settings["window"] == (3 if len(lengths) == 1 else 30)
    assert len(choose("knn", scores, run, 4, "expert").heads) == 4
