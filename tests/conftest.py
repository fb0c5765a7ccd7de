"""Fixtures that all tests share: random policies (random_policy.py) and observations for them."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other starve on a busy machine

import testbed  # noqa: F401, I001 (chooses the renderer before any test module imports mujoco)

import pytest
from random_policy import build_policy, random_observations

from interp.policies import Observation, Policy, load_policy


@pytest.fixture(scope="session")
def tiny_policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random PI0 policy. Do not write into it."""
    return build_policy(tmp_path_factory.mktemp("policies") / "random-pi0")


@pytest.fixture(scope="session")
def other_policy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture with other weights, for everything that must be refused."""
    return build_policy(tmp_path_factory.mktemp("policies") / "other-pi0", seed=1)


@pytest.fixture(scope="session")
def policy(tiny_policy_dir: Path) -> Policy:
    """The random policy, loaded once. Tests that change its weights load their own."""
    return load_policy(tiny_policy_dir)


@pytest.fixture(scope="session")
def observations() -> list[Observation]:
    return random_observations(3)
