"""What the difference of two arms depends on: the length of training, the number of demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steering.reproduce.contrast import contrast, points
from steering.reproduce.plan import ADAPTING, FULL, Arm
from steering.reproduce.published import MARGIN
from steering.reproduce.words import of
from steering.results import Entry


def how_long(entries: Sequence[Entry]) -> list[str]:
    """Lengths of training at which the chosen heads and LoRA were shown to differ."""
    lengths = {arm.steps for arm in FULL.study("steps").arms}
    variants = {steps or FULL.steps: {"steps": steps} for steps in lengths}
    return _differs(entries, "lora", variants, "the steps of training")


def how_many(entries: Sequence[Entry]) -> list[str]:
    """Numbers of demonstrations from which the chosen heads were shown to differ from random ones, and from LoRA."""
    sizes = {arm.demos for arm in FULL.study("demos").arms}
    variants = {demos or FULL.demos: {"demos": demos} for demos in sizes}
    return [
        said
        for other in ("random-k", "lora")
        for said in _differs(entries, other, variants, "the number of demonstrations")
    ]


def _differs(
    entries: Sequence[Entry], other: str, variants: Mapping[int, Mapping[str, Any]], unit: str
) -> list[str]:
    """For which variants of two arms `aligned` was shown to be better or worse than the other, and for which not."""
    apart, alike = [], []
    for size, changes in sorted(variants.items()):
        ours, theirs = (Arm(arm, **changes).name for arm in ("aligned", other))
        made = contrast(entries, ours, theirs, tasks=ADAPTING)
        if made is None:
            continue
        if made.finding(MARGIN) not in ("better", "worse"):
            alike.append(str(size))
            continue
        own = [
            f"`{name}` {points(c.difference)}"
            for name, arm in (("aligned", ours), (other, theirs))
            if (c := contrast(entries, arm, "base", tasks=ADAPTING))
        ]
        apart.append(f"at {size} {of(made)}, against the base {' and '.join(own)}")
    if not apart or len(apart) + len(alike) < 2:
        return []
    rest = f"; not shown to differ at {', '.join(alike)}" if alike else ""
    return [f"How `aligned` minus `{other}` depends on {unit}: {'; '.join(apart)}{rest}."]
