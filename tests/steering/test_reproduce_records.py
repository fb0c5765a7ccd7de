"""Promises of the reproduction's records: they give back what was measured, and say what is broken in them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from record_kit import result

from interp.errors import UsageError
from steering.compare import compare_entries
from steering.reproduce.records import read_records, write_costs, write_record


def test_records_give_back_what_was_measured_and_say_nothing_of_the_clock(tmp_path: Path) -> None:
    kept = [
        (0, result("aligned", "in-domain", "1101")),
        (0, result("aligned", "lighting", "1001")),
        (1, result("aligned", "in-domain", "0111", policy="pi0-other")),
    ]
    path = write_record(tmp_path, kept, "robosteer reproduce")
    assert path is not None
    before = path.read_bytes()
    write_costs(tmp_path, kept)

    entries = read_records(tmp_path)
    for (_, was), entry in zip(kept, entries, strict=True):
        assert entry.arm == "aligned"
        found = entry.result
        assert (found.episodes, found.policy, found.heads) == (was.episodes, was.policy, was.heads)
        assert (found.suite, found.factor, found.condition) == (was.suite, was.factor, was.condition)
        assert found.seconds["train"] == 12.5
        assert found.peak_memory_mb == 800.5
    costs = (tmp_path / "costs.json").read_bytes()
    write_costs(tmp_path, [(e.result.settings["seed"], e.result) for e in entries])
    assert (tmp_path / "costs.json").read_bytes() == costs  # every suite is paid for once

    slower = [
        (seed, replace(r, seconds={"train": 99.0, "evaluate": 9.0}, created="2027")) for seed, r in kept
    ]
    assert write_record(tmp_path, reversed(slower), "robosteer reproduce") == path
    assert path.read_bytes() == before


def test_records_of_several_seeds_are_runs_of_one_arm(tmp_path: Path) -> None:
    write_record(tmp_path, [(0, result("base", "in-domain", "0101", heads=None))], "")
    runs = [
        (seed, result("aligned", "in-domain", wins)) for seed, wins in enumerate(("1111", "0111", "1101"))
    ]
    write_record(tmp_path, runs, "")
    found = compare_entries(read_records(tmp_path))
    cell = found.cell("aligned", "cube-in-bowl")
    assert cell is not None
    assert (cell.runs, cell.n, cell.success.value) == (3, 4, pytest.approx(10 / 12))
    assert cell.difference is not None
    assert cell.difference.value == pytest.approx(10 / 12 - 1 / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: text.replace('"schema": 2', '"schema": 9'), "schema 9, this version reads 2"),
        (lambda text: text.replace('"1101"', '"110"'), "is no record of results"),
        (lambda text: text.replace('"in-domain"', '"in-space"'), "is no record of results"),
        (lambda text: re.sub(r'"suites": {.*', '"suites": []}]}', text, flags=re.DOTALL), "is no record of"),
        (lambda text: re.sub(r'"failures": {[^}]*}', '"failures": [3]', text), "is no record of results"),
    ],
)
def test_a_broken_record_is_named(tmp_path: Path, change, message: str) -> None:
    path = write_record(tmp_path, [(0, result("aligned", "in-domain", "1101"))], "")
    assert path is not None
    path.write_text(change(path.read_text()))
    with pytest.raises(UsageError, match=message) as caught:
        read_records(tmp_path)
    assert str(path) in str(caught.value)


def test_records_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make them with `robosteer reproduce`"):
        read_records(tmp_path)


def test_suites_of_two_policies_are_no_run(tmp_path: Path) -> None:
    """Who reads the record would take all for the first one's."""
    mixed = [
        (2, result("aligned", "in-domain", "11")),
        (2, result("aligned", "lighting", "00", policy="pi0-other")),
    ]
    with pytest.raises(
        UsageError,
        match=r"aligned on cube-in-bowl, seed 2: its suites are of pi0-aligned and pi0-other;",
    ):
        write_record(tmp_path, mixed, "")
    assert not list(tmp_path.iterdir())
