"""MLX arrays for measurement: real, and as NumPy arrays bit for bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np


def real(x: mx.array) -> mx.array:
    """x, or the real and imaginary parts of a complex x interleaved along its last axis."""
    return x.view(mx.float32) if x.dtype == mx.complex64 else x


def to_numpy(x: mx.array) -> np.ndarray:
    """The evaluated values of x in its own dtype; bfloat16 as `ml_dtypes.bfloat16`, which NumPy lacks."""
    if x.dtype == mx.bfloat16:
        buffer = memoryview(x)  # type: ignore[arg-type]
        if buffer.c_contiguous:  # without the operation, and the wait for it, that a view is in MLX
            return np.frombuffer(buffer, ml_dtypes.bfloat16).reshape(x.shape)
        return np.asarray(x.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.asarray(x)


def dtype_name(x: mx.array) -> str:
    """The dtype of x as tables name it: bfloat16, float32."""
    return str(x.dtype).rpartition(".")[2]


def described(x: mx.array) -> dict[str, Any]:
    """The columns of a table that say what array a row is about: `dtype`, `shape` as 1x64x256, `numel`."""
    return {"dtype": dtype_name(x), "shape": "x".join(map(str, x.shape)), "numel": x.size}
