"""`--device`: every verb that computes with a policy has it, and loads the policy there."""

from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elsewhere import second_device
from lerobot_writer import random_episodes, write_dataset
from training_kit import run as finetuned

import interp.policies
import robosteer
import steering.export
import steering.rollouts
from interp.capture import capture
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.policies import Policy, load_policy
from interp.runs import Run


@pytest.fixture(scope="module")
def run(tiny_policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("cli")
    demos = Demonstrations.open(write_dataset(folder / "demos", random_episodes((4, 3, 3))))
    policy = load_policy(tiny_policy_dir)
    made = capture(policy, demos, folder / "run", towers=("expert",), thumbnails=False, progress=False)
    finetuned(policy, demos, made.path / "jobs/aligned")
    return made


class Loaded(UsageError):
    """The policy was about to be loaded: enough is known."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The device that the verb loads its policy onto; it gets no further."""
    devices: list[str] = []

    def noted(name: str | Path, device: Any = "cpu") -> Policy:
        devices.append(str(device))
        raise Loaded("loaded")

    def workers(job: Any, count: int) -> Any:
        return noted(job.policy, job.device)

    monkeypatch.setattr(interp.policies, "load_policy", noted)
    monkeypatch.setattr(steering.export, "load_policy", noted)
    monkeypatch.setattr(steering.rollouts, "Workers", workers)
    with second_device():
        yield devices


VERBS = {
    "capture": "--policy {policy} --demos {demos} --run {run}-new",
    "explain": "--run {run} --episode 0 --frame 0",
    "factors": "--run {run} --pairs 2",
    "patch": "--run {run} --pairs 2",
    "attribute": "--run {run} --pairs 2",
    "finetune": "--run {run} --heads expert.L0H0",
    "evaluate": "--policy {policy} --task pick --n 1",
    "export": "--run {run}",
    "serve": "--policy {policy}",
}


@pytest.mark.parametrize("verb", [*VERBS, "export --name base"])
def test_the_policy_is_loaded_where_it_is_said(run: Run, asked: list[str], verb: str) -> None:
    places = {"run": run.path, "demos": run.info["data"]["path"], "policy": run.info["policy"]["source"]}
    words = [*verb.split(), *VERBS[verb.split()[0]].format(**places).split()]
    assert robosteer.main(words) == 2
    assert robosteer.main([*words, "--device", "lazy"]) == 2
    assert asked == ["cpu", "lazy"]


def test_no_verb_that_takes_a_policy_is_forgotten() -> None:
    """Of those that take one; `demo` has its own, and hands the device on."""
    takes = {}
    for function, arguments in robosteer.VERBS:
        parser = ArgumentParser()
        arguments(parser)
        takes[function.__name__] = {option for action in parser._actions for option in action.option_strings}
    policies = {verb for verb, options in takes.items() if "--policy" in options}
    devices = {verb for verb, options in takes.items() if "--device" in options}
    assert policies == set(VERBS)
    assert devices == {*VERBS, "demo"}


def test_the_demonstration_computes_where_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[tuple[str, ...]] = []
    monkeypatch.setattr(robosteer, "_say", lambda *words: said.append(tuple(map(str, words))))
    with second_device():
        assert robosteer.main(["demo", "--run", str(tmp_path / "run"), "--no-app", "--device", "lazy"]) == 0
    with_device = [words[0] for words in said if "--device lazy" in " ".join(words)]
    assert with_device == [words[0] for words in said if words[0] in VERBS]
    said.clear()
    robosteer.main(["demo", "--run", str(tmp_path / "run"), "--no-app"])
    assert not any("--device" in words for words in said)


@pytest.mark.parametrize("verb", [*VERBS, "demo"])
def test_a_device_that_is_not_there_is_one_line(
    run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str
) -> None:
    places = {"run": run.path, "demos": run.info["data"]["path"], "policy": run.info["policy"]["source"]}
    words = VERBS.get(verb, f"--run {tmp_path}/demo").format(**places).split()
    assert robosteer.main([verb, *words, "--device", "gpu"]) == 2
    assert capsys.readouterr().err == f"robosteer {verb}: device gpu: known are cpu, cuda, cuda:1, mps\n"
    assert not list(tmp_path.iterdir())
    assert not Path(f"{run.path}-new").exists()
