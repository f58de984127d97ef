from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.numerics.formats import FORMATS, REDUCED_FORMATS, Format, format_named, ulp

# IEEE 754-2019 table 3.5; OCP 8-bit floating point specification; bfloat16 is the upper half of float32
PUBLISHED = {
    "float16": (65504.0, 2.0**-14, 2.0**-24, 65520.0, True, True),
    "bfloat16": (float.fromhex("0x1.fep127"), 2.0**-126, 2.0**-133, float.fromhex("0x1.ffp127"), True, True),
    "float8_e4m3fn": (448.0, 2.0**-6, 2.0**-9, 464.0, False, False),
    "float8_e5m2": (57344.0, 2.0**-14, 2.0**-16, 61440.0, True, True),
    "float32": (float.fromhex("0x1.fffffep127"), 2.0**-126, 2.0**-149, float.fromhex("0x1.ffffffp127"), True, True),
}

by_name = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS.keys())
both_signs = pytest.mark.parametrize("sign", [1, -1])


@by_name
def test_derived_constants_match_the_published_ones(fmt: Format) -> None:
    assert PUBLISHED[fmt.name] == (
        fmt.max,
        fmt.smallest_normal,
        fmt.smallest_subnormal,
        fmt.overflow_threshold,
        fmt.threshold_overflows,
        fmt.has_inf,
    )


def test_reduced_formats_are_all_formats_narrower_than_float32() -> None:
    assert {f.name for f in REDUCED_FORMATS} == FORMATS.keys() - {"float32"}


def cast(value: np.floating, fmt: Format) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.asarray(value).astype(np.dtype(fmt.name)))


def with_neighbours(threshold: float, fmt: Format) -> tuple[np.floating, np.floating, np.floating]:
    """The threshold and its float32 neighbours; float64 for float32, whose thresholds lie between its values."""
    dtype = np.float64 if fmt.name == "float32" else np.float32
    middle = dtype(threshold)
    assert float(middle) == threshold
    return np.nextafter(middle, dtype(0)), middle, np.nextafter(middle, dtype(np.inf))


@by_name
@both_signs
def test_overflow_threshold_is_where_the_cast_overflows(fmt: Format, sign: int) -> None:
    below, at, above = with_neighbours(fmt.overflow_threshold, fmt)
    assert cast(sign * below, fmt) == sign * fmt.max
    assert np.isfinite(cast(sign * at, fmt)) == (not fmt.threshold_overflows)
    overflowed = cast(sign * above, fmt)
    assert overflowed == sign * np.inf if fmt.has_inf else np.isnan(overflowed)


@by_name
@both_signs
def test_underflow_threshold_is_where_the_cast_gives_zero(fmt: Format, sign: int) -> None:
    below, at, above = with_neighbours(fmt.underflow_threshold, fmt)
    assert below != 0
    assert cast(sign * below, fmt) == 0
    assert cast(sign * at, fmt) == 0
    assert cast(sign * above, fmt) == sign * fmt.smallest_subnormal


@by_name
def test_format_named_returns_the_table_entry(fmt: Format) -> None:
    assert format_named(fmt.name) is fmt


@pytest.mark.parametrize(
    ("name", "suggestion"), [("bfloat", "bfloat16"), ("fp16", "float16"), ("float8_e4m3", "float8_e4m3fn")]
)
def test_unknown_name_is_an_input_error_with_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(InputError, match=f"'{name}'.*{suggestion}"):
        format_named(name)
    with pytest.raises(InputError, match=suggestion):
        ulp(1.0, name)


@pytest.mark.parametrize(
    ("x", "name", "expected"),
    [
        (2e7, "bfloat16", 131072),
        (57e6, "float32", 4),
        (-57e6, "float32", 4),
        (1.0, "float16", 2.0**-10),
        (1.0, "float8_e5m2", 0.25),
        (65504.0, "float16", 32),
        (0.0, "float16", 2.0**-24),
        (3e-5, "float16", 2.0**-24),
        (2.0**-14, "float16", 2.0**-24),
        (2.0**-13, "float16", 2.0**-23),
        (1e5, "float16", 64),
        (1e-45, "float32", 2.0**-149),
    ],
)
def test_ulp_by_hand(x: float, name: str, expected: float) -> None:
    assert ulp(x, name) == expected
    assert ulp(x, FORMATS[name]) == expected


@pytest.mark.parametrize("fmt", REDUCED_FORMATS, ids=lambda f: f.name)
def test_ulp_is_the_gap_between_all_adjacent_values(fmt: Format) -> None:
    bits = np.dtype(f"u{ml_dtypes.finfo(fmt.name).bits // 8}")
    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = np.arange(np.iinfo(bits).max // 2 + 1).astype(bits).view(fmt.name).astype(np.float64)
    values = values[np.isfinite(values)]
    assert values[-1] == fmt.max
    gaps = np.diff(values)
    np.testing.assert_array_equal(ulp(values[:-1], fmt), gaps)
    np.testing.assert_array_equal(ulp(-(values[:-1] + 0.75 * gaps), fmt), gaps)


def test_ulp_of_float32_is_numpys_spacing() -> None:
    rng = np.random.default_rng(5)
    x = np.ldexp(rng.uniform(0.5, 1, 5000), rng.integers(-148, 128, 5000)).astype(np.float32)
    np.testing.assert_array_equal(ulp(x, "float32"), np.spacing(x).astype(np.float64))


def test_ulp_keeps_the_shape_and_is_nan_where_x_is_not_finite() -> None:
    x = np.array([[np.nan, np.inf], [-np.inf, 1.0]], dtype=ml_dtypes.bfloat16)
    np.testing.assert_array_equal(ulp(x, "bfloat16"), [[np.nan, np.nan], [np.nan, 2.0**-7]])
