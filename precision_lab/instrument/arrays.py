"""Conversion of MLX arrays for measurement: to real arrays, and to NumPy arrays bit for bit."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# on a GPU, launching forty operations takes longer than copying this many bytes
_SMALL_BYTES = 1 << 20


def real(x: mx.array) -> mx.array:
    """Returns x if it is real; otherwise its real and imaginary parts, interleaved along the last axis."""
    return x.view(mx.float32) if x.dtype == mx.complex64 else x


def to_numpy(x: mx.array) -> np.ndarray:
    """The evaluated values of x in its own dtype; NumPy lacks bfloat16, so it becomes `ml_dtypes.bfloat16`."""
    if x.dtype == mx.bfloat16:
        buffer = memoryview(x)  # type: ignore[arg-type]
        if buffer.c_contiguous:  # avoids a view, which MLX executes as an operation
            return np.ndarray(x.shape, _BFLOAT16, buffer)
        return np.asarray(x.view(mx.uint16)).view(_BFLOAT16)
    return np.asarray(x)


def is_read_cheaply(x: mx.array) -> bool:
    """Whether NumPy measures x faster than MLX operations do: always on the CPU, for small arrays on a GPU."""
    return mx.default_device().type == mx.DeviceType.cpu or x.nbytes <= _SMALL_BYTES


def dtype_name(x: mx.array) -> str:
    """The name of the dtype of x in tables, such as bfloat16 or float32."""
    return name_of(x.dtype)


def described(x: mx.array) -> dict[str, Any]:
    """The columns of a table that describe the array of a row: `dtype`, `shape` (such as 1x64x256), `numel`."""
    return {"dtype": name_of(x.dtype), "shape": _spelled(x.shape), "numel": x.size}


@cache
def name_of(dtype: mx.Dtype) -> str:
    """The name of a dtype in tables."""
    return str(dtype).rpartition(".")[2]


@lru_cache(maxsize=4096)
def _spelled(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
