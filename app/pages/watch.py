"""Watch: heads at work. An episode on its cameras with the attention of up to four heads over the pictures, scrubbed
and played in the browser, over a timeline of actions, of what the heads add to them, and of where they attend.

The server names the scene (watch_data.py), draws the timeline (watch_timeline.py) and hands out bytes; which frame is
on the screen is the browser's alone (assets/watch.js), so that no latency is felt. Wishes in the URL: episode, frame,
head (the leading one), edit (the twin to compare with), dim (the action dimension of the contributions).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dash_mantine_components as dmc
import numpy as np
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update, set_props
from dash.development.base_component import Component

from app import raw, watch_data, watch_timeline, widgets
from app.library import Library, scores_of
from app.pages.page import Page, Screen
from interp.errors import UsageError
from interp.footage import EDITS, footage_of
from interp.heads import Head
from interp.runs import Run

SHOWN = 4  # heads side by side
NORM = "norm"


def body(screen: Screen) -> Component:
    run, there = screen.run, footage_of(screen.run)
    if not there:
        return _empty(run)
    asked = screen.wishes.get("episode", "")
    episode = int(asked) if asked.isdecimal() and int(asked) in there else next(iter(there))
    try:
        scene = watch_data.scene(run, episode)
    except UsageError as error:
        return widgets.empty("This episode's footage cannot be read", error=str(error))
    recorded = run.info["data"].get("episodes")
    missing = len(recorded) - len(there) if isinstance(recorded, list) else 0
    lines = [f"{missing} of {len(recorded)} episodes have no footage yet."] if missing > 0 else []
    frames = {"frame": screen.wishes.get("frame"), "default": _default_head(run), "shown": SHOWN}
    return html.Div(
        [
            widgets.notices(lines),
            html.Section([_bar(scene, list(there), screen), _stage()], className="rs-card"),
            html.Section(
                [
                    html.Div(
                        [
                            html.H2("Timeline"),
                            html.P(id="watch-says"),
                            widgets.field("Adds to", _dimensions(scene, screen)),
                            html.Div(widgets.export_menu("watch-timeline"), className="rs-bar-end"),
                        ],
                        className="rs-card-title",
                    ),
                    html.Div(
                        [
                            widgets.figure("watch-timeline", watch_timeline.height(scene["actions"])),
                            html.Div(html.Div(id="watch-cursor"), className="rs-time-cursor"),
                        ],
                        id="watch-time",
                        className="rs-time",
                        style={
                            "--rs-time-left": f"{watch_timeline.MARGIN['l']}px",
                            "--rs-time-right": f"{watch_timeline.MARGIN['r']}px",
                        },
                    ),
                ],
                className="rs-card rs-watch-below",
            ),
            dcc.Store(id="watch-scene", data=scene),
            dcc.Store(id="watch-start", data=frames),
            dcc.Store(id="watch-from", data=0),
            dcc.Store(id="watch-wish"),
            dcc.Store(id="watch-shown"),
            dcc.Store(id="watch-painted"),
        ],
        className="rs-watch",
    )


def connect(app: Dash, library: Library) -> None:
    _connect_bytes(app, library)

    @app.callback(
        Output("watch-scene", "data"),
        Input("watch-wish", "data"),
        State("watch-scene", "data"),
        State("run", "value"),
        prevent_initial_call=True,
    )
    def enter(wish: Mapping[str, Any], now: Mapping[str, Any], run: str) -> Any:
        if not wish or now["run"] != run or wish["episode"] == now["episode"]:
            return no_update
        try:
            return watch_data.scene(library.open(run), int(wish["episode"]))
        except UsageError as error:
            set_props("notices", {"data": [str(error)]})
            return no_update

    @app.callback(
        Output("watch-timeline", "figure"),
        Output("watch-says", "children"),
        Input("watch-shown", "data"),
        Input("watch-dim", "value"),
        State("watch-scene", "data"),
        State("run", "value"),
        State("scheme", "data"),
        prevent_initial_call=True,
    )
    def draw(
        shown: Mapping[str, Any] | None,
        dim: str | None,
        scene: Mapping[str, Any],
        run: str,
        scheme: str | None,
    ) -> Any:
        if not shown or not shown["tiles"] or scene["run"] != run:
            return no_update, no_update
        try:
            episode = timeline_of(library.open(run), scene["episode"], shown)
        except UsageError as error:
            set_props("notices", {"data": [str(error)]})
            return no_update, no_update
        dimension = int(dim) if dim and dim.isdecimal() and int(dim) < len(episode.names) else None
        said = f"{episode.frames} frames; click or drag to move. “{scene['instruction']}”"
        return watch_timeline.timeline(episode, dimension, scheme or "light"), said

    def browser(function: str, *wires: Any, **more: Any) -> None:
        app.clientside_callback(ClientsideFunction("robosteer", function), *wires, **more)

    browser("watchEpisode", Output("watch-wish", "data"), Input("view", "data"), State("watch-scene", "data"))
    browser(
        "watchShown",
        Output("watch-shown", "data"),
        Input("selection", "data"), Input("view", "data"), Input("watch-scene", "data"), Input("watch-from", "data"),
        State("watch-start", "data"), State("watch-shown", "data"),
    )  # fmt: skip
    browser(
        "watchStage",
        Output("watch-painted", "data"),
        Input("watch-shown", "data"), Input("watch-scale", "value"), Input("watch-opacity", "value"),
        State("watch-scene", "data"), State("watch-start", "data"),
    )  # fmt: skip
    browser(
        "watchChoose",
        Input("watch-episode", "value"), Input("watch-compare", "value"), Input("watch-dim", "value"),
        prevent_initial_call=True,
    )  # fmt: skip


def timeline_of(run: Run, episode: int, shown: Mapping[str, Any]) -> watch_timeline.Episode:
    """What the timeline draws for the tiles on the screen, [{head, take}, ...]; `leading` is the index of one."""
    tiles = [(Head.parse(tile["head"]), str(tile["take"])) for tile in shown["tiles"]]
    takes = {take: watch_data.take(run, episode, take) for take in dict.fromkeys(take for _, take in tiles)}
    labels = {name: EDITS[name].label if name in EDITS else "as recorded" for name in takes}
    head, take = tiles[min(int(shown["leading"]), len(tiles) - 1)]
    acted = watch_data.actions(run, episode)

    def label(head: Head, take: str) -> str:
        return str(head) if len(takes) == 1 else f"{head}, {labels[take]}"

    return watch_timeline.Episode(
        names=run.spec.action_names,
        demonstrated=acted.demonstrated if acted else None,
        predicted={labels[name]: found.prediction() for name, found in takes.items()},
        lines=[watch_timeline.Line(label(h, t), takes[t].contribution(h)) for h, t in tiles],
        leading=label(head, take),
        parts=takes[take].parts,
        mass=np.asarray(takes[take].mass(head)),
    )


def _connect_bytes(app: Dash, library: Library) -> None:
    base = "/raw/<run>/footage/<int:episode>/<take>"

    def patches(run: str, episode: int, take: str, tower: str, layer: int, head: int, camera: str) -> raw.Raw:
        return raw.Raw(watch_data.patches(library.open(run), episode, take, Head(tower, layer, head), camera))

    def series(run: str, episode: int, take: str, tower: str, layer: int, head: int) -> raw.Raw:
        return raw.Raw(watch_data.series(library.open(run), episode, take, Head(tower, layer, head)))

    def pack(run: str, episode: int, take: str, camera: str, start: int, stop: int) -> raw.Raw:
        return raw.Raw(watch_data.pack(library.open(run), episode, take, camera, start, stop))

    raw.route(app, f"{base}/<tower>/<int:layer>/<int:head>/<camera>.u8", patches)
    raw.route(app, f"{base}/<tower>/<int:layer>/<int:head>/series.f32", series)
    raw.route(app, f"{base}/frames/<camera>/<int:start>-<int:stop>.pack", pack)


def _bar(scene: Mapping[str, Any], episodes: list[int], screen: Screen) -> html.Div:
    edits = [name for name in scene["takes"] if name != watch_data.CLEAN]
    edit = screen.wishes.get("edit")
    compare = [{"value": "heads", "label": "heads"}]
    compare += [{"value": name, "label": f"with {scene['takes'][name]['label']}"} for name in edits]
    named = widgets.attributes
    return html.Div(
        [
            widgets.field(
                "Episode",
                dmc.Select(
                    id="watch-episode",
                    data=[{"value": str(e), "label": str(e)} for e in episodes],
                    value=str(scene["episode"]),
                    size="xs",
                    w=84,
                    allowDeselect=False,
                    searchable=len(episodes) > 12,
                    **named(aria_label="Episode"),
                ),
            ),
            html.Div(
                widgets.field(
                    "Compare",
                    dmc.SegmentedControl(
                        id="watch-compare", data=compare, value=edit if edit in edits else "heads", size="xs"
                    ),
                ),
                style={} if edits else {"display": "none"},
            ),
            html.Div(id="watch-heads", className="rs-watch-heads"),
            widgets.field(
                "Brightest at",
                dmc.SegmentedControl(
                    id="watch-scale",
                    data=[
                        {"value": "frame", "label": "the frame's peak"},
                        {"value": "episode", "label": "the episode's"},
                    ],
                    value="frame",
                    size="xs",
                ),
            ),
            widgets.field(
                "Overlay",
                dmc.Slider(
                    id="watch-opacity",
                    min=0,
                    max=100,
                    value=75,
                    w=110,
                    size="sm",
                    thumbLabel="Strength of the overlay, per cent",
                    updatemode="drag",
                ),
            ),
            html.Div(widgets.export_menu("watch-frames"), className="rs-bar-end"),
        ],
        className="rs-bar",
    )


def _stage() -> html.Div:
    """What assets/watch.js fills: pictures and transport."""
    return html.Div(
        [html.Div(id="watch-tiles", className="rs-tiles"), html.Div(id="watch-transport")],
        id="watch-stage",
        className="rs-stage",
    )


def _dimensions(scene: Mapping[str, Any], screen: Screen) -> dmc.Select:
    names = list(scene["actions"])
    asked = screen.wishes.get("dim", "")
    return dmc.Select(
        id="watch-dim",
        data=[
            {"value": NORM, "label": "all dimensions"},
            *({"value": str(i), "label": name} for i, name in enumerate(names)),
        ],
        value=asked if asked.isdecimal() and int(asked) < len(names) else NORM,
        size="xs",
        w=140,
        allowDeselect=False,
        **widgets.attributes(aria_label="Action dimension of the contributions"),
    )


def _default_head(run: Run) -> str:
    """The best head of the run's first scores, to have something to look at when nothing is chosen."""
    for scores in scores_of(run)[0].values():
        for tower in ("expert", *scores.towers):
            if tower in scores.towers and tower in ("expert", "vlm") and scores.ranked(tower):
                return str(scores.ranked(tower)[0])
    return str(Head("expert", 0, 0))


def _empty(run: Run) -> Component:
    source, demos = run.info["policy"].get("source", "tiny-pi0"), run.info["data"].get("path", "DEMOS")
    return widgets.empty(
        "No footage in this run yet",
        "What every head looks at and writes, frame by frame. It is written by one more pass of the policy over the "
        "demonstrations, about as long as the capture took:",
        html.P(
            widgets.code(f"robosteer capture --policy {source} --demos {demos} --run {run.path} --footage")
        ),
    )


PAGE = Page("/watch", "Watch", body, connect)
