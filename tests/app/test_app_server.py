"""The dashboard's door and its files: who is answered, what is found, what is written, and what is refused."""

from __future__ import annotations

import base64
import json
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from app_kit import DATA, POLICY, make_run, make_scores
from flask.testing import FlaskClient

import robosteer
from app import create_app, listen, raw, server
from app.library import Library, scores_of
from app.selections import best, combine, head_set, linked, read_upload, save, saved_sets
from interp.errors import UsageError
from interp.heads import Head
from interp.runs import Run
from interp.scores import TowerScores
from steering.headset import HeadSet


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = make_run(tmp_path / "runs" / "first")
    run.save_scores(make_scores())
    return run


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/heads", 200),
        ("/methods", 200),
        ("/compare", 200),
        ("/nothing", 404),
        ("/compare/x", 404),
        ("/assets/none.js", 404),
    ],
)
def test_only_pages_that_exist_are_found(client: FlaskClient, path: str, status: int) -> None:
    assert client.get(path).status_code == status


@pytest.mark.parametrize(
    "path", ["/assets/../server.py", "/assets/..%2fserver.py", "/..%2f..%2fetc/passwd", "/first/run.json"]
)
def test_no_path_leads_to_other_files(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8050", 200),
        ("localhost", 200),
        ("[::1]:8050", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("evil.example:8050", 400),
        ("[", 400),
    ],
)
def test_only_this_machines_names_are_answered(client: FlaskClient, host: str, status: int) -> None:
    assert client.get("/", headers={"Host": host}).status_code == status
    assert client.get("/_dash-layout", headers={"Host": host}).status_code == status


def test_where_other_machines_are_let_in_a_foreign_name_is_not(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `robosteer app --host 0.0.0.0 --allow-host Robot.example`, on a machine called arm7.lab."""
    served = []
    monkeypatch.setattr(socket, "gethostname", lambda: "Arm7.lab")
    monkeypatch.setattr(server.BaseWSGIServer, "serve_forever", lambda self: served.append(self))
    words = ["app", "--runs", str(run.path), "--host", "0.0.0.0", "--port", "0"]
    assert robosteer.main([*words, "--allow-host", "Robot.example"]) == 0
    (listening,) = served
    printed = re.search(r"http://(.*):(\d+)/ ", capsys.readouterr().out)
    assert printed
    assert printed.group(1) != "0.0.0.0"
    port, client = printed.group(2), listening.app.test_client()

    def status(host: str) -> int:
        return int(client.get("/", headers={"Host": f"{host}:{port}"}).status_code)

    for host in (
        printed.group(1),
        "192.168.1.5",
        "[fe80::1]",
        "arm7.lab",
        "arm7",
        "ARM7.local",
        "robot.example",
    ):
        assert status(host) == 200, host
    for host in ("evil.example", "192.168.1.5.evil.example", "arm8", "0x7f.1"):
        assert status(host) == 400, host
    assert robosteer.main([*words, "--allow-host", "http://robot:8050"]) == 2
    assert "without scheme and port" in capsys.readouterr().err


def test_one_interface_answers_to_its_own_address_only(run: Run) -> None:
    with create_app(run.path, hosts=["192.168.1.5"]).server.test_client() as client:
        answers = {
            h: client.get("/", headers={"Host": h}).status_code for h in ("192.168.1.5", "192.168.1.6")
        }
    assert answers == {"192.168.1.5": 200, "192.168.1.6": 400}


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        ({"Sec-Fetch-Site": "same-site"}, True),
        ({"Origin": "http://evil.example"}, True),
        ({"Origin": "null"}, True),
    ],
)
def test_posts_from_other_sites_are_refused(
    client: FlaskClient, headers: dict[str, str], refused: bool
) -> None:
    answer = client.post("/_dash-update-component", json={}, headers={"Host": "localhost", **headers})
    assert (answer.status_code == 403) == refused


def test_the_page_may_reach_nothing_but_this_server(client: FlaskClient) -> None:
    policy = client.get("/").headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "http" not in client.get("/_dash-layout").text.replace("http://www.w3.org", "")


def test_a_taken_port_is_one_line(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1 is taken"):
            listen(create_app(run.path.parent), port=port)
    with pytest.raises(UsageError, match="70000"):
        listen(create_app(run.path.parent), port=70000)


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder .*nowhere"):
        create_app(tmp_path / "nowhere")


def test_a_run_may_be_given_itself(run: Run) -> None:
    assert list(Library(run.path).paths) == ["first"]
    assert Library(run.path).open("first").policy == POLICY


def test_a_broken_run_is_listed_with_what_is_wrong_and_the_rest_works(run: Run) -> None:
    no_spec = '{"schema": 1, "policy": {"fingerprint": "x"}, "data": {"fingerprint": "y"}}'
    for name, text in {"cut": '{"schema": 1, "po', "old": '{"schema": 0}', "bare": no_spec}.items():
        path = run.path.parent / name / "run.json"
        path.parent.mkdir()
        path.write_text(text)
    entries = {entry.name: entry for entry in Library(run.path.parent).entries()}
    assert set(entries) == {"first", "cut", "old", "bare"}
    assert entries["first"].run is not None
    for name in ("cut", "old", "bare"):
        assert entries[name].run is None
        assert entries[name].problem


@pytest.mark.parametrize("name", ["..", "../first", "first/../first", "/etc", "", "first\x00"])
def test_names_are_looked_up_not_joined(run: Run, name: str) -> None:
    with pytest.raises(UsageError, match="unknown run"):
        Library(run.path.parent).entry(name)


def test_a_half_written_score_file_does_not_hide_the_others(run: Run) -> None:
    (run.path / "scores" / "half.json").write_text('{"schema": 1, "method"')
    (run.path / "scores" / "odd.json").write_text(
        '{"schema": 1, "towers": {"expert": {"value": [[1], [2, 3]]}}}'
    )
    scores, problems = scores_of(run)
    assert list(scores) == ["knn"]
    assert ["half.json" in line or "odd.json" in line for line in problems] == [True, True]


def test_scores_that_are_written_again_are_read_again(run: Run) -> None:
    assert scores_of(run)[0]["knn"].label == "k-NN regression"
    run.save_scores(make_scores(label="second time"))
    assert scores_of(run)[0]["knn"].label == "second time"


def test_saving_never_replaces_what_the_person_has_not_seen(run: Run) -> None:
    path = save(run, "mine", ["expert.L3H2"])
    before = path.read_bytes()
    with pytest.raises(UsageError, match="mine"):
        save(run, "mine", ["expert.L0H0"])
    assert path.read_bytes() == before
    save(run, "mine", ["expert.L0H0"], replace=["mine"])
    assert saved_sets(run) == ({"mine": ["expert.L0H0"]}, [])


@pytest.mark.parametrize("name", ["../escape", "a/b", ".hidden", "", "x" * 101, "a\nb"])
def test_a_set_is_saved_in_its_folder_or_not_at_all(run: Run, name: str) -> None:
    with pytest.raises(UsageError):
        save(run, name, ["expert.L3H2"])
    assert not (run.path / "selections").exists()


@pytest.mark.parametrize(
    ("heads", "says"),
    [
        ([], "no heads"),
        (["vlm.L3H0"], "dead"),
        (["expert.L9H0"], "layers"),
        (["nowhere.L0H0"], "tower"),
        (["x"], "head"),
    ],
)
def test_heads_that_cannot_be_trained_are_refused_by_the_server_too(
    run: Run, heads: list[str], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        save(run, "mine", heads)
    assert not (run.path / "selections").exists()


def test_a_set_of_another_policy_is_named_not_loaded(run: Run) -> None:
    save(run, "mine", ["expert.L3H2", "vlm.L0H0"])
    record = json.loads((run.path / "selections" / "mine.json").read_text())
    assert "trainable_head_indices" not in record  # bare pairs cannot say which tower
    run.save_selection("theirs", {**record, "policy": "pi0-ffffffff"})
    sets, problems = saved_sets(run)
    assert list(sets) == ["mine"]
    assert "pi0-ffffffff" in problems[0]
    assert POLICY in problems[0]


def test_sets_are_combined_as_sets() -> None:
    a, b = ["expert.L1H1", "expert.L10H0"], ["expert.L1H1", "vlm.L0H0"]
    assert combine(a, "unite", b) == [
        "expert.L1H1",
        "expert.L10H0",
        "vlm.L0H0",
    ]  # in order of layers, not of letters
    assert combine(a, "intersect", b) == ["expert.L1H1"]
    assert combine(a, "subtract", b) == ["expert.L10H0"]
    assert combine(a, "subtract", a) == []
    with pytest.raises(UsageError, match="unknown operation"):
        combine(a, "xor", b)


def test_best_of_all_towers_are_the_best_of_each_put_in_order() -> None:
    scores = make_scores(higher=True)
    values = np.concatenate([tower.value.ravel() for tower in scores.towers.values()])
    chosen = [scores.score(head) for head in best(scores, 7).heads]
    assert chosen == sorted(values[np.isfinite(values)], reverse=True)[:7]  # higher is better here
    assert len(best(scores, 999, "expert").heads) == 20


def test_a_saved_set_says_what_chose_it(run: Run) -> None:
    scores = make_scores(seed=1, higher=True, method="ablation")
    taken = best(scores, 3, "expert")
    heads = [str(head) for head in sorted(taken.heads)]
    other = best(make_scores(), 4, "expert")
    origins = [other.to_json(), taken.to_json()]
    assert head_set(run, heads, origins) == taken  # with its order and scores, though another set came later
    by_hand = head_set(run, heads[:2], origins)
    assert by_hand == HeadSet(
        tuple(map(Head.parse, heads[:2])), policy=POLICY, method="chosen by hand", data=DATA
    )
    theirs = {**taken.to_json(), "policy": "pi0-ffffffff"}  # the tab has looked at another policy
    assert head_set(run, heads, [theirs]).method == "chosen by hand"
    name = linked(run, heads, origins)  # and so does what an address names
    assert json.loads((run.path / "selections" / f"{name}.json").read_text()) == taken.to_json()


def test_scores_without_a_number_choose_nothing() -> None:
    scores = make_scores()
    none = {n: TowerScores(np.full_like(t.value, np.nan)) for n, t in scores.towers.items()}
    with pytest.raises(UsageError, match="no score for any head of expert"):
        best(replace(scores, towers=none), 3, "expert")


def test_an_address_names_a_long_set_by_its_heads(run: Run) -> None:
    heads = ["expert.L3H2", "expert.L0H0"]
    name = linked(run, heads)
    assert linked(run, heads[::-1]) == name  # the same set, the same name, one file
    assert linked(run, [*heads, "expert.L1H0"]) != name
    assert saved_sets(run) == ({}, [])  # not offered among a person's own
    save(run, "mine", heads)
    assert linked(run, heads) == "mine"
    with pytest.raises(UsageError, match="link-"):
        save(run, "link-mine", heads)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "not JSON"),
        ("[1]", "JSON object"),
        ('{"heads": 3}', "needs"),
        ('{"trainable_head_indices": [[9, 0]]}', "layers"),
        (
            '{"schema": 1, "policy": "pi0-ffffffff", "heads": [{"tower": "expert", "layer": 0, "head": 0}]}',
            "pi0-ffffffff",
        ),
    ],
)
def test_a_file_from_outside_is_checked_before_it_is_believed(run: Run, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read_upload(run, data_url(text), "theirs.json", "expert")


def test_a_published_file_is_read_for_the_tower_that_is_named(run: Run) -> None:
    text = data_url('{"trainable_head_indices": [[3, 2], [0, 1]], "best_k": 20, "cv_mse": 0.031}')
    heads = read_upload(run, text, "heads.json", "expert").heads
    assert list(map(str, heads)) == ["expert.L3H2", "expert.L0H1"]  # in the order of the file


def data_url(text: str) -> str:
    return "data:application/json;base64," + base64.b64encode(text.encode()).decode()


def test_raw_files_are_found_by_name_and_kept_by_version(client: FlaskClient, run: Run) -> None:
    picture = run.frame_path(3, "front", 7)
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"\xff\xd8 not really")
    url = raw.frame_url("first", 3, "front", 7, raw.version(picture))
    answer = client.get(url)
    assert (answer.data, answer.mimetype) == (picture.read_bytes(), "image/jpeg")
    assert "immutable" in answer.headers["Cache-Control"]
    again = client.get(url.partition("?")[0])
    assert "no-cache" in again.headers["Cache-Control"]
    etag = again.headers["ETag"]
    assert client.get(url.partition("?")[0], headers={"If-None-Match": etag}).status_code == 304
    before = raw.version(picture)
    picture.write_bytes(b"another")
    assert raw.version(picture) != before


@pytest.mark.parametrize(
    "path",
    [
        "frames/3/front/00008.jpg",
        "frames/3/..%2f../00007.jpg",
        "selections/..%2frun.json",
        "selections/run.json",
        "selections/%2e%2e.json",
        "run.json",
        "../none/frames/3/front/00007.jpg",
        "..%2f..%2ffirst/selections/x.json",
    ],
)
def test_raw_files_stay_in_their_folders(client: FlaskClient, path: str) -> None:
    assert client.get(f"/raw/first/{path}").status_code == 404


def test_the_server_starts_without_the_libraries_that_train() -> None:
    """Importing torch and transformers takes longer than everything else that the dashboard does before it answers."""
    names = "torch", "transformers", "peft", "matplotlib"
    asked = f"import sys, robosteer, app; print(*(name for name in {names} if name in sys.modules))"
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
