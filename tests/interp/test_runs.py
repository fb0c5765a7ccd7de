"""Promises of runs, scores and heads: what is written can be read back, belongs together, and is never half there."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import interp.runs
from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Policy, TowerSpec
from interp.runs import Run, Signals, alone, read_json, whole_directory, write_json
from interp.scores import HeadScores, Null, TowerScores

DATA = {"fingerprint": "demos-1", "frames": 3}


def create(path: Path, of: Policy, **changes) -> Run:
    arguments = {"policy": of.fingerprint, "source": "random", "spec": of.spec, "data": DATA}
    return Run.create(path, **{**arguments, **changes})


def some_scores(policy: str, higher_is_better: bool = False) -> HeadScores:
    value = np.array([[0.3, 0.1], [0.2, np.nan]])
    towers = {
        "expert": TowerScores(value, value - 0.1, value + 0.1, Null(0.5, 0.4, 0.6, 0.45), dead=((1, 1),))
    }
    return HeadScores("knn", "k-NN", "units", higher_is_better, towers, policy, "demos-1", {"frames": 3})


# ---- heads


def test_heads_are_written_and_read_the_same_way() -> None:
    assert str(Head("expert", 7, 3)) == "expert.L7H3"
    assert Head.parse("expert.L7H3") == Head("expert", 7, 3)
    for wrong in ("expert.7.3", "L7H3", "expert.L7", "", "expert.L-1H3"):
        with pytest.raises(UsageError, match="is not a head"):
            Head.parse(wrong)


def test_a_head_that_cannot_be_chosen_says_why(policy: Policy) -> None:
    assert policy.spec.check(Head("expert", 2, 3)) == Head("expert", 2, 3)
    for head, why in (
        (Head("expert", 1, 9), r"expert\.L1H9: layer 1 has 4 heads \(0-3\)"),
        (Head("expert", 3, 0), r"tower expert has 3 layers \(0-2\)"),
        (Head("vlm", 2, 0), r"vlm\.L2H0 is dead"),
        (Head("experts", 0, 0), "unknown tower 'experts'.*did you mean expert"),
    ):
        with pytest.raises(UsageError, match=why):
            policy.spec.check(head)


def test_layers_may_have_different_numbers_of_heads() -> None:
    tower = TowerSpec((2, 3), kv_heads=1, d_head=8, dead=((1, 2),))
    assert tower.heads == 3
    assert tower.live == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert TowerSpec.from_json(json.loads(json.dumps(tower.to_json()))) == tower
    with pytest.raises(UsageError, match="outside"):
        TowerSpec((2, 3), 1, 8, dead=((0, 2),))


# ---- scores


def test_the_best_heads_come_first_whatever_the_sign_and_dead_ones_never() -> None:
    assert some_scores("p").ranked("expert") == [
        Head("expert", 0, 1),
        Head("expert", 1, 0),
        Head("expert", 0, 0),
    ]
    assert some_scores("p", True).best(1, "expert") == [Head("expert", 0, 0)]
    with pytest.raises(UsageError, match="cannot choose 4 heads: tower expert has 3 live heads"):
        some_scores("p").best(4, "expert")
    with pytest.raises(UsageError, match="tower of the knn scores 'vlm'"):
        some_scores("p").best(1, "vlm")


def test_scores_survive_json_without_nan() -> None:
    scores = some_scores("p")
    text = json.dumps(scores.to_json(), allow_nan=False)
    back = HeadScores.from_json(json.loads(text))
    assert back.to_json() == scores.to_json()
    assert back.ranked("expert") == scores.ranked("expert")
    assert back.towers["expert"].null == Null(0.5, 0.4, 0.6, 0.45)
    with pytest.raises(UsageError, match="schema 2"):
        HeadScores.from_json({**json.loads(text), "schema": 2})


def test_scores_that_do_not_fit_together_cannot_be_built() -> None:
    grid = np.zeros((2, 2))
    with pytest.raises(UsageError, match="both low and high"):
        TowerScores(grid, low=grid)
    with pytest.raises(UsageError, match="shape"):
        TowerScores(grid, low=grid, high=np.zeros((2, 3)))


# ---- runs


def test_a_run_remembers_what_it_is_of(policy: Policy, tmp_path: Path) -> None:
    create(tmp_path / "r", policy, command=["capture"], seeds={"capture": 0})
    run = Run.open(tmp_path / "r")
    assert (run.policy, run.data) == (policy.fingerprint, "demos-1")
    assert run.spec == policy.spec
    assert run.info["command"] == ["capture"]
    assert run.info["versions"]["torch"]


def test_a_run_of_something_else_is_refused_with_both_fingerprints(policy: Policy, tmp_path: Path) -> None:
    create(tmp_path / "r", policy)
    assert create(tmp_path / "r", policy).policy == policy.fingerprint
    with pytest.raises(UsageError, match=f"policy {policy.fingerprint}, not pi0-other"):
        create(tmp_path / "r", policy, policy="pi0-other")
    with pytest.raises(UsageError, match="data demos-1, not demos-2"):
        create(tmp_path / "r", policy, data={"fingerprint": "demos-2"})
    with pytest.raises(UsageError, match="scores are of policy pi0-other"):
        Run.open(tmp_path / "r").save_scores(some_scores("pi0-other"))


def test_scores_selections_and_results_are_found_by_name(policy: Policy, tmp_path: Path) -> None:
    run = create(tmp_path / "r", policy)
    assert not run.scores()
    assert not run.selections
    run.save_scores(some_scores(policy.fingerprint))
    run.save_scores(some_scores(policy.fingerprint), "knn-chunk")
    run.save_selection("mine", {"schema": 1, "heads": []})
    run.save_result("base", {"schema": 1})
    assert list(run.scores()) == ["knn", "knn-chunk"]
    assert read_json(run.selections["mine"])["heads"] == []
    assert list(run.results) == ["base"]
    with pytest.raises(UsageError, match=r"unknown scores in run .*'kn'.*did you mean knn"):
        run.read_scores("kn")


@pytest.mark.parametrize("name", ["../escape", ".hidden", "a/b", "", "x" * 101, "nul\0"])
def test_names_stay_inside_their_folder(policy: Policy, tmp_path: Path, name: str) -> None:
    run = create(tmp_path / "r", policy)
    with pytest.raises(UsageError, match="starting with a letter or digit"):
        run.save_selection(name, {})


def test_what_several_processes_add_to_a_run_is_all_there(policy: Policy, tmp_path: Path) -> None:
    """Each has opened the run before the others wrote; some write at the same moment."""
    create(tmp_path / "r", policy)
    visual = {"factor": "visual", "method": "atp", "note": None}
    runs = [Run.open(tmp_path / "r") for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda at: runs[at].update({"expert": [f"token_{at}"]}, [{**visual, "n": at}]), range(8))
        )
    Run.open(tmp_path / "r").update(factors=[{**visual, "method": "patching"}, {**visual, "n": 9}])
    info = Run.open(tmp_path / "r").info
    assert info["captured"] == {"expert": [f"token_{at}" for at in range(8)]}
    assert [(entry["method"], entry.get("n")) for entry in info["factors"]] == [
        ("atp", 9),
        ("patching", None),
    ]


def test_a_lock_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    holding = "import sys, time, pathlib\nfrom interp.runs import alone\n"
    holding += "with alone(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    root = str(Path(interp.runs.__file__).parents[1])
    child = subprocess.Popen(
        [sys.executable, "-c", holding, str(tmp_path / "lock")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    with (
        pytest.raises(UsageError, match="another one is at it"),
        alone(tmp_path / "lock", "another one is at it"),
    ):
        pass
    child.kill()
    child.wait()
    with alone(tmp_path / "lock", "another one is at it"):
        pass


def test_signals_round_trip(policy: Policy) -> None:
    rng = np.random.default_rng(0)
    signals = Signals(
        episode=np.array([0, 0, 4]),
        frame=np.array([0, 1, 0]),
        instruction=["a", "a", "b"],
        state=rng.normal(size=(3, 8)).astype(np.float32),
        action=rng.normal(size=(3, 7)).astype(np.float32),
        prediction=rng.normal(size=(3, 6, 7)).astype(np.float32),
    )
    back = Signals.from_table(signals.to_table(), horizon=6)
    for name in ("episode", "frame", "state", "action", "prediction"):
        assert np.array_equal(getattr(back, name), getattr(signals, name))
    assert back.instruction == signals.instruction


# ---- faults


def test_what_is_no_run_is_refused(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run\.json"):
        Run.open(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "x.txt").write_text("keep me")
    with pytest.raises(UsageError, match="exists and is not a run"):
        create(tmp_path / "notes", policy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ('{"schema": 7}', "schema 7"),
        ('{"schema": 1}', r"lacks policy\.fingerprint"),
        (
            '{"schema": 1, "policy": {"fingerprint": "p"}, "data": {"fingerprint": "d"}}',
            r"lacks policy\.spec",
        ),
        (
            '{"schema": 1, "policy": {"fingerprint": "p", "spec": {}}, "data": {"fingerprint": "d"}}',
            "lacks captured",
        ),
        ("[]", "JSON object"),
    ],
)
def test_a_broken_run_says_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UsageError, match=message):
        Run.open(tmp_path)


def test_one_broken_score_file_does_not_hide_the_others(policy: Policy, tmp_path: Path) -> None:
    run = create(tmp_path / "r", policy)
    run.save_scores(some_scores(policy.fingerprint))
    (run.path / "scores" / "torn.json").write_text('{"schema": 1, "method": "knn", "towers": {"expert": {}}}')
    with pytest.raises(UsageError, match=r"torn\.json is broken"):
        run.read_scores("torn")
    for content, says in (
        ('{"schema": 1, "towers": {}}', "not a scores file"),
        ('{"schema": 7}', "schema 7"),
    ):
        (run.path / "scores" / "torn.json").write_text(content)
        with pytest.raises(UsageError, match=rf"torn\.json: .*{says}"):
            run.read_scores("torn")
    assert run.read_scores("knn").method == "knn"
    assert list(run.files("scores")) == ["knn", "torn"]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"x": float("nan")})


def test_activations_before_a_capture_are_an_error(policy: Policy, tmp_path: Path) -> None:
    run = create(tmp_path / "r", policy)
    with pytest.raises(UsageError, match="no activations of tower 'expert'"):
        run.activations("expert")
    with pytest.raises(UsageError, match="no finished capture"):
        run.signals()


def test_a_lock_is_free_again_when_its_holder_is_gone(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom pathlib import Path\nfrom interp.runs import alone\n"
            "with alone(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)",
            tmp_path / "lock",
        ],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    holder.kill()
    holder.wait()
    with alone(tmp_path / "lock"):
        pass


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep/policy"
    with whole_directory(target) as fresh:
        fresh.mkdir()
        (fresh / "weights").write_text("old")
        assert not target.exists()
    with pytest.raises(FileNotFoundError), whole_directory(target) as fresh:
        (fresh / "weights").write_text("of a directory that nobody made")
    assert (target / "weights").read_text() == "old"
    with whole_directory(target) as fresh:
        fresh.mkdir()
        (fresh / "other").write_text("new")
    assert [path.name for path in target.iterdir()] == ["other"]  # nothing of what it replaced
    assert list(target.parent.iterdir()) == [target]
