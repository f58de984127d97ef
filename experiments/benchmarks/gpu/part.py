"""Runs one part of the benchmark in its own process, since two sets of weights of 41 GB do not fit on one device.

python -m experiments.benchmarks.gpu.part forward_mlx --process 0 --to DIR --shape full --seconds 60 --scratch DIR
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.benchmarks.gpu.shapes import SHAPES, Shape
from experiments.benchmarks.gpu.store import PartWriter

MODULES = {
    "forward_mlx": "forward_mlx",
    "forward_torch": "forward_torch",
    "same_function_mlx": "same_function_mlx",
    "same_function_torch": "same_function_torch",
    "pieces": "piece_times",
    "block": "block_times",
    "tokens": "tokens",
    "depth": "depth",
    "probes": "probes",
    "guidance": "guidance",
    "stored": "stored",
}
"""The module of each part. Modules that end in torch do not import MLX; the others do not import torch."""

_GPU_STATE = "name,driver_version,clocks.sm,clocks.max.sm,power.draw,power.limit,temperature.gpu"


@dataclass(frozen=True)
class Job:
    """The arguments of a part. No round begins after `deadline`, a value of time.perf_counter."""

    writer: PartWriter
    shape: Shape
    deadline: float
    process: int
    scratch: Path


def main() -> None:
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=MODULES)
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="full")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--scratch", type=Path, required=True, help="files that parts hand on to each other")
    parser.add_argument("--commit", help="of the code, where this is no git checkout")
    options = parser.parse_args()
    environment = {**_environment(options.part), "shape": options.shape, "gpu_at_start": gpu_state()}
    if options.commit:
        environment["commit"] = options.commit
    writer = PartWriter(options.to, f"{options.part}.{options.process}", environment)
    deadline = started + options.seconds
    run: Callable[[Job], None] = import_module(f"experiments.benchmarks.gpu.{MODULES[options.part]}").run
    run(Job(writer, SHAPES[options.shape], deadline, options.process, options.scratch))
    writer.complete(gpu_at_end=gpu_state(), seconds=time.perf_counter() - started)


def _environment(part: str) -> Mapping[str, Any]:
    if part.endswith("torch"):
        from experiments.benchmarks.gpu import diffusers_model

        return diffusers_model.environment()
    from precision_lab.device import blas
    from precision_lab.device.environment import environment, set_numeric_switches

    # before MLX is imported, like the command line
    blas.preload()
    set_numeric_switches()
    from experiments.benchmarks.gpu import mflux_model

    return {**environment(), "mflux": mflux_model.version()}


def gpu_state() -> str | None:
    """Clocks, power and temperature of the GPU as printed by nvidia-smi; None without a GPU."""
    try:
        command = ("nvidia-smi", f"--query-gpu={_GPU_STATE}", "--format=csv,noheader")
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


if __name__ == "__main__":
    main()
