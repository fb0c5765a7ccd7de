"""What gets a name on the command line stays in its folder of the run: another place is refused before any work, and so
is an empty word."""

from pathlib import Path

import pytest

import robosteer
from interp.policies import load_policy
from interp.runs import Run

VERBS = {
    "select": "--by random --top 2",
    "finetune": "",
    "evaluate": "--task pick --n 1",
    "export": "",
    "rank": "",
    "patch": "",
    "attribute": "",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    policy = load_policy("tiny-pi0")
    data = {"fingerprint": "demos-1", "path": "nowhere"}
    path = tmp_path_factory.mktemp("a") / "runs" / "mug"
    return Run.create(path, policy=policy.fingerprint, source="tiny-pi0", spec=policy.spec, data=data)


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("name", ["..", "../../escaped", "/tmp/escaped", ".hidden", "a/b"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_name_that_would_leave_its_folder_is_refused(
    run: Run, capsys: pytest.CaptureFixture[str], verb: str, name: str
) -> None:
    root = run.path.parents[1]
    before = files(root)
    assert robosteer.main([verb, "--run", str(run.path), "--name", name, *VERBS[verb].split()]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{name!r}: use up to 100 letters" in said
    assert files(root) == before


def test_the_name_of_a_film_is_checked_before_the_rollouts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--task", "pick", "--n", "1", "--name", "../film", "--video", "0"]
    assert robosteer.main(words) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "name of the result '../film" in said


@pytest.mark.parametrize(
    ("words", "empty"),
    [
        (["select", "--by", "random", "--top", "2", "--heads", ""], "heads"),
        (["select", "--by", "random", "--top", "2", "--name", ""], "name"),
        (["export", "--name", "base", "--lerobot-base", ""], "lerobot-base"),
        (["finetune", "--others", "a", ""], "others"),
    ],
)
def test_an_empty_word_is_not_taken_for_one_that_was_not_given(
    run: Run, capsys: pytest.CaptureFixture[str], words: list[str], empty: str
) -> None:
    """As "$CHOSEN" is where nobody has set it."""
    before = files(run.path)
    assert robosteer.main([*words, "--run", str(run.path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert (
        said == f"robosteer {words[0]}: {empty} is empty: give a value or leave it out (is a variable unset?)"
    )
    assert files(run.path) == before
