"""A recipe applied to a policy, and what the functions that apply one share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from interp.errors import UsageError
from interp.policies import Policy
from interp.scores import HeadScores
from steering.headset import HeadSet
from steering.recipe import Recipe


@dataclass(frozen=True)
class Adaptation:
    """A recipe applied to a policy. What trains is what requires gradients in `policy.module`.

    `merge` folds it into plain weights, after which the policy is an ordinary one; `remove` takes it off and
    leaves the policy as it was (for `full`, which trains the weights themselves, there is nothing to take
    off). `notes` say what of the request was left out, and why. `changes`: (weight, what merging adds to it, of the
    same shape) of everything that trains beside a weight instead of in it.
    """

    groups: Mapping[str, int]
    heads: HeadSet | None
    merge: Callable[[], None]
    remove: Callable[[], None]
    notes: tuple[str, ...] = ()
    changes: Callable[[], Iterable[tuple[Tensor, Tensor]]] = tuple

    def __str__(self) -> str:
        total = sum(self.groups.values())
        width = max(len(f"{n:,}") for n in (total, *self.groups.values()))
        lines = [f"{n:>{width},}  {group}" for group, n in self.groups.items()]
        return "\n".join(["trainable parameters", *lines, f"{total:>{width},}  total", *self.notes])


@dataclass(frozen=True)
class Given:
    """What a function that applies a recipe may draw on. `others`: scores from other tasks; `data`: the
    demonstrations that will be trained on, by fingerprint, if they are known."""

    policy: Policy
    recipe: Recipe
    heads: HeadSet | None
    scores: HeadScores | None
    others: Sequence[HeadScores]
    seed: int
    data: str | None = None

    def head_set(self) -> HeadSet:
        if self.heads is None:
            raise UsageError(
                f"recipe {self.recipe.name} needs a head set: choose heads first (`robosteer select`)"
            )
        return self.heads

    def heads_per_tower(self) -> dict[str, int]:
        heads = self.head_set()
        return {tower: sum(head.tower == tower for head in heads.heads) for tower in heads.towers}


def joined(parts: Iterable[Adaptation]) -> Adaptation:
    """Several adaptations of one policy as one; they come off in the reverse order."""
    parts = tuple(parts)

    def merge() -> None:
        for part in reversed(parts):
            part.merge()

    def remove() -> None:
        for part in reversed(parts):
            part.remove()

    def changes() -> Iterable[tuple[Tensor, Tensor]]:
        return (change for part in parts for change in part.changes())

    groups = {group: n for part in parts for group, n in part.groups.items()}
    heads = next((part.heads for part in parts if part.heads is not None), None)
    notes = tuple(note for part in parts for note in part.notes)
    return Adaptation(groups, heads, merge, remove, notes, changes)


def trainable(policy: Policy) -> dict[str, nn.Parameter]:
    """What trains, by name, in the module's own order."""
    return {name: p for name, p in policy.module.named_parameters() if p.requires_grad}
