"""Sweeps: the same observations, run once for every edit of the heads' outputs, exactly and fast.

An edit replaces z of one or more heads. All edits of a sweep run as rows of one batch ("heads stacked in the batch"),
in pieces that fit a memory budget, and share what they cannot change:

expert edits   the prefix (vision, vlm) runs once for all
vlm edits      vision runs once; of the vlm, only the layers from the edited one on run again
vision edits   everything runs again, stacked

Axis names, besides those of protocol.py and sites.py:

edit     the edits of a sweep, in the caller's order
draw     (noise, time) draws of the flow-matching loss
row      of a stacked pass: (batch edit draw), the last the fastest

Nothing is approximated: a stacked row differs from the same edit alone by rounding (about 1e-6 in float32).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from interp.errors import UsageError
from interp.heads import Head
from interp.policies.protocol import Batch, Policy, Prefix
from interp.replay import PrefixTrace
from interp.runs import read_json, write_atomic, write_json
from interp.sites import Tap, site_name, tapped

BUDGET = 512 * 2**20
"""Bytes that the activations of one stacked pass may take."""

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


def single(policy: Policy, tower: str) -> list[Edit]:
    """One edit for every live head of the tower."""
    return [Edit((head,)) for head in policy.spec.live_heads([tower])]


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

        def run(prefix: Prefix, stacked: int) -> Tensor:
            x = repeat(noise, "batch ... -> (batch edit) ...", edit=stacked)
            return self.policy.denoise(self.batch, x, prefix)[:, None]

        chunks = self._sweep(edits, values, run, draws=1)
        return rearrange(chunks, "edit batch 1 horizon dim -> edit batch horizon dim")[
            ..., : self.policy.spec.action_dim
        ]

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

        def run(prefix: Prefix, stacked: int) -> Tensor:
            loss = self.policy.loss(
                self.batch,
                repeat(actions, "batch h a -> (batch edit draw) h a", edit=stacked, draw=draws),
                repeat(noise, "batch draw h a -> (batch edit draw) h a", edit=stacked),
                repeat(time, "batch draw -> (batch edit draw)", edit=stacked),
                prefix.repeat(draws),
            )
            return rearrange(loss, "(row draw) h a -> row draw h a", draw=draws)

        return self._sweep(edits, values, run, draws)

    # ---- how it works

    @cached_property
    def prefix(self) -> Prefix:
        with torch.no_grad():
            return self.policy.prefix(self.batch)

    @cached_property
    def _trace(self) -> "PrefixTrace":
        return PrefixTrace.record(self.policy, self.batch)

    def _sweep(
        self,
        edits: Sequence[Edit],
        values: Values | None,
        run: Callable[[Prefix, int], Float[Tensor, "row draw horizon dim"]],
        draws: int,
    ) -> Float[Tensor, "edit batch draw horizon dim"]:
        self._check(edits, values)
        out: list[Tensor | None] = [None] * len(edits)
        with torch.no_grad():
            for chosen in self._pieces(edits, draws):
                piece = [edits[at] for at in chosen]
                prefix = self._edited_prefix(piece, values)
                with tapped(self.policy, self._taps(piece, values, ["expert"], draws)):
                    rows = rearrange(
                        run(prefix, len(piece)), "(batch edit) ... -> edit batch ...", edit=len(piece)
                    )
                for at, result in zip(chosen, rows, strict=True):
                    if not torch.isfinite(result).all():
                        heads = ", ".join(map(str, edits[at].heads)) or "no head"
                        raise UsageError(f"the policy's answer is not finite with {heads} edited")
                    out[at] = result
        return torch.stack([result for result in out if result is not None])

    def _check(self, edits: Sequence[Edit], values: Values | None) -> None:
        if not edits:
            raise UsageError("a sweep needs at least one edit")
        spec = self.policy.spec
        for edit in edits:
            for head in edit.heads:
                tower = spec.tower(head.tower)
                if not tower.exists(head.layer, head.index):
                    spec.check(head)  # says which rule it breaks
                place_of(self.policy, edit, head.tower)  # raises if the tower has no such span
                if edit.position is not None and not 0 <= edit.position < self._positions(head.tower):
                    last = self._positions(head.tower) - 1
                    raise UsageError(f"position {edit.position}: tower {head.tower} has positions 0-{last}")
                name = site_name(head.tower, head.layer, "attn.hook_z")
                if values is not None and name not in values:
                    raise UsageError(f"the edit of {head} needs values for {name}: cache that hook")
            if edit.step is not None and not 0 <= edit.step < spec.flow_steps:
                raise UsageError(f"step {edit.step}: the policy has flow steps 0-{spec.flow_steps - 1}")

    def _positions(self, tower: str) -> int:
        spec = self.policy.spec
        if tower == "vision":
            return len(spec.span(f"image/{spec.cameras[0]}"))
        prefix = spec.span("language").stop
        return prefix if tower == "vlm" else spec.span("action").stop - prefix

    def _pieces(self, edits: Sequence[Edit], draws: int) -> Iterator[list[int]]:
        """Edits that run together: they share the most, and fit the budget."""

        def depth(at: int) -> tuple[int, int]:
            if edits[at].layers("vision"):
                return 0, 0
            layers = edits[at].layers("vlm")
            return (1, min(layers)) if layers else (2, 0)

        for (kind, _), group in groupby(sorted(range(len(edits)), key=depth), key=depth):
            members = list(group)
            size = max(1, self.budget // (len(self) * self._row_bytes(kind, draws)))
            for start in range(0, len(members), size):
                yield members[start : start + size]

    def _row_bytes(self, kind: int, draws: int) -> int:
        """About what one row takes: its keys and values, and the widest activations that are alive at once."""
        spec, itemsize = self.policy.spec, self.prefix.keys[0].element_size()
        kept = sum(
            k[0].numel() + v[0].numel() for k, v in zip(self.prefix.keys, self.prefix.values, strict=True)
        )
        tokens, suffix = spec.span("language").stop, self._positions("expert")
        layer = self.policy.block("expert", 0).layer
        numbers = (
            2 * kept + 4 * suffix * _widest(layer) + spec.tower("expert").heads * suffix * (tokens + suffix)
        )
        numbers *= draws
        if kind < 2:
            numbers += 4 * tokens * _widest(self.policy.block("vlm", 0).layer) + tokens * tokens
        if kind < 1:
            patches = len(spec.cameras) * self._positions("vision")
            numbers += 4 * patches * _widest(self.policy.block("vision", 0).layer)
        return numbers * itemsize

    def _edited_prefix(self, edits: Sequence[Edit], values: Values | None) -> Prefix:
        """Rows (batch edit)."""
        n = len(edits)
        layers = set().union(*(edit.layers("vlm") for edit in edits))
        vision = any(edit.layers("vision") for edit in edits)
        if not vision and not layers:
            return self.prefix.repeat(n)
        trace = None if vision else self._trace  # recorded before anything is edited
        with tapped(self.policy, self._taps(edits, values, ["vision", "vlm"], draws=1)):
            if trace is not None and trace.replayable:
                return trace.replay(min(layers), n)
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


def _widest(layer: nn.Module) -> int:
    return max(module.out_features for module in layer.modules() if isinstance(module, nn.Linear))


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


# ---- what the methods on top share


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


def resumable(
    directory: Path | None,
    plan: Mapping[str, Any],
    blocks: Sequence[Sequence[int]],
    compute: Callable[[Sequence[int]], np.ndarray],
    *,
    desc: str,
    progress: bool = False,
) -> list[np.ndarray]:
    """`compute` of every block; with a directory, results are kept there, and a killed sweep goes on where it was.

    A block depends on nothing but itself and the plan, so resumed numbers equal uninterrupted ones bit for bit. Results
    of another plan are discarded.
    """
    if directory is not None:
        file = directory / "plan.json"
        if not file.is_file() or read_json(file) != dict(plan):
            for old in directory.glob("*.npy"):
                old.unlink()
            write_json(file, plan)
    results = []
    for at, block in enumerate(tqdm(blocks, desc=desc, unit="block", disable=not progress)):
        path = None if directory is None else directory / f"{at:06d}.npy"
        if path is not None and path.is_file():
            results.append(np.load(path, allow_pickle=False))
            continue
        results.append(compute(block))
        if path is not None:
            stream = BytesIO()
            np.save(stream, results[-1], allow_pickle=False)
            write_atomic(path, stream.getvalue())
    return results


def bootstrap(
    numerator: Float[np.ndarray, "score item"],
    denominator: Float[np.ndarray, " item"],
    group: Int[np.ndarray, " item"],
    resamples: int,
    seed: int,
) -> tuple[Float[np.ndarray, " score"], Float[np.ndarray, " score"]] | tuple[None, None]:
    """Central 95 % of sum(numerator) / sum(denominator) over resampled groups of items (episodes, of frames).

    With a single group its items are resampled; with a single item there is no interval.
    """
    places = np.unique(group, return_inverse=True)[1]
    if places.max() == 0:
        places = np.arange(len(group))
    groups = int(places.max()) + 1
    if groups < 2 or not resamples:
        return None, None
    member = np.eye(groups)[places]
    draws = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = (draws @ (numerator @ member).T) / (draws @ (denominator @ member))[:, None]
    low, high = np.nanquantile(ratios, [0.025, 0.975], axis=0)
    return low, high


def head_grid(
    policy: Policy, edits: Sequence[Edit], values: Float[np.ndarray, " edit"], tower: str
) -> Float[np.ndarray, "layer head"]:
    """Values of single-head edits as [layer, head]; NaN where there is none."""
    spec = policy.spec.tower(tower)
    grid = np.full((spec.layers, spec.heads), np.nan)
    for edit, value in zip(edits, values, strict=True):
        (head,) = edit.heads
        grid[head.layer, head.index] = value
    return grid
