"""What a page is, and what it is shown for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dash import Dash
from dash.development.base_component import Component

from app.library import Library
from interp.runs import Run


@dataclass(frozen=True)
class Screen:
    """What the page is to show: the run, what the URL wishes to see of it, and the colour scheme."""

    run: Run
    wishes: Mapping[str, str]  # method, tower, factor: wishes, so anything may be in them
    scheme: str


@dataclass(frozen=True)
class Page:
    """One page: its place, its name in the navigation, its body, and its callbacks."""

    path: str
    name: str
    body: Callable[[Screen], Component]
    connect: Callable[[Dash, Library], None]
    early: bool = (
        False  # whether the body is quick to make, and is sent with the first answer (app/firstpaint.py)
    )
