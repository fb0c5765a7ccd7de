"""The scores in plain words: which heads lead, by how much, and how sure that is.

Every statement is computed from the intervals and the null of `HeadScores`, by these rules:

- a head *beats chance* if its whole 95 % interval lies beyond the central 95 % of the null;
- the *leader* is alone if no other interval overlaps its own, else it is in a tie with those that do;
- with thousands of comparisons some head is always lucky: where the null knows its luckiest head (`null.best`), the
  leader is held against that too.

Text is written with **bold** marks; `widgets.prose` turns them into components. Pure: no Dash here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.views import Panel, View, short
from interp.heads import Head
from interp.runs import Run
from interp.scores import HeadScores

UNKNOWN = "What chance gives was not computed."
NAMED = 5  # heads of a tie that are named before "and n more"


def facts(run: Run, scores: HeadScores | None = None) -> list[str]:
    """Policy and n, one short string each. Without scores, n is that of the run's demonstrations."""
    source = str(run.info["policy"].get("source", "")).rstrip("/")
    out = (
        [f"policy {source.rsplit('/', 1)[-1]}", f"fingerprint {run.policy}"]
        if source
        else [f"policy {run.policy}"]
    )
    n = dict(scores.n) if scores else _counts(run.info["data"])
    if n:
        out.append(", ".join(f"{count:,} {name}" for name, count in n.items()))
    if scores:
        out.append(f"scored {scores.created[:10]}")
    return out


def title(run: Run) -> str:
    """What the demonstrations are about: their task, or their instruction, or else the run's name."""
    data = run.info["data"]
    if isinstance(data.get("task"), str):
        return str(data["task"])
    instructions = data.get("tasks") or []
    if not instructions:
        return run.name
    return f"“{instructions[0]}”" + (f" and {len(instructions) - 1} more" if len(instructions) > 1 else "")


def paragraphs(view: View) -> list[str]:
    """The reading of a view: what was measured, one sentence or two a panel, and what the panels say together."""
    together = {"factor": _profiles, "method": _agreed, "tower": lambda view: []}[view.by]
    intervals = any(panel.grid.low is not None for panel in view.scored)
    unknown = intervals and all(
        panel.beats_chance is None for panel in view.scored
    )  # said once, not by every panel
    return [
        _measured(view) + (f" {UNKNOWN}" if unknown else ""),
        *(_panel(panel, named=len(view.panels) > 1, chance=not unknown) for panel in view.panels),
        *together(view),
    ]


def caption(panel: Panel) -> str:
    """The line beside a map's title."""
    layers, heads = panel.value.shape
    parts = [f"{layers} × {heads}"] + (["no head has a score"] if not panel.scored else [])
    beats = panel.beats_chance
    if panel.null is not None and panel.scored:
        parts.append(f"chance {short(panel.null.mean)}")
    if beats is not None and panel.scored:
        parts.append(f"{int(beats.sum())} of {panel.scored} beat it")
    return " · ".join(parts)


def _measured(view: View) -> str:
    scores = view.scores
    panels = list(view.panels) if view.by == "tower" else [view.lead(None)]
    towers = _listed([f"{p.scored} {p.tower}" for p in panels])
    dead = sum(len(p.grid.dead) for p in panels)
    left_out = (
        f" {_count(dead, 'head is', 'heads are')} dead (no path to the action) and left out." if dead else ""
    )
    if view.by == "method":
        return f"**{len(view.panels)} methods** over {towers} heads, each by its own measure.{left_out}"
    factors = f", once for each factor ({_listed(view.keys)})" if view.keys else ""
    return f"**{scores.label}** over {towers} heads{factors}; {view.direction}.{left_out}"


def _panel(panel: Panel, named: bool, chance: bool) -> str:
    leaders = panel.leaders
    start = f"**{panel.key[:1].upper()}{panel.key[1:]}:** " if named else ""
    if note := panel.scores.settings.get("note"):
        start += f"{str(note)[:1].upper()}{str(note)[1:]}. "
    if not leaders:
        return f"{start}No head has a score."
    first = leaders[0]
    at = first.layer, first.index
    score = short(float(panel.value[at]))
    if panel.grid.low is None or panel.grid.high is None:
        tie = _tie(leaders) if len(leaders) > 1 else ""
        return (
            f"{start}**{_name(first)}** leads with {score}{tie}. "
            "No intervals were computed: its lead is not tested."
        )
    interval = f"95 % {short(float(panel.grid.low[at]))} to {short(float(panel.grid.high[at]))}"
    against = f" {_chance(panel, first)}" if chance else ""
    return f"{start}**{_name(first)}** leads with {score} ({interval}){_tie(leaders)}.{against}"


def _tie(leaders: Sequence[Head]) -> str:
    others = leaders[1:]
    if not others:
        return ", ahead of every other head by more than the intervals"
    if len(others) <= NAMED:
        return f", in a tie with {_listed([_name(h) for h in others])}"
    return f", in a tie with {_listed([*(_name(h) for h in others[:3]), f'{len(others) - 3} more'])}"


def _chance(panel: Panel, first: Head) -> str:
    beats, null = panel.beats_chance, panel.null
    if beats is None or null is None:
        return UNKNOWN
    n = int(beats.sum())
    if n == 0:
        return f"No head beats chance ({short(null.mean)}): do not choose by these scores."
    out = f"{n} of {panel.scored} heads beat chance ({short(null.mean)})"
    value = float(panel.value[first.layer, first.index])
    lucky = null.best is not None and not (
        value > null.best if panel.scores.higher_is_better else value < null.best
    )
    return out + (", but the luckiest head of chance would do as well as the leader." if lucky else ".")


def _profiles(view: View) -> list[str]:
    """Which heads carry one factor more than every other, and which lead for several. Only intervals decide; a factor
    without a score does not compete."""
    panels = view.scored
    if len(panels) < 2:
        return []
    owners = {panel.key: specialists(panel, [p for p in panels if p is not panel]) for panel in panels}
    if any(found is None for found in owners.values()):
        return ["Without intervals nobody knows whether a head carries one factor more than another."]
    said = [
        f"{_listed([_name(h) for h in found[:NAMED]])}{f' and {len(found) - NAMED} more' if len(found) > NAMED else ''}"
        f" for {key}"
        for key, found in owners.items()
        if found
    ]
    leads = [(panel.key, {_name(h) for h in panel.leaders}) for panel in panels if _sure(panel)]
    shared = set.intersection(*(heads for _, heads in leads)) if len(leads) > 1 else set()
    out = (
        f"**One factor above the others** (whole interval): {'; '.join(said)}."
        if said
        else "**No head** carries one factor above the others by more than the intervals."
    )
    if shared:
        names = sorted(shared, key=lambda name: [int(n) for n in name[1:].split("H")])[:NAMED]
        out += f" Among the leaders of {_listed([key for key, _ in leads])} alike: {_listed(names)}."
    return [out]


def specialists(panel: Panel, others: Sequence[Panel]) -> list[Head] | None:
    """Heads that beat chance for this factor, with their whole interval above that of every other factor, best first;
    None where an interval is missing. Where chance is unknown, zero effect stands for it."""
    grids = [panel.grid, *(other.grid for other in others)]
    if any(grid.low is None or grid.high is None for grid in grids):
        return None
    better = panel.scores.higher_is_better
    out = []
    for head in panel.scores.ranked(panel.tower):
        at = head.layer, head.index
        bounds = [
            (float(g.low[at]), float(g.high[at])) for g in grids if g.low is not None and g.high is not None
        ]
        (low, high), rest = bounds[0], bounds[1:]
        above = all(low > h for _, h in rest) if better else all(high < x for x, _ in rest)
        beats = panel.beats_chance
        real = bool(beats[at]) if beats is not None else (low > 0 if better else True)
        if above and real:
            out.append(head)
    return out


def _sure(panel: Panel) -> bool:
    """Whether anything beats chance: otherwise its leaders are nobody's choice."""
    beats = panel.beats_chance
    return beats is None or bool(beats.any())


def _agreed(view: View) -> list[str]:
    """What the methods have in common among their best heads."""
    if len(view.scored) < 2:
        return []
    k = min(12, *(panel.scored for panel in view.scored))
    tops = [{_name(h) for h in panel.scores.ranked(panel.tower)[:k]} for panel in view.scored]
    common = sorted(set.intersection(*tops), key=lambda name: [int(n) for n in name[1:].split("H")])
    if not common:
        return [f"**No head** is among the best {k} of every method; the page Methods compares them."]
    named = _listed(common[:NAMED]) + (f" and {len(common) - NAMED} more" if len(common) > NAMED else "")
    verb = "is" if len(common) == 1 else "are"
    return [
        f"**{named}** {verb} among the best {k} of every method; the page Methods compares them with chance."
    ]


def _counts(data: Mapping[str, Any]) -> dict[str, int]:
    """Episodes and frames of demonstrations, from what a run remembers of them."""
    found = {name: data.get(name) for name in ("episodes", "frames")}
    sizes = {name: len(value) if isinstance(value, list) else value for name, value in found.items()}
    return {name: value for name, value in sizes.items() if isinstance(value, int)}


def _name(head: Head) -> str:
    return f"L{head.layer}H{head.index}"


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
