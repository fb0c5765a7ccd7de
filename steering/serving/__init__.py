"""Serving: a policy behind openpi's websocket protocol, so that a robot with `openpi-client` connects unchanged.

protocol.py   frames: msgpack with numpy arrays
layouts.py    the keys of a robot's observation (DROID, LIBERO, testbed) -> Observation
live.py       heads switched off while it serves
server.py     the server: one inference at a time, clear errors, a graceful stop
"""

from steering.serving.layouts import LAYOUTS, Reader
from steering.serving.live import LivePolicy, Means, mean_z
from steering.serving.server import PolicyServer, Settings, serve, switch_heads

__all__ = [
    "LAYOUTS",
    "LivePolicy",
    "Means",
    "PolicyServer",
    "Reader",
    "Settings",
    "mean_z",
    "serve",
    "switch_heads",
]
