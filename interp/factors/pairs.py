"""Factor pairs: twins of an observation in which one thing differs, and what that thing is.

factor  visual      appearance: of objects, table, light, camera, clutter
        linguistic  the instruction
        physical    where things are: objects, the robot's joints and fingers, the hand on the arm
kind    semantic    the right action differs between the twins
        nuisance    it does not: what a policy should ignore
edit    the one thing that differs, by name (`light`, `colour-word`, `object-pose`)
source  testbed     the same simulator state, rendered twice
        stand-in    an edited recording: pixels, words or numbers were changed without the world following

A linguistic pair always has a control beside it, the same observations with and without an instruction (`emptied`):
a policy that does not notice that its instruction is gone is prompt-blind, and has no linguistic heads to find.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, Literal, TypeVar

from interp.errors import UsageError, unknown
from interp.patching import Pairs, prompt_lengths
from interp.policies.protocol import Observation, Policy

FACTORS = ("visual", "linguistic", "physical")
KINDS = ("semantic", "nuisance")
Factor = Literal["visual", "linguistic", "physical"]
Kind = Literal["semantic", "nuisance"]
Source = Literal["testbed", "stand-in"]
Scene = TypeVar("Scene")
"""What an edit works on: an observation and the world, or the data, that it is from."""


def check_factor(name: str) -> str:
    if name not in FACTORS:
        raise unknown("factor", name, FACTORS)
    return name


@dataclass(frozen=True)
class Twin:
    """An observation and its corrupt twin. `group` is the episode, the unit that intervals resample."""

    clean: Observation
    corrupt: Observation
    edit: str
    kind: Kind
    group: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("kind of edit", self.kind, KINDS)


@dataclass(frozen=True)
class FactorPairs:
    """Twins of one factor. A place in `twins` is the axis `pair` everywhere."""

    factor: str
    twins: tuple[Twin, ...]
    source: Source

    def __post_init__(self) -> None:
        check_factor(self.factor)
        if not self.twins:
            raise UsageError(f"no {self.factor} pairs: a factor needs at least one")

    def __len__(self) -> int:
        return len(self.twins)

    @cached_property
    def pairs(self) -> Pairs:
        """As patching and attribution take them."""
        return Pairs(
            clean=tuple(twin.clean for twin in self.twins),
            corrupt=tuple(twin.corrupt for twin in self.twins),
            group=tuple(twin.group for twin in self.twins),
        )

    @property
    def edits(self) -> dict[str, int]:
        """How many pairs every edit has."""
        return dict(Counter(twin.edit for twin in self.twins))

    def where(self, kind: str | None = None, edit: str | None = None) -> list[int]:
        """Places of the pairs of a kind, of an edit."""
        return [
            place
            for place, twin in enumerate(self.twins)
            if kind in (None, twin.kind) and edit in (None, twin.edit)
        ]

    def check_prompts(self, policy: Policy) -> "FactorPairs":
        """Itself, unless a pair's prompts differ in length: then language positions would not correspond."""
        for twin in self.twins:
            clean, corrupt = prompt_lengths(policy, [twin.clean, twin.corrupt])
            if clean != corrupt:
                raise UsageError(
                    f"edit {twin.edit!r} changes the prompt's length from {clean} to {corrupt} tokens "
                    f"({twin.clean.instruction!r}, {twin.corrupt.instruction!r}): use prompts of one length"
                )
        return self


@dataclass(frozen=True)
class Edit(Generic[Scene]):
    """One way to make a corrupt twin; `corrupt` gives None where it does not apply."""

    kind: Kind
    corrupt: Callable[[Scene], Observation | None]


class Turns(Generic[Scene]):
    """Edits take turns: the least used in a setting (a task) goes first, or it would go with one setting every time."""

    def __init__(self, factor: str, edits: Mapping[str, Edit[Scene]], names: Sequence[str] | None) -> None:
        for name in names or ():
            if name not in edits:
                raise unknown(f"{factor} edit", name, edits)
        self.factor = factor
        self.edits = {name: edits[name] for name in (edits if names is None else names)}
        self.used: Counter[object] = Counter()

    def twin(self, scene: Scene, clean: Observation, setting: str, group: int) -> Twin:
        for name in sorted(self.edits, key=lambda name: (self.used[setting, name], self.used[name])):
            corrupt = self.edits[name].corrupt(scene)
            if corrupt is not None:
                self.used.update([name, (setting, name)])
                return Twin(clean, corrupt, name, self.edits[name].kind, group)
        hint = ": no other words of the same length in the policy's tokens" * (self.factor == "linguistic")
        raise UsageError(
            f"no {self.factor} edit ({', '.join(self.edits) or 'none chosen'}) applies to {setting!r}{hint}"
        )


def emptied(pairs: Pairs) -> Pairs:
    """The empty-prompt control: the clean observations with and without their instruction."""
    silent = tuple(replace(observation, instruction="") for observation in pairs.clean)
    return Pairs(pairs.clean, silent, pairs.group)


def as_long(policy: Policy, observation: Observation, instructions: Sequence[str]) -> list[str]:
    """Those of the instructions that differ from the observation's own, have as many tokens, and only known words."""
    (own,) = prompt_lengths(policy, [observation])
    fitting = []
    for text in dict.fromkeys(instructions):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*words that the policy does not know")
            try:
                (length,) = prompt_lengths(policy, [replace(observation, instruction=text)])
            except (UserWarning, UsageError):  # unknown words, or too long
                continue
        if text != observation.instruction and length == own:
            fitting.append(text)
    return fitting
