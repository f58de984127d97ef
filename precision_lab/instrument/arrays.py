"""MLX arrays for measurement: real, and as NumPy arrays bit for bit."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# on a GPU forty operations take longer to launch than a copy of so much takes
_SMALL_BYTES = 1 << 20


def real(x: mx.array) -> mx.array:
    """x, or the real and imaginary parts of a complex x interleaved along its last axis."""
    return x.view(mx.float32) if x.dtype == mx.complex64 else x


def to_numpy(x: mx.array) -> np.ndarray:
    """The evaluated values of x in its own dtype; bfloat16 as `ml_dtypes.bfloat16`, which NumPy lacks."""
    if x.dtype == mx.bfloat16:
        buffer = memoryview(x)  # type: ignore[arg-type]
        if buffer.c_contiguous:  # without the operation, and the wait for it, that a view is in MLX
            return np.ndarray(x.shape, _BFLOAT16, buffer)
        return np.asarray(x.view(mx.uint16)).view(_BFLOAT16)
    return np.asarray(x)


def is_read_cheaply(x: mx.array) -> bool:
    """Whether NumPy measures x sooner than operations of MLX do: on the CPU always, on a GPU for small arrays."""
    return mx.default_device().type == mx.DeviceType.cpu or x.nbytes <= _SMALL_BYTES


def dtype_name(x: mx.array) -> str:
    """The dtype of x as tables name it: bfloat16, float32."""
    return _name(x.dtype)


def described(x: mx.array) -> dict[str, Any]:
    """The columns of a table that say what array a row is about: `dtype`, `shape` as 1x64x256, `numel`."""
    return {"dtype": _name(x.dtype), "shape": _spelled(x.shape), "numel": x.size}


@cache
def _name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]


@lru_cache(maxsize=4096)
def _spelled(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
