"""What docs/demos.md says is so: its commands parse."""

import re
import shlex
from pathlib import Path

import robosteer

TEXT = (Path(robosteer.__file__).parent / "docs/demos.md").read_text()


def test_every_command_parses() -> None:
    lines = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.splitlines()]
    assert len(lines) >= 13
    for line in lines:
        words = shlex.split(line, comments=True)
        assert robosteer.build_parser().parse_args(words[1:]).verb == words[1]
