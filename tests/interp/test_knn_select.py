"""Promises of `robosteer select`: heads are chosen by the scores that the file says they were chosen by."""

import json
from collections.abc import Callable

import pytest
from knn_kit import planted_run

import robosteer
from interp.knn import KnnSettings, Selection, best_add, rank, topk
from interp.policies import Policy
from interp.runs import Run

OURS = KnnSettings(ks=(3, 5), target="chunk", normalised=True)
N = 6


@pytest.fixture(scope="module")
def run(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = planted_run(policy, tmp_path_factory.mktemp("runs") / "planted")
    for name, settings in (("knn", KnnSettings(ks=(4,))), ("ours", OURS)):
        made.save_scores(rank(made, settings, n=N, permutations=0, resamples=0), name)
    return made


def select(run: Run, *words: str) -> int:
    return robosteer.main(["select", "--run", str(run.path), "--top", str(N), *words])


@pytest.mark.parametrize(("by", "choose"), [("topk", topk), ("best-add", best_add)])
@pytest.mark.parametrize(("method", "settings"), [(None, KnnSettings(ks=(4,))), ("ours", OURS)])
def test_several_heads_at_once_are_chosen_with_the_settings_of_the_named_scores(
    run: Run, by: str, choose: Callable[..., Selection], method: str | None, settings: KnnSettings
) -> None:
    expected = choose(run, N, "expert", settings)
    other = choose(run, N, "expert", KnnSettings())  # the published settings are others, and choose others
    assert (expected.heads, expected.error) != (other.heads, other.error)
    assert select(run, "--by", by, *(("--method", method) if method else ())) == 0
    written = json.loads(run.selections[f"{by}-{N}"].read_text())
    assert written["trainable_head_indices"] == [[head.layer, head.index] for head in expected.heads]
    said = f"k={expected.k}, joint error {expected.error:.4g}"
    assert written["method"] == f"{method or 'knn'} {by} ({said})"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--by", "topk", "--method", "nothing"), "unknown scores in run"),
        (("--by", "best-add", "--method", "nothing"), "unknown scores in run"),
        (("--by", "topk", "--method", "causal"), "scores 'ablation-zero' are no k-NN ranking"),
        (("--by", "topk", "--tower", "vlm"), "unknown tower of the knn scores 'vlm'"),
        (("--by", "random", "--method", "knn"), "--method knn: --by random reads no scores"),
        (("--heads", "expert.L0H0", "--method", "knn"), "--method knn: --heads expert.L0H0 reads no scores"),
    ],
)
def test_scores_that_say_nothing_about_the_choice_are_refused(
    run: Run, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    causal = {**run.read_scores("knn").to_json(), "method": "ablation-zero", "settings": {}}
    (run.path / "scores/causal.json").write_text(json.dumps(causal))
    assert select(run, *words, "--name", "none") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert "none" not in run.selections
