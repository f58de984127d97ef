"""MLX operations as functions of NumPy float64 arrays; conversions are exact and never run on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from precision_lab.device.behaviour.storage import Array, Storage

# An operation as the probes see it: from float64 arrays that hold values of a format, to a float64 array.
Op = Callable[..., Array]

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


class UnavailableError(Exception):
    """MLX lacks an operation in this build, back end or dtype. The message is the first line of MLX's error."""


def on_mlx(function: Callable[..., mx.array], storage: Storage) -> Op:
    """Wraps a function of MLX arrays of the format as an Op; its output may have any floating-point dtype.

    The Op raises UnavailableError where MLX raises.
    """

    def call(*arrays: Any) -> Array:
        inputs = [to_mlx(array, storage) for array in arrays]
        try:
            result = function(*inputs)
            mx.eval(result)
        except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
            lines = str(error).strip().splitlines()
            raise UnavailableError(lines[0] if lines else type(error).__name__) from error
        return from_mlx(result)

    return call


def to_mlx(x: Any, storage: Storage) -> mx.array:
    """Converts values of the format to an MLX array exactly, including subnormals, infinities and NaN."""
    if storage.name == "bfloat16":
        # a bfloat16 is the upper half of the float32 of the same value
        upper = (np.asarray(x, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return mx.array(upper).view(mx.bfloat16)
    return mx.array(np.asarray(x, dtype=np.float16 if storage.name == "float16" else np.float32))


def from_mlx(x: mx.array) -> Array:
    """Converts an MLX array to float64 exactly."""
    if x.dtype == mx.bfloat16:
        upper = np.array(x.view(mx.uint16)).astype(np.uint32) << 16
        return upper.view(np.float32).astype(np.float64)
    return np.array(x).astype(np.float64)
