"""What the README says is so: its commands parse, its code runs, its numbers are those of the result files."""

import re
import shlex
from pathlib import Path

import robosteer
from steering.reproduce.plan import FULL
from steering.reproduce.publish import END, START
from steering.reproduce.records import read_records
from steering.reproduce.report import readme_table, report
from testbed.demos import record

ROOT = Path(robosteer.__file__).parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_every_command_parses():
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("robosteer ")]
    assert len(lines) > 5
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        assert robosteer.build_parser().parse_args(words).verb == words[0]


def test_the_python_example_runs(tmp_path):
    demos = record("press", 1, tmp_path / "demos", workers=1, progress=False)
    (code,) = blocks("python")
    code = code.replace("path/to/pi0", "tiny-pi0").replace("path/to/lerobot-dataset", str(demos))
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    cache = names["cache"]
    assert cache["expert.blocks.3.attn.hook_z"].shape == (5, 1, 9, 8, 16)  # type: ignore[index]


def test_the_pictures_exist():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file(), path


def test_the_table_is_written_from_the_records():
    results = ROOT / "benchmarks/results/reproduce"
    assert f"{START}\n{readme_table(read_records(results), results)}\n{END}" in README


def test_the_report_is_written_from_the_records():
    results = ROOT / "benchmarks/results/reproduce"
    assert (ROOT / "REPORT.md").read_text() == report(FULL, read_records(results), results)
