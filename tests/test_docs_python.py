"""What the library's pages show is so: a page's Python runs from top to bottom, in one namespace."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot_writer import random_episodes, write_dataset

import robosteer
from interp.data import droid

DOCS = Path(robosteer.__file__).parent / "docs"


def python(page: str) -> str:
    """The page's Python, every line where the page has it: an error names the page's line."""
    kept, inside = [], False
    for line in page.splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            kept.append("")
        else:
            kept.append(line if inside else "")
    return "\n".join(kept) + "\n"


def run(name: str, folder: Path, smaller: str | None = None) -> dict[str, Any]:
    """Run a page's Python as a file, which nnsight reads; `smaller` is the 20 that the page shows, made 2."""
    code = python((DOCS / f"{name}.md").read_text())
    if smaller is not None:
        assert code.count(smaller) == 1
        code = code.replace(smaller, smaller.replace("20", "2"))
    (folder / f"{name}.py").write_text(code)
    return runpy.run_path(str(folder / f"{name}.py"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the demonstrations that the pages open."""
    write_dataset(tmp_path / "runs/mug-demos", random_episodes((4, 4, 4, 4)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_hooks(folder: Path) -> None:
    names = run("hooks", folder)
    assert names["effect"].shape == (8, 8)
    assert names["effect"].abs().sum() > 0
    # nnsight's loop over flow steps ends where the policy does
    chunk = names["policy"].denoise(names["batch"], names["noise"])
    torch.testing.assert_close(names["x"], chunk, rtol=0, atol=1e-5)


def test_patching(folder: Path) -> None:
    names = run("patching", folder, smaller="demos, 20)")
    assert names["found"].effect.shape == (8 * 8 * 5,)  # every head of the expert at every flow step
    assert names["paths"].heads.shape == (1, 8 * 8)


def test_attribution(folder: Path) -> None:
    names = run("attribution", folder, smaller='"), 20)')
    assert names["parts"].heads.shape[:3] == (2, 8, 8)


def test_pi0s_settings_are_of_one_robot() -> None:
    """DROID's cameras and rate need DROID's 7 joints and gripper: statistics are cut to these dimensions."""
    page = (DOCS / "pi0.md").read_text().partition("## What robosteer.json adds")[2]
    shown = json.loads(re.findall(r"```json\n(.*?)```", page, re.S)[0])
    assert (shown["state_dim"], shown["action_dim"], shown["fps"]) == (7 + 1, 7 + 1, droid.FPS)
