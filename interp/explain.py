"""Explain an action: at one frame of the demonstrations, which heads made the chunk, and what each of them looks at.

    explanation = explain(policy, demos, episode=3, frame=17)
    explanation.heads[0].head, explanation.heads[0].mean.rms     # the head without which the chunk changes most

Every head's part is measured in three ways, side by side because they answer different questions. All three are what
the chunk has *with* the head and would not have without it, signed, in normalised units (1 is one standard deviation
of the action dimension in the policy's training data):

direct   what the head itself writes into the action (attribution.direct); what later layers make of it is theirs
zero     intact minus zero-ablated: everything that goes through the head, but the network has never seen a zero there
mean     intact minus mean-ablated: as zero, relative to what the head says on average over the demonstrations

A head with little direct part and a large mean part works through others. `Look` adds, for the strongest heads, where
they attend (watching.py) and the frames of the demonstrations in which they write most. docs/explain.md has the JSON.

The start noise is capture's, so that the explained chunk is the one that a run of these demonstrations recorded.
Axes: horizon, action; row, column of a camera's patch grid; part, a set of tokens (mass.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from interp.ablation import AblationSettings, ablated
from interp.assembly import spread
from interp.attribution import Direct, direct
from interp.capture import frame_noise
from interp.demos import Demonstrations, Episode
from interp.devices import exactly
from interp.edits import Edit
from interp.errors import UsageError, unknown
from interp.footage import Camera
from interp.heads import Head
from interp.policies.preprocessing import states_of
from interp.policies.protocol import Policy
from interp.watching import QUERIES, Seen, watch

SCHEMA = 1
MEASURES = ("mean", "zero", "direct")
BLOCK = 16
"""Frames that go through the network together when strong frames are searched."""


@dataclass(frozen=True)
class ExplainSettings:
    """`shown` heads get a `Look`, the strongest by the measure `by`; of the towers named, vision is not watched.

    `reference` frames are behind the mean ablation, and `scanned` frames are searched for `examples` a head, all taken
    evenly from the demonstrations. `seed` is the flow's start noise, as in capture.
    """

    towers: tuple[str, ...] = ("expert",)
    by: Literal["mean", "zero", "direct"] = "mean"
    shown: int = 6
    examples: int = 3
    scanned: int = 200
    reference: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        for tower in self.towers:
            if tower not in QUERIES:
                raise unknown("tower to explain", tower, QUERIES)
        if not self.towers or len(set(self.towers)) != len(self.towers):
            raise UsageError(f"name at least one tower, each once, not {list(self.towers)}")
        if self.by not in MEASURES:
            raise unknown("measure", self.by, MEASURES)
        if self.by == "direct" and self.towers != ("expert",):
            raise UsageError("only heads of the expert write to the action directly: order by mean or zero")
        for name in ("shown", "scanned", "reference"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.examples < 0:
            raise UsageError(f"examples must not be negative, not {self.examples}")


@dataclass(frozen=True)
class Effect:
    """What a head brings into the chunk. Normalised units, signed."""

    change: Float[np.ndarray, "horizon action"]

    @property
    def rms(self) -> float:
        """Root mean square over the chunk."""
        return float(np.sqrt((self.change**2).mean()))

    @property
    def by_dimension(self) -> Float[np.ndarray, " action"]:
        """Mean over the steps of the chunk: which way the head pushes."""
        return self.change.mean(axis=0)

    def to_json(self) -> dict[str, Any]:
        return {"rms": self.rms, "by_dimension": self.by_dimension.tolist()}


@dataclass(frozen=True)
class HeadPart:
    """One head's part of the action. `direct` is None for heads of the vlm, which do not write to it."""

    head: Head
    zero: Effect
    mean: Effect
    direct: Effect | None
    mass: Mapping[str, float]
    """Share of attention by part; `<span>/padding` shows nothing, `other` is of no span. Sums to 1."""

    def rms(self, measure: str) -> float:
        effect = getattr(self, measure)
        return 0.0 if effect is None else effect.rms

    def to_json(self) -> dict[str, Any]:
        return {
            "head": str(self.head),
            "direct": None if self.direct is None else self.direct.to_json(),
            "zero": self.zero.to_json(),
            "mean": self.mean.to_json(),
            "attention": dict(self.mass),
        }


@dataclass(frozen=True)
class Example:
    """A frame in which a head writes much: root mean square of its direct part."""

    episode: int
    frame: int
    instruction: str
    rms: float


@dataclass(frozen=True)
class Look:
    """What a head looks at in this frame, and where in the demonstrations it is strongest."""

    head: Head
    maps: Mapping[str, Float[np.ndarray, "row column"]]
    """By camera, share of the head's attention per patch; padding is 0."""
    words: tuple[tuple[str, float], ...]
    examples: tuple[Example, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "head": str(self.head),
            "maps": {camera: grid.tolist() for camera, grid in self.maps.items()},
            "words": [{"word": word, "attention": share} for word, share in self.words],
            "examples": [asdict(example) for example in self.examples],
        }


@dataclass(frozen=True)
class Explanation:
    """Heads are ordered, strongest first, by `settings.by`; `looks` are of the first of them."""

    policy: str
    data: str
    episode: int
    frame: int
    length: int
    instruction: str
    names: tuple[str, ...]
    predicted: Float[np.ndarray, "horizon action"]
    """Robot units, as `demonstrated`."""
    demonstrated: Float[np.ndarray, "horizon action"]
    over: Bool[np.ndarray, " horizon"]
    """Steps past the end of the episode, where the demonstrated action is a repetition."""
    unit: Float[np.ndarray, " action"]
    """One normalised unit, in robot units."""
    parts: Mapping[str, float]
    """Root mean square of what heads, MLPs, embedding, bias and start noise write into the chunk directly."""
    heads: tuple[HeadPart, ...]
    looks: tuple[Look, ...]
    cameras: Mapping[str, Camera]
    settings: ExplainSettings

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "policy": self.policy,
            "data": self.data,
            "episode": self.episode,
            "frame": self.frame,
            "frames": self.length,
            "instruction": self.instruction,
            "action": {
                "names": list(self.names),
                "predicted": self.predicted.tolist(),
                "demonstrated": self.demonstrated.tolist(),
                "past_the_end": self.over.tolist(),
                "unit": self.unit.tolist(),
            },
            "parts": dict(self.parts),
            "heads": [head.to_json() for head in self.heads],
            "looks": [look.to_json() for look in self.looks],
            "cameras": {
                name: {"grid": list(camera.grid), "letterbox": dict(camera.letterbox)}
                for name, camera in self.cameras.items()
            },
            "settings": asdict(self.settings),
        }


def explain(
    policy: Policy,
    demos: Demonstrations,
    episode: int,
    frame: int,
    settings: ExplainSettings | None = None,
    *,
    progress: bool = False,
) -> Explanation:
    """The explanation of frame `frame` of episode `episode`, both as the data set numbers them."""
    settings = settings or ExplainSettings()
    demos = demos.for_policy(policy.spec)
    chosen = _episode(demos, episode)
    if not 0 <= frame < len(chosen):
        raise UsageError(f"frame {frame}: episode {episode} has frames 0-{len(chosen) - 1}")
    row = chosen.start + frame
    observation = demos.observation(row)
    noise = frame_noise(policy, demos, range(row, row + 1), settings.seed)
    written = direct(policy, policy.batch([observation]), noise)
    seen = watch(policy, [observation], noise)
    heads = _heads(policy, demos, row, written, seen, settings)
    first = [part.head for part in heads[: settings.shown]]
    examples = _strongest(policy, demos, first, settings, progress)
    demonstrated, over = demos.chunk(row, policy.spec.horizon)
    here = states_of([observation], written.action.device)
    ones = torch.ones(1, policy.spec.action_dim, device=here.device)
    return Explanation(
        policy=policy.fingerprint,
        data=demos.fingerprint,
        episode=episode,
        frame=frame,
        length=len(chosen),
        instruction=observation.instruction,
        names=policy.spec.action_names,
        predicted=_numbers(policy.unnormalise_actions(written.action[:1], here)[0]),
        demonstrated=demonstrated.astype(np.float64),
        over=over,
        unit=_numbers(
            (policy.unnormalise_actions(ones, here) - policy.unnormalise_actions(ones * 0, here))[0]
        ),
        parts=_parts(written),
        heads=heads,
        looks=tuple(_look(head, seen, examples[head]) for head in first),
        cameras=seen.cameras,
        settings=settings,
    )


def _episode(demos: Demonstrations, index: int) -> Episode:
    found = {episode.index: episode for episode in demos.episodes}
    if index not in found:
        raise unknown(f"episode of {demos.path}", index, found)
    return found[index]


def _heads(
    policy: Policy,
    demos: Demonstrations,
    row: int,
    written: Direct,
    seen: Seen,
    settings: ExplainSettings,
) -> tuple[HeadPart, ...]:
    """Every live head, strongest first."""
    live = policy.spec.live_heads(settings.towers)
    edits = [Edit((head,)) for head in live]
    without = {}
    for mode in ("zero", "mean"):
        ablation = AblationSettings(mode=mode, frames=settings.reference, seed=settings.seed)
        without[mode] = ablated(policy, demos, [row], edits, ablation)[:, 0, 0]
    parts = [
        HeadPart(
            head=head,
            zero=Effect(-without["zero"][at]),
            mean=Effect(-without["mean"][at]),
            direct=Effect(_numbers(written.heads[0, head.layer, head.index]))
            if head.tower == "expert"
            else None,
            mass={
                name: float(share)
                for name, share in zip(
                    seen.parts, seen.mass[head.tower][head.layer, head.index, 0], strict=True
                )
            },
        )
        for at, head in enumerate(live)
    ]
    return tuple(sorted(parts, key=lambda part: -part.rms(settings.by)))


def _look(head: Head, seen: Seen, examples: tuple[Example, ...]) -> Look:
    place = (head.layer, head.index, 0)
    words = seen.words[head.tower][place]
    return Look(
        head=head,
        maps={camera: seen.images[head.tower, camera][place].astype(np.float64) for camera in seen.cameras},
        words=tuple((word, float(share)) for word, share in zip(seen.vocabulary, words, strict=True)),
        examples=examples,
    )


def _strongest(
    policy: Policy,
    demos: Demonstrations,
    heads: Sequence[Head],
    settings: ExplainSettings,
    progress: bool,
) -> dict[Head, tuple[Example, ...]]:
    """Frames with the largest direct part of each head, at most one an episode, among `scanned` frames."""
    found: dict[Head, tuple[Example, ...]] = dict.fromkeys(heads, ())
    writing = [head for head in heads if head.tower == "expert"]
    if not writing or not settings.examples:
        return found
    rows = spread(len(demos), settings.scanned)
    strength = []
    blocks = range(0, len(rows), BLOCK)
    for start in tqdm(blocks, desc="strongest frames", unit="block", disable=not progress):
        block = rows[start : start + BLOCK].tolist()
        noise = torch.cat([frame_noise(policy, demos, range(row, row + 1), settings.seed) for row in block])
        grid = direct(policy, policy.batch(list(demos.observations(block))), noise).grid()
        strength.append(np.stack([grid[:, head.layer, head.index] for head in writing]))
    for head, values in zip(writing, np.concatenate(strength, axis=1), strict=True):
        best: dict[int, Example] = {}
        for at in np.argsort(-values, kind="stable").tolist():
            row = int(rows[at])
            episode = demos.episodes[int(demos.episode_of[row])]
            if episode.index not in best and len(best) < settings.examples:
                best[episode.index] = Example(
                    episode.index, int(demos.frame_of[row]), demos.instruction(row), float(values[at])
                )
        found[head] = tuple(best.values())
    return found


def _parts(written: Direct) -> dict[str, float]:
    sums = {
        "heads": written.heads[0].sum(dim=(0, 1)),
        "mlps": written.mlps[0].sum(dim=0),
        "embedding": written.embedding[0],
        "bias": written.bias,
        "noise": written.noise[0],
        "action": written.action[0],
    }
    return {name: float(exactly(part).square().mean().sqrt()) for name, part in sums.items()}


def _numbers(tensor: Tensor) -> Float[np.ndarray, "..."]:
    return exactly(tensor.detach()).numpy()
