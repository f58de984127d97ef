"""SVDQuant: a low-rank part and a residual in a narrow format."""

import mlx.core as mx
import numpy as np
import pytest
import torch

from precision_lab.errors import InputError
from precision_lab.model.coded import CodedLinear
from precision_lab.model.codings import int4
from precision_lab.model.codings.convrot import ConvRot
from precision_lab.model.codings.int4 import Int4, Int4Inputs
from precision_lab.model.codings.microscaled import Nvfp4, Nvfp4Inputs
from precision_lab.model.codings.svdquant import SVDQuant, factors
from precision_lab.model.codings.wide import Wide
from precision_lab.model.neighbours import neighbours, stochastic
from precision_lab.techniques.parts.weight_storage import storage
from tests.model.codings.kitchen import adversarial, eager, in_torch

CASES = sorted(adversarial(np.random.default_rng(0)))
PLAIN = Int4(scales="bfloat16")


def structured(rng, outputs=192, channels=320, rank=4):
    """Weights of which most is in a few directions."""
    thin = (rng.standard_normal(shape).astype(np.float32) for shape in ((outputs, rank), (rank, channels)))
    return rng.standard_normal((outputs, channels)).astype(np.float32) + 3 * np.matmul(*thin)


def with_outliers(rng, outputs=192, channels=320):
    """Weights of which a few channels are larger than the others."""
    weight = rng.standard_normal((outputs, channels)).astype(np.float32)
    weight[:, rng.integers(0, channels, 6)] *= 30
    return weight


def error(coding, weight):
    decoded = np.array(coding.decode(coding.encode(mx.array(weight))), np.float64)
    return np.linalg.norm(decoded - weight) / np.linalg.norm(weight)


def wide(array):
    return np.array(array.astype(mx.float32)).astype(np.float64)


@pytest.mark.parametrize(("case", "smooth"), [*((case, 0) for case in CASES), ("outliers", 0.5), ("some zero", 0.5)])
def test_codes_and_scales_of_the_residual_are_those_of_comfy_kitchen(case, smooth):
    """What the rounded factors leave, summed in another order: a value between two codes may take the other one."""
    weight = adversarial(np.random.default_rng(1))[case]
    arrays = SVDQuant(4 if len(weight) > 1 else 1, Int4(), smooth).encode(mx.array(weight))
    assert arrays["up"].dtype == arrays["down"].dtype == mx.bfloat16
    vector = wide(arrays["smooth"]) if smooth else np.ones(weight.shape[1])
    rest = ((weight - wide(arrays["up"]) @ wide(arrays["down"]).T) * vector).astype(np.float32)
    ones, none = in_torch(np.ones(weight.shape[1], np.float32)), in_torch(np.zeros((weight.shape[1], 1), np.float32))
    codes, scales, _ = eager("svdquant").quantize_svdquant_w4a4(in_torch(rest), ones, none, pad_size=1)
    ours, theirs = (np.array(int4.unpacked(each)).astype(int) for each in (arrays["weight"], mx.array(codes.numpy())))
    tiny = np.abs(weight).max() * 1e-6  # of a residual that is rounding alone
    np.testing.assert_allclose(np.array(arrays["scale"]), scales.T.numpy(), rtol=1e-5, atol=tiny)
    seen = np.repeat(scales.T.numpy() > tiny, 64, axis=1)
    difference = np.abs(ours - theirs)[seen]
    assert difference.max(initial=0) <= 1
    assert difference.sum() <= 1e-3 * max(1, difference.size)


@pytest.mark.parametrize("smooth", [0, 0.5])
@pytest.mark.parametrize("make", [structured, with_outliers])
def test_the_product_and_the_values_are_those_of_comfy_kitchen(make, smooth):
    rng = np.random.default_rng(2)
    weight, x = make(rng), rng.standard_normal((9, 320)).astype(np.float32)
    bias = rng.standard_normal(192).astype(np.float32)
    linear = CodedLinear.encoded(SVDQuant(16, smooth=smooth), mx.array(weight), mx.array(bias), Int4Inputs())
    arrays = linear.arrays
    vector = in_torch(arrays["smooth"]).float() if smooth else torch.ones(320)
    kernels = eager("svdquant")

    def product(x, bias):
        codes, scales, low = kernels.quantize_svdquant_w4a4(x, vector, in_torch(arrays["down"]), pad_size=1)
        stored = codes, in_torch(arrays["weight"]), scales, in_torch(arrays["scale"]).float().T
        return kernels.scaled_mm_svdquant_w4a4(*stored, low, in_torch(arrays["up"]), bias).numpy()

    expected = product(in_torch(x), in_torch(bias))
    np.testing.assert_allclose(np.array(linear(mx.array(x))), expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    decoded = product(torch.eye(320), None).T  # as their layout decodes
    found = np.array(linear.coding.decode(arrays))
    np.testing.assert_allclose(found, decoded, rtol=0, atol=1e-6 * np.abs(decoded).max())


@pytest.mark.parametrize("residual", [PLAIN, Nvfp4()], ids=["int4", "nvfp4"])
@pytest.mark.parametrize("make", [structured, with_outliers])
def test_what_is_large_costs_the_residual_nothing(make, residual):
    rng = np.random.default_rng(3)
    weight = make(rng)
    assert error(SVDQuant(residual=residual), weight) < 0.5 * error(residual, weight)
    even = rng.standard_normal((192, 320)).astype(np.float32)
    assert 0.8 * error(residual, even) < error(SVDQuant(residual=residual), even) < error(residual, even)


@pytest.mark.parametrize(("make", "shape"), [(structured, (96, 160)), (with_outliers, (160, 96)), (None, (128, 64))])
def test_the_factors_are_nearly_the_best_of_their_rank(make, shape):
    rng = np.random.default_rng(4)
    weight = rng.standard_normal(shape).astype(np.float32) if make is None else make(rng, *shape)
    up, down = (np.array(each, np.float64) for each in factors(mx.array(weight), 6))
    best = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    assert np.linalg.norm(weight - up @ down.T) < 1.02 * np.linalg.norm(best[6:])
    np.testing.assert_allclose(np.linalg.norm(up, axis=0), np.linalg.norm(down, axis=0), rtol=1e-4)


@pytest.mark.parametrize("smooth", [0, 0.5])
def test_a_weight_of_the_rank_is_all_in_the_factors(smooth):
    """The residual has what their rounding leaves."""
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((96, 3)).astype(np.float32) @ rng.standard_normal((3, 128)).astype(np.float32)
    up, down = (np.array(each) for each in factors(mx.array(weight), 3))
    np.testing.assert_allclose(up @ down.T, weight, rtol=0, atol=1e-5 * np.abs(weight).max())
    arrays = SVDQuant(3, Wide(), smooth).encode(mx.array(weight))
    smoothed = weight * (wide(arrays["smooth"]) if smooth else 1)
    assert np.linalg.norm(wide(arrays["weight"])) < 2**-7 * np.linalg.norm(smoothed)


def test_the_arrays_are_the_same_at_each_call():
    weight = mx.array(structured(np.random.default_rng(6)))
    first = SVDQuant().encode(weight)
    mx.random.seed(17)
    for name, array in SVDQuant().encode(weight).items():
        assert mx.array_equal(first[name], array).item(), name


@pytest.mark.parametrize("smooth", [0, 0.5, 1])
def test_only_the_residual_is_rounded_and_only_its_inputs_are(smooth):
    """The factors' inputs are not, and the vector of smoothing cancels."""
    rng = np.random.default_rng(7)
    weight, x = with_outliers(rng), rng.standard_normal((2, 5, 320)).astype(np.float32)
    exact = SVDQuant(8, Wide(), smooth)
    arrays = exact.encode(mx.array(weight))
    product = x.astype(np.float64) @ weight.T
    np.testing.assert_allclose(np.array(exact.product(arrays, mx.array(x))), product, rtol=0, atol=1e-3)
    np.testing.assert_allclose(np.array(exact.decode(arrays)), weight, rtol=1e-4, atol=1e-5)
    rounded = exact.product(arrays, mx.array(x), Int4Inputs())
    low = (x @ wide(arrays["down"])) @ wide(arrays["up"]).T
    vector = wide(arrays["smooth"]) if smooth else 1
    narrow = np.array(Int4Inputs().rounded(mx.array((x / vector).astype(np.float32))), np.float64)
    np.testing.assert_allclose(np.array(rounded), low + narrow @ wide(arrays["weight"]).T, rtol=0, atol=1e-3)


def test_smoothing_evens_out_the_channels_of_the_weight():
    weight = with_outliers(np.random.default_rng(8))
    arrays = SVDQuant(1, Wide(), 1).encode(mx.array(weight))
    largest = np.abs(weight * wide(arrays["smooth"])).max(axis=0)
    np.testing.assert_allclose(largest, np.abs(weight).max(), rtol=2**-8)


@pytest.mark.parametrize("smooth", [0, 0.5])
@pytest.mark.parametrize("residual", [PLAIN, Nvfp4()], ids=["int4", "nvfp4"])
def test_its_codes_are_those_of_the_residual(residual, smooth):
    """Rounded at random to its neighbours, a weight is what the codes decode to, and right on average."""
    weight = mx.array(structured(np.random.default_rng(9)))
    layer = CodedLinear.encoded(SVDQuant(8, residual, smooth), weight)
    found, inner = neighbours(layer), residual.neighbours(layer.arrays)
    vector = layer.arrays["smooth"].astype(mx.float32) if smooth else mx.array(1.0)
    assert mx.array_equal(found.codes, inner.codes).item()
    np.testing.assert_array_equal(np.array(found.above), np.array(inner.above / vector))
    uniform = mx.array(np.random.default_rng(10).random(weight.shape, dtype=np.float32))
    decoded, codes = stochastic(layer, weight, uniform)
    moved = np.array(codes - inner.codes)
    assert 0.2 < (moved != 0).mean() < 0.3
    steps = np.where(moved > 0, np.array(found.above), np.where(moved < 0, -np.array(found.below), 0))
    expected = np.array(layer.coding.decode(layer.arrays)) + steps
    np.testing.assert_allclose(np.array(decoded), expected, rtol=0, atol=1e-5)
    mean = np.array(decoded - weight).mean()
    assert abs(mean) < 4 * np.array(decoded - weight).std() / np.sqrt(weight.size)


@pytest.mark.parametrize("smooth", [0, 0.5])
def test_what_is_not_finite_stays_so_in_its_group(smooth):
    weight = structured(np.random.default_rng(11))
    weight[5, 70], weight[9, 200] = np.nan, np.inf
    coding = SVDQuant(smooth=smooth)
    finite = np.isfinite(np.array(coding.decode(coding.encode(mx.array(weight))))).reshape(192, 5, 64).all(-1)
    expected = np.ones((192, 5), bool)
    expected[5, 1] = expected[9, 3] = False
    np.testing.assert_array_equal(finite, expected)
    layer = CodedLinear.encoded(coding, mx.array(structured(np.random.default_rng(12))), inputs=Int4Inputs())
    x = np.ones((3, 320), np.float32)
    x[1, 2], x[2, 3] = np.nan, np.inf
    assert np.isfinite(np.array(layer(mx.array(x)))).all(axis=1).tolist() == [True, False, False]


@pytest.mark.parametrize(("shape", "rank"), [((640, 1024), 32), ((192, 320), 12), ((8, 64), 1), ((1, 128), 1)])
def test_the_rank_by_default_is_32_or_a_sixteenth_of_the_smaller_side(shape, rank):
    layer = CodedLinear.encoded(SVDQuant(), mx.zeros(shape))
    assert (layer.up.shape, layer.down.shape) == ((shape[0], rank), (shape[1], rank))
    assert storage(layer).bits == (4 + 16 / 64) * shape[0] * shape[1] + 16 * rank * sum(shape)


def test_mistakes():
    with pytest.raises(InputError, match="svdquant: a weight of 8 x 96: 96 channels, expected a multiple of 64"):
        CodedLinear.encoded(SVDQuant(), mx.ones((8, 96)))
    with pytest.raises(InputError, match="svdquant: a weight of 8 x 64: rank 9, expected at most 8"):
        CodedLinear.encoded(SVDQuant(9), mx.ones((8, 64)))
    with pytest.raises(InputError, match="inputs in nvfp4: 40 channels, expected a multiple of 16"):
        CodedLinear.encoded(SVDQuant(residual=Int4(8)), mx.ones((8, 40)), inputs=Nvfp4Inputs())
    for rank in (0, -1, 1.5, True, "32"):
        with pytest.raises(InputError, match=r"svdquant\.rank is .*, expected a positive number, or null"):
            SVDQuant(rank)
    for smooth in (-0.1, 1.5, float("nan"), True, "0.5"):
        with pytest.raises(InputError, match=r"svdquant\.smooth is .*, expected a number from 0 to 1"):
            SVDQuant(smooth=smooth)
    for residual in (ConvRot(), SVDQuant()):
        with pytest.raises(InputError, match=r"svdquant\.residual is .*, expected a format like int4 or nvfp4"):
            SVDQuant(residual=residual)
