"""The probe of sketches: NumPy on the CPU, and the same numbers from MLX operations."""

import math

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.instrument.arrays import to_numpy
from precision_lab.numerics.sketch import SKETCH_COLUMNS, sketch
from precision_lab.probes.base import BatchProbe
from precision_lab.probes.sketches import Sketches, sketch_in_ops

SHAPES = [(), (5,), (1, 64, 64), (1, 37, 4, 16), (3, 300, 129), (0, 4), (4, 0)]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("magnitude", [1e-4, 1.0, 3e4])
def test_operations_give_what_numpy_gives(dtype, magnitude):
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        x = mx.array(np.asarray(magnitude * np.tanh(rng.standard_normal(shape)), np.float32)).astype(dtype)
        expected = sketch(to_numpy(x))
        numbers, num_nonfinite = sketch_in_ops(x)
        numbers = np.array(numbers)
        norm = expected.rms * math.sqrt(max(1, x.size))
        assert numbers[0] == pytest.approx(expected.rms, rel=1e-5)
        np.testing.assert_allclose(numbers[1:], expected.projections, rtol=0, atol=1e-5 * norm)
        assert num_nonfinite.item() == 0


@pytest.mark.parametrize("scale", [5e7, 1e36, 1e-36])
def test_squares_in_operations_neither_overflow_nor_vanish(scale):
    x = mx.array(scale * np.random.default_rng(2).standard_normal((64, 64)).astype(np.float32))
    expected = sketch(to_numpy(x))
    numbers = np.array(sketch_in_ops(x)[0])
    assert numbers[0] == pytest.approx(expected.rms, rel=1e-5)
    np.testing.assert_allclose(numbers[1:], expected.projections, rtol=0, atol=1e-5 * expected.rms * 64)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_elements_in_operations(bad):
    x = np.random.default_rng(3).standard_normal((30, 20)).astype(np.float32)
    x[3, :4] = bad
    numbers, num_nonfinite = sketch_in_ops(mx.array(x))
    assert num_nonfinite.item() == 4
    assert np.isnan(np.array(numbers)).all()
    assert not np.array(sketch_in_ops(mx.zeros((5, 5)))[0]).any()


def test_on_either_device_the_probe_names_the_same_scalars(monkeypatch):
    probe = Sketches(sites=("img_in",))
    assert isinstance(probe, BatchProbe)
    rng = np.random.default_rng(4)
    arrays = [mx.array(np.asarray(rng.standard_normal(shape), np.float32)) for shape in (*SHAPES, (1, 64, 64))]
    arrays.append(mx.array([1.0, math.nan]))
    on_cpu = probe.measure_each(arrays)
    assert list(on_cpu[0]) == ["num_nonfinite", "rms", *SKETCH_COLUMNS]
    assert on_cpu[-1]["num_nonfinite"] == 1
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    elsewhere = probe.measure_each(arrays)
    for here, there, x in zip(on_cpu, elsewhere, arrays, strict=True):
        assert list(here) == list(there)
        assert there == pytest.approx(here, rel=1e-5, abs=1e-5 * max(1, x.size) ** 0.5, nan_ok=True)
    assert probe.measure(arrays[2]) == elsewhere[2]
