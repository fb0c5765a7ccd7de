"""`make setup` on a fresh Debian, whose Python cannot make a virtual environment before python3-venv is there."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """Programs of a Python 3.13 without ensurepip until apt-get has run; everything that is run is noted in `ran`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(
        folder / "python3",
        f"""case "$2" in
            *ensurepip*) test -e {tmp_path}/installed;;
            *version_info*) echo python3.13-venv;;
            *) echo "python3 $*" >> {tmp_path}/ran;;
        esac""",
    )
    program(folder / "apt-get", f'echo "apt-get $*" >> {tmp_path}/ran; touch {tmp_path}/installed')
    return folder


def make_venv(debian: Path, user: int) -> subprocess.CompletedProcess[str]:
    program(debian / "id", f"echo {user}")
    return subprocess.run(
        ["bash", ROOT / "tools/make-venv.sh", "python3", "environment"],
        env={"PATH": f"{debian}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )


def test_root_gets_what_makes_environments(debian: Path) -> None:
    assert make_venv(debian, user=0).returncode == 0
    ran = (debian.parent / "ran").read_text().splitlines()
    assert ran[-2:] == ["apt-get install -y -qq python3.13-venv", "python3 -m venv environment"]


def test_others_are_told_its_name_in_one_line(debian: Path) -> None:
    done = make_venv(debian, user=1000)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert "python3.13-venv" in said
    assert not (debian.parent / "ran").exists()


def test_who_has_it_installs_nothing(debian: Path) -> None:
    (debian.parent / "installed").touch()
    assert make_venv(debian, user=0).returncode == 0
    assert (debian.parent / "ran").read_text() == "python3 -m venv environment\n"
