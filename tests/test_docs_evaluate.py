"""What docs/evaluate.md says is so: its suites and knobs are all that there are, and the results file that it tells
people to write by hand is read."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

import robosteer
from steering.suites import SUITES
from testbed.variation import COLOURS, Variation

TEXT = (Path(robosteer.__file__).parent / "docs/evaluate.md").read_text()


def section(heading: str) -> str:
    return re.split(r"^#+ ", TEXT.split(f"# {heading}\n")[1], flags=re.M)[0]


def first_cells(table: str) -> list[str]:
    """The code in the first cell of every row."""
    return [name for row in re.findall(r"^\|(.*?)\|", table, re.M) for name in re.findall(r"`(.*?)`", row)]


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


def test_trials_written_by_hand_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (written,) = re.findall(r"```json\n(.*?)```", section("Trials on a real robot"), re.S)
    results = tmp_path / "runs/mug/results"
    results.mkdir(parents=True)
    (results / "aligned.json").write_text(written)
    base = json.loads(written)
    for trial in base["episodes"]:
        trial["success"] = False
    (results / "base.json").write_text(
        json.dumps({**base, "name": "base", "arm": "base", "policy": "as it came"})
    )
    assert not robosteer.main(["compare", str(tmp_path / "runs/mug"), "--format", "json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["against"], found["notes"]) == ("base", [])
    success = {cell["arm"]: (cell["success"]["value"], cell["paired"]) for cell in found["cells"]}
    assert success == {"base": (0, 0), "aligned": (0.5, 2)}
    assert found["cells"][1]["difference"]["value"] == 0.5
