"""Sets of heads: worked out (best k, two sets combined), and on disk as heads files that `robosteer finetune` takes.

A file is written whole or not at all, under a checked name, and never over a set that the person has not seen: two
windows, or the command line, may be saving too.

Files named `link-<digest>` are written by the dashboard itself: an address cannot carry a long selection, so it carries
the name of one. The digest is of the heads, so a name always means the same set.

What chose the heads is written into the file. The browser keeps the latest sets that were proposed to it (`origins`, as
in a heads file); a selection that is one of them was chosen by its method, any other by hand.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace as changed
from hashlib import blake2b
from pathlib import Path
from typing import Any

from interp.errors import UsageError, unknown
from interp.heads import Head
from interp.runs import Run, check_name, read_json
from interp.scores import HeadScores
from steering.headset import HeadSet, parse_heads

LINK = "link-"
CURRENT = ":selection"
BY_HAND = "chosen by hand"
OPERATIONS = {"unite": "∪ unite", "intersect": "∩ intersect", "subtract": "− subtract"}
LARGEST = 2_000_000  # bytes of a heads file that is read from outside


Record = Mapping[str, Any]
"""A heads file's JSON."""


def best(scores: HeadScores, k: int, tower: str | None = None) -> HeadSet:
    """The k best heads of a tower, or of all towers together, best first; fewer if there are fewer."""
    towers = list(scores.towers) if tower is None else [tower]
    sign = -1 if scores.higher_is_better else 1
    ranked = [head for name in towers for head in scores.ranked(name)]
    if not ranked:
        raise UsageError(
            f"{scores.label} has no score for any head of {' or '.join(towers)}: choose by others"
        )
    heads = sorted(ranked, key=lambda h: (sign * scores.score(h), h))[: max(1, k)]
    return HeadSet(
        tuple(heads),
        policy=scores.policy,
        method=scores.method,
        factor=scores.factor,
        data=scores.data,
        scores=tuple(map(scores.score, heads)),
    )


def combine(a: Sequence[str], operation: str, b: Sequence[str]) -> list[str]:
    """`a` united with, intersected with, or without `b`, in order."""
    ours, theirs = set(a), set(b)
    made = {"unite": ours | theirs, "intersect": ours & theirs, "subtract": ours - theirs}
    if operation not in made:
        raise unknown("operation on sets", operation, made)
    return [str(head) for head in sorted(Head.parse(text) for text in made[operation])]


def head_set(run: Run, chosen: Sequence[str], origins: Sequence[Record] = ()) -> HeadSet:
    """The chosen heads as the latest origin that is exactly these heads has them (method, order, scores); else in
    order of layers, chosen by hand."""
    if not chosen:
        raise UsageError("no heads selected: click some, or take the best k")
    heads = {Head.parse(text) for text in chosen}
    known = (parse_heads(record, source="what chose the heads") for record in origins)
    same = (made for made in known if made.policy == run.policy and set(made.heads) == heads)
    by_hand = HeadSet(tuple(sorted(heads)), policy=run.policy, method=BY_HAND, data=run.data)
    made = next(same, by_hand)
    made.check(run.spec, run.policy, source="the selection")
    return made


def heads_file(run: Run, chosen: Sequence[str], origins: Sequence[Record] = ()) -> str:
    """The content of a heads file."""
    return json.dumps(head_set(run, chosen, origins).to_json(), indent=1) + "\n"


def read_upload(run: Run, content: str, name: str, tower: str) -> HeadSet:
    """The set in a file that a person opened: `content` is a data URL. Bare pairs are of `tower`."""
    if len(content) > LARGEST * 4 / 3:
        raise UsageError(f"{name} is larger than {LARGEST // 10**6} MB: that is no heads file")
    try:
        record = json.loads(base64.b64decode(content.partition(",")[2], validate=True))
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"{name} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise UsageError(f"{name} must hold a JSON object")
    heads = parse_heads(record, tower=tower, source=name)
    heads.check(run.spec, run.policy, source=name)
    return changed(heads, policy=run.policy)


def save(
    run: Run,
    name: str,
    chosen: Sequence[str],
    origins: Sequence[Record] = (),
    replace: Collection[str] = (),
) -> Path:
    """Write selections/<name>.json. An existing set is replaced only if its name is in `replace`."""
    if not name:
        raise UsageError("give the set a name, then save")
    check_name(name, "name of the set")
    if name.startswith(LINK):
        raise UsageError(f"name of the set {name!r}: names that start with {LINK} are the addresses' own")
    if name in run.selections and name not in replace:
        raise UsageError(
            f"a set {name} was saved meanwhile: choose another name, or reload the page to replace it"
        )
    return run.save_selection(name, head_set(run, chosen, origins).to_json())


def linked(run: Run, chosen: Sequence[str], origins: Sequence[Record] = ()) -> str:
    """The name under which an address can ask for this set: of a saved set with these heads, else of a new file."""
    heads = sorted({Head.parse(text) for text in chosen})
    for name, members in saved_sets(run)[0].items():
        if sorted(map(Head.parse, members)) == heads:
            return name
    written = [str(head) for head in heads]
    name = LINK + blake2b(",".join(written).encode(), digest_size=5).hexdigest()
    if name not in run.selections:
        run.save_selection(name, head_set(run, written, origins).to_json())
    return name


def saved_sets(run: Run) -> tuple[dict[str, list[str]], list[str]]:
    """Saved sets of this run's policy by name, as written heads; and a line for each file that cannot be used."""
    sets, problems = saved(run)
    return {name: [str(head) for head in made.heads] for name, made in sets.items()}, problems


def saved(run: Run) -> tuple[dict[str, HeadSet], list[str]]:
    """The same with all that the files say."""
    sets, problems = {}, []
    for name, path in run.selections.items():
        if name.startswith(LINK):
            continue
        try:
            heads = parse_heads(read_json(path), source=f"heads file {path}")
            heads.check(run.spec, run.policy, source=f"heads file {path}")
        except (UsageError, OSError) as error:
            problems.append(str(error))
        else:
            sets[name] = changed(heads, policy=run.policy)
    return sets, problems


def members(sets: Mapping[str, Sequence[str]], name: str | None, current: Sequence[str]) -> Sequence[str]:
    """Heads of a saved set, or of the current selection, whose name (":selection") no saved set can have."""
    if name in (None, CURRENT):
        return current
    if name not in sets:
        raise unknown("saved set", name, sets)
    return sets[name]
