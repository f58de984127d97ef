"""Wraps MLX operations as functions of NumPy float64 arrays. Conversions are exact: none runs on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from precision_lab.device.behaviour.storage import Array, Storage

# An operation as the probes see it: float64 arrays with values of a format in, one float64 array out.
Op = Callable[..., Array]

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


class UnavailableError(Exception):
    """This build, backend or dtype of MLX does not support an operation. The message is the first line of MLX's."""


def on_mlx(function: Callable[..., mx.array], storage: Storage) -> Op:
    """Wraps `function`, which takes MLX arrays of the format, as an Op. It may return any floating-point dtype.

    The Op raises UnavailableError if MLX raises.
    """

    def call(*arrays: Any) -> Array:
        operands = [to_mlx(array, storage) for array in arrays]
        try:
            result = function(*operands)
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
