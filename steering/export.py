"""Export: a finetuned policy as files that others can use, proven before they are called done.

Five forms, each with a card (steering/card.py):

merged        a plain checkpoint that `load_policy` and the policy's own library read, nothing of ours in it
peft          a standard PEFT adapter for the base (steering/adapter.py), as small as what was trained
lerobot       transformers' pi0 as LeRobot's `from_pretrained`, `make_policy` and policy server read it
openpi        transformers' pi0 as openpi's PyTorch port reads it
lerobot-peft  the adapter under LeRobot's names, for `make_policy`

Each is written beside its destination, reloaded in a fresh process, its action chunks on real frames are
compared with the policy in memory, and only then is it renamed into place. An adapter of a bfloat16 policy is compared
in float32 (steering/precision.py says why), on weights that the merge has not rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float

from interp.assembly import spread
from interp.demos import Demonstrations
from interp.errors import Failure, UsageError, unknown
from interp.heads import Head
from interp.policies import Observation, Policy, load_policy, policy_directory
from interp.runs import read_json, whole_directory, write_atomic, write_json
from steering import pi0_adapter
from steering.adapter import Adapter, LowRank, kept_factors
from steering.card import CARD, README, base_name, make_card, readme
from steering.finetune import CHECKPOINT, POLICY, SUMMARY
from steering.pi0_files import as_they_compute, check_weights
from steering.pi0_lerobot import lerobot_directory, lerobot_settings, tokenizer_name
from steering.pi0_openpi import openpi_directory
from steering.precision import in_float32, is_rounded
from steering.slices import SlicedLinear
from steering.verify import ask_fresh_process, chunks_of

Chunks = Float[np.ndarray, "frame horizon action"]
Form = Literal["merged", "peft", "lerobot", "openpi", "lerobot-peft"]
ADAPTERS: tuple[Form, ...] = ("peft", "lerobot-peft")
TOLERANCE = 1e-6
"""Largest difference of an action, in robot units, between the policy in memory and its export; where actions exceed
1, relative to the largest of them."""
ADAPTER_TOLERANCE = 2e-5
"""The same for adapters: Wx + B(Ax) is another order of sums than (W + BA)x, and layers and flow steps enlarge its last
digit. tiny-pi0 with changes of 0.005 to 0.05 in 12 heads: 5e-7 to 7e-6, where actions move by 0.03 to 2."""
FRAMES = 8
"""Frames of the demonstrations that an exported training is verified on."""


class ExportError(Failure):
    """The exported files do not do what the policy does; nothing was left at the destination."""


@dataclass(frozen=True)
class Exported:
    """A verified export. `fingerprint` is that of the policy it acts as; `difference` is the largest absolute
    difference of any action on `frames` frames; `notes` is what whoever receives it has to know. `precision` is what
    both sides of the comparison computed in: None as they are stored, float32 for adapters of less precise policies."""

    directory: Path
    fingerprint: str
    frames: int
    difference: float
    notes: tuple[str, ...] = ()
    precision: str | None = None


@dataclass(frozen=True)
class Names:
    """What an export for another library can only name, as the robot's machine knows it."""

    tokenizer: str | None = None
    """What LeRobot's tokenizer step loads, a hub id or a path: PaliGemma's from the hub or the export's own."""
    asset: str | None = None
    """openpi's asset_id: the directory's name."""
    base: str | None = None
    """The base in LeRobot's layout, for an adapter: where the training had it from, if it was that."""


@dataclass(frozen=True)
class _Draft:
    """What was written, before it is verified: the base that it needs, the policy that it must act as where that is
    not the one in memory, and notes. An adapter of a policy that is rounded is compared with `in_float32`."""

    base: str | None = None
    acts_as: Policy | None = None
    notes: tuple[str, ...] = ()
    in_float32: Callable[[], Chunks] | None = None


def export(
    policy: Policy,
    directory: str | Path,
    observations: Sequence[Observation],
    provenance: Mapping[str, Any],
    *,
    form: Form = "merged",
    names: Names | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Exported:
    """Write `policy`, merged, to `directory`, verified on `observations` (a few real frames).

    `provenance` goes into the card: the summary of a training (`Finetuned.summary`), with the JSON of its
    results under `results` if there are any.
    """
    _check_merged(policy)
    _check_form(policy, form)
    names, target, pi0 = names or Names(), Path(directory), cast(Any, policy)

    def write(fresh: Path) -> _Draft:
        if form == "lerobot":
            words = tokenizer_name(pi0, target, names.tokenizer)
            notes = lerobot_directory(pi0, fresh, observations, words)
            return _Draft(acts_as=as_they_compute(pi0, fresh), notes=notes)
        if form == "openpi":
            notes = openpi_directory(pi0, fresh, observations, names.asset or target.name)
            return _Draft(acts_as=as_they_compute(pi0, fresh), notes=notes)
        policy.save(fresh)
        fit = getattr(policy, "fit_cameras", None)  # of a policy whose robot's program goes by their sizes
        return _Draft(notes=() if fit is None else fit(fresh, observations))

    return _export(form, policy, target, write, observations, provenance, seed, overwrite)


def export_adapter(
    base: Policy,
    policy: Policy,
    directory: str | Path,
    observations: Sequence[Observation],
    provenance: Mapping[str, Any],
    *,
    form: Form = "peft",
    names: Names | None = None,
    kept: Mapping[str, LowRank] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Exported:
    """Write what turns `base` into `policy` (merged) to `directory`, as a PEFT adapter, verified on `observations`.

    `kept` are the low-rank factors of the training (`steering.adapter.kept_factors`), if it had any. The fresh
    process loads the base again from where it came: `base.source`.
    """
    _check_merged(policy)
    _check_form(policy, form)
    found = Adapter.between(base, policy, kept)
    provenance = {**provenance, "base": {"source": base.source, "fingerprint": base.fingerprint}}
    names, target = names or Names(), Path(directory)

    def merged_in_float32() -> Chunks:
        with in_float32(policy, found.sums(base, policy)):
            return chunks_of(policy, observations, seed)

    def write(fresh: Path) -> _Draft:
        if form == "lerobot-peft":
            draft = _lerobot_adapter(base, found, fresh, target, observations, names)
        else:
            fresh.mkdir()
            found.save(fresh, _beside(base, fresh))
            draft = _Draft(base.source)
        return replace(draft, in_float32=merged_in_float32) if is_rounded(base) else draft

    return _export(form, policy, target, write, observations, provenance, seed, overwrite)


def export_job(
    job: str | Path,
    directory: str | Path,
    demos: Demonstrations,
    *,
    form: Form = "merged",
    names: Names | None = None,
    base: str | Path | None = None,
    results: Sequence[Mapping[str, Any]] = (),
    device: str | torch.device = "cpu",
    seed: int = 0,
    overwrite: bool = False,
) -> Exported:
    """Export what a finished training left in its directory `job`, verified on frames of `demos`.

    Of `results` those of this very policy and of its base go into the card: a training that was repeated left others.
    An adapter needs the base: from where the training had it, or from `base` if it has moved. `device` is where the
    policies compute, here and in the fresh process.
    """
    job = Path(job)
    if not (job / SUMMARY).is_file():
        raise UsageError(f"{job}: no finished training of that name; finetune first")
    if form not in get_args(Form):
        raise unknown("form of an export", form, get_args(Form))
    summary = read_json(job / SUMMARY)
    policy = load_policy(job / POLICY, device)
    frames = _frames(demos, policy)
    policies = (summary["policy"], summary["base"]["fingerprint"])
    card = {**summary, "results": [result for result in results if result.get("policy") in policies]}
    if form not in ADAPTERS:
        return export(policy, directory, frames, card, form=form, names=names, seed=seed, overwrite=overwrite)
    start = load_policy(base or summary["base"]["source"], device)
    if start.fingerprint != summary["base"]["fingerprint"]:
        raise UsageError(
            f"{start.source} is {start.fingerprint}, but {job} was trained from {summary['base']['fingerprint']}: "
            "name the directory of its own base"
        )
    heads = [Head.parse(head) for head in summary.get("heads") or ()]
    trained = job.with_name(job.name.partition("-retain-")[0])  # an average has the factors of its training
    kept = kept_factors(trained / CHECKPOINT, start, heads)
    return export_adapter(
        start,
        policy,
        directory,
        frames,
        card,
        form=form,
        names=names,
        kept=kept,
        seed=seed,
        overwrite=overwrite,
    )


def export_base(
    policy: Policy,
    directory: str | Path,
    demos: Demonstrations,
    *,
    form: Form,
    names: Names | None = None,
    overwrite: bool = False,
) -> Exported:
    """Export a policy as it is, untrained: another library's robots want it too, and adapters name it."""
    if form in ADAPTERS:
        raise UsageError(f"--format {form} is of what a training changed: name a finished training")
    card = {"base": {"source": policy.source, "fingerprint": policy.fingerprint}}
    return export(
        policy, directory, _frames(demos, policy), card, form=form, names=names, overwrite=overwrite
    )


def _frames(demos: Demonstrations, policy: Policy) -> list[Observation]:
    demos = demos.for_policy(policy.spec)
    return list(demos.observations(spread(len(demos), FRAMES).tolist()))


def _export(
    form: Form,
    policy: Policy,
    target: Path,
    write: Callable[[Path], _Draft],
    observations: Sequence[Observation],
    provenance: Mapping[str, Any],
    seed: int,
    overwrite: bool,
) -> Exported:
    """`write` fills a directory; what it wrote must act as `policy`."""
    _check_target(target, overwrite)
    if not observations:
        raise UsageError("export needs at least one observation to verify the exported policy on")
    with whole_directory(target) as fresh:
        device = str(next(policy.module.parameters()).device)
        expected = chunks_of(policy, observations, seed)
        draft = write(fresh)
        if draft.acts_as not in (None, policy):
            expected = chunks_of(draft.acts_as, observations, seed)
        precision, notes, in_single = None, draft.notes, draft.in_float32 and draft.in_float32()
        answer = ask_fresh_process(fresh, observations, seed, draft.base, device)
        actions = answer.chunks
        if in_single is not None and answer.in_float32 is not None:
            precision, notes = "float32", (_rounding(actions, expected), *notes)
            actions, expected = answer.in_float32, in_single
        difference = float(np.abs(actions - expected).max())
        tolerance = ADAPTER_TOLERANCE if form in ADAPTERS else TOLERANCE
        allowed = tolerance * max(1.0, float(np.abs(actions).max()))
        if not difference <= allowed:  # also catches NaN
            both = f", both in {precision}," if precision else ""
            raise ExportError(
                f"the exported policy differs from the one in memory{both} by {difference:.2e} on "
                f"{len(observations)} frames (at most {allowed:.0e} allowed): nothing was exported"
            )
        fingerprint = answer.fingerprint if draft.base is None else policy.fingerprint
        exported = Exported(target, fingerprint, len(observations), difference, notes, precision)
        card = make_card(
            provenance,
            policy=fingerprint,
            form=form,
            frames=len(observations),
            difference=difference,
            notes=notes,
            precision=precision,
        )
        write_json(fresh / CARD, card)
        write_atomic(fresh / README, readme(card).encode())
    return exported


def _rounding(adapter: Chunks, merged: Chunks) -> str:
    return (
        "compared in float32: below, an adapter on its base and a merged checkpoint round differently; as stored, "
        f"actions differ by up to {np.abs(adapter - merged).max():.1e} here"
    )


def _lerobot_adapter(
    base: Policy, found: Adapter, fresh: Path, target: Path, observations: Sequence[Observation], names: Names
) -> _Draft:
    """An adapter for LeRobot's pi0, with what `make_policy` reads beside it."""
    renamed, pi0, where = pi0_adapter.for_lerobot(found), cast(Any, base), names.base or base.source
    if names.base is None and not pi0_adapter.is_lerobots(policy_directory(base.source)):
        raise UsageError(
            f"LeRobot does not read {base.source} (transformers' layout): name a base that it reads with "
            "--lerobot-base, a hub id or directory (`robosteer export --name base --format lerobot` writes one)"
        )
    taken: tuple[str, ...] = ()
    if Path(where).is_dir():
        check_weights(pi0, Path(where), "lerobot")
        where = str(Path(where).resolve())
    elif where.startswith((".", "/", "~")) or where.count("/") != 1:
        raise UsageError(f"--lerobot-base {where}: no such directory, and no hub id (owner/name)")
    elif names.base is not None:
        taken = (
            f"LeRobot loads the base {where} from the hub: it was not compared with the base of the training",
        )
    fresh.mkdir()
    words = tokenizer_name(pi0, target, names.tokenizer)
    notes = lerobot_settings(pi0, fresh, observations, words, use_peft=True)
    renamed.save(fresh, where)
    return _Draft(base.source, notes=(*taken, *notes))


def _beside(base: Policy, directory: Path) -> str:
    """Writes what the base's own library wants to see beside an adapter; the name by which it will find the base."""
    write = getattr(base, "beside_adapter", None)
    return base_name(base.source) if write is None else str(write(directory))


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise UsageError(f"{target} exists: choose a new directory, or allow overwriting")
    if not (target / CARD).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is no export of ours (no {CARD}): it will not be overwritten")


def _check_form(policy: Policy, form: Form) -> None:
    """LeRobot's and openpi's layouts are of transformers' pi0; what is LeRobot's already has them."""
    if form not in get_args(Form):
        raise unknown("form of an export", form, get_args(Form))
    family = policy.spec.family
    if form in ("merged", "peft") or family == "pi0":
        return
    if form == "openpi":
        raise UsageError(
            f"--format openpi is for transformers' pi0, and {policy.source} is {family}: use merged"
        )
    same = "merged" if form == "lerobot" else "peft"
    raise UsageError(
        f"--format {form} is for transformers' pi0, and {policy.source} is {family}: use {same}, which LeRobot reads"
    )


def _check_merged(policy: Policy) -> None:
    unmerged = [name for name, module in policy.module.named_modules() if isinstance(module, SlicedLinear)]
    if unmerged:
        raise UsageError(
            f"the policy carries unmerged head slices ({unmerged[0]}): merge them before exporting"
        )
