"""The daily loop: what the smallest run, a streamed run and a mistake cost, in fresh processes.

    python -m experiments.benchmarks.daily_loop --to FILE                     # streamed runs beside resident ones
    python -m experiments.benchmarks.daily_loop --before DIR --to FILE        # and this checkout beside another one

Arms alternate, pair by pair, and ratios are taken within a pair. Each process reports its wall-clock time and its
processor time (user and system, children included); on a shared machine the second says more. `tables` is wall-clock
time until the merged tables are written; the rest of a run is verdicts and the page.

- smallest: one prompt, one seed, one step, no timing; with `--before`, this checkout / the other.
- setting, experiment, technique, variant: a name that does not exist; --help.
- bf16, 4 bits: the smallest run with `model.stream=true` / without, on the embedded checkpoint and on a copy with
  `affine4_img_mod8`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parents[2]
SMALLEST = (
    *("+exp=baseline", "prompts=[a red circle]", "seeds=[0]", "sampler.steps=1"),
    *("latency.min_rounds=0", "latency.max_rounds=0"),
)
MISTAKES = {
    "setting": ["no_setting=1"],
    "experiment": ["+exp=baselin"],
    "technique": ["technique=[ffn_scalin]"],
    "variant": ["only=[baselin]"],
    "help": ["--help"],
}
METRICS = ("wall", "cpu", "tables")


class Sample(NamedTuple):
    """Seconds of one process; `tables` is NaN for one that writes none."""

    wall: float
    cpu: float
    tables: float


def run(tree: Path, arguments: Sequence[str], code: int) -> Sample:
    """Runs the command of the checkout `tree` in a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "precision_lab", *arguments, *([f"out={out}"] if code == 0 else [])]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began, start = time.time(), time.perf_counter()
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True
        )
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != code:
            raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}, expected {code}\n{done.stderr}")
        written = [table.stat().st_mtime - began for table in out.glob("*.parquet")]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sample(wall, cpu, max(written, default=float("nan")))


class Arm(NamedTuple):
    """A comparison: two commands, each in a checkout, and the exit code of both."""

    name: str
    first: tuple[Path, Sequence[str]]
    second: tuple[Path, Sequence[str]]
    code: int


def comparisons(before: Path | None, quantised: Path) -> list[Arm]:
    """The arms; in a ratio the first command is the numerator."""
    streamed = [*SMALLEST, "model.stream=true"]
    four_bits = f"model.path={quantised}"
    found = [
        Arm("bf16, streamed / resident", (HERE, streamed), (HERE, SMALLEST), 0),
        Arm("4 bits, streamed / resident", (HERE, [*streamed, four_bits]), (HERE, [*SMALLEST, four_bits]), 0),
    ]
    if before is not None:
        found.append(Arm("smallest, after / before", (HERE, SMALLEST), (before, SMALLEST), 0))
        for name, arguments in MISTAKES.items():
            code = 0 if name == "help" else 2
            found.append(Arm(f"{name}, after / before", (HERE, arguments), (before, arguments), code))
    return found


def measured(arm: Arm, pairs: int) -> dict[str, Any]:
    """All samples of an arm, with medians and the median ratio within pairs of each metric."""
    samples: list[list[Sample]] = [[], []]
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 else (1, 0):
            tree, arguments = (arm.first, arm.second)[side]
            samples[side].append(run(tree, arguments, arm.code))
        print(f"{arm.name} {pair + 1}/{pairs}: {[side[-1] for side in samples]}", file=sys.stderr, flush=True)
    record: dict[str, Any] = {"pairs": pairs}
    for at, metric in enumerate(METRICS):
        first, second = ([sample[at] for sample in side] for side in samples)
        if any(value != value for value in first):
            continue
        ratios = [a / b for a, b in zip(first, second, strict=True)]
        record[metric] = {
            "first_s": first,
            "second_s": second,
            "medians_s": [statistics.median(first), statistics.median(second)],
            "ratio": statistics.median(ratios),
            "ratios": [min(ratios), max(ratios)],
        }
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, whose commands are the denominators")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--only", default="", help="arms whose name begins like this")
    parser.add_argument("--to", type=Path, help="a JSON file for what was measured")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        quantised = Path(folder) / "quantised"
        copy = ["models", "technique=[affine4_img_mod8]", "from=package://micro", f"to={quantised}"]
        environment = {**os.environ, "PYTHONPATH": str(HERE)}
        subprocess.run([sys.executable, "-m", "precision_lab", *copy], env=environment, cwd=folder, check=True)
        for arm in comparisons(args.before, quantised):
            if not arm.name.startswith(args.only):
                continue
            results[arm.name] = record = measured(arm, args.pairs)
            for metric in METRICS:
                if metric in record:
                    low, high = record[metric]["ratios"]
                    first, second = record[metric]["medians_s"]
                    print(
                        f"{arm.name:32} {metric:6} {first:6.2f} s / {second:6.2f} s: "
                        f"{record[metric]['ratio']:.3f} [{low:.3f}, {high:.3f}]",
                        flush=True,
                    )
    if args.to:
        args.to.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
