"""What a recipe would train, before anything is trained: `steering.recipes.adapt` on a policy without weights.

The network is built on PyTorch's meta device from config.json: shapes without numbers, so that a policy of gigabytes is
counted in milliseconds and the count is made by the very code that will train. Only transformers' pi0 family is known,
and nothing is loaded from the hub for it: else the count appears when the job has begun.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import UsageError
from interp.heads import Head
from interp.policies import NotHere, policy_directory
from interp.runs import Run, read_json
from interp.scores import HeadScores
from steering.headset import HeadSet
from steering.recipe import Recipe

if TYPE_CHECKING:
    from app.skeleton import Skeleton

_ADAPTING = threading.Lock()  # adapting changes the network in place, and taking it off changes it back


class Uncounted(UsageError):
    """The count is not known before the job begins, which is no reason not to begin it."""


@dataclass(frozen=True)
class Count:
    """Trainable parameters by group, out of `total` in the policy; `notes` say what is left out."""

    groups: Mapping[str, int]
    total: int
    notes: tuple[str, ...] = ()

    @property
    def trained(self) -> int:
        return sum(self.groups.values())


def count(
    run: Run,
    recipe: Recipe,
    heads: HeadSet | None,
    scores: HeadScores | None = None,
    others: Sequence[HeadScores] = (),
    seed: int = 0,
) -> Count:
    """A UsageError says what the recipe lacks, in the words in which the job would say it; Uncounted, that the policy
    is of another family, or not on this machine yet."""
    try:
        directory = policy_directory(str(run.info["policy"]["source"]), local_files_only=True)
    except NotHere as error:
        raise Uncounted(f"{error}: its parameters are counted when the job begins, which loads it") from error
    from steering.recipes import adapt  # torch takes seconds to import; only counting needs it

    with _ADAPTING:
        policy = _skeleton(directory, run)
        adaptation = adapt(policy, recipe, heads, scores, seed, others)
        adaptation.remove()
    total = sum(p.numel() for p in policy.module.parameters())
    return Count(dict(adaptation.groups), total, tuple(adaptation.notes))


def head_set(run: Run, chosen: Sequence[str]) -> HeadSet | None:
    """The heads chosen on the screen as a head set of the run; None if there are none."""
    if not chosen:
        return None
    heads = HeadSet(
        tuple(map(Head.parse, chosen)), policy=run.policy, method="chosen in the dashboard", data=run.data
    )
    heads.check(run.spec, run.policy, source="the selection")
    return heads


def _skeleton(directory: Path, run: Run) -> Skeleton:
    if not (directory / "config.json").is_file():
        raise UsageError(f"the run's policy {directory} is not here: its parameters cannot be counted")
    family = read_json(directory / "config.json").get("model_type")
    if family != "pi0":
        raise Uncounted(
            f"the parameters of a policy of {family or 'this'} family are counted when its job begins"
        )
    return _built(directory, run.path, run.policy)


@lru_cache(maxsize=4)
def _built(directory: Path, run: Path, fingerprint: str) -> Skeleton:
    from app.skeleton import Skeleton  # transformers takes seconds to import; only counting needs it

    return Skeleton(directory, Run.open(run).spec, fingerprint)
