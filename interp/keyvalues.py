"""Layers of a transformers vlm called by hand: their cache, which stops the pass when nothing more is wanted of it.

A vlm that only feeds an expert is read for its keys and values. A layer hands them to a transformers cache, an argument
whose name has changed (`past_key_values`, since transformers 5.24 `cache`); in its place `KeyValues` keeps them.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

NAMES = ("cache", "past_key_values")


def cache_argument(arguments: Mapping[str, Any]) -> str | None:
    """Which of a layer's named arguments is a transformers cache; None if the family's layers take none."""
    return next((name for name in NAMES if name in arguments), None)


def with_cache(arguments: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """The arguments of a layer that takes a cache, with this one."""
    name = cache_argument(arguments)
    assert name is not None
    return {**arguments, name: cache}


class Complete(Exception):
    """Keys and values of all layers are there: the rest of the last layer reaches nothing."""


class KeyValues:
    """The one method of a transformers cache that an attention layer calls. `layers` are (keys, values) by layer, of
    which some may be known before; the update of layer `last` raises `Complete`."""

    def __init__(self, last: int, known: Mapping[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.last = last
        self.layers = dict(known or {})

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *others: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        self.layers[layer] = (keys, values)
        if layer == self.last:
            raise Complete
        return keys, values
