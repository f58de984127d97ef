"""Arrays that expose errors in statistics: bit patterns of every kind, sizes around a kernel's limits, layouts."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import mlx.core as mx
import numpy as np

from precision_lab.numerics.formats import FORMATS

DTYPES = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
# a vector has 4 or 8 elements, a batch of a block 4096 or 8192, a tile 65536
_SIZES = (0, 1, 2, 3, 7, 8, 9, 255, 256, 257, 4096, 8191, 8192, 8193, 65535, 65536, 65537, 73728, 131072, 200001)


def arrays_of(dtype: str) -> Mapping[str, mx.array]:
    """Seeded arrays of one dtype of DTYPES, by name."""
    return {**{name: _device(x) for name, x in _values(dtype).items()}, **_layouts(dtype)}


def arrays_of_other_dtypes() -> Mapping[str, mx.array]:
    """Integers that float32 represents exactly, and booleans."""
    return {
        "int32": mx.arange(-300, 70000, dtype=mx.int32),
        "uint8": mx.arange(256).astype(mx.uint8),
        "bool": mx.arange(1000) % 3 == 0,
    }


def _values(dtype: str) -> dict[str, np.ndarray]:
    numpy_dtype = DTYPES[dtype]
    bits = np.dtype(f"u{numpy_dtype.itemsize}")
    rng = np.random.default_rng(3)

    def cast(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return np.asarray(x, np.float32).astype(numpy_dtype)

    def patterns(x: np.ndarray | list[int]) -> np.ndarray:
        return np.asarray(x).astype(bits).view(numpy_dtype)

    def normal(n: int, scale: float = 1.0) -> np.ndarray:
        return cast(rng.standard_normal(n) * scale)

    infinity = int(np.array(np.inf, numpy_dtype).view(bits))
    sign = 1 << (8 * numpy_dtype.itemsize - 1)
    normal_from = int(cast(np.array(FORMATS[dtype].smallest_normal)).view(bits))
    holes = normal(70000, 1e-3)
    holes[::997], holes[5::5003], holes[9::7001] = np.nan, np.inf, -np.inf
    one_nan = normal(140000)
    one_nan[65536 + 11] = np.nan
    massive = normal(100000)
    massive[:3] = cast(np.array([60000.0, -50000.0, 30000.0]))
    top = 15 if dtype == "float16" else 120
    near = [
        min(max(int(cast(np.array(min(v, FORMATS["float32"].max))).view(bits)) + step, 0), sign - 1)
        for f in FORMATS.values()
        for v in (f.max, f.overflow_threshold, f.underflow_threshold, f.smallest_subnormal, f.smallest_normal)
        for step in range(-2, 3)
    ]
    return {
        **{f"size {n}": normal(n, 3.0) for n in _SIZES},
        **{f"any bits, size {n}": patterns(rng.integers(0, 2 * sign, n)) for n in (300, 70000, 140000)},
        "every 16-bit pattern": patterns(np.arange(65536) << (8 * numpy_dtype.itemsize - 16)),
        "signalling NaN": patterns(np.full(9000, infinity + 1)),
        "-signalling NaN": patterns(np.full(9000, sign + infinity + 1)),
        "NaN": patterns(np.full(5, sign - 1)),
        "-NaN": patterns(np.full(70000, 2 * sign - 1)),
        "inf": patterns(np.full(9000, infinity)),
        "-inf": patterns(np.full(70000, sign + infinity)),
        "0": patterns(np.zeros(70000, int)),
        "-0": patterns(np.full(70000, sign)),
        "0 and -0": patterns([0, sign] * 5000),
        "subnormal": patterns(rng.integers(1, normal_from, 70000)),
        "-subnormal": patterns(sign + rng.integers(1, 100, 9000)),
        "smallest subnormal": patterns([1]),
        "equal": cast(np.full(70001, 3.14159)),
        "max": patterns(np.full(70001, infinity - 1)),
        "-max": patterns(np.full(70001, sign + infinity - 1)),
        "max and -max": patterns([infinity - 1, sign + infinity - 1] * 35000),
        "negative": cast(-1e-3 - np.abs(rng.standard_normal(70000))),
        "positive": cast(1e-3 + np.abs(rng.standard_normal(70000))),
        "holes": holes,
        "one NaN": one_nan,
        "massive": massive,
        "thresholds": patterns(near * 40),
        "-thresholds": patterns([sign + pattern for pattern in near] * 40),
        "wide": cast(rng.standard_normal(140000) * np.exp2(rng.integers(-100, 100, 140000))),
        "growing": cast(np.exp2(np.linspace(-140, top, 140000))),
        "cancelling": cast(np.tile([1e4, -1e4, 1e-4], 30000)),
    }


def _layouts(dtype: str) -> dict[str, mx.array]:
    rng = np.random.default_rng(4)
    with np.errstate(under="ignore"):
        x = _device(rng.standard_normal((6, 50, 241)).astype(np.float32).astype(DTYPES[dtype]))
    flat = x.reshape(-1)
    return {
        "transposed": x.transpose(2, 0, 1),
        "every other": x[:, ::2],
        "reversed": x[..., ::-1],
        "columns": x[..., 3:77],
        "broadcast": mx.broadcast_to(x[0, :, :1], (50, 300)),
        "scalar": x[0, 0, 5],
        "empty slice": x[:, :0],
        **{f"from {n}": flat[n:] for n in (1, 2, 3, 5, 8)},
        "rows": x[2:5],
        "an expression": x * 2 + 1,
    }


def _device(x: np.ndarray) -> mx.array:
    """Copies x to the device bit for bit."""
    name = "bfloat16" if x.dtype == DTYPES["bfloat16"] else x.dtype.name
    if not x.size:
        return mx.zeros(x.shape, getattr(mx, name))
    return mx.array(x.view(f"u{x.dtype.itemsize}")).view(getattr(mx, name))
