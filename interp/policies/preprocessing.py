"""`robosteer.json`: what lies between a robot and the network's tensors, kept beside the weights.

Cameras and their order, image size, normalisation statistics, token budget, control rate. Pixels are
letterboxed (aspect kept, centred, black border) and mapped to [-1, 1]; state and actions are standardised.
How an image is resized and a prompt is written differs between those who released policies; `images` and
`clean_prompt` say which way a policy was trained with.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from interp.errors import UsageError
from interp.policies.protocol import Observation
from interp.policies.spec import Letterbox

FILE = "robosteer.json"
SCHEMA = 1
STD_FLOOR = 1e-8
"""Added to every standard deviation, as transformers' PI0Processor does, so that a constant dimension stays
finite.
"""

_NARROW = 2e-6
"""Half the width of a range that has none. LeRobot divides by 1e-8, which as a mean and a std float32 cannot say, nor
openpi, which adds 1e-6 to a std."""

Images = Literal["pillow", "openpi", "lerobot", "lerobot-0.5"]
"""Who resizes an image that has not the network's size. All keep the aspect and centre.

pillow    Pillow's antialiased bilinear filter, sides rounded, black border (tiny-pi0)
openpi    the same filter, sides rounded down (openpi_client/image_tools.py)
lerobot   torch's bilinear interpolation without antialiasing, sides rounded down, and a border of -3 where black is
          -1: LeRobot 0.4 pads with -1 before it maps [0, 1] to [-1, 1] (lerobot/policies/pi0/modeling_pi0.py)
lerobot-0.5  the same with a black border, as LeRobot has it from 0.5 on
"""
_BORDERS: Mapping[str, float] = {"lerobot": -3.0, "lerobot-0.5": -1.0}


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each dimension over the data that the policy was trained on."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    floor: float = STD_FLOOR
    """Added to every std; openpi adds 1e-6."""

    def __post_init__(self) -> None:
        if (
            len(self.mean) != len(self.std)
            or not np.isfinite([*self.mean, *self.std, self.floor]).all()
            or min((*self.std, self.floor)) < 0
        ):
            raise UsageError("norm: mean and std must be finite, equally long, and std not negative")

    @classmethod
    def of_range(cls, low: tuple[float, ...], high: tuple[float, ...]) -> "Statistics":
        """Those that map [low, high] to [-1, 1], which is how quantiles and extremes normalise. What never
        changes is mapped to -1, and back from anything to its value, as LeRobot does (up to `_NARROW`)."""
        centre = tuple((a + b) / 2 if a < b else _just_above(a) for a, b in zip(low, high, strict=True))
        half = tuple((b - a) / 2 if a < b else m - a for a, b, m in zip(low, high, centre, strict=True))
        return cls(centre, half, floor=0.0)

    def first(self, dims: int) -> "Statistics":
        """Of the first `dims` dimensions: published statistics are often padded to the network's."""
        return Statistics(self.mean[:dims], self.std[:dims], self.floor)

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"mean": self.mean, "std": self.std}
        return data if self.floor == STD_FLOOR else {**data, "floor": self.floor}

    def apply(self, values: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        values = _single(values)
        return (values - values.new_tensor(self.mean)) / (values.new_tensor(self.std) + self.floor)

    def invert(self, values: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        values = _single(values)
        return values * (values.new_tensor(self.std) + self.floor) + values.new_tensor(self.mean)


def _just_above(value: float) -> float:
    """At a distance that float32 does not lose."""
    single = np.float32(value)
    return float(single + max(np.float32(_NARROW), np.spacing(abs(single))))


def _single(values: Tensor) -> Tensor:
    """In float32 at least: of bfloat16's three digits a mean may take all."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@dataclass(frozen=True)
class Preprocessing:
    """The contents of robosteer.json."""

    cameras: tuple[str, ...]
    image_size: int
    state_dim: int
    action_dim: int
    max_tokens: int
    execute: int
    """How many actions of a chunk the robot carries out before the next is sampled."""
    state: Statistics
    action: Statistics
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    fps: float | None = None
    """Actions a second [Hz]; None where the file does not say."""
    prompt_suffix: str = field(default="")
    images: Images = "pillow"
    clean_prompt: bool = False
    """Whether the instruction is stripped and its underscores and line breaks become spaces, as openpi does."""
    delta_actions: tuple[bool, ...] = ()
    """Where an action is predicted less the state at its chunk's start, by dimension; openpi's `DeltaActions(mask)`.
    Empty: nowhere."""
    notes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What else the file says, such as how the policy was pretrained: kept when it is written again, but no part of
    what the policy is."""

    def __post_init__(self) -> None:
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise UsageError(f"{FILE}: cameras must be distinct and at least one, not {list(self.cameras)}")
        for name, dim, statistics in (
            ("state", self.state_dim, self.state),
            ("action", self.action_dim, self.action),
        ):
            if len(statistics.mean) != dim:
                raise UsageError(
                    f"{FILE}: norm.{name} has {len(statistics.mean)} dimensions, {name}_dim is {dim}"
                )
        if min(self.image_size, self.max_tokens, self.execute) < 1 or (
            self.fps is not None and self.fps <= 0
        ):
            raise UsageError(f"{FILE}: image_size, max_tokens, execute and fps must be positive")
        if self.images not in get_args(Images):
            raise UsageError(f"{FILE}: images {self.images!r} is none of {', '.join(get_args(Images))}")
        if self.delta_actions and (
            len(self.delta_actions) != self.action_dim
            or not all(isinstance(delta, bool) for delta in self.delta_actions)
            or any(self.delta_actions[self.state_dim :])
        ):
            raise UsageError(
                f"{FILE}: delta_actions {list(self.delta_actions)} must say true or false of each of the "
                f"{self.action_dim} action dimensions, true only where the state (of {self.state_dim}) has one too"
            )

    def named(self, kind: str) -> tuple[str, ...]:
        """Dimension names of `state` or `action`; numbered when the file has none."""
        names, dim = (
            (self.state_names, self.state_dim) if kind == "state" else (self.action_names, self.action_dim)
        )
        return names if len(names) == dim else tuple(f"{kind}_{i}" for i in range(dim))

    @classmethod
    def read(cls, directory: Path, horizon: int) -> "Preprocessing":
        """Of the network with chunks of `horizon` actions, all of which are carried out if the file does not say."""
        path = directory / FILE
        if not path.is_file():
            raise UsageError(
                f"{directory} has no {FILE}: write one with cameras, image_size, state_dim, action_dim, "
                "max_tokens and norm (mean and std of state and action of the training data)"
            )
        try:
            return cls.from_json({"execute": horizon, **json.loads(path.read_text())})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is broken: {type(error).__name__}: {error}") from error

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Preprocessing":
        if data.get("schema") != SCHEMA:
            raise UsageError(
                f"{FILE}: schema {data.get('schema')!r} is not {SCHEMA}, the one that this version reads"
            )
        norm = {
            name: Statistics(tuple(s["mean"]), tuple(s["std"]), s.get("floor", STD_FLOOR))
            for name, s in data["norm"].items()
        }
        optional = {
            name: data[name] for name in ("fps", "prompt_suffix", "images", "clean_prompt") if name in data
        }
        known = {"schema", "norm", *(each.name for each in fields(cls))}
        return cls(
            cameras=tuple(data["cameras"]),
            image_size=data["image_size"],
            state_dim=data["state_dim"],
            action_dim=data["action_dim"],
            max_tokens=data["max_tokens"],
            execute=data["execute"],
            state=norm["state"],
            action=norm["action"],
            state_names=tuple(data.get("state_names", ())),
            action_names=tuple(data.get("action_names", ())),
            delta_actions=tuple(data.get("delta_actions", ())),
            notes={name: value for name, value in data.items() if name not in known},
            **optional,
        )

    def to_json(self) -> dict[str, Any]:
        """Without the notes: these are what a policy's fingerprint covers. What came later is left out where it is
        as it always was, so that fingerprints stay."""
        later = {"fps": None, "images": "pillow", "clean_prompt": False, "delta_actions": ()}
        data = {
            name: value
            for name, value in asdict(self).items()
            if name not in ("state", "action", "notes") and not (name in later and later[name] == value)
        }
        return {
            "schema": SCHEMA,
            **data,
            "norm": {"state": self.state.to_json(), "action": self.action.to_json()},
        }

    def normalise_actions(
        self, actions: Float[Tensor, "batch *axes action"], state: Float[Tensor, "batch state"] | None
    ) -> Float[Tensor, "batch *axes action"]:
        return self.action.apply(
            actions if not self.acts_in_deltas else actions - self._start(actions, state)
        )

    def unnormalise_actions(
        self, actions: Float[Tensor, "batch *axes action"], state: Float[Tensor, "batch state"] | None
    ) -> Float[Tensor, "batch *axes action"]:
        actions = self.action.invert(actions)
        return actions if not self.acts_in_deltas else actions + self._start(actions, state)

    @property
    def acts_in_deltas(self) -> bool:
        return any(self.delta_actions)

    def _start(self, actions: Tensor, state: Tensor | None) -> Float[Tensor, "batch *ones action"]:
        """The state where actions are less it, and 0 elsewhere."""
        state = start_of(actions, state, f"{FILE}: delta_actions")
        at = state.to(actions)[:, : self.action_dim]
        at = F.pad(at, (0, self.action_dim - at.shape[1])) * at.new_tensor(self.delta_actions)
        return at.reshape(len(at), *[1] * (actions.ndim - 2), self.action_dim)

    def cleaned(self, instruction: str) -> str:
        return instruction.strip().replace("_", " ").replace("\n", " ") if self.clean_prompt else instruction

    def prompt(self, instruction: str) -> str:
        """What is tokenised. A suffix that is already there is not written twice."""
        instruction = self.cleaned(instruction)
        return instruction if instruction.endswith(self.prompt_suffix) else instruction + self.prompt_suffix

    def pixels(self, image: UInt8[np.ndarray, "height width 3"]) -> Float[Tensor, "3 size size"]:
        """Letterboxed, in [-1, 1]. An image that already has the right size passes through unresampled."""
        if image.shape[:2] != (self.image_size, self.image_size):
            if self.images in _BORDERS:
                return _interpolated(image, self.image_size, _BORDERS[self.images])
            fit = Letterbox.fit if self.images == "pillow" else _rounded_down
            image = letterbox(image, fit(image.shape[0], image.shape[1], self.image_size))
        return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 127.5 - 1


def relative_mask(step: Mapping[str, Any], dim: int) -> tuple[bool, ...]:
    """`delta_actions` of LeRobot's relative_actions_processor: all but those whose name has one of the excluded names
    in it (lerobot/processor/relative_action_processor.py, `_build_mask`)."""
    about = step.get("config", {})
    if not about.get("enabled"):
        return ()
    excluded = [name.lower() for name in about.get("exclude_joints") or () if name]
    names = [name.lower() for name in about.get("action_names") or ()][:dim]
    kept = [any(each in name for each in excluded) for name in names] + [False] * (dim - len(names))
    return tuple(not absolute for absolute in kept)


def start_of(actions: Tensor, state: Tensor | None, setting: str) -> Float[Tensor, "batch state"]:
    """The state that actions of a policy in deltas start from, which must be there for every row; `setting` is what
    made it such a policy."""
    if state is None:
        raise UsageError(
            f"the policy acts in deltas ({setting}): its actions need the state that they start from"
        )
    if len(state) != len(actions):
        raise UsageError(f"{len(actions)} rows of actions and {len(state)} states: every row needs its own")
    return state


def states_of(
    observations: Sequence[Observation], device: torch.device | str = "cpu"
) -> Float[Tensor, "batch state"]:
    """In the robot's units, as `Policy.unnormalise_actions` takes them."""
    return torch.tensor(np.stack([observation.state for observation in observations])).float().to(device)


def _rounded_down(height: int, width: int, size: int) -> Letterbox:
    # In this order of operations: another one rounds 168 down to 167.
    ratio = max(width / size, height / size)
    inner_height, inner_width = max(1, int(height / ratio)), max(1, int(width / ratio))
    return Letterbox((size - inner_height) // 2, (size - inner_width) // 2, inner_height, inner_width, size)


def _interpolated(
    image: UInt8[np.ndarray, "height width 3"], size: int, border: float
) -> Float[Tensor, "3 size size"]:
    box = _rounded_down(image.shape[0], image.shape[1], size)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    inner = F.interpolate(pixels, size=(box.height, box.width), mode="bilinear", align_corners=False)
    canvas = inner.new_full((3, size, size), border)
    canvas[:, box.top : box.top + box.height, box.left : box.left + box.width] = inner[0] * 2 - 1
    return canvas


def letterbox(image: UInt8[np.ndarray, "height width 3"], box: Letterbox) -> UInt8[np.ndarray, "size size 3"]:
    size = box.size
    canvas = np.zeros((size, size, 3), np.uint8)
    inner = Image.fromarray(image).resize((box.width, box.height), Image.Resampling.BILINEAR)
    canvas[box.top : box.top + box.height, box.left : box.left + box.width] = np.asarray(inner)
    return canvas
