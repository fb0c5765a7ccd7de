"""Does finetuning a few heads help, and does it matter which? Five target tasks, paired rollouts, every control.

    python benchmarks/adaptation.py                    every study, resumable; writes benchmarks/results/<study>/
    python benchmarks/adaptation.py --study recipes    one of them
    python benchmarks/adaptation.py --report           the table of README.md and the figure of docs/, from the results

Studies, each on the axis on which the choice of heads might pay:

adaptation   every recipe on 20 demonstrations, 12 heads
few-heads    the choice when there are only 3 heads to spend
few-demos    the choice, and LoRA, with 5 demonstrations
forgetting   the policies of `adaptation` on the four pretraining tasks

All arms of a task share demonstrations, training draws and the rollouts' seeds, so every difference is paired.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.ablation import AblationSettings, ablate
from interp.capture import capture
from interp.demos import Demonstrations
from interp.knn import rank
from interp.policies import load_policy
from interp.runs import Run, read_json
from steering.compare import Comparison, compare
from steering.compare_figures import by_task
from steering.compare_report import Table, markdown_table
from steering.finetune import finetune
from steering.headset import best_heads
from steering.recipes import Recipe
from steering.results import IN_DOMAIN, result_path
from steering.retain import retain
from steering.suites import Subject, choose, run_suites
from testbed.demos import record
from testbed.tasks import TARGETS

ROLLOUTS = 100
RETAINED = 0.5
"""Weight of the finetuned policy in `retain`'s average with the base."""
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"


@dataclass(frozen=True)
class Arm:
    """A policy to make and to try. Arms of one recipe that differ in number have their own names."""

    name: str
    recipe: str
    heads: int = 12
    demos: int = 20
    by: str = "knn"
    """Scores that choose the heads: `knn`, or `ablation-mean` (causal: how much the action moves without the head)."""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    arms: tuple[Arm, ...]
    suites: tuple[str, ...] = (IN_DOMAIN,)
    rollouts: int = ROLLOUTS


BASE = Arm("base", "base")
RECIPES = (
    "aligned",
    "random-k",
    "lora",
    "all-heads",
    "paper",
    "full",
    "retain",
    "bottom-k",
    "generic-k",
    "ffn-only",
)
CHOICES = ("aligned", "random-k", "bottom-k")
STUDIES: Mapping[str, Study] = {
    "adaptation": Study((BASE, *(Arm(recipe, recipe) for recipe in RECIPES))),
    "few-heads": Study(
        (
            BASE,
            *(Arm(recipe, recipe, heads=3) for recipe in CHOICES),
            Arm("aligned-causal", "aligned", heads=3, by="ablation-mean"),
        )
    ),
    "few-demos": Study((BASE, *(Arm(recipe, recipe, demos=5) for recipe in (*CHOICES, "lora")))),
    "forgetting": Study(
        (
            BASE,
            *(
                Arm(recipe, recipe)
                for recipe in ("aligned", "random-k", "lora", "all-heads", "full", "retain")
            ),
        ),
        ("forgetting",),
        25,
    ),
}


def prepare(task: str, demos: int, work: Path, by: str = "knn") -> tuple[Run, Demonstrations]:
    """Demonstrations, and scores of the expert's heads on them."""
    path = work / f"{task}-{demos}-demonstrations"
    if not path.exists():
        record(task, demos, path)
    opened = Demonstrations.open(path)
    run = capture(
        load_policy("tiny-pi0"), opened, work / f"{task}-{demos}", towers=("expert",), thumbnails=False
    )
    if by not in run.files("scores"):
        scores = (
            rank(run) if by == "knn" else ablate(load_policy("tiny-pi0"), opened, AblationSettings("mean"))
        )
        run.save_scores(scores, by)
    return run, opened


def subject(task: str, arm: Arm, work: Path, seed: int) -> Subject:
    """The arm's policy, trained unless it is there."""
    if arm.recipe == "base":
        return Subject("tiny-pi0", "base", "base")
    run, demos = prepare(task, arm.demos, work, arm.by)
    job = run.path / "jobs" / f"{'aligned' if arm.recipe == 'retain' else arm.name}-{arm.heads}"
    recipe = "aligned" if arm.recipe == "retain" else arm.recipe
    if not (job / "summary.json").is_file():
        scores = run.read_scores(arm.by)
        others = [prepare(other, arm.demos, work)[0].read_scores("knn") for other in TARGETS if other != task]
        finetune(
            load_policy("tiny-pi0"),
            demos,
            Recipe.named(recipe, **arm.settings),
            job,
            heads=best_heads(scores, arm.heads, "expert"),
            scores=scores,
            others=others if recipe == "generic-k" else (),
            seed=seed,
        )
    if arm.recipe == "retain":
        (job,) = retain(job, [RETAINED])
    return Subject(job / "policy", arm.name, arm.recipe, read_json(job / "summary.json"))


def evaluate(name: str, task: str, arm: Arm, work: Path, seed: int, workers: int) -> None:
    """One arm on one task: train, roll out, keep the results."""
    study = STUDIES[name]
    directory = work / "results" / name / task
    target = RESULTS / name / task
    suites = choose(study.suites)
    wanted = [result_path(target, arm.name, suite.name) for suite in suites]
    if all(path.is_file() for path in wanted):
        return
    against = None if arm == BASE else "base"
    for result, path, _ in run_suites(
        subject(task, arm, work, seed),
        task,
        suites,
        study.rollouts,
        directory=directory,
        against=against,
        workers=workers,
    ):
        assert path is not None
        rate = result.success_rate
        line = {"study": name, "task": task, "arm": arm.name, "suite": result.suite, "success": rate.value}
        print(json.dumps({**line, "low": rate.low, "high": rate.high}), flush=True)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / path.name)


# ---- what the README shows


def comparison(study: str = "adaptation") -> Comparison:
    return compare(sorted((RESULTS / study).glob("*/*.json")))


def results() -> Iterator[Path]:
    """Every committed result file."""
    yield from sorted(RESULTS.glob("*/*/*.json"))


def table() -> str:
    """Success by arm and task, in Markdown; every number comes from the result files."""
    found = comparison()
    tasks = [task for task in TARGETS if task in found.tasks]
    rows = []
    for arm in found.arms:
        cells = []
        for task in tasks:
            cell = found.cell(arm.arm, task)
            cells.append("" if cell is None else f"{100 * cell.success.value:.0f}")
            if cell and cell.difference:
                d = cell.difference
                sign = "" if d.low <= 0 <= d.high else " **+**" if d.low > 0 else " **−**"
                cells[-1] += f" ({100 * d.value:+.0f}){sign}"
        mean = arm.success
        shown = "" if mean is None or arm.tasks < len(tasks) else f"{100 * mean.success.value:.0f}"
        if shown and mean and mean.difference:
            d = mean.difference
            shown += f" ({100 * d.value:+.0f} [{100 * d.low:+.0f}, {100 * d.high:+.0f}])"
        rows.append((arm.arm, *cells, shown, f"{max(arm.trained):,}"))
    n = sorted({cell.n for cell in found.cells})
    note = (
        "Success in percent (difference to base in points; **+** or **−**: its 95 % paired bootstrap interval "
        f"excludes zero), n = {' / '.join(map(str, n))} rollouts a cell; in the mean, the interval."
    )
    return markdown_table(Table("Tasks", ("arm", *tasks, "mean", "trained parameters"), tuple(rows), note))


def report() -> None:
    """Put the table between README's markers and draw the figure with the machine's Chromium."""
    import plotly.graph_objects as go

    readme = ROOT / "README.md"
    start, end = "<!-- adaptation -->", "<!-- /adaptation -->"
    text = readme.read_text()
    head, _, rest = text.partition(start)
    _, _, tail = rest.partition(end)
    readme.write_text(f"{head}{start}\n{table()}\n{end}{tail}")
    (ROOT / "docs").mkdir(exist_ok=True)
    go.Figure(by_task(comparison())).write_image(ROOT / "docs/adaptation.svg", width=980)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/adaptation"), help="runs, demonstrations, weights"
    )
    parser.add_argument("--study", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--tasks", nargs="+", default=list(TARGETS))
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", action="store_true")
    a = parser.parse_args()
    if a.report:
        report()
        return
    for name in a.study:
        for arm in STUDIES[name].arms:
            for task in a.tasks:
                if a.arms is None or arm.name in a.arms or arm == BASE:
                    evaluate(name, task, arm, a.work, a.seed, a.workers)


if __name__ == "__main__":
    main()
