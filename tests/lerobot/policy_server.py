"""LeRobot's asynchronous policy server, and what a robot says to it."""

import pickle
import socket
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from lerobot.async_inference.configs import PolicyServerConfig
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import send_bytes_in_chunks
from torch import Tensor

from interp.policies import Observation

Server = tuple[services_pb2_grpc.AsyncInferenceStub, Any]
"""A robot's connection to the server, and the server."""


@contextmanager
def running(directory: Path) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(directory)  # when it is imported, it makes a directory for its log
        from lerobot.async_inference.policy_server import PolicyServer

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        serving = PolicyServer(PolicyServerConfig(host="127.0.0.1", port=port))
        listening = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        services_pb2_grpc.add_AsyncInferenceServicer_to_server(serving, listening)
        listening.add_insecure_port(f"127.0.0.1:{port}")
        listening.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield services_pb2_grpc.AsyncInferenceStub(channel), serving
        serving.stop()
        listening.stop(grace=None).wait()


def instruct(server: Server, kind: str, directory: Path, observation: Observation, horizon: int) -> None:
    """The robot names the policy that it wants, and what it will send."""
    robot, _ = server
    features: dict[str, Any] = {
        f"observation.images.{camera}": {
            "dtype": "image", "shape": image.shape, "names": ["height", "width", "channels"],
        }
        for camera, image in observation.images.items()
    }  # fmt: skip
    names = _joints(observation)
    features["observation.state"] = {"dtype": "float32", "shape": (len(names),), "names": names}
    robot.Ready(services_pb2.Empty())
    asked = RemotePolicyConfig(kind, str(directory), features, horizon)
    robot.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(asked)))


def ask(server: Server, observation: Observation, noise: Tensor) -> Tensor:
    """The chunk that the server answers with, from this noise: actions in the robot's units."""
    robot, serving = server
    raw: dict[str, Any] = dict(zip(_joints(observation), observation.state.tolist(), strict=True))
    raw |= {**observation.images, "task": observation.instruction}
    sent = pickle.dumps(TimedObservation(timestamp=0.0, timestep=0, observation=raw, must_go=True))
    robot.SendObservations(send_bytes_in_chunks(sent, services_pb2.Observation, silent=True))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(serving.policy.model, "sample_noise", lambda shape, device: noise.clone())
        answer = pickle.loads(robot.GetActions(services_pb2.Empty()).data)
    return torch.stack([action.get_action() for action in answer])


def _joints(observation: Observation) -> list[str]:
    return [f"joint_{at}" for at in range(len(observation.state))]
