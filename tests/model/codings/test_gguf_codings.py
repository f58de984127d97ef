"""The block formats of GGUF against gguf's decoders and encoders, and against bytes of ggml's own encoder."""

import gguf
import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from precision_lab.errors import InputError
from precision_lab.model.coded import CodedLinear
from precision_lab.model.codings.gguf.small import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from precision_lab.model.codings.gguf.super_blocks import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K
from tests.model.codings.adversarial import weights
from tests.model.codings.ggml_reference import FILE, TYPES
from tests.model.codings.next_codes import check_neighbours

SMALL = [Q4_0(), Q4_1(), Q5_0(), Q5_1(), Q8_0()]
SUPER = [Q2_K(), Q3_K(), Q4_K(), Q5_K(), Q6_K()]
FORMATS = pytest.mark.parametrize("coding", [*SMALL, *SUPER], ids=lambda coding: coding.name)
WEIGHTS = weights()


def bits(x):
    return np.asarray(x, np.float32).view(np.uint32)


def decoded(coding, packed):
    return np.array(coding.decode({"weight": mx.array(packed)}))


def encoded(coding, weight):
    return np.array(coding.encode(mx.array(weight))["weight"])


def gguf_decoded(coding, packed):
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(coding.number))


@FORMATS
def test_sizes_are_those_of_gguf(coding):
    kind = gguf.GGMLQuantizationType(coding.number)
    assert kind.name.lower() == coding.name
    assert gguf.GGML_QUANT_SIZES[kind] == (coding.values, coding.size)


@FORMATS
def test_random_bytes_decode_as_in_gguf(coding):
    packed = np.random.default_rng(coding.number).integers(0, 256, (16, 8 * coding.size), dtype=np.uint8)
    ours, theirs = decoded(coding, packed), gguf_decoded(coding, packed)
    assert np.isfinite(theirs).mean() > 0.5
    np.testing.assert_array_equal(ours, theirs)


@FORMATS
@pytest.mark.parametrize("case", WEIGHTS)
def test_encoded_weights_decode_as_in_gguf(coding, case):
    packed = encoded(coding, WEIGHTS[case])
    ours, theirs = decoded(coding, packed), gguf_decoded(coding, packed)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    np.testing.assert_array_equal(bits(ours)[~np.isnan(ours)], bits(theirs)[~np.isnan(theirs)])


@pytest.mark.parametrize("coding", SMALL, ids=lambda coding: coding.name)
@pytest.mark.parametrize("case", WEIGHTS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of gguf, about what overflows
def test_small_blocks_are_encoded_as_in_gguf(coding, case):
    theirs = gguf.quants.quantize(WEIGHTS[case], gguf.GGMLQuantizationType(coding.number))
    np.testing.assert_array_equal(encoded(coding, WEIGHTS[case]), theirs)


@pytest.mark.parametrize("coding", SUPER, ids=lambda coding: coding.name)
@pytest.mark.parametrize("case", WEIGHTS)
def test_super_blocks_are_encoded_as_in_ggml(coding, case):
    assert coding.number == TYPES[coding.name]
    np.testing.assert_array_equal(encoded(coding, WEIGHTS[case]), load_file(FILE)[f"{coding.name}/{case}"])


@FORMATS
def test_codes_do_not_depend_on_what_is_encoded_beside(coding):
    weight = np.concatenate([np.random.default_rng(1).standard_normal((300, 512), np.float32), WEIGHTS["outliers"]])
    np.testing.assert_array_equal(encoded(coding, weight)[-2:], encoded(coding, WEIGHTS["outliers"]))


@FORMATS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_block_that_is_not_finite_stays_so_and_others_are_untouched(coding, value):
    weight = WEIGHTS["normal"].copy()
    weight[1, coding.values + 3] = value
    values = decoded(coding, encoded(coding, weight))
    assert not np.isfinite(values[1, coding.values : 2 * coding.values]).any()
    plain = decoded(coding, encoded(coding, WEIGHTS["normal"]))
    np.testing.assert_array_equal(values[0], plain[0])
    np.testing.assert_array_equal(values[1, : coding.values], plain[1, : coding.values])


@FORMATS
def test_the_error_falls_by_half_with_each_bit(coding):
    weight = np.random.default_rng(3).standard_normal((8, 1024), np.float32)
    error = np.linalg.norm(decoded(coding, encoded(coding, weight)) - weight) / np.linalg.norm(weight)
    assert 0.4 < error * 2 ** int(coding.name[1]) < 1.8


@FORMATS
def test_a_linear_keeps_its_packed_rows_and_refuses_other_widths(coding):
    linear = CodedLinear.encoded(coding, mx.array(WEIGHTS["normal"]))
    assert linear.weight.shape == (2, 512 // coding.values * coding.size)
    assert linear.weight.dtype == mx.uint8
    with pytest.raises(InputError, match=rf"{coding.name}: .* 48 channels, expected a multiple of {coding.values}"):
        CodedLinear.encoded(coding, mx.ones((2, 48)))


@FORMATS
def test_neighbours_are_the_values_of_the_next_codes(coding):
    rng = np.random.default_rng(coding.size)
    weight = rng.standard_normal((40, 1024), np.float32) * np.ldexp(np.float32(1), rng.integers(-6, 6, (40, 1)))
    arrays = coding.encode(mx.array(weight.reshape(40, 1024)))
    check_neighbours(coding, arrays, *coding.limits)
