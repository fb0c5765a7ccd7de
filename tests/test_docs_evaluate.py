"""What docs/evaluate.md says is so: its commands parse, its suites and knobs are all that there are."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import robosteer
from steering.suites import SUITES
from testbed.variation import COLOURS, Variation

TEXT = (Path(robosteer.__file__).parent / "docs/evaluate.md").read_text()


def section(heading: str) -> str:
    return re.split(r"^#+ ", TEXT.split(f"# {heading}\n")[1], flags=re.M)[0]


def first_cells(table: str) -> list[str]:
    """The code in the first cell of every row."""
    return [name for row in re.findall(r"^\|(.*?)\|", table, re.M) for name in re.findall(r"`(.*?)`", row)]


def test_every_command_parses() -> None:
    lines = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.splitlines()]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line, comments=True)
        assert robosteer.build_parser().parse_args(words[1:]).verb == words[1]


def test_all_suites_are_listed() -> None:
    kind = ""
    found = []
    for name in first_cells(section("Suites")):
        kind = name.partition(":")[0] or kind
        found.append(kind + name if name.startswith(":") else name)
    assert found == list(SUITES)


def test_all_knobs_are_listed() -> None:
    about = section("A suite of your own")
    assert first_cells(about) == [field.name for field in fields(Variation)]
    assert re.findall(r"Colour words: (.*)\.", about) == [", ".join(COLOURS)]
