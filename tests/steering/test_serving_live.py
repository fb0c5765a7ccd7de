"""Promises of switching heads off while a policy serves: exactly those heads, from the next sample on, and back."""

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import websockets
from serving_kit import as_testbed, robot, serving
from websockets.asyncio.server import ServerConnection
from websockets.sync.client import connect

from interp.demos import Demonstrations
from interp.edits import Edit, z_values
from interp.errors import UsageError
from interp.heads import Head
from interp.policies import Observation, Policy, load_policy
from interp.sweep import Stage
from steering.episode import noise_seed
from steering.serving import LivePolicy, mean_z, switch_heads

HEADS = (Head("expert", 0, 1), Head("expert", 2, 3), Head("vlm", 1, 0), Head("vision", 0, 1))


def bare(policy: Policy, observation: Observation, seed: int = 0) -> np.ndarray:
    return policy.sample(policy.batch([observation]), policy.noise(1, seed))[0].detach().numpy()


def test_a_head_that_is_off_writes_nothing(tiny_policy_dir: Path, observations: list[Observation]) -> None:
    """The same as a policy whose output projections have zeros in the heads' columns."""
    live, cut = LivePolicy(load_policy(tiny_policy_dir)), load_policy(tiny_policy_dir)
    with torch.no_grad():
        for head in HEADS:
            d_head = cut.spec.tower(head.tower).d_head
            columns = slice(head.index * d_head, (head.index + 1) * d_head)
            cut.out_projection(head.tower, head.layer).weight[:, columns] = 0
    live.switch(HEADS)
    for observation in observations:
        off = live.sample(observation, 3)
        np.testing.assert_allclose(off, bare(cut, observation, 3), rtol=0, atol=2e-6)
        assert np.abs(off - bare(live.policy, observation, 3)).max() > 1e-3


def test_off_and_on_again_leaves_no_trace(policy: Policy, observations: list[Observation]) -> None:
    live = LivePolicy(policy)
    before = live.sample(observations[0], 5)
    live.switch(HEADS)
    off = live.sample(observations[0], 5)
    assert np.array_equal(live.sample(observations[0], 5), off)
    live.switch(HEADS[:1])
    assert not np.array_equal(live.sample(observations[0], 5), off)
    live.switch(())
    assert np.array_equal(live.sample(observations[0], 5), before)
    assert np.array_equal(bare(policy, observations[0], 5), before)


def test_the_mean_is_the_mean(policy: Policy, demos: Demonstrations, observations: list[Observation]) -> None:
    """Of z over the frames one by one, padded words left out; and what is served is an ablation of interp."""
    means = mean_z(policy, demos, frames=4, seed=2)
    rows = [0, 7, 13, 20]
    seen = []
    for row in rows:
        batch = policy.batch([demos.observation(row)])
        noise = policy.noise(1, 2 + row)
        found = z_values(policy, policy.spec.towers, lambda b=batch, n=noise: policy.denoise(b, n))  # type: ignore[misc]
        seen.append((found, batch["attention_mask"][0].bool()))
    for name, mean in means.z.items():
        if name.startswith("vlm."):
            for token in range(mean.shape[1]):
                there = [z[name][0, token] for z, mask in seen if mask[token]]
                want = torch.stack(there).mean(0) if there else torch.zeros_like(mean[0, token])
                torch.testing.assert_close(mean[0, token], want, rtol=1e-5, atol=1e-6)
        else:
            want = torch.stack([z[name] for z, _ in seen]).mean(0)
            torch.testing.assert_close(mean, want, rtol=1e-5, atol=1e-6)

    live = LivePolicy(policy, means)
    live.switch(HEADS, "mean")
    stage = Stage(policy, policy.batch([observations[0]]))
    chunk = stage.denoise(policy.noise(1, 9), [Edit(HEADS)], means.z)[0, 0]
    np.testing.assert_allclose(
        live.sample(observations[0], 9), policy.unnormalise_actions(chunk).numpy(), rtol=0, atol=2e-6
    )
    live.switch(())


def test_a_prompt_longer_than_any_that_the_mean_is_of_is_refused_and_the_server_goes_on(
    tiny_policy_dir: Path, demos: Demonstrations, observations: list[Observation]
) -> None:
    """Its last words have no mean, and zero is another ablation."""
    policy = load_policy(tiny_policy_dir)
    brief = replace(demos, instructions=("press the button",) * len(demos.instructions))
    live = LivePolicy(policy, mean_z(policy, brief, frames=3))
    long = replace(observations[0], instruction="pick up the red cube")
    short = replace(observations[0], instruction="push the button")
    with serving(policy, live=live) as port:
        switch_heads(port, ["vlm.L1H0", "expert.L0H1"], "mean")
        with pytest.raises(
            RuntimeError, match="prompt is longer than that of every reference frame"
        ) as error:
            robot(port).infer(as_testbed(long))
        assert "Traceback" not in str(error.value)
        assert np.isfinite(robot(port).infer(as_testbed(short))["actions"]).all()
        for heads, ablation in ((["expert.L0H1"], "mean"), (["vlm.L1H0"], "zero")):  # these need no such mean
            switch_heads(port, heads, ablation)
            assert np.isfinite(robot(port).infer(as_testbed(long))["actions"]).all()


def test_what_cannot_be_switched_off_is_named_and_changes_nothing(policy: Policy) -> None:
    live = LivePolicy(policy)
    live.switch(HEADS[:1])
    dead = next(Head("vlm", layer, index) for layer, index in policy.spec.tower("vlm").dead)
    for heads, ablation, message in (
        ([Head("expert", 9, 0)], "zero", "expert.L9H0: tower expert has 3 layers"),
        ([dead], "zero", "is dead"),
        (HEADS[:1], "mean", "its mean is not known; give demonstrations, or use zero"),
        (HEADS[:1], "resample", "unknown ablation 'resample': known are zero, mean"),
    ):
        with pytest.raises(UsageError, match=message):
            live.switch(heads, ablation)  # type: ignore[arg-type]
    assert (live.off, live.ablation) == (HEADS[:1], "zero")
    live.switch(())


# over the wire


@pytest.fixture
def port(tiny_policy_dir: Path) -> Iterator[int]:
    with serving(load_policy(tiny_policy_dir)) as port:
        yield port


def test_heads_are_switched_while_a_robot_is_connected(
    port: int, policy: Policy, observations: list[Observation]
) -> None:
    client = robot(port)
    sent = {**as_testbed(observations[0]), "robosteer/step": 0}
    before = client.infer(sent)
    state = switch_heads(port, ["expert.L0H1", Head("vlm", 1, 0)])
    assert state == {"off": ["expert.L0H1", "vlm.L1H0"], "ablation": "zero"}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/heads") as answer:
        assert json.loads(answer.read()) == state
    during = client.infer(sent)
    assert during["heads_off"] == state["off"]
    live = LivePolicy(policy)
    live.switch([Head("expert", 0, 1), Head("vlm", 1, 0)])
    assert np.array_equal(during["actions"], live.sample(observations[0], noise_seed(0, 0)))
    live.switch(())
    assert robot(port).get_server_metadata()["heads"] == state
    assert switch_heads(port, [])["off"] == []
    assert np.array_equal(client.infer(sent)["actions"], before["actions"])


def test_a_wrong_switch_is_one_line_and_changes_nothing(port: int) -> None:
    switch_heads(port, ["expert.L1H1"])
    with pytest.raises(UsageError, match="layer 0 has 4 heads"):
        switch_heads(port, ["expert.L0H9"])
    with pytest.raises(UsageError, match="mean is not known"):
        switch_heads(port, ["expert.L0H0"], "mean")
    for wrong in ("off", "[]", '{"off": "expert.L0H0"}', b"\xff\xfe"):
        with connect(f"ws://127.0.0.1:{port}/heads") as control:
            control.recv()
            control.send(wrong)
            assert "send JSON such as" in str(control.recv())
            with pytest.raises(websockets.ConnectionClosed, match="1011"):
                control.recv()
    with pytest.raises(websockets.InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{port}/heads", additional_headers={"Origin": "http://127.0.0.1"})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/heads") as answer:
        assert json.loads(answer.read())["off"] == ["expert.L1H1"]


def test_heads_are_switched_from_this_machine_only(
    port: int, observations: list[Observation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client from elsewhere is refused; it may drive a robot."""
    monkeypatch.setattr(ServerConnection, "remote_address", ("10.0.0.5", 40_000))
    with connect(f"ws://127.0.0.1:{port}/heads") as control:
        assert control.recv() == "heads are switched from the server's own machine only"
        with pytest.raises(websockets.ConnectionClosed, match="1011"):
            control.recv()
    assert "heads_off" not in robot(port).infer(as_testbed(observations[0]))
