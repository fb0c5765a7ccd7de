"""What is on the screen before any script has run, and how it gets there: the first answer, and small ones."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest
from app_kit import DEAD, TINY, make_run, make_scores
from flask.testing import FlaskClient

from app.markup import LEVELS
from interp.runs import Run
from interp.scores import HeadScores

FIRST = re.compile(r'<div id="first".*?<template shadowrootmode="closed">(.*?)</template>', re.DOTALL)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = make_run(tmp_path / "runs" / "first")
    run.save_scores(make_scores())
    return run


def first_picture(client: FlaskClient, address: str) -> str:
    found = FIRST.search(client.get(address).text)
    assert found, "the answer has no first picture"
    return found[1]


def cells_of(picture: str) -> list[dict[tuple[int, int], int]]:
    """Of every map, in their order: the level of each (layer, head)."""
    maps = []
    for drawn in re.findall(r'class="rs-first-map".*?</svg>', picture):
        levels = {}
        for level, path in re.findall(r'<path class="q(\d+)" d="([^"]*)"', drawn):
            for head, layer in re.findall(r"M(\d+) (\d+)h1v1h-1z", path):
                levels[int(layer), int(head)] = int(level)
        maps.append(levels)
    return maps


def expected(scores: HeadScores, tower: str) -> dict[tuple[int, int], float]:
    """Where each score lies between the worst and the best of all towers, 0 to 1."""
    every = np.concatenate([grid.value[np.isfinite(grid.value)] for grid in scores.towers.values()])
    worst, best = (every.min(), every.max()) if scores.higher_is_better else (every.max(), every.min())
    value = scores.towers[tower].value
    return {
        tuple(at): (value[tuple(at)] - worst) / (best - worst)
        for at in np.argwhere(np.isfinite(value)).tolist()
    }


@pytest.mark.parametrize("higher", [False, True])
def test_first_answer_shows_every_score_in_its_colour(run: Run, client: FlaskClient, higher: bool) -> None:
    scores = make_scores(higher=higher)
    run.save_scores(scores)
    drawn = cells_of(first_picture(client, "/?run=first"))
    assert len(drawn) == len(TINY)
    for cells, tower in zip(drawn, TINY, strict=True):
        wanted = expected(scores, tower)
        assert cells.keys() == wanted.keys()  # dead heads are not among them
        for at, share in wanted.items():
            assert (
                abs(cells[at] / (LEVELS - 1) - share) <= 0.5 / (LEVELS - 1) + 1e-4
            )  # scores are sent with six digits
    assert drawn[2][3, 2] == LEVELS - 1  # the best head
    assert DEAD["vlm"][0] not in drawn[1]


def test_first_answer_follows_the_address(client: FlaskClient) -> None:
    picture = first_picture(
        client, "/?run=first&tower=expert&heads=expert.L3H2,vlm.L0H1,expert.L77H0,%3Cb%3E"
    )
    assert len(cells_of(picture)) == 1
    assert "2 heads selected" in picture
    outline = re.search(r'class="rs-outline" d="([^"]*)"', picture)
    assert outline
    (x, y), *others = re.findall(r"M([\d.]+) ([\d.]+)", outline[1])
    assert (int(float(x)), int(float(y)), others) == (2, 3, [])  # head, layer
    assert (
        "<b>"
        not in first_picture(client, "/?run=first&heads=%3Cb%3Ex").split("rs-chips")[1].split("</div>")[0]
    )


def test_pages_that_take_long_send_their_frame_at_once(client: FlaskClient) -> None:
    picture = first_picture(client, "/compare?run=first")
    assert '<a class="active" href="/compare">' in picture
    assert cells_of(picture) == []


@pytest.mark.parametrize("fault", ["run", "scores"])
def test_a_broken_file_spoils_no_page(run: Run, client: FlaskClient, fault: str) -> None:
    broken = run.path / "run.json" if fault == "run" else run.path / "scores" / "knn.json"
    broken.write_text(broken.read_text()[:40])
    answer = client.get("/?run=first")
    assert answer.status_code == 200
    assert "react-entry-point" in answer.text
    assert cells_of(answer.text) == []


@pytest.mark.parametrize("path", ["/", "/_dash-layout", "/assets/robosteer.css"])
def test_text_is_sent_compressed_to_who_can_read_it(client: FlaskClient, path: str) -> None:
    plain = client.get(path)
    packed = client.get(path, headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.data) < len(plain.data) / 2
    stable = re.compile(rb'"end_id":"[^"]*"')  # Dash draws one for every page
    assert stable.sub(b"", gzip.decompress(packed.data)) == stable.sub(b"", plain.data)
    assert "Accept-Encoding" in packed.headers["Vary"]


def test_a_library_that_the_browser_has_is_not_sent_again(client: FlaskClient) -> None:
    path = "/_dash-component-suites/dash/dcc/async-graph.js"
    for _ in range(2):  # made, and kept
        packed = client.get(path, headers={"Accept-Encoding": "gzip"})
        assert gzip.decompress(packed.data) == client.get(path).data
    again = client.get(path, headers={"Accept-Encoding": "gzip", "If-None-Match": packed.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
