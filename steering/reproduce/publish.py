"""The report on disk, and the part of a README that follows from the same records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from interp.errors import UsageError
from interp.runs import write_atomic
from steering.compare import compare_entries
from steering.reproduce.plan import BOTH, LORA_EVERYWHERE, Plan
from steering.reproduce.records import read_records
from steering.reproduce.report import readme_table, report
from steering.results import IN_DOMAIN, Entry

START, END = "<!-- adaptation -->", "<!-- /adaptation -->"
FIGURE = "docs/adaptation.svg"
"""Beside the README."""
SHOWN = ("base", "aligned", "random-k", "lora", BOTH.name, LORA_EVERYWHERE.name, "paper", "full")
"""Arms of the README's figure: all of them, in notebook 3, are more than one glance takes."""


def publish(plan: Plan, results: Path, out: Path, readme: Path | None = None) -> list[Path]:
    """Write the report of the records in `results`, and renew the README's table and figure if there is one."""
    entries = read_records(results)
    files = {out: report(plan, entries, results).encode()}
    if readme is not None:
        files[readme] = renew(readme, readme_table(entries, results)).encode()
        if main := [e for e in entries if e.arm in SHOWN and e.result.suite == IN_DOMAIN]:
            files[readme.parent / FIGURE] = _figure(main)
    for path, content in files.items():
        write_atomic(path, content)
    return list(files)


def _figure(entries: Sequence[Entry]) -> bytes:
    try:
        from steering.reproduce.figures import by_task, style, svg  # nothing else here needs matplotlib
    except ImportError as error:
        raise UsageError(
            f"the figure cannot be drawn ({error}): pip install matplotlib, or leave --readme out"
        ) from error
    with style():
        return svg(by_task(compare_entries(entries)))


def renew(readme: Path, table: str) -> str:
    """The README's text with the table between its marks."""
    text = readme.read_text() if readme.is_file() else ""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise UsageError(
            f"{readme} needs the marks {START} and {END}, once each: the table goes between them"
        )
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n{table}\n{END}{tail}"
