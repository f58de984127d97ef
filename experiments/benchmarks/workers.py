"""Throughput against workers: generations per minute of one run with each number of workers, latency not measured.

    python -m experiments.benchmarks.workers --workers 1 2 4 --to DIR [overrides of the run]

One worker a GPU, or a process each on a CPU. The models of the workers are loaded first: the time until the first
generation of the slowest worker is reported apart, and the rate counts the generations that are complete after it, up
to the last. Which worker made a generation, and when, is known from the manifest and from the times of the pictures.
The tables of all runs must be equal, byte for byte. Writes DIR/summary.json and DIR/throughput.png; the run folders go
to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TABLES = ("activations", "drift", "generations")


def measured(workers: int, out: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The run with so many workers: seconds until all have their model, generations after that, and their rate."""
    command = [sys.executable, "-m", "precision_lab", "run", *overrides, f"workers={workers}", f"out={out}"]
    began = time.time()
    subprocess.run([*command, "latency.max_rounds=0"], check=True, stdout=subprocess.DEVNULL)
    entries = json.loads((out / "manifest.json").read_text())["workers"]
    done = {picture.stem: picture.stat().st_mtime for picture in (out / "images").glob("*.png")}
    times = [sorted(done[part] for part in entry["parts"] if part in done) for entry in entries]
    ready = max(own[0] for own in times)
    last = max(own[-1] for own in times)
    after = sum(time > ready for own in times for time in own)
    return {
        "workers": len(entries),
        "devices": sorted({entry["device"] for entry in entries}),
        "generations": len(done),
        "ready_seconds": round(ready - began, 1),
        "generations_after": after,
        "seconds_after": round(last - ready, 1),
        "per_minute": round(60 * after / (last - ready), 3),
        "whole_seconds": round(time.time() - began, 1),
    }


def equal(first: Path, second: Path) -> bool:
    """Whether two runs have the same tables, byte for byte."""
    return all((first / f"{t}.parquet").read_bytes() == (second / f"{t}.parquet").read_bytes() for t in TABLES)


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Generations per minute against workers, with the line of a perfect speed-up."""
    import matplotlib.pyplot as plt

    from precision_lab.report.figures import style

    with style.theme():
        figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
        counts, rates = [run["workers"] for run in runs], [run["per_minute"] for run in runs]
        axes.plot(counts, [rates[0] / counts[0] * count for count in counts], "--", color="0.55", label="ideal")
        axes.plot(counts, rates, "o-", label="measured")
        for count, rate in zip(counts, rates, strict=True):
            axes.annotate(f"{rate:.1f}", (count, rate), textcoords="offset points", xytext=(6, -12))
        axes.set(xlabel="workers", ylabel="generations per minute", ylim=(0, None), title="Throughput")
        axes.set_xticks(counts)
        axes.legend()
        figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", required=True)
    parser.add_argument("--to", type=Path, required=True)
    options, overrides = parser.parse_known_args()
    options.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / str(number) for number in options.workers]
        runs = []
        for number, out in zip(options.workers, outs, strict=True):
            runs.append(measured(number, out, overrides))
            print(runs[-1], flush=True)
        runs.sort(key=lambda run: run["workers"])
        same = all(equal(outs[0], out) for out in outs[1:])
        environment = json.loads((outs[0] / "manifest.json").read_text())["environment"]
    summary = {
        "command": ["python", "-m", "experiments.benchmarks.workers", *sys.argv[1:]],
        "device": environment["device"],
        "mlx": environment["mlx"],
        "cores": os.cpu_count(),
        "same_tables": same,
        "speedup": [round(run["per_minute"] / runs[0]["per_minute"], 3) for run in runs],
        "runs": runs,
    }
    (options.to / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    draw(runs, options.to / "throughput.png")
    print(json.dumps(summary["speedup"]), "same tables" if same else "THE TABLES DIFFER")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
