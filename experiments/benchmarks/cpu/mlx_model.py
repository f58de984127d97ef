"""Our transformer with the generated weights, and a timed forward pass. It uses the BLAS that was loaded before."""

from __future__ import annotations

import time

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from experiments.benchmarks.cpu.shapes import TIMESTEP, Shape, inputs, weights
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.rotary import Grid

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}


def made(shape: Shape, dtype: mx.Dtype) -> Transformer:
    model = Transformer(shape.config)
    shapes = {name: tuple(value.shape) for name, value in tree_flatten(model.parameters())}
    model.load_weights([(name, mx.array(w).astype(dtype)) for name, w in weights(shapes).items()], strict=True)
    mx.eval(model.parameters())
    return model


def forward(model: Transformer, shape: Shape, dtype: mx.Dtype) -> tuple[float, np.ndarray]:
    """Seconds of one forward pass, and its output in fp32."""
    latents, text = (mx.array(x).astype(dtype) for x in inputs(shape))
    mx.eval(latents, text)
    start = time.perf_counter()
    out = model(latents, mx.array([TIMESTEP]), text, Grid(shape.side, shape.side))
    mx.eval(out)
    return time.perf_counter() - start, np.array(out.astype(mx.float32))
