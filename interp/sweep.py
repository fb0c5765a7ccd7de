"""Sweeps: the same observations, run once for every edit of the heads' outputs, exactly and fast.

An edit replaces z of one or more heads. All edits of a sweep run as rows of one batch ("heads stacked in the batch"),
in pieces that fit a memory budget, and share what they cannot change:

expert edits   the prefix (vision, vlm) runs once for all
vlm edits      vision runs once; of the vlm, only what comes after the edited z runs again
vision edits   of vision, only what comes after the edited z; everything behind it

and in the first flow step that an edit changes, the expert starts at the first layer that it changes (replay.py).

Axis names, besides those of protocol.py and sites.py:

edit     the edits of a sweep, in the caller's order
draw     (noise, time) draws of the flow-matching loss
row      of a stacked pass: (batch edit draw), the last the fastest

Nothing is approximated: a stacked row differs from the same edit alone by rounding (about 1e-6 in float32), and
NOTHING is the policy's own answer to the bit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from interp.edits import Edit, Values, check_edits, place_of
from interp.errors import UsageError
from interp.kernels import StackedLinears
from interp.policies.protocol import Batch, Policy, Prefix
from interp.replay import PrefixTrace, TowerRecord, recorded, resumed
from interp.sites import Tap, site_name, tapped

BUDGET = 512 * 2**20
"""Bytes that the activations of one stacked pass may take."""
_CACHE = 2**20
"""On a CPU, bytes of the widest activation of a stacked pass: wider ones fall out of the cache, and are slower."""
_ROWS = 8
"""But as many rows at least: of a large network the weights are what is read from memory, and rows share that."""

_TOWERS = ("vision", "vlm", "expert")


@dataclass(frozen=True)
class _Clean:
    """The run without edits: x before each of its recorded steps, and last the answer; and the expert's record."""

    x: Sequence[Float[Tensor, "row horizon dim"]]
    record: TowerRecord


class Stage:
    """A batch of observations, ready to be run with any number of edits. Never records gradients."""

    def __init__(self, policy: Policy, batch: Batch, budget: int = BUDGET) -> None:
        self.policy = policy
        self.batch = batch
        self.budget = budget

    def __len__(self) -> int:
        return len(self.batch["state"])

    def denoise(
        self,
        noise: Float[Tensor, "batch horizon max_action_dim"],
        edits: Sequence[Edit],
        values: Values | None = None,
    ) -> Float[Tensor, "edit batch horizon action"]:
        """The action chunk, normalised, under every edit. Without values, z becomes zero."""
        steps = self.policy.spec.flow_steps
        self._check(edits, values)
        firsts = {first for first in (self._first_step(edit) for edit in edits) if first < steps}
        clean = self._clean_flow(noise, max(firsts, default=0))

        def begin(prefix: Prefix, step: int, n: int) -> Tensor:
            x = repeat(clean.x[step], "batch ... -> (batch edit) ...", edit=n)
            return self.policy.denoise(self.batch, x, prefix, range(step, step + 1))

        def finish(prefix: Prefix, step: int, x: Tensor) -> Tensor:
            return self.policy.denoise(self.batch, x, prefix, range(step + 1, steps))

        return self._sweep(edits, values, clean, begin, finish, draws=1)[..., : self.policy.spec.action_dim]

    def loss(
        self,
        actions: Float[Tensor, "batch horizon action"],
        noise: Float[Tensor, "batch draw horizon max_action_dim"],
        time: Float[Tensor, "batch draw"],
        edits: Sequence[Edit],
        values: Values | None = None,
    ) -> Float[Tensor, "edit batch draw horizon action"]:
        """The flow-matching loss, elementwise, of normalised actions under every edit. Expert values: one step, and
        one row a draw (batch draw)."""
        draws = time.shape[1]
        self._check(edits, values)
        for edit in edits:
            if edit.step:
                raise UsageError(f"step {edit.step}: the loss is of one pass of the expert; leave it out")

        def begin(prefix: Prefix, step: int, n: int) -> Tensor:
            return self.policy.loss(
                self.batch,
                repeat(actions, "batch h a -> (batch edit draw) h a", edit=n, draw=draws),
                repeat(noise, "batch draw h a -> (batch edit draw) h a", edit=n),
                repeat(time, "batch draw -> (batch edit draw)", edit=n),
                prefix.repeat(draws),
            )

        with torch.no_grad(), recorded(self.policy, "expert") as record:
            intact = begin(self.prefix, 0, 1)
        found = self._sweep(edits, values, _Clean([intact, intact], record), begin, lambda p, s, x: x, draws)
        return rearrange(found, "edit (batch draw) h a -> edit batch draw h a", draw=draws)

    # ---- how it works

    @cached_property
    def prefix(self) -> Prefix:
        return self._trace.prefix

    @cached_property
    def _trace(self) -> PrefixTrace:
        return PrefixTrace.record_of(self.policy, self.batch)

    @cached_property
    def _vision(self) -> TowerRecord:
        with torch.no_grad(), recorded(self.policy, "vision") as record:
            self.policy.prefix(self.batch)
        return record

    def _clean_flow(self, noise: Tensor, last: int) -> "_Clean":
        """The run without edits, and of its steps up to `last` what edits can start from."""
        x = [noise]
        with torch.no_grad():
            with recorded(self.policy, "expert") as record:
                for step in range(last + 1):
                    x.append(self.policy.denoise(self.batch, x[-1], self.prefix, range(step, step + 1)))
            rest = range(last + 1, self.policy.spec.flow_steps)
            x.append(self.policy.denoise(self.batch, x[-1], self.prefix, rest))
        return _Clean(x, record)

    def _sweep(
        self,
        edits: Sequence[Edit],
        values: Values | None,
        clean: "_Clean",
        begin: Callable[[Prefix, int, int], Tensor],
        finish: Callable[[Prefix, int, Tensor], Tensor],
        draws: int,
    ) -> Float[Tensor, "edit row horizon dim"]:
        """`begin` runs the first flow step that an edit changes, `finish` those after it."""
        out: list[Tensor | None] = [None] * len(edits)
        with torch.no_grad(), StackedLinears():
            for step, chosen in self._pieces(edits, draws):
                piece = [edits[at] for at in chosen]
                rows = self._piece(piece, step, values, clean, begin, finish, draws)
                for at, result in zip(chosen, rows, strict=True):
                    if not torch.isfinite(result).all():
                        heads = ", ".join(map(str, edits[at].heads)) or "no head"
                        raise UsageError(f"the policy's answer is not finite with {heads} edited")
                    out[at] = result
        return torch.stack([result for result in out if result is not None])

    def _piece(
        self,
        piece: Sequence[Edit],
        step: int,
        values: Values | None,
        clean: "_Clean",
        begin: Callable[[Prefix, int, int], Tensor],
        finish: Callable[[Prefix, int, Tensor], Tensor],
        draws: int,
    ) -> Float[Tensor, "edit row horizon dim"]:
        if step == self.policy.spec.flow_steps:
            return repeat(clean.x[-1], "row h a -> edit row h a", edit=len(piece))
        prefix = self._edited_prefix(piece, values)
        taps = partial(self._taps, values=values, towers=["expert"], draws=draws)
        started = []
        # In the first step, layers before the edited one are those of the clean run: one pass for each such layer.
        for (layer, reads), members in groupby(range(len(piece)), key=lambda at: self._start(piece[at])):
            some = list(members)
            own = prefix
            if len(some) < len(piece):
                every = torch.arange(len(self))[:, None] * len(piece)
                own = prefix.select((every + torch.tensor(some)).flatten().to(prefix.mask.device))
            with (
                tapped(self.policy, taps([piece[at] for at in some])) as counter,
                resumed(self.policy, "expert", clean.record, step, layer, len(some), draws, reads),
            ):
                counter.reset(step)
                rows = begin(own, step, len(some))
            started.append(
                rearrange(rows, "(batch edit draw) h a -> batch edit draw h a", edit=len(some), draw=draws)
            )
        x = rearrange(torch.cat(started, dim=1), "batch edit draw h a -> (batch edit draw) h a")
        with tapped(self.policy, taps(piece)) as counter:
            counter.reset(step + 1)
            x = finish(prefix, step, x)
        return rearrange(x, "(batch edit draw) h a -> edit (batch draw) h a", edit=len(piece), draw=draws)

    def _first_step(self, edit: Edit) -> int:
        """The first flow step that the edit changes; the number of steps if it changes nothing."""
        if not edit.heads or self._start(edit)[0] == self.policy.spec.tower("expert").layers:
            return self.policy.spec.flow_steps
        return edit.step or 0

    def _start(self, edit: Edit) -> tuple[int, bool]:
        """The first layer of the expert that an edit can change, and whether it does so by what the layer reads."""
        layers = self.policy.spec.tower("expert").layers
        starts = [(layer, False) for layer in edit.layers("expert")]
        if edit.layers("vision") or (edit.layers("vlm") and len(self.prefix.keys) != layers):
            starts.append((0, True))
        elif edit.layers("vlm"):
            # Keys and values of a layer come before its z, and layer by layer the expert reads those of the vlm.
            starts.append((min(edit.layers("vlm")) + 1, True))
        # Of a layer that both read and z change, everything is computed.
        layer = min((layer for layer, _ in starts), default=layers)
        return layer, (layer, True) in starts

    def _check(self, edits: Sequence[Edit], values: Values | None) -> None:
        check_edits(self.policy, edits)
        for head in (head for edit in edits for head in edit.heads):
            name = site_name(head.tower, head.layer, "attn.hook_z")
            if values is not None and name not in values:
                raise UsageError(f"the edit of {head} needs values for {name}: cache that hook")

    def _pieces(self, edits: Sequence[Edit], draws: int) -> Iterator[tuple[int, list[int]]]:
        """Edits that run together, with the first flow step that they change: as many as fit cache and budget."""
        keys = [(self._first_step(edit), *self._origin(edit), *self._start(edit)) for edit in edits]
        order = sorted(range(len(edits)), key=lambda at: keys[at])
        for step, group in groupby(order, key=lambda at: keys[at][0]):
            members = list(group)
            size = self._fitting(self._row_bytes(draws), "expert", draws)
            for start in range(0, len(members), size):
                yield step, members[start : start + size]

    def _origin(self, edit: Edit) -> tuple[int, int]:
        """The first tower that an edit touches, as a place in _TOWERS, and there the first layer."""
        kind = next((at for at, tower in enumerate(_TOWERS[:2]) if edit.layers(tower)), 2)
        return kind, min(edit.layers(_TOWERS[kind]), default=0) if kind < 2 else 0

    def _fitting(self, row_bytes: int, tower: str, draws: int = 1) -> int:
        """How many edits of all observations fit the budget, and, on a CPU, how many are computed fastest together."""
        size = self.budget // (len(self) * row_bytes)
        if self.batch["state"].device.type == "cpu":
            widest = self._widest_bytes(tower) * draws
            size = min(size, max(_CACHE // (len(self) * widest), -(-_ROWS // len(self))))
        return max(1, size)

    def _row_bytes(self, draws: int) -> int:
        """About what one row takes: its keys and values twice, and what is alive at once of the expert."""
        spec, suffix = self.policy.spec, self.policy.spec.n_positions("expert")
        kept = sum(tensor[0].nbytes for tensor in self.prefix.tensors)
        attended = spec.tower("expert").heads * suffix * spec.length * self.prefix.tensors[0].element_size()
        return draws * (2 * kept + attended + 4 * self._widest_bytes("expert"))

    def _widest_bytes(self, tower: str) -> int:
        """The widest activation of one row."""
        layer = self.policy.block(tower, 0).layer
        width = max(module.out_features for module in layer.modules() if isinstance(module, nn.Linear))
        cameras = len(self.policy.spec.cameras) if tower == "vision" else 1
        return width * cameras * self.policy.spec.n_positions(tower) * self.batch["state"].element_size()

    def _edited_prefix(self, edits: Sequence[Edit], values: Values | None) -> Prefix:
        """Rows (batch edit). Edits of one layer run stacked, from that layer on."""
        parts: list[tuple[int, Prefix]] = []
        for (kind, layer), group in groupby(edits, key=self._origin):
            some = list(group)
            tower = _TOWERS[kind]
            size = len(some) if kind == 2 else self._fitting(4 * self._widest_bytes("vlm"), tower)
            for start in range(0, len(some), size):
                chunk = some[start : start + size]
                parts.append((len(chunk), self._replayed(chunk, tower, layer, values)))
        return parts[0][1] if len(parts) == 1 else _side_by_side(parts)

    def _replayed(self, edits: Sequence[Edit], tower: str, layer: int, values: Values | None) -> Prefix:
        n, trace = len(edits), self._trace
        if tower == "expert":
            return self.prefix.repeat(n)
        seen = self._vision if tower == "vision" else None  # recorded before anything is edited
        with tapped(self.policy, self._taps(edits, values, ["vision", "vlm"], draws=1)), ExitStack() as stack:
            if seen is None and trace.replayable:
                return trace.replay(layer, n)
            if seen is not None:
                cameras = len(self.policy.spec.cameras)
                stack.enter_context(resumed(self.policy, "vision", seen, 0, layer, n, cameras, reads=False))
            return self.policy.prefix({k: t.repeat_interleave(n, dim=0) for k, t in self.batch.items()})

    def _taps(
        self, edits: Sequence[Edit], values: Values | None, towers: Iterable[str], draws: int
    ) -> dict[str, Tap]:
        sites = [(tower, layer) for tower in towers for edit in edits for layer in edit.layers(tower)]
        return {
            site_name(tower, layer, "attn.hook_z"): self._tap(edits, values, tower, layer, draws)
            for tower, layer in dict.fromkeys(sites)
        }

    def _tap(self, edits: Sequence[Edit], values: Values | None, tower: str, layer: int, draws: int) -> Tap:
        new = None if values is None else values[site_name(tower, layer, "attn.hook_z")]
        here = [
            (at, edit.step, place_of(self.policy, edit, tower), head.index)
            for at, edit in enumerate(edits)
            for head in edit.heads
            if (head.tower, head.layer) == (tower, layer)
        ]

        def replace(z: Tensor, step: int | None) -> Tensor:
            rows = rearrange(
                z, "(batch edit draw) ... -> batch edit draw ...", edit=len(edits), draw=draws
            ).clone()
            source: Tensor | float = 0.0
            if new is not None:
                source = (new if step is None else new[step]).to(rows)
                per_draw = len(source) == len(self) * draws
                source = rearrange(
                    source, "(batch draw) ... -> batch draw ...", draw=draws if per_draw else 1
                )
            for at, only, where, index in here:
                if only is None or only == step:
                    place: tuple[Any, ...] = (..., *where, index, slice(None))
                    rows[:, at][place] = source[place] if isinstance(source, Tensor) else source
            return rows.reshape(z.shape)

        return replace


def _side_by_side(parts: Sequence[tuple[int, Prefix]]) -> Prefix:
    """Prefixes of (batch n) rows each as one of (batch edit)."""

    def join(*tensors: Tensor) -> Tensor:
        split = [t.unflatten(0, (-1, n)) for t, (n, _) in zip(tensors, parts, strict=True)]
        return torch.cat(split, dim=1).flatten(0, 1)

    first, *others = (prefix for _, prefix in parts)
    return first.map(join, *others)
