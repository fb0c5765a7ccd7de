"""Promises of the estimates beyond plain AtP: integrated gradients, and queries and keys through an exact softmax.

Independent computations: autograd and exact patches by plain hooks, on the same pairs.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_policy import build_policy, random_observations
from torch import Tensor, nn

from interp.attribution import atp, atp_qk, integrated
from interp.attribution.atp import agreement
from interp.errors import UsageError
from interp.heads import Head
from interp.patching import Pairs, Sides, patch_heads
from interp.policies import Policy, load_policy
from interp.scores import HeadScores


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    clean, other = random_observations(2), random_observations(2, seed=1)
    corrupt = [replace(a, images=b.images, state=b.state) for a, b in zip(clean, other, strict=True)]
    return Pairs(tuple(clean), tuple(corrupt))


def run(
    policy: Policy,
    batch: dict[str, Tensor],
    noise: Tensor,
    edits: dict[nn.Module, Callable[[Tensor, int], Tensor]],
) -> Tensor:
    """The chunk, with inputs (of layers and output projections) or outputs (of q and k projections) edited."""
    handles = []
    for module, edit in edits.items():
        calls: list[int] = []

        def step(calls: list[int] = calls) -> int:
            calls.append(1)
            return len(calls) - 1

        if isinstance(module, nn.Linear) and "o_proj" not in names(policy)[module]:
            handles.append(
                module.register_forward_hook(lambda _, a, out, edit=edit, step=step: edit(out, step()))
            )
        else:
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, a, edit=edit, step=step: (edit(a[0], step()), *a[1:])
                )
            )
    out = policy.denoise(batch, noise)[..., :7]
    for handle in handles:
        handle.remove()
    return out


def names(policy: Policy) -> dict[nn.Module, str]:
    return {module: name for name, module in policy.module.named_modules()}


# ---- integrated gradients


def test_integrated_gradients_equal_autograd_along_the_way(policy: Policy, pairs: Pairs) -> None:
    sides = Sides.of(policy, pairs, [0, 1], "denoising", seed=0)
    prefix_in, expert_in = policy.block("vlm", 0).layer, policy.block("expert", 0).layer
    out = policy.out_projection("expert", 1)
    ends = []
    for batch in (sides.base, sides.source):
        seen: dict[str, list[Tensor]] = {"vlm": [], "expert": [], "z": []}
        with torch.no_grad():
            edits = {
                prefix_in: lambda x, n, s=seen: s["vlm"].append(x) or x,
                expert_in: lambda x, n, s=seen: s["expert"].append(x) or x,
                out: lambda x, n, s=seen: s["z"].append(x) or x,
            }
            chunk = run(policy, batch, sides.noise, edits)
        ends.append((chunk, seen))
    (base, a), (target, b) = ends
    slopes = []
    for alpha in (1 / 6, 1 / 2, 5 / 6):

        def mix(x: Tensor, step: int, alpha: float = alpha) -> Tensor:
            x = x.clone()
            x[:, 0] = (1 - alpha) * a["expert"][step][:, 0] + alpha * b["expert"][step][:, 0]
            return x

        leaves: list[Tensor] = []

        def leaf(z: Tensor, step: int, leaves: list[Tensor] = leaves) -> Tensor:
            leaves.append(z if z.requires_grad else z.detach().requires_grad_())
            return leaves[-1]

        edits = {
            prefix_in: lambda x, n, alpha=alpha: (1 - alpha) * a["vlm"][0] + alpha * b["vlm"][0],
            expert_in: mix,
            out: leaf,
        }
        metric = (run(policy, sides.base, sides.noise, edits) * (target - base)).sum()
        slopes.append(torch.autograd.grad(metric, leaves))
    mean = [torch.stack(steps).mean(0) for steps in zip(*slopes, strict=True)]
    product = sum((g * (y - x)).sum(dim=(0, 1)) for g, x, y in zip(mean, a["z"], b["z"], strict=True))
    expected = product.reshape(4, 8).sum(1) / (target - base).square().sum()
    found = integrated(policy, pairs, n=3).tower("expert").value[1]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_with_enough_points_the_embeddings_explain_all_of_the_effect(policy: Policy, pairs: Pairs) -> None:
    """Completeness (Sundararajan et al.): the integral of the gradient is the difference, to the width of the steps."""
    few, many = (integrated(policy, pairs, n=n, towers=["vlm", "expert"]) for n in (1, 12))
    assert many.settings["completeness"] == pytest.approx(1, abs=0.05)
    assert abs(few.settings["completeness"] - 1) > abs(many.settings["completeness"] - 1)
    assert HeadScores.from_json(many.to_json()).n == {"pairs": 2, "groups": 2}
    assert np.isfinite(many.tower("vlm").value[:2]).all()


# ---- queries and keys


@pytest.fixture(scope="module")
def saturated(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """One KV head a head, one flow step. In the expert's last layer attention is nearly one-hot, and what it writes is
    small enough for everything after it to be linear in it."""
    path = tmp_path_factory.mktemp("saturated") / "p"
    policy = load_policy(build_policy(path, heads=4, kv_heads=4, layers=2))
    with torch.no_grad():
        policy.query_projection("expert", 1).weight *= 12
        policy.out_projection("expert", 1).weight *= 0.005
    policy.spec = replace(policy.spec, flow_steps=1)
    return policy


def exact(policy: Policy, pairs: Pairs, node: str, head: Head) -> float:
    """NIE / TE of the source's queries or keys in one head, by a plain hook on their projection."""
    sides = Sides.of(policy, pairs, range(len(pairs)), "denoising", seed=0)
    block = policy.block(head.tower, head.layer)
    module = block.query if node == "q" else block.key
    own = slice(head.index * 8, head.index * 8 + 8)
    source: list[Tensor] = []

    def put(x: Tensor, step: int) -> Tensor:
        x = x.clone()
        x[..., own] = source[step][..., own]
        return x

    with torch.no_grad():
        target = run(policy, sides.source, sides.noise, {module: lambda x, n: source.append(x.clone()) or x})
        base = run(policy, sides.base, sides.noise, {})
        patched = run(policy, sides.base, sides.noise, {module: put})
    return float(((patched - base) * (target - base)).sum() / (target - base).square().sum())


def linear(policy: Policy, pairs: Pairs, node: str, layer: int) -> np.ndarray:
    """Plain AtP of queries or keys: the gradient goes through the softmax."""
    sides = Sides.of(policy, pairs, range(len(pairs)), "denoising", seed=0)
    block = policy.block("expert", layer)
    module, source, leaves = (block.query if node == "q" else block.key), [], []
    with torch.no_grad():
        target = run(policy, sides.source, sides.noise, {module: lambda x, n: source.append(x.clone()) or x})

    def leaf(x: Tensor, step: int) -> Tensor:
        leaves.append(x if x.requires_grad else x.detach().requires_grad_())
        return leaves[-1]

    base = run(policy, sides.base, sides.noise, {module: leaf})
    grads = torch.autograd.grad((base * (target - base).detach()).sum(), leaves)
    product = sum((g * (y - x)).sum(dim=(0, 1)) for g, x, y in zip(grads, leaves, source, strict=True))
    return (product.reshape(4, 8).sum(1) / (target - base).square().sum()).detach().numpy()


@pytest.mark.parametrize("node", ["q", "k"])
def test_where_attention_is_saturated_the_softmax_must_be_computed(
    saturated: Policy, pairs: Pairs, node: str
) -> None:
    near = Pairs(
        pairs.clean, tuple(replace(c, state=x.state) for c, x in zip(pairs.clean, pairs.corrupt, strict=True))
    )
    truth = np.array([exact(saturated, near, node, Head("expert", 1, h)) for h in range(4)])
    plain = linear(saturated, near, node, 1)
    fixed = atp_qk(saturated, near, node).tower("expert").value[1]
    size = np.abs(truth).max()
    assert np.abs(fixed - truth).max() < 0.1 * size
    assert np.abs(plain - truth).max() > 0.5 * size


@pytest.mark.parametrize("node", ["q", "k"])
def test_a_small_change_of_queries_or_keys_is_what_the_exact_patch_says(tmp_path: Path, node: str) -> None:
    """Then what follows z is linear, and the estimate must be right; of the vlm too."""
    policy = load_policy(build_policy(tmp_path / "p", heads=4, kv_heads=4, layers=3))
    clean = random_observations(1)[0]
    image = np.clip(clean.images["front"].astype(int) + 2, 0, 255).astype(np.uint8)
    near = replace(clean, state=clean.state + np.float32(0.02), images={**clean.images, "front": image})
    pairs = Pairs((clean,), (near,))
    found = atp_qk(policy, pairs, node, towers=["expert", "vlm"])
    for head in (Head("expert", 0, 1), Head("expert", 2, 3), Head("expert", 1, 0), Head("vlm", 1, 2)):
        if head.tower == "vlm" and node == "k":
            continue  # a plain hook on the vlm's keys moves the expert too, which reads them
        assert found.score(head) == pytest.approx(exact(policy, pairs, node, head), rel=0.1, abs=2e-3)
    assert found.method == f"atp-{node}-denoising"


def test_agreement_is_pearsons_r_by_tower(policy: Policy, pairs: Pairs) -> None:
    towers = ["vlm", "expert"]
    estimate, truth = atp(policy, pairs, towers=towers), patch_heads(policy, pairs, towers=towers)
    r = agreement(estimate, truth)
    a, b = estimate.tower("expert").value.ravel(), truth.tower("expert").value.ravel()
    assert r["expert"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert set(r) == {"vlm", "expert", "all"}


def test_mistakes_are_one_line(policy: Policy, pairs: Pairs) -> None:
    a, b = random_observations(2)
    for attempt, message in (
        (lambda: integrated(policy, pairs, n=0), "at least one point"),
        (lambda: integrated(policy, pairs, towers=["vision"]), "take atp for vision"),
        (lambda: integrated(policy, Pairs((a,), (b,))), "differ in length"),
        (lambda: atp_qk(policy, pairs, "v"), "known are q, k"),
        (lambda: atp_qk(policy, Pairs((a,), (b,)), towers=["vlm"]), "differ in length"),
        (lambda: atp_qk(policy, pairs, towers=["arm"]), "unknown tower 'arm'"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)
