"""Finetuning from the screen: what is asked is what is typed in a terminal, and nobody else may ask it."""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from app_kit import DATA, POLICY, Site, Tab, make_run, make_scores
from huggingface_hub.errors import LocalEntryNotFoundError
from job_kit import PROGRAM, until
from random_policy import build_policy

from app import create_app, jobs, listen, training
from app.counting import Uncounted, count, head_set
from app.jobs import jobs_of
from app.library import Library
from app.pages.finetune import start_job
from app.pages.training_cards import counted
from app.training import Form
from interp.errors import UsageError
from interp.policies import load_policy
from interp.runs import Run, write_json
from robosteer import build_parser
from steering.recipes import NAMES, Recipe, adapt


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of a policy whose files are there: 3 layers of 4 heads of 8, width 48."""
    directory = build_policy(tmp_path_factory.mktemp("policy") / "random")
    policy = load_policy(directory)
    data = {"fingerprint": DATA, "episodes": 3, "frames": 20}
    path = tmp_path_factory.mktemp("runs") / "real"
    return Run.create(path, policy=policy.fingerprint, source=str(directory), spec=policy.spec, data=data)


def test_parameters_are_counted_without_weights(real: Run) -> None:
    heads = head_set(real, ["expert.L0H1", "expert.L2H3"])
    counted = count(real, Recipe.named("aligned"), heads)
    # a head has d_head rows of width d_in in q and d_head columns of width d_out in o
    assert dict(counted.groups) == {"expert query rows": 2 * 8 * 48, "expert output columns": 2 * 48 * 8}
    low = count(real, Recipe.named("aligned", form="low-rank"), heads)
    assert low.trained == 2 * 2 * 4 * (8 + 48)  # two heads, two projections, rank 4
    policy = load_policy(real.info["policy"]["source"])
    assert counted.total == sum(p.numel() for p in policy.module.parameters())
    for name in NAMES:
        if name in ("bottom-k", "generic-k"):
            continue
        adaptation = adapt(policy, Recipe.named(name), heads)
        assert count(real, Recipe.named(name), heads).groups == dict(adaptation.groups), name
        adaptation.remove()
    with pytest.raises(UsageError, match="needs a head set"):
        count(real, Recipe.named("aligned"), None)


@pytest.mark.parametrize("elsewhere", ["hub", "family"])
def test_what_cannot_be_counted_yet_can_be_started_and_nothing_is_loaded_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: str
) -> None:
    """A policy of the hub that this machine does not have, and one that the core cannot build."""

    def snapshot(name: str, local_files_only: bool = False) -> str:
        assert name == "owner/policy"
        assert local_files_only, "a page would load gigabytes from the hub"
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    source, says = "owner/policy", "not loaded from the hub yet"
    if elsewhere == "family":
        source, says = str(tmp_path / "smolvla"), "of this family are counted when its job begins"
        Path(source).mkdir()
        Path(source, "config.json").write_text('{"type": "smolvla"}')
    run = make_run(tmp_path / "runs" / "first")
    write_json(run.path / "run.json", {**run.info, "policy": {**run.info["policy"], "source": source}})
    library = Library(tmp_path / "runs")
    run, form, heads = library.open("first"), Form("aligned", name="mine"), ["expert.L3H2"]
    with pytest.raises(Uncounted, match=says):
        count(run, Recipe.named("aligned"), head_set(run, heads))
    said, command = counted(run, form, heads, {})
    assert says in str(said)
    assert command.startswith("robosteer finetune")
    started = []
    monkeypatch.setattr(jobs, "launch", lambda run, asked, runs: started.append(asked))
    start_job(library, run, form, heads)
    assert [asked.name for asked in started] == ["mine"]


def test_a_policy_that_has_moved_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "first")
    source = {**run.info["policy"], "source": str(tmp_path / "moved")}
    write_json(run.path / "run.json", {**run.info, "policy": source})
    library = Library(tmp_path / "runs")
    with pytest.raises(UsageError, match=r"unknown policy .*moved"):
        start_job(library, library.open("first"), Form("aligned", name="mine"), ["expert.L3H2"])
    assert not (run.path / "jobs").exists()


def test_what_is_asked_is_what_could_be_typed(real: Run) -> None:
    form = Form("aligned", steps=300, lr=0.002, form="low-rank", seed=7)
    asked = training.request(real, form, ["expert.L0H1"], {})
    assert asked.name == "aligned"
    assert asked.options == {
        "steps": ("300",),
        "form": ("low-rank",),
        "seed": ("7",),
    }  # the learning rate is the recipe's own
    words = shlex.split(training.typed(real, asked, selection="mine"))
    parsed = build_parser().parse_args(words[1:])  # the command line takes every word of it
    assert (parsed.recipe, parsed.steps, parsed.form, parsed.seed) == ("aligned", 300, "low-rank", 7)
    assert (parsed.run, parsed.heads, parsed.name) == (str(real.path), "mine", "aligned")
    for wrong, says in (
        (Form("aligned", steps=0), "steps = 0"),
        (Form("aligned", lr=-1.0), "lr = -1"),
        (Form("aligned", seed=-1), "seed -1"),
        (Form("aligned", name="../x"), "name of the job"),
        (Form("aligned", name="base"), "that of the base policy.s results"),
        (Form("nonsense"), "nonsense"),
    ):
        with pytest.raises(UsageError, match=says):
            training.request(real, wrong, [], {})
    other = Run(real.path.parent / "other", real.info)
    generic = Form("generic-k", scores="knn", others=("other",))
    asked = training.request(real, generic, ["expert.L0H1"], {"other": other})
    parsed = build_parser().parse_args(shlex.split(training.typed(real, asked))[1:])
    assert (parsed.method, parsed.others) == ("knn", [str(other.path)])
    with pytest.raises(UsageError, match=r"other run gone: .* \(other\): take it out"):
        training.request(real, replace(generic, others=("other", "gone")), ["expert.L0H1"], {"other": other})
    with pytest.raises(UsageError, match="3 layers"):
        training.request(real, Form("aligned"), ["expert.L9H0"], {})


@pytest.mark.parametrize(("seconds", "said"), [(7.4, "7 s"), (89, "89 s"), (150, "2 min"), (9000, "2.5 h")])
def test_times_are_said_as_one_says_them(seconds: float, said: str) -> None:
    assert training.spell(seconds) == said


# ---- in the browser


@pytest.fixture
def launching(tab: Tab, tmp_path: Path, real: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    """A dashboard that may start jobs; what it starts is the stand-in."""
    monkeypatch.setattr(jobs, "PROGRAM", PROGRAM)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    folder = tmp_path / "runs"
    info = real.info["policy"]
    Run.create(
        folder / "mine", policy=real.policy, source=info["source"], spec=real.spec, data=real.info["data"]
    )
    serving = Serving(folder)
    serving.start()
    yield serving
    rest(tab)
    serving.stop()


def rest(tab: Tab) -> None:
    """Leave for an empty page: one that polls a server which is gone would say so in the console."""
    empty = "<!doctype html><link rel=icon href='data:,'>"
    tab.page.route("**/empty", lambda route: route.fulfill(body=empty, content_type="text/html"))
    tab.page.goto(f"{tab.address}/empty")


class Serving:
    """A server that can be stopped and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.server = listen(create_app(self.folder, allow_launch=True), port=self.port)
        self.port = self.server.port
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def says(tab: Tab, selector: str, text: str) -> None:
    tab.page.wait_for_function(
        "([at, t]) => document.querySelector(at)?.innerText.includes(t)", arg=[selector, text]
    )


def begin(tab: Tab, site: Serving, steps: int = 2000, pace: float = 0.05) -> Run:
    tab.page.goto(f"{site.address}/finetune?run=mine&heads=expert.L0H1,expert.L2H3")
    says(tab, "#ft-count", "1,536 trainable parameters")
    tab.page.fill("#ft-steps", str(steps))
    tab.page.fill("#ft-lr", str(pace))  # the stand-in reads its pace here
    tab.page.wait_for_function("document.getElementById('ft-command').innerText.includes('--lr')")
    tab.page.click("#ft-start")
    says(tab, "#ft-said", "has started")
    return Run.open(site.folder / "mine")


@pytest.mark.browser
def test_a_job_goes_on_through_reload_and_a_new_server_until_it_is_cancelled(
    tab: Tab, launching: Serving
) -> None:
    run = begin(tab, launching)
    says(tab, "#ft-head", "running")
    says(tab, "#ft-so-far", "left")
    tab.page.wait_for_function("location.search.includes('job=aligned')")
    assert "--heads" in tab.page.inner_text("#ft-log")
    tab.page.reload()
    says(tab, "#ft-head", "running")
    tab.page.wait_for_selector("#ft-curve .scatterlayer path")
    tab.page.click("#ft-start")  # one at a time
    says(tab, "#ft-said.bad", "one job at a time")
    address = tab.page.url
    rest(tab)
    launching.stop()
    steps = len(jobs_of(run)[0].points())
    until(lambda: len(jobs_of(run)[0].points()) > steps, "the job to go on without a server")
    launching.start()
    tab.page.goto(address)
    says(tab, "#ft-head", "running")
    tab.page.evaluate(
        """() => {
            const live = document.getElementById('ft-state'), all = { childList: true, subtree: true };
            window.told = [];
            new MutationObserver(() => told.push(live.innerText)).observe(live, { ...all, characterData: true });
        }"""
    )
    before = tab.page.inner_text("#ft-so-far")
    tab.page.wait_for_function("t => document.getElementById('ft-so-far').innerText !== t", arg=before)
    assert tab.page.evaluate("told") == []  # a screen reader does not hear every step
    tab.page.click("#ft-cancel")
    says(tab, "#ft-head", "cancelled")
    told = tab.page.evaluate("told")  # but that it was cancelled
    assert "cancelled" in told[-1]
    reached = jobs_of(run)[0].step
    tab.page.click("#ft-resume")
    says(tab, "#ft-said", "goes on from its last checkpoint")
    says(tab, "#ft-head", "running")
    until(lambda: jobs_of(run)[0].step > reached, "the job to go on")
    tab.page.click("#ft-cancel")
    says(tab, "#ft-head", "cancelled")


@pytest.mark.browser
def test_a_finished_job_says_what_to_do_next_and_everybody_can_read_it(tab: Tab, launching: Serving) -> None:
    run = begin(tab, launching, steps=5, pace=0.01)
    says(tab, "#ft-head", "done")
    assert "robosteer evaluate" in tab.page.inner_text("#ft-head")
    record = (run.path / "jobs" / "aligned" / "heads.json").read_text()
    assert run.policy in record
    assert "4,096" in tab.page.inner_text("#ft-jobs")
    says(tab, "#ft-command", "--name aligned-2")
    tab.axe()
    tab.page.click("#scheme-toggle")
    tab.page.wait_for_function(
        "document.querySelector('#ft-curve .js-plotly-plot')._fullLayout.paper_bgcolor === '#161e27'"
    )
    tab.page.wait_for_timeout(250)  # colours fade over
    tab.axe()


@pytest.mark.browser
def test_what_cannot_be_trained_is_one_line(tab: Tab, launching: Serving) -> None:
    tab.page.goto(f"{launching.address}/finetune?run=mine")
    says(tab, "#ft-count", "needs a head set")
    tab.page.click("#ft-start")
    says(tab, "#ft-said.bad", "needs a head set")
    assert not (launching.folder / "mine" / "jobs").exists()


@pytest.mark.browser
def test_without_permission_the_page_only_looks(tab: Tab, site: Site, run: Run) -> None:
    tab.open(f"/finetune?run={run.name}&heads=expert.L3H2", ready="#ft-start")
    assert tab.page.is_disabled("#ft-start")
    assert "--allow-launch" in tab.page.inner_text("#page")
    assert tab.page.evaluate("document.getElementById('ft-token')?.innerText ?? ''") == ""


def test_a_request_without_the_servers_token_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PROGRAM", PROGRAM)
    run = make_run(tmp_path / "runs" / "first")
    run.save_scores(make_scores())
    for allowed in (False, True):
        server = create_app(tmp_path / "runs", allow_launch=allowed).server
        with server.test_client() as client:
            for token in (None, "", "guessed", server.config["LAUNCH_TOKEN"] if not allowed else "x"):
                said = _press_start(client, token)
                assert ("reload the page" if allowed else "only looks") in said
    assert not (run.path / "jobs").exists()


def test_other_runs_on_offer_are_those_that_may_be_taken(tmp_path: Path) -> None:
    """Of the same policy on other demonstrations, in the library; a run that was opened alone has none."""
    spec = make_run(tmp_path / "first").spec
    for name, policy, data in (
        ("same", POLICY, DATA),
        ("task", POLICY, "demos-2"),
        ("else", "pi0-2", "demos-3"),
    ):
        Run.create(tmp_path / name, policy=policy, source="x", spec=spec, data={"fingerprint": data})
    assert _offered(tmp_path) == ["task"]
    assert _offered(tmp_path / "first") == []


def _offered(root: Path) -> list[str]:
    """The answer to the choice of generic-k on the page of the run `first`."""
    with create_app(root).server.test_client() as client:
        wired = client.get("/_dash-dependencies", headers={"Host": "localhost"}).json
        (own,) = (each for each in wired if [i["id"] for i in each["inputs"]] == ["ft-recipe"])
        outputs = [part.rsplit(".", 1) for part in own["output"].strip(".").split("...")]
        body = {
            "output": own["output"],
            "outputs": [{"id": name, "property": value} for name, value in outputs],
            "inputs": [{"id": "ft-recipe", "property": "value", "value": "generic-k"}],
            "changedPropIds": ["ft-recipe.value"],
            "state": [{"id": "run", "property": "value", "value": "first"}],
        }
        answer = client.post("/_dash-update-component", json=body, headers={"Host": "localhost"})
        return list(answer.json["response"]["ft-others"]["data"])


def _press_start(client: object, token: str | None) -> str:
    """The request that the page's Start button makes."""
    values = {"recipe": "aligned", "name": "x", "steps": 5, "lr": 0.001, "form": "full", "seed": 0}
    state = [
        {"id": "ft-token", "property": "data", "value": token},
        {"id": "selection", "property": "data", "value": {"run": "first", "heads": ["expert.L3H2"]}},
        {"id": "ft-seen", "property": "data", "value": None},
        {"id": "run", "property": "value", "value": "first"},
        *({"id": f"ft-{name}", "property": "value", "value": values.get(name)} for name in FIELDS),
    ]
    body = {
        "output": "..ft-acted.data...ft-said.children...ft-said.className..",
        "outputs": [
            {"id": "ft-acted", "property": "data"},
            {"id": "ft-said", "property": "children"},
            {"id": "ft-said", "property": "className"},
        ],
        "inputs": [
            {"id": "ft-start", "property": "n_clicks", "value": 1},
            {"id": "ft-cancel", "property": "n_clicks", "value": None},
            {"id": "ft-resume", "property": "n_clicks", "value": None},
        ],
        "changedPropIds": ["ft-start.n_clicks"],
        "state": state,
    }
    answer = client.post("/_dash-update-component", json=body, headers={"Host": "localhost"})  # type: ignore[attr-defined]
    assert answer.status_code == 200, answer.text
    return str(answer.json["response"]["ft-said"]["children"])


FIELDS = ("recipe", "name", "steps", "lr", "form", "seed", "scores", "others")
