"""Promises of a comparison: every number as a plain computation gives it, only like with like, one whole page."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cells_kit import TASKS, N, outcomes, save
from contrast import contrast

import robosteer
from interp.errors import UsageError
from steering import compare_figures, compare_report
from steering.compare import ARMS, compare
from steering.compare_report import points
from steering.episode import Episode
from steering.looks import LOOKS
from steering.results import Result, save_result
from steering.stats import Interval, paired_bootstrap, wilson


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adaptation")
    for task in TASKS:
        for name in ("lora", "base", "aligned"):
            for suite in (
                "in-domain",
                "lighting",
                "camera",
                "paraphrase",
                "forgetting:pick",
                "forgetting:put",
            ):
                shared = "any" if name == "base" and suite.startswith("forgetting") else task
                save(folder / task, name, task, suite, won=outcomes(name, shared, suite))
    return folder


def test_every_cell_is_its_file_counted_by_hand(results: Path) -> None:
    found = compare([results])
    assert [arm.arm for arm in found.arms] == ["base", "aligned", "lora"]
    assert found.tasks == TASKS
    for task in TASKS:
        base = outcomes("base", task, "in-domain")
        for name in ("base", "aligned", "lora"):
            won, cell = outcomes(name, task, "in-domain"), found.cell(name, task)
            assert cell is not None
            assert (cell.n, cell.runs, cell.success) == (N, 1, wilson(int(won.sum()), N))
            late = sum(not w and i % 3 == 0 for i, w in enumerate(won))
            assert cell.failures == {"dropped": N - won.sum() - late, "time ran out": late}
            if name == "base":
                assert (cell.difference, cell.paired) == (None, 0)
            else:
                assert cell.difference == paired_bootstrap(list(won), list(base))


def naive(pairs: list[tuple[np.ndarray, np.ndarray]], together: list[int]) -> tuple[float, float]:
    """Interval of the mean difference, episode by episode; cells of one number in `together` met the same layouts."""
    rng, drawn = np.random.default_rng(5), []
    for _ in range(4000):
        picks = {which: rng.integers(0, N, N) for which in set(together)}
        drawn.append(
            np.mean(
                [a[picks[w]].mean() - b[picks[w]].mean() for (a, b), w in zip(pairs, together, strict=True)]
            )
        )
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def test_means_over_tasks_suites_and_pretraining_equal_plain_resampling(results: Path) -> None:
    aligned = next(arm for arm in compare([results]).arms if arm.arm == "aligned")
    assert aligned.success is not None
    over = {
        "in-domain": ([("in-domain", task, task) for task in TASKS], [0, 1], aligned.success),
        "visual": (
            [(suite, task, task) for task in TASKS for suite in ("lighting", "camera")],
            [0, 0, 1, 1],
            aligned.trials["visual"],
        ),
        # the base is rolled out once on a pretraining task, and serves all tasks that the arm was adapted to
        "pretraining": (
            [(f"forgetting:{t}", task, "any") for task in TASKS for t in ("pick", "put")],
            [0, 1, 0, 1],
            aligned.trials["pretraining"],
        ),
    }
    for cells, together, mean in over.values():
        pairs = [(outcomes("aligned", t, s), outcomes("base", b, s)) for s, t, b in cells]
        assert mean.cells == len(cells)
        assert mean.success.value == pytest.approx(np.mean([a.mean() for a, _ in pairs]))
        assert mean.difference is not None
        assert mean.difference.value == pytest.approx(np.mean([a.mean() - b.mean() for a, b in pairs]))
        # Monte Carlo error of two 2.5 % quantiles of a spread of about 0.1
        assert (mean.difference.low, mean.difference.high) == pytest.approx(naive(pairs, together), abs=0.02)
    visual = aligned.trials["visual"]
    assert visual.drop is not None
    fell = [
        outcomes("aligned", t, s).mean() - outcomes("aligned", t, "in-domain").mean()
        for s, t, _ in over["visual"][0]
    ]
    assert visual.drop.value == pytest.approx(np.mean(fell))
    assert set(aligned.trials) == {"visual", "linguistic", "pretraining"}


def test_costs_are_those_of_one_training(results: Path) -> None:
    base, aligned, _ = compare([results]).arms
    assert (base.trained, base.parameters, base.train_seconds, base.peak_memory_mb) == (
        (0, 0),
        {},
        None,
        None,
    )
    assert aligned.trained == (1024, 1024)
    assert aligned.parameters == {"expert query rows": (768, 768), "expert output columns": (256, 256)}
    assert (aligned.train_seconds, aligned.peak_memory_mb) == ((41.4, 41.4), 611.0)


def test_trainings_that_differ_in_their_seed_alone_are_runs_of_one_arm(tmp_path: Path) -> None:
    """And another choice of heads, or another recipe, is another arm."""
    save(tmp_path, "base", "pick-cube")
    recipe: dict[str, Any] = {"arm": "aligned", "heads": ("expert.L0H1",)}
    won = [
        save(tmp_path, f"aligned{end}", "pick-cube", settings={"recipe": {"lr": 1}, "seed": seed}, **recipe)
        for seed, end in enumerate(("", "-s1", "-s2"))
    ]
    save(tmp_path, "aligned-slow", "pick-cube", settings={"recipe": {"lr": 0.1}, "seed": 0}, **recipe)
    other = {**recipe, "heads": ("expert.L7H7",)}
    save(tmp_path, "aligned-ablation", "pick-cube", settings={"recipe": {"lr": 1}, "seed": 0}, **other)
    for seed in (0, 1):
        heads = {"arm": "random-k", "heads": (f"expert.L0H{seed}",)}
        save(tmp_path, f"random-{seed}", "pick-cube", settings={"recipe": {"lr": 1}, "seed": seed}, **heads)
    found = compare([tmp_path])
    assert {arm.arm: arm.runs for arm in found.arms} == {
        "base": 1, "aligned": 3, "aligned-ablation": 1, "aligned-slow": 1, "random-0": 2,
    }  # fmt: skip
    cell = found.cell("aligned", "pick-cube")
    assert cell is not None
    assert cell.success.value == pytest.approx(np.mean(won))
    assert cell.difference is not None
    assert cell.difference.value == pytest.approx(
        np.mean(won) - outcomes("base", "pick-cube", "in-domain").mean()
    )


def test_one_name_in_two_runs_of_a_task_keeps_apart(tmp_path: Path) -> None:
    base = save(tmp_path / "one/results", "base", "pick-cube")
    save(tmp_path / "two/results", "base", "pick-cube", won=base)  # the same policy on the same episodes: one
    first = save(tmp_path / "one/results", "aligned", "pick-cube")
    second = save(tmp_path / "two/results", "aligned", "pick-cube", won=~first, policy="pi0-two")
    found = compare([tmp_path / "one", tmp_path / "two"])
    assert [arm.arm for arm in found.arms] == ["base", "one/aligned", "two/aligned"]
    for name, won in (("one/aligned", first), ("two/aligned", second)):
        cell = found.cell(name, "pick-cube")
        assert cell is not None
        assert cell.difference is not None
        assert cell.difference.value == pytest.approx(won.mean() - base.mean())


def test_any_arm_can_be_the_baseline(results: Path) -> None:
    found = compare([results], against="lora")
    assert [arm.arm for arm in found.arms] == ["lora", "base", "aligned"]
    cell = found.cell("aligned", "pick-cube")
    assert cell is not None
    assert cell.difference is not None
    expected = (
        outcomes("aligned", "pick-cube", "in-domain").mean()
        - outcomes("lora", "pick-cube", "in-domain").mean()
    )
    assert cell.difference.value == pytest.approx(expected)
    with pytest.raises(UsageError, match="unknown baseline 'laro': known are aligned, base, lora"):
        compare([results], against="laro")


def test_what_was_trained_for_another_task_is_no_baseline(tmp_path: Path) -> None:
    """Rolled out on the same pretraining task; one forgot it over another task than the other."""
    save(tmp_path, "lora", "pick-cube", "forgetting:pick")
    theirs = save(tmp_path, "lora", "cube-in-bowl", "forgetting:put")
    save(tmp_path, "aligned", "cube-in-bowl", "forgetting:pick")
    ours = save(tmp_path, "aligned", "cube-in-bowl", "forgetting:put")
    found = compare([tmp_path], against="lora")
    other = found.cell("aligned", "cube-in-bowl", "forgetting:pick")
    same = found.cell("aligned", "cube-in-bowl", "forgetting:put")
    assert other is not None
    assert same is not None
    assert (other.difference, other.paired) == (None, 0)
    assert same.difference is not None
    assert same.difference.value == pytest.approx(ours.mean() - theirs.mean())


def test_results_of_a_training_and_its_repetition_are_noted(results: Path, tmp_path: Path) -> None:
    assert not compare([results]).notes
    trained = {"settings": {"recipe": {"lr": 1}, "seed": 1}}
    save(tmp_path, "base", "pick-cube")
    save(tmp_path, "aligned", "pick-cube", policy="pi0-new", **trained)
    save(tmp_path, "aligned", "pick-cube", "lighting", policy="pi0-old", **trained)
    save(tmp_path / "bowl", "aligned", "cube-in-bowl", policy="pi0-bowl", **trained)
    (note,) = compare([tmp_path]).notes
    assert note == (
        "aligned on pick-cube (training seed 1): its results are of 2 policies "
        "(pi0-old: lighting; pi0-new: in-domain): evaluate all suites of one"
    )


def test_what_cannot_be_paired_or_read_is_noted_and_the_rest_compared(tmp_path: Path) -> None:
    save(tmp_path / "results", "base", "pick-cube", won=[True] * 10)
    ours = save(tmp_path / "results", "aligned", "pick-cube")
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "results/broken.json").write_text('{"schema": 1, "arm": "x", "episodes": [')
    found = compare([tmp_path])
    assert any("broken.json is not JSON" in note for note in found.notes)
    assert any("the baseline ran 10 of its 40 episodes" in note for note in found.notes)
    cell = found.cell("aligned", "pick-cube")
    assert cell is not None
    assert (cell.n, cell.paired) == (N, 10)
    assert cell.difference is not None
    assert cell.difference.value == pytest.approx(ours[:10].mean() - 1)
    (tmp_path / "results/base.json").unlink()
    alone = compare([tmp_path])
    assert alone.against is None
    assert any("--against" in note for note in alone.notes)
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "empty", "no results in .*empty"),
        (tmp_path / "gone", "gone does not exist"),
    ):
        with pytest.raises(UsageError, match=message):
            compare([path])


@pytest.mark.parametrize(
    ("low", "value", "high", "said"),
    [
        (-0.041, -0.003, 0.0, "0 [-4, 0]"),  # zero has no sign
        (0.003, 0.12, 0.25, "+12 [+0.3, +25]"),  # beyond zero, and seen to be
        (-0.0004, 0.0, 1e-17, "0 [-0.04, 0]"),
        (-0.02, 0.02, 0.068, "+2 [-2, +6.8]"),  # the margin is not reached
        (-0.07, 0.01, 0.0733, "+1 [-7, +7.3]"),
    ],
)
def test_a_bound_shows_its_side_of_zero_and_of_the_margin(
    low: float, value: float, high: float, said: str
) -> None:
    assert points(Interval(value, low, high), lines=(-0.07, 0, 0.07)) == said


def test_an_arm_without_all_tasks_gets_no_mean_beside_the_others(results: Path, tmp_path: Path) -> None:
    save(tmp_path, "full", "pick-cube")
    table = compare_report.tasks_table(compare([results, tmp_path]))
    rows = {row[0]: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}
    assert rows["pick-cube"]["full"]
    assert rows["mean"]["full"] == rows["cube-in-bowl"]["full"] == ""
    assert rows["mean"]["aligned"]


def test_the_records_of_the_reproduction_compare_as_they_are() -> None:
    """Every success rate is the count of ones in a record; its interval is Wilson's where there is one run."""
    root = Path(robosteer.__file__).parent / "benchmarks/results/reproduce"
    found = compare([root])
    records = [json.loads(file.read_text()) for file in root.glob("*/*.json")]
    assert len(records) > 10
    for record in records:
        for suite in record["runs"][0]["suites"]:
            runs = [run["suites"][suite]["success"] for run in record["runs"] if suite in run["suites"]]
            cell = found.cell(record["arm"], record["task"], suite)
            assert cell is not None
            assert cell.runs == len(runs)
            n = min(map(len, runs))
            assert cell.success.value == pytest.approx(np.mean([run[:n].count("1") / n for run in runs]))
            if len(runs) == 1:
                assert cell.success == wilson(runs[0].count("1"), n)
    one = next(root.glob("*/aligned.json"))
    assert compare([one]).arms[0].arm == "aligned"


class Page(HTMLParser):
    """What a page would fetch, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.opened: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self.fetched += [value or "" for name, value in attributes if name in ("src", "href")]


def test_the_page_is_whole_and_the_files_agree(results: Path, tmp_path: Path) -> None:
    found = compare([results])
    paths = compare_report.write(found, tmp_path)
    assert [path.name for path in paths] == ["compare.md", "compare.json", "compare.html"]
    record = json.loads((tmp_path / "compare.json").read_text())
    assert [arm["arm"] for arm in record["arms"]] == ["base", "aligned", "lora"]
    assert len(record["cells"]) == len(list(results.rglob("*.json")))
    text = (tmp_path / "compare.html").read_text()
    page = Page(text)
    assert page.fetched == []
    assert page.opened.count("table") == len(compare_report.tables(found))
    assert page.opened.count("figure") == len(compare_figures.figures(found)) == 4
    for line in (tmp_path / "compare.md").read_text().splitlines():
        if line.startswith("| aligned"):
            assert all(cell in text for cell in line.strip("| ").split(" | "))


def test_names_are_text_wherever_they_are_shown(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    save(tmp_path, "base", "pick-cube")
    result = Result(
        evil, evil, "pick-cube", "pi0-x", (Episode(0, True, 1),), settings={"rolled_out": "pick-cube"}
    )
    save_result(tmp_path / "evil.json", result)
    text = compare_report.render(compare([tmp_path]), "html")
    assert "alert(1)" in text
    assert evil not in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_show_the_numbers_and_tell_arms_apart_twice(results: Path, scheme: str) -> None:
    found = compare([results])
    figure = compare_figures.by_task(found, scheme)
    left = {trace["name"]: trace for trace in figure["data"] if trace.get("xaxis") != "x2"}
    for arm in found.arms:
        assert arm.success is not None
        cells = [*(found.cell(arm.arm, task) for task in TASKS), arm.success]
        assert left[arm.arm]["x"] == [100 * cell.success.value for cell in cells if cell]
        highs = [x + up for x, up in zip(left[arm.arm]["x"], left[arm.arm]["error_x"]["array"], strict=True)]
        assert highs == pytest.approx([100 * cell.success.high for cell in cells if cell])
    marks = {(trace["marker"]["symbol"], trace["marker"]["color"]) for trace in left.values()}
    assert len({symbol for symbol, _ in marks}) == len({colour for _, colour in marks}) == 3
    for _, _, drawn in compare_figures.figures(found, scheme):
        json.dumps(drawn, allow_nan=False)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_two_of_all_arms_look_the_same_and_an_arm_does_in_every_figure(
    tmp_path: Path, scheme: str
) -> None:
    for arm in ARMS:
        for suite in ("in-domain", "lighting", "forgetting:pick"):
            save(tmp_path, arm, "pick-cube", suite)
    found = compare([tmp_path])
    assert len(found.arms) == len(ARMS)
    seen: dict[str, set[tuple[str, str]]] = {}
    for _, _, drawn in compare_figures.figures(found, scheme):
        for trace in drawn["data"]:
            marker = trace["marker"]
            seen.setdefault(trace["name"], set()).add((marker["symbol"], marker["color"]))
    assert seen == {arm: {(look.symbol, getattr(look, scheme))} for arm, look in LOOKS.items()}
    surface = compare_figures.SCHEMES[scheme].surface
    for look in LOOKS.values():
        assert contrast(getattr(look, scheme), surface) >= 3, "WCAG 1.4.11: graphics at least 3:1"


def test_the_command_prints_or_writes(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert robosteer.main(["compare", str(results)]) == 0
    printed = capsys.readouterr().out
    assert "| pick-cube |" in printed
    assert robosteer.main(["compare", str(results), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["against"] == "base"
    assert robosteer.main(["compare", str(results), "--out", str(tmp_path), "--format", "md"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["compare.md"]
    assert (tmp_path / "compare.md").read_text() == printed
    assert robosteer.main(["compare", str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err
