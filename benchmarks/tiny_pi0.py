"""What tiny-pi0 can do before any finetuning, and whether it uses its inputs: `python benchmarks/tiny_pi0.py`.

100 held-out rollouts a pretraining task and the unseen one, the same seeds with the instruction emptied and with the
images blanked. The targets are the base arm of `robosteer reproduce`. Writes benchmarks/results/tiny_pi0.json, prints
a table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp.runs import read_json, write_json
from steering.rollouts import evaluate
from testbed.tasks import PRETRAINING, UNSEEN

ROLLOUTS = 100
CONTROLS: dict[str, dict[str, bool]] = {
    "as is": {},
    "no instruction": {"mute": True},
    "no images": {"blind": True},
}
OUT = Path(__file__).parent / "results/tiny_pi0.json"


def table(found: dict[str, Any]) -> str:
    lines = [f"| task | {' | '.join(CONTROLS)} |", "|---" * (len(CONTROLS) + 1) + "|"]
    for task, cells in found["success"].items():
        shown = [
            f"{cells[c]['rate']:.0%} ({cells[c]['low']:.0%} to {cells[c]['high']:.0%})" if c in cells else ""
            for c in CONTROLS
        ]
        lines.append(f"| {task} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    found: dict[str, Any] = {"command": "python benchmarks/tiny_pi0.py", "n": ROLLOUTS, "success": {}}
    if OUT.is_file():
        found = read_json(OUT)
    for name, options in CONTROLS.items():
        for task in PRETRAINING if options else (*PRETRAINING, *UNSEEN):
            cells = found["success"].setdefault(task, {})
            if name in cells:
                continue
            done = evaluate("tiny-pi0", task, ROLLOUTS, env_options=options)
            rate = done.success_rate
            cells[name] = {
                "rate": rate.value,
                "low": rate.low,
                "high": rate.high,
                "seconds": round(done.seconds),
            }
            found["policy"] = done.policy
            OUT.parent.mkdir(exist_ok=True)
            write_json(OUT, found)
    print(table(found))


if __name__ == "__main__":
    main()
