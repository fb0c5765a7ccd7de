"""Does finetuning a few heads help, and does it matter which? Five target tasks, 20 demonstrations, paired rollouts.

    python benchmarks/adaptation.py            run what is missing (resumable), write benchmarks/results/adaptation/
    python benchmarks/adaptation.py --report   write the table into README.md and the figure into docs/

Arms: base (as shipped), aligned (the best heads by k-NN), random-k (as many random heads), lora (PEFT, LeRobot's
default targets). All arms of a task share demonstrations, training draws and the rollouts' seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interp.capture import capture
from interp.demos import Demonstrations
from interp.knn import rank
from interp.policies import load_policy
from interp.runs import Run, read_json
from steering.finetune import finetune
from steering.headset import best_heads
from steering.recipes import Recipe
from steering.results import Result, load_result, save_result
from steering.rollouts import evaluate
from testbed.demos import record
from testbed.tasks import TARGETS

ARMS = ("base", "aligned", "random-k", "lora")
EPISODES, HEADS, ROLLOUTS = 20, 12, 100
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/adaptation"


def prepare(task: str, work: Path) -> tuple[Run, Demonstrations]:
    demos_path = work / f"{task}-demonstrations"
    if not demos_path.exists():
        record(task, EPISODES, demos_path)
    demos = Demonstrations.open(demos_path)
    run = capture(load_policy("tiny-pi0"), demos, work / task, towers=("expert",), thumbnails=False)
    if "knn" not in run.files("scores"):
        run.save_scores(rank(run))
    return run, demos


def evaluate_arm(run: Run, demos: Demonstrations, task: str, arm: str, seed: int) -> Result:
    """One arm on one task, from what is on disk where it is."""
    path = run.path / "results" / f"{arm}.json"
    if path.exists():
        return load_result(path)
    if arm == "base":
        result = Result.of(evaluate("tiny-pi0", task, ROLLOUTS), name=arm, arm=arm)
    else:
        heads = best_heads(run.read_scores("knn"), HEADS, "expert")
        job = run.path / "jobs" / arm
        done = finetune(load_policy("tiny-pi0"), demos, Recipe.named(arm), job, heads=heads, seed=seed)
        rollouts = evaluate(job / "policy", task, ROLLOUTS)
        result = Result.of(rollouts, name=arm, arm=arm, training=done.summary)
        result = result.against(load_result(run.path / "results/base.json"))
    save_result(path, result)
    return result


def results() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(task, arm, result) of everything committed."""
    for task in TARGETS:
        for arm in ARMS:
            path = RESULTS / task / f"{arm}.json"
            if path.is_file():
                yield task, arm, read_json(path)


def table() -> str:
    """The success table in Markdown; every number comes from the result files."""
    cells: dict[str, dict[str, str]] = {}
    parameters: dict[str, set[int]] = {arm: set() for arm in ARMS}
    counts: set[int] = set()
    for task, arm, result in results():
        low, high = result["wilson"]
        text = f"{result['success_rate']:.0%} ({low:.0%} to {high:.0%})"
        if result["paired"]:
            p = result["paired"]
            text += f", {100 * p['difference']:+.0f} [{100 * p['low']:+.0f}, {100 * p['high']:+.0f}]"
        cells.setdefault(task, {})[arm] = text
        parameters[arm].add(sum(result["trainable_parameters"].values()))
        counts.add(result["n"])
    lines = [f"| task | {' | '.join(ARMS)} |", "|---" * (len(ARMS) + 1) + "|"]
    lines += [f"| {task} | {' | '.join(row.get(arm, '') for arm in ARMS)} |" for task, row in cells.items()]
    trained = [" / ".join(f"{n:,}" for n in sorted(parameters[arm])) for arm in ARMS]
    lines.append(f"| trained parameters | {' | '.join(trained)} |")
    n = " / ".join(map(str, sorted(counts)))
    lines += [
        "",
        f"Success (95 % Wilson interval), difference to base in points [95 % paired bootstrap]; n = {n} a cell.",
    ]
    return "\n".join(lines)


def figure() -> Any:
    """Success by task and arm with Wilson intervals."""
    import plotly.graph_objects as go

    colours = {"base": "#8a8f98", "aligned": "#0072b2", "random-k": "#e69f00", "lora": "#009e73"}
    symbols = {"base": "circle-open", "aligned": "circle", "random-k": "diamond", "lora": "square"}
    drawn = go.Figure()
    for place, arm in enumerate(ARMS):
        rows = [(task, r) for task, a, r in results() if a == arm]
        shift = (place - (len(ARMS) - 1) / 2) * 0.18
        rates = [100 * r["success_rate"] for _, r in rows]
        drawn.add_scatter(
            x=[TARGETS.index(task) + shift for task, _ in rows],
            y=rates,
            error_y={
                "array": [100 * r["wilson"][1] - y for (_, r), y in zip(rows, rates, strict=True)],
                "arrayminus": [y - 100 * r["wilson"][0] for (_, r), y in zip(rows, rates, strict=True)],
                "thickness": 1.6,
                "width": 4,
            },
            mode="markers",
            marker={"size": 11, "color": colours[arm], "symbol": symbols[arm]},
            name=arm,
        )
    n = sorted({r["n"] for *_, r in results()})
    drawn.update_layout(
        template="plotly_white",
        width=980,
        height=420,
        margin={"l": 60, "r": 20, "t": 56, "b": 50},
        title={
            "text": f"Closed-loop success, 95 % Wilson intervals, n = {n[0] if n else 0} paired rollouts a point"
        },
        font={"size": 14},
        xaxis={
            "tickvals": list(range(len(TARGETS))),
            "ticktext": list(TARGETS),
            "range": [-0.5, len(TARGETS) - 0.5],
        },
        yaxis={"title": {"text": "success (%)"}, "range": [0, 102], "zeroline": False},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.0, "yanchor": "bottom"},
    )
    return drawn


def report() -> None:
    """Put the table between README's markers and draw the figure with the machine's Chromium."""
    readme = ROOT / "README.md"
    start, end = "<!-- adaptation -->", "<!-- /adaptation -->"
    text = readme.read_text()
    head, _, rest = text.partition(start)
    _, _, tail = rest.partition(end)
    readme.write_text(f"{head}{start}\n{table()}\n{end}{tail}")
    (ROOT / "docs").mkdir(exist_ok=True)
    figure().write_image(ROOT / "docs/adaptation.svg")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/adaptation"), help="runs, demonstrations, weights"
    )
    parser.add_argument("--tasks", nargs="+", default=list(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.report:
        report()
        return
    for task in arguments.tasks:
        run, demos = prepare(task, arguments.work)
        for arm in ARMS:
            result = evaluate_arm(run, demos, task, arm, arguments.seed)
            rate = result.success_rate
            line = {"task": task, "arm": arm, "success": rate.value, "low": rate.low, "high": rate.high}
            print(json.dumps(line), flush=True)
            (RESULTS / task).mkdir(parents=True, exist_ok=True)
            shutil.copy(run.path / "results" / f"{arm}.json", RESULTS / task / f"{arm}.json")


if __name__ == "__main__":
    main()
