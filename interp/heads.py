"""A head is (tower, layer, index), written `expert.L7H3` everywhere: logs, URLs, tables, flags."""

import re
from dataclasses import dataclass

from interp.errors import UsageError

_WRITTEN = re.compile(r"(?P<tower>[a-z][a-z0-9_]*)\.L(?P<layer>\d+)H(?P<index>\d+)")


@dataclass(frozen=True, order=True)
class Head:
    """One attention head of one tower. Whether it exists is the policy's to say: `PolicySpec.check`."""

    tower: str
    layer: int
    index: int

    def __post_init__(self) -> None:
        if self.layer < 0 or self.index < 0:
            raise UsageError(f"head {self}: layer and index start at 0")

    def __str__(self) -> str:
        return f"{self.tower}.L{self.layer}H{self.index}"

    @classmethod
    def parse(cls, text: str) -> "Head":
        match = _WRITTEN.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"{text!r} is not a head: write <tower>.L<layer>H<index>, for example expert.L7H3"
            )
        return cls(match["tower"], int(match["layer"]), int(match["index"]))
