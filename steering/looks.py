"""How the arms of a comparison look: the same arm the same, on the screen and on paper.

An arm has a colour *and* a mark, so that nobody has to tell colours apart. Colours start from Okabe and Ito's. Those
for light grounds have a contrast of at least 3:1 to white, those for dark ones to the dashboard's cards (WCAG 1.4.11).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import cycle


@dataclass(frozen=True)
class Look:
    """Colours on light and on dark grounds; the mark in matplotlib's letters and in Plotly's words."""

    light: str
    dark: str
    marker: str
    symbol: str


LOOKS: Mapping[str, Look] = {
    "base": Look("#6b7785", "#a9b6c4", "o", "circle-open"),
    "aligned": Look("#0072b2", "#56b4e9", "o", "circle"),
    "paper": Look("#c47a00", "#f0b429", "D", "diamond"),
    "all-heads": Look("#009e73", "#3fcf9f", "s", "square"),
    "lora": Look("#d55e00", "#ff8a5c", "^", "triangle-up"),
    "full": Look("#cc79a7", "#e59ec4", "P", "cross"),
    "ffn-only": Look("#2590c4", "#b9c7ff", "*", "star"),
    "random-k": Look("#8a7a00", "#f0e442", "X", "x"),
    "bottom-k": Look("#18222d", "#e4eaf0", "h", "hexagon"),
    "generic-k": Look("#7b4fa3", "#c79be0", "p", "pentagon"),
    "retain": Look("#8c4a2f", "#d39a7f", "v", "triangle-down"),
    "aligned-both": Look("#1f3fff", "#8a9bff", "s", "square-open"),
    "aligned-vlm": Look("#4a87c4", "#9cc7ee", "<", "triangle-left"),
    "random-k-both": Look("#a08a00", "#d3c95a", "s", "bowtie"),
    "random-k-vlm": Look("#a08a00", "#d3c95a", ">", "triangle-right"),
    "lora-all-linear": Look("#8f3300", "#e0703a", "d", "diamond-tall"),
}


def looks(arms: Iterable[str]) -> dict[str, Look]:
    """A look of its own for every arm: those of `LOOKS` have theirs, others by name what is left, never the base's.

    There are a few hundred; whoever compares more arms than that sees one twice.
    """
    arms = sorted(set(arms))
    found = {arm: LOOKS[arm] for arm in arms if arm in LOOKS}
    taken = {(look.light, look.symbol) for look in (*found.values(), LOOKS["base"])}
    others = {(look.light, look.symbol): look for look in _others()}
    spare = cycle([look for pair, look in others.items() if pair not in taken])
    return found | {arm: next(spare) for arm in arms if arm not in found}


def _others() -> Iterator[Look]:
    """All looks of the table, then its colours with the marks of others."""
    known = list(LOOKS.values())
    for shift in range(len(known)):
        for i, look in enumerate(known):
            mark = known[(i + shift) % len(known)]
            yield replace(look, marker=mark.marker, symbol=mark.symbol)
