"""One frame of every task from both cameras, early in the expert's episode: `python tools/gallery.py OUT.png`."""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image, ImageDraw

from testbed.expert import Expert
from testbed.tabletop import CAMERAS, Tabletop
from testbed.tasks import TASKS

SIZE, CAPTION, COLUMNS, SEED, STEP = 200, 22, 5, 4, 9


def tile(env: Tabletop, task: str) -> Image.Image:
    env.reset(seed=SEED, options={"task": task})
    expert = Expert(env)
    for _ in range(STEP):
        env.advance(expert())
    views = np.vstack([env.world.render(camera, SIZE) for camera in CAMERAS])
    image = Image.new("RGB", (SIZE + 6, 2 * SIZE + CAPTION + 6), "white")
    image.paste(Image.fromarray(views), (3, CAPTION))
    ImageDraw.Draw(image).text((5, 4), task, fill="black", font_size=14)
    return image


def main(out: str) -> None:
    env = Tabletop(image_size=64)
    tiles = [tile(env, task) for task in TASKS]
    width, height = tiles[0].size
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(tiles) // COLUMNS) * height), "white")
    for i, image in enumerate(tiles):
        sheet.paste(image, (i % COLUMNS * width, i // COLUMNS * height))
    sheet.save(out)


if __name__ == "__main__":
    main(sys.argv[1])
