"""What the pages tell people to type is so: every `robosteer` command on them parses."""

import re
import shlex
from pathlib import Path

import pytest

import robosteer

DOCS = Path(robosteer.__file__).parent / "docs"


def commands(page: Path) -> list[list[str]]:
    """The words after `robosteer`, of every command in the page's blocks; one may go on on the next line."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and Path(line[0]).name == "robosteer"]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_every_command_parses(page: Path) -> None:
    for words in commands(page):
        assert robosteer.build_parser().parse_args(words).verb == words[0]


def test_commands_are_found() -> None:
    assert sum(len(commands(page)) for page in DOCS.glob("*.md")) > 50
