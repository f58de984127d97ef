"""What arrives of a change, against statistics in NumPy's float64 and encoders written in NumPy."""

import math

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from omegaconf import OmegaConf

from precision_lab.cli.candidates import make
from precision_lab.cli.config import plain
from precision_lab.cli.paths import option_files
from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components, walk
from precision_lab.lab.agreement import agreement, correlation, rms
from precision_lab.lab.candidates import Candidate
from precision_lab.lab.formats import distinct, expect_formats
from precision_lab.lab.survival import Survival, Unchanged, Unfit
from precision_lab.model.coded import linear_weight, with_weight
from precision_lab.model.layers import Linear
from precision_lab.model.neighbours import neighbours
from precision_lab.record.layout import Layout

SHAPE = (24, 256)


def candidate(name):
    [(_, node)] = plain(OmegaConf.load(option_files("candidate")[name])).items()
    return Candidate(name, node, make)


FORMATS = [each.name for each in distinct(candidate(name) for name in option_files("candidate"))]


def adversarial(seed, shape=SHAPE):
    """A weight with outliers, a row of zeros, constant rows and rows of very different size, and a change of it."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape) * np.exp(rng.normal(0, 1, (shape[0], 1)))
    weight[0], weight[1], weight[2, 5], weight[3, ::17] = 0, 0.25, 60, 8
    size = 10 ** rng.uniform(-2.5, -0.5)
    delta = size * rng.standard_normal((shape[0], 4)) @ rng.standard_normal((4, shape[1]))
    delta[4] = 0
    return weight.astype(np.float32), delta.astype(np.float32)


def site_of(weight, dtype=mx.float32):
    holder = nn.Module()
    holder.linear = Linear(weight.shape[1], weight.shape[0], bias=False)
    holder.linear.weight = mx.array(weight).astype(dtype)
    [site] = walk(Components({"model": holder}, Layout.of(["model"])))
    return site


def rows_of(weight, delta, *names, dtype=mx.float32, **settings):
    measured = Survival([candidate(name) for name in names], **settings)
    changes = {site_of(weight, dtype): lambda _: mx.array(delta)}
    found = list(measured.measure(changes, lambda amount, label: None))
    assert not any(isinstance(each, Unfit | Unchanged) for each in found)
    return {(row["format"], row["order"], row["rounding"]): row for rows in found for row in rows}


def statistics(plain_values, fused, delta):
    """In float64, as one would write it down."""
    arrived, meant = (fused.astype(np.float64) - plain_values).ravel(), delta.astype(np.float64).ravel()
    moved = arrived != 0
    return {
        "changed_values": moved.mean(),
        "correlation": np.corrcoef(arrived, meant)[0, 1],
        "gain": arrived @ meant / (meant @ meant),
        "relative_error": np.sqrt(((arrived - meant) ** 2).mean() / (meant**2).mean()),
    }


def affine4(weight):
    """Codes and decoded values of MLX's affine mode, groups of 64."""
    groups = weight.reshape(-1, 64)
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    from_low = np.abs(low) > np.abs(high)
    scale = np.where(from_low, 1, -1) * np.maximum((high - low) / np.float32(15), np.float32(1e-7))
    edge = np.where(from_low, low, high)
    whole = np.rint(edge / scale)
    scale = np.where(whole == 0, scale, edge / np.where(whole == 0, 1, whole)).astype(np.float32)
    offset = np.where(whole == 0, 0, edge).astype(np.float32)
    codes = np.clip(np.rint((groups - offset) / scale), 0, 15).astype(np.float32)
    return codes.reshape(weight.shape), (codes * scale + offset).reshape(weight.shape), np.abs(scale)


def int8(weight):
    scale = np.abs(weight).max(axis=1, keepdims=True) / np.float32(127)
    scale = np.where(scale == 0, np.float32(1), scale)
    codes = np.rint(weight / scale)
    return codes, codes * scale, scale


def fp8_channel(weight):
    scale = np.abs(weight).max(axis=1, keepdims=True) / np.float32(448)
    scale = np.where(scale == 0, np.float32(1), scale)
    codes = (weight / scale).astype(ml_dtypes.float8_e4m3fn)
    return codes.view(np.int8), codes.astype(np.float32) * scale, None


def as_stored(weight):
    rounded = weight.astype(ml_dtypes.bfloat16)
    return rounded.view(np.int16), rounded.astype(np.float32), None


ENCODERS = {"affine4": affine4, "int8": int8, "fp8_channel": fp8_channel, "as_stored": as_stored}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ENCODERS)
def test_nearest_rounding_agrees_with_encoders_in_numpy(name, seed):
    encode = ENCODERS[name]
    weight, delta = adversarial(seed)
    dtype = mx.bfloat16 if name == "as_stored" else mx.float32
    if name == "as_stored":
        weight = as_stored(weight)[1]
    found = rows_of(weight, delta, name, dtype=dtype, roundings=["nearest"])
    codes, base, scale = encode(weight)
    for order, summed in (("before", weight + delta), ("after", base + delta)):
        row = found[name, order, "nearest"]
        new_codes, fused, _ = encode(summed)
        expected = statistics(base, fused, delta)
        expected["changed_codes"] = (new_codes != codes).mean()
        chosen = new_codes != codes
        expected["correlation_changed"] = np.corrcoef((fused - base)[chosen], delta[chosen])[0, 1]
        # a value on a boundary may fall on either side where MLX fuses a multiplication and an addition
        for key, value in expected.items():
            assert row[key] == pytest.approx(value, rel=2e-3, abs=2e-3), (key, order)
        assert row["format_error"] == pytest.approx(
            np.sqrt(((base - weight) ** 2).mean() / (weight**2).mean()), rel=1e-4
        )
    if scale is not None:
        assert row["step"] == pytest.approx(
            np.broadcast_to(scale, (scale.size, weight.size // scale.size)).mean(), rel=1e-5
        )
        assert row["step_over_delta"] == pytest.approx(
            row["step"] / np.sqrt((delta.astype(float) ** 2).mean()), rel=1e-5
        )


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_agrees_with_statistics_in_numpy(name):
    weight, delta = adversarial(len(name) + sum(map(ord, name)))
    found = rows_of(weight, delta, name)
    assert {key[1:] for key in found} >= {("before", "nearest"), ("after", "nearest")}
    site = site_of(weight)
    technique = candidate(name).technique(["**"])
    base = technique.rewrite(site)
    decoded, has_codes = np.array(linear_weight(base)), neighbours(base) is not None
    before = technique.rewrite(site_of(weight + delta))
    after = with_weight(base, mx.array(decoded + delta))
    for order, module in (("before", before), ("after", after)):
        row = found[name, order, "nearest"]
        for key, value in statistics(decoded, np.array(linear_weight(module)), delta).items():
            assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-5), (key, order)
        raw = [np.array(each.weight) for each in (base, module)]
        if has_codes and raw[0].shape == SHAPE and raw[0].dtype.itemsize == 1:  # one code a byte
            assert row["changed_codes"] == pytest.approx((raw[0] != raw[1]).mean(), abs=2e-3)  # both zeros are one code
        if has_codes and raw[0].dtype == raw[1].dtype and (raw[0] == raw[1]).all():
            assert row["changed_codes"] == 0
        # a coding that states no codes has neither step nor stochastic rounding
        assert has_codes == (row["step"] > 0) == (not math.isnan(row["changed_codes"]))
    assert has_codes == ((name, "after", "stochastic") in found)
    assert found[name, "before", "nearest"]["codes_without_delta"] == 0 or not has_codes
    assert found[name, "before", "nearest"]["noise_without_delta"] == 0


@pytest.mark.parametrize("name", ["affine4", "int8", "nvfp4", "fp8_channel"])
def test_stochastic_rounding_lets_a_change_below_the_step_arrive_on_average(name):
    """Rounded to nearest after decoding, little of it does, and on a grid that does not move nothing at all."""
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((64, 1024)).astype(np.float32)
    step = rows_of(weight, weight, name)[name, "after", "nearest"]["step"]
    delta = (step / 12 * rng.standard_normal(weight.shape)).astype(np.float32)
    found = rows_of(weight, delta, name)
    assert found[name, "before", "nearest"]["gain"] == pytest.approx(1, abs=0.1)
    assert found[name, "before", "stochastic"]["gain"] == pytest.approx(1, abs=0.1)
    assert found[name, "after", "stochastic"]["gain"] == pytest.approx(1, abs=0.1)
    # e4m3 has finer steps near zero, where a part of the change arrives
    assert found[name, "after", "nearest"]["gain"] < (0.6 if name == "fp8_channel" else 0.2)


def test_affine_weights_that_are_quantised_again_change_without_a_change():
    """MLX's affine mode is not idempotent: the codes of a group need not reach both ends, and then its scale moves."""
    weight = np.random.default_rng(6).standard_normal((64, 512)).astype(np.float32)
    row = rows_of(weight, 1e-3 * weight, "affine4")["affine4", "after", "nearest"]
    assert 0.05 < row["codes_without_delta"] < 0.25
    codes, base, _ = affine4(weight)
    assert row["codes_without_delta"] == pytest.approx((affine4(base)[0] != codes).mean(), abs=2e-3)
    assert rows_of(weight, 1e-3 * weight, "int8")["int8", "after", "nearest"]["codes_without_delta"] == 0


def test_the_factors_of_svdquant_move_when_a_weight_is_stored_again():
    """They are found anew in the decoded weight, and the codes are those of what they leave."""
    weight = np.random.default_rng(7).standard_normal((64, 512)).astype(np.float32)
    row = rows_of(weight, 1e-3 * weight, "svdquant")["svdquant", "after", "nearest"]
    assert 0.05 < row["codes_without_delta"] < 0.5
    assert row["noise_without_delta"] > 10


def test_a_change_of_zero_is_left_out_and_one_of_a_constant_has_no_correlation():
    weight, _ = adversarial(8)
    measured = Survival([candidate("int8")], ["before"], ["nearest"])
    [found] = measured.measure({site_of(weight): lambda _: mx.zeros(SHAPE)}, lambda amount, label: None)
    assert isinstance(found, Unchanged)
    row = rows_of(weight, np.full(SHAPE, 0.125, np.float32), "int8")["int8", "before", "nearest"]
    assert math.isnan(row["correlation"])
    assert row["gain"] == pytest.approx(1, abs=0.2)


def test_what_does_not_fit_says_so_and_what_is_not_finite_is_refused():
    weight, delta = adversarial(9, (8, 48))
    measured = Survival([candidate("q4_k"), candidate("int8")], ["before"], ["nearest"])
    found = list(measured.measure({site_of(weight): lambda _: mx.array(delta)}, lambda amount, label: None))
    assert isinstance(found[0], Unfit)
    assert "48" in found[0].reason
    assert len(found[1]) == 1
    weight[0, 0] = np.nan
    with pytest.raises(InputError, match="weight that is not finite"):
        list(measured.measure({site_of(weight): lambda _: mx.array(delta)}, lambda amount, label: None))


def test_only_formats_of_weights_are_formats():
    assert {"affine4", "int8", "nvfp4", "fp8_unscaled", "as_stored", "q4_k", "nf4", "svdquant"} <= set(FORMATS)
    assert not {"reordered_sums", "ffn_scaling", "bfloat16"} & set(FORMATS)
    with pytest.raises(InputError, match="candidate float16 stores no weights"):
        expect_formats([candidate("float16")])


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_agreement_does_not_leave_the_range_of_fp32(size):
    rng = np.random.default_rng(10)
    meant = (size * rng.standard_normal((9, 70))).astype(np.float32)
    arrived = (meant + size * rng.standard_normal((9, 70))).astype(np.float32)
    found = agreement(mx.array(arrived), mx.array(meant))
    a, b = arrived.astype(np.float64).ravel() / size, meant.astype(np.float64).ravel() / size
    assert found.correlation == pytest.approx(np.corrcoef(a, b)[0, 1], rel=1e-5)
    assert found.gain == pytest.approx(a @ b / (b @ b), rel=1e-5)
    assert found.relative_error == pytest.approx(np.sqrt(((a - b) ** 2).sum() / (b @ b)), rel=1e-5)
    assert rms(mx.array(meant)) == pytest.approx(np.sqrt((b**2).mean()) * size, rel=1e-5)


def test_agreement_of_nothing_is_undefined_not_perfect():
    some, none = mx.array(np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)), mx.zeros((4, 8))
    assert all(map(math.isnan, agreement(some, none)))
    lost = agreement(none, some)
    assert math.isnan(lost.correlation)
    assert (lost.gain, lost.relative_error) == (0, 1)
    assert math.isnan(correlation(some, some, mx.zeros((4, 8), dtype=mx.bool_)))
    assert correlation(some, some, some > 0) == pytest.approx(1)
