"""Promises of the server to robots: openpi-client connects unchanged, samples are the policy's own, and no client
can do harm to another."""

import asyncio
import math
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websockets
from openpi_client.action_chunk_broker import ActionChunkBroker
from serving_kit import as_testbed, frame_header, raw, read_to_end, robot, serving
from websockets.sync.client import connect

from interp.errors import UsageError
from interp.policies import Observation, Policy, load_policy
from steering.episode import noise_seed, rollout
from steering.serving import LivePolicy, PolicyServer, Reader, Settings
from steering.serving.protocol import pack

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def port(policy: Policy) -> Iterator[int]:
    with serving(policy, frame_mb=1) as port:
        yield port


def in_process(policy: Policy, observation: Observation, seed: int) -> np.ndarray:
    return policy.sample(policy.batch([observation]), policy.noise(1, seed))[0].detach().numpy()


def still_serves(port: int, policy: Policy, observation: Observation) -> None:
    actions = robot(port).infer(as_testbed(observation))["actions"]
    assert np.array_equal(actions, in_process(policy, observation, noise_seed(0, 0)))


# what a robot gets


def test_the_metadata_says_what_is_served(port: int, policy: Policy) -> None:
    metadata = robot(port).get_server_metadata()
    assert metadata["fingerprint"] == policy.fingerprint
    assert metadata["cameras"] == {"front": "images/front", "wrist": "images/wrist"}
    assert metadata["horizon"] == 6
    assert metadata["action_names"][-1] == "gripper"
    assert str(ROOT) not in str(metadata)
    assert "/tmp" not in str(metadata)


def test_the_actions_are_the_policys_own_in_robot_units(
    port: int, policy: Policy, observations: list[Observation]
) -> None:
    """The n-th sample of a connection has noise (seed, n), unless the client says which."""
    client = robot(port)
    for n, observation in enumerate(observations):
        reply = client.infer(as_testbed(observation))
        assert reply["actions"].shape == (6, 7)
        assert np.array_equal(reply["actions"], in_process(policy, observation, noise_seed(0, n)))
        assert 0 < reply["server_timing"]["infer_ms"] < 60_000
        assert ("prev_total_ms" in reply["server_timing"]) == (n > 0)
    told = {"robosteer/seed": 7, "robosteer/step": np.int64(12)}
    reply = client.infer({**as_testbed(observations[0]), **told})
    assert np.array_equal(reply["actions"], in_process(policy, observations[0], noise_seed(7, 12)))
    assert "heads_off" not in reply


def test_several_robots_at_once_each_get_their_own_answers(
    port: int, policy: Policy, observations: list[Observation]
) -> None:
    def drive(observation: Observation) -> list[np.ndarray]:
        client = robot(port)
        return [client.infer(as_testbed(observation))["actions"] for _ in range(4)]

    with ThreadPoolExecutor(3) as robots:
        answers = list(robots.map(drive, observations))
    for observation, chunks in zip(observations, answers, strict=True):
        for n, chunk in enumerate(chunks):
            assert np.array_equal(chunk, in_process(policy, observation, noise_seed(0, n)))


def test_health_and_other_addresses(port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
        assert (answer.status, answer.read()) == (200, b"OK\n")
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/")
    assert error.value.code == 426


def test_health_is_answered_while_the_network_computes(
    policy: Policy, observations: list[Observation], monkeypatch: pytest.MonkeyPatch
) -> None:
    live, started, go = LivePolicy(policy), threading.Event(), threading.Event()
    sample = live.sample

    def slow(*arguments: Any) -> np.ndarray:
        started.set()
        assert go.wait(20)
        return sample(*arguments)

    monkeypatch.setattr(live, "sample", slow)
    with serving(policy, live=live) as port, ThreadPoolExecutor(1) as robots:
        answer = robots.submit(robot(port).infer, as_testbed(observations[0]))
        assert started.wait(20)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=20) as health:
            assert health.read() == b"OK\n"
        go.set()
        assert answer.result(20)["actions"].shape == (6, 7)


def test_a_state_in_other_units_is_said_and_still_answered(
    port: int, policy: Policy, observations: list[Observation], caplog: pytest.LogCaptureFixture
) -> None:
    """Once a connection in the log, in every reply that it concerns, and openpi's broker hands it on."""
    usual, broken = observations[0], observations[0].state.copy()
    broken[[2, 5]] = np.rad2deg(broken[[2, 5]] + [2, 9])
    degrees = as_testbed(replace(usual, state=broken))
    client = robot(port)
    assert "state_far" not in client.infer(as_testbed(usual))
    for _ in range(2):
        reply = client.infer(degrees)
        statistics = policy.preprocessing.state  # type: ignore[attr-defined]
        expected = {
            policy.spec.state_names[dim]: {
                "value": broken[dim],
                "distance": (broken[dim] - statistics.mean[dim]) / statistics.std[dim],
            }
            for dim in (5, 2)
        }
        assert list(reply["state_far"]) == ["rz", "z"]
        for name, each in expected.items():
            assert reply["state_far"][name] == pytest.approx(each, rel=1e-5)
    (line,) = (record.getMessage() for record in caplog.records if "state rz is" in record.getMessage())
    assert f"state rz is {broken[5]:.6g}, " in line
    assert line.endswith("(2 dimensions are far)")
    assert ActionChunkBroker(robot(port), 2).infer(degrees)["state_far"] == reply["state_far"]
    assert "state_far" not in client.infer(as_testbed(usual))


# what a client can do wrong


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"\xc1garbage", "is not msgpack"),
        ("pick up the cube", "text frame: send the observation as msgpack"),
        (pack({}), "images/front is missing"),
        (pack({"images": {"front": np.zeros((4, 4, 3))}}), "images/wrist is missing"),
        (pack({"robosteer/seed": -1}), "robosteer/seed must be a whole number from 0, not '-1'"),
        (pack({"robosteer/step": True}), "robosteer/step must be a whole number"),
        (pack({f"{i}" * 9_000: i for i in range(40)}), "images/front is missing"),
    ],
)
def test_each_mistake_is_one_line_of_text_and_closes_only_its_own_connection(
    port: int, policy: Policy, observations: list[Observation], frame: bytes | str, message: str
) -> None:
    other = robot(port)
    with connect(f"ws://127.0.0.1:{port}", compression=None) as client:
        client.recv()
        client.send(frame)
        line = client.recv()
        assert isinstance(line, str)
        assert message in line
        assert "Traceback" not in line
        assert "\n" not in line
        assert len(line) <= 500
        with pytest.raises(websockets.ConnectionClosed) as closed:
            client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
    assert other.infer(as_testbed(observations[0]))["actions"].shape == (6, 7)


def test_openpi_client_raises_our_line(port: int, observations: list[Observation]) -> None:
    long = {**as_testbed(observations[0]), "instruction": "pick up the red cube " * 9}
    with pytest.raises(RuntimeError, match="the policy takes at most 9"):
        robot(port).infer(long)


def test_a_frame_above_the_limit_is_refused_before_it_is_read(
    port: int, policy: Policy, observations: list[Observation]
) -> None:
    """200 MB, of which not one byte was sent; and a real frame that is just too big."""
    with raw(port) as connection:
        connection.sendall(frame_header(200 * 2**20))
        assert (1009).to_bytes(2, "big") in read_to_end(connection)
    with pytest.raises(websockets.ConnectionClosed, match="1009"):
        robot(port).infer({**as_testbed(observations[0]), "extra": np.zeros(2**20, np.uint8)})
    still_serves(port, policy, observations[0])


def test_clients_that_vanish_are_no_ones_problem(
    port: int, policy: Policy, observations: list[Observation], caplog: pytest.LogCaptureFixture
) -> None:
    with raw(port) as connection:  # in the middle of a frame
        connection.sendall(frame_header(500_000) + b"\0" * 1000)
    with raw(port) as connection:  # with an observation under way
        body = pack(as_testbed(observations[0]))
        connection.sendall(b"\x82\xff" + len(body).to_bytes(8, "big") + b"\0" * 4 + body)
    with raw(port) as connection:  # not even websocket
        connection.sendall(b"\xff" * 1000)
        read_to_end(connection)
    with raw(port):
        pass
    still_serves(port, policy, observations[0])
    assert "Traceback" not in caplog.text


def test_nothing_is_computed_for_clients_that_have_left(
    policy: Policy, observations: list[Observation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three send and leave, two with a word and one without, while another's sample runs: the next robot waits for
    that one alone."""
    live, started, go, count = LivePolicy(policy), threading.Event(), threading.Event(), 0
    sample = live.sample

    def slow(*arguments: Any) -> np.ndarray:
        nonlocal count
        count += 1
        started.set()
        assert go.wait(20)
        return sample(*arguments)

    monkeypatch.setattr(live, "sample", slow)
    body = pack(as_testbed(observations[0]))
    with serving(policy, live=live) as port, ThreadPoolExecutor(2) as robots:
        first = robots.submit(robot(port).infer, as_testbed(observations[0]))
        assert started.wait(20)
        for _ in range(2):
            with connect(f"ws://127.0.0.1:{port}", compression=None) as client:
                client.recv()
                client.send(body)
        with raw(port) as connection:
            connection.sendall(b"\x82\xff" + len(body).to_bytes(8, "big") + b"\0" * 4 + body)
        last = robots.submit(robot(port).infer, as_testbed(observations[1]))
        threading.Timer(0.5, go.set).start()
        assert first.result(20)["actions"].shape == last.result(20)["actions"].shape == (6, 7)
    assert count == 2


def test_a_policy_that_fails_is_an_error_without_traceback(
    policy: Policy, observations: list[Observation], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LivePolicy(policy)
    with serving(policy, live=live) as port:
        with monkeypatch.context() as patch:
            patch.setattr(live, "sample", lambda *_: 1 / 0)
            with pytest.raises(RuntimeError, match="the policy failed: ZeroDivisionError: division by zero"):
                robot(port).infer(as_testbed(observations[0]))
            patch.setattr(live, "sample", lambda *_: np.full((6, 7), np.nan))
            with pytest.raises(RuntimeError, match="not finite: nothing was sent to the robot"):
                robot(port).infer(as_testbed(observations[0]))
        still_serves(port, policy, observations[0])


def test_web_pages_cannot_connect(port: int) -> None:
    with pytest.raises(websockets.InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{port}", additional_headers={"Origin": "https://evil.example"})


def test_settings_that_cannot_work_are_named(policy: Policy, port: int) -> None:
    for settings, message in (
        (Settings(port=port), f"cannot listen on 127.0.0.1:{port}: .*choose another --port"),
        (Settings(host="no.such.host.invalid", port=0), "cannot listen on no.such.host.invalid"),
    ):
        server = PolicyServer(LivePolicy(policy), Reader("testbed", policy.spec), settings)
        # In a thread: where browser tests ran before, Playwright's event loop still owns this one.
        with pytest.raises(UsageError, match=message), ThreadPoolExecutor(1) as alone:
            alone.submit(asyncio.run, server.run()).result()
    for wrong in (
        {"port": 70_000},
        {"frame_mb": 0},
        {"frame_mb": math.inf},
        {"frame_mb": math.nan},
        {"seed": -1},
    ):
        with pytest.raises(UsageError):
            Settings(**wrong)  # type: ignore[arg-type]


# stopping


def test_a_stop_lets_the_sample_under_way_arrive(
    policy: Policy, observations: list[Observation], monkeypatch: pytest.MonkeyPatch
) -> None:
    live, started, go = LivePolicy(policy), threading.Event(), threading.Event()
    sample = live.sample

    def slow(*arguments: Any) -> np.ndarray:
        started.set()
        assert go.wait(20)
        return sample(*arguments)

    monkeypatch.setattr(live, "sample", slow)
    with ThreadPoolExecutor(2) as robots:
        with serving(policy, live=live) as port:
            first = robots.submit(robot(port).infer, as_testbed(observations[0]))
            assert started.wait(20)
            second = robots.submit(robot(port).infer, as_testbed(observations[1]))
            idle = robot(port)
            threading.Timer(0.5, go.set).start()
        assert np.array_equal(
            first.result(20)["actions"], in_process(policy, observations[0], noise_seed(0, 0))
        )
        for left in (lambda: second.result(20), lambda: idle.infer({})):
            with pytest.raises(websockets.ConnectionClosed, match="1001"):
                left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_the_command(
    tiny_policy_dir: Path, observations: list[Observation], number: signal.Signals
) -> None:
    words = ["serve", "--policy", str(tiny_policy_dir), "--port", "0", "--layout", "testbed"]
    command = [sys.executable, str(ROOT / "robosteer.py"), *words]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        found = None
        while found is None and (line := child.stdout.readline()):
            found = re.search(r"ws://127\.0\.0\.1:(\d+)", line)
        assert found, child.stderr.read() if child.stderr else ""
        with connect(f"ws://127.0.0.1:{found[1]}", compression=None) as client:
            client.recv()
            client.send(pack(as_testbed(observations[0])))
            assert isinstance(client.recv(), bytes)
            child.send_signal(number)
            with pytest.raises(websockets.ConnectionClosed, match="1001"):
                client.recv()
        _, errors = child.communicate(timeout=30)
        assert child.returncode == 0, errors
        assert "Traceback" not in errors
    finally:
        child.kill()
        child.wait()


# a rollout through it


def test_a_served_rollout_ends_as_the_one_in_process() -> None:
    """tiny-pi0 on the tabletop, through openpi-client's own websocket client and chunk broker."""
    import gymnasium

    policy = load_policy("tiny-pi0")
    env = gymnasium.make("testbed.tabletop:robosteer/Tabletop-v0", disable_env_checker=True, task="press")
    execute, seeds = policy.spec.execute, range(5)
    outcomes = []
    with serving(policy) as port:
        for seed in seeds:
            broker = ActionChunkBroker(robot(port), execute)
            observation, _ = env.reset(seed=seed)
            steps, over, info = 0, False, {"success": False}
            while not over:
                reply = broker.infer({**observation, "robosteer/seed": seed, "robosteer/step": steps})
                assert "state_far" not in reply  # the robot that the policy was trained on
                observation, _, terminated, truncated, info = env.step(reply["actions"])
                steps, over = steps + 1, terminated or truncated
            outcomes.append((bool(info["success"]), steps))
    here = [rollout(policy, env, seed, execute=execute) for seed in seeds]
    env.close()
    assert outcomes == [(episode.success, episode.steps) for episode in here]
    assert any(success for success, _ in outcomes)
