"""How the dashboard looks: two colour schemes, one place.

Everything that has a colour takes it from here: Mantine (buttons, cards), Plotly (templates), AG Grid and our own
CSS (custom properties).  The stylesheet reads `--rs-*` variables that `css_variables` writes into the page, so
that no colour is written twice.

The sequential scale runs from "like the background" (worst) to "far from the background" (best) in lightness,
which every kind of colour vision sees; the hue (green to blue) only helps.  "Best" is the far end in both
schemes, whether lower or higher values are better.
Selected heads are outlined in orange, the colour furthest from the scale for red-green and blue-yellow
deficiencies alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steering.looks import LOOKS

FONT = 'Inter, "Segoe UI", "Helvetica Neue", "Liberation Sans", Arial, sans-serif'
MONO = '"SF Mono", "Cascadia Mono", Menlo, Consolas, "Liberation Mono", "DejaVu Sans Mono", monospace'


@dataclass(frozen=True)
class Scheme:
    """The colours of one colour scheme; CSS colour strings."""

    page: str  # behind everything
    surface: str  # cards
    raised: str  # table header, hovered row
    line: str  # borders
    text: str
    muted: str  # secondary text, axis labels: at least 4.5:1 on `surface`
    accent: str  # links, primary buttons
    good: str
    bad: str
    selected: str  # outline of a selected head
    halo: str  # thin casing of that outline, so that it shows on every cell colour
    hatch: str  # dead heads
    worst_to_best: tuple[str, ...]
    arms: tuple[str, ...]  # categorical: few things on one figure; the first is what others stand out from
    looks: tuple[str, ...]  # arms of a comparison, in the order of steering.looks.LOOKS


SCHEMES: dict[str, Scheme] = {
    "light": Scheme(
        page="#f4f6f8",
        surface="#ffffff",
        raised="#f1f4f7",
        line="#dfe4ea",
        text="#18222d",
        muted="#586574",
        accent="#1c5d99",
        good="#1b7f5c",
        bad="#b3412b",
        selected="#f2600c",
        halo="#ffffff",
        hatch="#9aa5b1",
        worst_to_best=(
            "#eef3ee",
            "#d5e8dc",
            "#a9d6cb",
            "#6dbcc0",
            "#3897b5",
            "#2270a2",
            "#1d4b85",
            "#142a5c",
        ),
        arms=("#6b7785", "#1c5d99", "#b07c00", "#8a4fa3", "#1b7f5c", "#a8324e"),
        looks=tuple(look.light for look in LOOKS.values()),
    ),
    "dark": Scheme(
        page="#0e141b",
        surface="#161e27",
        raised="#1e2833",
        line="#2b3744",
        text="#e4eaf0",
        muted="#9aa8b7",
        accent="#6fb1e8",
        good="#4fc79a",
        bad="#f08a70",
        selected="#ff8a2b",
        halo="#0e141b",
        hatch="#5f6d7c",
        worst_to_best=(
            "#1d2a37",
            "#1d3c52",
            "#1c546f",
            "#227286",
            "#3f9396",
            "#70b6a6",
            "#aed7b5",
            "#eef6cd",
        ),
        arms=("#9aa8b7", "#6fb1e8", "#dcb43c", "#c79be0", "#4fc79a", "#ee8aa0"),
        looks=tuple(look.dark for look in LOOKS.values()),
    ),
}

# Mantine wants ten shades; 6 is the filled button in light, 8 in dark
MANTINE = {
    "primaryColor": "steer",
    "primaryShade": {"light": 6, "dark": 6},
    "fontFamily": FONT,
    "fontFamilyMonospace": MONO,
    "defaultRadius": "sm",
    "headings": {"fontFamily": FONT, "fontWeight": "620"},
    "colors": {
        "steer": [
            "#eaf3fb",
            "#d3e4f3",
            "#a6c8e6",
            "#76aad9",
            "#4f90cd",
            "#2f78b8",
            "#1c5d99",
            "#174e82",
            "#133f6a",
            "#0d2f50",
        ],
        "dark": [
            "#e4eaf0",
            "#c3ced9",
            "#9aa8b7",
            "#778697",
            "#435160",
            "#2b3744",
            "#1e2833",
            "#161e27",
            "#0e141b",
            "#080c11",
        ],
    },
}


def css_variables() -> str:
    """The `--rs-*` custom properties of both schemes, as a style sheet."""

    def block(selector: str, scheme: Scheme) -> str:
        ramp = ", ".join(scheme.worst_to_best)
        pairs = {
            name: getattr(scheme, name)
            for name in ("page", "surface", "raised", "line", "text", "muted", "accent", "good", "bad")
        } | {"selected": scheme.selected, "halo": scheme.halo, "hatch": scheme.hatch, "ramp": ramp}
        pairs |= {f"arm-{i}": colour for i, colour in enumerate(scheme.arms)}
        pairs |= {f"ramp-{i}": colour for i, colour in enumerate(scheme.worst_to_best)}
        return selector + "{" + "".join(f"--rs-{name}:{value};" for name, value in pairs.items()) + "}"

    fonts = f":root{{--rs-font:{FONT};--rs-mono:{MONO};}}"
    return (
        fonts + block(":root", SCHEMES["light"]) + block("[data-mantine-color-scheme=dark]", SCHEMES["dark"])
    )


def plotly_layout(name: str) -> dict[str, Any]:
    """The part of a Plotly layout that depends on the colour scheme, as a template."""
    scheme = SCHEMES[name]
    axis = {
        "gridcolor": scheme.line,
        "linecolor": scheme.line,
        "tickcolor": scheme.line,
        "zerolinecolor": scheme.muted,
        "automargin": False,
        "tickfont": {"size": 11, "color": scheme.muted},
        "title": {"font": {"size": 11, "color": scheme.muted}},
    }
    return {
        "layout": {
            "paper_bgcolor": scheme.surface,
            "plot_bgcolor": scheme.surface,
            "font": {"family": FONT, "size": 12, "color": scheme.text},
            "colorway": list(scheme.arms),
            "hoverlabel": {
                "bgcolor": scheme.raised,
                "bordercolor": scheme.line,
                "font": {"family": FONT, "size": 12, "color": scheme.text},
                "align": "left",
            },
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": scheme.muted, "activecolor": scheme.accent},
            "xaxis": axis,
            "yaxis": axis,
            "newselection": {"line": {"color": scheme.selected, "width": 1.5, "dash": "dot"}},
        }
    }


def ramp(name: str) -> list[list[Any]]:
    """Plotly's [position, colour] pairs, worst to best; reverse the colour axis where lower is better."""
    colours = SCHEMES[name].worst_to_best
    return [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]


def client() -> dict[str, Any]:
    """What the browser needs to repaint a figure in the other scheme without asking the server."""
    return {
        name: {
            "template": plotly_layout(name),
            **{
                field: list(value) if isinstance(value, tuple) else value
                for field, value in vars(scheme).items()
            },
        }
        for name, scheme in SCHEMES.items()
    }
