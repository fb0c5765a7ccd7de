"""An explanation as one picture: a self-contained SVG that any browser shows, light or dark, without anything else.

Above: what the cameras saw, and the chunk, predicted and demonstrated, dimension by dimension in robot units. Below, a
row a head: how much it brings into the chunk by three measures, which way it pushes which dimension, where its
attention goes, the same on the pictures (patches are dimmed to a quarter, except where it looks), and the frames of the
demonstrations in which it writes most.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; blue and orange stand for up and down, and their
strength for the size, so that nothing depends on the background.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from textwrap import wrap

import numpy as np
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image

from interp.demos import Demonstrations
from interp.explain import Effect, Explanation, HeadPart, Look
from interp.footage import Camera

Picture = UInt8[np.ndarray, "height width 3"]

SPANS = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442")
DIM = 0.25
"""Brightness of a patch that gets no attention."""
MARGIN, SIDE, ROW = 24, 96, 132
LABELS = {"direct": "direct", "zero": "zero abl.", "mean": "mean abl."}

STYLE = """
text { font-family: Inter, system-ui, sans-serif; font-size: 12px; fill: var(--ink) }
svg { --ink: #1b1c1f; --muted: #5c6068; --line: #d5d8de; --paper: #ffffff; --up: #0072b2; --down: #d55e00 }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e9eaec; --muted: #a4a8b0; --line: #3a3d44; --paper: #17181b; --up: #56b4e9; --down: #f0853c }
}
.muted { fill: var(--muted) } .strong { font-weight: 600 } .title { font-size: 19px; font-weight: 600 }
.small { font-size: 11px } .paper { fill: var(--paper) } .frame { fill: none; stroke: var(--line) }
.rule { stroke: var(--line) } .demonstrated { fill: none; stroke: var(--ink); stroke-dasharray: 4 3 }
.predicted { fill: none; stroke: var(--up); stroke-width: 2 } .padding { fill: url(#hatch) }
.up { fill: var(--up) } .down { fill: var(--down) }
"""


class Canvas:
    """Collects SVG elements."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, style: str = "", anchor: str = "start") -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        style: str = "",
        fill: str | None = None,
        opacity: float = 1,
        title: str = "",
    ) -> None:
        paint = (f' fill="{fill}"' if fill else "") + (
            f' fill-opacity="{opacity:.3f}"' if opacity < 1 else ""
        )
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{style}"{paint}>'
            f"<title>{escape(title)}</title></rect>"
        )

    def rule(self, x: float, y: float, to_x: float, to_y: float) -> None:
        self.parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" class="rule"/>')

    def curve(self, points: Sequence[tuple[float, float]], style: str) -> None:
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{at}" class="{style}"/>')

    def picture(self, x: float, y: float, side: float, image: Picture, title: str = "") -> None:
        stream = BytesIO()
        small = Image.fromarray(image)
        small.thumbnail((192, 192))
        small.save(stream, "JPEG", quality=88)
        data = base64.b64encode(stream.getvalue()).decode()
        self.parts.append(
            f'<image x="{x:.1f}" y="{y:.1f}" width="{side}" height="{side}" '
            f'href="data:image/jpeg;base64,{data}"><title>{escape(title)}</title></image>'
        )

    def svg(self, width: float, height: float) -> str:
        hatch = (
            '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
            '<rect width="2" height="6" fill="#888c94"/></pattern>'
        )
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}">\n<style>{STYLE}</style>\n<defs>{hatch}</defs>\n'
            f'<rect width="100%" height="100%" class="paper"/>\n{body}\n</svg>\n'
        )


def figure(explanation: Explanation, demos: Demonstrations) -> str:
    """The SVG. `demos` are the demonstrations that were explained: the pictures come from there."""
    names, cameras = explanation.names, tuple(explanation.cameras)
    columns = _columns(len(names), len(cameras), explanation.settings.examples)
    width = columns["end"]
    canvas = Canvas()
    canvas.text(MARGIN, 38, f"“{explanation.instruction}”", "title")
    canvas.text(
        MARGIN,
        60,
        f"Episode {explanation.episode}, frame {explanation.frame} (of 0 to {explanation.length - 1}), and what each "
        f"head brings into the chunk of {len(explanation.predicted)} actions. Heads are ordered by "
        f"{_ordered(explanation)}.",
        "muted",
    )
    images = demos.observation(_row(demos, explanation.episode, explanation.frame)).images
    for at, camera in enumerate(cameras):
        x = float(MARGIN + at * (150 + 12))
        canvas.picture(x, 84, 150, images[camera], camera)
        canvas.text(x, 250, camera, "muted small")
    left = MARGIN + len(cameras) * 162 + 24
    _chunk(canvas, explanation, left, 84, width - MARGIN - left, 150)
    top = 330
    _header(canvas, explanation, columns, top)
    largest = max(part.rms(measure) for part in explanation.heads for measure in LABELS)
    shown = explanation.heads[: len(explanation.looks)]
    strongest = {
        measure: max((_most(getattr(part, measure)) for part in shown), default=0.0) for measure in LABELS
    }
    for place, (part, look) in enumerate(zip(explanation.heads, explanation.looks, strict=False)):
        y = top + 16 + place * ROW
        canvas.rule(MARGIN, y - 8, width - MARGIN, y - 8)
        canvas.text(columns["head"], y + 24, str(part.head), "strong")
        _bars(canvas, part, columns["bars"], y + 8, largest)
        _push(canvas, part, names, columns["push"], y + 8, strongest)
        _attention(canvas, part, look, cameras, columns["attention"], y + 8)
        peak = max(float(grid.max()) for grid in look.maps.values())
        for at, camera in enumerate(cameras):
            x, grid = columns["maps"] + at * (SIDE + 8), look.maps[camera]
            lit = spotlight(images[camera], grid / max(peak, 1e-30), explanation.cameras[camera])
            canvas.picture(x, y, SIDE, lit, f"{part.head}, {camera}")
            canvas.text(x, y + SIDE + 14, f"{camera} {grid.max():.1%}", "muted small")
        for at, example in enumerate(look.examples):
            x = columns["examples"] + at * (SIDE + 8)
            image = demos.observation(_row(demos, example.episode, example.frame)).images[cameras[0]]
            canvas.picture(x, y, SIDE, image, example.instruction)
            canvas.text(
                x, y + SIDE + 14, f"{example.episode}/{example.frame}: {example.rms:.2f}", "muted small"
            )
    bottom = top + 16 + len(explanation.looks) * ROW
    return canvas.svg(width, _notes(canvas, explanation, bottom, width))


def spotlight(image: Picture, light: Float[np.ndarray, "row column"], camera: Camera) -> Picture:
    """The picture in the light of a patch grid over the network's square: 1 is as it is, 0 is dimmed."""
    box = camera.letterbox
    rows = (np.arange(box["size"]) * light.shape[0]) // box["size"]
    columns = (np.arange(box["size"]) * light.shape[1]) // box["size"]
    square = light[rows][:, columns]
    inside = square[box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]]
    height, width = image.shape[:2]
    at = np.ix_(
        (np.arange(height) * inside.shape[0]) // height, (np.arange(width) * inside.shape[1]) // width
    )
    brightness = DIM + (1 - DIM) * inside[at]
    return (image * rearrange(brightness, "height width -> height width 1")).astype(np.uint8)


def _columns(dimensions: int, cameras: int, examples: int) -> Mapping[str, float]:
    """Left edges."""
    edges: dict[str, float] = {"head": MARGIN}
    edges["bars"] = edges["head"] + 104
    edges["push"] = edges["bars"] + 232
    edges["attention"] = edges["push"] + dimensions * 24 + 28
    edges["maps"] = edges["attention"] + 232
    edges["examples"] = edges["maps"] + cameras * (SIDE + 8) + 16
    edges["end"] = max(edges["examples"] + max(1, examples) * (SIDE + 8) + MARGIN, 1080)
    return edges


def _most(effect: Effect | None) -> float:
    return 0.0 if effect is None else float(np.abs(effect.by_dimension).max())


def _row(demos: Demonstrations, episode: int, frame: int) -> int:
    return next(each.start for each in demos.episodes if each.index == episode) + frame


def _ordered(explanation: Explanation) -> str:
    by = explanation.settings.by
    return "what they write directly" if by == "direct" else f"{by} ablation"


def _chunk(canvas: Canvas, explanation: Explanation, x: float, y: float, width: float, height: float) -> None:
    """Small multiples of the action, robot units; one scale within a dimension."""
    each = width / len(explanation.names)
    for at, name in enumerate(explanation.names):
        lines = {
            "demonstrated": explanation.demonstrated[~explanation.over, at],
            "predicted": explanation.predicted[:, at],
        }
        low = min(float(line.min()) for line in lines.values())
        high = max(float(line.max()) for line in lines.values())
        # A dimension that hardly moves should look so: at least half a normalised unit high.
        room = max(high - low, 0.5 * float(explanation.unit[at])) * 1.4
        middle, left, inner = (low + high) / 2, x + at * each, each - 14
        canvas.box(left, y, inner, height, style="frame")
        canvas.text(left, y - 8, name, "small strong")
        for style, line in lines.items():
            steps = max(len(explanation.predicted) - 1, 1)
            canvas.curve(
                [
                    (
                        left + 4 + (inner - 8) * step / steps,
                        y + height * (0.5 - (value - middle) / room),
                    )
                    for step, value in enumerate(line.tolist())
                ],
                style,
            )
        canvas.text(left + 3, y + 13, f"{middle + room / 2:+.2g}", "muted small")
        canvas.text(left + 3, y + height - 4, f"{middle - room / 2:+.2g}", "muted small")
    last = len(explanation.predicted) - 1
    canvas.text(x, y + height + 16, f"step of the chunk, 0 to {last}; robot units", "muted small")
    legend = x + 250
    canvas.curve([(legend, y + height + 12), (legend + 24, y + height + 12)], "predicted")
    canvas.text(legend + 30, y + height + 16, "predicted", "small")
    canvas.curve([(legend + 104, y + height + 12), (legend + 128, y + height + 12)], "demonstrated")
    canvas.text(legend + 134, y + height + 16, "demonstrated", "small")


def _header(canvas: Canvas, explanation: Explanation, columns: Mapping[str, float], y: float) -> None:
    for column, words in (
        ("head", "head"),
        ("bars", "brings into the chunk (rms)"),
        ("push", "pushes (mean of chunk)"),
        ("attention", "attends to"),
        ("maps", "looks at (brightest patch)"),
        ("examples", f"strongest in, {next(iter(explanation.cameras))}"),
    ):
        if column != "examples" or any(look.examples for look in explanation.looks):
            canvas.text(columns[column], y - 12, words, "strong")


def _bars(canvas: Canvas, part: HeadPart, x: float, y: float, largest: float) -> None:
    for at, (measure, label) in enumerate(LABELS.items()):
        top, effect = y + at * 26, getattr(part, measure)
        canvas.text(x, top + 14, label, "muted small")
        if effect is None:
            canvas.text(x + 60, top + 14, "writes through others only", "muted small")
            continue
        length = 110 * effect.rms / max(largest, 1e-30)
        canvas.box(x + 60, top + 3, length, 14, style="up", title=f"{label}: {effect.rms:.4f}")
        canvas.text(x + 66 + length, top + 14, f"{effect.rms:.2f}", "small")


def _push(
    canvas: Canvas, part: HeadPart, names: Sequence[str], x: float, y: float, strongest: Mapping[str, float]
) -> None:
    for at, (measure, label) in enumerate(LABELS.items()):
        effect = getattr(part, measure)
        if effect is None:
            continue
        for dimension, value in enumerate(effect.by_dimension.tolist()):
            left, top = x + dimension * 24, y + at * 26
            canvas.box(left, top, 22, 22, style="frame")
            canvas.box(
                left,
                top,
                22,
                22,
                style="up" if value > 0 else "down",
                opacity=min(1.0, abs(value) / max(strongest[measure], 1e-30)),
                title=f"{label}, {names[dimension]}: {value:+.3f}",
            )
    for dimension, name in enumerate(names):
        canvas.text(x + dimension * 24 + 11, y + 90, _short(name), "muted small", "middle")


def _short(name: str) -> str:
    """`drotation_x` -> `rx`: a label for 24 pixels."""
    stem, _, last = name.removeprefix("d").partition("_")
    return f"{stem[0]}{last[:1]}" if last else (name if len(name) <= 3 else name[:4])


def _attention(
    canvas: Canvas, part: HeadPart, look: Look, cameras: Sequence[str], x: float, y: float
) -> None:
    shares = {name: share for name, share in part.mass.items() if not name.endswith("/padding")}
    padding = sum(share for name, share in part.mass.items() if name.endswith("/padding"))
    left = x
    for colour, (name, share) in zip(_colours(shares), shares.items(), strict=True):
        canvas.box(left, y, 200 * share, 20, fill=colour, title=f"{name}: {share:.1%}")
        left += 200 * share
    canvas.box(left, y, 200 * padding, 20, style="padding", title=f"padding: {padding:.1%}")
    best = sorted(shares.items(), key=lambda item: -item[1])[:3]
    listed = [f"{name.removeprefix('image/')} {share:.0%}" for name, share in best]
    canvas.text(x, y + 38, ", ".join(listed), "small")
    if padding >= 0.005:
        canvas.text(x, y + 55, f"padding {padding:.0%}", "muted small")
    words = sorted(look.words, key=lambda word: -word[1])[:2]
    said = ", ".join(f"“{word}” {share:.1%}" for word, share in words if share >= 0.0005)
    if said:
        canvas.text(x, y + 72, f"words: {said}", "muted small")


def _colours(shares: Mapping[str, float]) -> list[str]:
    return [SPANS[at % len(SPANS)] for at in range(len(shares))]


def _notes(canvas: Canvas, explanation: Explanation, y: float, width: float) -> float:
    """The legends under the rows; returns the height of the picture."""
    canvas.rule(MARGIN, y - 8, width - MARGIN, y - 8)
    shares = {name: 0.0 for name in explanation.heads[0].mass if not name.endswith("/padding")}
    x = float(MARGIN)
    for colour, name in zip([*_colours(shares), None], [*shares, "padding"], strict=True):
        words = name.removeprefix("image/")
        canvas.box(x, y + 8, 14, 14, style="" if colour else "padding", fill=colour)
        canvas.text(x + 20, y + 19, words, "small")
        x += 36 + 7 * len(words)
    x += 24
    for style, words in (("up", "pushes up"), ("down", "pushes down")):
        canvas.box(x, y + 8, 14, 14, style=style)
        canvas.text(x + 20, y + 19, words, "small")
        x += 110
    parts = {name: f"{value:.2f}" for name, value in explanation.parts.items()}
    notes = (
        "Normalised units: 1 is one standard deviation of the action dimension in the policy's training data. direct: "
        "what the head itself writes into the chunk. zero abl., mean abl.: the chunk as it is, less the chunk with the "
        "head's output zero, or at its mean over the demonstrations. Colours of the pushes are scaled within each.",
        f"The whole chunk has rms {parts['action']}. Written directly: all heads {parts['heads']}, MLPs "
        f"{parts['mlps']}, embedding {parts['embedding']}, start noise {parts['noise']}; they add up with signs, their "
        "sizes do not.",
        "Pictures: full brightness is the patch with most attention on any camera; below, the share of attention of a "
        "camera's brightest patch. Strongest in: "
        "episode/frame and rms of the direct part, at most one frame an episode, of "
        f"{explanation.settings.scanned} searched.",
    )
    lines = [line for note in notes for line in wrap(note, int((width - 2 * MARGIN) / 6.2))]
    for at, line in enumerate(lines):
        canvas.text(MARGIN, y + 46 + at * 18, line, "muted small")
    return y + 46 + len(lines) * 18
