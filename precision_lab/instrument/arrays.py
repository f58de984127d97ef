"""MLX arrays as NumPy arrays, bit for bit."""

from __future__ import annotations

import ml_dtypes
import mlx.core as mx
import numpy as np


def to_numpy(x: mx.array) -> np.ndarray:
    """The evaluated values of x in its own dtype; bfloat16 as `ml_dtypes.bfloat16`, which NumPy lacks."""
    if x.dtype == mx.bfloat16:
        return np.asarray(x.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.asarray(x)
