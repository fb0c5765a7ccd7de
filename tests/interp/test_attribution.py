"""Promises of attribution: estimates are first derivatives of the real thing, parts add up to the whole.

Independent computations: exact patching by small steps, nnsight gradients, the network's own modules by hand.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnsight import NNsight
from pi0_directories import edit_weights
from random_policy import build_half, build_policy, random_observations
from torch import Tensor

from interp.attribution import Check, atp, direct, verify
from interp.edits import single
from interp.errors import UsageError
from interp.heads import Head
from interp.hooked import HookedVLA
from interp.mass import attention_mass
from interp.patching import Pairs, Sides, patch, patch_heads
from interp.policies import Policy, load_policy
from interp.scores import HeadScores
from interp.watching import watch


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Small physical and visual differences, where a first-order estimate should be good."""
    clean = random_observations(4)
    rng = np.random.default_rng(0)
    corrupt = [
        replace(o, state=o.state + rng.normal(size=8).astype(np.float32) * 0.1) for o in clean[:2]
    ] + [
        replace(o, images={k: np.clip(v.astype(int) + rng.integers(-9, 9, v.shape), 0, 255).astype(np.uint8)
                           for k, v in o.images.items()})
        for o in clean[2:]
    ]  # fmt: skip
    return Pairs(tuple(clean), tuple(corrupt))


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_atp_is_close_to_exact_patching_when_the_difference_is_small(
    policy: Policy, pairs: Pairs, direction: str
) -> None:
    towers = ["vision", "vlm", "expert"]
    estimate = atp(policy, pairs, towers=towers, direction=direction, block=3)
    exact = patch_heads(policy, pairs, towers=towers, direction=direction, resamples=0)
    for tower in towers:
        a, b = (scores.tower(tower).value for scores in (estimate, exact))
        live = np.isfinite(b)
        assert (np.isfinite(a) == live).all()
        assert np.corrcoef(a[live], b[live])[0, 1] > 0.95
        assert (estimate.tower(tower).low <= a)[live].all()


def test_atp_is_the_derivative_of_patching(policy: Policy, pairs: Pairs) -> None:
    """Moving z of a head a small part of the way to the source's, by a plain hook, moves the metric at that rate."""
    scores = atp(policy, pairs, towers=["vlm", "expert"])
    sides = Sides.of(policy, pairs, range(4), "denoising", seed=0)
    for head in (Head("vlm", 0, 2), Head("expert", 1, 3), Head("expert", 2, 0)):
        own = slice(head.index * 8, head.index * 8 + 8)
        projection = policy.out_projection(head.tower, head.layer)

        def run(batch: dict[str, Tensor], edit: Callable[[Tensor, int], Tensor]) -> Tensor:
            calls: list[int] = []

            def hook(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor]:
                z = args[0].clone()
                z[..., own] = edit(z[..., own], len(calls))  # noqa: B023 (runs within this turn of the loop)
                calls.append(1)
                return (z,)

            handle = projection.register_forward_pre_hook(hook)  # noqa: B023
            with torch.no_grad():
                out = policy.denoise(batch, sides.noise)[..., :7].double()
            handle.remove()
            return out

        clean: list[Tensor] = []
        base_z: list[Tensor] = []
        target = run(sides.source, lambda z, n, into=clean: into.append(z.clone()) or z)
        base = run(sides.base, lambda z, n, into=base_z: into.append(z.clone()) or z)
        d = target - base
        ends = []
        for part in (0.1, -0.1):
            # Along the difference of the two unpatched runs, which is what AtP takes the gradient along.
            moved = run(sides.base, lambda z, n, p=part, c=clean, b=base_z: z + p * (c[n] - b[n]))
            ends.append(((moved - base) * d).sum() / (d * d).sum())
        slope = float(ends[0] - ends[1]) / 0.2
        assert scores.score(head) == pytest.approx(slope, rel=0.05, abs=2e-3)  # float32, central differences


def test_atp_uses_the_gradient_that_nnsight_finds(
    policy: Policy, pairs: Pairs, tiny_policy_dir: Path
) -> None:
    """At the last flow step, which no later step follows, for the last layer of the expert."""
    sides = Sides.of(policy, pairs, range(4), "denoising", seed=0)
    traced = NNsight(load_policy(tiny_policy_dir).module.requires_grad_(True))
    ends = []
    for batch in (sides.source, sides.base):
        with torch.no_grad():
            prefix, x = policy.prefix(batch), sides.noise
            for step in range(3):
                x = x - policy.velocity(batch, x, torch.full((4,), 1 - step / 4), prefix) / 4
        ends.append(x)
    target = policy.denoise(sides.source, sides.noise)[..., :7]
    with torch.no_grad(), traced.trace(noise=ends[0], timestep=torch.full((4,), 0.25), **sides.source):
        new = traced.model.dit.layers[2].self_attn.o_proj.input.save()
    with traced.trace(noise=ends[1], timestep=torch.full((4,), 0.25), **sides.base):
        z = traced.model.dit.layers[2].self_attn.o_proj.input.save()
        action = (ends[1] - traced.action_out_proj.output / 4)[..., :7]
        difference = (target - action).detach().save()
        with (action * difference).sum().backward():
            grad = z.grad.save()
    product = ((new - z) * grad).detach().reshape(4, 7, 4, 8).sum(dim=(0, 1, 3))
    expected = (product / difference.square().sum()).numpy()
    found = atp(policy, pairs, step=3).tower("expert").value[2]
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-5)


def test_places_add_up(policy: Policy, pairs: Pairs) -> None:
    """First-order effects are additive over positions, spans and steps."""
    whole = atp(policy, pairs).tower("expert").value
    spans = [atp(policy, pairs, span=span).tower("expert").value for span in ("state", "action")]
    steps = [atp(policy, pairs, step=step).tower("expert").value for step in range(4)]
    places = [atp(policy, pairs, position=position).tower("expert").value for position in range(7)]
    for parts in (spans, steps, places):
        np.testing.assert_allclose(sum(parts), whole, rtol=1e-4, atol=1e-6)
    cameras = [atp(policy, pairs, towers=["vision"], span=f"image/{c}") for c in ("front", "wrist")]
    np.testing.assert_allclose(
        sum(scores.tower("vision").value for scores in cameras),
        atp(policy, pairs, towers=["vision"]).tower("vision").value,
        rtol=1e-4,
        atol=1e-6,
    )


def test_the_best_estimates_are_patched_for_real(policy: Policy, pairs: Pairs) -> None:
    scores = atp(policy, pairs, towers=["expert", "vlm"], verified=3)
    exact = patch_heads(policy, pairs, towers=["expert", "vlm"], resamples=0)
    checks = HeadScores.from_json(scores.to_json()).settings["verified"]
    assert len(checks) == 3
    for check in checks:
        head = Head.parse(check["head"])
        assert check["estimate"] == pytest.approx(scores.score(head))
        assert check["exact"] == pytest.approx(exact.score(head), abs=1e-5)
    edits = single(policy, "expert")
    estimates = scores.tower("expert").value.ravel()
    (best,) = verify(policy, pairs, edits, estimates, 1)
    assert isinstance(best, Check)
    assert abs(best.estimate) == np.abs(estimates).max()
    assert best.exact == pytest.approx(patch(policy, pairs, single(policy, "expert")).effect[
        int(np.abs(estimates).argmax())], abs=1e-5)  # fmt: skip


def test_atp_leaves_the_policy_without_gradients(policy: Policy, pairs: Pairs) -> None:
    atp(policy, pairs, towers=["vlm", "expert"])
    assert all(p.grad is None and not p.requires_grad for p in policy.module.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in policy.module.modules())
    with torch.no_grad():  # nor does the caller's grad mode matter
        atp(policy, pairs)
    same = Pairs(pairs.clean, pairs.clean)
    with pytest.raises(UsageError, match="no effect to explain"):
        atp(policy, same)


# ---- direct action attribution


def test_the_parts_add_up_to_the_action(policy: Policy) -> None:
    batch, noise = policy.batch(random_observations(3)), policy.noise(3, 0)
    found = direct(policy, batch, noise)
    torch.testing.assert_close(found.total(), policy.denoise(batch, noise)[..., :7], atol=1e-4, rtol=1e-4)
    assert found.heads.shape == (3, 3, 4, 6, 7)
    assert (found.heads.abs().amax(dim=(0, 3, 4)) > 1e-5).all()


def test_a_heads_part_is_what_its_output_weights_write(policy: Policy) -> None:
    """One velocity by hand: z W_o, times the norm's weight over the stream's root mean square, times W_action."""
    vla, model = HookedVLA(policy), policy.module
    batch, noise = policy.batch(random_observations(2)), policy.noise(2, 0)
    names = ["expert.blocks.1.attn.hook_z", "expert.blocks.2.hook_resid_post"]
    _, cache = vla.run_with_cache(batch, noise, names_filter=names)
    found = direct(policy, batch, noise)
    weight = model.model.dit.layers[1].self_attn.o_proj.weight[:, 16:24]
    total = torch.zeros(2, 6, 7)
    for step in range(4):
        z, x = cache[names[0]][step][:, 1:, 2], cache[names[1]][step][:, 1:]
        normed = (z @ weight.T) * (1 + model.model.dit.norm.weight)
        normed = normed / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        total -= (normed @ model.action_out_proj.weight.T)[..., :7] / 4
    torch.testing.assert_close(found.heads[:, 1, 2], total, atol=1e-5, rtol=1e-4)


def test_a_head_with_no_output_weights_writes_nothing(tiny_policy_dir: Path) -> None:
    edited = load_policy(tiny_policy_dir)
    with torch.no_grad():
        edited.out_projection("expert", 1).weight[:, 8:16] = 0
    batch, noise = edited.batch(random_observations(2)), edited.noise(2, 0)
    found = direct(edited, batch, noise)
    assert (found.heads[:, 1, 1] == 0).all()
    scores = found.scores(edited, "demos-1", [0, 1])
    assert scores.ranked("expert")[-1] == Head("expert", 1, 1)
    assert scores.score(Head("expert", 1, 1)) == 0
    expected = found.heads[:, 0, 3].square().mean(dim=(1, 2)).sqrt().mean()
    assert scores.score(Head("expert", 0, 3)) == pytest.approx(float(expected), rel=1e-5)
    assert HeadScores.from_json(scores.to_json()).n == {"episodes": 2, "frames": 2}


def test_direct_attribution_of_another_norm_is_refused(tiny_policy_dir: Path) -> None:
    edited = load_policy(tiny_policy_dir)
    edited.module.model.dit.norm = torch.nn.LayerNorm(48)
    with pytest.raises(UsageError, match="not a root-mean-square norm"):
        direct(edited, edited.batch(random_observations(1)), edited.noise(1, 0))


@pytest.mark.parametrize("projections", [torch.float32, torch.bfloat16], ids=["as released", "all"])
def test_parts_of_a_half_precision_policy_are_those_of_its_weights_in_single_precision(
    tmp_path: Path, projections: torch.dtype
) -> None:
    half = load_policy(build_half(tmp_path / "half", projections))
    edit_weights(
        shutil.copytree(tmp_path / "half", tmp_path / "single"),
        lambda t: {k: v.float() for k, v in t.items()},
    )
    single = load_policy(tmp_path / "single")
    seen, noise = random_observations(3), single.noise(3, 0)
    found, exact = (direct(p, p.batch(seen), noise.to(p.noise(1, 0))) for p in (half, single))
    assert found.heads.dtype == torch.float32
    # bfloat16 has 8 bits, and over three layers and four steps a few of its last digits
    close = {"atol": 2**-5 * float(exact.heads.abs().max()), "rtol": 0}
    torch.testing.assert_close(found.heads, exact.heads, **close)
    torch.testing.assert_close(
        found.total(), exact.action, atol=2**-5 * float(exact.action.abs().max()), rtol=0
    )
    shown = watch(half, seen[:1], half.noise(1, 0))
    assert set(shown.contribution) == {"expert"}


def test_parts_that_miss_the_action_are_an_error_in_any_precision(
    tmp_path: Path, tiny_policy_dir: Path
) -> None:
    for wrong in (load_policy(tiny_policy_dir), load_policy(build_half(tmp_path / "half"))):
        way = wrong.readout()
        wrong.readout = lambda way=way: replace(way, scale=2 * way.scale)  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="miss the action"):
            direct(wrong, wrong.batch(random_observations(1)), wrong.noise(1, 0))


def test_grouped_keys_and_head_dimensions_of_their_own(tmp_path: Path) -> None:
    grouped = load_policy(build_policy(tmp_path / "gqa", heads=15, kv_heads=5, layers=2))
    batch, noise = grouped.batch(random_observations(1)), grouped.noise(1, 0)
    assert direct(grouped, batch, noise).heads.shape == (1, 2, 15, 6, 7)


# ---- attention mass


def test_attention_mass_is_the_pattern_summed_over_spans(policy: Policy) -> None:
    observations, noise = random_observations(3), policy.noise(3, 0)
    found = attention_mass(policy, observations, noise)
    batch = policy.batch(observations)
    _, cache = HookedVLA(policy).run_with_cache(
        batch, noise, names_filter=lambda name: name.endswith("hook_pattern")
    )
    pattern = torch.stack([cache[f"expert.blocks.{layer}.attn.hook_pattern"] for layer in range(3)])
    mean = pattern[:, :, :, :, 1:].mean(dim=(1, 4))  # layer frame head key
    for name, span in policy.spec.spans.items():
        expected = mean[..., span.start : span.stop].sum(-1).movedim(1, 0)
        np.testing.assert_allclose(found.mass[name], expected, atol=1e-5)
    np.testing.assert_allclose(sum(found.mass.values()), 1, atol=1e-5)
    np.testing.assert_allclose(sum(found.content().values()), 1, atol=1e-5)
    assert (found.mass["language/padding"] == 0).all()  # masked in this policy

    vlm = attention_mass(policy, observations, noise, tower="vlm")
    words = int(batch["attention_mask"][0].sum())
    pattern = cache["vlm.blocks.1.attn.hook_pattern"][0][:, 32:words].mean(dim=1)
    np.testing.assert_allclose(vlm.mass["image/wrist"][0, 1], pattern[:, 16:32].sum(-1), atol=1e-5)
    assert "state" not in vlm.mass
    np.testing.assert_allclose(sum(vlm.mass.values()), 1, atol=1e-5)


def test_letterbox_bars_are_padding(policy: Policy) -> None:
    """A 16:32 image fills the middle half of the square: of 4 rows of patches, the first and the last are bars."""
    rng = np.random.default_rng(0)
    wide = replace(
        random_observations(1)[0],
        images={
            "front": rng.integers(0, 256, (16, 32, 3), np.uint8),
            "wrist": rng.integers(0, 256, (32, 32, 3), np.uint8),
        },
    )
    noise = policy.noise(1, 0)
    found = attention_mass(policy, [wide], noise)
    _, cache = HookedVLA(policy).run_with_cache(
        policy.batch([wide]), noise, names_filter="expert.blocks.0.attn.hook_pattern"
    )
    rows = (
        cache["expert.blocks.0.attn.hook_pattern"][:, 0, :, 1:, :16].mean(dim=(0, 2)).reshape(4, 4, 4).sum(-1)
    )
    np.testing.assert_allclose(found.mass["image/front/padding"][0, 0], rows[:, 0] + rows[:, 3], atol=1e-5)
    np.testing.assert_allclose(found.mass["image/front"][0, 0], rows[:, 1] + rows[:, 2], atol=1e-5)
    assert (found.mass["image/wrist/padding"] == 0).all()
    assert found.content()["image/front"].max() > found.mass["image/front"].max()


class Between:
    """A policy that says of the wrist camera's tokens that they are of no span: as SmolVLA's begin and end of image."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        spans = {name: span for name, span in policy.spec.spans.items() if name != "image/wrist"}
        self.spec = replace(policy.spec, spans=spans, cameras=("front",))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)


@pytest.mark.parametrize("tower", ["expert", "vlm"])
def test_tokens_of_no_span_are_a_part_of_their_own_where_there_are_any(policy: Policy, tower: str) -> None:
    observations, noise = random_observations(1), policy.noise(1, 0)
    whole = attention_mass(policy, observations, noise, tower=tower).mass
    found = attention_mass(Between(policy), observations, noise, tower=tower).mass
    assert "other" not in whole
    np.testing.assert_allclose(found["other"], whole["image/wrist"] + whole["image/wrist/padding"], atol=1e-5)
    assert found["other"].max() > 0.1
    np.testing.assert_allclose(sum(found.values()), 1, atol=1e-5)
    seen = watch(Between(policy), observations, noise)
    np.testing.assert_allclose(seen.mass[tower].sum(axis=-1), 1, atol=1e-5)
    assert seen.parts.count("other") == 1


def test_mass_of_a_tower_or_span_that_is_not_there_is_an_error(policy: Policy) -> None:
    observations, noise = random_observations(1), policy.noise(1, 0)
    with pytest.raises(UsageError, match="vision sees one camera"):
        attention_mass(policy, observations, noise, tower="vision")
    with pytest.raises(UsageError, match="belong to another tower"):
        attention_mass(policy, observations, noise, tower="vlm", query="action")
