"""`robosteer demo` goes on from what it left only if it is asked for the same; errors name the step that is wrong."""

from pathlib import Path

import pytest

import robosteer
from interp.policies import load_policy
from interp.runs import Run, write_json


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The steps, which are not run."""
    steps: list[tuple[str, ...]] = []
    monkeypatch.setattr(robosteer, "_say", lambda *words: steps.append(tuple(map(str, words))))
    return steps


def demo(run: Path, *words: str) -> int:
    return robosteer.main(["demo", "--run", str(run), "--no-app", *words])


def demos_of(said: list[tuple[str, ...]]) -> str:
    capture = next(words for words in said if words[0] == "capture")
    return capture[capture.index("--demos") + 1]


def make_run(path: Path, demos: str) -> None:
    policy = load_policy("tiny-pi0")
    data = {"fingerprint": "demos-1", "path": demos}
    Run.create(path, policy=policy.fingerprint, source="tiny-pi0", spec=policy.spec, data=data)
    write_json(path / "jobs/aligned/recipe.json", {"heads": [f"expert.L0H{i}" for i in range(4)]})


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("--task press", "--task and --episodes ask for"),
        ("--task pick --episodes 3", "--task and --episodes ask for"),
        ("--task pick --heads 5", "trains 4"),
    ],
)
def test_what_was_made_for_another_request_is_not_gone_on_from(
    tmp_path: Path,
    said: list[tuple[str, ...]],
    capsys: pytest.CaptureFixture[str],
    asked: str,
    says: str,
) -> None:
    same = ("--task", "pick", "--heads", "4")
    assert demo(tmp_path / "run", *same) == 0
    assert said[0][:3] == ("record", "--task", "pick")
    make_run(tmp_path / "run", demos_of(said))
    said.clear()
    assert demo(tmp_path / "run", *same) == 0  # the same request goes on
    said.clear()
    assert demo(tmp_path / "run", *asked.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert line.endswith("choose another --run")
    assert not said


@pytest.mark.parametrize(
    "asked",
    ["--heads 0: give from 1 to 64", "--heads 65: give from 1 to 64", "--n 0: give at least 1",
     "--port 99999: give from 0 to 65535"],
)  # fmt: skip
def test_what_a_late_step_would_refuse_is_refused_before_the_first(
    tmp_path: Path, said: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str], asked: str
) -> None:
    option, value = asked.partition(":")[0].split()
    assert demo(tmp_path / "run", option, value) == 2
    assert capsys.readouterr().err == f"robosteer demo: {asked}\n"
    assert not said


def test_demonstrations_of_another_task_or_number_are_others(
    tmp_path: Path, said: list[tuple[str, ...]]
) -> None:
    found = set()
    for asked in ("--task pick", "--task press", "--task pick --episodes 3"):
        demo(tmp_path / "run", *asked.split())
        found.add(demos_of(said))
        said.clear()
    assert len(found) == 3


def test_an_error_names_the_step_whose_options_it_speaks_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(tmp_path / "run", "--task", "nosuch") == 2
    assert capsys.readouterr().err.startswith("robosteer demo: its step `robosteer record`: task 'nosuch'")
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
