"""Image augmentation: small shifts and changes of colour, so that few demonstrations show more views.

The shift repeats the border, as in DrQ (Kostrikov et al., arXiv 2004.13649); every camera moves by itself, all of a
frame's draws share its view. The state is left as it is: a shift stands for a few millimetres of camera mounting.

Axis names: batch, camera, channel, axis (down, right).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from interp.policies import Observation
from steering.recipes import Recipe

Image = UInt8[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Views:
    """How the images of some frames are changed: down and right by a share of the side, times gain, plus tint."""

    shift: Float[np.ndarray, "batch camera axis"]
    gain: Float[np.ndarray, "batch camera"]
    tint: Float[np.ndarray, "batch camera channel"]

    @classmethod
    def draw(cls, rng: np.random.Generator, recipe: Recipe, cameras: int) -> Views:
        n = recipe.batch
        return cls(
            shift=recipe.augment_shift * rng.uniform(-1, 1, (n, cameras, 2)),
            gain=1 + recipe.augment_colour * rng.standard_normal((n, cameras)),
            tint=0.5 * recipe.augment_colour * rng.standard_normal((n, cameras, 3)),
        )

    def __getitem__(self, part: slice) -> Views:
        return Views(self.shift[part], self.gain[part], self.tint[part])

    def apply(self, row: int, observation: Observation) -> Observation:
        images = {
            camera: _changed(image, self.shift[row, i], self.gain[row, i], self.tint[row, i])
            for i, (camera, image) in enumerate(observation.images.items())
        }
        return replace(observation, images=images)


def _changed(
    image: Image, shift: Float[np.ndarray, " axis"], gain: float, tint: Float[np.ndarray, " channel"]
) -> Image:
    height, width = image.shape[:2]
    down, right = np.rint(shift * (height, width)).astype(int)
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    # Colours around mid-grey, where the network's zero lies: gain is then contrast, tint a cast of light.
    centred = (image[rows][:, columns].astype(np.float32) - 127.5) * gain + 127.5 * (1 + tint)
    return np.clip(np.rint(centred), 0, 255).astype(np.uint8)
