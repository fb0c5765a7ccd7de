"""What the ablations promise: rows of like seeds, layouts and tasks, whatever was measured more often."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from reproduce_kit import write_results

from steering.compare_report import points
from steering.reproduce.ablation import ablation_table, like_with_like
from steering.reproduce.contrast import contrast
from steering.reproduce.plan import ADAPTING, FULL
from steering.reproduce.records import read_records
from steering.results import Entry

STUDY = FULL.study("methods")
ARMS = ["base", "aligned-k4", "random-k-k4", "bottom-k-k4"]
PLAN = FULL.only(studies=["methods"], arms=ARMS, seeds=[0, 1], n=40)
ONCE = "random-k-k4"


def seed_of(entry: Entry) -> int | None:
    seed: int | None = entry.result.settings.get("seed")
    return seed


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """All arms are alike, but seed 1 is lucky for all of them, and random heads have seed 0 and 20 layouts alone."""
    made = read_records(write_results(tmp_path_factory.mktemp("records"), PLAN, lambda *_: 0.5))

    def measured(e: Entry) -> Entry:
        episodes = e.result.episodes
        if e.arm == ONCE:
            episodes = episodes[:20]
        if seed_of(e) == 1:
            episodes = tuple(replace(one, success=True, failure=None) for one in episodes)
        return replace(e, result=replace(e.result, episodes=episodes))

    return [measured(e) for e in made if (e.arm, seed_of(e)) != (ONCE, 1)]


def test_rates_are_of_the_seeds_and_layouts_that_all_arms_have(entries: list[Entry]) -> None:
    found = like_with_like(STUDY, entries)
    assert (found.tasks, found.seeds, found.layouts) == (ADAPTING, (0,), (20, 20))
    rates = {}
    for arm in ARMS:
        own = [e.result.episodes for e in entries if e.arm == arm and seed_of(e) in (0, None)]
        rates[arm] = np.mean([one.success for episodes in own for one in episodes if one.seed < 20])
    assert {
        arm: one.success.success.value for arm, one in found.arms.items() if one.success
    } == pytest.approx(rates)
    assert len(set(rates.values())) == 1  # no arm looks better for having been lucky once more


def test_each_is_compared_with_the_reference_on_all_that_the_two_have(entries: list[Entry]) -> None:
    table = ablation_table(like_with_like(STUDY, entries), entries)
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert list(rows) == ARMS
    for arm, n in (("bottom-k-k4", 3 * 2 * 40), (ONCE, 3 * 20)):
        made = contrast(entries, arm, "aligned-k4")
        assert made is not None
        assert made.n == n
        assert rows[arm]["minus aligned-k4"] == points(made.difference)
        assert rows[arm]["n"].startswith(f"{n} (")
    assert rows["aligned-k4"]["minus aligned-k4"] == rows["base"]["minus aligned-k4"] == ""
    assert "20 layouts of each from training seed 0" in table.note
    assert "helped there from seed 0: its gain over the base is overstated" in table.note
    assert "Not run yet: aligned-ablation-k4" in table.note


def test_an_arm_that_lacks_a_task_is_named_and_a_few_with_more_do_not_turn_out_the_others(
    entries: list[Entry],
) -> None:
    def of(*lacking: str) -> list[Entry]:
        return [e for e in entries if e.arm not in lacking or e.result.task == ADAPTING[0]]

    one = like_with_like(STUDY, of(ONCE))
    assert one.tasks == ADAPTING
    assert set(one.arms) == set(ARMS) - {ONCE}
    assert one.seeds == (0, 1)
    note = ablation_table(one, of(ONCE)).note
    assert f"Not run yet on all that the others have: {ONCE}." in note
    others = like_with_like(STUDY, of(*ARMS[2:]))
    assert others.tasks == ADAPTING[:1]
    assert set(others.arms) == set(ARMS)


def test_without_a_base_or_a_common_seed_it_is_of_what_there_is(entries: list[Entry]) -> None:
    trained = [e for e in entries if e.arm != "base"]
    found = like_with_like(STUDY, trained)
    assert set(found.arms) == set(ARMS[1:])
    assert all(row[2] == "" for row in ablation_table(found, trained).rows)
    apart = [e for e in trained if e.arm != "bottom-k-k4" or seed_of(e) == 1]
    assert set(like_with_like(STUDY, apart).arms) == {"aligned-k4", ONCE}
    assert like_with_like(STUDY, [e for e in entries if e.arm == "base"]).arms == {}
