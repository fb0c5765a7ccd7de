"""Policies of LeRobot: SmolVLA, PI0, PI0.5 and X-VLA, in LeRobot's own classes.

policy.py is what they share, architecture.py says what each of them adds, files.py reads and writes their directories,
parity.py compares with LeRobot's own code, statistics.py and relative.py see to what its processors compute by.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import UsageError

if TYPE_CHECKING:
    import torch

    from interp.policies.lerobot.policy import LeRobotPolicy

REFUSED = {
    "act": "its attention is nn.MultiheadAttention, which never calls its output projection: no head can be read",
    "diffusion": "it is a convolutional U-Net, which has no attention heads",
    "vqbet": "it predicts codes of a codebook, not a flow whose heads could be compared",
    "tdmpc": "it is a world model without attention heads",
    "sac": "it is an actor-critic without attention heads",
    "pi0_fast": "it writes actions as tokens, one after the other: there is no flow to attribute",
    "groot": "its vlm and its action head are not reachable module by module in LeRobot 0.4",
    "wall_x": "its experts are mixed inside one kernel: no output projection belongs to a head",
}


def load(directory: Path, kind: str, device: "str | torch.device", source: str) -> "LeRobotPolicy":
    """The policy of a LeRobot directory of that type."""
    if kind in REFUSED:
        raise UsageError(f"{directory} holds LeRobot's {kind}, which cannot be steered: {REFUSED[kind]}")
    families = _architectures()
    if kind not in families:
        known = ", ".join(sorted(families))
        raise UsageError(f"{directory} holds LeRobot's {kind}: known of LeRobot are {known}")
    if not installed():
        raise UsageError(
            f"{directory} is a LeRobot policy ({kind}), and LeRobot is not installed here: "
            "use the environment of `make setup-lerobot`, or pip install 'robosteer[lerobot]'"
        )
    from interp.policies.lerobot import relative
    from interp.policies.lerobot.files import (
        read_cameras,
        read_config,
        read_network,
        read_processors,
        read_rate,
    )
    from interp.policies.lerobot.policy import LeRobotPolicy
    from interp.policies.lerobot.statistics import check
    from interp.runs import read_json

    config = read_config(directory)
    beside = directory / "robosteer.json"
    deltas = beside.is_file() and any(read_json(beside).get("delta_actions", ()))
    if deltas and not getattr(config, "use_relative_actions", False):
        raise UsageError(
            f"{beside}: delta_actions is for pi0 in the core environment; LeRobot, which is installed here, would run "
            f"this {kind} without adding the state: use an environment without LeRobot, or take delta_actions out"
        )
    cameras = read_cameras(directory)
    pre, post = read_processors(directory, config)
    check(pre, post, source)
    relative.check(config, pre, post, source)
    module = read_network(directory, config, device)
    return LeRobotPolicy(families[kind](module), pre, post, source, cameras, read_rate(directory))


def installed() -> bool:
    """Whether LeRobot itself is there: to Python, any folder of that name is a package, but one without an origin."""
    found = find_spec("lerobot")
    return found is not None and found.origin is not None


def _architectures() -> dict[str, Callable[[Any], Any]]:
    """Importing one of them imports LeRobot."""

    def smolvla(module: Any) -> Any:
        from interp.policies.lerobot.smolvla import SmolVLA

        return SmolVLA(module)

    def pi(module: Any) -> Any:
        from interp.policies.lerobot.pi import PI

        return PI(module)

    def xvla(module: Any) -> Any:
        from interp.policies.lerobot.xvla import XVLA

        return XVLA(module)

    return {"smolvla": smolvla, "pi0": pi, "pi05": pi, "xvla": xvla}
