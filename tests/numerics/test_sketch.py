"""Sketches: an unbiased norm, distances between tensors from their sketches alone, and stability over time."""

import hashlib
import math

import ml_dtypes
import numpy as np
import pytest

from precision_lab.numerics.metrics import compare
from precision_lab.numerics.sketch import (
    NUM_PROJECTIONS,
    Sketch,
    column_signs,
    deviation,
    matrix_shape,
    row_signs,
    sketch,
    sketch_each,
)
from tests.spread import thinned

GOLDEN_PROJECTIONS = [40.0, -10.0, 6.0, 24.0, -26.0, -36.0, 22.0, 42.0]
GOLDEN_ROWS = "66fd8c6da1e1140c46a8e736ea6c29633502523a4d7d23d1b6a4339e5500ae45"
GOLDEN_COLUMNS = "2e7f00233123735920a6340c31678e54f81b07fec0ccdb2512541424f573eeea"


def exact(x):
    """The projections by their definition."""
    matrix = x.astype(np.float64).reshape(matrix_shape(x.shape))
    a, b = row_signs(matrix.shape[0]), column_signs(matrix.shape[1])
    return np.array([a[k] @ matrix @ b[k] for k in range(NUM_PROJECTIONS)])


def deviates(x, reference):
    before = sketch(reference)
    return float(deviation(sketch(x).projections, before.projections, before.rms, reference.size))


TENSORS = {
    "dense": lambda rng, rows, cols: rng.standard_normal((rows, cols)),
    "rank one": lambda rng, rows, cols: np.outer(rng.standard_normal(rows), rng.standard_normal(cols)),
    "one row": lambda rng, rows, cols: rng.standard_normal((rows, cols)) * (np.arange(rows) == rows // 2)[:, None],
    "one column": lambda rng, rows, cols: rng.standard_normal((rows, cols)) * (np.arange(cols) == cols // 2),
    "diagonal": lambda rng, rows, cols: np.eye(rows),  # detects equal signs for rows and columns
    "constant": lambda rng, rows, cols: np.ones((rows, cols)),
    "massive": lambda rng, rows, cols: rng.standard_cauchy((rows, cols)),
}


@pytest.mark.parametrize("kind", thinned(TENSORS, keep=4))
def test_the_mean_square_is_the_norm(kind):
    rng = np.random.default_rng(7)
    ratios = []
    for size in range(1, 300):
        rows, cols = (size, size) if kind == "diagonal" else rng.integers(1, 200, 2)
        x = TENSORS[kind](rng, rows, cols)
        ratios.append(sketch(x).projections ** 2 / np.sum(x**2))
    ratios = np.array(ratios)
    error = ratios.mean(axis=1).std() / math.sqrt(len(ratios))
    assert ratios.mean() == pytest.approx(1, abs=4 * error)
    assert error < 0.1


def test_projections_are_uncorrelated():
    rng = np.random.default_rng(3)
    p = np.array([sketch(rng.standard_normal((24, 40))).projections for _ in range(3000)])
    correlation = np.corrcoef(p.T) - np.eye(NUM_PROJECTIONS)
    assert np.abs(correlation).max() < 0.12  # 960 signs have correlations of about 1/sqrt(960) = 0.03


def test_golden():
    """Baselines contain old sketches: if this fails, the signs have changed, which must never happen."""
    assert sketch(np.arange(1.0, 16).reshape(3, 5)).projections.tolist() == GOLDEN_PROJECTIONS
    for signs, digest in ((row_signs(1000), GOLDEN_ROWS), (column_signs(1000), GOLDEN_COLUMNS)):
        assert signs.dtype == np.int8
        assert hashlib.sha256(signs.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("relative", [1e-6, 1e-3, 0.3])
def test_the_deviation_is_the_relative_error_within_a_factor(relative):
    rng = np.random.default_rng(11)
    ratios = []
    for _ in range(200):
        x = rng.standard_normal(rng.integers(1, 40, 3)).astype(np.float32) * 10.0 ** rng.integers(-3, 8)
        changed = x + (relative * np.abs(x).max() * rng.standard_normal(x.shape)).astype(np.float32)
        ratios.append(deviates(changed, x) / compare(changed, x).values["rel_l2"])
    ratios = np.array(ratios)
    assert np.sqrt(np.mean(ratios**2)) == pytest.approx(1, abs=0.1)
    assert np.mean((ratios > 0.5) & (ratios < 2)) > 0.95
    assert ratios.min() > 0.1


def test_a_change_of_one_element_is_exact():
    x = np.random.default_rng(0).standard_normal((2, 30, 17))
    changed = x.copy()
    changed[1, 4, 9] += 0.25
    assert deviates(changed, x) == pytest.approx(0.25 / np.linalg.norm(x), rel=1e-9)


def test_permuted_rows_deviate():
    x = np.random.default_rng(0).standard_normal((64, 16))
    assert deviates(np.roll(x, 1, axis=0), x) > 0.5
    assert deviates(x, x) == 0


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 0), (0, 3), (5, 1), (1, 64, 4, 16), (2, 300, 501)], ids=str)
def test_shapes(shape):
    x = np.asarray(np.random.default_rng(5).standard_normal(shape))
    result = sketch(x)
    norm = np.linalg.norm(x)
    assert result.projections == pytest.approx(exact(x), abs=1e-12 * max(1.0, norm))
    assert result.rms == pytest.approx(norm / math.sqrt(max(1, x.size)), rel=1e-12)
    assert result.num_nonfinite == 0


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16], ids=str)
def test_a_batch_gives_the_same_as_each_alone(dtype):
    rng = np.random.default_rng(9)
    shapes = [(64, 64), (3, 5), (64, 64), (900, 300), (3, 5), (2, 32, 64), (0, 4), ()]
    arrays = [np.asarray(rng.standard_normal(shape) * 100).astype(dtype) for shape in shapes]
    arrays[2][5, 5] = np.nan
    arrays.append(arrays[0].T)
    for one, x in zip(sketch_each(arrays), arrays, strict=True):
        alone = sketch(x)
        assert one.num_nonfinite == alone.num_nonfinite == (x is arrays[2])
        np.testing.assert_allclose(one.projections, alone.projections, rtol=0, atol=1e-12 * 100 * max(1, x.size))
        np.testing.assert_allclose(one.rms, alone.rms, rtol=1e-12)
    again = sketch_each(arrays)
    assert all(
        np.array_equal(s.projections, t.projections, True) for s, t in zip(sketch_each(arrays), again, strict=True)
    )
    assert sketch_each([]) == []


@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf], [np.nan, np.inf, 1.0]], ids=str)
@pytest.mark.parametrize("shape", [(40, 10), (700, 300)], ids=str)
def test_nonfinite_elements_are_counted_and_the_rest_is_undefined(bad, shape):
    rng = np.random.default_rng(2)
    x = rng.standard_normal(shape).astype(np.float32)
    x.flat[rng.choice(x.size, len(bad), replace=False)] = bad
    result = sketch(x)
    assert result.num_nonfinite == np.count_nonzero(~np.isfinite(x))
    assert np.isnan(result.projections).all()
    assert math.isnan(result.rms)


def test_the_deviation_of_nonfinite_and_zero_tensors():
    rng = np.random.default_rng(4)
    ones, zeros, nan = sketch(rng.standard_normal((4, 6))), sketch(np.zeros((4, 6))), sketch(np.full((4, 6), np.nan))

    def between(x: Sketch, reference: Sketch) -> float:
        return float(deviation(x.projections, reference.projections, reference.rms, 24))

    assert between(ones, ones) == between(zeros, zeros) == 0
    assert between(zeros, ones) == pytest.approx(1, rel=0.9)
    for x, reference in ((ones, zeros), (ones, nan), (nan, ones), (nan, nan), (nan, zeros)):
        assert math.isnan(between(x, reference))
    huge = np.full(NUM_PROJECTIONS, np.inf)
    assert math.isnan(float(deviation(huge, huge, np.inf, 24))), "beyond fp32 in a table"


def test_deviations_of_a_whole_table():
    rng = np.random.default_rng(6)
    references = [rng.standard_normal((8, 9)) for _ in range(5)]
    others = [x + 0.01 * rng.standard_normal(x.shape) for x in references]
    before, after = sketch_each(references), sketch_each(others)
    deviations = deviation(
        np.array([s.projections for s in after]), [s.projections for s in before], [s.rms for s in before], [72] * 5
    )
    assert deviations.tolist() == pytest.approx([deviates(y, x) for x, y in zip(references, others, strict=True)])


def test_streams_of_the_largest_size_neither_overflow_nor_lose_precision():
    x = 5e7 * np.random.default_rng(8).standard_normal((4096, 64)).astype(np.float32)
    assert sketch(x).rms == pytest.approx(5e7, rel=0.01)
    big = np.full((10, 10), np.finfo(np.float32).max)
    assert sketch(big).rms == pytest.approx(float(big[0, 0]), rel=1e-12)
