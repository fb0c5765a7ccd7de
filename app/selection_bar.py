"""The selection bar as it is on every page: counter, list, and the panels of "best" and "sets". What they do is in
selecting.py.
"""

from __future__ import annotations

from typing import Any

import dash_mantine_components as dmc
from dash import dcc, html
from dash.development.base_component import Component

from app import selections, widgets

TAKE = 20  # heads that "best" takes unless told otherwise; the published choice
SMALL: dict[str, Any] = {"size": "xs", "variant": "default"}


def bar() -> Component:
    """The bar, empty: it is filled in the browser."""
    buttons = [
        dmc.Button(label, id=name, disabled=True, size="compact-xs", variant="subtle", color="gray")
        for name, label in (("undo", "Undo"), ("redo", "Redo"), ("clear", "Clear"))
    ]
    chosen = html.Div(
        id="chosen",
        className="rs-chips none",
        tabIndex=0,
        role="region",
        **widgets.attributes(aria_label="Selected heads"),
    )
    return html.Section(
        [
            html.H2("0 heads selected", id="count", **widgets.attributes(aria_live="polite")),
            chosen,
            html.Div(buttons, className="rs-selbar-buttons"),
            html.Div(
                [
                    _popover("best", "Take the best …", _best(), width=330),
                    _popover("sets", "Sets", _sets(), width=380),
                ],
                className="rs-selbar-buttons",
            ),
            html.Div(id="cursor-says", className="rs-hidden", **widgets.attributes(aria_live="polite")),
            dcc.Store(id="proposal"),
            dcc.Store(id="origins"),
            dcc.Store(id="long"),
            dcc.Store(id="named"),
            dcc.Download(id="download"),
        ],
        className="rs-selbar",
        **widgets.attributes(aria_label="Selection"),
    )


def _popover(name: str, label: str, content: list[Component], width: int) -> Component:
    said = widgets.attributes(aria_haspopup="dialog")  # Mantine would put it on a wrapper that has no role
    button = dmc.Button(label, id=f"{name}-open", size="compact-sm", variant="light", **said)
    return dmc.Popover(
        [
            dmc.PopoverTarget(button),
            dmc.PopoverDropdown(
                html.Div(content, className="rs-popover"), **widgets.attributes(aria_label=label)
            ),
        ],
        id=f"{name}-popover",
        position="bottom-end",
        width=width,
        shadow="md",
        withinPortal=True,
        keepMounted=True,
        withRoles=False,
    )


def _select(name: str, label: str, **more: Any) -> Component:
    inside: dict[str, Any] = {"withinPortal": False}  # a click on an option must not close the popover
    return dmc.Select(
        id=name,
        label=label,
        size="xs",
        allowDeselect=False,
        comboboxProps=inside,
        className="grow",
        **more,
    )


def _best() -> list[Component]:
    count = dmc.NumberInput(
        id="best-k",
        label="Heads",
        value=TAKE,
        min=1,
        max=99_999,
        step=1,
        allowDecimal=False,
        size="xs",
        w=76,
    )
    return [
        html.Div([count, _select("best-tower", "of tower")], className="rs-row"),
        html.Div(_select("best-by", "by"), className="rs-row"),
        html.Div(
            [
                dmc.Button("Select", id="best", size="xs"),
                dmc.Button("Add to the selection", id="best-add", **SMALL),
            ],
            className="rs-row",
        ),
        html.Div(id="best-said", className="rs-said", role="status"),
    ]


def _sets() -> list[Component]:
    operations = dmc.SegmentedControl(
        id="operation",
        data=[{"value": name, "label": label} for name, label in selections.OPERATIONS.items()],
        value="unite",
        size="xs",
        fullWidth=True,
        className="grow",
        **widgets.attributes(aria_label="Operation"),
    )
    opened = dcc.Upload(
        html.Button("Open a heads file …", type="button", className="rs-link"),
        id="open-file",
        accept=".json,application/json",
        max_size=selections.LARGEST,
    )
    return [
        html.H3("Save the selection"),
        html.Div(
            [
                dmc.TextInput(
                    id="save-name",
                    placeholder="name of the set",
                    size="xs",
                    className="grow",
                    **widgets.attributes(aria_label="Name of the set"),
                ),
                dmc.Button("Save", id="save", size="xs", disabled=True),
                dmc.Button("Download", id="take", disabled=True, **SMALL),
            ],
            className="rs-row",
        ),
        html.Div(id="save-said", className="rs-said", role="status"),
        html.H3("Load or combine"),
        html.Div(
            [
                _select("set-a", "first set"),
                dmc.Button("Load", id="load", **SMALL),
            ],
            className="rs-row end",
        ),
        html.Div(operations, className="rs-row"),
        html.Div(
            [
                _select("set-b", "second set"),
                dmc.Button("Apply", id="combine", **SMALL),
            ],
            className="rs-row end",
        ),
        html.Div(id="combine-said", className="rs-said", role="status"),
        html.H3("From a file"),
        html.Div([opened, _select("file-tower", "tower of bare pairs")], className="rs-row end"),
        html.Div(id="open-said", className="rs-said", role="status"),
    ]
