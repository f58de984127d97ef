"""GFLOP/s of a linear: NumPy's product, torch's linear, and ours, plain and fast, unquantised and quantised."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch

from experiments.benchmarks.cpu.shapes import Shape
from precision_lab.model.layers import Linear
from precision_lab.model.quantized import QuantizedLinear
from precision_lab.techniques.fast.cpu import replacement

_CALLS = 3
"""A sample is the mean over this many calls, after one untimed call."""


def settle() -> None:
    """Waits until the threads of the previous arm sleep; those of torch and OpenBLAS spin on a core for a while."""
    time.sleep(0.2)


def measure(shape: Shape, rounds: int, seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """{"rows x inputs x outputs": {arm: GFLOP/s of each round}}, measured in a new random order in each round."""
    rng = np.random.default_rng(seed)
    found = {}
    for rows, channels, outputs in shape.linears:
        arms = _arms(rng, rows, channels, outputs)
        samples: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(-1, rounds):
            for name in rng.permutation(list(arms)).tolist():
                settle()
                arms[name]()
                start = time.perf_counter()
                for _ in range(_CALLS):
                    arms[name]()
                seconds = (time.perf_counter() - start) / _CALLS
                if turn >= 0:
                    samples[name].append(2e-9 * rows * channels * outputs / seconds)
        found[f"{rows} x {channels} x {outputs}"] = samples
    return found


def _arms(rng: np.random.Generator, rows: int, channels: int, outputs: int) -> dict[str, Callable[[], object]]:
    x = rng.standard_normal((1, rows, channels), dtype=np.float32)
    w = rng.standard_normal((outputs, channels), dtype=np.float32)
    arms: dict[str, Callable[[], object]] = {"NumPy float32": lambda: x[0] @ w.T}
    for dtype in ("float32", "bfloat16", "float16"):
        linear = Linear(channels, outputs)
        linear.weight = mx.array(w)
        linear.set_dtype(getattr(mx, dtype))
        _add(arms, dtype, linear, mx.array(x).astype(getattr(mx, dtype)))
    for dtype in ("float32", "bfloat16"):
        theirs = torch.nn.Linear(channels, outputs, dtype=getattr(torch, dtype)).requires_grad_(False)
        arms[f"torch {dtype}"] = partial(theirs, torch.from_numpy(x).to(getattr(torch, dtype)))
    for bits in (4, 8):
        linear = Linear(channels, outputs)
        linear.set_dtype(mx.bfloat16)
        packed = QuantizedLinear.from_linear(linear, 64, bits)
        _add(arms, f"{bits}-bit, bfloat16", packed, mx.array(x).astype(mx.bfloat16))
    return arms


def _add(arms: dict[str, Callable[[], object]], kind: str, linear: nn.Module, x: mx.array) -> None:
    """Adds the plain module, and its fast counterpart if there is one."""
    mx.eval(linear.parameters(), x)
    twin = replacement(linear)
    arms[f"plain {kind}"] = lambda: mx.eval(linear(x))
    if twin is not None:
        arms[f"fast {kind}"] = lambda: mx.eval(twin(x))
