"""RETAIN: average a finetuned policy with its base, against forgetting.

    weights(a) = (1 - a) base + a finetuned        a = 0: the base, a = 1: the finetuned policy

The hope is that on the line between the two new skills come before old ones fade (RETAIN, ICLR 2026; WiSE-FT, Wortsman
et al., arXiv 2109.01903). It needs no training: from one finished job come as many policies as coefficients are asked
for, each beside the job with a summary of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from interp.errors import UsageError
from interp.policies import load_policy
from interp.rates import say_rate
from interp.runs import read_json, write_json
from interp.scores import now
from steering.finetune import POLICY, SUMMARY

COEFFICIENTS = (0.25, 0.5, 0.75)


def retain(
    job: str | Path, coefficients: Iterable[float] = COEFFICIENTS, base: str | Path | None = None
) -> list[Path]:
    """Write `<job>-retain-<a>/{policy,summary.json}` for every coefficient a; returns those directories.

    What is there already is left alone, so that a sweep can be made finer. `base`: where the base policy is, if it
    has moved since the training.
    """
    job, coefficients = Path(job), list(coefficients)
    check_coefficients(coefficients)
    if not (job / SUMMARY).is_file():
        raise UsageError(f"{job}: no finished training to average; finetune first")
    summary = read_json(job / SUMMARY)
    directories = {a: job.with_name(f"{job.name}-retain-{a:g}") for a in coefficients}
    missing = {a: d for a, d in directories.items() if not _holds(d, summary["policy"])}
    if missing:
        start, finetuned = load_policy(base or summary["base"]["source"]), load_policy(job / POLICY)
        for policy, fingerprint in ((start, summary["base"]["fingerprint"]), (finetuned, summary["policy"])):
            if policy.fingerprint != fingerprint:
                raise UsageError(
                    f"{policy.source} is {policy.fingerprint} now, but {job} was trained with {fingerprint}"
                )
        before = {name: p.detach().clone() for name, p in start.module.named_parameters()}
        end = dict(finetuned.module.named_parameters())
        for a, directory in missing.items():
            with torch.no_grad():
                for name, p in start.module.named_parameters():
                    p.copy_(torch.lerp(before[name], end[name], a))
            start.save(directory / POLICY)
            if finetuned.spec.fps is not None:
                say_rate(directory / POLICY, finetuned.spec.fps)
            recipe = {
                **summary["recipe"],
                "name": "retain",
                "of": summary["recipe"]["name"],
                "coefficient": a,
            }
            about = {
                **summary,
                "policy": load_policy(directory / POLICY).fingerprint,
                "finetuned": summary["policy"],
                "recipe": recipe,
                "created": now(),
            }
            write_json(directory / SUMMARY, about)
    return list(directories.values())


def check_coefficients(coefficients: Iterable[float]) -> None:
    """To be asked before hours of training, not after."""
    for a in coefficients:
        if not 0 <= a <= 1:
            raise UsageError(f"retain coefficient {a}: it weighs the finetuned policy, from 0 (base) to 1")


def _holds(directory: Path, finetuned: str) -> bool:
    """Whether the average is there; another training's is not overwritten."""
    if not (directory / SUMMARY).is_file():
        return False
    found = read_json(directory / SUMMARY).get("finetuned")
    if found != finetuned:
        raise UsageError(
            f"{directory} holds an average of {found}, not of {finetuned}: remove it, or name the job anew"
        )
    return True
