"""The codes of stored weights and the values next to them, against codes that NumPy unpacks, changes and packs."""

from copy import copy

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest

from precision_lab.model.coded import CodedLinear, linear_weight
from precision_lab.model.codings.base import Coding
from precision_lab.model.codings.convrot import ConvRot, rotated
from precision_lab.model.codings.int4 import Int4
from precision_lab.model.codings.int8 import Int8, codes
from precision_lab.model.layers import Linear
from precision_lab.model.neighbours import neighbours, step, stochastic
from precision_lab.model.quantized import Quantization, QuantizedLinear
from tests.spread import thinned

PACKED = ["affine2", "affine3", "affine4", "affine5", "affine6", "affine8", "mxfp4", "mxfp8", "nvfp4", "nvfp4_scaled"]
FLOATS = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def plain(seed, shape=(24, 128)):
    """A linear whose weights have rows of very different size, zeros, a constant row and an outlier."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape) * np.exp(rng.normal(0, 1.5, (shape[0], 1)))
    weight[0], weight[1], weight[2, 5] = 0, 0.3, 40
    layer = Linear(shape[1], shape[0], bias=False)
    layer.weight = mx.array(weight.astype(np.float32))
    return layer


def packed(name, layer):
    mode, bits = (name[:6], int(name[6:])) if name.startswith("affine") else (name.removesuffix("_scaled"), None)
    return QuantizedLinear.packed(layer, Quantization.checked("test", mode, bits, None, name.endswith("_scaled")))


def unpack(words, bits):
    stream = np.unpackbits(np.array(words).view(np.uint8), axis=-1, bitorder="little")
    return (stream.reshape(len(stream), -1, bits) << np.arange(bits)).sum(axis=-1)


def pack(codes, bits):
    stream = (codes[..., None] >> np.arange(bits)) & 1
    return mx.array(np.packbits(stream.reshape(len(codes), -1).astype(np.uint8), -1, "little").view(np.uint32))


def signed(raw, bits):
    half = 1 << (bits - 1)
    return np.where(raw >= half, -(raw & (half - 1)), raw)


def unsigned(codes, bits):
    return np.where(codes < 0, (1 << (bits - 1)) | -codes, codes)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", PACKED)
def test_a_code_one_higher_or_lower_decodes_to_the_neighbour(name, seed):
    layer = packed(name, plain(seed))
    found, decoded = neighbours(layer), np.array(linear_weight(layer))
    codes, below, above = (np.array(each) for each in found[:3])
    rising = np.broadcast_to(np.array(found.rising), codes.shape)
    floating = layer.mode != "affine"
    raw = unpack(layer.weight, layer.bits)
    np.testing.assert_array_equal(signed(raw, layer.bits) if floating else raw, codes)
    highest = {4: 7, 8: 126}[layer.bits] if floating else (1 << layer.bits) - 1
    lowest = -highest if floating else 0
    for distance, direction in ((below, -1), (above, 1)):
        moved = codes + direction * rising
        inside = (moved >= lowest) & (moved <= highest)
        assert np.isinf(distance[~inside]).all()
        other = copy(layer)
        moved = np.clip(moved, lowest, highest)
        other.weight = pack(unsigned(moved, layer.bits) if floating else moved, layer.bits)
        expected = direction * (np.array(linear_weight(other)).astype(np.float64) - decoded)
        largest = np.abs(decoded).max(axis=1, keepdims=True)
        np.testing.assert_array_less(
            np.abs(expected - np.where(inside, distance, 0))[inside], (3e-7 * largest + 1e-12 + 0 * codes)[inside]
        )
    assert (codes == lowest).any() | (codes == highest).any()  # the ends are met
    assert (np.array(step(found)) >= 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_floating_point_weights_have_the_neighbours_of_numpy(dtype):
    layer = plain(3)
    layer.weight = layer.weight.astype(FLOATS[dtype])
    found = neighbours(layer)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    stored = np.array(layer.weight.astype(mx.float32)).astype(kind)
    for distance, end in ((found.below, -np.inf), (found.above, np.inf)):
        expected = np.abs(np.nextafter(stored, kind.type(end)).astype(np.float64) - stored.astype(np.float64))
        used = np.array(stored != 0)  # next to zero are subnormal numbers, which MLX may flush
        np.testing.assert_allclose(np.array(distance)[used], expected[used], rtol=1e-6)
    np.testing.assert_array_equal(np.array(found.codes)[0], 0)


def test_int8_has_the_scale_of_its_row():
    layer = CodedLinear.encoded(Int8(), plain(4).weight)
    found, scale = neighbours(layer), np.array(layer.scale)
    codes = np.array(layer.weight, dtype=np.int32)
    np.testing.assert_array_equal(np.array(found.codes), codes)
    np.testing.assert_array_equal(np.array(found.above), np.where(codes == 127, np.inf, scale))
    np.testing.assert_array_equal(np.array(found.below), np.where(codes == -127, np.inf, scale))
    np.testing.assert_array_equal(np.array(step(found)), np.broadcast_to(scale, codes.shape))


@pytest.mark.parametrize("group", [64, None])
def test_int4_has_the_scale_of_its_group(group):
    layer = CodedLinear.encoded(Int4(group), plain(4).weight)
    found, width = neighbours(layer), group or 128
    scale = np.repeat(np.array(layer.scale), width, axis=1)
    codes = np.rint(np.array(linear_weight(layer)) / scale)
    assert {codes.min(), codes.max()} == {-7, 7}
    np.testing.assert_array_equal(np.array(found.codes), codes)
    np.testing.assert_array_equal(np.array(found.above), np.where(codes == 7, np.inf, scale))
    np.testing.assert_array_equal(np.array(found.below), np.where(codes == -7, np.inf, scale))


@pytest.mark.parametrize("inner", [Int8(), Int4(64), Int4(None)], ids=str)
def test_a_rotated_coding_has_the_codes_of_the_rotated_weight(inner):
    weight = plain(4).weight
    found = neighbours(CodedLinear.encoded(ConvRot(inner), weight))
    expected = neighbours(CodedLinear.encoded(inner, rotated(weight, 256)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.array(one), np.array(other))


@pytest.mark.parametrize("inner", [Int8(), Int4(64)], ids=str)
def test_the_mean_of_a_rotated_coding_rounded_stochastically_is_the_weight(inner):
    rng, draws = np.random.default_rng(12), 200
    weight = mx.array(rng.standard_normal((6, 64)).astype(np.float32))
    layer = CodedLinear.encoded(ConvRot(inner), weight)
    gap, total = float(mx.max(layer.scale).item()), np.zeros((6, 64))
    for _ in range(draws):
        total += np.array(stochastic(layer, weight, mx.array(rng.random((6, 64)).astype(np.float32)))[0])
    # a value beyond the last code stays there; the largest magnitude itself is a code
    assert np.abs(total / draws - np.array(weight)).max() < 5 * gap / 2 / np.sqrt(draws)


def test_a_coding_that_states_no_codes_has_no_neighbours():
    class Stored(Coding):
        name = "stored"

        def encode(self, weight):
            return {"weight": weight}

        def decode(self, arrays):
            return arrays["weight"]

    layer = CodedLinear.encoded(Stored(), mx.ones((2, 4)))
    assert neighbours(layer) is None
    assert stochastic(layer, mx.ones((2, 4)), mx.zeros((2, 4))) is None


@pytest.mark.parametrize("name", thinned([*PACKED, "int8", "bfloat16"], keep=4))
def test_stochastic_rounding_keeps_the_mean_and_takes_only_neighbours(name):
    rng = np.random.default_rng(7)
    layer = plain(5, (6, 64))
    weight = layer.weight
    if name == "bfloat16":
        layer.weight = weight.astype(mx.bfloat16)
    else:
        layer = CodedLinear.encoded(Int8(), weight) if name == "int8" else packed(name, layer)
    nearest, found = np.array(linear_weight(layer), dtype=np.float64), neighbours(layer)
    below, above = (np.array(each, dtype=np.float64) for each in (found.below, found.above))
    target = np.clip(
        np.array(weight), np.where(np.isinf(below), nearest, -np.inf), np.where(np.isinf(above), nearest, np.inf)
    )
    draws = 120
    total, moves = np.zeros(nearest.shape), np.zeros(nearest.shape)
    for _ in range(draws):
        rounded, codes = stochastic(layer, weight, mx.array(rng.random(nearest.shape).astype(np.float32)))
        change = np.array(rounded, dtype=np.float64) - nearest
        total += change
        moves += np.array(codes) != np.array(found.codes)
        close = np.isclose(change, above, rtol=1e-4) | np.isclose(change, -below, rtol=1e-4) | (change == 0)
        assert close.all()
    gap = np.where(np.isfinite(above), above, below)
    np.testing.assert_array_less(np.abs(nearest + total / draws - target), 5 * gap / np.sqrt(draws) / 2 + 1e-12)
    assert (moves[np.abs(target - nearest) > 0.2 * gap] > 0).all()


def test_stochastic_rounding_of_what_the_format_holds_changes_nothing():
    layer = packed("affine4", plain(6))
    rounded, codes = stochastic(layer, linear_weight(layer), mx.array(np.random.default_rng(0).random((24, 128))))
    np.testing.assert_array_equal(np.array(rounded), np.array(linear_weight(layer)))
    np.testing.assert_array_equal(np.array(codes), np.array(neighbours(layer).codes))


def test_two_weights_that_share_their_random_numbers_are_rounded_in_order():
    """With the same numbers a larger weight never becomes the smaller value."""
    rng = np.random.default_rng(8)
    weight = plain(9, (6, 64)).weight
    low = CodedLinear.encoded(Int8(), weight)
    numbers = mx.array(rng.random((6, 64)).astype(np.float32))
    more = mx.array(rng.random((6, 64)).astype(np.float32)) * low.scale
    arrays = {"weight": codes(weight + more, low.scale).astype(mx.int8), "scale": low.scale}
    high = CodedLinear(Int8(), arrays, (6, 64))
    assert (stochastic(high, weight + more, numbers)[0] >= stochastic(low, weight, numbers)[0] - 1e-6).all().item()


def test_a_coding_in_another_basis_is_rounded_stochastically_there():
    """Its codes move to neighbours in that basis, and the mean of what is stored is the weight in its own."""
    rng = np.random.default_rng(11)
    basis = mx.array(np.linalg.qr(rng.standard_normal((64, 64)))[0].astype(np.float32))

    class Rotated(Int8):
        name = "rotated"

        def encode(self, weight):
            return super().encode(self.to_basis(weight))

        def decode(self, arrays):
            return self.from_basis(super().decode(arrays))

        def to_basis(self, weight):
            return weight @ basis

        def from_basis(self, values):
            return values @ basis.T

    weight = plain(12, (6, 64)).weight
    layer = CodedLinear.encoded(Rotated(), weight)
    nearest, scale = np.array(linear_weight(layer)), np.array(layer.scale)
    draws, total = 200, np.zeros((6, 64))
    for _ in range(draws):
        rounded, moved = stochastic(layer, weight, mx.array(rng.random((6, 64)).astype(np.float32)))
        change = np.array((rounded - linear_weight(layer)) @ basis) / scale
        np.testing.assert_allclose(change, np.array(moved) - np.array(layer.weight, dtype=np.int32), atol=1e-3)
        total += np.array(rounded)
    error = (total / draws - np.array(weight)) / scale
    assert np.abs(error).max() < 5 * 0.5 / np.sqrt(draws)
    assert np.abs((nearest - np.array(weight)) / scale).max() > 0.5 / np.sqrt(draws)
