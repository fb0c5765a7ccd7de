"""Promises of path patching: what plain hooks find that hold everything but one path, one pair at a time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_policy import build_policy, random_observations
from torch import Tensor

from interp.attribution import direct
from interp.edits import Edit
from interp.errors import UsageError
from interp.heads import Head
from interp.patching import Pairs, Sides, patch
from interp.paths import patch_paths
from interp.policies import Policy, load_policy

CLOSE = {"atol": 2e-5, "rtol": 1e-3}
STEPS = 4


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    clean, other = random_observations(2), random_observations(2, seed=1)
    corrupt = [replace(a, images=b.images, state=b.state) for a, b in zip(clean, other, strict=True)]
    return Pairs(tuple(clean), tuple(corrupt))


class Naive:
    """The same definitions by hand, for one pair: modules are named, and every call of one is a flow step."""

    def __init__(self, policy: Policy, pairs: Pairs, at: int, mlps: bool) -> None:
        self.policy = policy
        self.sides = Sides.of(policy, pairs, [at], "denoising", seed=0)
        self.mlps = mlps
        self.inputs: dict[torch.nn.Module, str] = {}
        self.outputs: dict[torch.nn.Module, str] = {}
        for tower in ("vlm", "expert"):
            for layer in range(policy.spec.tower(tower).layers):
                block = policy.block(tower, layer)
                self.inputs[block.out] = f"{tower}{layer} z"
                self.outputs[block.mlp] = f"{tower}{layer} mlp"
                for node, module in (("q", block.query), ("k", block.key), ("v", block.value)):
                    self.outputs[module] = f"{tower}{layer} {node}"
        self.inputs[policy.block("expert", 0).layer] = "embedding"

    def run(self, batch: dict[str, Tensor], edit: Callable[[str, int, Tensor], Tensor | None]) -> Tensor:
        calls: dict[str, int] = {}
        handles = []

        def now(name: str, tensor: Tensor) -> Tensor:
            step = calls[name] = calls.get(name, -1) + 1
            new = edit(name, step, tensor)
            return tensor if new is None else new

        for module, name in self.inputs.items():
            handles.append(
                module.register_forward_pre_hook(lambda _, a, name=name: (now(name, a[0]), *a[1:]))
            )
        for module, name in self.outputs.items():
            handles.append(module.register_forward_hook(lambda _, a, out, name=name: now(name, out)))
        with torch.no_grad():
            out = self.policy.denoise(batch, self.sides.noise)[0, :, :7].double()
        for handle in handles:
            handle.remove()
        return out

    def path(self, sender: Head, receiver: Head | None, via: str) -> tuple[Tensor, Tensor]:
        """The changed chunk minus the base's, and the total effect."""
        own, there = self._columns(sender), receiver and self._columns(receiver)
        base: dict[tuple[str, int], Tensor] = {}
        source: dict[tuple[str, int], Tensor] = {}
        chunk = self.run(self.sides.base, lambda name, step, x: base.update({(name, step): x.clone()}))
        target = self.run(self.sides.source, lambda name, step, x: source.update({(name, step): x.clone()}))
        heard: dict[int, Tensor] = {}

        def hold(name: str, step: int, x: Tensor) -> Tensor | None:
            held = base[name, step].clone()
            if name == f"{sender.tower}{sender.layer} z":
                held[..., own] = source[name, step][..., own]
            if receiver is not None and name == f"{receiver.tower}{receiver.layer} z":
                heard[step] = x[..., there].clone()
            if name.split()[-1] in ("q", "k", "v"):
                return None if name.split()[-1] in via else held
            return None if name.endswith("mlp") and not self.mlps else held

        direct = self.run(self.sides.base, hold)
        if receiver is None:
            return direct - chunk, target - chunk

        def answer(name: str, step: int, x: Tensor) -> Tensor | None:
            if name != f"{receiver.tower}{receiver.layer} z":
                return None
            x = x.clone()
            x[..., there] = heard[step]
            return x

        return self.run(self.sides.base, answer) - chunk, target - chunk

    def _columns(self, head: Head) -> slice:
        d = self.policy.spec.tower(head.tower).d_head
        return slice(head.index * d, (head.index + 1) * d)


@pytest.mark.parametrize("mlps", ["held", "free"])
@pytest.mark.parametrize("via", ["qkv", "q", "kv"])
def test_every_path_equals_plain_hooks(policy: Policy, pairs: Pairs, via: str, mlps: str) -> None:
    senders = [Head("expert", 0, 1), Head("vlm", 0, 2)]
    receivers = [Head("expert", 1, 0), Head("expert", 2, 3), Head("vlm", 1, 1), Head("expert", 0, 0)]
    found = patch_paths(policy, pairs, senders, receivers, via=via, mlps=mlps)
    naive = [Naive(policy, pairs, at, mlps == "held") for at in range(2)]
    for s, sender in enumerate(senders):
        for r, receiver in enumerate([*receivers, None]):
            measured = found.action[s] if receiver is None else found.heads[s, r]
            reaches = receiver is None or (
                sender.layer < receiver.layer and not (sender.tower == "expert" and receiver.tower == "vlm")
            )
            if not reaches:
                assert np.isnan(measured)
                continue
            pushed, total = zip(*(one.path(sender, receiver, via) for one in naive), strict=True)
            top = sum(float((p * d).sum()) for p, d in zip(pushed, total, strict=True))
            bottom = sum(float((d * d).sum()) for d in total)
            np.testing.assert_allclose(measured, top / bottom, **CLOSE)
    assert np.nanmax(np.abs(found.heads)) > 1e-4
    assert abs(found.action[0]) > 1e-4
    assert found.action[1] == pytest.approx(0, abs=1e-6)  # the vlm writes nothing into the action itself
    low, high = found.interval([0, 1], resamples=100)
    assert (low <= high).all()


def test_the_last_layers_direct_path_is_all_that_it_has(policy: Policy, pairs: Pairs) -> None:
    """With a single flow step and no layer behind, a free MLP completes the head's whole effect."""
    head = Head("expert", 2, 1)
    one_step = load_policy(policy.source)
    one_step.spec = replace(one_step.spec, flow_steps=1)
    paths = patch_paths(one_step, pairs, [head], mlps="free")
    whole = patch(one_step, pairs, [Edit((head,))])
    np.testing.assert_allclose(paths.action, whole.effect, **CLOSE)


def test_direct_attribution_is_the_direct_path_to_first_order(policy: Policy) -> None:
    """Nearly equal observations: then the norm's scale, which attribution holds fixed, hardly answers."""
    clean = random_observations(1)[0]
    near = replace(clean, state=clean.state + np.float32(1e-2))
    pairs = Pairs((clean,), (near,))
    sides = Sides.of(policy, pairs, [0], "denoising", seed=0)
    parts = [direct(policy, batch, sides.noise) for batch in (sides.source, sides.base)]
    heads = policy.spec.live_heads(["expert"])
    total = (parts[0].action - parts[1].action).double()
    found = patch_paths(policy, pairs, heads).action
    linear = [
        float(
            ((parts[0].heads - parts[1].heads)[:, h.layer, h.index].double() * total).sum() / (total**2).sum()
        )
        for h in heads
    ]
    assert np.corrcoef(found, linear)[0, 1] > 0.9


def test_grouped_keys(tmp_path: Path, pairs: Pairs) -> None:
    grouped = load_policy(build_policy(tmp_path / "gqa", heads=15, kv_heads=5, layers=2))
    sender, receiver = Head("expert", 0, 14), Head("expert", 1, 7)
    found = patch_paths(grouped, pairs, [sender], [receiver])
    pushed, total = zip(
        *(Naive(grouped, pairs, at, True).path(sender, receiver, "qkv") for at in range(2)), strict=True
    )
    top = sum(float((p * d).sum()) for p, d in zip(pushed, total, strict=True))
    np.testing.assert_allclose(found.heads[0, 0], top / sum(float((d * d).sum()) for d in total), **CLOSE)


def test_it_resumes_and_mistakes_are_one_line(policy: Policy, pairs: Pairs, tmp_path: Path) -> None:
    head, other = Head("expert", 0, 0), Head("expert", 1, 1)
    whole = patch_paths(policy, pairs, [head], [other], block=1)
    first = patch_paths(policy, pairs, [head], [other], block=1, directory=tmp_path)
    next(tmp_path.rglob("000001.npy")).unlink()
    again = patch_paths(policy, pairs, [head], [other], block=1, directory=tmp_path)
    assert np.array_equal(again.indirect, whole.indirect)
    assert np.array_equal(first.indirect, whole.indirect)
    for attempt, message in (
        (lambda: patch_paths(policy, pairs, []), "at least one sender"),
        (
            lambda: patch_paths(policy, pairs, [Head("vision", 0, 0)]),
            "begin and end in the vlm or the expert",
        ),
        (lambda: patch_paths(policy, pairs, [Head("vlm", 2, 0)]), "is dead"),
        (lambda: patch_paths(policy, pairs, [head], via="x"), "via q, k or v"),
        (lambda: patch_paths(policy, Pairs(pairs.clean, pairs.clean), [head]), "no effect to explain"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)
