"""The CPU benchmark: linears and a transformer's forward pass, compared with NumPy, torch and MLX as installed.

    python -m experiments.benchmarks.cpu --to DIR [--rounds 5] [--shape tiny]

The model has 8 blocks of width 1024 (8 heads of 128), 1024 image and 64 text tokens, batch 1. torch runs diffusers'
model with the same weights, with one thread per core. In every round each arm runs once, in a new random order; ratios
are within a round, with the median and a 95 % interval. The bare wheel takes more than a minute and runs once
in its own process between the rounds. Writes DIR/cpu.json, DIR/cpu.md and DIR/cpu.png; takes about 4 minutes on two
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from precision_lab.device import blas
from precision_lab.device.environment import set_numeric_switches

# before MLX is imported, like the command line
blas.preload()
set_numeric_switches()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from experiments.benchmarks.cpu import linears, mlx_model, module_times, report, torch_model  # noqa: E402
from experiments.benchmarks.cpu.shapes import SHAPES, Shape  # noqa: E402
from precision_lab.device.environment import environment  # noqa: E402
from precision_lab.device.sgemm import cores  # noqa: E402
from precision_lab.techniques.base import applied  # noqa: E402
from precision_lab.techniques.fast.cpu import FastCPU  # noqa: E402

DTYPES = ("float32", "bfloat16")
Output = tuple[float, np.ndarray]


class Forward(NamedTuple):
    """The seconds of each arm in each round, and its last output."""

    seconds: dict[str, list[float]]
    outputs: dict[str, np.ndarray]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, default="full")
    parser.add_argument("--no-bare-forward", action="store_true", help="leave out what takes minutes")
    options = parser.parse_args(argv)
    torch.set_num_threads(cores())
    options.to.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[options.shape]

    load = [os.getloadavg()[0]]
    models = {dtype: mlx_model.made(shape, mlx_model.DTYPES[dtype]) for dtype in DTYPES}
    print("linears", flush=True)
    bare = {dtype: _bare(options.shape, dtype) for dtype in DTYPES}
    products = linears.measure(shape, options.rounds)
    print("forward", flush=True)
    forward = _forward(shape, models, options, bare)
    print("modules", flush=True)
    modules = {
        f"{arm} {dtype}": module_times.measure(model, shape, mlx_model.DTYPES[dtype], techniques)
        for dtype, model in models.items()
        for arm, techniques in (("plain", {}), ("fast", {"fast": FastCPU()}))
    }
    load.append(os.getloadavg()[0])
    record = {
        "environment": environment(),
        "torch": {"version": torch.__version__, "threads": torch.get_num_threads()},
        "load": load,
        "linear_gflops": products,
        "bare_wheel": {dtype: {k: float(v) for k, v in found.items() if v.ndim == 0} for dtype, found in bare.items()},
        "forward_seconds": forward.seconds,
        "relative_l2": _errors(forward.outputs),
        "module_seconds": modules,
    }
    (options.to / "cpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    report.write(record, options.to)
    print((options.to / "cpu.md").read_text(encoding="utf-8"))


def _forward(
    shape: Shape, models: Mapping[str, Any], options: argparse.Namespace, bare: dict[str, Mapping[str, np.ndarray]]
) -> Forward:
    arms: dict[str, Callable[[], Output]] = {}
    for dtype, model in models.items():
        theirs = torch_model.made(shape, getattr(torch, dtype))
        arms[f"plain {dtype}"] = lambda m=model, d=dtype: mlx_model.forward(m, shape, mlx_model.DTYPES[d])
        arms[f"fast {dtype}"] = lambda m=model, d=dtype: _fast(m, shape, d)
        arms[f"torch {dtype}"] = lambda m=theirs, d=dtype: torch_model.forward(m, shape, getattr(torch, d))
    found = Forward({name: [] for name in arms}, {})
    rng = np.random.default_rng(0)
    bare_after = dict(zip(rng.permutation(options.rounds).tolist(), DTYPES, strict=False))
    for turn in range(-1, options.rounds):  # the first round is a warm-up
        for name in rng.permutation(list(arms)).tolist():
            linears.settle()
            seconds, output = arms[name]()
            if turn >= 0:
                found.seconds[name].append(seconds)
                found.outputs[name] = output
        if turn in bare_after and not options.no_bare_forward:
            dtype = bare_after[turn]
            print(f"  the bare wheel, {dtype}", flush=True)
            one = _bare(options.shape, dtype, "--forward")
            bare[dtype] = one
            found.seconds[f"bare wheel {dtype}"] = [float(one["seconds"])]
            found.outputs[f"bare wheel {dtype}"] = one["output"]
    return found


def _fast(model: Any, shape: Shape, dtype: str) -> Output:
    with applied({"transformer": model}, {"fast": FastCPU()}):
        return mlx_model.forward(model, shape, mlx_model.DTYPES[dtype])


def _bare(shape: str, dtype: str, *options: str) -> dict[str, np.ndarray]:
    """Runs `bare_wheel` with the BLAS preload off, and returns its results."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bare.npz"
        command = [sys.executable, "-m", "experiments.benchmarks.cpu.bare_wheel"]
        command += ["--shape", shape, "--dtype", dtype, "--to", str(file), *options]
        subprocess.run(command, check=True, env={**os.environ, "PRECISION_LAB_BLAS": "off"})
        with np.load(file) as found:
            return dict(found)


def _errors(outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Relative L2 distance of each output from torch's in fp32, which has the same weights and inputs in any dtype."""
    reference = outputs["torch float32"].astype(np.float64)
    size = np.linalg.norm(reference)
    return {name: float(np.linalg.norm(output - reference) / size) for name, output in outputs.items()}


if __name__ == "__main__":
    main()
