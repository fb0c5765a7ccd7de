"""Tensors of all frames, filled a few frames at a time and read in any order.

Values come as a tree: mappings, sequences and tensors, anything else being constant. A tensor whose first axis counts
the frames of a pass is kept for every frame; one that the tree holds several times is kept once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


class FrameStore:
    """Laid out after an example of `rows` frames (two or more, so that an axis of one frame stands out)."""

    def __init__(self, example: Mapping[str, Any], rows: int, frames: int) -> None:
        self._example, self._rows = example, rows
        # Nothing is taken from the system before it is filled.
        self._tensors = {
            at: t.new_empty((frames, *t.shape[1:])) for at, t in self._distinct(example, rows).items()
        }

    @property
    def megabytes(self) -> float:
        return sum(t.nbytes for t in self._tensors.values()) / 2**20

    def put(self, start: int, values: Mapping[str, Any]) -> None:
        """Keep the values of frames `start` on."""
        found = self._distinct(values)
        for at, kept in self._tensors.items():
            kept[start : start + len(found[at])] = found[at]

    def take(self, frames: Int[Tensor, " batch"]) -> dict[str, Any]:
        """The tree again, for these frames."""
        picked = {at: kept[frames] for at, kept in self._tensors.items()}
        seen: dict[_Key, str] = {}

        def pick(at: str, tensor: Tensor) -> Tensor:
            first = seen.setdefault(_key(tensor), at)
            return picked.get(first, tensor)

        return dict(_mapped(self._example, pick))

    def _distinct(self, values: Mapping[str, Any], rows: int | None = None) -> dict[str, Tensor]:
        """Every tensor at the first place that holds it; with `rows`, only those with an axis of frames."""
        found: dict[str, Tensor] = {}
        seen: set[_Key] = set()

        def note(at: str, tensor: Tensor) -> Tensor:
            if _key(tensor) not in seen and (rows is None or (tensor.ndim > 1 and len(tensor) == rows)):
                found[at] = tensor
            seen.add(_key(tensor))
            return tensor

        _mapped(values, note)
        return found


_Key = tuple[int, torch.Size, tuple[int, ...], torch.dtype]


def _key(tensor: Tensor) -> _Key:
    """Equal for two views of the same numbers."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _mapped(value: Any, change: Callable[[str, Tensor], Tensor], at: str = "") -> Any:
    if isinstance(value, Tensor):
        return change(at, value)
    if isinstance(value, Mapping):
        return {name: _mapped(each, change, f"{at}/{name}") for name, each in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_mapped(each, change, f"{at}/{i}") for i, each in enumerate(value))
    return value
