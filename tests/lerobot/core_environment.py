"""The core environment beside LeRobot's: its transformers has PI0, with which LeRobot's is compared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_in_core(script: str, *words: object) -> None:
    """Run a script of this folder with the Python of the core environment; skip the test if there is none."""
    core = _python()
    if core is None:
        pytest.skip("the core environment, whose transformers has PI0, is not there: `make setup` makes it")
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "tests/lerobot", "tests/steering"))
    done = subprocess.run(
        [str(core), str(Path(__file__).parent / script), *map(str, words)],
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _python() -> Path | None:
    """Beside LeRobot's environment, or where `make setup` puts it."""
    name = os.environ.get("VENV", ".venv")
    places = [ROOT / name / "bin/python", Path(sys.prefix).parent / name / "bin/python"]
    return next((place for place in places if place.is_file()), None)
