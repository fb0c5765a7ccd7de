"""Selections on disk: a set of heads chosen on the screen, as a heads file that `robosteer finetune` takes.

A file is written whole or not at all, under a checked name, and never over a set that the person has not seen: two
windows, or the command line, may be saving too.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

from interp.errors import UsageError
from interp.heads import Head
from interp.runs import Run, check_name, read_json
from steering.headset import HeadSet, parse_heads


def head_set(run: Run, chosen: Sequence[str], file: str) -> HeadSet:
    """The chosen heads, best first by the scores of `file` (heads that it did not score come last)."""
    if not chosen:
        raise UsageError("no heads selected: click some, or take the best k")
    scores = run.read_scores(file)
    place = {head: i for tower in scores.towers for i, head in enumerate(scores.ranked(tower))}
    heads = sorted(
        (Head.parse(text) for text in chosen), key=lambda h: (h.tower, place.get(h, len(place)), h)
    )
    heads_with_scores = HeadSet(
        tuple(heads),
        policy=run.policy,
        method=scores.method,
        factor=scores.factor,
        data=run.data,
        scores=tuple(scores.score(h) if h in place else None for h in heads),
    )
    heads_with_scores.check(run.spec, run.policy, source="the selection")
    return heads_with_scores


def heads_file(run: Run, chosen: Sequence[str], file: str) -> str:
    """The content of a heads file."""
    return json.dumps(head_set(run, chosen, file).to_json(), indent=1) + "\n"


def save(run: Run, name: str, chosen: Sequence[str], file: str, replace: Collection[str] = ()) -> Path:
    """Write selections/<name>.json. An existing set is replaced only if its name is in `replace`."""
    if not name:
        raise UsageError("give the set a name, then save")
    check_name(name, "name of the set")
    if name in run.selections and name not in replace:
        raise UsageError(
            f"a set {name} was saved meanwhile: choose another name, or reload the page to replace it"
        )
    return run.save_selection(name, head_set(run, chosen, file).to_json())


def saved_sets(run: Run) -> tuple[dict[str, list[str]], list[str]]:
    """Saved sets of this run's policy by name, as written heads; and a line for each file that cannot be used."""
    sets, problems = {}, []
    for name, path in run.selections.items():
        try:
            heads = parse_heads(read_json(path), source=f"heads file {path}")
            heads.check(run.spec, run.policy, source=f"heads file {path}")
        except (UsageError, OSError) as error:
            problems.append(str(error))
        else:
            sets[name] = [str(head) for head in heads.heads]
    return sets, problems
