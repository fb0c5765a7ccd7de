"""Promises of `robosteer patch` and `robosteer attribute`: scores that the library computes, in the run, by name."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from lerobot_writer import random_episodes, write_dataset

import robosteer
from interp.attribution import atp
from interp.capture import capture
from interp.demos import Demonstrations
from interp.errors import UsageError
from interp.patching import Pairs, patch_heads
from interp.policies import load_policy
from interp.runs import Run


@pytest.fixture(scope="module")
def run(tiny_policy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("verbs")
    demos = Demonstrations.open(write_dataset(folder / "demos", random_episodes((4, 3, 3))))
    policy = load_policy(tiny_policy_dir)
    return capture(policy, demos, folder / "run", towers=("expert",), thumbnails=False, progress=False)


def say(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = robosteer.main([str(word) for word in words])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_patch_saves_what_patch_heads_finds(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = say(capsys, "patch", "--run", run.path, "--pairs", 3, "--towers", "expert", "--step", 1)
    assert status == 0
    assert "expert: best expert.L" in out
    policy, demos = load_policy(run.info["policy"]["source"]), Demonstrations.open(run.info["data"]["path"])
    expected = (
        patch_heads(policy, Pairs.of_frames(policy, demos, 3), step=1, resamples=0).tower("expert").value
    )
    np.testing.assert_array_equal(run.read_scores("patching-step1-expert").tower("expert").value, expected)


@pytest.mark.parametrize(
    ("place", "left_out", "kept"),
    [
        (("--step", 1), "vlm is left out: step 1: only the expert runs once a flow step", "expert"),
        (("--span", "action"), "vlm is left out: tower vlm has no positions for 'action'", "expert"),
        (("--span", "language"), "expert is left out: tower expert has no positions", "vlm"),
        (("--position", 30), "expert is left out: position 30: tower expert has positions 0-6", "vlm"),
    ],
)
def test_a_place_leaves_out_the_towers_that_do_not_have_it_unless_they_are_named(
    run: Run, capsys: pytest.CaptureFixture[str], place: tuple[str, object], left_out: str, kept: str
) -> None:
    words = ("patch", "--run", run.path, "--pairs", 2, *place, "--name", "somewhere")
    status, out, _ = say(capsys, *words)
    assert status == 0
    assert left_out in out
    assert list(run.read_scores("somewhere").towers) == [kept]
    status, _, err = say(capsys, *words, "--towers", "expert", "vlm")
    assert status == 2
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("verb", ["patch", "attribute", "rank"])
def test_a_name_that_leaves_the_run_is_refused_before_anything_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    status, _, err = say(capsys, verb, "--run", tmp_path / "nothing", "--name", "../../x")
    assert status == 2
    assert "name of the scores '../../x': use up to 100 letters" in err


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("patch",), "patching"),
        (("patch", "--pairs", 5, "--seed", 3, "--towers", "vlm", "expert"), "patching"),
        (("patch", "--direction", "noising"), "patching-noising"),
        (("patch", "--span", "image/front"), "patching-image-front"),
        (("patch", "--position", 0), "patching-position0"),
        (("patch", "--step", 0, "--factor", "visual"), "patching-visual-pairs-step0"),
        (("patch", "--method", "mean", "--effect", "loss", "--towers", "vlm"), "ablation-mean-loss-vlm"),
        (("attribute", "--factor", "visual"), "atp-visual-pairs"),
        (("attribute", "--method", "direct"), "direct"),
        (("attribute", "--method", "mass"), "mass-image-front"),
        (("attribute", "--method", "mass", "--towers", "vlm", "--part", "language"), "mass-language-vlm"),
        (("attribute", "--direction", "noising", "--name", "mine"), "mine"),
    ],
)
def test_what_is_asked_for_is_in_the_name_of_the_scores(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], name: str
) -> None:
    named: list[str] = []
    for module, functions in (
        ("interp.patching", ["patch_heads"]),
        ("interp.ablation", ["ablate"]),
        ("interp.attribution", ["atp", "direct_scores"]),
        ("interp.mass", ["mass_scores"]),
        ("interp.head_verbs", ["pairs_of"]),
    ):
        for function in functions:
            monkeypatch.setattr(f"{module}.{function}", lambda *args, **options: None)
    monkeypatch.setattr(
        "interp.head_verbs._report", lambda run, scores, name: named.append(name) or sys.exit()
    )
    with pytest.raises(SystemExit):
        robosteer.main([str(word) for word in (words[0], "--run", run.path, *words[1:])])
    assert named == [name]


def test_scores_of_factors_are_not_replaced_by_those_between_their_pairs(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--run", run.path, "--pairs", 2, "--towers", "expert")
    assert say(capsys, "factors", *few, "--factors", "visual", "--method", "atp")[0] == 0
    before = (run.path / "scores/atp-visual.json").read_bytes()
    assert say(capsys, "attribute", *few, "--factor", "visual", "--verify", 0)[0] == 0
    assert (run.path / "scores/atp-visual.json").read_bytes() == before
    ours, theirs = run.read_scores("atp-visual-pairs-expert"), run.read_scores("atp-visual")
    assert "edits" in theirs.settings
    np.testing.assert_allclose(ours.tower("expert").value, theirs.tower("expert").value, rtol=1e-3, atol=1e-5)


def test_every_method_leaves_its_scores(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for words, name, method in (
        (("patch", "--method", "zero", "--frames", 2), "ablation-zero", "ablation-zero"),
        (("attribute", "--pairs", 2, "--verify", 2), "atp", "atp-denoising"),
        (
            ("attribute", "--method", "ig", "--pairs", 2, "--points", 2, "--direction", "noising"),
            "ig-noising",
            "ig-noising",
        ),
        (
            ("attribute", "--method", "atp-q", "--pairs", 2, "--towers", "expert"),
            "atp-q-expert",
            "atp-q-denoising",
        ),
        (("attribute", "--method", "direct", "--frames", 3), "direct", "direct"),
        (("attribute", "--method", "mass", "--part", "language", "--frames", 3), "mass-language", "mass"),
    ):
        status, out, err = say(capsys, words[0], "--run", run.path, *words[1:])
        assert status == 0, err
        scores = run.read_scores(name)
        assert scores.method == method
        assert np.isfinite(scores.tower("expert").value).all()
        assert str(run.path / "scores" / f"{name}.json") in out
    checked = json.loads((run.path / "scores/atp.json").read_text())["settings"]["verified"]
    assert len(checked) == 2


def test_pairs_of_frames_are_of_two_episodes(run: Run) -> None:
    demos, policy = Demonstrations.open(run.info["data"]["path"]), load_policy(run.info["policy"]["source"])
    pairs = Pairs.of_frames(policy, demos, 5)
    assert len(pairs) == 5
    assert pairs.fingerprint == Pairs.of_frames(policy, demos, 5).fingerprint
    assert all(not np.array_equal(a.state, b.state) for a, b in zip(pairs.clean, pairs.corrupt, strict=True))
    assert atp(policy, pairs, resamples=0).n == {"pairs": 5, "groups": 2}  # of two tasks, one has one episode


def test_pairs_of_frames_have_prompts_of_one_length_if_they_can(run: Run, tmp_path: Path) -> None:
    policy = load_policy(run.info["policy"]["source"])

    def saying(name: str, *texts: str) -> Demonstrations:
        episodes = zip(random_episodes((4, 3, 3)), texts, strict=True)
        return Demonstrations.open(
            write_dataset(tmp_path / name, [{**e, "task": text} for e, text in episodes])
        )

    red, button, blue = "pick up the red cube", "press the button", "pick up the blue cube"
    pairs = Pairs.of_frames(policy, saying("alike", red, button, blue), 6)
    assert len(pairs) == 6
    assert set(pairs.group) == {0, 2}  # nothing is as long as the words of episode 1
    told = {(a.instruction, b.instruction) for a, b in zip(pairs.clean, pairs.corrupt, strict=True)}
    assert told == {(red, blue), (blue, red)}
    assert np.isfinite(patch_heads(policy, pairs, towers=("vlm",), resamples=0).tower("vlm").value[0]).all()

    pairs = Pairs.of_frames(policy, saying("unlike", red, button, f"{blue} now"), 3)
    with pytest.raises(UsageError, match="prompts of a pair differ in length"):
        patch_heads(policy, pairs, towers=("vlm",), resamples=0)


def test_mistakes_are_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (("patch", "--span", "tail"), "unknown token span 'tail'"),
        (("patch", "--towers", "arm"), "unknown tower 'arm'"),
        (("patch", "--pairs", 0), "pairs"),
        (("attribute", "--method", "direct", "--frames", 0), "frames must be at least 1, not 0"),
        (("attribute", "--method", "mass", "--frames", -1), "frames must be at least 1, not -1"),
        (("attribute", "--method", "mass", "--part", "ceiling"), "unknown part"),
        (("attribute", "--method", "ig", "--towers", "vision"), "take atp for vision"),
        (("attribute", "--factor", "moral"), "unknown factor 'moral'"),
        (
            ("attribute", "--method", "mass", "--towers", "vlm", "expert"),
            "--towers vlm expert: --method mass",
        ),
        (("attribute", "--method", "direct", "--towers", "vlm"), "--towers vlm: --method direct scores the"),
        (
            ("attribute", "--method", "direct", "--towers", "expert", "vlm"),
            "--towers expert vlm: --method direct",
        ),
        (
            ("attribute", "--method", "direct", "--factor", "visual"),
            "--factor visual: --method direct does not",
        ),
        (("attribute", "--method", "mass", "--direction", "noising"), "--direction noising: --method mass"),
        (("attribute", "--method", "ig", "--part", "state"), "--part state: --method ig does not read it"),
        (("patch", "--method", "mean", "--position", 0), "--position 0: --method mean does not read it"),
        (("patch", "--method", "zero", "--factor", "visual"), "--factor visual: --method zero does not read"),
        (("patch", "--effect", "loss"), "--effect loss: --method patching does not read it"),
        (("patch", "--method", "zero", "--pairs", 3), "--pairs 3: --method zero does not read it"),
        (("patch", "--frames", 60), "--frames 60: --method patching does not read it"),
        (("attribute", "--method", "atp-q", "--points", 9), "--points 9: --method atp-q does not read it"),
        (("attribute", "--method", "ig", "--verify", 0), "--verify 0: --method ig does not read it"),
        (("attribute", "--frames", 3), "--frames 3: --method atp does not read it"),
        (("attribute", "--method", "mass", "--pairs", 30), "--pairs 30: --method mass does not read it"),
        (("attribute", "--verify", -3), "verified -3: it takes 0 heads or more"),
    ):
        status, _, err = say(capsys, words[0], "--run", run.path, *words[1:])
        lines = [line for line in err.splitlines() if line.strip()]
        assert status == 2, words
        assert len(lines) == 1, err
        assert message in lines[0]
