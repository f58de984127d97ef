"""Signed 4-bit codes."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.model.coded import CodedLinear
from precision_lab.model.codings import int4
from precision_lab.model.codings.int4 import Int4, Int4Inputs
from precision_lab.techniques.parts.weight_storage import storage
from tests.model.codings.kitchen import adversarial, eager, in_torch

CASES = sorted(adversarial(np.random.default_rng(0)))


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_comfy_kitchen(case):
    kernels = eager("convrot_w4a4")
    weight = adversarial(np.random.default_rng(1))[case]
    arrays = Int4(group=None).encode(mx.array(weight))
    codes, scales = kernels.quantize_signed_int4_rowwise(in_torch(weight))
    np.testing.assert_array_equal(np.array(arrays["weight"]), codes.numpy())
    np.testing.assert_array_equal(np.array(arrays["scale"])[:, 0], scales.numpy())
    decoded = eager("svdquant")._unpack_int4_row_major(codes).float() * scales[:, None]
    np.testing.assert_array_equal(np.array(Int4(group=None).decode(arrays)), decoded.numpy())
    np.testing.assert_array_equal(np.array(Int4Inputs(group=None).rounded(mx.array(weight))), decoded.numpy())


@pytest.mark.parametrize("case", CASES)
def test_groups_are_those_of_comfy_kitchen(case):
    x = adversarial(np.random.default_rng(2))[case]
    kernels = eager("svdquant")
    ones, down = in_torch(np.ones(x.shape[1], np.float32)), in_torch(np.zeros((x.shape[1], 1), np.float32))
    codes, scales, _ = kernels.quantize_svdquant_w4a4(in_torch(x), ones, down, pad_size=1)
    arrays = Int4().encode(mx.array(x))
    np.testing.assert_array_equal(np.array(arrays["weight"]), codes.numpy())
    np.testing.assert_array_equal(np.array(arrays["scale"]), scales.T.numpy())
    grouped = kernels._unpack_int4_row_major(codes).float().reshape(len(x), -1, 64) * scales.T[..., None]
    np.testing.assert_array_equal(np.array(Int4Inputs().rounded(mx.array(x))), grouped.reshape(x.shape).numpy())


def test_all_codes_survive_packing():
    codes = np.arange(-8, 8).reshape(2, 8)
    packed = int4.packed(mx.array(codes.astype(np.float32)))
    np.testing.assert_array_equal(np.array(packed), eager("svdquant")._pack_int4_row_major(in_torch(codes)).numpy())
    np.testing.assert_array_equal(np.array(int4.unpacked(packed)), codes)


def test_scales_in_16_bits_take_half_the_room_and_decode_in_fp32():
    weight = mx.array(np.random.default_rng(3).standard_normal((32, 256)).astype(np.float32))
    narrow, wide = (CodedLinear.encoded(Int4(scales=scales), weight) for scales in ("bfloat16", "float32"))
    assert storage(narrow).bits_per_weight == 4 + 16 / 64
    assert storage(wide).bits_per_weight == 4 + 32 / 64
    assert narrow.coding.decode(narrow.arrays).dtype == mx.float32
    error = [np.linalg.norm(np.array(c.coding.decode(c.arrays) - weight)) for c in (narrow, wide)]
    assert error[0] == pytest.approx(error[1], rel=0.02)


@pytest.mark.parametrize("group", [64, None])
def test_what_is_not_finite_stays_so_in_its_group(group):
    x = np.ones((3, 128), np.float32)
    x[1, 2], x[2, 70] = np.nan, np.inf
    finite = np.isfinite(np.array(Int4Inputs(group).rounded(mx.array(x)))).reshape(3, 2, 64).all(-1)
    expected = [[True, True], [False, True], [True, False]]
    assert finite.tolist() == (expected if group else [[all(row)] * 2 for row in expected])


def test_widths_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="int4: a weight of 8 x 96: 96 channels, expected a multiple of 64"):
        CodedLinear.encoded(Int4(), mx.ones((8, 96)))
    with pytest.raises(InputError, match="inputs in int4: 96 channels, expected a multiple of 64"):
        CodedLinear.encoded(Int4(group=32), mx.ones((8, 96)), inputs=Int4Inputs())
    with pytest.raises(InputError, match="int4: a weight of 8 x 3: 3 channels, expected a multiple of 2"):
        CodedLinear.encoded(Int4(group=None), mx.ones((8, 3)))
    with pytest.raises(InputError, match=r"int4\.group is 7, expected an even number"):
        Int4(group=7)
    with pytest.raises(InputError, match=r"int4_inputs\.group is '64', expected an even number"):
        Int4Inputs(group="64")
    with pytest.raises(InputError, match=r"int4\.scales is 'fp16', expected one of float32, bfloat16, float16"):
        Int4(scales="fp16")
