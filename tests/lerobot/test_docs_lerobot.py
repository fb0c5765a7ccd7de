"""What the pages tell people to type of LeRobot's is there, in the LeRobot that is installed."""

import re
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import robosteer

DOCS = Path(robosteer.__file__).parent / "docs"
MODULE = re.compile(r"^python -m (lerobot\.\S+).*?(?:# (0\.\d+))?$", re.M)


def test_every_module_that_is_to_be_run_exists() -> None:
    """A version behind the command says that it is for that one alone."""
    named = [found for page in DOCS.glob("*.md") for found in MODULE.findall(page.read_text())]
    assert len(named) >= 2
    ours = [module for module, only in named if version("lerobot").startswith(only)]
    assert any("convert_dataset" in module for module in ours)
    for module in ours:
        assert exists(module), module


def exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor its package
        return False
