"""Every check of a public fault passes a right operation and names one that has the fault."""

import numpy as np
import pytest

from precision_lab.device.behaviour import accuracy
from precision_lab.device.behaviour.check import ABSENT, PRESENT
from precision_lab.device.behaviour.quantised import MODES, Weights, decoded, packed
from precision_lab.device.behaviour.storage import BFLOAT16, FLOAT16, FLOAT32
from precision_lab.device.behaviour.subjects.public_faults import faults
from tests.device import planted

FAULTS = {fault.name: fault for fault in faults()}
eleven = planted.to_bits(11)


def narrow(op):
    """The operation with fp32 inputs that lose all but 11 bits."""

    def call(*arrays):
        with np.errstate(invalid="ignore"):
            return op(*(np.where(a == 0, 0, eleven(np.where(a == 0, 1, a))) for a in arrays))

    return call


def first_rows_garbage(op):
    """Rows above the range of int16, counted from the end, are never written."""

    def call(*arrays):
        out = op(*arrays).copy()
        out[: max(len(out) - 32_768, 1)] = 3e8
        return out

    return call


def beyond_8(op):
    return lambda a, b: np.concatenate([op(a, b)[:8], 2 * op(a, b)[8:]])


def off(op):
    return lambda *arrays: op(*arrays) - 0.5


def narrow_where_broadcast(op):
    return lambda a, b: op(a, eleven(b))


def coarse_normal(op):
    return lambda *draws: (op(*draws)[0] * (1 + 2.0**-18), op(*draws)[1])


def scaled(op):
    return lambda *arrays: 57.0 * op(*arrays)


def unscaled(op):
    return lambda x, weights, scale: x @ weights.values.T


def one_scale_for_two_groups(op):
    """Rounds to the grid of the larger group of each 32 values, except in the first 32 lanes."""

    def call(x):
        pairs = op(x).reshape(-1, 32)
        step = np.abs(pairs[1:]).max(axis=1, keepdims=True) / 12
        pairs[1:] = np.rint(pairs[1:] / step) * step
        return pairs.reshape(x.shape)

    return call


PLANTED = {
    "nvfp4_tensor_scale": unscaled,
    "nvfp4_groups": one_scale_for_two_groups,
    "fp32_width": narrow,
    "broadcast_operand": narrow_where_broadcast,
    "rows_beyond_8": beyond_8,
    "attention_82": off,
    "padded_attention_64": narrow,
    "padded_attention_128": narrow,
    "quantised_8bit_40000_rows": first_rows_garbage,
    "quantised_8bit_4096_rows": first_rows_garbage,
    "quantised_4bit_4096_rows": first_rows_garbage,
    "gathered_rows": first_rows_garbage,
    "gathered_depth": off,
    "few_outputs_mxfp4": scaled,
    "random_normal": coarse_normal,
}


def test_every_check_has_a_planted_fault():
    assert PLANTED.keys() == FAULTS.keys()


LARGE = ("quantised_8bit_40000_rows", "gathered_rows")  # 40,000 rows of MLX's own product; the same plant at 4,096


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in FAULTS]
)
def test_a_planted_fault_is_named(name):
    fault = FAULTS[name]
    entry = fault.check(PLANTED[name](fault.op))
    assert (entry["name"], entry["verdict"]) == (name, PRESENT)
    assert entry["links"]
    assert all(link.startswith("https://github.com/") for link in entry["links"])
    assert entry["right"]
    assert entry["measured"]


def test_non_finite_results_are_faults():
    fault = FAULTS["attention_82"]
    assert fault.check(lambda q, k, v: np.full_like(q, np.nan))["verdict"] == PRESENT


def attention_82(q, k, v):
    return planted.attention(FLOAT32)(q, k, v, 0.125)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("fp32_width", np.matmul),
        ("broadcast_operand", np.matmul),
        ("rows_beyond_8", np.matmul),
        ("attention_82", attention_82),
        ("nvfp4_tensor_scale", lambda x, weights, scale: scale * x @ weights.values.T),
        ("nvfp4_groups", lambda x: x),
    ],
)
def test_a_right_operation_passes(name, right):
    assert FAULTS[name].check(right)["verdict"] == ABSENT


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.title)
def test_weights_are_packed_as_they_are_decoded(mode):
    rng = np.random.default_rng(0)
    weights = Weights.draw(mode, 4, 64, rng)
    codes = (weights.packed[..., None] >> (mode.bits * np.arange(32 // mode.bits, dtype=np.uint32))) % 2**mode.bits
    codes = codes.reshape(weights.values.shape).astype(np.uint8)
    np.testing.assert_array_equal(packed(codes, mode.bits), weights.packed)
    np.testing.assert_array_equal(decoded(mode, codes), weights.values)
    assert BFLOAT16.holds(weights.values)


@pytest.mark.parametrize(
    ("factors", "answer"),
    [
        (planted.keep, accuracy.WITHIN),
        (eleven, accuracy.NARROWER),
        (planted.to_bits(8), accuracy.NARROWER),
        (planted.to_bits(1), accuracy.WRONG),
    ],
)
def test_the_arithmetic_that_explains_an_error(factors, answer):
    rng = np.random.default_rng(1)
    a, b = (FLOAT32.round(rng.standard_normal(shape)) for shape in ((512, 64), (64, 32)))
    multiply = planted.product(FLOAT32, factors)
    outcome = accuracy.rounding_error(
        multiply, (a, b), a @ b, np.abs(a) @ np.abs(b), FLOAT32, accuracy.product_noise(64)
    )
    assert outcome.answer == answer
    assert outcome.bound is not None
    assert (outcome.value <= outcome.bound) == (answer == accuracy.WITHIN)
    assert_inside_what_it_meets(outcome)


def assert_inside_what_it_meets(outcome):
    """The error is inside the bound that the outcome names and outside those before it."""
    bounds = list(outcome.bounds)
    assert bounds[0] == "float32"
    met = bounds.index(outcome.meets) if outcome.meets else len(bounds)
    assert [outcome.value <= outcome.bounds[name] for name in bounds] == [at >= met for at in range(len(bounds))]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.title)
@pytest.mark.parametrize("storage", [BFLOAT16, FLOAT16], ids=lambda s: s.name)
@pytest.mark.parametrize("accumulator", ["float32", "storage", "narrower", "half"])
def test_the_accumulator_of_a_quantised_product(mode, storage, accumulator):
    """Right in float32 and in the format; wrong if it is narrower than that, or counts half of the terms."""
    rng = np.random.default_rng(2)
    weights = Weights.draw(mode, 16, 128, rng, positive=True)
    x = storage.round(0.5 + rng.random((64, 128)))
    exact = x @ weights.values.T
    rounding = {"float32": planted.float32, "storage": storage.round, "narrower": planted.to_bits(storage.bits - 5)}
    accumulate = rounding.get(accumulator, planted.float32)

    def multiply(x):
        terms = (x[:, None] * weights.values).reshape(-1, 128)
        sums = planted.running_sum(terms[:, :64] if accumulator == "half" else terms, accumulate)
        return storage.round(sums.reshape(exact.shape))

    outcome = accuracy.rounding_error(multiply, (x,), exact, exact, storage, accuracy.product_noise(128))
    narrow = f"accumulates in {storage.name}"
    expected = {"float32": accuracy.WITHIN, "storage": narrow}.get(accumulator, accuracy.WRONG)
    assert outcome.answer == expected
    assert_inside_what_it_meets(outcome)
