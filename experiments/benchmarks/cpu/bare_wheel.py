"""Measures MLX's own modules with the wheel as installed, in a separate process.

    PRECISION_LAB_BLAS=off python -m experiments.benchmarks.cpu.bare_wheel --dtype float32 --to FILE.npz [--forward]

It uses the wheel's BLAS and the modules that MLX users write: mlx.nn.Linear, mx.fast.scaled_dot_product_attention in
the dtype of the activations, nn.GELU("tanh"), nn.SiLU; norms are mx.fast's, as in our model. Everything else is our
plain model. Writes the GFLOP/s of a linear with 1024 inputs and outputs, and the seconds and output of one forward.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from experiments.benchmarks.cpu import mlx_model
from experiments.benchmarks.cpu.shapes import SHAPES
from precision_lab.instrument.sites import walk
from precision_lab.instrument.swap import swapped
from precision_lab.model.attention import Attend
from precision_lab.model.layers import GELUTanh, Linear, SiLU
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.techniques.fused_attention import FusedAttention

_QUANTIZED_ROWS = 64
"""Number of rows; for 1024 rows, MLX's quantised product takes about 10 seconds."""


def _plain_mlx(module: nn.Module) -> nn.Module | None:
    if type(module) is Linear:
        linear = nn.Linear(1, 1)
        linear.weight, linear.bias = module.weight, module.bias
        return linear
    return {GELUTanh: lambda: nn.GELU("tanh"), SiLU: nn.SiLU}.get(type(module), lambda: None)()


def timed_forward(model: Transformer, shape_name: str, dtype: mx.Dtype) -> tuple[float, np.ndarray]:
    """Seconds and output of the forward pass with MLX's own modules."""
    components = {"transformer": model}
    attention = FusedAttention()
    replaced = {}
    for site in walk(components):
        own = attention.rewrite(site) if isinstance(site.module, Attend) else _plain_mlx(site.module)
        if own is not None:
            replaced[site] = own
    with swapped(components, replaced):
        return mlx_model.forward(model, SHAPES[shape_name], dtype)


def gflops(linear: nn.Module, rows: int, channels: int, dtype: mx.Dtype) -> float:
    x = mx.random.normal((1, rows, channels)).astype(dtype)
    mx.eval(x, linear.parameters(), linear(x[:, :8]))
    start = time.perf_counter()
    mx.eval(linear(x))
    return 2e-9 * rows * channels**2 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="full")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--forward", action="store_true")
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    dtype = getattr(mx, options.dtype)
    rows, channels, _ = SHAPES[options.shape].linears[0]
    linear = nn.Linear(channels, channels)
    linear.set_dtype(dtype)
    found: dict[str, Any] = {"linear": gflops(linear, rows, channels, dtype)}
    for bits in (4, 8):
        packed = nn.QuantizedLinear.from_linear(linear, group_size=64, bits=bits)
        found[f"quantized_{bits}"] = gflops(packed, min(rows, _QUANTIZED_ROWS), channels, dtype)
    if options.forward:
        model = mlx_model.made(SHAPES[options.shape], dtype)
        found["seconds"], found["output"] = timed_forward(model, options.shape, dtype)
    np.savez(options.to, **found)


if __name__ == "__main__":
    main()
