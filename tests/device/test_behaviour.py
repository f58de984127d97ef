"""Every probe names each behaviour, planted in NumPy operations."""

import ml_dtypes
import numpy as np
import pytest

from precision_lab.device.behaviour import attention, compiled, nans, products, ranges, rounding, sums
from precision_lab.device.behaviour.attention import Shape
from precision_lab.device.behaviour.finding import NOT_AVAILABLE, Finding, Outcome
from precision_lab.device.behaviour.interior import interior_bits
from precision_lab.device.behaviour.storage import BFLOAT16, FLOAT16, FLOAT32, STORAGES
from precision_lab.device.behaviour.verdict import judge
from tests.device import planted

SIXTEEN = pytest.mark.parametrize("storage", [BFLOAT16, FLOAT16], ids=lambda s: s.name)
ALL = pytest.mark.parametrize("storage", STORAGES, ids=lambda s: s.name)


@pytest.fixture(params=[0, 1])
def rng(request):
    return np.random.default_rng(request.param)


@ALL
def test_rounding_matches_ml_dtypes(storage, rng):
    with np.errstate(over="ignore", under="ignore"):
        x = np.ldexp(rng.standard_normal(4000), rng.integers(-150, 128, 4000)).astype(np.float32)
        expected = x.astype(storage.name if storage is not BFLOAT16 else ml_dtypes.bfloat16).astype(np.float64)
    np.testing.assert_array_equal(storage.round(x), expected)


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize(
    ("multiply", "bits"),
    [
        (planted.product(FLOAT32), 24),
        (planted.product(FLOAT32, planted.to_bits(11)), 11),
        (planted.product(FLOAT32, planted.to_bits(8)), 8),
    ],
    ids=["float32", "TF32", "bfloat16"],
)
def test_bits_of_the_factors(multiply, bits, rows, rng):
    assert products.input_bits(multiply, FLOAT32, rng, rows, 64).value == bits


def test_factors_split_in_two_terms_whose_last_product_is_dropped(rng):
    multiply = planted.split_product(FLOAT32, planted.to_bits(8))
    assert products.input_bits(multiply, FLOAT32, rng, 64, 64).value in (16, 17, 18)


@ALL
@pytest.mark.parametrize("reduce", [planted.running_sum, planted.pairwise_sum], ids=["running", "pairwise"])
def test_width_of_the_accumulator(storage, reduce, rng):
    def measured(accumulate):
        return products.accumulator_bits(lambda x: reduce(x, accumulate), storage, 64, rng).value

    assert measured(storage.round) == storage.bits
    assert measured(planted.float32) == 24
    assert measured(planted.keep) == 27, "float64 is wider than the probe distinguishes"
    assert measured(planted.to_bits(14)) == 14


@SIXTEEN
def test_an_accumulator_narrow_within_blocks_only(storage, rng):
    def blocks(x):
        return planted.running_sum(
            np.stack([planted.running_sum(b, storage.round) for b in np.split(x, 4, 1)], 1), planted.float32
        )

    assert products.accumulator_bits(blocks, storage, 64, rng).value == storage.bits


@SIXTEEN
def test_rounding_before_the_bias(storage):
    once = lambda c, a, b: storage.round(a @ b + c)  # noqa: E731
    twice = lambda c, a, b: storage.round(storage.round(a @ b) + c)  # noqa: E731
    assert products.bias_rounding(once, storage).answer == "after the bias"
    assert products.bias_rounding(twice, storage).answer == "before the bias"


@pytest.mark.parametrize(
    ("reduce", "answer", "depth"),
    [
        (lambda x: planted.running_sum(x, planted.float32), "sequential", 63),
        (lambda x: planted.running_sum(x[:, ::-1], planted.float32), "sequential", 63),
        (lambda x: planted.pairwise_sum(x, planted.float32), "pairwise", 6),
        (lambda x: planted.running_sum(x, planted.float32, lanes=4), "blocked", 15 + 3),
    ],
    ids=["forward", "backward", "pairwise", "four lanes"],
)
def test_order_of_a_sum(reduce, answer, depth):
    outcome = sums.order(reduce, 64)
    assert (outcome.answer, outcome.value) == (answer, depth)


def test_where_counting_stops():
    running = lambda x: planted.running_sum(x[None], BFLOAT16.round)  # noqa: E731
    assert sums.count(running, BFLOAT16, 1024).value == 256
    lanes = lambda x: planted.running_sum(x[None], BFLOAT16.round, lanes=2)  # noqa: E731
    assert sums.count(lanes, BFLOAT16, 1024).value == 512
    assert sums.count(lambda x: np.array(x.sum()), BFLOAT16, 1024).answer == "exact"


def test_error_grows_with_a_running_sum_and_not_with_a_tree(rng):
    def growth(total):
        first, last = (sums.error(total, FLOAT32, n, rng).value for n in (64, 2**13))
        return last / first

    running = lambda x: np.add.accumulate(x.astype(np.float32))[-1]  # noqa: E731
    tree = lambda x: planted.pairwise_sum(x[None], planted.float32)  # noqa: E731
    assert growth(running) > 4 * growth(tree)


@ALL
def test_divisor_of_a_mean(storage):
    divides = lambda x: storage.round(x.sum(axis=1) / x.shape[1])  # noqa: E731
    multiplies = lambda x: storage.round(x.sum(axis=1) * storage.round(1 / x.shape[1]))  # noqa: E731
    assert sums.mean_divisor(divides, storage).answer == "exact"
    assert sums.mean_divisor(multiplies, storage).answer == "times rounded 1/n"
    assert sums.mean_divisor(lambda x: 0.5 * divides(x), storage).answer == "neither"


@SIXTEEN
@pytest.mark.parametrize("lanes", [1, 32])
def test_softmax_summed_in_the_format(storage, lanes, rng):
    wide = planted.softmax(storage, lambda e: planted.running_sum(e, planted.float32, lanes))
    narrow = planted.softmax(storage, lambda e: planted.running_sum(e, storage.round, lanes))
    assert sums.normaliser(wide, storage, 1024, rng).answer == "as close as rounding allows"
    assert sums.normaliser(narrow, storage, 1024, rng).answer == "off"


@SIXTEEN
def test_interior_of_a_softmax(storage, rng):
    x = storage.round(rng.uniform(-2, 2, (64, 256)))
    exact = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)

    def bits(**places):
        return interior_bits(
            planted.softmax(storage, lambda e: e.sum(axis=1), **places), (x,), exact, exact, storage
        ).value

    assert bits() > 20
    assert bits(exponent=planted.float32) > 20
    assert bits(exponent=storage.round) == pytest.approx(storage.bits, abs=1)
    assert bits(exponent=planted.to_bits(14)) == pytest.approx(14, abs=1)


def test_interior_of_a_result_that_is_not_finite():
    outcome = interior_bits(lambda x: x * np.inf, (np.ones(4),), np.ones(4), np.ones(4), FLOAT16)
    assert (outcome.answer, outcome.value) == ("non-finite", None)


@SIXTEEN
@pytest.mark.parametrize("shape", [Shape(1, 64, 64), Shape(16, 16, 128)], ids=["one query", "square"])
def test_places_where_attention_rounds(storage, shape):
    def places(**roundings):
        operation = planted.attention(storage, **roundings)
        return attention.rounding_places(operation, storage, shape).answer

    r = storage.round
    assert places() == "none"
    assert places(query=planted.float32, scores=planted.float32, probabilities=planted.float32) == "none"
    assert places(query=r) == "q*scale"
    assert places(scores=r) == "scores"
    assert places(probabilities=r) == "probabilities"
    assert places(query=r, scores=r, probabilities=r) == "q*scale, scores, probabilities"
    assert places(unnormalised=r) == "probabilities (rounded before the division)"


@SIXTEEN
def test_interior_of_attention(storage, rng):
    def bits(**roundings):
        return attention.attention_bits(planted.attention(storage, **roundings), storage, Shape(64, 64, 64), rng).value

    assert bits(scores=planted.float32, probabilities=planted.float32) > 17
    assert bits(scores=storage.round) < 15
    assert bits(probabilities=storage.round) < 15


@SIXTEEN
def test_places_where_a_norm_rounds(storage, rng):
    def place(centre, **roundings):
        return rounding.norm_rounding(planted.norm(storage, centre=centre, **roundings), storage, rng, centre).answer

    r = storage.round
    for centre in (True, False):
        assert place(centre) == "none"
        assert place(centre, first=r) == "normalised value"
    assert place(True, second=r) == "product with the weight"
    assert place(True, first=r, second=r) == "normalised value, product with the weight"
    assert place(True, first=planted.to_bits(5)) == "unclear"


@ALL
def test_rounding_of_a_product_before_an_addition(storage):
    fused = lambda a, b, c: storage.round(a * b + c)  # noqa: E731
    rounded = lambda a, b, c: storage.round(storage.round(a * b) + c)  # noqa: E731
    assert rounding.multiply_add(fused, storage).answer == "kept"
    assert rounding.multiply_add(rounded, storage).answer == "rounded"


@ALL
def test_python_scalars(storage):
    kept = lambda x: storage.round(x * 0.044715)  # noqa: E731
    rounded = lambda x: storage.round(x * storage.round(0.044715))  # noqa: E731
    assert rounding.python_scalar(kept, 0.044715, storage).answer == "kept"
    assert rounding.python_scalar(rounded, 0.044715, storage).answer == "rounded to the format"


def test_result_of_overflow():
    assert ranges.overflow(lambda x: x * np.inf, 1.0).answer == "inf"
    assert ranges.overflow(lambda x: np.clip(x, -448, 448), 1e6).answer == "saturates"
    assert ranges.overflow(lambda x: x * np.nan, 1.0).answer == "NaN"


def test_overflow_of_a_cast():
    assert ranges.cast_overflow(FLOAT16.round, FLOAT16).answer == "inf"
    assert ranges.cast_overflow(lambda x: np.clip(FLOAT16.round(x), -65504, 65504), FLOAT16).answer == "saturates"
    truncating = lambda x: np.where(np.abs(x) > 65504, np.copysign(np.inf, x), FLOAT16.round(x))  # noqa: E731
    assert ranges.cast_overflow(truncating, FLOAT16).answer == "inf, early"


@pytest.mark.parametrize("lanes", [1, 4])
def test_range_inside_a_sum(lanes):
    with np.errstate(invalid="ignore"):
        narrow = ranges.range_inside(lambda x: planted.running_sum(x, FLOAT16.round, lanes), FLOAT16, 64)
    wide = ranges.range_inside(lambda x: FLOAT16.round(planted.running_sum(x, planted.float32, lanes)), FLOAT16, 64)
    assert narrow.answer == "overflows on the way"
    assert wide.answer == "wider than the format"


def test_range_inside_a_norm():
    def norm(square):
        return lambda x: x / np.sqrt(square(x**2).mean(axis=1, keepdims=True))

    assert ranges.square_inside(norm(planted.float32), FLOAT16).answer == "wider than the format"
    assert ranges.square_inside(norm(FLOAT16.round), FLOAT16).answer == "overflows on the way"


@ALL
def test_subnormals_kept_and_flushed(storage):
    tiny = storage.smallest_subnormal * np.arange(1.0, 50.0)
    double = lambda x: 2 * x  # noqa: E731
    assert ranges.subnormals(double, (tiny,), 2 * tiny).answer == "kept"
    assert ranges.subnormals(planted.flushing(storage, double), (tiny,), 2 * tiny).answer == "flushed to zero"


def test_nan_propagated_and_swallowed():
    assert nans.propagation(lambda x: x.max(axis=1)).answer == "propagates"
    assert nans.propagation(lambda x: np.fmax.reduce(x, axis=1)).answer == "swallowed"
    first_wins = lambda x: np.where(np.isnan(x[:, 0]), np.nan, np.fmax.reduce(x, axis=1))  # noqa: E731
    assert nans.propagation(first_wins).answer == "depends on the place"


@pytest.mark.parametrize(("value", "answer"), [(np.nan, "NaN"), (0.0, "zeros"), (1 / 64, "uniform")])
def test_a_row_of_minus_infinity(value, answer):
    assert nans.masked_row(lambda x: np.full_like(x, value)).answer == answer


def test_compiled_against_eager():
    x = FLOAT16.round(np.linspace(1, 1.9, 100))
    same = compiled.difference(lambda a: a, lambda a: a, (x,), FLOAT16)
    apart = compiled.difference(lambda a: a, lambda a: a + 2.0**-10, (x,), FLOAT16)
    assert (same.answer, same.value) == ("same bits", 0)
    assert apart.value == 1


def finding(op, about, value, dtype="bfloat16", answer="answer"):
    return Finding(op, dtype, about, Outcome(answer, "evidence", value))


def test_verdicts():
    judged = judge(
        [
            finding("wide", "accumulator_bits", 24),
            finding("wide", "input_bits", 8),  # a 16-bit factor is as wide as its format
            finding("tf32", "accumulator_bits", 24, "float32"),
            finding("tf32", "input_bits", 11, "float32"),
            finding("between", "interior_bits", 16),
            finding("absent", "interior_bits", None, answer=NOT_AVAILABLE),
            finding("other", "nan", 0.0),
        ]
    )
    verdicts = {op["op"]: op["verdict"] for op in judged}
    assert verdicts == {"wide": "supported", "tf32": "refuted", "between": "inconclusive", "absent": "inconclusive"}
