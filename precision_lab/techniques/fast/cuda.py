"""The CUDA kernels of the fused operations, and the limits that their launches share.

`common.cu` is the header of every kernel, `NAME.cu` the body of one. Every kernel reads and writes vectors of 16 bytes,
one at a time in each thread, and computes in fp32. T is the dtype of the arrays (B, L, D); the others may have dtypes
of their own. MLX passes the shapes that a source names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import Any, TypedDict, cast

import mlx.core as mx

Template = list[tuple[str, bool | int | mx.Dtype]]
"""Compile-time constants of a kernel by name."""

VECTOR_BYTES = 16
WARP = 32
LARGEST_BLOCK = 1024
ROWS = 4
"""Rows for each thread of an element-wise kernel, so that it loads the bias once."""


def vectors(x: mx.array) -> int:
    """The number of 16-byte vectors along the last axis; a thread loads one at a time."""
    return int(x.shape[-1] * x.dtype.size // VECTOR_BYTES)


def runs() -> bool:
    """Whether kernels run on the default device."""
    return bool(mx.cuda.is_available() and mx.default_device().type == mx.DeviceType.gpu)


def takes(x: mx.array, *others: mx.array, parts: int = 1) -> bool:
    """Whether the kernels support these arrays (B, L, D): one dtype, and whole warps along each of the parts of D."""
    if not runs():
        return False
    alike = all(other.dtype == x.dtype and other.shape[-1] == x.shape[-1] for other in others)
    return alike and mx.issubdtype(x.dtype, mx.floating) and vectors(x) % (parts * WARP) == 0


class Launch(TypedDict):
    """The threads of a launch."""

    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]


def block_a_row(threads: int, rows: int) -> Launch:
    """One block of threads for each row, which keeps the row in registers."""
    return {"grid": (threads * rows, 1, 1), "threadgroup": (threads, 1, 1)}


def element_wise(columns: int, rows: int, most: int) -> Launch:
    """One thread for each column of vectors in ROWS rows, at most `most` in a block."""
    return {"grid": (columns, -(-rows // ROWS), 1), "threadgroup": (min(columns, most), 1, 1)}


def nano(eps: float) -> int:
    """eps in units of 1e-9, because template arguments of kernels are integers."""
    assert eps == round(eps * 1e9) / 1e9, f"eps {eps} is no multiple of 1e-9"
    return round(eps * 1e9)


@lru_cache
def source(name: str) -> str:
    """The text of `name`.cu."""
    return resources.files(__package__).joinpath(f"{name}.cu").read_text()


@lru_cache
def kernel(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Callable[..., Any]:
    """The kernel whose body is `name`.cu; MLX compiles it at the first call for each set of template arguments."""
    compiled: Any = mx.fast.cuda_kernel(
        name=f"precision_lab_{name}",
        input_names=inputs,
        output_names=outputs,
        source=source(name),
        header=source("common"),
    )
    return cast(Callable[..., Any], compiled)
