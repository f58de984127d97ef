"""The range catalogue: rows of integers from the device are converted to the same numbers as NumPy's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from experiments.benchmarks.adversarial_arrays import DTYPES, arrays_of, arrays_of_other_dtypes
from precision_lab.errors import InputError
from precision_lab.instrument.arrays import to_numpy
from precision_lab.instrument.observation import rows_of
from precision_lab.numerics.formats import FORMATS
from precision_lab.numerics.statistics import summarize
from precision_lab.probes import range_kernel
from precision_lab.probes.range_kernel import pending_ranges, read_ranges
from precision_lab.probes.range_rows import thresholds
from precision_lab.probes.ranges import DEFAULT_FORMATS, RangeCatalogue

DEFAULT = tuple(FORMATS[name] for name in DEFAULT_FORMATS)
ALL = tuple(FORMATS.values())


def assert_same(found: dict[str, Any], x: mx.array, formats: Sequence[Any]) -> None:
    """Asserts equality with NumPy, except for mean and rms: on a CPU there is no kernel, and sums are fp32."""
    expected = summarize(to_numpy(x), formats)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if math.isnan(value):
            assert math.isnan(found[key]), key
        elif key in ("mean", "rms"):
            assert abs(found[key] - value) <= 1e-5 * (expected["rms"] or 1), key
        else:
            assert found[key] == value, key


@pytest.mark.parametrize("dtype", DTYPES)
def test_operations_give_the_numbers_of_numpy(dtype: str) -> None:
    arrays = arrays_of(dtype)
    found = rows_of(read_ranges([pending_ranges(list(arrays.values()), DEFAULT)], DEFAULT))
    for label, row in zip(arrays, found, strict=True):
        assert_same(row, arrays[label], DEFAULT)


def test_other_dtypes_are_taken_as_float32() -> None:
    arrays = list(arrays_of_other_dtypes().values())
    for x, row in zip(arrays, rows_of(read_ranges([pending_ranges(arrays, ALL)], ALL)), strict=True):
        assert_same(row, x, ALL)


def test_what_was_prepared_apart_is_read_together_in_order() -> None:
    rng = np.random.default_rng(0)
    sizes = [3, 0, 70000, 1, 5000]
    batches = [[mx.array(rng.standard_normal(n), dtype) for n in sizes] for dtype in (mx.float32, mx.bfloat16)]
    batches.append([])
    found = rows_of(read_ranges([pending_ranges(batch, DEFAULT) for batch in batches], DEFAULT))
    for x, row in zip([x for batch in batches for x in batch], found, strict=True):
        assert_same(row, x, DEFAULT)
    assert [*read_ranges([], DEFAULT)["amax"]] == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_thresholds_are_where_a_cast_says(dtype: str) -> None:
    """Checks every pattern of a 16-bit dtype against the cast by ml_dtypes."""
    limits = thresholds(dtype, ALL)
    patterns = np.arange(limits.infinity, dtype=np.uint16)
    values = patterns.view(DTYPES[dtype]).astype(np.float32)
    for f, overflow, survival in zip(ALL, limits.overflow, limits.survival, strict=True):
        with np.errstate(over="ignore", under="ignore"):
            cast = values.astype(f.name).astype(np.float32)
        first = limits.infinity if overflow is None else limits.steps[overflow]
        assert np.array_equal(~np.isfinite(cast), patterns >= first), f.name
        assert np.array_equal(cast != 0, patterns >= limits.steps[survival]), f.name
    assert limits.steps[0] == 1
    assert list(limits.steps) == sorted(set(limits.steps))


def test_launches_on_cuda_cover_every_array_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses kernels that only record their launches, and rows computed by operations."""
    launches: list[tuple[str, list[int], int]] = []
    arrays = [mx.ones(n, dtype) for n in [1, 0, 65536, 65537, 200001, *range(1, 40)] for dtype in (mx.float16, mx.int8)]

    def kernels(dtype: str, formats: Any) -> Any:
        def read(inputs: list[mx.array], grid: tuple[int, int, int], **_: Any) -> list[mx.array]:
            assert {str(x.dtype) for x in inputs} == {f"mlx.core.{dtype}"}
            assert len(inputs) == 16
            launches.append((dtype, [x.size for x in inputs], grid[0] // 256))
            return [mx.array(0), mx.array(0)]

        def merge(grid: tuple[int, int, int], output_shapes: list[tuple[int, int]], **_: Any) -> list[mx.array]:
            assert output_shapes[0][0] == grid[0] // 256
            launches[-1][1][grid[0] // 256 :] = []  # the padding
            return [mx.zeros(output_shapes[0], mx.uint32)]

        return [read, merge]

    monkeypatch.setattr(range_kernel, "cuda_kernels", kernels)
    monkeypatch.setattr(range_kernel, "_launcher", lambda: (range_kernel._launch_cuda, 16))
    pending = pending_ranges(arrays, DEFAULT)
    assert sorted(pending.order) == [i for i, x in enumerate(arrays) if x.size]
    sizes = {"float16": [x.size for x in arrays[::2] if x.size], "float32": [x.size for x in arrays[1::2] if x.size]}
    for dtype, expected in sizes.items():
        assert [n for name, launched, _ in launches for n in launched if name == dtype] == expected
    for _, launched, tiles in launches:
        assert tiles == sum(math.ceil(n / 65536) for n in launched)
    assert len(read_ranges([pending], DEFAULT)["amax"]) == len(arrays)


def test_on_the_cpu_numpy_measures() -> None:
    x = mx.array([1.0, -2.0, 0.0])
    probe = RangeCatalogue(sites=("**",))
    assert not probe.is_lazy
    assert probe.measure(x) == summarize(to_numpy(x), DEFAULT)
    assert rows_of(probe.measure_each([x, x]))[1] == probe.measure(x)


def test_to_numpy_keeps_every_bfloat16_pattern() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    x = mx.array(bits).view(mx.bfloat16)
    assert np.array_equal(to_numpy(x).view(np.uint16), bits)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32])
def test_to_numpy_of_any_layout(dtype: mx.Dtype) -> None:
    x = mx.arange(120).reshape(2, 3, 4, 5).astype(dtype)
    for view in (x.transpose(3, 1, 0, 2), x[:, 1:, ::2], x[..., ::-1], x[1], x[0, 0, 0, 3], x[:, :0]):
        assert np.array_equal(to_numpy(view).astype(np.float32), np.array(view.astype(mx.float32)))


def test_unknown_format() -> None:
    with pytest.raises(InputError, match="float16"):
        RangeCatalogue(sites=("**",), formats=("flaot16",))
