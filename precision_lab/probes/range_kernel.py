"""Statistics of arrays on their device, as rows of integers (range_rows.py): CUDA and Metal kernels, or operations.

A kernel (range_kernel.cu, range_kernel.metal) reads an array once. Nothing here evaluates arrays: the rows are lazy, to
be evaluated together with the arrays, which need not be kept afterwards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import mlx.core as mx
import numpy as np

from precision_lab.instrument.arrays import dtype_name
from precision_lab.numerics.formats import Format
from precision_lab.probes.range_rows import ROW_DTYPES, columns_of_rows, most_steps, row_layout, thresholds

_ARRAYS = 16
"""Number of arrays that one launch on CUDA reads."""
_THREADS = 256
_TILE = 1 << 16
"""Elements that one block of threads reads: a few microseconds of work; a count per thread fits in 16 bits."""

Kernel = Callable[..., list[mx.array]]
Launch = Callable[[Sequence[mx.array], str, tuple[Format, ...]], mx.array]


class PendingRanges(NamedTuple):
    """Rows of a sequence of arrays that have not been read yet."""

    rows: tuple[mx.array, ...]
    """Lazy arrays (n, words) of uint32; in total one row for every array that is not empty."""
    order: tuple[int, ...]
    """The index of the array of each row."""
    dtypes: tuple[str, ...]
    """The dtype of the bit patterns of each row."""
    sizes: tuple[int, ...]
    """The number of elements of every array, including empty arrays."""


def pending_ranges(arrays: Sequence[mx.array], formats: tuple[Format, ...]) -> PendingRanges:
    """Statistics of `arrays`, of any shape and layout, with fewer than 2^31 elements each.

    A dtype that is not in ROW_DTYPES is cast to float32.
    """
    launch, together = _launcher()
    alike: dict[str, list[int]] = defaultdict(list)
    sizes = []
    for index, x in enumerate(arrays):
        sizes.append(x.size)
        if sizes[-1]:
            name = dtype_name(x)
            alike[name if name in ROW_DTYPES else "float32"].append(index)
    rows: list[mx.array] = []
    order: list[int] = []
    dtypes: list[str] = []
    for dtype, indices in alike.items():
        for start in range(0, len(indices), together):
            piece = indices[start : start + together]
            rows.append(launch([arrays[i] for i in piece], dtype, formats))
        order += indices
        dtypes += [dtype if launch is not _rows_in_ops else "float32"] * len(indices)
    return PendingRanges(tuple(rows), tuple(order), tuple(dtypes), tuple(sizes))


def read_ranges(pending: Sequence[PendingRanges], formats: tuple[Format, ...]) -> Mapping[str, np.ndarray]:
    """The range catalogue by columns, with one element for each array of `pending` in order; waits for the rows."""
    layout = row_layout(formats, sums_in_double=_launcher()[0] is _launch_cuda)
    lazy = [rows for each in pending for rows in each.rows]
    sizes = np.array([size for each in pending for size in each.sizes], np.int64)
    rows = np.zeros(len(sizes), layout)
    dtypes = np.full(len(sizes), "float32", "U8")
    if lazy:  # concatenated, because on a GPU each array would need a transfer
        starts = np.cumsum([0, *(len(each.sizes) for each in pending)])
        order = [start + i for start, each in zip(starts.tolist(), pending, strict=False) for i in each.order]
        rows[order] = np.array(mx.concatenate(lazy)).view(layout)[:, 0]
        dtypes[order] = [dtype for each in pending for dtype in each.dtypes]
    return columns_of_rows(rows, dtypes, sizes, formats)


# --- launching -------------------------------------------------------------------------------------------------------


def _launcher() -> tuple[Launch, int]:
    """The function that computes rows on the default device, and the number of arrays it takes at a time."""
    if mx.default_device().type == mx.DeviceType.gpu:
        if mx.cuda.is_available():
            return _launch_cuda, _ARRAYS
        if mx.metal.is_available():
            return _launch_metal, 1
    return _rows_in_ops, 1


def _launch_cuda(arrays: Sequence[mx.array], dtype: str, formats: tuple[Format, ...]) -> mx.array:
    """(n, words) uint32, the rows of up to _ARRAYS arrays."""
    padded = [_as(x, dtype) for x in arrays]
    number = len(padded)
    # the kernel takes _ARRAYS inputs, and the grid ends before the padding; the smallest array pads, because MLX limits
    # the bytes of a graph of kernels
    padded += [min(padded, key=lambda x: x.size)] * (_ARRAYS - number)
    tiles = sum(-(-x.size // _TILE) for x in padded[:number])
    words = row_layout(formats, sums_in_double=True).itemsize // 4
    read, merge = cuda_kernels(dtype, formats)
    rows, first_tiles = read(
        inputs=padded,
        template=[("T", padded[0].dtype)],
        grid=(tiles * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[(tiles, words), (_ARRAYS + 1,)],
        output_dtypes=[mx.uint32, mx.int32],
    )
    (totals,) = merge(
        inputs=[rows, first_tiles],
        grid=(number * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[(number, words)],
        output_dtypes=[mx.uint32],
    )
    return totals


def _launch_metal(arrays: Sequence[mx.array], dtype: str, formats: tuple[Format, ...]) -> mx.array:
    """(1, words) uint32, the row of one array."""
    (x,) = arrays
    bits = _as(x, dtype).view(mx.uint32 if dtype == "float32" else mx.uint16)
    tiles = -(-x.size // _TILE)
    words = row_layout(formats, sums_in_double=False).itemsize // 4
    read, merge = metal_kernels(dtype, formats)
    (rows,) = read(
        inputs=[bits],
        grid=(tiles * _THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[(tiles, words)],
        output_dtypes=[mx.uint32],
    )
    (totals,) = merge(
        inputs=[rows],
        grid=(_THREADS, 1, 1),
        threadgroup=(_THREADS, 1, 1),
        output_shapes=[(1, words)],
        output_dtypes=[mx.uint32],
    )
    return totals


def _as(x: mx.array, dtype: str) -> mx.array:
    """x as (size,) of a dtype of ROW_DTYPES."""
    return (x if dtype_name(x) == dtype else x.astype(mx.float32)).reshape(-1)


# --- the source text of the kernels ----------------------------------------------------------------------------------

# Rows have the same layout for every dtype. The text of pass 2 is the same too, so that MLX compiles it once.


@lru_cache
def cuda_kernels(dtype: str, formats: tuple[Format, ...]) -> list[Kernel]:
    """Pass 1 reduces `_ARRAYS` arrays to one row per tile; pass 2 reduces these to one row per array."""
    return [cast(Kernel, mx.fast.cuda_kernel(**text)) for text in cuda_texts(dtype, formats)]


@lru_cache
def metal_kernels(dtype: str, formats: tuple[Format, ...]) -> list[Kernel]:
    """Pass 1 reduces the bit patterns of one array to one row per tile; pass 2 reduces these to one row."""
    return [cast(Kernel, mx.fast.metal_kernel(**text)) for text in metal_texts(dtype, formats)]


def cuda_texts(dtype: str, formats: tuple[Format, ...]) -> list[dict[str, Any]]:
    """The arguments of `mx.fast.cuda_kernel` for both passes."""
    header, of_any = (_header("range_kernel.cu", "", d, formats) for d in (dtype, ROW_DTYPES[0]))
    names = [f"x{i}" for i in range(_ARRAYS)]
    sizes = [f"{x}_shape[0]" for x in names]
    read = f"""
  const T* const arrays[] = {{{", ".join(names)}}};
  const int sizes[] = {{{", ".join(sizes)}}};
  range_statistics::read_tile(arrays, sizes, rows, first_tiles);
"""
    merge = "  range_statistics::merge_tiles(rows, first_tiles, totals);"
    return [
        _text(f"range_read_{dtype}", names, ["rows", "first_tiles"], read, header),
        _text("range_merge", ["rows", "first_tiles"], ["totals"], merge, of_any),
    ]


def metal_texts(dtype: str, formats: tuple[Format, ...]) -> list[dict[str, Any]]:
    """The arguments of `mx.fast.metal_kernel` for both passes."""
    header, of_any = (_header("range_kernel.metal", "constant ", d, formats) for d in (dtype, ROW_DTYPES[0]))
    read = """
  threadgroup range_statistics::Row shared[range_statistics::THREADS];
  const uint tile = threadgroup_position_in_grid.x;
  const uint thread_index = thread_index_in_threadgroup;
  const range_statistics::Row row = range_statistics::read_tile(x, x_shape[0], tile, thread_index);
  range_statistics::merge_threads(row, shared, (device range_statistics::Row*)rows + tile, thread_index);
"""
    merge = """
  threadgroup range_statistics::Row shared[range_statistics::THREADS];
  const uint thread_index = thread_index_in_threadgroup;
  const range_statistics::Row row = range_statistics::merge_tiles(
      (const device range_statistics::Row*)rows, rows_shape[0], thread_index);
  range_statistics::merge_threads(row, shared, (device range_statistics::Row*)totals, thread_index);
"""
    return [
        _text(f"range_read_{dtype}", ["x"], ["rows"], read, header),
        _text("range_merge", ["rows"], ["totals"], merge, of_any),
    ]


def _text(name: str, inputs: list[str], outputs: list[str], source: str, header: str) -> dict[str, Any]:
    return {"name": name, "input_names": inputs, "output_names": outputs, "source": source, "header": header}


def _header(file: str, address_space: str, dtype: str, formats: tuple[Format, ...]) -> str:
    limits = thresholds(dtype, formats)
    mantissa_bits, bias, bits = {"bfloat16": (7, 127, 16), "float16": (10, 15, 16), "float32": (23, 127, 32)}[dtype]
    numbers = {
        "THREADS": _THREADS,
        "TILE": _TILE,
        "COUNTS": most_steps(formats),
        "STEPS": len(limits.steps),
        "MANTISSA_BITS": mantissa_bits,
        "BIAS": bias,
    }
    patterns = {"INF": limits.infinity, "SIGN": 1 << (bits - 1)}
    lines = [
        "namespace range_statistics {",
        *(f"{address_space}constexpr int {name} = {value};" for name, value in numbers.items()),
        *(f"{address_space}constexpr unsigned {name} = {value}u;" for name, value in patterns.items()),
        f"using Bits = unsigned {'short' if bits == 16 else 'int'};",
        _threshold_function(limits.steps, "" if address_space else "__device__ "),
        "}",
    ]
    return "\n".join(lines) + "\n" + Path(__file__).with_name(file).read_text()


def _threshold_function(steps: Sequence[int], function_space: str) -> str:
    """A chain of conditions on the index. In unrolled loops the compiler evaluates all of them."""
    chain = "".join(f"i == {i} ? {step}u : " for i, step in enumerate(steps[:-1]))
    return f"{function_space}constexpr unsigned threshold(int i) {{ return {chain}{steps[-1]}u; }}"


# --- without a kernel ------------------------------------------------------------------------------------------------


def _rows_in_ops(arrays: Sequence[mx.array], dtype: str, formats: tuple[Format, ...]) -> mx.array:
    """(1, words) uint32, the row of one array as float32, computed by about forty operations; sums in fp32."""
    (x,) = arrays
    limits = thresholds("float32", formats)
    bits = _as(x, "float32").view(mx.uint32)
    magnitude = bits & 0x7FFFFFFF
    finite, valid = magnitude < limits.infinity, magnitude <= limits.infinity
    signed = bits.view(mx.int32)
    least = -(1 << 31)

    # values are mantissa * 2^power, scaled by a power of two near the largest to avoid subnormals and overflow
    field = mx.where(finite, magnitude >> 23, 0).astype(mx.int32)
    mantissa = mx.where(finite, magnitude & 0x7FFFFF, 0) | mx.where(field > 0, 1 << 23, 0).astype(mx.uint32)
    power = mx.maximum(field, 1) - 150
    exponent = mx.max(power) + 23
    scale = (127 + mx.maximum(power - exponent, -127)).astype(mx.uint32) << 23
    scaled = mantissa.astype(mx.float32) * scale.view(mx.float32)
    signed_scaled = mx.where(signed < 0, -scaled, scaled)

    words: list[mx.array] = []
    for total in (_sum_by_stages(signed_scaled), _sum_by_stages(scaled * scaled)):
        words += [total.view(mx.uint32), mx.array(0, mx.uint32)]
    words += [
        mx.sum(~valid),
        mx.sum(magnitude == limits.infinity),
        mx.max(mx.where(finite, signed, least)).view(mx.uint32),
        mx.max(mx.where(finite, bits, 0)),
        mx.min(mx.where(finite, bits, 0xFFFFFFFF)),
        mx.min(mx.where(finite & (magnitude > 0), magnitude, 0xFFFFFFFF)),
        exponent.view(mx.uint32),
        *(mx.sum(valid & (magnitude >= step)) for step in limits.steps),
    ]
    words += [mx.array(0, mx.uint32)] * (most_steps(formats) - len(limits.steps))
    return mx.stack([word.astype(mx.uint32) for word in words]).reshape(1, -1)


def _sum_by_stages(x: mx.array) -> mx.array:
    """The sum of (n,) float32, 256 elements at a time: one long fp32 sum would lose three digits."""
    while x.size > 1:
        x = mx.sum(mx.pad(x, (0, -x.size % 256)).reshape(-1, 256), axis=1)
    return x[0]
