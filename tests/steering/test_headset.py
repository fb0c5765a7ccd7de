"""Promises of heads files: what is written is read back, and a file for another policy never gets through."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import robosteer
from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Policy, load_policy
from interp.runs import Run
from interp.scores import HeadScores
from steering.headset import (
    HeadSet,
    best_heads,
    parse_heads,
    random_everywhere,
    random_heads,
    read_heads,
    worst_heads,
    write_heads,
)
from steering.recipes import Recipe, adapt

HEADS = (Head("expert", 2, 1), Head("expert", 0, 3))


def test_a_heads_file_comes_back_as_it_was_written(policy: Policy, tmp_path: Path) -> None:
    heads = HeadSet(HEADS, policy.fingerprint, "knn", "visual", "demos-1", (0.2, 0.3))
    path = write_heads(tmp_path / "selections" / "top2.json", heads)
    assert read_heads(path, policy) == heads


def test_the_file_has_the_documented_form(policy: Policy, tmp_path: Path) -> None:
    heads = HeadSet(HEADS, policy.fingerprint, "knn", None, "demos-1", (0.2, 0.3))
    assert json.loads(write_heads(tmp_path / "h.json", heads).read_text()) == {
        "schema": 1,
        "policy": policy.fingerprint,
        "heads": [
            {"tower": "expert", "layer": 2, "head": 1, "score": 0.2},
            {"tower": "expert", "layer": 0, "head": 3, "score": 0.3},
        ],
        "method": "knn",
        "factor": None,
        "data": "demos-1",
        "trainable_head_indices": [[2, 1], [0, 3]],
    }


def test_the_published_form_is_read_for_the_tower_that_the_reader_names(
    policy: Policy, tmp_path: Path
) -> None:
    path = tmp_path / "published.json"
    path.write_text('{"trainable_head_indices": [[1, 2], [0, 0]], "best_k": 20, "cv_mse": 0.031}')
    assert read_heads(path, policy).heads == (Head("expert", 1, 2), Head("expert", 0, 0))
    assert read_heads(path, policy, tower="vlm").heads == (Head("vlm", 1, 2), Head("vlm", 0, 0))


def test_a_set_as_published_for_pi05_is_read() -> None:
    # place_marker_in_mug, as found in the published configuration
    pairs = [[9, 2], [3, 2], [5, 7], [9, 1], [8, 4], [5, 5], [9, 7], [9, 4], [8, 5], [7, 1]]
    pairs += [[9, 5], [9, 0], [4, 4], [3, 1], [5, 3], [4, 7], [8, 6], [2, 6], [7, 0], [7, 6]]
    heads = parse_heads({"trainable_head_indices": pairs}).heads
    assert [[h.layer, h.index] for h in heads] == pairs


@pytest.mark.parametrize("tower", ["expert", "vlm"])
def test_a_published_file_becomes_a_selection_of_a_run_and_is_written_as_published(
    policy: Policy, tmp_path: Path, tower: str
) -> None:
    """As the published configurations have them: pairs, and how they were found, which their reader ignores."""
    pairs = [[1, 2], [0, 3], [1, 0]]
    file = tmp_path / "place_marker.json"
    file.write_text(json.dumps({"trainable_head_indices": pairs, "best_k": 20, "cv_mse": 0.031}))
    demos = {"fingerprint": "demos-1"}
    run = Run.create(tmp_path / "run", policy=policy.fingerprint, source="x", spec=policy.spec, data=demos)
    assert robosteer.main(["select", "--run", str(run.path), "--heads", str(file), "--tower", tower]) == 0
    selection = run.selections["place_marker"]
    assert read_heads(selection, policy).heads == tuple(Head(tower, *pair) for pair in pairs)
    written = json.loads(selection.read_text())
    assert written["trainable_head_indices"] == pairs
    assert written["method"] == "published"


def test_heads_that_are_written_out_may_be_longer_than_a_files_name(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty heads are: asking the system for a file of that name is an error, not a no."""
    run = Run.create(
        tmp_path / "run", policy=policy.fingerprint, source="x", spec=policy.spec, data={"fingerprint": "d"}
    )
    many = ",".join(f"expert.L0H{i}" for i in range(30))
    assert robosteer.main(["select", "--run", str(run.path), "--heads", many]) == 2
    assert "expert.L0H4" in capsys.readouterr().err  # the first that the tower lacks


def test_published_heads_that_the_run_lacks_or_that_are_dead_are_refused(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demos = {"fingerprint": "demos-1"}
    run = Run.create(tmp_path / "run", policy=policy.fingerprint, source="x", spec=policy.spec, data=demos)
    for pair, message in (([17, 0], "vlm.L17H0: tower vlm has 3 layers"), ([2, 0], "vlm.L2H0 is dead")):
        (tmp_path / "h.json").write_text(json.dumps({"trainable_head_indices": [[0, 0], pair]}))
        words = ["select", "--run", str(run.path), "--heads", str(tmp_path / "h.json"), "--tower", "vlm"]
        assert robosteer.main(words) == 2
        assert message in capsys.readouterr().err
    assert not run.selections


def test_as_many_heads_of_each_tower_are_one_selection(
    policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demos = {"fingerprint": "demos-1"}
    run = Run.create(tmp_path / "run", policy=policy.fingerprint, source="x", spec=policy.spec, data=demos)
    words = ["select", "--run", str(run.path), "--tower", "vlm", "expert"]
    assert robosteer.main([*words, "--by", "random", "--top", "2", "--name", "two"]) == 0
    chosen = read_heads(run.selections["two"], policy)
    assert [head.tower for head in chosen.heads] == ["vlm", "vlm", "expert", "expert"]
    assert chosen.heads == random_everywhere(policy.spec, {"vlm": 2, "expert": 2}, seed=0).heads
    (tmp_path / "h.json").write_text(json.dumps({"trainable_head_indices": [[0, 0]]}))
    assert robosteer.main([*words, "--heads", str(tmp_path / "h.json")]) == 2
    assert "--tower vlm expert: a heads file is of one tower" in capsys.readouterr().err


def test_sets_of_two_towers_have_no_ambiguous_published_form(tmp_path: Path) -> None:
    path = write_heads(tmp_path / "h.json", HeadSet((Head("vlm", 0, 0), Head("expert", 0, 0))))
    assert "trainable_head_indices" not in json.loads(path.read_text())


def test_a_file_for_another_policy_is_refused_with_both_fingerprints(
    policy: Policy, other_policy_dir: Path, tmp_path: Path
) -> None:
    other = load_policy(other_policy_dir)
    path = write_heads(tmp_path / "h.json", HeadSet(HEADS, other.fingerprint))
    with pytest.raises(UsageError) as caught:
        read_heads(path, policy)
    assert other.fingerprint in str(caught.value)
    assert policy.fingerprint in str(caught.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"heads": []}, "empty head set"),
        ({"heads": [{"tower": "expert", "layer": 9, "head": 0}]}, r"expert.L9H0: tower expert has 3 layers"),
        ({"heads": [{"tower": "expert", "layer": 0, "head": 4}]}, r"expert.L0H4: layer 0 has 4 heads"),
        ({"heads": [{"tower": "planner", "layer": 0, "head": 0}]}, "unknown tower 'planner'"),
        ({"heads": [{"tower": "vlm", "layer": 2, "head": 0}]}, r"vlm.L2H0 is dead"),
        ({"trainable_head_indices": [[0, 1], [0, 1]]}, r"expert.L0H1 more than once"),
        ({"trainable_head_indices": [[0, -1]]}, "index"),
        ({"trainable_head_indices": [[0, 1.5]]}, "1.5 is not an integer"),
        ({"trainable_head_indices": [[0, True]]}, "True is not an integer"),
        ({"trainable_head_indices": [3]}, r"needs \"heads\""),
        ({"heads": [{"tower": "expert", "layer": 0}]}, "KeyError: 'head'"),
        ({"schema": 2, "heads": []}, "schema 2"),
        ({}, r"needs \"heads\""),
        ([1], "must hold a JSON object"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(policy: Policy, tmp_path: Path, record: Any, message: str) -> None:
    path = tmp_path / "h.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=message) as caught:
        read_heads(path, policy)
    assert "\n" not in str(caught.value)


def test_a_missing_or_cut_file_is_refused(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_heads(tmp_path / "none.json", policy)
    (tmp_path / "cut.json").write_text('{"heads": [')
    with pytest.raises(UsageError, match="is not JSON"):
        read_heads(tmp_path / "cut.json", policy)


def test_best_and_worst_follow_the_scores_whatever_their_sign(scores: HeadScores) -> None:
    best, worst = best_heads(scores, 2, "expert"), worst_heads(scores, 2, "expert")
    assert [str(h) for h in best.heads] == ["expert.L2H3", "expert.L2H2"]
    assert [str(h) for h in worst.heads] == ["expert.L0H0", "expert.L0H1"]
    assert (best.scores, worst.scores) == ((1.0, 2.0), (12.0, 11.0))
    assert (best.policy, best.data, best.method) == (scores.policy, scores.data, "knn")


def test_random_heads_are_live_distinct_and_a_function_of_the_seed(policy: Policy) -> None:
    drawn = random_heads(policy.spec, 8, "vlm", seed=3)
    assert drawn == random_heads(policy.spec, 8, "vlm", seed=3)
    assert drawn != random_heads(policy.spec, 8, "vlm", seed=4)
    assert set(drawn.heads) == set(policy.spec.live_heads(["vlm"]))  # 3 layers x 4, of which the last is dead


def test_random_heads_are_uniform(policy: Policy) -> None:
    counts = dict.fromkeys(policy.spec.live_heads(["expert"]), 0)
    for seed in range(600):
        for head in random_heads(policy.spec, 3, "expert", seed).heads:
            counts[head] += 1
    # 600 draws of 3 of 12: 150 expected for each head, binomial standard deviation 10.6
    assert all(abs(n - 150) < 4 * 10.6 for n in counts.values())


def test_random_heads_of_two_towers_are_drawn_independently(policy: Policy) -> None:
    """Where a tower's first head lies says nothing about the other's: correlation 0, deviation 1 / sqrt 600."""
    depths = []
    for seed in range(600):
        drawn = random_everywhere(policy.spec, {"expert": 2, "vlm": 2}, seed).heads
        assert drawn[:2] == random_heads(policy.spec, 2, "expert", seed).heads  # as when drawn alone
        depths.append([4 * drawn[place].layer + drawn[place].index for place in (0, 2)])
    assert abs(np.corrcoef(np.transpose(depths))[0, 1]) < 4 / np.sqrt(600)


def test_the_control_of_two_towers_draws_each_independently(tiny_policy_dir: Path) -> None:
    policy = load_policy(tiny_policy_dir)  # which adapt changes
    mixed = HeadSet((*policy.spec.live_heads(["expert"])[:3], *policy.spec.live_heads(["vlm"])[:3]))
    adaptation = adapt(policy, Recipe.named("random-k"), mixed, seed=5)
    assert adaptation.heads is not None
    assert adaptation.heads.heads == random_everywhere(policy.spec, {"expert": 3, "vlm": 3}, seed=5).heads


@pytest.mark.parametrize("k", [0, 13])
def test_impossible_numbers_of_heads_are_refused(policy: Policy, scores: HeadScores, k: int) -> None:
    for choose in (
        lambda: best_heads(scores, k, "expert"),
        lambda: worst_heads(scores, k, "expert"),
        lambda: random_heads(policy.spec, k, "expert", seed=0),
    ):
        with pytest.raises(UsageError, match=f"{k} heads: tower expert has 12 live heads"):
            choose()
