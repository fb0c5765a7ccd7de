"""Watch hands out the very bytes of the head that is shown and no others, and draws them over the right frames."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from app_kit import make_run, make_scores
from flask.testing import FlaskClient
from watch_kit import CAMERAS, FRAMES, PARTS, PEAK, WORDS, looked_at, make_footage, seen, spoil

from app import create_app, theme, watch_data, watch_timeline
from app.pages import methods, watch
from app.pages.page import Screen
from app.pages.watch import timeline_of
from app.watch_timeline import MARGIN, folded, groups, timeline
from interp.errors import UsageError
from interp.filming import Writer
from interp.heads import Head
from interp.runs import Run
from interp.watching import Seen

HEAD = Head("expert", 3, 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = make_run(tmp_path_factory.mktemp("watch") / "runs" / "first")
    make_footage(run)
    make_footage(run, edit="no-words")
    run.save_scores(make_scores())
    return run


@pytest.fixture(scope="module")
def client(run: Run) -> Iterator[FlaskClient]:
    with create_app(run.path.parent).server.test_client() as client:
        yield client


@pytest.mark.parametrize("odd", ["²", "x", "-1", "99"])
def test_wishes_that_are_no_numbers_of_what_is_there_are_passed_over(run: Run, odd: str) -> None:
    """They come from the URL, so anything may be in them; `²` is a digit, but no number to int()."""
    assert watch.body(Screen(run, {"episode": odd, "dim": odd}, "light")) is not None
    methods.body(Screen(run, {"k": odd}, "light"))


def test_the_scene_says_what_there_is_to_show(run: Run) -> None:
    scene = watch_data.scene(run, 0)
    assert (scene["frames"], scene["fps"], scene["towers"]) == (
        FRAMES,
        10.0,
        {"vlm": [4, 4], "expert": [5, 4]},
    )
    assert [camera["name"] for camera in scene["cameras"]] == ["front", "wrist"]
    assert scene["takes"]["clean"]["columns"] == {
        "peak": ["front", "wrist"],
        "mass": list(PARTS),
        "word": list(WORDS),
    }
    twin = scene["takes"]["no-words"]
    assert (twin["label"], twin["factor"]) == ("empty instruction", "linguistic")
    assert twin["frames"].endswith("/0/clean")  # words were edited: the pictures are those that were recorded


def test_frames_pass_at_the_rate_that_they_were_recorded_at(run: Run) -> None:
    """Whatever the policy's files say of it, which may be nothing."""
    recorded = Run(run.path, {**run.info, "data": {**run.info["data"], "fps": 50.0}})
    assert recorded.spec.fps == 10
    assert watch_data.scene(recorded, 0)["fps"] == 50


def test_bytes_over_http_are_the_heads_own(run: Run, client: FlaskClient) -> None:
    take = watch_data.scene(run, 0)["takes"]["clean"]
    answer = client.get(f"{take['base']}/expert/3/2/wrist.u8?v={take['v']}")
    assert "immutable" in answer.headers["Cache-Control"]
    patches = np.frombuffer(answer.data, np.uint8).reshape(FRAMES, 4, 4)
    for frame in range(FRAMES):
        row, column = looked_at(3, 2, frame, "wrist")
        assert patches[frame, row, column] == 255
        assert patches[frame].sum() == 255
    series = np.frombuffer(client.get(f"{take['base']}/expert/3/2/series.f32").data, "<f4").reshape(
        FRAMES, -1
    )
    assert series.shape[1] == len(CAMERAS) + len(PARTS) + len(WORDS)
    np.testing.assert_allclose(series[:, 1], PEAK / (1 + np.arange(FRAMES)), rtol=1e-6)
    np.testing.assert_allclose(series[0, 2:10], (0.3, 0, 0.2, 0.1, 0.2, 0, 0.1, 0.1), rtol=1e-6)


def test_pictures_come_in_packs_and_a_missing_one_is_empty(run: Run, tmp_path: Path) -> None:
    start, stop = 3, 15
    whole = watch_data.pack(run, 0, "clean", "front", start, stop)
    count, *lengths = struct.unpack_from(f"<{1 + stop - start}I", whole)
    files = [run.frame_path(0, "front", frame).read_bytes() for frame in range(start, stop)]
    assert (count, lengths) == (stop - start, [len(file) for file in files])
    assert whole[4 * (1 + count) :] == b"".join(files)
    bare = make_run(tmp_path / "bare")
    make_footage(bare)
    bare.frame_path(0, "front", 1).unlink()
    assert struct.unpack_from("<4I", watch_data.pack(bare, 0, "clean", "front", 0, 3))[2] == 0
    assert FRAMES > watch_data.PACK
    for start, stop in ((0, FRAMES), (FRAMES - 1, FRAMES + 1), (3, 3), (-1, 2)):
        with pytest.raises(UsageError, match="frames"):
            watch_data.pack(run, 0, "clean", "front", start, stop)


@pytest.mark.parametrize(
    "path",
    [
        "0/clean/vision/0/0/series.f32",
        "0/clean/expert/9/0/front.u8",
        "0/clean/expert/0/9/series.f32",
        "0/clean/expert/0/0/top.u8",
        "0/clean/expert/0/0/..%2f..%2ffootage.json",
        "0/dark/expert/0/0/series.f32",
        "0/nonsense/expert/0/0/series.f32",
        "7/clean/expert/0/0/series.f32",
        "0/clean/frames/front/0-999.pack",
        "0/clean/frames/..%2f../0-3.pack",
    ],
)
def test_what_is_not_there_is_not_found(client: FlaskClient, path: str) -> None:
    assert client.get(f"/raw/first/footage/{path}").status_code == 404


def test_the_server_reads_only_the_head_that_is_shown(tmp_path: Path) -> None:
    """A gigabyte of attention on disk, a quarter of a megabyte in memory."""
    run, frames = make_run(tmp_path / "big", {"expert": (32, 32)}), 1000
    path = run.path / "attention" / "0"
    path.mkdir(parents=True)
    shape = (32, 32, 1, 16, 16)
    block = Seen(
        images={("expert", name): np.zeros(shape, np.float32) for name in CAMERAS},
        mass={"expert": np.zeros((32, 32, 1, 2), np.float32)},
        words={"expert": np.zeros((32, 32, 1, 0), np.float32)},
        contribution={},
        prediction=np.zeros((1, 7), np.float32),
        parts=("image/front", "language"),
        vocabulary=(),
        cameras=CAMERAS,
    )
    Writer(path, frames, block).finish(episode=0, edit=None, settings={})  # sparse files: no disk is filled
    assert (path / "expert" / "front.npy").stat().st_size > 250e6
    watch_data.patches(run, 0, "clean", Head("expert", 0, 0), "front")
    tracemalloc.start()
    got = watch_data.patches(run, 0, "clean", Head("expert", 31, 30), "front")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(got) == frames * 256
    assert peak < 2e6


def test_dimensions_that_share_a_unit_share_a_row() -> None:
    tabletop = ["dx", "dy", "dz", "drotation_x", "drotation_y", "drotation_z", "gripper"]
    assert groups(tabletop) == [("translation", [0, 1, 2]), ("rotation", [3, 4, 5]), ("gripper", [6])]
    assert groups([f"action_{i}" for i in range(8)]) == [("action", list(range(8)))]
    assert groups(["joint_1", "joint_2", "gripper_position"]) == [
        ("joint", [0, 1]),
        ("gripper_position", [2]),
    ]


def test_padding_is_one_part_and_what_gets_nothing_is_left_out() -> None:
    parts = folded(PARTS, seen(2).mass["expert"][0, 0])
    assert list(parts) == ["front", "wrist", "language", "state", "action", "padding"]
    assert parts["padding"] == pytest.approx([0.1, 0.1])
    assert sum(values[0] for values in parts.values()) == pytest.approx(1)


def test_the_timeline_is_a_valid_figure_with_the_numbers_behind_it(run: Run) -> None:
    shown = {
        "tiles": [{"head": str(HEAD), "take": "clean"}, {"head": "vlm.L1H1", "take": "clean"}],
        "leading": 0,
    }
    episode = timeline_of(run, 0, shown)
    for scheme in theme.SCHEMES:
        figure = timeline(episode, None, scheme)
        go.Figure(figure)  # Plotly refuses unknown properties and values
    rows = figure["layout"]["meta"]["rows"]
    assert [row["frame"] for row in rows] == list(range(FRAMES))
    # the head adds f to dimension 2 and nothing else, so that is its norm too; the vlm's head adds nothing itself
    assert [row["adds, expert.L3H2"] for row in rows] == list(range(FRAMES))
    assert not any("vlm" in name for name in rows[0] if name.startswith("adds"))
    assert [row["a0, demonstrated"] for row in rows] == list(range(FRAMES))
    other = timeline(episode, 1, "light")["layout"]["meta"]["rows"]
    assert {row["adds, expert.L3H2"] for row in other} == {0.0}
    # the browser puts the cursor by these margins alone
    assert figure["layout"]["xaxis"]["range"] == [-0.5, FRAMES - 0.5]
    assert figure["layout"]["margin"] == MARGIN
    painted = [path for path, _ in figure["layout"]["meta"]["paint"]]
    assert len(painted) == len(figure["data"])  # every colour follows the scheme


def test_two_takes_are_drawn_against_each_other(run: Run) -> None:
    tiles = [{"head": str(HEAD), "take": take} for take in ("clean", "no-words")]
    episode = timeline_of(run, 0, {"tiles": tiles, "leading": 0})
    names = timeline(episode, None, "light")["layout"]["meta"]["rows"][0]
    assert "a0, predicted, as recorded" in names
    assert "a0, predicted, empty instruction" in names
    assert "a0, demonstrated" not in names
    assert "adds, expert.L3H2, empty instruction" in names


def test_a_timeline_without_signals_or_contributions_still_stands(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare")
    make_footage(run)
    (run.path / "signals.parquet").unlink()
    episode = timeline_of(run, 0, {"tiles": [{"head": "vlm.L0H0", "take": "clean"}], "leading": 0})
    figure = timeline(episode, None, "light")
    assert any("write no action themselves" in note["text"] for note in figure["layout"]["annotations"])
    assert watch_timeline.height(episode.names) > 0
    spoil(run.path / "attention" / "0")
    with pytest.raises(UsageError, match=r"footage\.json"):
        watch_data.scene(run, 0)
