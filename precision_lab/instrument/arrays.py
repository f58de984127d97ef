"""MLX arrays for measurement: real, and as NumPy arrays bit for bit."""

from __future__ import annotations

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
