"""Factor pairs from recorded demonstrations: edits of a frame that stand in for a change of the world.

A recording cannot be rendered again, so a frame's pixels, words or state are edited alone, and the rest does not follow
(an arm whose joint readings move stays where it was in the picture). That is why these pairs are labelled `stand-in`,
and why a simulator's pairs (tabletop.py) are better where there is one.

visual      brightness, colour channels exchanged, image shifted, a patch pasted (nuisance); another episode's images
            (semantic)
linguistic  another colour, object or verb word, another instruction of the data, the words in another order (semantic);
            a synonym (nuisance). Only prompts of the clean one's length
physical    the state of another episode, the arm's state offset, the gripper's state at its other end (semantic); a
            little sensor noise (nuisance)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.factors.pairs import Edit, FactorPairs, Turns, as_long, check_factor
from interp.policies.protocol import Observation, Policy

COLOURS = ("red", "green", "blue", "yellow", "orange", "white", "black", "purple", "pink", "brown", "grey")
OBJECTS = ("cube", "block", "bowl", "mug", "cup", "button", "marker", "plate", "box", "drawer", "towel")
VERBS = ("pick", "lift", "grab", "put", "place", "drop", "press", "push", "slide", "move", "open", "close")
SYNONYMS = (("pick", "grab", "lift", "take"), ("put", "place", "drop", "set"), ("push", "slide", "move"))
GRIPPER = ("gripper", "finger")
OFFSET, JITTER = 0.5, 0.02
"""Of a state dimension's standard deviation in the data."""

Image = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Recorded:
    """A frame of the demonstrations, as an edit sees it: with the data around it."""

    policy: Policy
    demos: Demonstrations
    clean: Observation
    other: Observation
    """A random frame of another episode, if there is one."""
    rng: np.random.Generator

    def images(self, change: Callable[[Image], Image]) -> Observation:
        return replace(
            self.clean, images={camera: change(image) for camera, image in self.clean.images.items()}
        )


Corrupt = Callable[[Recorded], Observation | None]
"""The corrupt twin; None where the edit does not apply."""


# ---- visual


def _brightness(frame: Recorded) -> Observation:
    factor = frame.rng.choice((0.6, 0.75, 1.35))
    return frame.images(lambda image: np.clip(image * factor, 0, 255).astype(np.uint8))


def _channels(frame: Recorded) -> Observation:
    order = [[1, 2, 0], [2, 0, 1], [2, 1, 0]][int(frame.rng.integers(3))]
    return frame.images(lambda image: image[..., order])


def _shift(frame: Recorded) -> Observation:
    """As if the camera had turned a little: up to a tenth of the picture, edges repeated."""
    across, down = frame.rng.uniform(-0.1, 0.1, 2)

    def shifted(image: Image) -> Image:
        height, width = image.shape[:2]
        rows = np.clip(np.arange(height) + round(down * height), 0, height - 1)
        columns = np.clip(np.arange(width) + round(across * width), 0, width - 1)
        return image[rows][:, columns]

    return frame.images(shifted)


def _patch(frame: Recorded) -> Observation:
    """A square of one colour, a fifth of the picture's side, anywhere: clutter."""
    left, top, colour = *frame.rng.uniform(0, 0.8, 2), frame.rng.integers(0, 256, 3)

    def pasted(image: Image) -> Image:
        height, width = image.shape[:2]
        image = image.copy()
        rows = slice(int(top * height), int((top + 0.2) * height))
        image[rows, int(left * width) : int((left + 0.2) * width)] = colour
        return image

    return frame.images(pasted)


def _other_images(frame: Recorded) -> Observation:
    return replace(frame.clean, images=frame.other.images)


# ---- linguistic


def _words(vocabulary: Sequence[str]) -> Callable[[Recorded], list[str]]:
    """The first word of the vocabulary in the instruction, exchanged for every other one."""

    def options(frame: Recorded) -> list[str]:
        words = frame.clean.instruction.split()
        at = next((place for place, word in enumerate(words) if word.lower() in vocabulary), None)
        if at is None:
            return []
        return [" ".join([*words[:at], other, *words[at + 1 :]]) for other in vocabulary]

    return options


def _synonym(frame: Recorded) -> list[str]:
    return [text for group in SYNONYMS for text in _words(group)(frame)]


def _other_instruction(frame: Recorded) -> list[str]:
    return sorted({frame.demos.instructions[task] for task in np.unique(frame.demos.task)})


def _scrambled(frame: Recorded) -> list[str]:
    words = frame.clean.instruction.split()
    return [" ".join(frame.rng.permutation(words)) for _ in range(4)]


def _say(options: Callable[[Recorded], list[str]]) -> Corrupt:
    def corrupt(frame: Recorded) -> Observation | None:
        fitting = as_long(frame.policy, frame.clean, options(frame))
        if not fitting:
            return None
        return replace(frame.clean, instruction=fitting[int(frame.rng.integers(len(fitting)))])

    return corrupt


# ---- physical


def _other_state(frame: Recorded) -> Observation:
    return replace(frame.clean, state=frame.other.state)


def _arm_offset(frame: Recorded) -> Observation | None:
    return _nudged(frame, frame.rng.choice((-OFFSET, OFFSET), len(frame.clean.state)), gripper=False)


def _sensor_noise(frame: Recorded) -> Observation | None:
    return _nudged(frame, frame.rng.normal(0, JITTER, len(frame.clean.state)), gripper=True)


def _nudged(frame: Recorded, by: Float[np.ndarray, " state"], gripper: bool) -> Observation | None:
    """The state moved by some standard deviations; dimensions that never change in the data stay."""
    fingers = _gripper_dimensions(frame.policy)
    moving = np.array([gripper or name not in fingers for name in range(len(by))])
    change = np.where(moving, by * frame.demos.state.std(axis=0), 0)
    if not change.any():
        return None
    return replace(frame.clean, state=(frame.clean.state + change).astype(np.float32))


def _gripper_end(frame: Recorded) -> Observation | None:
    """The gripper's state at the end of its range, in the data, that is farther away."""
    places = sorted(_gripper_dimensions(frame.policy))
    if not places:
        return None
    low, high = frame.demos.state[:, places].min(axis=0), frame.demos.state[:, places].max(axis=0)
    state = frame.clean.state.copy()
    state[places] = np.where(state[places] > (low + high) / 2, low, high)
    return None if np.array_equal(state, frame.clean.state) else replace(frame.clean, state=state)


def _gripper_dimensions(policy: Policy) -> set[int]:
    names = policy.spec.state_names
    return {at for at, name in enumerate(names) if any(part in name.lower() for part in GRIPPER)}


EDITS: dict[str, dict[str, Edit[Recorded]]] = {
    "visual": {
        "other-images": Edit("semantic", _other_images),
        "brightness": Edit("nuisance", _brightness),
        "channels": Edit("nuisance", _channels),
        "shift": Edit("nuisance", _shift),
        "patch": Edit("nuisance", _patch),
    },
    "linguistic": {
        "colour-word": Edit("semantic", _say(_words(COLOURS))),
        "object-word": Edit("semantic", _say(_words(OBJECTS))),
        "verb": Edit("semantic", _say(_words(VERBS))),
        "other-instruction": Edit("semantic", _say(_other_instruction)),
        "scrambled": Edit("semantic", _say(_scrambled)),
        "synonym": Edit("nuisance", _say(_synonym)),
    },
    "physical": {
        "other-state": Edit("semantic", _other_state),
        "arm-offset": Edit("semantic", _arm_offset),
        "gripper": Edit("semantic", _gripper_end),
        "sensor-noise": Edit("nuisance", _sensor_noise),
    },
}
"""By factor and name; pairs take them in this order."""


def edited_pairs(
    policy: Policy,
    demos: Demonstrations,
    factor: str,
    n: int = 30,
    *,
    edits: Sequence[str] | None = None,
    seed: int = 0,
) -> FactorPairs:
    """n pairs from random frames, episodes and edits in turn. `edits` names some of the factor's (all by default)."""
    turns = Turns(factor, EDITS[check_factor(factor)], edits)
    if n < 1:
        raise UsageError(f"{n} pairs: need at least one")
    demos = demos.for_policy(policy.spec)
    rng = np.random.default_rng([seed, 11])
    twins = []
    for i in range(n):
        episode = demos.episodes[i % len(demos.episodes)]
        frame = int(rng.integers(episode.start, episode.stop))
        elsewhere = np.flatnonzero(demos.episode_of != demos.episode_of[frame])
        other = int(rng.choice(elsewhere if len(elsewhere) else np.arange(len(demos))))
        clean, stranger = demos.observations([frame, other])
        scene = Recorded(policy, demos, clean, stranger, np.random.default_rng([seed, 12, i]))
        twins.append(turns.twin(scene, clean, clean.instruction, group=episode.index))
    return FactorPairs(factor, tuple(twins), "stand-in")
