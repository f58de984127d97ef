"""The GPU benchmark: the transformer's forward pass compared with other libraries, and a breakdown of its time.

    python -m experiments.benchmarks.gpu --to DIR [--only forward,pieces,tokens,depth,probes,guidance,stored]
    python -m experiments.benchmarks.gpu --to DIR --shape full_21   Qwen-Image-2.1 instead of 1.x
    python -m experiments.benchmarks.gpu --to DIR --shape tiny      a smoke test, on a CPU too; so is tiny_21
    python -m experiments.benchmarks.gpu --to DIR --report          tables and figures of what is there

Writes DIR/benchmark.json (every sample), DIR/tables.md and figures. Repeating a section replaces its rows and keeps
those of the others; measurements before an interruption remain. mflux is imported from PYTHONPATH. An arm that cannot
run has a row with the reason.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.benchmarks.gpu.shapes import SHAPES
from experiments.benchmarks.gpu.store import read


class Part(NamedTuple):
    """A process to start, which receives a `share` of its section's seconds."""

    name: str
    process: int
    share: float


class Section(NamedTuple):
    """Parts in the order in which they run. `seconds` is a target for `full`; each arm runs its minimum of rounds."""

    seconds: float
    parts: tuple[Part, ...]


SECTIONS = {
    # MLX, torch, torch, MLX: a drift of the machine during the run affects both equally
    "forward": Section(
        240,
        (
            Part("forward_mlx", 0, 0.3),
            Part("forward_torch", 0, 0.2),
            Part("forward_torch", 1, 0.15),
            Part("forward_mlx", 1, 0.15),
            Part("same_function_mlx", 0, 0.1),
            Part("same_function_torch", 0, 0.1),
        ),
    ),
    "pieces": Section(80, (Part("pieces", 0, 0.7), Part("block", 0, 0.3))),
    "tokens": Section(75, (Part("tokens", 0, 1),)),
    "depth": Section(40, (Part("depth", 0, 1),)),
    "probes": Section(75, (Part("probes", 0, 1),)),
    "guidance": Section(40, (Part("guidance", 0, 1),)),
    "stored": Section(120, (Part("stored", 0, 1),)),
}

GRACE_SECONDS = 240
"""Time beyond its share in which a part may load, compile and run its minimum of rounds before it is ended."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    parser.add_argument("--shape", choices=SHAPES, default="full")
    parser.add_argument("--only", type=_sections, default=list(SECTIONS), metavar="SECTION,...")
    parser.add_argument("--parts", type=_names, metavar="PART,...", help="of these only parts such as forward_torch")
    parser.add_argument("--seconds", type=float, help="time budget of each section")
    parser.add_argument("--resume", action="store_true", help="leave out parts that are complete")
    parser.add_argument("--report", action="store_true", help="measure nothing; draw what is there")
    parser.add_argument("--commit", default="", help="of the code, where this is no git checkout")
    options = parser.parse_args(argv)
    options.to.mkdir(parents=True, exist_ok=True)
    failed = [] if options.report else _measure(options)
    _report(options.to)
    for name in failed:
        print(f"{name} did not finish", file=sys.stderr)
    return 1 if failed else 0


def _names(text: str) -> list[str]:
    return text.split(",")


def _sections(text: str) -> list[str]:
    unknown = [name for name in _names(text) if name not in SECTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown section {unknown[0]!r}, expected some of {', '.join(SECTIONS)}")
    return _names(text)


def _measure(options: argparse.Namespace) -> list[str]:
    """Runs the parts; returns the names of those that did not finish."""
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        for section_name in options.only:
            section = SECTIONS[section_name]
            seconds = options.seconds or section.seconds * SHAPES[options.shape].budget
            for part in section.parts:
                name = f"{part.name}.{part.process}"
                done = read(options.to)["parts"].get(name, {}).get("complete", False)
                if (options.parts and part.name not in options.parts) or (options.resume and done):
                    continue
                if not _run(part, seconds * part.share, options, scratch):
                    failed.append(name)
            _report(options.to)
    return failed


def _run(part: Part, seconds: float, options: argparse.Namespace, scratch: str) -> bool:
    started = time.perf_counter()
    print(f"{part.name}.{part.process}: {seconds:.0f} s", flush=True)
    command = [sys.executable, "-m", "experiments.benchmarks.gpu.part", part.name, "--process", str(part.process)]
    command += ["--to", str(options.to), "--shape", options.shape, "--seconds", f"{seconds:.1f}"]
    command += ["--scratch", scratch, "--commit", options.commit]
    try:
        done = subprocess.run(command, timeout=seconds + GRACE_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        done = False
    print(f"{part.name}.{part.process}: took {time.perf_counter() - started:.0f} s", flush=True)
    return done


def _report(folder: Path) -> None:
    """Writes the report in a separate process, so that a failing figure does not lose measurements."""
    subprocess.run([sys.executable, "-m", "experiments.benchmarks.gpu.report", str(folder)], check=False)


if __name__ == "__main__":
    sys.exit(main())
