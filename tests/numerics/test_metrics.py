from __future__ import annotations

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precision_lab.errors import InputError
from precision_lab.numerics import metrics
from precision_lab.numerics.metrics import (
    COMPARED,
    Metrics,
    compare,
    compare_images,
    psnr_db,
    ssim,
    ulp_error_quantiles,
)

REAL = [name for name in COMPARED if name != "num_nonfinite"]


def all_undefined(result: Metrics, reason: str) -> bool:
    return all(math.isnan(result.values[k]) and result.reasons[k] == reason for k in REAL)


# --- compare ---------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    ref = np.array([[3.0, -4.0], [0.0, 12.0]])  # norm 13
    x = np.array([[3.0, -4.0], [0.6, 11.2]])  # error (0.6, -0.8), norm 1
    result = compare(x, ref)
    assert result.reasons == {}
    assert list(result.values) == list(COMPARED)
    assert result.values["rel_l2"] == pytest.approx(1 / 13)
    assert result.values["sqnr_db"] == pytest.approx(20 * math.log10(13))
    assert result.values["cosine"] == pytest.approx((9 + 16 + 11.2 * 12) / (13 * math.sqrt(25 + 0.36 + 11.2**2)))
    assert result.values["max_abs_err"] == pytest.approx(0.8)
    assert result.values["mean_signed_rel_err"] == pytest.approx(-0.2 / 19)
    assert result.values["num_nonfinite"] == 0


@pytest.mark.parametrize("magnitude", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_metrics_do_not_depend_on_the_unit(magnitude: float) -> None:
    rng = np.random.default_rng(2)
    ref = rng.standard_normal(1000)
    x = ref + 1e-3 * rng.standard_normal(1000)
    expected = compare(x, ref).values
    scaled = compare(x * magnitude, ref * magnitude).values
    for name in ("rel_l2", "sqnr_db", "cosine", "mean_signed_rel_err"):
        assert scaled[name] == pytest.approx(expected[name], rel=1e-9), name
    assert scaled["max_abs_err"] == pytest.approx(expected["max_abs_err"] * magnitude, rel=1e-9)


def test_error_much_smaller_than_the_values_in_float32() -> None:
    ref = np.full(100_000, 1e30, dtype=np.float32)
    x = np.nextafter(ref, np.float32(np.inf))
    step = float(x[0]) - float(ref[0])
    values = compare(x, ref).values
    assert values["rel_l2"] == pytest.approx(step / float(ref[0]), rel=1e-12)
    assert values["mean_signed_rel_err"] == pytest.approx(step / float(ref[0]), rel=1e-12)
    assert values["max_abs_err"] == step


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_identical(dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((33, 5)).astype(dtype)
    result = compare(x, x.copy())
    assert result.reasons == {"sqnr_db": "identical"}
    assert math.isnan(result.values["sqnr_db"])
    assert (result.values["rel_l2"], result.values["max_abs_err"], result.values["mean_signed_rel_err"]) == (0, 0, 0)
    assert result.values["cosine"] == pytest.approx(1, abs=1e-15)


def test_both_zero() -> None:
    result = compare(np.zeros(3), -np.zeros(3))
    assert result.values["rel_l2"] == result.values["mean_signed_rel_err"] == result.values["max_abs_err"] == 0
    assert result.reasons == {"sqnr_db": "identical", "cosine": "zero_reference"}


def test_zero_reference() -> None:
    result = compare(np.array([0.0, 2.0]), np.zeros(2))
    assert set(result.reasons.values()) == {"zero_reference"}
    assert result.reasons.keys() == set(REAL) - {"max_abs_err"}
    assert result.values["max_abs_err"] == 2


def test_zero_input() -> None:
    result = compare(np.zeros(2), np.array([3.0, -4.0]))
    assert result.reasons == {"cosine": "zero_input"}
    assert (result.values["rel_l2"], result.values["sqnr_db"], result.values["max_abs_err"]) == (1, 0, 4)
    assert result.values["mean_signed_rel_err"] == pytest.approx(1 / 7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_nonfinite_positions_count_once_and_leave_the_rest_undefined(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "CHUNK", 2)
    x = np.array([1, np.nan, np.inf, 4, 5], dtype=dtype)
    ref = np.array([1, np.nan, 3, -np.inf, 5], dtype=dtype)
    result = compare(x, ref)
    assert result.values["num_nonfinite"] == 3
    assert all_undefined(result, "nonfinite")


def test_empty_and_scalar() -> None:
    result = compare(np.zeros((0, 4)), np.zeros((0, 4)))
    assert all_undefined(result, "empty")
    assert result.values["num_nonfinite"] == 0
    assert compare(np.array(3.0), np.array(4.0)).values["rel_l2"] == 0.25


def test_a_value_beyond_float64_is_undefined() -> None:
    result = compare(np.array([1.5e308]), np.array([-1.5e308]))
    assert result.reasons == {"max_abs_err": "overflow"}
    assert result.values["rel_l2"] == 2


def test_mixed_dtypes_and_layouts() -> None:
    ref = np.arange(24, dtype=np.float64).reshape(4, 6) - 7.5
    x = np.asfortranarray(ref.astype(ml_dtypes.bfloat16))
    assert compare(x, ref).reasons == {"sqnr_db": "identical"}
    assert compare(ref.T, ref.T.copy()).reasons == {"sqnr_db": "identical"}


@given(
    st.lists(st.tuples(*[st.floats(-1e6, 1e6, width=32)] * 2), min_size=1, max_size=30),
    st.integers(1, 7),
)
def test_chunks_add_up_to_the_definition(pairs: list[tuple[float, float]], chunk: int) -> None:
    x, ref = np.array(pairs).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "CHUNK", chunk)
        values = compare(x, ref).values
    error = x - ref
    assert values["max_abs_err"] == np.abs(error).max()
    if np.linalg.norm(ref) > 0 and np.linalg.norm(error) > 1e-100:
        assert values["rel_l2"] == pytest.approx(np.linalg.norm(error) / np.linalg.norm(ref), rel=1e-9)
        bias = math.fsum(error) / math.fsum(np.abs(ref))
        assert values["mean_signed_rel_err"] == pytest.approx(bias, rel=1e-9, abs=1e-12 * values["rel_l2"] + 1e-300)
        assert -1 <= values["cosine"] <= 1 or math.isnan(values["cosine"])


@pytest.mark.parametrize("measure", [compare, lambda x, ref: ulp_error_quantiles(x, ref, "bfloat16")])
def test_shapes_must_agree(measure: Any) -> None:
    with pytest.raises(InputError, match=r"\(2, 3\).*\(3, 2\)"):
        measure(np.zeros((2, 3)), np.zeros((3, 2)))


def test_strict_json() -> None:
    x = np.array([1.0, 2.0])
    record = json.loads(json.dumps(compare(x, x).to_json(), allow_nan=False))
    assert record["sqnr_db"] is None
    assert record["sqnr_db_reason"] == "identical"
    assert (record["rel_l2"], record["num_nonfinite"]) == (0, 0)
    assert "rel_l2_reason" not in record


# --- ulps ------------------------------------------------------------------------------------------------------------


def test_ulp_quantiles_by_hand() -> None:
    ref = np.array([1.0, 1.0, 2e7, 0.0])
    x = ref + np.array([0, 2 * 2.0**-7, 3 * 131072, 2.0**-133])  # 0, 2, 3 and 1 ulps of bfloat16
    result = ulp_error_quantiles(x, ref, "bfloat16")
    assert result.reasons == {}
    assert result.values["ulp_p50"] == 1.5
    assert result.values["ulp_p99"] == pytest.approx(2 + 0.97)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_rounding_stays_within_half_an_ulp(name: str) -> None:
    rng = np.random.default_rng(8)
    ref = (rng.uniform(-1, 1, 20_000) * np.exp2(rng.uniform(-12, 8, 20_000))).astype(np.float32)
    result = ulp_error_quantiles(ref.astype(name), ref, name)
    assert 0.2 < result.values["ulp_p50"] < 0.3
    assert 0.45 < result.values["ulp_p99"] <= 0.5


def test_ulp_quantiles_undefined() -> None:
    for bad in (np.nan, np.inf):
        for x, ref in (([1.0, bad], [1.0, 1.0]), ([1.0, 1.0], [1.0, bad])):
            result = ulp_error_quantiles(np.array(x), np.array(ref), "float16")
            assert result.reasons == {"ulp_p50": "nonfinite", "ulp_p99": "nonfinite"}
            assert math.isnan(result.values["ulp_p50"])
    empty = np.zeros(0)
    assert set(ulp_error_quantiles(empty, empty, "float16").reasons.values()) == {"empty"}
    with pytest.raises(InputError, match="float16"):
        ulp_error_quantiles(np.ones(2), np.ones(2), "float61")


# --- images ----------------------------------------------------------------------------------------------------------


def photo(height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_psnr_by_hand() -> None:
    ref = np.zeros((2, 2, 3), dtype=np.uint8)
    image = ref.copy()
    image[0, 0, 0] = 255
    assert psnr_db(image, ref) == pytest.approx(10 * math.log10(12))
    assert psnr_db(ref, image) == psnr_db(image, ref)
    assert psnr_db(np.full_like(ref, 255), ref) == 0
    assert psnr_db(ref + np.uint8(1), ref) == pytest.approx(48.1308, abs=1e-4)


def test_identical_images() -> None:
    result = compare_images(photo(), photo())
    assert result.reasons == {"psnr_db": "identical"}
    assert math.isnan(result.values["psnr_db"])
    assert result.values["ssim"] == pytest.approx(1)


def test_ssim_by_its_formula_on_one_window() -> None:
    ref = np.random.default_rng(1).integers(0, 256, (7, 7, 1), dtype=np.uint8)
    image = (ref // 2 + 20).astype(np.uint8)
    a, b = image.astype(np.float64), ref.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    covariance = ((a - a.mean()) * (b - b.mean())).sum() / 48
    luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
    structure = (2 * covariance + c2) / (a.var(ddof=1) + b.var(ddof=1) + c2)
    assert ssim(image, ref) == pytest.approx(luminance * structure, rel=1e-9)


def test_more_noise_is_worse() -> None:
    ref = np.broadcast_to(np.linspace(40, 200, 32).astype(np.uint8)[None, :, None], (24, 32, 3))
    noise = np.random.default_rng(6).standard_normal(ref.shape)
    results = [compare_images((ref + s * noise).round().astype(np.uint8), ref).values for s in (1, 4, 12)]
    for name in ("psnr_db", "ssim"):
        values = [r[name] for r in results]
        assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(("height", "width"), [(3, 9), (4, 4), (6, 5), (8, 7)])
def test_small_images_have_a_smaller_window(height: int, width: int) -> None:
    image = photo(height, width)
    assert compare_images(image, 255 - image).reasons == {}
    assert ssim(image, image) == pytest.approx(1)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (1, 9), (9, 2)])
def test_images_too_small_for_a_window(height: int, width: int) -> None:
    image = photo(height, width)
    result = compare_images(image, 255 - image)
    assert result.reasons == {"ssim": "too_small"}
    assert result.values["psnr_db"] > 0


def test_empty_images() -> None:
    assert compare_images(photo(0, 5), photo(0, 5)).reasons == {"psnr_db": "empty", "ssim": "too_small"}


def test_images_must_be_uint8_of_three_axes_and_one_shape() -> None:
    for measure in (psnr_db, ssim):
        with pytest.raises(InputError, match="float64"):
            measure(photo() / 255, photo() / 255)
        with pytest.raises(InputError, match="height, width, channels"):
            measure(photo()[..., 0], photo()[..., 0])
        with pytest.raises(InputError, match="equal shapes"):
            measure(photo(8, 8), photo(8, 9))
