"""The server: openpi's websocket protocol around one policy.

    server -> client   msgpack metadata, once
    client -> server   msgpack observation (layouts.py), any number of times, each followed by
    server -> client   msgpack {"actions": [horizon, action] in robot units, "server_timing": {...}}
                       or, when something is wrong, one line of text, and the connection closes with 1011

A state far from what the policy was trained on (interp/units.py) is sampled from, but said: in the log once a
connection, and in each such reply as `state_far`, {dimension: {"value": in robot units, "distance": signed, in standard
deviations}}, plain numbers that clients may ignore.

`GET /healthz` answers OK. A frame above the limit closes the connection with 1009 before it is read, whatever else
is wrong with a client ends with its connection: the server and all other clients go on. One inference runs at a
time, in the order of arrival. SIGINT or SIGTERM lets the running sample reach its client, closes every connection
with 1001 and returns.

Noise. The n-th sample of a connection draws its flow noise from (seed of the server, n), so a robot that does the
same sees the same actions. A client that wants the noise of a rollout (steering/episode.py) sends its episode's
seed and step with the observation, as `robosteer/seed` and `robosteer/step`.

Heads. `/heads` on the same port tells, and over a websocket from this very machine changes, which heads are off:
text frames of JSON, `{"off": ["expert.L3H5"], "ablation": "zero"}` in and the new state out (`switch_heads`).
Connections that a browser opens for a web page are refused, so that no page can reach a robot.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
import websockets
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as listen
from websockets.http11 import Request, Response
from websockets.protocol import State

from interp.errors import UsageError
from interp.heads import Head
from interp.seeds import check_seed
from interp.units import FarState, far_from_training
from steering.card import base_name
from steering.episode import noise_seed
from steering.serving.layouts import Reader
from steering.serving.live import LivePolicy
from steering.serving.protocol import pack, unpack

SEED, STEP = "robosteer/seed", "robosteer/step"
WRONG = 1011
"""Websocket close code "internal error": openpi closes with it after an error text, whosever fault it was."""
STOPPED = (1001, "the server stops")
LONGEST_LINE = 500
"""Characters of an error text: it may quote what the client sent."""

log = logging.getLogger("robosteer.serve")


@dataclass(frozen=True)
class Settings:
    """Where to listen, and what to accept. Port 0 takes a free one."""

    host: str = "127.0.0.1"
    port: int = 8000
    seed: int = 0
    frame_mb: float = 32
    """Largest frame in MB (2^20 bytes): a DROID observation takes 0.3."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port {self.port}: ports are 0 to 65535")
        if not 0 < self.frame_mb * 2**20 < math.inf:
            raise UsageError(f"frame limit {self.frame_mb} MB: it must be above zero and finite")
        check_seed(self.seed)


class PolicyServer:
    """Serves one policy. `run` returns after `stop` was called, or with an error if it cannot listen."""

    def __init__(self, live: LivePolicy, reader: Reader, settings: Settings | None = None) -> None:
        self.live, self.reader, self.settings = live, reader, settings or Settings()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._turn = asyncio.Lock()  # who holds it samples and sends; first come, first served
        # A thread of its own: the loop answers health checks and pings while the network computes.
        self._thread = ThreadPoolExecutor(1, "inference")

    async def run(self, ready: Callable[[int], None] = lambda port: None) -> None:
        """Listen until `stop`. `ready` is told the port once clients can connect."""
        self._loop = asyncio.get_running_loop()
        where = f"{self.settings.host}:{self.settings.port}"
        try:
            server = await listen(
                self._client,
                self.settings.host,
                self.settings.port,
                compression=None,
                max_size=int(self.settings.frame_mb * 2**20),
                max_queue=1,  # frames waiting a client: a robot asks one thing at a time
                origins=[None],
                process_request=self._plain_http,
                logger=_quiet_logger(),
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(
                f"cannot listen on {where}: {reason}; choose another --port or --host"
            ) from error
        try:
            ready(next(iter(server.sockets)).getsockname()[1])
            await self._stopping.wait()
            await self._close(server)
        finally:
            server.close()
            self._thread.shutdown()

    def stop(self) -> None:
        """End `run`, from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)

    async def _close(self, server: Server) -> None:
        server.close(close_connections=False)  # nobody new; waits for all who are here
        async with self._turn:  # the sample under way is done
            leaving = [client.close(*STOPPED) for client in server.connections]
        await asyncio.gather(*leaving, return_exceptions=True)
        await server.wait_closed()

    # ---- who connects

    async def _client(self, client: ServerConnection) -> None:
        """The life of a connection. Nothing that happens here reaches the server or another client."""
        assert client.request is not None
        name = _name(client)
        control = client.request.path == "/heads"
        log.info("%s connected", name)
        try:
            try:
                await (self._control(client) if control else self._robot(client, name))
            except UsageError as error:
                await self._refuse(client, name, str(error))
            except websockets.ConnectionClosed:
                raise
            except Exception as error:
                log.exception("inference failed for %s", name)
                first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
                await self._refuse(client, name, f"the policy failed: {type(error).__name__}: {first}")
        except websockets.ConnectionClosed as closed:
            log.warning("%s: connection lost: %s", name, closed)
        else:
            log.info("%s left", name)

    async def _refuse(self, client: ServerConnection, name: str, message: str) -> None:
        line = " ".join(message[:LONGEST_LINE].split())
        log.warning("%s: %s", name, line)
        await client.send(line)
        await client.close(WRONG)

    async def _robot(self, client: ServerConnection, name: str) -> None:
        await client.send(pack(self.metadata()))
        count, previous, warned = 0, None, False
        async for frame in client:
            began = time.perf_counter()
            if isinstance(frame, str):
                raise UsageError("text frame: send the observation as msgpack, in a binary frame")
            async with self._turn:
                if self._stopping.is_set():
                    await client.close(*STOPPED)
                    return
                if client.state is not State.OPEN:  # it left while it waited; the loop's end says how
                    continue
                waited = time.perf_counter() - began
                reply, far = await self._in_thread(self._infer, frame, count)
            if far and not warned:
                others = f" ({len(far)} dimensions are far)" if len(far) > 1 else ""
                log.warning("%s: %s%s", name, far[0], others)
                warned = True
            timing = reply["server_timing"]
            timing["wait_ms"] = waited * 1e3
            if previous is not None:
                timing["prev_total_ms"] = previous * 1e3
            # Not within the turn: a client that does not read must hold up nobody else. The frame is handed to the
            # socket before anybody waiting for the turn runs, so a stopping server closes behind it.
            await client.send(pack(reply))
            count, previous = count + 1, time.perf_counter() - began

    def _infer(self, frame: bytes, count: int) -> tuple[dict[str, Any], list[FarState]]:
        message = unpack(frame)
        began = time.perf_counter()
        seed, step = _whole(message, SEED, self.settings.seed), _whole(message, STEP, count)
        observation = self.reader(message)
        actions = self.live.sample(observation, noise_seed(seed, step))
        if not np.isfinite(actions).all():
            raise UsageError(
                "the policy answers with numbers that are not finite: nothing was sent to the robot"
            )
        far = far_from_training(self.live.policy, observation.state)
        reply = {"actions": actions, "server_timing": {"infer_ms": (time.perf_counter() - began) * 1e3}}
        if self.live.off:
            reply["heads_off"] = [str(head) for head in self.live.off]
        if far:
            reply["state_far"] = {each.name: {"value": each.value, "distance": each.distance} for each in far}
        return reply, far

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def metadata(self) -> dict[str, Any]:
        """What a client is told first. openpi leaves the contents to the policy."""
        policy = self.live.policy
        spec = policy.spec
        return {
            "policy": base_name(policy.source),
            "fingerprint": policy.fingerprint,
            "layout": self.reader.layout.name,
            "cameras": self.reader.cameras,
            "state": dict(self.reader.layout.state),
            "action_names": list(spec.action_names),
            "horizon": spec.horizon,
            "execute": spec.execute,
            "fps": spec.fps,
            "seed": self.settings.seed,
            "frame_mb": self.settings.frame_mb,
            "heads": self.heads(),
        }

    # ---- which heads are off

    def heads(self) -> dict[str, Any]:
        return {"off": [str(head) for head in self.live.off], "ablation": self.live.ablation}

    async def _control(self, client: ServerConnection) -> None:
        if not _is_local(client):
            raise UsageError("heads are switched from the server's own machine only")
        await client.send(json.dumps(self.heads()))
        async for frame in client:
            off, ablation = _asked_heads(frame)
            async with self._turn:
                await self._in_thread(self.live.switch, off, ablation or self.live.ablation)
            state = self.heads()
            log.warning("heads off: %s (%s)", ", ".join(state["off"]) or "none", state["ablation"])
            await client.send(json.dumps(state))

    # ---- plain HTTP

    def _plain_http(self, client: ServerConnection, request: Request) -> Response | None:
        if "Upgrade" in request.headers:
            return None
        if request.path == "/healthz":
            return client.respond(HTTPStatus.OK, "OK\n")
        if request.path == "/heads":
            return client.respond(HTTPStatus.OK, json.dumps(self.heads()) + "\n")
        return None  # websockets answers that this is a websocket server


def serve(server: PolicyServer, ready: Callable[[int], None] = lambda port: None) -> None:
    """Run the server in this thread until SIGINT or SIGTERM, or until somebody calls `server.stop`."""

    numbers = (signal.SIGINT, signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()  # signals belong to it

    def stop() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        server.stop()

    async def run() -> None:
        for number in numbers if main else ():
            asyncio.get_running_loop().add_signal_handler(number, stop)
        await server.run(ready)

    earlier = {number: signal.getsignal(number) for number in numbers} if main else {}
    try:
        asyncio.run(run())
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def switch_heads(
    port: int, heads: Iterable[Head | str], ablation: str | None = None, host: str = "127.0.0.1"
) -> dict[str, Any]:
    """Tell a running server which heads are off from the next sample on; none switches all on again."""
    from websockets.sync.client import connect

    asked = {"off": [str(head) for head in heads], **({"ablation": ablation} if ablation else {})}
    with connect(f"ws://{host}:{port}/heads", compression=None) as control:
        control.recv()
        control.send(json.dumps(asked))
        try:
            return dict(json.loads(control.recv()))
        except json.JSONDecodeError as error:  # a line of text that says what is wrong
            raise UsageError(error.doc) from error


def _asked_heads(frame: str | bytes) -> tuple[list[Head], Any]:
    try:
        asked = json.loads(frame)
        off = asked["off"]
        if not isinstance(off, list):
            raise TypeError
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError('send JSON such as {"off": ["expert.L3H5"], "ablation": "zero"}') from error
    return [Head.parse(str(head)) for head in off], asked.get("ablation")


def _whole(message: dict[str, Any], key: str, default: int) -> int:
    value = message.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= int(value) < 2**63:
        raise UsageError(f"{key} must be a whole number from 0, not {str(value)[:40]!r}")
    return int(value)


def _name(client: ServerConnection) -> str:
    address = client.remote_address
    return f"{address[0]}:{address[1]}" if address else "client"


def _is_local(client: ServerConnection) -> bool:
    address = client.remote_address
    return bool(address) and ipaddress.ip_address(address[0].split("%")[0]).is_loopback


def _quiet_logger() -> logging.Logger:
    """websockets logs a traceback when a client misbehaves; one line is enough."""
    logger = logging.getLogger("robosteer.serve.websockets")
    if not logger.filters:
        logger.addFilter(_one_line)
    logger.setLevel(logging.WARNING)
    return logger


def _one_line(record: logging.LogRecord) -> bool:
    if record.exc_info:
        reason = record.exc_info[1]
        cause = reason.__cause__ if reason is not None and reason.__cause__ is not None else reason
        record.msg, record.args = f"{record.getMessage()}: {type(reason).__name__}: {cause}", ()
        record.exc_info, record.exc_text = None, None
    return True
