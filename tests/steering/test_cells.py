"""Promises of cells and their means: no surer than their rollouts, and of all of them."""

from pathlib import Path
from typing import Any

from cells_kit import TASKS, N, save

from steering.compare import compare
from steering.stats import wilson


def test_no_mean_is_surer_of_nothing_than_wilson(tmp_path: Path) -> None:
    """No success in 2 x 40 episodes: the bootstrap has nothing to resample and would say 0 % to 0 %."""
    for task in TASKS:
        for suite in ("in-domain", "lighting", "camera"):
            save(tmp_path / task, "base", task, suite, won=[False] * N)
    (base,) = compare([tmp_path / TASKS[0]]).arms
    assert base.success is not None
    assert base.success.success == wilson(0, N)
    # two suites of one task met the same 40 layouts
    assert base.trials["visual"].success == wilson(0, N)
    (both,) = compare([tmp_path]).arms
    assert both.success is not None
    assert (both.success.success.value, both.success.success.low) == (0, 0)
    # of two tasks, independent at best: between the interval of 80 episodes and that of 40
    assert wilson(0, 2 * N).high < both.success.success.high < wilson(0, N).high


def test_an_evaluation_that_has_begun_takes_nothing_from_the_others(tmp_path: Path) -> None:
    """Three rollouts of a second training would leave three of the first one's forty."""
    recipe: dict[str, Any] = {"arm": "aligned", "heads": ("expert.L0H1",)}
    save(tmp_path, "base", "pick-cube")
    for seed, n in ((0, N), (1, 3)):
        settings: dict[str, Any] = {"recipe": {"lr": 1}, "seed": seed}
        save(tmp_path, f"aligned-s{seed}", "pick-cube", won=[True] * n, settings=settings, **recipe)
    found = compare([tmp_path])
    cell = found.cell("aligned-s0", "pick-cube")
    assert cell is not None
    assert (cell.runs, cell.n, cell.paired) == (1, N, N)
    assert any("a run with 3 of 40 episodes is left out until it has more" in note for note in found.notes)
