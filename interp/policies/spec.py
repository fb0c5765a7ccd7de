"""What a policy is made of, in numbers that can be written to JSON: towers, heads, tokens, dimensions.

Axis names used here and everywhere else:

layer, head   within one tower (`vision`, `vlm`, `expert`)
pos           position within one tower's own sequence: vision counts patches of one camera, vlm counts prefix
              tokens, expert counts suffix tokens (in pi0 the state, then the action chunk)
token         position in the whole sequence prefix + suffix that the expert attends to
"""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from interp.errors import UsageError, unknown
from interp.heads import Head


@dataclass(frozen=True)
class TowerSpec:
    """One stack of attention layers.

    `kv_heads` are shared by groups of heads (grouped-query attention), so they are never head-selective.
    `dead` heads are those whose z reaches no action, found by measurement when the policy is loaded.
    """

    heads_per_layer: tuple[int, ...]
    kv_heads: int
    d_head: int
    dead: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.heads_per_layer or min(self.heads_per_layer) < 1 or self.d_head < 1 or self.kv_heads < 1:
            raise UsageError(
                f"a tower needs at least one layer, head, KV head and head dimension, not {self}"
            )
        for layer, head in self.dead:
            if not (0 <= layer < self.layers and 0 <= head < self.heads_per_layer[layer]):
                raise UsageError(
                    f"dead head L{layer}H{head} is outside the tower's {self.heads_per_layer} heads"
                )

    @property
    def layers(self) -> int:
        return len(self.heads_per_layer)

    @property
    def heads(self) -> int:
        """The size of the head axis of arrays [layer, head]: the most heads that any layer has."""
        return max(self.heads_per_layer)

    def exists(self, layer: int, head: int) -> bool:
        return 0 <= layer < self.layers and 0 <= head < self.heads_per_layer[layer]

    @property
    def live(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) of every head that can reach the action."""
        dead = set(self.dead)
        return tuple(
            (layer, head)
            for layer, heads in enumerate(self.heads_per_layer)
            for head in range(heads)
            if (layer, head) not in dead
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": self.layers,
            "heads": self.heads,
            "heads_per_layer": list(self.heads_per_layer),
            "kv_heads": self.kv_heads,
            "d_head": self.d_head,
            "dead": [list(pair) for pair in self.dead],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TowerSpec":
        return cls(
            heads_per_layer=tuple(data["heads_per_layer"]),
            kv_heads=data["kv_heads"],
            d_head=data["d_head"],
            dead=tuple((layer, head) for layer, head in data["dead"]),
        )


@dataclass(frozen=True)
class TokenSpan:
    """Tokens [start, stop) of the whole sequence. An image's span also has its patch grid (rows, columns)."""

    start: int
    stop: int
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise UsageError(f"token span [{self.start}, {self.stop}) is empty or negative")
        if self.grid is not None and self.grid[0] * self.grid[1] != len(self):
            raise UsageError(f"patch grid {self.grid} does not fill a span of {len(self)} tokens")

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)


Anchor = Literal["centre", "bottom-right", "stretch"]


@dataclass(frozen=True)
class Letterbox:
    """Where a height x width image ends up inside the square that the network sees; the rest is padding.
    Pixels. `anchor` says where it lies: SmolVLA pads above and to the left, others all around.
    """

    top: int
    left: int
    height: int
    width: int
    size: int

    @classmethod
    def fit(cls, height: int, width: int, size: int, anchor: Anchor = "centre") -> "Letterbox":
        """The largest copy of the image, aspect kept; or, for `stretch`, all of the square."""
        if anchor == "stretch":
            return cls(0, 0, size, size, size)
        scale = size / max(height, width)
        inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = size - inner_height, size - inner_width
        if anchor == "centre":
            top, left = top // 2, left // 2
        return cls(top, left, inner_height, inner_width, size)


@dataclass(frozen=True)
class PolicySpec:
    """Everything about a policy that other rooms may depend on. Round-trips through JSON."""

    family: str
    towers: Mapping[str, TowerSpec]
    spans: Mapping[str, TokenSpan]
    cameras: tuple[str, ...]
    image_size: int
    state_dim: int
    action_dim: int
    max_action_dim: int
    horizon: int
    flow_steps: int
    fps: float | None
    """Actions a second [Hz]; None where the policy's files do not say."""
    execute: int
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    suffix: str = "state"
    """The span with which the expert's own tokens begin; what lies before is the prefix."""
    patches: tuple[int, int] | None = None
    """The vision tower's patch grid, where it is finer than that of an image's tokens."""
    anchor: Anchor = "centre"

    def without_camera(self, has: Collection[str]) -> str:
        """What to do where only the cameras `has` are there, if one of the policy's is: the end of an error's line."""
        there = [camera for camera in self.cameras if camera in has]
        if not there:
            return ""
        said = json.dumps({"cameras": there})
        return f"; if the robot has no other, write {said} into robosteer.json in the policy's directory"

    def tower(self, name: str) -> TowerSpec:
        if name not in self.towers:
            raise unknown("tower", name, self.towers)
        return self.towers[name]

    def span(self, name: str) -> TokenSpan:
        if name not in self.spans:
            raise unknown("token span", name, self.spans)
        return self.spans[name]

    @property
    def prefix_length(self) -> int:
        """How many tokens come before the expert's own."""
        return self.span(self.suffix).start

    @property
    def length(self) -> int:
        """Of the whole sequence, prefix and suffix."""
        return max(span.stop for span in self.spans.values())

    def n_positions(self, tower: str) -> int:
        """The length of a tower's own sequence."""
        self.tower(tower)
        if tower == "vision":
            rows, columns = self.patches or (1, len(self.span(f"image/{self.cameras[0]}")))
            return rows * columns
        return self.prefix_length if tower == "vlm" else self.length - self.prefix_length

    def has_positions(self, tower: str, span: str) -> bool:
        """Whether `positions` has an answer."""
        tokens = self.spans.get(span)
        if tokens is None or tower not in self.towers:
            return False
        if tower == "vision":
            return tokens.grid is not None
        return (tokens.stop <= self.prefix_length) == (tower == "vlm")

    def positions(self, tower: str, span: str) -> slice:
        """The span in `tower`'s own positions; an error if the tower never computes those tokens."""
        tokens = self.span(span)
        prefix = self.prefix_length
        self.tower(tower)
        if tower == "vision" and tokens.grid is not None:
            return slice(0, self.n_positions("vision"))
        if tower == "vlm" and tokens.stop <= prefix:
            return tokens.slice
        if tower == "expert" and tokens.start >= prefix:
            return slice(tokens.start - prefix, tokens.stop - prefix)
        raise UsageError(f"tower {tower} has no positions for {span!r}: those tokens belong to another tower")

    def letterbox(self, height: int, width: int) -> Letterbox:
        return Letterbox.fit(height, width, self.image_size, self.anchor)

    def check(self, head: Head) -> Head:
        """The head itself if the policy has it and it is alive; otherwise a UsageError that says why not."""
        tower = self.tower(head.tower)
        if head.layer >= tower.layers:
            raise UsageError(
                f"head {head}: tower {head.tower} has {tower.layers} layers (0-{tower.layers - 1})"
            )
        heads = tower.heads_per_layer[head.layer]
        if head.index >= heads:
            raise UsageError(f"head {head}: layer {head.layer} has {heads} heads (0-{heads - 1})")
        if (head.layer, head.index) in tower.dead:
            raise UsageError(f"head {head} is dead: its output reaches no action, so it cannot be chosen")
        return head

    def live_heads(self, towers: Iterable[str] | None = None) -> tuple[Head, ...]:
        names = self.towers if towers is None else towers
        return tuple(Head(name, layer, head) for name in names for layer, head in self.tower(name).live)

    def to_json(self) -> dict[str, Any]:
        return {
            "family": self.family,
            "towers": {name: tower.to_json() for name, tower in self.towers.items()},
            "spans": {
                name: {"start": span.start, "stop": span.stop, "grid": list(span.grid) if span.grid else None}
                for name, span in self.spans.items()
            },
            "cameras": list(self.cameras),
            "image_size": self.image_size,
            "state_dim": self.state_dim,
            "action_dim": self.action_dim,
            "max_action_dim": self.max_action_dim,
            "horizon": self.horizon,
            "flow_steps": self.flow_steps,
            "fps": self.fps,
            "execute": self.execute,
            "state_names": list(self.state_names),
            "action_names": list(self.action_names),
            "suffix": self.suffix,
            "patches": list(self.patches) if self.patches else None,
            "anchor": self.anchor,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PolicySpec":
        spans = {
            name: TokenSpan(span["start"], span["stop"], tuple(span["grid"]) if span["grid"] else None)
            for name, span in data["spans"].items()
        }
        towers = {name: TowerSpec.from_json(tower) for name, tower in data["towers"].items()}
        tuples = {name: tuple(data[name]) for name in ("cameras", "state_names", "action_names")}
        # Written since policies exist whose state is part of the prefix; older runs are of pi0.
        patches = tuple(data["patches"]) if data.get("patches") else None
        return cls(**{**data, **tuples, "towers": towers, "spans": spans, "patches": patches})
