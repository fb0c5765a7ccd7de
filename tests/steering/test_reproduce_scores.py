"""Promises of the scores by which the reproduction chooses heads."""

from dataclasses import replace
from pathlib import Path

import pytest
from lerobot_writer import random_episodes, write_dataset

from interp.capture import capture
from interp.demos import Demonstrations
from interp.policies import Policy
from interp.scores import HeadScores
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


def test_scores_of_other_sizes_are_not_taken_for_those_that_are_asked(policy: Policy, tmp_path: Path) -> None:
    demos = Demonstrations.open(write_dataset(tmp_path / "demos", random_episodes((13, 9))))
    run = capture(policy, demos, tmp_path / "run", towers=("expert",), thumbnails=False, progress=False)

    def of(by: str, **sizes: int) -> HeadScores:
        return head_scores(by, policy, demos, run, "expert", sizes)

    assert of("atp", pairs=2).n["pairs"] == 2
    assert of("atp", pairs=3).n["pairs"] == 3
    few = of("ablation", frames=2)
    assert few.settings["frames"] == 2
    assert of("ablation", frames=2).created == few.created
    assert of("ablation", frames=3).settings["frames"] == 3
    knn = of("knn")
    run.save_scores(replace(knn, settings={**knn.settings, "ks": [5]}), "knn-expert")
    assert of("knn").settings["ks"] == [10, 20, 30, 40]
