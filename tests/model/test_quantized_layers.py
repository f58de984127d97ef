"""Layers with packed weights: decoded values against NumPy, the dtype of decoding, and the effect of casting."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from precision_lab.errors import InputError
from precision_lab.model import casting, quantized
from precision_lab.model.quantized import MODES, Quantization, QuantizedEmbedding, QuantizedLinear

AFFINE = [(bits, group_size) for bits in MODES["affine"].bits for group_size in MODES["affine"].groups]
OTHERS = [mode for mode in MODES if mode != "affine"]
ROWS, CHANNELS = 24, 256


def original(kind=nn.Linear, dtype=mx.bfloat16, seed=0):
    rng = np.random.default_rng(seed)
    layer = kind(CHANNELS, ROWS) if kind is nn.Linear else kind(ROWS, CHANNELS)
    spread = 10.0 ** rng.integers(-3, 2, (ROWS, 1))
    layer.weight = mx.array((spread * rng.standard_normal((ROWS, CHANNELS))).astype(np.float32)).astype(dtype)
    if "bias" in layer:
        layer.bias = mx.array(rng.standard_normal(ROWS).astype(np.float32)).astype(dtype)
    return layer


def unpacked(layer):
    """float64 `scale * code + offset`; the codes of a row are one little-endian sequence of bits."""
    bits = np.unpackbits(np.array(layer.weight).view(np.uint8), axis=1, bitorder="little")
    digits = bits.reshape(ROWS, CHANNELS, layer.bits).astype(np.int64)
    codes = digits @ (1 << np.arange(layer.bits))
    scales, offsets = (
        np.repeat(np.array(a.astype(mx.float32)).astype(np.float64), layer.group_size, axis=1)
        for a in (layer.scales, layer.biases)
    )
    return scales * codes + offsets


def inputs(dtype, seed=1):
    x = np.random.default_rng(seed).standard_normal((5, CHANNELS)).astype(np.float32)
    return mx.array(x).astype(dtype)


@pytest.mark.parametrize(("bits", "group_size"), AFFINE)
@pytest.mark.parametrize("stored", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_an_fp32_input_meets_weights_decoded_in_fp32(bits, group_size, stored):
    """Nothing is rounded to 16 bits, whatever the dtype of the scales."""
    layer = QuantizedLinear.from_linear(original(dtype=stored), group_size, bits)
    assert layer.scales.dtype == stored
    weight, bias = unpacked(layer), np.array(layer.bias.astype(mx.float32)).astype(np.float64)
    x = inputs(mx.float32)
    out = layer(x)
    assert out.dtype == mx.float32
    magnitude = np.abs(np.array(x)).astype(np.float64) @ np.abs(weight).T + np.abs(bias)
    assert (np.abs(np.array(out) - (np.array(x, np.float64) @ weight.T + bias)) / magnitude).max() < 1e-6


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("bits", MODES["affine"].bits)
def test_a_16_bit_input_meets_weights_decoded_in_its_dtype(bits, dtype):
    """Weights are decoded as in `mx.dequantize`; the sums are fp32 and rounded once."""
    layer = QuantizedLinear.from_linear(original(dtype=dtype), 64, bits)
    decoded = mx.dequantize(layer.weight, layer.scales, layer.biases, 64, bits)
    assert decoded.dtype == dtype
    x = inputs(dtype)
    out = layer(x)
    wide = [np.array(a.astype(mx.float32)).astype(np.float64) for a in (x, decoded, layer.bias)]
    assert out.dtype == dtype
    exact = mx.array((wide[0] @ wide[1].T + wide[2]).astype(np.float32)).astype(dtype)
    ulp = 2.0 ** -(7 if dtype == mx.bfloat16 else 10)
    np.testing.assert_allclose(out.astype(mx.float32), exact.astype(mx.float32), rtol=ulp, atol=1e-5)
    assert (out == exact).mean() > 0.97  # all but ties within the rounding of fp32 sums


@pytest.mark.parametrize("mode", OTHERS)
def test_the_other_modes_are_exact_in_16_bits(mode):
    layer = QuantizedLinear.from_linear(original(), mode=mode)
    del layer["bias"]
    narrow, wide = (layer(mx.eye(CHANNELS).astype(dtype)).astype(mx.float32) for dtype in (mx.bfloat16, mx.float32))
    assert mx.array_equal(narrow, wide)


@pytest.mark.parametrize("mode", MODES)
def test_an_embedding_decodes_its_rows_in_fp32(mode):
    layer = QuantizedEmbedding.from_embedding(original(nn.Embedding), mode=mode)
    ids = mx.array([[3, 0, 23], [3, 7, 1]])
    out = layer(ids)
    assert (out.shape, out.dtype) == ((2, 3, CHANNELS), mx.float32)
    if mode == "affine":
        np.testing.assert_allclose(out, unpacked(layer)[np.array(ids)], rtol=1e-5, atol=1e-7)
    else:
        assert mx.array_equal(out, mx.dequantize(layer.weight, layer.scales, mode=mode)[ids].astype(mx.float32))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stored", [None, mx.float16, mx.float32], ids=str)
@pytest.mark.parametrize("compute", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_casting_leaves_packed_weights_alone(mode, stored, compute):
    model = nn.Sequential(QuantizedLinear.from_linear(original(), mode=mode))
    before = dict(tree_flatten(model.parameters()))
    casting.cast(model, stored, compute)
    expected = compute if compute != mx.float32 else stored or mx.bfloat16
    for name, parameter in tree_flatten(model.parameters()):
        if mx.issubdtype(before[name].dtype, mx.floating):
            assert parameter.dtype == expected, name
        else:
            assert parameter.dtype == before[name].dtype, name
            assert mx.array_equal(parameter, before[name])
    assert model(inputs(compute)).dtype == compute


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int4",), "X: mode is 'int4'. Available: affine"),
        ((None,), "X: mode is None"),
        ((["affine"],), "X: mode is"),
        (("affine", 7), "X: bits is 7, affine has 2, 3, 4, 5, 6, 8"),
        (("affine", 4.0), "X: bits is 4.0, affine has"),
        (("affine", True), "X: bits is True, affine has"),
        (("affine", 4, 16), "X: group_size is 16, affine has 32, 64, 128"),
        (("mxfp4", 8), "X: bits is 8, mxfp4 has 4"),
        (("nvfp4", 4, 32), "X: group_size is 32, nvfp4 has 16"),
    ],
)
def test_a_quantisation_that_mlx_does_not_support(arguments, message):
    with pytest.raises(InputError) as caught:
        Quantization.checked("X", *arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("mode", MODES)
def test_the_defaults_are_those_of_mlx(mode):
    layer = nn.QuantizedLinear(CHANNELS, ROWS, mode=mode)
    assert Quantization.checked("", mode) == Quantization(layer.group_size, layer.bits, layer.mode)


@pytest.mark.parametrize(("mode", "tensor_scale"), [*((mode, False) for mode in MODES), ("nvfp4", True)])
def test_a_large_weight_is_packed_in_pieces_with_the_same_result(mode, tensor_scale, monkeypatch):
    """At once, packing takes up to 80 bytes a weight: 22 GB for two blocks of the published width."""
    layer = nn.Linear(512, 515)
    layer.weight = mx.array(np.random.default_rng(3).standard_normal((515, 512), dtype=np.float32)).astype(mx.bfloat16)
    quantization = Quantization.checked("a rule", mode, None, None, tensor_scale)
    whole = QuantizedLinear.packed(layer, quantization)
    mx.eval(whole)
    monkeypatch.setattr(quantized, "_PIECE", 1 << 14)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    parts = QuantizedLinear.packed(layer, quantization)
    mx.eval(parts)
    assert mx.get_peak_memory() - before < 20 * layer.weight.size
    flat = (tree_flatten(each.parameters()) for each in (parts, whole))
    for (name, array), (other, expected) in zip(*flat, strict=True):
        assert name == other
        assert mx.array_equal(array, expected)
