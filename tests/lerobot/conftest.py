"""Tests of LeRobot's policies. They need LeRobot, which has an environment of its own: `make test-lerobot`."""

from pathlib import Path

import pytest

from interp.policies.lerobot import installed

if not installed():
    collect_ignore_glob = ["test_*.py"]
else:
    from lerobot_kit import FAMILIES, build, observations, write_demonstrations

    from interp.demos import Demonstrations
    from interp.policies import Observation, Policy, load_policy

    @pytest.fixture(scope="session")
    def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
        """A tiny random policy of every family. Do not write into them."""
        root = tmp_path_factory.mktemp("lerobot")
        return {family: build(family, root / family) for family in FAMILIES}

    @pytest.fixture(scope="session")
    def loaded(directories: dict[str, Path]) -> dict[str, Policy]:
        return {family: load_policy(path) for family, path in directories.items()}

    @pytest.fixture(params=FAMILIES)
    def family(request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def policy(family: str, loaded: dict[str, Policy]) -> Policy:
        """Loaded once. Tests that change its weights load their own."""
        return loaded[family]

    @pytest.fixture
    def smolvla(loaded: dict[str, Policy]) -> Policy:
        return loaded["smolvla"]

    @pytest.fixture(scope="session")
    def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_demonstrations(tmp_path_factory.mktemp("demos") / "tiny")

    @pytest.fixture
    def demos(dataset: Path) -> Demonstrations:
        return Demonstrations.open(dataset)

    @pytest.fixture
    def seen() -> list[Observation]:
        return observations(2)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not installed():
        terminalreporter.write_line(
            "tests/lerobot left out: LeRobot is not installed in this environment; `make test-lerobot` runs them"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/lerobot" in item.path.as_posix():
            item.add_marker("lerobot")
