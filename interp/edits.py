"""Edits: what a sweep replaces, and with what.

Axes: those of protocol.py and sites.py.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.errors import UsageError
from interp.heads import Head
from interp.policies.protocol import Policy
from interp.sites import Tap, site_name, tapped

Values = Mapping[str, Tensor]
"""z by site name, as HookedVLA caches it: [batch, pos, head, d_head], in the expert with a leading axis step, in
vision with an axis camera after batch. A batch axis of 1 stands for all rows."""


@dataclass(frozen=True)
class Edit:
    """Replace z of `heads`, everywhere or only at one token span, one position, one flow step.

    `position` counts in the heads' own tower. `step` is a flow step and exists in the expert alone. No heads: no edit.
    """

    heads: tuple[Head, ...]
    span: str | None = None
    position: int | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        if self.span is not None and self.position is not None:
            raise UsageError(f"an edit is at span {self.span} or at position {self.position}, not at both")
        if self.step is not None and any(head.tower != "expert" for head in self.heads):
            raise UsageError(f"step {self.step}: only the expert runs once a flow step; leave it out")

    def layers(self, tower: str) -> set[int]:
        return {head.layer for head in self.heads if head.tower == tower}


NOTHING = Edit(())


def check_edits(policy: Policy, edits: Sequence[Edit]) -> None:
    """There must be edits, and what they name must exist."""
    if not edits:
        raise UsageError("a sweep needs at least one edit")
    spec = policy.spec
    for edit in edits:
        for head in edit.heads:
            tower = spec.tower(head.tower)
            if not tower.exists(head.layer, head.index):
                spec.check(head)  # says which rule it breaks
            place_of(policy, edit, head.tower)  # raises if the tower has no such span
            last = spec.n_positions(head.tower) - 1
            if edit.position is not None and not 0 <= edit.position <= last:
                raise UsageError(f"position {edit.position}: tower {head.tower} has positions 0-{last}")
        if edit.step is not None and not 0 <= edit.step < spec.flow_steps:
            raise UsageError(f"step {edit.step}: the policy has flow steps 0-{spec.flow_steps - 1}")


def single(
    policy: Policy,
    tower: str,
    span: str | None = None,
    position: int | None = None,
    step: int | None = None,
) -> list[Edit]:
    """One edit for every live head of the tower, at the given place."""
    return [Edit((head,), span, position, step) for head in policy.spec.live_heads([tower])]


def having(
    policy: Policy, towers: Iterable[str], span: str | None, position: int | None, step: int | None
) -> tuple[list[str], dict[str, str]]:
    """Those of the towers in which there is such a place to edit; of the others, why there is not."""
    there, without = [], {}
    for tower in towers:
        try:
            check_edits(policy, single(policy, tower, span, position, step))
            there.append(tower)
        except UsageError as error:
            without[tower] = str(error)
    return there, without


def place_of(policy: Policy, edit: Edit, tower: str) -> tuple[slice, ...]:
    """Index of the axes between batch and head: pos, and in vision camera before it."""
    positions = slice(None)
    if edit.span is not None:
        positions = policy.spec.positions(tower, edit.span)
    elif edit.position is not None:
        positions = slice(edit.position, edit.position + 1)
    if tower != "vision":
        return (positions,)
    if edit.span is None:
        return slice(None), positions
    camera = policy.spec.cameras.index(edit.span.removeprefix("image/"))
    return slice(camera, camera + 1), positions


def z_values(policy: Policy, towers: Iterable[str], run: Callable[[], object]) -> dict[str, Tensor]:
    """z of the towers while `run` runs the policy once: copies, as `Edit` takes them."""
    seen: dict[str, list[Tensor]] = {}

    def tap(name: str) -> Tap:
        def see(z: Tensor, step: int | None) -> None:
            seen.setdefault(name, []).append(z.detach().clone())

        return see

    names = [
        site_name(tower, layer, "attn.hook_z")
        for tower in towers
        for layer in range(policy.spec.tower(tower).layers)
    ]
    with torch.no_grad(), tapped(policy, {name: tap(name) for name in names}):
        run()
    return {name: torch.stack(z) if name.startswith("expert.") else z[0] for name, z in seen.items()}
