"""The settings of a training as one value: what decides a finetuned policy but for data, heads and seed.

Beside the recipes, not among them: the dashboard offers recipes before anything loads torch, which takes seconds.

Defaults are those of tiny-pi0 on 20 demonstrations. What differs by recipe is in DEFAULTS; PUBLISHED holds what
Robotic Steering (arXiv 2511.22697) used on pi0: `Recipe.named("paper", **PUBLISHED)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from interp.errors import UsageError, unknown
from interp.runs import check_name

NAMES = (
    "aligned",
    "paper",
    "all-heads",
    "random-k",
    "bottom-k",
    "generic-k",
    "ffn-only",
    "lora",
    "full",
)
Form = Literal["full", "low-rank"]
LoraTargets = Literal["lerobot", "all-linear"]
Padding = Literal["mask", "repeat"]

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "full": {"lr": 3e-4},
    # As published but for steps, warm-up and learning rate, which are tiny-pi0's: it takes 250 steps, not thousands.
    "paper": {
        "form": "low-rank",
        "rank": 16,
        "lora_rank": 16,
        "flow_projections": True,
        "weight_decay": 1e-10,
        "lr_final": 0.1,
    },
    "ffn-only": {"lora_rank": 16, "weight_decay": 1e-10, "lr_final": 0.1},
}

PUBLISHED: Mapping[str, Any] = {
    "steps": 3000,
    "batch": 32,
    "draws": 1,
    "lr": 2.5e-5,
    "lr_final": 0.1,
    "warmup": 200,
}
"""The published optimisation (3000 to 5000 steps; clip, betas and weight decay are `paper`'s defaults)."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a finetuned policy, but for the data, the heads and the seed.

    A step takes `batch` demonstration frames and `draws` (noise, time) pairs for each. The learning rate is a cosine
    from `lr` at step 0 to `lr_final * lr`, times a linear warm-up over the first `warmup` steps, which are fewer than
    `steps`: its peak is the cosine's value where the warm-up ends.
    """

    name: str = "aligned"
    form: Form = "full"
    rank: int = 4
    projections: tuple[str, ...] = ("q", "o")
    lora_targets: LoraTargets = "lerobot"
    lora_rank: int = 16
    flow_projections: bool = False
    """Train the time MLP and the action projections in and out as well (`paper`, `ffn-only`)."""
    steps: int = 250
    batch: int = 32
    draws: int = 4
    lr: float = 2e-3
    lr_final: float = 0.02
    warmup: int = 20
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.0
    """Decay of an average of the weights over the steps, which is what is saved; 0 saves the last step's."""
    padding: Padding = "mask"
    """Actions past an episode's end: not counted, or the last action again (as pi0 is pretrained)."""
    augment_shift: float = 0.0
    """Largest shift of an image, as a share of its side."""
    augment_colour: float = 0.0
    """Standard deviation of an image's gain; its tint's is half of it."""

    def __post_init__(self) -> None:
        if self.name == "retain":
            raise UsageError(
                "recipe retain trains nothing: it averages a finished training with its base "
                "(`robosteer finetune --retain 0.5`, steering/retain.py)"
            )
        if self.name not in NAMES:
            raise unknown("recipe", self.name, NAMES)
        for what, value in asdict(self).items():
            numbers = value if isinstance(value, tuple | list) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise UsageError(f"recipe {self.name}: {what} = {value}; it must be a finite number")
        for what in ("rank", "lora_rank", "steps", "batch", "draws", "lr", "clip"):
            if not getattr(self, what) > 0:
                raise UsageError(f"recipe {self.name}: {what} = {getattr(self, what)}; it must be above zero")
        for what, kind in (("form", Form), ("lora_targets", LoraTargets), ("padding", Padding)):
            if getattr(self, what) not in get_args(kind):
                raise unknown(_SPOKEN[what], getattr(self, what), get_args(kind))
        if self.warmup < 0 or self.weight_decay < 0 or not 0 <= self.lr_final <= 1:
            raise UsageError(f"recipe {self.name}: warmup and weight_decay from 0, lr_final from 0 to 1")
        if self.warmup >= self.steps:
            raise UsageError(
                f"recipe {self.name}: warmup = {self.warmup} of steps = {self.steps}; it must be shorter, such as 0"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"recipe {self.name}: betas = {self.betas}; they are two, from 0 to below 1")
        if not 0 <= self.ema < 1:
            raise UsageError(f"recipe {self.name}: ema = {self.ema}; a decay lies from 0 to below 1")
        if not 0 <= self.augment_shift < 0.5 or self.augment_colour < 0:
            raise UsageError(
                f"recipe {self.name}: augment_shift from 0 to below 0.5, augment_colour from 0, "
                f"not {self.augment_shift} and {self.augment_colour}"
            )

    @property
    def augments(self) -> bool:
        return bool(self.augment_shift or self.augment_colour)

    @classmethod
    def named(cls, name: str, /, **changes: Any) -> Recipe:
        """The recipe with the defaults of its name: `Recipe.named("lora", steps=500)`.

        A warm-up that nobody asks for is shortened to end before the training does.
        """
        if "name" in changes:
            raise UsageError(
                f"a recipe's name is no setting of it: ask for --recipe {changes['name']} instead"
            )
        wrong = changes.keys() - {field.name for field in fields(cls)}
        if wrong:
            raise unknown("recipe setting", sorted(wrong)[0], [field.name for field in fields(cls)])
        kinds = {field.name: field.default for field in fields(cls)}
        fitting = {setting: _as(kinds[setting], setting, value) for setting, value in changes.items()}
        if "steps" in fitting:
            fitting.setdefault("warmup", max(0, min(cls.warmup, fitting["steps"] - 1)))
        return cls(name, **{**DEFAULTS.get(name, {}), **fitting})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "betas": list(self.betas), "projections": list(self.projections)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        """A setting that the file lacks is younger than the file, and off by default."""
        known = {field.name for field in fields(cls)}
        if wrong := sorted(data.keys() - known):
            raise unknown("recipe setting", wrong[0], known)
        tuples = {name: tuple(data[name]) for name in ("betas", "projections") if name in data}
        return cls(**{**data, **tuples})


def check_job(name: str) -> str:
    """A training's name is that of its results too, and `base` is the policy's before any training."""
    if check_name(name, "name of the job") == "base":
        raise UsageError("name of the job 'base': it is that of the base policy's results; choose another")
    return name


def _as(example: Any, setting: str, value: Any) -> Any:
    """The value, if it is of the example's kind; a list may be written `q,o`."""
    if isinstance(example, tuple):
        parts = value.split(",") if isinstance(value, str) else value
        if isinstance(parts, list | tuple):
            return tuple(_as(example[0], setting, part) for part in parts)
    elif isinstance(example, float):
        with suppress(TypeError, ValueError):
            return float(value)
    elif type(value) is type(example):
        return value
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", tuple: "a list"}
    raise UsageError(f"recipe setting {setting} = {value!r}: it must be {wanted[type(example)]}")


_SPOKEN = {
    "form": "slice form",
    "lora_targets": "LoRA targets",
    "padding": "treatment of padded actions",
}
