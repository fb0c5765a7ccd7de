"""The report on disk, and the part of a README that follows from the same records."""

from __future__ import annotations

from pathlib import Path

from interp.errors import UsageError
from interp.runs import write_atomic
from steering.compare import compare_entries
from steering.reproduce.claims import MAIN_NAMES
from steering.reproduce.plan import Plan
from steering.reproduce.records import read_records
from steering.reproduce.report import readme_table, report
from steering.results import IN_DOMAIN

START, END = "<!-- adaptation -->", "<!-- /adaptation -->"
FIGURE = "docs/adaptation.svg"
"""Beside the README."""


def publish(plan: Plan, results: Path, out: Path, readme: Path | None = None) -> list[Path]:
    """Write the report of the records in `results`, and renew the README's table and figure if there is one."""
    entries = read_records(results)
    renewed = None if readme is None else renew(readme, readme_table(entries, results))
    write_atomic(out, report(plan, entries, results).encode())
    written = [out]
    if readme is not None and renewed is not None:
        from steering.reproduce.figures import by_task, svg  # matplotlib, only wanted here

        main = [e for e in entries if e.arm in MAIN_NAMES and e.result.suite == IN_DOMAIN]
        write_atomic(readme.parent / FIGURE, svg(by_task(compare_entries(main, against="base"))))
        write_atomic(readme, renewed.encode())
        written += [readme, readme.parent / FIGURE]
    return written


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
