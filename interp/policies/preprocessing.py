"""`robosteer.json`: what lies between a robot and the network's tensors, kept beside the weights.

Cameras and their order, image size, normalisation statistics, token budget, control rate. Pixels are
letterboxed (aspect kept, centred, black border) and mapped to [-1, 1]; state and actions are standardised.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from interp.errors import UsageError
from interp.policies.spec import Letterbox

FILE = "robosteer.json"
SCHEMA = 1
STD_FLOOR = 1e-8
"""Added to every standard deviation, as transformers' PI0Processor does, so that a constant dimension stays
finite.
"""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each dimension over the data that the policy was trained on."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if (
            len(self.mean) != len(self.std)
            or not np.isfinite([*self.mean, *self.std]).all()
            or min(self.std) < 0
        ):
            raise UsageError("norm: mean and std must be finite, equally long, and std not negative")

    def apply(self, values: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        return (values - values.new_tensor(self.mean)) / (values.new_tensor(self.std) + STD_FLOOR)

    def invert(self, values: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        return values * (values.new_tensor(self.std) + STD_FLOOR) + values.new_tensor(self.mean)


@dataclass(frozen=True)
class Preprocessing:
    """The contents of robosteer.json."""

    cameras: tuple[str, ...]
    image_size: int
    state_dim: int
    action_dim: int
    max_tokens: int
    state: Statistics
    action: Statistics
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    fps: float = 10
    execute: int = 1
    prompt_suffix: str = field(default="")
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
        if min(self.image_size, self.max_tokens, self.execute) < 1 or self.fps <= 0:
            raise UsageError(f"{FILE}: image_size, max_tokens, execute and fps must be positive")

    def named(self, kind: str) -> tuple[str, ...]:
        """Dimension names of `state` or `action`; numbered when the file has none."""
        names, dim = (
            (self.state_names, self.state_dim) if kind == "state" else (self.action_names, self.action_dim)
        )
        return names if len(names) == dim else tuple(f"{kind}_{i}" for i in range(dim))

    @classmethod
    def read(cls, directory: Path) -> "Preprocessing":
        path = directory / FILE
        if not path.is_file():
            raise UsageError(
                f"{directory} has no {FILE}: write one with cameras, image_size, state_dim, action_dim, "
                "max_tokens and norm (mean and std of state and action of the training data)"
            )
        try:
            return cls.from_json(json.loads(path.read_text()))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is broken: {type(error).__name__}: {error}") from error

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Preprocessing":
        if data.get("schema") != SCHEMA:
            raise UsageError(
                f"{FILE}: schema {data.get('schema')!r} is not {SCHEMA}, the one that this version reads"
            )
        norm = {name: Statistics(tuple(s["mean"]), tuple(s["std"])) for name, s in data["norm"].items()}
        optional = {name: data[name] for name in ("fps", "execute", "prompt_suffix") if name in data}
        known = {"schema", "norm", *(each.name for each in fields(cls))}
        return cls(
            cameras=tuple(data["cameras"]),
            image_size=data["image_size"],
            state_dim=data["state_dim"],
            action_dim=data["action_dim"],
            max_tokens=data["max_tokens"],
            state=norm["state"],
            action=norm["action"],
            state_names=tuple(data.get("state_names", ())),
            action_names=tuple(data.get("action_names", ())),
            notes={name: value for name, value in data.items() if name not in known},
            **optional,
        )

    def to_json(self) -> dict[str, Any]:
        """Without the notes: these are what a policy's fingerprint covers."""
        data = {
            name: value for name, value in asdict(self).items() if name not in ("state", "action", "notes")
        }
        norm = {"state": asdict(self.state), "action": asdict(self.action)}
        return {"schema": SCHEMA, **data, "norm": norm}

    def pixels(self, image: UInt8[np.ndarray, "height width 3"]) -> Float[Tensor, "3 size size"]:
        """Letterboxed, in [-1, 1]. An image that already has the right size passes through unresampled."""
        if image.shape[:2] != (self.image_size, self.image_size):
            image = letterbox(image, self.image_size)
        return torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 127.5 - 1


def letterbox(image: UInt8[np.ndarray, "height width 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    box = Letterbox.fit(image.shape[0], image.shape[1], size)
    canvas = np.zeros((size, size, 3), np.uint8)
    inner = Image.fromarray(image).resize((box.width, box.height), Image.Resampling.BILINEAR)
    canvas[box.top : box.top + box.height, box.left : box.left + box.width] = np.asarray(inner)
    return canvas
