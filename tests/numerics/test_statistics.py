from __future__ import annotations

import math
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precision_lab.errors import InputError
from precision_lab.numerics import statistics
from precision_lab.numerics.formats import FORMATS, REDUCED_FORMATS
from precision_lab.numerics.statistics import exponent_histogram, summarize, summarize_each

Array = npt.NDArray[Any]
ALL_FORMATS = tuple(FORMATS.values())
FLOATS = ["float16", "bfloat16", "float32", "float64"]
COUNTS = ("num_nan", "num_inf", "num_zero")


def quiet_cast(x: Array, dtype: npt.DTypeLike) -> Array:
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def by_definition(x: Array) -> dict[str, float | int]:
    """The catalogue by its definition, with casts by ml_dtypes and sums by math.fsum."""
    values = quiet_cast(x, np.float64).ravel()
    finite = values[np.isfinite(values)]
    magnitude = np.abs(finite)
    nonzero = magnitude[magnitude > 0]
    n = finite.size
    amax = magnitude.max() if n else math.nan
    result = {
        "num_nan": int(np.isnan(values).sum()),
        "num_inf": int(np.isinf(values).sum()),
        "num_zero": int((values == 0).sum()),
        "amax": amax,
        "amin_nonzero": nonzero.min() if nonzero.size else math.nan,
        "min": finite.min() if n else math.nan,
        "max": finite.max() if n else math.nan,
        "mean": math.nan,
        "rms": math.nan,
    }
    if n:
        unit = amax or 1.0
        result["mean"] = unit * (math.fsum(finite / unit) / n)
        result["rms"] = unit * math.sqrt(math.fsum((finite / unit) ** 2) / n)
    for fmt in ALL_FORMATS:
        if x.dtype == np.float64:  # ml_dtypes rounds float64 twice, through float32
            over = np.abs(values) > fmt.overflow_threshold
            over |= fmt.threshold_overflows & (np.abs(values) == fmt.overflow_threshold)
            under = (np.abs(values) <= fmt.underflow_threshold) & (values != 0)
        else:
            rounded = quiet_cast(quiet_cast(quiet_cast(x, np.float32), fmt.name), np.float64).ravel()
            over = ~np.isfinite(rounded) & ~np.isnan(values)
            under = (rounded == 0) & (values != 0)
        size = values.size
        result[f"overflow_pct_{fmt.name}"] = 100 * int(over.sum()) / size if size else math.nan
        result[f"underflow_pct_{fmt.name}"] = 100 * int(under.sum()) / size if size else math.nan
        result[f"headroom_bits_{fmt.name}"] = math.log2(fmt.max) - math.log2(amax) if nonzero.size else math.nan
    return result


def assert_same(
    actual: dict[str, float | int], expected: dict[str, float | int], amax_tolerance: float = 1e-13
) -> None:
    """Asserts equality, except for mean and rms, whose sums round: these agree within a tolerance relative to amax."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if key in ("mean", "rms") and not math.isnan(value):
            assert abs(actual[key] - value) <= amax_tolerance * expected["amax"], key
        else:
            assert actual[key] == value or (math.isnan(actual[key]) and math.isnan(value)), key


def adversarial_values(dtype: npt.DTypeLike) -> Array:
    """All thresholds and limits of all formats with their neighbours, and special values, with both signs."""
    points = [0.0, 1.0, 1 / 3, math.nan, math.inf, 1e30, 1e-30]
    info = ml_dtypes.finfo(dtype)
    points += [float(info.max), float(info.smallest_normal), float(info.smallest_subnormal)]
    for f in ALL_FORMATS:
        points += [f.max, f.smallest_normal, f.smallest_subnormal, f.overflow_threshold, f.underflow_threshold]
    values = quiet_cast(np.array(points), dtype)
    with np.errstate(all="ignore"):
        beside = [np.nextafter(values, np.array(limit, dtype)) for limit in (0, math.inf)]
    values = np.concatenate([values, *beside])
    return np.concatenate([values, -values])


def tensors(dtype: str) -> st.SearchStrategy[Array]:
    pool = adversarial_values(dtype)
    indices = st.lists(st.integers(0, pool.size - 1), max_size=40)
    return indices.map(lambda chosen: pool[np.array(chosen, dtype=int)])


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_adversarial_tensors_match_the_definition(dtype: str, data: st.DataObject) -> None:
    x = data.draw(tensors(dtype))
    expected = by_definition(x)
    assert_same(summarize(x, ALL_FORMATS), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "CHUNK", data.draw(st.integers(1, 9)))
        assert_same(summarize(x, ALL_FORMATS), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_random_tensors_match_the_definition(dtype: str) -> None:
    rng = np.random.default_rng(11)
    for size in (1, 2, 100, 4096, 5000):
        for spread in (0, 20, 160):
            x = quiet_cast(rng.standard_normal(size) * np.exp2(rng.uniform(-spread, spread, size)), dtype)
            assert_same(summarize(x, ALL_FORMATS), by_definition(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_every_bit_pattern_matches_the_definition(dtype: str) -> None:
    bits = np.dtype(f"u{ml_dtypes.finfo(dtype).bits // 8}")
    x = np.arange(np.iinfo(bits).max + 1).astype(bits).view(dtype)
    assert_same(summarize(x, ALL_FORMATS), by_definition(x))
    finite = x[np.isfinite(x.astype(np.float32))] if dtype == "float8_e4m3fn" else x
    assert_same(summarize(finite, ALL_FORMATS), by_definition(finite))


def test_signalling_nan_is_a_nan() -> None:
    x = np.array([0x7F800001, 0xFFA00000, 0x3F800000], dtype=np.uint32).view(np.float32)
    assert summarize(x, REDUCED_FORMATS)["num_nan"] == 2
    assert summarize(x, REDUCED_FORMATS)["mean"] == 1


@pytest.mark.parametrize("offset", [-1, 0, 1, 17])
def test_borders_of_the_real_chunk(offset: int) -> None:
    size = 2 * statistics.CHUNK + offset
    x = np.ones(size, dtype=np.float32)
    x[[0, statistics.CHUNK - 1, statistics.CHUNK, size - 1]] = [np.nan, 1e6, -0.0, -np.inf]
    result = summarize(x, REDUCED_FORMATS)
    assert [result[k] for k in COUNTS] == [1, 1, 1]
    assert (result["min"], result["max"], result["amin_nonzero"]) == (0, 1e6, 1)
    assert result["overflow_pct_float16"] == 100 * 2 / size
    assert result["mean"] == pytest.approx((size - 4 + 1e6) / (size - 2), rel=1e-14)


def test_counts_can_exceed_the_integers_of_float32() -> None:
    x = np.zeros(2**24 + 3, dtype=ml_dtypes.bfloat16)
    assert summarize(x, ())["num_zero"] == 2**24 + 3


# --- values by hand --------------------------------------------------------------------------------------------------


def test_a_tensor_by_hand() -> None:
    x = np.array([[3, -4, 0, -0.0], [70000, np.inf, np.nan, 1e-9]], dtype=np.float32)
    result = summarize(x, [FORMATS["float16"], FORMATS["float8_e4m3fn"]])
    assert list(result) == [
        *("amax", "amin_nonzero", "min", "max", "mean", "rms", "num_nan", "num_inf", "num_zero"),
        *("overflow_pct_float16", "underflow_pct_float16", "headroom_bits_float16"),
        *("overflow_pct_float8_e4m3fn", "underflow_pct_float8_e4m3fn", "headroom_bits_float8_e4m3fn"),
    ]
    assert [result[k] for k in COUNTS] == [1, 1, 2]
    assert all(type(result[k]) is int for k in COUNTS)
    assert all(type(value) in (int, float) for value in result.values())
    assert (result["amax"], result["min"], result["max"]) == (70000, -4, 70000)
    assert result["amin_nonzero"] == float(np.float32(1e-9))
    assert result["mean"] == pytest.approx(69999 / 6, rel=1e-12)
    assert result["rms"] == pytest.approx(math.sqrt((9 + 16 + 70000**2) / 6), rel=1e-12)
    assert result["overflow_pct_float16"] == result["overflow_pct_float8_e4m3fn"] == 25
    assert result["underflow_pct_float16"] == 12.5
    assert result["headroom_bits_float16"] == pytest.approx(math.log2(65504 / 70000), abs=1e-12)


@pytest.mark.parametrize("dtype", [*FLOATS, "int32", "bool"])
def test_empty(dtype: str) -> None:
    result = summarize(np.zeros((0, 3), dtype=dtype), REDUCED_FORMATS)
    assert all(result.pop(k) == 0 for k in COUNTS)
    assert all(math.isnan(v) for v in result.values())


@pytest.mark.parametrize("dtype", FLOATS)
def test_all_zero(dtype: str) -> None:
    result = summarize(-np.zeros(5, dtype=dtype), REDUCED_FORMATS)
    for key in ("amax", "min", "max", "mean", "rms", "overflow_pct_float16", "underflow_pct_float16"):
        assert math.copysign(1, result[key]) == 1
        assert result[key] == 0, key
    assert math.isnan(result["amin_nonzero"])
    assert math.isnan(result["headroom_bits_float16"])
    assert [result[k] for k in COUNTS] == [0, 0, 5]


@pytest.mark.parametrize("dtype", FLOATS)
def test_zero_has_no_sign_in_the_catalogue(dtype: str) -> None:
    assert math.copysign(1, summarize(np.array([-0.0, 5], dtype=dtype), ())["min"]) == 1
    assert math.copysign(1, summarize(np.array([-0.0, -5], dtype=dtype), ())["max"]) == 1


@pytest.mark.parametrize("dtype", FLOATS)
def test_no_finite_element(dtype: str) -> None:
    result = summarize(np.array([np.nan, np.inf, -np.inf, np.nan], dtype=dtype), REDUCED_FORMATS)
    assert [result[k] for k in COUNTS] == [2, 2, 0]
    for key in ("amax", "amin_nonzero", "min", "max", "mean", "rms", "headroom_bits_float16"):
        assert math.isnan(result[key]), key
    assert (result["overflow_pct_float8_e4m3fn"], result["underflow_pct_float8_e4m3fn"]) == (50, 0)


@pytest.mark.parametrize(
    ("dtype", "value"), [("float32", 3e38), ("float64", 1.7e308), ("float64", 5e-324), ("bfloat16", 3e38)]
)
def test_all_equal_at_the_ends_of_the_range(dtype: str, value: float) -> None:
    x = np.full(10_000, -value, dtype=dtype)
    result = summarize(x, REDUCED_FORMATS)
    value = float(-x[0])
    assert (result["amax"], result["min"], result["max"]) == (value, -value, -value)
    assert result["rms"] == pytest.approx(value, rel=1e-14)
    assert result["mean"] == pytest.approx(-value, rel=1e-14)


def test_mean_survives_cancellation() -> None:
    assert summarize(np.array([1e8, 1, -1e8], dtype=np.float32), ())["mean"] == 1 / 3
    assert summarize(np.array([1e15, 1, -1e15]), ())["mean"] == 1 / 3


def test_integers_and_booleans() -> None:
    x = np.array([[-(2**40), 0], [7, 500]])
    assert_same(summarize(x, ALL_FORMATS), by_definition(x.astype(np.float64)))
    assert summarize(np.array([True, False, True]), ())["mean"] == pytest.approx(2 / 3)
    assert summarize(np.array([0, 255], dtype=np.uint8), ())["max"] == 255


def test_other_dtypes_are_rejected() -> None:
    for empty_or_not in (0, 2):
        with pytest.raises(InputError, match="complex64"):
            summarize(np.ones(empty_or_not, dtype=np.complex64), REDUCED_FORMATS)


# --- layout and memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_memory_layout_does_not_matter(dtype: str) -> None:
    x = quiet_cast(np.random.default_rng(3).standard_normal((12, 10, 14)) * 1e4, dtype)
    views = [x.T, x[::2, ::-1], x[:, 3], np.asfortranarray(x), np.broadcast_to(x[:1], (4, 10, 14)), x[3, 4, 5]]
    for view in views:
        view = np.asarray(view)
        assert summarize(view, REDUCED_FORMATS) == summarize(view.copy(order="C"), REDUCED_FORMATS)


def test_foreign_byte_order() -> None:
    x = np.array([1.5, -2, 1e6, 0], dtype=np.float32)
    assert_same(summarize(x.astype(">f4"), REDUCED_FORMATS), summarize(x, REDUCED_FORMATS))


def test_the_input_is_not_written_to() -> None:
    for dtype in FLOATS:
        x = np.array([1, -2, 0, np.nan, np.inf], dtype=dtype)
        before = x.tobytes()
        x.setflags(write=False)
        summarize(x, REDUCED_FORMATS)
        assert x.tobytes() == before


def test_a_large_tensor_needs_little_memory() -> None:
    x = np.ones((1024, 2048), dtype=np.float32)
    tracemalloc.start()
    try:
        summarize(x, REDUCED_FORMATS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 2


# --- histogram -------------------------------------------------------------------------------------------------------


def test_exponent_histogram_by_hand() -> None:
    x = np.array([[1, -1.99, 2], [0, 8.5, 15], [np.nan, np.inf, -np.inf]], dtype=np.float32)
    exponents, counts = exponent_histogram(x)
    np.testing.assert_array_equal(exponents, [0, 1, 2, 3])
    np.testing.assert_array_equal(counts, [2, 1, 0, 2])


def test_exponent_histogram_of_the_ends_of_float64() -> None:
    exponents, counts = exponent_histogram(np.array([5e-324, 1.7e308]))
    assert (exponents[0], exponents[-1]) == (-1074, 1023)
    assert counts.sum() == counts[0] + counts[-1] == 2


@pytest.mark.parametrize("dtype", FLOATS)
def test_exponent_histogram_counts_every_finite_nonzero_element(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CHUNK", 13)
    x = adversarial_values(dtype)
    exponents, counts = exponent_histogram(x)
    values = np.abs(quiet_cast(x, np.float64))
    values = values[np.isfinite(values) & (values > 0)]
    assert counts.sum() == values.size
    for e, count in zip(exponents.tolist(), counts.tolist(), strict=True):
        above = math.ldexp(1, e + 1) if e < 1023 else math.inf
        assert count == np.count_nonzero((values >= math.ldexp(1, e)) & (values < above))


def test_exponent_histogram_of_nothing() -> None:
    for x in (np.zeros(0, np.float32), np.zeros(4), np.array([np.nan, np.inf])):
        exponents, counts = exponent_histogram(x)
        assert exponents.size == counts.size == 0


# --- many arrays ------------------------------------------------------------------------------------------------------


def test_a_batch_gives_bit_for_bit_the_same_as_each_array_alone() -> None:
    rng = np.random.default_rng(4)
    arrays = [adversarial_values(dtype) for dtype in FLOATS for _ in range(2)]
    for size in (0, 1, 64, 4096, statistics.CHUNK, statistics.CHUNK + 1):
        for dtype in FLOATS:
            for hole in (None, 0.0, np.nan, -np.inf):
                x = rng.standard_normal(size) * np.exp2(rng.uniform(-30, 30, size))
                if hole is not None and size:
                    x[rng.integers(size)] = hole
                arrays.append(quiet_cast(x, dtype))
    arrays += [np.zeros((2, 8), np.float32), np.zeros((2, 8), np.float32), np.full(16, -3.0, np.float32)]
    order = rng.permutation(len(arrays))
    together = summarize_each([arrays[i] for i in order], ALL_FORMATS)
    for place, i in enumerate(order):
        alone = summarize(arrays[i], ALL_FORMATS)
        assert list(together) == list(alone)
        np.testing.assert_array_equal([column[place] for column in together.values()], list(alone.values()))
    for name, column in together.items():
        assert column.dtype == (np.int64 if name in COUNTS else np.float64)


def test_no_arrays_give_empty_columns() -> None:
    columns = summarize_each([], REDUCED_FORMATS)
    assert list(columns) == list(summarize(np.zeros(0), REDUCED_FORMATS))
    assert all(column.shape == (0,) for column in columns.values())
