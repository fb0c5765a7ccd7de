"""Export: a finetuned policy as files that others can use, proven before they are called done.

Two forms, each with a card (steering/card.py):

merged   a plain checkpoint that `load_policy` and transformers' `from_pretrained` read, nothing of ours in it
peft     a standard PEFT adapter for the base (steering/adapter.py), as small as what was trained

Either is written beside its destination, reloaded in a fresh process, its action chunks on real frames are
compared with the policy in memory, and only then is it renamed into place.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from interp.demos import Demonstrations
from interp.errors import UsageError, unknown
from interp.heads import Head
from interp.policies import Observation, Policy, load_policy
from interp.runs import read_json, write_atomic, write_json
from steering import adapter
from steering.adapter import Adapter, LowRank, kept_factors
from steering.card import CARD, README, base_name, make_card, readme
from steering.finetune import CHECKPOINT, POLICY, SUMMARY
from steering.slices import SlicedLinear
from steering.verify import ask_fresh_process, chunks_of

Form = Literal["merged", "peft"]
TOLERANCE = 1e-6
"""Largest difference of an action, in robot units, between the policy in memory and its export; where actions exceed
1, relative to the largest of them."""
FRAMES = 8
"""Frames of the demonstrations that an exported training is verified on."""


class ExportError(RuntimeError):
    """The exported files do not do what the policy does; nothing was left at the destination."""


@dataclass(frozen=True)
class Exported:
    """A verified export. `fingerprint` is that of the policy it acts as; `difference` is the largest absolute
    difference of any action on `frames` frames."""

    directory: Path
    fingerprint: str
    frames: int
    difference: float


def export(
    policy: Policy,
    directory: str | Path,
    observations: Sequence[Observation],
    provenance: Mapping[str, Any],
    *,
    seed: int = 0,
    overwrite: bool = False,
) -> Exported:
    """Write `policy`, merged, to `directory`, verified on `observations` (a few real frames).

    `provenance` goes into the card: the summary of a training (`Finetuned.summary`), with the JSON of its
    results under `results` if there are any.
    """
    _check_merged(policy)

    def write(fresh: Path) -> str | None:
        policy.save(fresh)
        return None

    return _export("merged", policy, Path(directory), write, observations, provenance, seed, overwrite)


def export_adapter(
    base: Policy,
    policy: Policy,
    directory: str | Path,
    observations: Sequence[Observation],
    provenance: Mapping[str, Any],
    *,
    kept: Mapping[str, LowRank] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Exported:
    """Write what turns `base` into `policy` (merged) to `directory`, as a PEFT adapter, verified on `observations`.

    `kept` are the low-rank factors of the training (`steering.adapter.kept_factors`), if it had any. The fresh
    process loads the base again from where it came: `base.source`.
    """
    _check_merged(policy)
    found = Adapter.between(base, policy, kept)
    provenance = {**provenance, "base": {"source": base.source, "fingerprint": base.fingerprint}}

    def write(fresh: Path) -> str | None:
        fresh.mkdir()
        found.save(fresh, _beside(base, fresh))
        return base.source

    return _export("peft", policy, Path(directory), write, observations, provenance, seed, overwrite)


def export_job(
    job: str | Path,
    directory: str | Path,
    demos: Demonstrations,
    *,
    form: Form = "merged",
    base: str | Path | None = None,
    results: Sequence[Mapping[str, Any]] = (),
    seed: int = 0,
    overwrite: bool = False,
) -> Exported:
    """Export what a finished training left in its directory `job`, verified on frames of `demos`.

    An adapter needs the base: from where the training had it, or from `base` if it has moved.
    """
    job = Path(job)
    if not (job / SUMMARY).is_file():
        raise UsageError(f"{job}: no finished training of that name; finetune first")
    if form not in get_args(Form):
        raise unknown("form of an export", form, get_args(Form))
    summary = read_json(job / SUMMARY)
    policy = load_policy(job / POLICY)
    demos = demos.for_policy(policy.spec)
    rows = np.unique(np.linspace(0, len(demos) - 1, FRAMES).round().astype(int))
    frames = list(demos.observations(rows.tolist()))
    card = {**summary, "results": list(results)}
    if form == "merged":
        return export(policy, directory, frames, card, seed=seed, overwrite=overwrite)
    start = load_policy(base or summary["base"]["source"])
    if start.fingerprint != summary["base"]["fingerprint"]:
        raise UsageError(
            f"{start.source} is {start.fingerprint}, but {job} was trained from {summary['base']['fingerprint']}: "
            "name the directory of its own base"
        )
    heads = [Head.parse(head) for head in summary.get("heads") or ()]
    trained = job.with_name(job.name.partition("-retain-")[0])  # an average has the factors of its training
    kept = kept_factors(trained / CHECKPOINT, start, heads)
    return export_adapter(start, policy, directory, frames, card, kept=kept, seed=seed, overwrite=overwrite)


def _export(
    form: Form,
    policy: Policy,
    target: Path,
    write: Callable[[Path], str | None],
    observations: Sequence[Observation],
    provenance: Mapping[str, Any],
    seed: int,
    overwrite: bool,
) -> Exported:
    """`write` fills a directory and names the base that it needs, if any; what it wrote must act as `policy`."""
    _check_target(target, overwrite)
    if not observations:
        raise UsageError("export needs at least one observation to verify the exported policy on")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        base = write(fresh / target.name)
        answer = ask_fresh_process(fresh / target.name, observations, seed, base)
        difference = float(np.abs(answer.chunks - chunks_of(policy, observations, seed)).max())
        allowed = TOLERANCE * max(1.0, float(np.abs(answer.chunks).max()))
        if not difference <= allowed:  # also catches NaN
            raise ExportError(
                f"the exported policy differs from the one in memory by {difference:.2e} on "
                f"{len(observations)} frames (at most {allowed:.0e} allowed): nothing was exported"
            )
        fingerprint = answer.fingerprint if base is None else policy.fingerprint
        exported = Exported(target, fingerprint, len(observations), difference)
        card = make_card(
            provenance, policy=fingerprint, form=form, frames=len(observations), difference=difference
        )
        write_json(fresh / target.name / CARD, card)
        write_atomic(fresh / target.name / README, readme(card).encode())
        if target.exists():
            target.rename(fresh / "old")
        (fresh / target.name).rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return exported


def _beside(base: Policy, directory: Path) -> str:
    """Writes what the base's own library wants to see beside an adapter; the name by which it will find the base."""
    write = getattr(base, "beside_adapter", None)
    return base_name(base.source) if write is None else str(write(directory))


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise UsageError(f"{target} exists: choose a new directory, or allow overwriting")
    ours = any((target / name).is_file() for name in ("config.json", adapter.CONFIG))
    if not ours and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not a policy: it will not be overwritten")


def _check_merged(policy: Policy) -> None:
    unmerged = [name for name, module in policy.module.named_modules() if isinstance(module, SlicedLinear)]
    if unmerged:
        raise UsageError(
            f"the policy carries unmerged head slices ({unmerged[0]}): merge them before exporting"
        )
