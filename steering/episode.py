"""One rollout: a policy acts in an environment until it succeeds, fails or runs out of time.

The environment is any `gymnasium.Env` whose observation holds `images`, `state` and `instruction` and whose `info`
says `success` and, if it knows, the reason of a `failure`. Everything random follows from the episode's seed: the
environment is reset with it, and the flow-matching noise of step t is a function of (seed, t) alone.

Axis names: horizon (actions of one chunk), action.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from jaxtyping import Float

from interp.policies import Policy
from steering.fit import seen_by


@dataclass(frozen=True)
class Episode:
    """One rollout. `failure` says why it failed, in the environment's words, and is None on success."""

    seed: int
    success: bool
    steps: int
    failure: str | None = None


@dataclass(frozen=True)
class Condition:
    """What is rolled out: a task, and what the environment's `reset` is asked for besides the seed."""

    task: str
    options: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Advances(Protocol):
    """An environment whose `step` is `advance`, which renders nothing, and then `observe`.

    Such an environment counts its own steps: `advance` goes past gymnasium's wrappers.
    """

    def advance(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]: ...

    def observe(self) -> dict[str, Any]: ...


Watch = Callable[[Float[np.ndarray, " action"] | None, bool], None]
"""Called after the reset (with None) and after every action; the flag says that the policy has just looked."""


def rollout(
    policy: Policy,
    env: gymnasium.Env[Any, Any],
    seed: int,
    *,
    execute: int,
    options: Mapping[str, Any] | None = None,
    watch: Watch | None = None,
    cameras: Mapping[str, str] | None = None,
) -> Episode:
    """One episode in this process: sample a chunk, run its first `execute` actions, look again.

    `cameras` names the environment's image for each camera of the policy (steering/fit.py), if the names differ. Where
    the environment can (`Advances`), only what the policy looks at is rendered.
    """
    observation, info = env.reset(seed=seed, options=dict(options) if options else None)
    act, look = _hands_and_eyes(env)
    steps, over, truncated = 0, False, False
    if watch is not None:
        watch(None, False)
    while not over:
        if steps:
            observation = look()
        noise = policy.noise(1, seed=noise_seed(seed, steps))
        chunk = policy.sample(policy.batch([seen_by(observation, cameras)]), noise)[0, :execute].cpu().numpy()
        for i, action in enumerate(chunk):
            _, terminated, truncated, info = act(action)
            steps, over = steps + 1, terminated or truncated
            if watch is not None:
                watch(action, i == 0)
            if over:
                break
    success = bool(info["success"])
    reason = info.get("failure") or ("time ran out" if truncated else "unknown")
    return Episode(seed, success, steps, None if success else reason)


def noise_seed(seed: int, step: int) -> int:
    """A seed for the noise of one step of one episode, unrelated between neighbours."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def _hands_and_eyes(
    env: gymnasium.Env[Any, Any],
) -> tuple[Callable[[np.ndarray], tuple[Any, bool, bool, dict[str, Any]]], Callable[[], dict[str, Any]]]:
    """How to act, and how to see what the last action led to."""
    inner = env.unwrapped
    if isinstance(inner, Advances):
        return inner.advance, inner.observe
    seen: list[dict[str, Any]] = [{}]

    def act(action: np.ndarray) -> tuple[Any, bool, bool, dict[str, Any]]:
        seen[0], reward, terminated, truncated, info = env.step(action)
        return reward, terminated, truncated, info

    return act, lambda: seen[0]
