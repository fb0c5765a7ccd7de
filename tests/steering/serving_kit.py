"""A server in a thread of the test's process, and raw sockets for clients that keep to no protocol."""

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from interp.policies import Observation, Policy
from steering.serving import LivePolicy, PolicyServer, Reader, Settings, serve


@contextlib.contextmanager
def serving(
    policy: Policy, layout: str = "testbed", live: LivePolicy | None = None, **settings: Any
) -> Iterator[int]:
    """The port of a server of this policy; stopped gracefully at the end."""
    server = PolicyServer(
        live or LivePolicy(policy), Reader(layout, policy.spec), Settings(port=0, **settings)
    )
    ports: list[int] = []
    listening = threading.Event()

    def ready(port: int) -> None:
        ports.append(port)
        listening.set()

    thread = threading.Thread(target=serve, args=(server, ready))
    thread.start()
    try:
        assert listening.wait(20)
        yield ports[0]
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


def robot(port: int) -> WebsocketClientPolicy:
    return WebsocketClientPolicy("127.0.0.1", port)


def as_testbed(observation: Observation) -> dict[str, Any]:
    """What the tabletop's observation looks like before it is an Observation."""
    return {
        "images": dict(observation.images),
        "state": np.asarray(observation.state),
        "instruction": observation.instruction,
    }


def raw(port: int) -> socket.socket:
    """A socket after the websocket handshake, written by hand; the metadata frame is still to be read."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(1)
    assert b"101" in answer.split(b"\r\n")[0]
    return connection


def frame_header(length: int) -> bytes:
    """The start of a masked binary frame that promises `length` bytes."""
    return b"\x82\xff" + struct.pack("!Q", length) + os.urandom(4)


def read_to_end(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while more := connection.recv(65536):
            data += more
    return data
