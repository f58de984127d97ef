"""The kernels' statistics, on a machine that has a GPU: equal to NumPy's, the same on every run."""

from __future__ import annotations

import mlx.core as mx
import pytest

from precision_lab.instrument.observation import Observation, Position
from precision_lab.lab.recorder import ProbeRecorder
from precision_lab.numerics.formats import FORMATS
from precision_lab.probes.ranges import DEFAULT_FORMATS, RangeCatalogue

pytestmark = pytest.mark.skipif(mx.default_device().type != mx.DeviceType.gpu, reason="needs CUDA or Metal")


@pytest.mark.parametrize("formats", [DEFAULT_FORMATS, tuple(FORMATS)], ids=["default", "all"])
def test_equal_to_numpy(formats: tuple[str, ...]) -> None:
    from experiments.benchmarks.probe_kernels import check  # sets MLX's numeric switches

    found = check("tested", formats)
    assert not found["differences"]
    assert found["arrays"] > 100


def test_a_recorder_reads_what_it_was_given_when_asked() -> None:
    recorder = ProbeRecorder(RangeCatalogue(sites=("**",)))
    assert recorder.is_lazy
    for order in range(40):
        position = Position(None, None, None, "transformer", "site", "out", "img", None, order)
        x = mx.full((order + 1, 300), float(order), mx.bfloat16)
        mx.async_eval(recorder.prepare([Observation(position, x)]))
    rows = recorder.rows
    assert [row["amax"] for row in rows] == [row["mean"] for row in rows] == list(range(40))
    assert [row["numel"] for row in rows] == [300 * (order + 1) for order in range(40)]
