"""Formats of floating point with scales of groups: nvfp4, mxfp4 and mxfp8."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.model.coded import CodedLinear
from precision_lab.model.codings.microscaled import (
    MXFP4,
    MXFP8,
    NVFP4,
    Mxfp4,
    Mxfp4Inputs,
    Mxfp8,
    Mxfp8Inputs,
    Nvfp4,
    Nvfp4Inputs,
)
from precision_lab.model.codings.wide import Wide
from precision_lab.model.neighbours import neighbours
from precision_lab.model.quantized import QuantizedLinear, decoded_weight
from precision_lab.numerics.group_formats import group_format, round_trip
from precision_lab.techniques.parts.weight_storage import storage
from tests.model.codings.kitchen import adversarial, eager, in_torch

CASES = [*sorted(adversarial(np.random.default_rng(0))), "ties", "bfloat16"]
INPUTS = {
    "nvfp4": Nvfp4Inputs(tensor_scale=False),
    "nvfp4 scaled": Nvfp4Inputs(),
    "mxfp4": Mxfp4Inputs(),
    "mxfp8": Mxfp8Inputs(),
}
CODINGS = {
    "nvfp4": (Nvfp4(tensor_scale=False), NVFP4),
    "nvfp4 scaled": (Nvfp4(), NVFP4._replace(tensor_scale=True)),
    "mxfp4": (Mxfp4(), MXFP4),
    "mxfp8": (Mxfp8(), MXFP8),
}

IN_KITCHEN = [(name, case) for name in ("nvfp4", "nvfp4 scaled", "mxfp8") for case in CASES]
IN_KITCHEN.remove(("mxfp8", "subnormal"))  # it decodes the smallest scale, 2^-127, as 0


def drawn(case, seed=1):
    """Inputs (rows, 512), fp32. "ties": every middle of two numbers of e2m1 and e4m3, where scales are one."""
    rng = np.random.default_rng(seed)
    if case == "bfloat16":
        bits = rng.standard_normal((24, 512)).astype(np.float32).view(np.uint32)
        return (bits & np.uint32(0xFFFF0000)).view(np.float32)
    if case == "ties":
        values = rng.choice(np.arange(1, 32, dtype=np.float32), (32, 512)) * 2.0 ** rng.integers(-10, 3, (32, 512))
        values = np.minimum(values, 6).astype(np.float32) * rng.choice([-1, 1], (32, 512))
        values[:, ::16] = 6
        values[::2] = np.where(values[::2] == 6, 448, values[::2])
        return values.astype(np.float32)
    return adversarial(rng)[case]


def of_kitchen(name, x):
    """What comfy-kitchen decodes to."""
    kernels = eager("quantization")
    if name == "mxfp8":
        return kernels.dequantize_mxfp8(*kernels.quantize_mxfp8(in_torch(x)), in_torch(x).dtype).numpy()
    scale = np.abs(x).max() / np.float32(6 * 448) if name == "nvfp4 scaled" else np.float32(1)
    scale = in_torch(np.where(scale == 0, np.float32(1), scale))
    codes, scales = kernels.quantize_nvfp4(in_torch(x), scale)
    return kernels.dequantize_nvfp4(codes, scale, scales, in_torch(x).dtype).numpy()


@pytest.mark.parametrize(("name", "case"), IN_KITCHEN)
def test_inputs_are_those_of_comfy_kitchen(name, case):
    x = drawn(case)
    np.testing.assert_array_equal(np.array(INPUTS[name].rounded(mx.array(x))), of_kitchen(name, x))


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp8"])
@pytest.mark.parametrize("case", CASES)
def test_inputs_are_those_of_numpy(name, case):
    x = drawn(case, 2)
    fmt = group_format(name)
    expected, _ = round_trip(x.reshape(-1, fmt.group_size).copy(), fmt)
    rounded = INPUTS[name].rounded(mx.array(x.reshape(len(x), 2, -1)))
    np.testing.assert_array_equal(np.array(rounded).reshape(x.shape), expected.reshape(x.shape))


@pytest.mark.parametrize("name", CODINGS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_weights_are_those_that_mlx_packs(name, dtype):
    coding, packing = CODINGS[name]
    plain = nn.Linear(512, 24, bias=False)
    plain.weight = mx.array(drawn("scattered", 3)).astype(dtype)
    packed, coded = QuantizedLinear.packed(plain, packing), CodedLinear.encoded(coding, plain.weight)
    assert storage(coded) == storage(packed)
    decoded = coding.decode(coded.arrays)
    np.testing.assert_array_equal(np.array(decoded), np.array(decoded_weight(packed, mx.float32)))
    for ours, theirs in zip(neighbours(coded), neighbours(packed), strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))


@pytest.mark.parametrize("name", CODINGS)
def test_weights_and_inputs_are_rounded_apart(name):
    rng = np.random.default_rng(4)
    weight, x = (mx.array(rng.standard_normal(s).astype(np.float32)) for s in ((24, 96), (2, 5, 96)))
    coding, inputs = CODINGS[name][0], INPUTS[name]
    decoded, rounded = coding.decode(coding.encode(weight)), inputs.rounded(x)
    for of_weight, of_inputs, w, v in (
        (coding, None, decoded, x),
        (Wide(), inputs, weight, rounded),
        (coding, inputs, decoded, rounded),
    ):
        exact = np.array(v, np.float64) @ np.array(w, np.float64).T
        found = CodedLinear.encoded(of_weight, weight, inputs=of_inputs)(x)
        np.testing.assert_allclose(np.array(found), exact, rtol=0, atol=1e-6 * np.abs(exact).max() * 96)


@pytest.mark.parametrize("name", INPUTS)
def test_what_is_not_finite_stays_so(name):
    x = np.ones((4, 64), np.float32)
    x[1, 2], x[2, 3], x[3, 4] = np.nan, np.inf, -np.inf
    rounded = np.array(INPUTS[name].rounded(mx.array(x)))
    assert not np.isfinite(rounded[~np.isfinite(x)]).any()
    assert np.isfinite(rounded[0]).all() == (name != "nvfp4 scaled")
    assert np.isfinite(rounded[:, 32:]).all() == (name != "nvfp4 scaled")
    assert not np.isfinite(rounded).all(axis=1)[1:].any()


def test_a_scale_a_tensor_saves_inputs_beyond_the_scales_of_groups():
    """Without it, magnitudes above 6 * 448 saturate, and groups below 6 * 2^-10 become zero."""
    x = np.random.default_rng(5).standard_normal((8, 64)).astype(np.float32)
    for size in (1e5, 1e-5):
        found = {
            scaled: np.array(Nvfp4Inputs(tensor_scale=scaled).rounded(mx.array(x * np.float32(size))))
            for scaled in (True, False)
        }
        error = {key: np.linalg.norm(value - x * size) / np.linalg.norm(x * size) for key, value in found.items()}
        assert error[True] < 0.15
        assert error[False] > 0.9


@pytest.mark.parametrize(("name", "group"), [("nvfp4", 16), ("mxfp4", 32), ("mxfp8", 32)])
def test_widths_that_do_not_divide_are_refused(name, group):
    with pytest.raises(InputError, match=f"{name}: a weight of 8 x 40: 40 channels, expected a multiple of {group}"):
        CodedLinear.encoded(CODINGS[name][0], mx.ones((8, 40)))
    with pytest.raises(InputError, match=f"inputs in {name}: 40 channels, expected a multiple of {group}"):
        CodedLinear.encoded(Wide(), mx.ones((8, 40)), inputs=INPUTS[name])
