"""What verbs make of the words of an option."""

from __future__ import annotations

from collections.abc import Sequence


def named_values(option: str, pairs: Sequence[str], example: str) -> dict[str, object]:
    """`light=0.5` -> {"light": 0.5}: values are JSON where they can be, else text."""
    import json

    from interp.errors import UsageError

    knobs: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"{option} {pair}: write NAME=VALUE, for example {example}")
        try:
            knobs[name] = json.loads(value)
        except json.JSONDecodeError:
            knobs[name] = value
    return knobs
