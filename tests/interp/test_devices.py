"""Promises of devices: what is not there is refused in a line, and what is computed there are the CPU's numbers.

There is no GPU in these tests: tests/elsewhere.py is one that PyTorch believes in.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from elsewhere import second_device
from lerobot_writer import random_episodes, write_dataset

from interp.ablation import AblationSettings, ablate
from interp.attribution import atp, atp_qk, direct_scores, integrated
from interp.capture import capture
from interp.demos import Demonstrations
from interp.devices import device_of, exactly
from interp.errors import UsageError
from interp.explain import ExplainSettings, explain
from interp.factors.effects import swap_effects
from interp.filming import footage
from interp.footage import Footage
from interp.heads import Head
from interp.hooked import HookedVLA
from interp.mass import mass_scores
from interp.patching import Pairs, patch_heads
from interp.paths import patch_paths
from interp.policies import Policy, load_policy
from interp.scores import HeadScores

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
"""float32: on a CPU, attention and some products have kernels of their own."""


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Demonstrations:
    return Demonstrations.open(
        write_dataset(tmp_path_factory.mktemp("data") / "demos", random_episodes((4, 3, 3)))
    )


@pytest.fixture(scope="module")
def there(tiny_policy_dir: Path) -> Iterator[Policy]:
    """The random policy, on a device without float64."""
    with second_device(float64=False) as name:
        yield load_policy(tiny_policy_dir, name)


@pytest.fixture(scope="module")
def pairs(policy: Policy, demos: Demonstrations) -> Pairs:
    return Pairs.of_frames(policy, demos, 3)


@pytest.mark.parametrize(
    ("name", "built", "count", "says"),
    [
        ("gpu", True, 1, "device gpu: known are cpu, cuda, cuda:1, mps"),
        ("meta", True, 1, "device meta: known are cpu, cuda, cuda:1, mps"),
        (
            "cuda",
            False,
            0,
            "device cuda: this PyTorch is built without CUDA; use cpu, or install one with it",
        ),
        ("cuda", True, 0, "device cuda: this machine has no CUDA; use cpu"),
        ("cuda:1", True, 1, "device cuda:1: this machine has cuda:0 alone"),
        ("cuda:5", True, 4, "device cuda:5: this machine has cuda:0 to cuda:3"),
        ("mps", True, 1, "device mps: this machine has no MPS; use cpu"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(
    tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, built: bool, count: int, says: str
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError) as raised:
        load_policy(tiny_policy_dir, name)
    assert str(raised.value) == says


def test_a_device_that_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name in ("cpu", "cuda", "cuda:1", "mps"):
        assert device_of(name) == torch.device(name)


def test_the_device_of_these_tests_is_one(there: Policy) -> None:
    """A test whose device forgave what a GPU does not would promise nothing."""
    weight = there.query_projection("expert", 0).weight
    assert weight.device.type == "lazy"
    with pytest.raises(RuntimeError, match="two devices"):
        weight + torch.ones(weight.shape)
    with pytest.raises(RuntimeError):
        weight.detach().numpy()
    with pytest.raises(TypeError, match="float64"):
        weight.double()
    assert exactly(weight).dtype == torch.float64


def test_a_policy_is_the_same_there(policy: Policy, there: Policy) -> None:
    assert there.fingerprint == policy.fingerprint
    assert there.spec == policy.spec
    noise = there.noise(2, seed=5)
    assert noise.device.type == "lazy"
    assert torch.equal(noise.cpu(), policy.noise(2, seed=5))


def test_a_capture_is_the_same_there(
    policy: Policy, there: Policy, demos: Demonstrations, tmp_path: Path
) -> None:
    runs = [capture(p, demos, tmp_path / name, progress=False) for p, name in ((policy, "a"), (there, "b"))]
    for name in policy.spec.towers:
        for token in runs[0].tokens(name):
            np.testing.assert_allclose(*(run.activations(name, token)[:] for run in runs), **CLOSE)
    np.testing.assert_allclose(*(run.signals().prediction for run in runs), **CLOSE)
    for each, run in zip((policy, there), runs, strict=True):
        footage(each, demos, run, episodes=[1], progress=False)
    films = [Footage.open(run, 1) for run in runs]
    for head in (Head("expert", 1, 2), Head("vlm", 0, 3)):
        maps = [film.attention(head, "front").astype(int) for film in films]
        assert np.abs(maps[0] - maps[1]).max() <= 1  # of 255
        np.testing.assert_allclose(*(film.mass(head) for film in films), atol=1e-3)  # kept in float16
    np.testing.assert_allclose(*(film.contribution(Head("expert", 1, 2)) for film in films), atol=1e-3)


SCORES: dict[str, Callable[[Policy, Demonstrations, Pairs], HeadScores]] = {
    "patching": lambda p, d, pairs: patch_heads(p, pairs, towers=("expert", "vlm", "vision"), resamples=9),
    "zero": lambda p, d, pairs: ablate(p, d, AblationSettings("zero", frames=4), towers=("expert", "vlm")),
    "mean": lambda p, d, pairs: ablate(
        p, d, AblationSettings("mean", "loss", frames=4), towers=("expert", "vlm")
    ),
    "resample": lambda p, d, pairs: ablate(p, d, AblationSettings("resample", frames=4), towers=("expert",)),
    "atp": lambda p, d, pairs: atp(p, pairs, towers=("expert", "vlm"), verified=2, resamples=9),
    "ig": lambda p, d, pairs: integrated(p, pairs, towers=("expert", "vlm"), n=2, resamples=9),
    "atp-q": lambda p, d, pairs: atp_qk(p, pairs, "q", towers=("expert", "vlm"), resamples=9),
    "atp-k": lambda p, d, pairs: atp_qk(p, pairs, "k", towers=("expert", "vlm"), resamples=9),
    "direct": lambda p, d, pairs: direct_scores(p, d, frames=4),
    "mass": lambda p, d, pairs: mass_scores(p, d, "image/front", frames=4),
    "mass-vlm": lambda p, d, pairs: mass_scores(p, d, "language", tower="vlm", frames=4),
}


@pytest.mark.parametrize("method", SCORES)
def test_scores_are_the_same_there(
    policy: Policy, there: Policy, demos: Demonstrations, pairs: Pairs, method: str
) -> None:
    here, found = (SCORES[method](each, demos, pairs) for each in (policy, there))
    for tower in here.towers:
        np.testing.assert_allclose(found.tower(tower).value, here.tower(tower).value, **CLOSE)


def test_paths_factors_and_explanations_are_the_same_there(
    policy: Policy, there: Policy, demos: Demonstrations, pairs: Pairs
) -> None:
    senders, receivers = [Head("vlm", 0, 1), Head("expert", 0, 2)], [Head("expert", 2, 0)]
    paths = [patch_paths(p, pairs, senders, receivers) for p in (policy, there)]
    np.testing.assert_allclose(*(each.indirect for each in paths), **CLOSE)
    np.testing.assert_allclose(*(swap_effects(p, pairs) for p in (policy, there)), **CLOSE)
    settings = ExplainSettings(towers=("expert", "vlm"), shown=3, examples=2)
    here, found = (explain(p, demos, 1, 2, settings) for p in (policy, there))
    np.testing.assert_allclose(found.predicted, here.predicted, **CLOSE)
    by_head = {part.head: part for part in found.heads}
    for part in here.heads:
        for effect in ("zero", "mean", "direct"):
            if (own := getattr(part, effect)) is not None:
                np.testing.assert_allclose(getattr(by_head[part.head], effect).change, own.change, **CLOSE)


def test_hooks_are_the_same_there(policy: Policy, there: Policy, demos: Demonstrations) -> None:
    caches = []
    for each in (policy, there):
        with torch.no_grad():
            batch = each.batch([demos.observation(0)])
            caches.append(HookedVLA(each).run_with_cache(batch, each.noise(1, 0), device="cpu")[1])
    assert set(caches[0]) == set(caches[1])
    for name, tensor in caches[0].items():
        torch.testing.assert_close(caches[1][name], tensor, **CLOSE)
