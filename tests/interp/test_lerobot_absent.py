"""Promises about LeRobot's directories where LeRobot is not installed: they are recognised, and what to do is said."""

import json
from pathlib import Path

import pytest

import interp.policies.lerobot
from interp.errors import UsageError
from interp.policies import load_policy


@pytest.fixture(autouse=True)
def _without_lerobot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interp.policies.lerobot, "installed", lambda: False)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("smolvla", "make setup-lerobot"),
        ("act", "never calls its output projection"),
        ("nonsense", "known of LeRobot are pi0, pi05, smolvla, xvla"),
    ],
)
def test_lerobots_directories_are_recognised(tmp_path: Path, kind: str, said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"type": kind}))
    with pytest.raises(UsageError, match=said) as raised:
        load_policy(tmp_path)
    assert "\n" not in str(raised.value)
