"""Promises about the control rate: nobody guesses it, training takes it from the demonstrations, and it is passed on.

A robot that acts at another rate than was demonstrated moves at another speed.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from export_kit import answer_here
from lerobot_writer import random_episodes, write_dataset
from pi0_directories import as_openpi, edit_json, unsay
from random_policy import build_policy, random_observations
from serving_kit import robot, serving
from training_kit import SMALL, run

import robosteer
from interp.capture import capture
from interp.data.copying import source_of
from interp.data.recordings import write_dataset as write_ours
from interp.demos import Demonstrations
from interp.policies import load_policy
from interp.rates import other_rate
from steering import export as export_module
from steering.export import Form, export, export_base, export_job
from steering.retain import retain

BASE = {"base": {"source": "a base", "fingerprint": "pi0-0"}}


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "ask_fresh_process", answer_here)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Of a policy that says 10 Hz, to write into."""
    return build_policy(tmp_path / "policy")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of a policy that says no rate on demonstrations of 15 Hz."""
    root = tmp_path_factory.mktemp("trained")
    policy = load_policy(silent(build_policy(root / "policy")))
    return run(policy, demonstrated(root / "demos", 15), root / "job").directory


def demonstrated(path: Path, fps: float) -> Demonstrations:
    return Demonstrations.open(write_dataset(path, random_episodes((5, 4)), fps))


def silent(directory: Path) -> Path:
    """A policy whose file says no rate."""
    unsay(directory / "robosteer.json", "fps")
    return directory


def rate_in(directory: Path) -> float | None:
    rate: float | None = json.loads((directory / "robosteer.json").read_text()).get("fps")
    return rate


def test_a_rate_that_nobody_states_is_none(directory: Path, tmp_path: Path) -> None:
    """Runs and heads files of such a policy stay its own: their fingerprints say 10, once assumed."""
    stated = load_policy(directory)
    policy = load_policy(silent(directory))
    assert (stated.spec.fps, policy.spec.fps) == (10, None)
    assert policy.fingerprint == stated.fingerprint
    policy.save(tmp_path / "saved")
    assert rate_in(tmp_path / "saved") is None
    with serving(policy) as port:
        assert robot(port).get_server_metadata()["fps"] is None


@pytest.mark.parametrize("form", ["merged", "lerobot", "openpi"])
def test_an_untrained_export_states_what_the_policy_states(
    form: Form, directory: Path, tmp_path: Path
) -> None:
    demos = demonstrated(tmp_path / "demos", 50)
    for rate, told in ((15, "demonstrated at 15 Hz: lerobot-rollout --fps=15"), (None, "no file says")):
        edit_json(directory / "robosteer.json", fps=rate)
        out = tmp_path / f"{form} {rate}"
        done = export_base(load_policy(directory), out, demos, form=form)
        assert rate_in(out) == load_policy(out).spec.fps == rate
        assert done.notes[-1].startswith(told)
        assert "LeRobot's default is 30" in done.notes[-1]


def test_an_openpi_checkpoint_without_a_rate_gets_none(directory: Path, tmp_path: Path) -> None:
    policy = load_policy(as_openpi(directory, tmp_path / "openpi"))
    export(policy, tmp_path / "out", random_observations(1), BASE, form="openpi")
    assert policy.spec.fps is None
    assert "fps" not in json.loads((tmp_path / "out/robosteer.json").read_text())


def test_what_is_trained_acts_at_the_rate_of_its_demonstrations(job: Path, tmp_path: Path) -> None:
    trained = load_policy(job / "policy")
    assert trained.spec.fps == 15
    assert trained.fingerprint == json.loads((job / "summary.json").read_text())["policy"]
    (half,) = retain(job, [0.5])
    assert load_policy(half / "policy").spec.fps == 15
    exported = export_job(job, tmp_path / "merged", Demonstrations.open(job.parent / "demos"))
    assert (rate_in(tmp_path / "merged"), exported.fingerprint) == (15, trained.fingerprint)


@pytest.mark.parametrize("form", ["merged", "peft", "lerobot", "openpi"])
def test_an_export_states_the_rate_of_the_training(form: Form, job: Path, tmp_path: Path) -> None:
    """Of a training before rates were asked for, whose policy says 10 because nobody had said anything."""
    old, out = tmp_path / "old", tmp_path / "out"
    shutil.copytree(job, old)
    edit_json(old / "policy/robosteer.json", fps=10)
    done = export_job(old, out, Demonstrations.open(job.parent / "demos"), form=form)
    assert form == "peft" or load_policy(out).spec.fps == 15
    assert done.notes[-1].startswith("demonstrated at 15 Hz: lerobot-rollout --fps=15")
    assert f"- note: {done.notes[-1]}" in (out / "README.md").read_text()


def test_another_rate_than_the_policys_is_one_warning(directory: Path, tmp_path: Path) -> None:
    demos = demonstrated(tmp_path / "demos", 50)
    policy = load_policy(directory)
    told = r'acts at 10 Hz .* are of 50 Hz.* write \{"fps": 50\}'
    with pytest.warns(UserWarning, match=told) as found:
        capture(policy, demos, tmp_path / "run", towers=["expert"], thumbnails=False, progress=False)
    assert len(found) == 1
    with pytest.warns(UserWarning, match=told):
        done = run(policy, demos, tmp_path / "job", replace(SMALL, steps=2, warmup=0))
    assert done.policy.spec.fps == 50  # what it was trained on is what it does
    write_ours(source_of(demos), tmp_path / "ours", progress=False)  # with statistics
    with pytest.warns(UserWarning, match=told):
        assert robosteer.main(["demos", "validate", str(tmp_path / "ours"), "--policy", str(directory)]) == 0


def test_what_is_unsaid_or_the_same_is_no_news(directory: Path, tmp_path: Path) -> None:
    policy = load_policy(directory)
    assert not list(other_rate(policy.spec, demonstrated(tmp_path / "as stated", 10)))
    edit_json(directory / "robosteer.json", fps=30)
    film = demonstrated(tmp_path / "of a camera", 29.97)
    assert not list(other_rate(load_policy(directory).spec, film))
    assert not list(other_rate(load_policy(silent(directory)).spec, film))
