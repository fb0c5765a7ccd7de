"""The verb that exports. See interp/verbs.py for what a verb is."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from interp.verbs import demos_of, open_run, policy_of, takes_device


def export(a: Namespace) -> None:
    """Write a finetuned policy as a checkpoint or a PEFT adapter, reloaded in a fresh process and compared."""
    from interp.runs import check_name, read_json
    from steering.export import Names, export_base, export_job

    check_name(a.name, "name of the job")
    run = open_run(a.run)
    default = run.path / "exports" / (a.name if a.format == "merged" else f"{a.name}-{a.format}")
    job, target, demos = run.path / "jobs" / a.name, a.out or default, demos_of(run, a.demos)
    written = run.path / "exports" / "base-lerobot"
    names = Names(a.tokenizer, a.asset_id, a.lerobot_base or (str(written) if written.is_dir() else None))
    if a.name == "base" and not job.exists():
        base = policy_of(run, a.policy, a.device)
        done = export_base(base, target, demos, form=a.format, names=names, overwrite=a.overwrite)
    else:
        done = export_job(
            job,
            target,
            demos,
            form=a.format,
            names=names,
            base=a.policy,
            device=a.device,
            results=[
                read_json(p) for n, p in run.results.items() if n.partition("--")[0] in ("base", a.name)
            ],
            overwrite=a.overwrite,
        )
    size = sum(file.stat().st_size for file in done.directory.rglob("*") if file.is_file()) / 2**20
    agree = f"{done.frames} frames agree within {done.difference:.1e}"
    agree += f" in {done.precision}" if done.precision else ""
    print(f"{done.directory}: {a.format}, {size:.1f} MB; reloaded, {agree}")
    for note in done.notes:
        print(f"  note: {note}")


def export_takes(p: ArgumentParser) -> None:
    p.add_argument("--run", required=True, help="run directory")
    p.add_argument("--name", default="aligned", help="the finished job to export, or base")
    p.add_argument(
        "--format",
        choices=("merged", "peft", "lerobot", "openpi", "lerobot-peft"),
        default="merged",
        help="checkpoint or adapter; of transformers' pi0 also for LeRobot and openpi (docs/lerobot.md)",
    )
    p.add_argument(
        "--out", help="directory to write (exports/NAME or exports/NAME-FORMAT in the run by default)"
    )
    p.add_argument("--tokenizer", help="hub id or path by which LeRobot loads the tokenizer")
    p.add_argument(
        "--asset-id", help="openpi's name for the normalisation statistics (the export's own name)"
    )
    p.add_argument("--lerobot-base", help="hub id or directory of the base, for lerobot-peft")
    p.add_argument("--policy", help="the base policy, if it has moved since the training")
    p.add_argument("--demos", help="frames to verify on (the run's own by default)")
    takes_device(p)
    p.add_argument("--overwrite", action="store_true", help="take the place of an earlier export")
