"""Footage: where every head looks in every frame of the demonstrations, and what it writes into the action.

This room reads it, without torch and without the policy; filming.py writes it. One folder an episode:

    attention/<episode>/footage.json            frames, cameras, parts, words, what it is of
    attention/<episode>/prediction.npy          float32 [frame, action]                     robot units
    attention/<episode>/<tower>/<camera>.npy    uint8   [layer, head, frame, row, column]   255 is the frame's peak
                              /<camera>-peak.npy  float32 [layer, head, frame]              what 255 stands for
                              /mass.npy         float32 [layer, head, frame, part]          interp/mass.py
                              /words.npy        float32 [layer, head, frame, word]          of the instruction
                              /contribution.npy float32 [layer, head, frame, action]        expert only

attention     from the action tokens (expert) or the instruction's tokens (vlm) to a patch: mean over these queries and,
              in the expert, over flow steps. Patches in which the letterbox shows nothing are 0 here; their mass
              is in the parts `image/<camera>/padding`.
contribution  what the head itself adds to the first action of the chunk, in normalised units: interp.attribution.direct

The head axes come first, so that one head's frames lie side by side: a reader maps the file and touches nothing else.

`EDITS` make corrupt twins of recorded frames, in which one thing differs. They edit pixels and words, nothing is
rendered anew. A twin's folder is `attention/<episode>.<edit>`; if its pixels differ, they are in its `frames/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from interp.errors import UsageError, unknown
from interp.heads import Head
from interp.runs import Run, read_json

if TYPE_CHECKING:
    from interp.policies.protocol import Observation

SCHEMA = 1
ABOUT = "footage.json"


@dataclass(frozen=True)
class Camera:
    """How a camera's patch grid lies over its picture: `letterbox` is where the picture is inside the square."""

    grid: tuple[int, int]
    letterbox: Mapping[str, int]


@dataclass(frozen=True)
class Edit:
    """A change of one thing in a recorded observation; `factor` says of which kind."""

    label: str
    factor: str
    change: Callable[[Observation], Observation]
    pixels: bool


def _dark(observation: Observation) -> Observation:
    images = {name: (image * 0.35).astype(np.uint8) for name, image in observation.images.items()}
    return replace(observation, images=images)


EDITS: Mapping[str, Edit] = {
    "no-words": Edit("empty instruction", "linguistic", lambda o: replace(o, instruction=""), pixels=False),
    "dark": Edit("pixels at 35 % brightness", "visual", _dark, pixels=True),
}


@dataclass(frozen=True)
class Footage:
    """One episode's footage on disk. Every method reads one head's part of one file."""

    path: Path
    episode: int
    edit: str | None
    frames: int
    cameras: Mapping[str, Camera]
    parts: tuple[str, ...]
    words: tuple[str, ...]
    towers: Mapping[str, tuple[int, int]]
    """Layers and heads by tower."""
    settings: Mapping[str, Any]

    @classmethod
    def open(cls, run: Run, episode: int, edit: str | None = None) -> Footage:
        path = place(run, episode, edit)
        if not (path / ABOUT).is_file():
            what = f"episode {episode}" + (f" with edit {edit}" if edit else "")
            raise UsageError(
                f"run {run.path} has no footage of {what}: `robosteer capture --footage` writes it"
            )
        about = read_json(path / ABOUT)
        try:
            if about["schema"] != SCHEMA:
                raise UsageError(f"{path / ABOUT}: schema {about['schema']}, this version reads {SCHEMA}")
            return cls(
                path=path,
                episode=about["episode"],
                edit=about["edit"],
                frames=about["frames"],
                cameras={
                    name: Camera((camera["grid"][0], camera["grid"][1]), camera["letterbox"])
                    for name, camera in about["cameras"].items()
                },
                parts=tuple(about["parts"]),
                words=tuple(about["words"]),
                towers={name: (layers, heads) for name, (layers, heads) in about["towers"].items()},
                settings=about["settings"],
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UsageError(f"{path / ABOUT} is broken: {type(error).__name__}: {error}") from error

    def attention(self, head: Head, camera: str) -> UInt8[np.ndarray, "frame row column"]:
        """In units of `peak` / 255."""
        if camera not in self.cameras:
            raise unknown("camera", camera, self.cameras)
        return self._read(head, f"{camera}.npy")

    def peak(self, head: Head, camera: str) -> Float[np.ndarray, " frame"]:
        """The most attention that any patch of the picture gets, per frame."""
        if camera not in self.cameras:
            raise unknown("camera", camera, self.cameras)
        return self._read(head, f"{camera}-peak.npy")

    def mass(self, head: Head) -> Float[np.ndarray, "frame part"]:
        return self._read(head, "mass.npy")

    def to_words(self, head: Head) -> Float[np.ndarray, "frame word"]:
        return self._read(head, "words.npy")

    def contribution(self, head: Head) -> Float[np.ndarray, "frame action"] | None:
        """None for heads of the vlm, which write no action themselves."""
        return self._read(head, "contribution.npy") if self._file(head, "contribution.npy").exists() else None

    def prediction(self) -> Float[np.ndarray, "frame action"]:
        return _load(self.path / "prediction.npy")

    def picture(self, camera: str, frame: int) -> Path | None:
        """The edited picture; None if the edit leaves pixels alone, then the run's own frame shows it."""
        path = self.path / "frames" / camera / f"{frame:05d}.jpg"
        return path if path.is_file() else None

    def _file(self, head: Head, name: str) -> Path:
        return self.path / head.tower / name

    def _read(self, head: Head, name: str) -> np.ndarray:
        if head.tower not in self.towers:
            raise UsageError(f"head {head}: footage covers towers {', '.join(self.towers)}, not {head.tower}")
        layers, heads = self.towers[head.tower]
        if head.layer >= layers or head.index >= heads:
            raise UsageError(f"head {head}: tower {head.tower} has {layers} layers of {heads} heads, from 0")
        return np.array(_load(self._file(head, name))[head.layer, head.index])


def place(run: Run, episode: int, edit: str | None = None) -> Path:
    """The folder of an episode's footage, there or not."""
    if edit is not None and edit not in EDITS:
        raise unknown("edit", edit, EDITS)
    return run.path / "attention" / (str(episode) if edit is None else f"{episode}.{edit}")


def footage_of(run: Run) -> dict[int, tuple[str, ...]]:
    """Episodes whose frames have footage, with the edits of which they have a twin."""
    found = {path.parent.name for path in (run.path / "attention").glob(f"*/{ABOUT}")}
    clean = sorted(int(name) for name in found if name.isdecimal())
    return {episode: tuple(edit for edit in EDITS if f"{episode}.{edit}" in found) for episode in clean}


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is broken: {str(error).splitlines()[0]}") from error
