"""Promises of factor measurements: patching's numbers and plain loops', resumed to the bit, mistakes in a line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_policy import random_observations

import interp.factors.effects
from interp.attribution import atp
from interp.errors import UsageError
from interp.factors.effects import Effects, Method, measure
from interp.factors.pairs import FactorPairs, Twin
from interp.factors.profile import profile
from interp.factors.scores import factor_scores, kind_scores
from interp.factors.study import study
from interp.heads import Head
from interp.patching import Pairs, Sides, patch_heads
from interp.policies import Policy, load_policy
from interp.runs import Run, read_json
from interp.scores import HeadScores


def twin(at: int, edit: str = "other-state", **changes: object) -> Twin:
    clean, other = random_observations(6)[at], random_observations(6, seed=1)[at]
    corrupt = replace(clean, **(changes or {"state": other.state}))
    return Twin(clean, corrupt, edit, "semantic" if at % 2 else "nuisance", group=at // 2)


@pytest.fixture(scope="module")
def physical() -> FactorPairs:
    return FactorPairs("physical", tuple(twin(at) for at in range(5)), "stand-in")


@pytest.fixture(scope="module")
def visual() -> FactorPairs:
    others = random_observations(6, seed=1)
    return FactorPairs(
        "visual",
        tuple(twin(at, edit=("light", "table")[at > 2], images=others[at].images) for at in range(5)),
        "stand-in",
    )


def closed_form(factor: str, indirect: list[list[float]], total: list[float], group: list[int]) -> Effects:
    """A measurement that was never made."""
    twins = tuple(replace(twin(0), group=g, kind="semantic") for g in group)
    heads = tuple(Head("expert", 0, index) for index in range(len(indirect)))
    pairs = FactorPairs(factor, twins, "testbed")
    return Effects(
        pairs, "patching", "denoising", None, 0, heads, np.array(indirect, float), np.array(total, float), 1
    )


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_shares_are_those_of_activation_patching(policy: Policy, visual: FactorPairs, direction: str) -> None:
    ours = factor_scores(policy, measure(policy, visual, direction=direction), data="demos-1")
    assert (ours.factor, ours.method, ours.data) == ("visual", f"patching-{direction}", "demos-1")
    assert ours.n == {"pairs": 5, "groups": 3}
    theirs = patch_heads(policy, visual.pairs, towers=["vlm", "expert"], direction=direction)
    for tower, grid in theirs.towers.items():
        for name in ("value", "low", "high"):
            # The total effect is measured apart, in other batches.
            np.testing.assert_allclose(
                getattr(ours.towers[tower], name), getattr(grid, name), atol=1e-5, rtol=1e-4
            )
    assert HeadScores.from_json(ours.to_json()).best(3, "vlm") == ours.best(3, "vlm")


def test_estimates_are_those_of_attribution_patching(policy: Policy, visual: FactorPairs) -> None:
    ours = factor_scores(policy, measure(policy, visual, method="atp"))
    theirs = atp(policy, visual.pairs, towers=["vlm", "expert"])
    for tower, grid in theirs.towers.items():
        np.testing.assert_allclose(ours.towers[tower].value, grid.value, atol=1e-5, rtol=1e-4)


def test_sizes_and_subsets_are_those_of_a_plain_loop(policy: Policy, visual: FactorPairs) -> None:
    effects = measure(policy, visual, method="atp", block=2)
    moved = []
    for at, one in enumerate(visual.twins):
        noise = Sides.of(policy, visual.pairs, [at], "denoising", 0).noise
        with torch.no_grad():
            a, b = (policy.denoise(policy.batch([side]), noise)[..., :7] for side in (one.clean, one.corrupt))
        moved.append(float((a - b).square().mean()))
    assert effects.size().value == pytest.approx(np.mean(moved) ** 0.5, rel=1e-4)
    assert effects.size([3, 4]).value == pytest.approx(np.mean(moved[3:]) ** 0.5, rel=1e-4)
    scores = factor_scores(policy, effects)
    assert scores.settings["edits"]["table"]["value"] == pytest.approx(np.mean(moved[3:]) ** 0.5, rel=1e-4)
    assert scores.settings["edits"]["table"]["pairs"] == 2
    nuisance = kind_scores(policy, [effects], "nuisance")  # pairs 0, 2 and 4
    subset = FactorPairs("visual", tuple(visual.twins[at] for at in (0, 2, 4)), "stand-in")
    assert nuisance.n == {"pairs": 3, "groups": 3}
    assert nuisance.settings["size"]["value"] == pytest.approx(np.mean(moved[0::2]) ** 0.5, rel=1e-4)
    indirect, total = effects.indirect[:, [0, 2, 4]].sum(axis=1), effects.total[[0, 2, 4]].sum()
    expert = np.concatenate([nuisance.towers[tower].value.ravel() for tower in ("vlm", "expert")])
    np.testing.assert_allclose(expert[np.isfinite(expert)], indirect / total)
    assert len(subset) == 3


def test_a_profile_is_the_share_of_shares() -> None:
    seen = closed_form("visual", [[0.6, 0.0], [0.0, 0.0], [0.5, 0.5]], [1, 1], [0, 1])
    heard = closed_form("linguistic", [[-0.2, -0.4], [0.0, 0.0], [0.0, 0.0]], [1, 3], [1, 2])
    found = profile({"linguistic": heard, "visual": seen}, resamples=200)
    assert found.factors == ("visual", "linguistic")
    np.testing.assert_allclose(found.strength, [0.3 + 0.15, 0, 0.5])
    np.testing.assert_allclose(found.share, [[2 / 3, 1 / 3], [np.nan, np.nan], [1, 0]])
    share, low, high = found.of(Head("expert", 0, 0))["visual"]
    assert low <= share <= high
    assert high > low
    assert found.of(Head("expert", 0, 2))["visual"] == (1, 1, 1)
    written = found.to_json()["heads"]
    assert written[1]["visual"] == {"share": None, "low": None, "high": None}
    assert written[2]["linguistic"]["share"] == 0


def test_a_share_of_next_to_nothing_is_no_number() -> None:
    nothing = closed_form("visual", [[1e-9], [5e-7]], [1e-9], [0])
    assert nothing.silent
    assert np.isnan(nothing.share()).all()
    assert nothing.interval() == (None, None)


def test_heads_of_a_silent_factor_have_no_share_of_its_loud_pairs_either(policy: Policy) -> None:
    """Two of eight swaps do something; all together move the action too little for the heads to be measured."""
    quiet = closed_form("linguistic", [[np.nan] * 8], [0.018**2] * 2 + [0.0] * 6, list(range(8)))
    assert quiet.silent
    assert not quiet.size([0, 1]).silent
    assert np.isnan(quiet.share([0, 1])).all()
    assert quiet.interval([0, 1]) == (None, None)

    loud = closed_form("visual", [[0.3, 0.5]], [1, 1], [0, 1])
    scores = kind_scores(policy, [quiet, loud], "semantic")
    assert scores.score(Head("expert", 0, 0)) == pytest.approx(0.4)
    assert scores.settings["unmeasured"] == ["linguistic"]
    assert set(scores.settings["factors"]) == {"linguistic", "visual"}
    assert scores.n["pairs"] == 2
    nothing = kind_scores(policy, [quiet], "semantic")
    assert not nothing.ranked("expert")
    assert nothing.settings["unmeasured"] == ["linguistic"]


def test_a_measurement_of_silent_swaps_measures_no_head(policy: Policy) -> None:
    same = tuple(replace(twin(at), corrupt=twin(at).clean) for at in range(3))
    effects = measure(policy, FactorPairs("physical", same, "testbed"), towers=["expert"])
    assert np.isnan(effects.indirect).all()


@pytest.mark.parametrize("method", ["patching", "atp"])
def test_killed_between_blocks_it_resumes_to_the_same_bits(
    policy: Policy,
    physical: FactorPairs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Method,
) -> None:
    whole = measure(policy, physical, method=method, towers=["expert"], block=2)
    source = interp.factors.effects.Sides
    original, calls = source.of, []

    def dying(policy, pairs, block, *others):
        calls.append(list(block))
        if len(calls) == 5:  # three blocks of total effects, then the second of heads
            raise KeyboardInterrupt
        return original(policy, pairs, block, *others)

    monkeypatch.setattr(source, "of", dying)
    with pytest.raises(KeyboardInterrupt):
        measure(policy, physical, method=method, towers=["expert"], block=2, directory=tmp_path)
    resumed = measure(policy, physical, method=method, towers=["expert"], block=2, directory=tmp_path)
    assert calls[3:5] == [[0, 1], [2, 3]]
    assert calls[-2:] == [[2, 3], [4]], "the first block was kept"
    assert np.array_equal(resumed.indirect, whole.indirect)
    assert np.array_equal(resumed.total, whole.total)


@pytest.fixture
def run(policy: Policy, tmp_path: Path) -> Run:
    data = {"fingerprint": "demos-1", "path": "nowhere", "tasks": ["stack the plates"]}
    return Run.create(
        tmp_path / "run", policy=policy.fingerprint, source="nowhere", spec=policy.spec, data=data
    )


def test_a_study_is_kept_in_the_run(
    policy: Policy, run: Run, visual: FactorPairs, physical: FactorPairs
) -> None:
    study(run, policy, [visual], method="atp").save(run)
    done = study(run, policy, [visual, physical], method="atp")
    done.save(run)
    again = Run.open(run.path)
    assert set(again.scores()) == {"atp-visual", "atp-physical", "atp-semantic", "atp-nuisance"}
    assert [again.scores()[f"atp-{name}"].factor for name in ("visual", "physical", "semantic")] == [
        "visual",
        "physical",
        None,
    ]
    entries = {entry["factor"]: entry for entry in again.info["factors"]}
    assert set(entries) == {"visual", "physical"}
    assert (entries["visual"]["scores"], entries["visual"]["from"]) == ("atp-visual", "stand-in")
    assert set(entries["visual"]["edits"]) == {"light", "table"}
    profiles = read_json(run.path / "factors" / "atp.json")
    assert len(profiles["heads"]) == 8 + 12
    assert "each moves the action" in "\n".join(done.summary())


def test_mistakes_are_one_line(
    policy: Policy, run: Run, tiny_policy_dir: Path, other_policy_dir: Path, physical: FactorPairs
) -> None:
    longer = FactorPairs("linguistic", (twin(0, "verb", instruction="press the cube"),), "stand-in")
    broken = load_policy(tiny_policy_dir)
    with torch.no_grad():
        broken.module.model.dit.layers[1].mlp.up_proj.weight.fill_(torch.nan)
    other = load_policy(other_policy_dir)
    attempts: list[tuple[Callable[[], object], str]] = [
        (lambda: FactorPairs("visual", (), "testbed"), "no visual pairs"),
        (lambda: FactorPairs("viusal", physical.twins, "testbed"), "unknown factor 'viusal'.*did you mean"),
        (lambda: replace(twin(0), kind="neutral"), "unknown kind of edit 'neutral'"),
        (lambda: measure(policy, longer), "'verb' changes the prompt's length from 6 to 4 tokens"),
        (lambda: measure(policy, physical, span="image/left"), "unknown token span 'image/left'"),
        (lambda: measure(policy, physical, span="image/front"), "tower expert has no positions"),
        (lambda: measure(policy, physical, towers=["arm"]), "unknown tower 'arm'"),
        (lambda: measure(policy, physical, method="guess"), "unknown method 'guess'"),
        (lambda: measure(policy, physical, direction="up"), "known are denoising, noising"),
        (lambda: measure(broken, physical), "not finite"),
        (lambda: measure(broken, physical, method="atp"), "not finite"),
        (
            lambda: study(run, other, [physical]),
            f"is of policy {policy.fingerprint}, not {other.fingerprint}",
        ),
        (lambda: study(run, policy, []), "at least one factor"),
        (lambda: profile({}), "at least two"),
        (lambda: kind_scores(policy, [], "semantic"), "no pairs are semantic"),
        (lambda: kind_scores(policy, [], "good"), "unknown kind of edit 'good'"),
    ]
    for attempt, message in attempts:
        with pytest.raises(UsageError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)
    assert not measure(policy, longer, towers=["expert"]).silent, "positions of the expert correspond"
    with pytest.raises(UsageError, match="at least one"):
        Pairs((), ())
