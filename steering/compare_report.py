"""A comparison for readers: Markdown for a README or a pull request, HTML to open, JSON for programs.

All of them show the same tables, made once here. The HTML page holds its script, figures and numbers in one file: it
opens offline, follows the reader's light or dark setting, and its figures export as SVG. Rates are percent with a 95 %
interval in parentheses, differences are percentage points with theirs in brackets.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from interp.errors import unknown
from interp.runs import write_atomic
from steering import compare_figures
from steering.cells import Cell, Mean
from steering.compare import TRIALS, Arm, Comparison
from steering.results import IN_DOMAIN
from steering.stats import Interval

FORMATS = ("md", "json", "html")


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def write(comparison: Comparison, directory: str | Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """`compare.md`, `compare.json` and `compare.html` in a directory, each whole or not at all."""
    written = []
    for name in formats:
        path = Path(directory) / f"compare.{name}"
        write_atomic(path, render(comparison, name).encode())
        written.append(path)
    return written


def render(comparison: Comparison, name: str) -> str:
    renderers = {"md": markdown, "html": page, "json": _json}
    if name not in renderers:
        raise unknown("format", name, FORMATS)
    return renderers[name](comparison)


def markdown(comparison: Comparison) -> str:
    parts = ["\n".join(f"- {line}" for line in reading(comparison))]
    parts += [f"## {table.title}\n\n{markdown_table(table)}" for table in tables(comparison)]
    if comparison.notes:
        parts.append("## Notes\n\n" + "\n".join(f"- {note}" for note in comparison.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(table: Table) -> str:
    lines = [f"| {' | '.join(table.header)} |", "|---" * len(table.header) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in table.rows]
    return "\n".join([*lines, *(("", table.note) if table.note else ())])


# ---- what is said


def tables(comparison: Comparison) -> list[Table]:
    made = [arms_table(comparison), tasks_table(comparison)]
    if comparison.suites:
        made.append(suites_table(comparison))
    made += [parameters_table(comparison), failures_table(comparison)]
    return [table for table in made if table.rows]


def reading(comparison: Comparison) -> list[str]:
    """The comparison in plain words, one line an arm. A difference counts if its interval excludes zero."""
    said = []
    for arm in comparison.arms:
        mean = arm.success
        if mean is None or mean.difference is None:
            continue
        line = f"**{arm.arm}** against {comparison.against}: {_verdict(mean.difference)}"
        if len(comparison.tasks) > 1:
            line += f", mean of {arm.tasks} tasks"
        kept = arm.trials.get("pretraining")
        if kept and kept.difference:
            line += f"; {_verdict(kept.difference)} on the pretraining tasks"
        runs = "one training run" if arm.runs == 1 else f"up to {arm.runs} training runs"
        said.append(f"{line} ({runs})." if arm.trained[1] else f"{line}.")
    return said


def arms_table(comparison: Comparison) -> Table:
    """One row an arm: all that it wins, costs and loses."""
    trials = [t for t in TRIALS if any(t in arm.trials for arm in comparison.arms)]
    paired = any(arm.success and arm.success.difference for arm in comparison.arms)
    against = [f"against {comparison.against}"] if paired else []
    header = ["arm", "success", *against, *map(_trial_words, trials), "trained", "training", "memory"]
    rows = []
    for arm in comparison.arms:
        row = [arm.arm, rate(arm.success.success) if arm.success else ""]
        if arm.success and 0 < arm.tasks < len(comparison.tasks):
            row[1] += f" of {arm.tasks} tasks"
        if paired:
            row.append(points(arm.success.difference) if arm.success else "")
        row += [rate_and_points(arm.trials.get(trial)) for trial in trials]
        rows.append((*row, _count(arm.trained), _seconds(arm), _memory(arm)))
    n = sorted({cell.n for cell in comparison.cells if cell.suite == IN_DOMAIN})
    tasks = f"mean of {len(comparison.tasks)} tasks" if len(comparison.tasks) > 1 else comparison.tasks[0]
    counts = f", n = {ends(n)} each" if n else ""
    note = (
        f"Success in closed loop, {tasks}{counts}: percent (95 % interval), points [95 % paired bootstrap]."
    )
    return Table("Arms", tuple(header), tuple(rows), note)


def tasks_table(comparison: Comparison) -> Table:
    """Success by task and arm, with the mean and what was trained: the table of a README."""
    arms = [arm for arm in comparison.arms if arm.success]
    rows: list[tuple[str, ...]] = []
    for task in comparison.tasks:
        cells = [comparison.cell(arm.arm, task) for arm in arms]
        if any(cells):
            rows.append((task, *map(rate_and_points, cells)))
    if len(rows) > 1:
        rows.append(("mean", *(_mean_of_all(arm, len(rows)) for arm in arms)))
    if rows:
        rows.append(("trained parameters", *(_count(arm.trained) for arm in arms)))
    n = sorted({cell.n for cell in comparison.cells if cell.suite == IN_DOMAIN})
    against = (
        f"difference to {comparison.against} in points [95 % paired bootstrap]; "
        if comparison.against
        else ""
    )
    note = f"Success (95 % Wilson interval; mean: bootstrap), {against}n = {ends(n)} a cell."
    return Table("Tasks", ("task", *(arm.arm for arm in arms)), tuple(rows), note)


def suites_table(comparison: Comparison) -> Table:
    """Success by suite and arm, the mean of the tasks where there are several."""
    trials = {cell.suite: cell.trial or "" for cell in comparison.cells}
    rows = [
        (suite, trials[suite], *(rate_and_points(arm.suites.get(suite)) for arm in comparison.arms))
        for suite in comparison.suites
    ]
    header = ("suite", "of", *(arm.arm for arm in comparison.arms))
    mean = f", mean of {len(comparison.tasks)} tasks" if len(comparison.tasks) > 1 else ""
    note = (
        f"Success under each suite{mean}, on the same seeds; steering/suites.py says what each one changes."
    )
    return Table("Suites", header, tuple(rows), note)


def parameters_table(comparison: Comparison) -> Table:
    """Trainable parameters by group."""
    groups = dict.fromkeys(group for arm in comparison.arms for group in arm.parameters)
    arms = [arm for arm in comparison.arms if arm.parameters]
    rows = [(g, *(_count(arm.parameters[g]) if g in arm.parameters else "" for arm in arms)) for g in groups]
    if len(rows) > 1:
        rows.append(("all", *(_count(arm.trained) for arm in arms)))
    return Table("Trainable parameters", ("group", *(arm.arm for arm in arms)), tuple(rows))


def failures_table(comparison: Comparison) -> Table:
    """Why in-domain episodes failed, over all tasks, most frequent first."""
    counts: dict[str, dict[str, int]] = {}
    for cell in comparison.cells:
        if cell.suite == IN_DOMAIN:
            for reason, count in cell.failures.items():
                ours = counts.setdefault(reason, {})
                ours[cell.arm] = ours.get(cell.arm, 0) + count
    arms = [arm.arm for arm in comparison.arms if arm.success]
    order = sorted(counts, key=lambda reason: -sum(counts[reason].values()))
    rows = [(reason, *(str(counts[reason].get(arm, 0)) for arm in arms)) for reason in order]
    return Table(
        "Reasons of failure, in-domain", ("reason", *arms), tuple(rows), "Episodes of all tasks and runs."
    )


# ---- words and numbers


def _verdict(difference: Interval) -> str:
    sure = "" if difference.low > 0 or difference.high < 0 else ", not distinguishable from none"
    low, high = (signed(bound, lines=(0,)) for bound in (difference.low, difference.high))
    return f"{signed(difference.value)} points ({low} to {high}{sure})"


def _trial_words(trial: str) -> str:
    return {"unseen": "unseen task", "pretraining": "pretraining tasks"}.get(trial, f"{trial} suites")


def rate(interval: Interval) -> str:
    return f"{interval.value:.0%} ({interval.low:.0%} to {interval.high:.0%})"


def points(difference: Interval | None, lines: Sequence[float] = (0,)) -> str:
    """`+12 [+9, +15]`; bounds show on which side of the lines they are."""
    if difference is None:
        return ""
    low, high = (signed(bound, lines) for bound in (difference.low, difference.high))
    return f"{signed(difference.value)} [{low}, {high}]"


def signed(fraction: float, lines: Sequence[float] = ()) -> str:
    """A difference in whole points, with more digits where rounding would put it on a line, and zero without a sign.

    Lines are fractions, as the difference is: whoever reads `+7` cannot know that a rule on 7 points took 6.8.
    """
    exact = round(100 * fraction, 6)  # a bootstrap's noise of 1e-17 is no loss
    known = [round(100 * line, 6) for line in lines]
    digits = next(d for d in range(7) if round(exact, d) not in known or exact in known)
    rounded = round(exact, digits)
    return f"{rounded:+.{digits}f}" if rounded else "0"


def rate_and_points(found: Cell | Mean | None) -> str:
    if found is None:
        return ""
    return ", ".join(filter(None, (rate(found.success), points(found.difference))))


def _mean_of_all(arm: Arm, tasks: int) -> str:
    """A mean over fewer tasks than the others have would mislead beside theirs."""
    return rate_and_points(arm.success) if arm.tasks == tasks else ""


def _count(counts: tuple[int, int]) -> str:
    return " to ".join(f"{n:,}" for n in dict.fromkeys(counts))


def _seconds(arm: Arm) -> str:
    return f"{ends([round(s) for s in arm.train_seconds])} s" if arm.train_seconds else ""


def _memory(arm: Arm) -> str:
    return f"{arm.peak_memory_mb:,.0f} MB" if arm.peak_memory_mb else ""


def ends(values: Sequence[int]) -> str:
    """`25 to 100`, or `100` where the first and the last are the same; the values come sorted."""
    return " to ".join(str(v) for v in dict.fromkeys((values[0], values[-1]))) if values else "0"


def _json(comparison: Comparison) -> str:
    return json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n"


# ---- HTML


def page(comparison: Comparison) -> str:
    """One self-contained page."""
    from plotly.offline import get_plotlyjs  # 5 MB of script, only wanted here

    figures = {scheme: compare_figures.figures(comparison, scheme) for scheme in compare_figures.SCHEMES}
    drawn = "".join(
        f'<figure><h2>{html.escape(title)}</h2><div id="figure{i}" class="plot"></div>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for i, (title, caption, _) in enumerate(figures["light"])
    )
    data = {scheme: [figure for *_, figure in made] for scheme, made in figures.items()}
    several = len(comparison.tasks) > 1
    lines = "".join(f"<li>{_emphasised(line)}</li>" for line in reading(comparison))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes)
    return _PAGE.format(
        style=_STYLE + "".join(compare_figures.css(scheme) for scheme in compare_figures.SCHEMES),
        title=html.escape(f"{len(comparison.arms)} arms, {len(comparison.tasks)} task{'s' * several}"),
        tasks=html.escape(", ".join(comparison.tasks)),
        reading=f"<ul>{lines}</ul>" if lines else "",
        figures=drawn,
        arms=_html_table(arms_table(comparison)),
        tables="".join(map(_html_table, tables(comparison)[1:])),
        notes=f"<section><h2>Notes</h2><ul>{notes}</ul></section>" if notes else "",
        plotly=get_plotlyjs(),
        data=json.dumps(data, allow_nan=False).replace("</", "<\\/"),
    )


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.header)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    note = f"<p>{html.escape(table.note)}</p>" if table.note else ""
    return (
        f"<section><h2>{html.escape(table.title)}</h2>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(table.title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}</section>"
    )


def _emphasised(line: str) -> str:
    start, bold, *rest = html.escape(line).split("**")
    return f"{start}<b>{bold}</b>{''.join(rest)}"


_STYLE = """
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:24px 20px 60px}header{display:flex;gap:16px;align-items:baseline}
h1{font-size:22px;margin:0;flex:1}h2{font-size:16px;margin:0 0 8px}ul{padding-left:20px}
section,figure{background:var(--surface);border:1px solid var(--line);border-radius:8px;padding:16px;margin:16px 0}
figcaption,section p{color:var(--muted);font-size:13px;margin:8px 0 0}.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:5px 14px 5px 0;text-align:left;border-bottom:1px solid var(--line)}thead th{color:var(--muted)}
tbody th{font-weight:600}button{font:inherit;color:var(--text);background:var(--surface);border:1px solid var(--line);
border-radius:6px;padding:4px 12px;cursor:pointer}
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Comparison: {title}</title><style>{style}</style></head>
<body><main><header><h1>{title}</h1><button id="scheme" type="button">Light or dark</button></header>
<p>{tasks}</p>{reading}{arms}{figures}{tables}{notes}</main>
<script>{plotly}</script>
<script>
const FIGURES = {data};
const wide = matchMedia("(prefers-color-scheme: dark)");
let scheme = wide.matches ? "dark" : "light";
function draw() {{
  document.documentElement.dataset.scheme = scheme;
  const image = {{format: "svg", filename: "comparison"}};
  FIGURES[scheme].forEach((f, i) => Plotly.react("figure" + i, f.data, f.layout,
    {{responsive: true, displaylogo: false, showSendToCloud: false, toImageButtonOptions: image}}));
}}
function change(to) {{ scheme = to; draw(); }}
wide.addEventListener("change", e => change(e.matches ? "dark" : "light"));
document.getElementById("scheme").addEventListener("click", () => change(scheme === "dark" ? "light" : "dark"));
draw();
</script></body></html>
"""
