"""NF4 against bitsandbytes."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from precision_lab.errors import InputError
from precision_lab.model.coded import CodedLinear
from precision_lab.model.codings.nf4 import NUMBERS, Nf4, dynamic_map
from tests.model.codings.adversarial import weights
from tests.model.codings.next_codes import check_neighbours

functional = pytest.importorskip("bitsandbytes.functional")
WEIGHTS = {name: weight for name, weight in weights().items() if name != "squares above fp32"}


def theirs(weight, block, nested):
    """Their arrays, under our names and in our shapes, and what they decode to."""
    packed, state = functional.quantize_4bit(
        torch.from_numpy(weight), blocksize=block, quant_type="nf4", compress_statistics=nested
    )
    rows = len(weight)
    arrays = {"weight": packed.numpy().reshape(rows, -1), "absmax": state.absmax.numpy().reshape(rows, -1)}
    if nested:
        arrays |= {"nested_absmax": state.state2.absmax.numpy(), "nested_offset": state.offset.numpy()}
    return arrays, functional.dequantize_4bit(packed, state).numpy()


def test_tables_are_those_of_bitsandbytes():
    np.testing.assert_array_equal(NUMBERS, functional.get_4bit_type("nf4", device="cpu").numpy())
    np.testing.assert_array_equal(dynamic_map(), functional.create_dynamic_map().numpy())


@pytest.mark.parametrize("case", WEIGHTS)
@pytest.mark.parametrize("block", [64, 256])
def test_codes_magnitudes_and_values_equal_theirs(case, block):
    coding = Nf4(block=block)
    ours = coding.encode(mx.array(WEIGHTS[case]))
    arrays, values = theirs(WEIGHTS[case], block, nested=False)
    assert ours.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.array(ours[name]), array)
    np.testing.assert_array_equal(np.array(coding.decode(ours)), values)


@pytest.mark.parametrize("case", WEIGHTS)
def test_magnitudes_in_8_bits_decode_as_theirs(case):
    arrays, values = theirs(WEIGHTS[case], 64, nested=True)
    coding = Nf4(nested=True)
    np.testing.assert_array_equal(np.array(coding.decode({k: mx.array(v) for k, v in arrays.items()})), values)


@pytest.mark.parametrize(
    "case", sorted(WEIGHTS.keys() - {"subnormal"})
)  # its magnitudes are below 1e-38, and so are errors
def test_magnitudes_in_8_bits_are_the_nearest(case):
    weight = WEIGHTS[case]
    ours = {name: np.array(array) for name, array in Nf4(nested=True).encode(mx.array(weight)).items()}
    arrays, _ = theirs(weight, 64, nested=True)
    np.testing.assert_array_equal(ours["weight"], arrays["weight"])
    np.testing.assert_allclose(ours["nested_offset"], arrays["nested_offset"], rtol=3e-7)
    absmax = np.abs(weight).reshape(len(weight), -1, 64).max(axis=-1)

    def error(stored):
        coded = dynamic_map()[stored["absmax"]] * np.repeat(stored["nested_absmax"], 256)[: absmax.size].reshape(
            absmax.shape
        )
        return np.abs(coded + stored["nested_offset"] - absmax.astype(np.float64))

    rounding = 4e-7 * absmax.max()  # of offset and sum, in fp32
    assert (error(ours) <= error(arrays) + rounding).all()


@pytest.mark.parametrize("nested", [False, True])
def test_a_block_that_is_not_finite_stays_so(nested):
    weight = WEIGHTS["normal"].copy()
    weight[1, 70] = np.inf
    coding = Nf4(nested=nested)
    values = np.array(coding.decode(coding.encode(mx.array(weight))))
    assert not np.isfinite(values[1, 64:128]).any()


def test_bits_and_shapes():
    coded = CodedLinear.encoded(Nf4(), mx.ones((8, 128)))
    assert {name: (array.shape, array.dtype) for name, array in coded.arrays.items()} == {
        "weight": ((8, 64), mx.uint8),
        "absmax": ((8, 2), mx.float32),
    }
    with pytest.raises(InputError, match=r"nf4: .* 96 channels, expected a multiple of 64"):
        CodedLinear.encoded(Nf4(), mx.ones((8, 96)))
    with pytest.raises(InputError, match=r"nf4\.block is 100, expected one of 32, 64"):
        Nf4(block=100)


@pytest.mark.parametrize("nested", [False, True])
def test_neighbours_are_the_values_of_the_next_codes(nested):
    coding = Nf4(nested=nested)
    weight = np.random.default_rng(4).standard_normal((32, 512), np.float32)
    check_neighbours(coding, coding.encode(mx.array(weight)), 0, 15)
    arrays = coding.encode(mx.array(weight))
    if nested:  # an offset below zero turns the order of codes round
        check_neighbours(coding, arrays | {"nested_offset": mx.array(-3.0)}, 0, 15)
