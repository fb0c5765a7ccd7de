"""Promises of policies in bfloat16: rounding is not taken for another computation, nor another for rounding; and what
was compared in float32 is afterwards what LeRobot has, to the bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot_kit import build
from lerobot_reference import LeRobot
from patched_gemma import OWN_GEMMA
from torch import Tensor

from interp.errors import UsageError
from interp.policies import load_policy
from interp.policies.lerobot.pi import PI
from interp.policies.lerobot.xvla import XVLA

Answer = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture(params=["pi0", "pi05", "xvla"])
def half(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """PI0 and PI0.5 keep some parts in float32. In bfloat16 this PI0.5's chunk is 6e-2 from LeRobot 0.6.1's own, of the
    largest action; in float32 2e-6."""
    if request.param != "xvla" and not OWN_GEMMA:
        pytest.skip("LeRobot 0.4.4 asks for a branch of transformers for PI0 and PI0.5")
    return build(request.param, tmp_path / request.param, dtype="bfloat16")


def test_one_in_bfloat16_loads_and_stays_as_lerobot_has_it(half: Path) -> None:
    ours, theirs = load_policy(half).module, LeRobot(half).policy
    kinds = {tensor.dtype for tensor in ours.parameters()}
    assert torch.bfloat16 in kinds
    assert (torch.float32 in kinds) == (half.name != "xvla")
    for part in ("named_parameters", "named_buffers"):
        own, expected = (dict(getattr(module, part)()) for module in (ours, theirs))
        assert own.keys() == expected.keys()
        for name, tensor in own.items():
            assert tensor.dtype == expected[name].dtype, name
            assert torch.equal(tensor, expected[name]), name
    assert ours.config.dtype == "bfloat16"


def answering(monkeypatch: pytest.MonkeyPatch, change: Callable[[Answer], Answer]) -> None:
    for kind in (PI, XVLA):
        monkeypatch.setattr(kind, "lerobots", change(kind.lerobots))


def test_a_hundredth_is_more_than_float32_can_round(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LeRobot's own chunk, one per cent larger: in bfloat16 nobody could tell."""

    def larger(answer: Answer) -> Answer:
        def changed(*given: Any, **named: Any) -> tuple[Tensor, Tensor]:
            noise, chunk = answer(*given, **named)
            return noise, 1.01 * chunk

        return changed

    answering(monkeypatch, larger)
    with pytest.raises(UsageError, match=r"LeRobot's own chunk differs .*\(at most 1e-04\)"):
        load_policy(half)


def test_a_gpu_without_room_for_float32_is_no_obstacle(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is then the processor's."""
    calls: list[set[torch.dtype]] = []

    def without_room(answer: Answer) -> Answer:
        def changed(self: Any, *given: Any, **named: Any) -> tuple[Tensor, Tensor]:
            calls.append({tensor.dtype for tensor in self.module.parameters()})
            if len(calls) == 1:
                raise torch.OutOfMemoryError("no room")
            return answer(self, *given, **named)

        return changed

    answering(monkeypatch, without_room)
    assert torch.bfloat16 in {tensor.dtype for tensor in load_policy(half).module.parameters()}
    assert calls == [{torch.float32}] * 2
