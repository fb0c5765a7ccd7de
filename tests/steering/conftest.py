"""Demonstrations for the random policy of tests/conftest.py, head scores for it, and records with known effects."""

from pathlib import Path

import numpy as np
import pytest
from export_kit import answer_here
from lerobot_writer import random_episodes, write_dataset
from reproduce_kit import KNOWN_PLAN, known, write_results, write_scores

from interp.demos import Demonstrations
from interp.policies import Policy
from interp.scores import HeadScores, TowerScores
from steering import export
from steering.reproduce.records import read_records
from steering.results import Entry
from testbed.tasks import TARGETS


@pytest.fixture(scope="session")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    """Three episodes of 7, 5 and 9 frames: chunks of 6 actions run past the end of every one of them."""
    path = tmp_path_factory.mktemp("demos") / "random"
    return Demonstrations.open(write_dataset(path, random_episodes([7, 5, 9])))


@pytest.fixture
def scores(policy: Policy) -> HeadScores:
    """Errors (lower is better) that rank expert.L2H3 first and expert.L0H0 last."""
    grid = np.arange(12, 0, -1, dtype=float).reshape(3, 4)
    return HeadScores(
        method="knn",
        label="made up",
        units="normalised action units squared",
        higher_is_better=False,
        towers={"expert": TowerScores(grid)},
        policy=policy.fingerprint,
        data="demos-0",
        n={"frames": 21},
    )


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports are verified in this process: a fresh one takes seconds."""
    monkeypatch.setattr(export, "ask_fresh_process", answer_here)


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of a reproduction whose effects are known (`reproduce_kit.known`). Do not write into it."""
    return write_scores(write_results(tmp_path_factory.mktemp("results"), KNOWN_PLAN, known), TARGETS)


@pytest.fixture(scope="session")
def entries(results: Path) -> list[Entry]:
    return read_records(results)
