"""The verb that serves. See interp/verbs.py for what a verb is."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.seeds import takes_seed
from interp.verbs import open_demos, open_policy, takes_device
from steering.options import named_values

if TYPE_CHECKING:
    from interp.heads import Head
    from interp.policies import Policy


def serve(a: Namespace) -> None:
    """Let robots with openpi-client use a policy over a websocket, with heads switched off if wanted."""
    import logging

    from steering.serving import LivePolicy, PolicyServer, Reader, Settings, mean_z
    from steering.serving import serve as run_server

    settings = Settings(a.host, a.port, seed=a.seed, frame_mb=a.frame_mb)
    policy = open_policy(a.policy, a.device)
    cameras = {camera: str(key) for camera, key in named_values("--camera", a.camera, "front=top").items()}
    reader = Reader(a.layout, policy.spec, cameras, a.prompt)
    live = LivePolicy(policy, mean_z(policy, open_demos(a.demos), seed=a.seed) if a.demos else None)
    live.switch(_named_heads(a.heads, policy) if a.heads else (), a.ablate)
    logging.getLogger("robosteer.serve").setLevel(logging.INFO)

    def ready(port: int) -> None:
        off = f", {len(live.off)} heads off ({live.ablation})" if live.off else ""
        print(f"ws://{a.host}:{port}  {a.policy} for {a.layout} robots{off}; Ctrl-C stops", flush=True)

    run_server(PolicyServer(live, reader, settings), ready)


def serve_takes(p: ArgumentParser) -> None:
    p.add_argument("--policy", default="tiny-pi0", help="directory, hub id or tiny-pi0")
    p.add_argument(
        "--layout",
        default="testbed",
        help="keys that the robot sends: droid, libero, testbed, or a JSON file of your own (docs/serve.md)",
    )
    p.add_argument(
        "--camera",
        nargs="+",
        default=[],
        metavar="CAMERA=KEY",
        help="key of a camera, where names do not tell",
    )
    p.add_argument("--prompt", help="instruction for robots that send none")
    p.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; there is no password")
    p.add_argument("--port", type=int, default=8000, help="of the websocket")
    p.add_argument("--heads", help="heads to switch off: a heads file, or expert.L3H5,expert.L4H0")
    p.add_argument("--ablate", choices=("zero", "mean"), default="zero", help="what takes a head's place")
    p.add_argument("--demos", help="demonstrations that --ablate mean averages over")
    takes_device(p)
    p.add_argument("--frame-mb", type=float, default=32, help="largest frame that is accepted")
    takes_seed(p, "of the flow noise")


def _named_heads(text: str, policy: Policy) -> Sequence[Head]:
    """A heads file, or heads written out."""
    from interp.heads import Head
    from steering.headset import is_heads_file, read_heads

    if is_heads_file(text):
        return read_heads(text, policy).heads
    return [Head.parse(part) for part in text.split(",")]
