"""Promises of a policy that computes in float32 for a while: it is afterwards what it was, and never there twice."""

from pathlib import Path

import pytest
import torch
from random_policy import build_half
from torch.multiprocessing.reductions import StorageWeakRef

from interp.policies import load_policy
from interp.policies.precision import in_float32, is_rounded


def test_it_is_what_it_was_to_the_bit_even_after_an_error(tmp_path: Path) -> None:
    policy = load_policy(build_half(tmp_path / "half"))
    before = {name: tensor.clone() for name, tensor in policy.module.state_dict().items()}
    name = next(n.removesuffix(".weight") for n in before if n.endswith("self_attn.o_proj.weight"))
    other = torch.randn_like(before[f"{name}.weight"].float())

    def interrupted() -> None:
        with in_float32(policy, {name: other}):
            assert not is_rounded(policy)
            assert torch.equal(policy.module.get_parameter(f"{name}.weight"), other)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert is_rounded(policy)
    after = policy.module.state_dict()
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
    assert all(torch.equal(after[n], tensor) for n, tensor in before.items())


def test_memory_holds_the_weights_once(tmp_path: Path) -> None:
    policy = load_policy(build_half(tmp_path / "half"))
    stored = [
        StorageWeakRef(parameter.untyped_storage())
        for parameter in policy.module.parameters()
        if parameter.dtype == torch.bfloat16
    ]
    assert stored
    assert not any(storage.expired() for storage in stored)
    with in_float32(policy):
        assert all(storage.expired() for storage in stored)
