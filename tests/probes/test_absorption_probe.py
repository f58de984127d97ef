"""The absorption probe at the residual adds of a model, and probes of whole calls in general."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.lab.frames import frames_of
from precision_lab.lab.observing import observing
from precision_lab.lab.recorder import ProbeRecorder
from precision_lab.model.modulation import GatedAdd
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.rotary import Grid
from precision_lab.numerics.absorption import absorption_pct
from precision_lab.probes.absorption import Absorption
from precision_lab.probes.ranges import RangeCatalogue

ADDS = "transformer_blocks.*.{img,txt}_add{1,2}"


def forward(model):
    rng = np.random.default_rng(0)
    latents, text = (mx.array(rng.standard_normal((1, n, 64)).astype(np.float32)) for n in (12, 5))
    mx.eval(model(latents.astype(mx.bfloat16), mx.array([0.5]), text.astype(mx.bfloat16), Grid(3, 4)))


def test_rows_join_those_of_the_output(small_checkpoint):
    model = Checkpoint(small_checkpoint).transformer(mx.bfloat16)
    ranges, absorption = ProbeRecorder(RangeCatalogue(sites=[ADDS])), ProbeRecorder(Absorption([ADDS]))
    with observing({"transformer": model}, [ranges, absorption]):
        forward(model)
    rows = frames_of([ranges, absorption])["activations"].to_dict("records")
    assert len(rows) == 4 * 4  # adds in four blocks
    assert all(row["port"] == "out" and row["amax"] > 0 for row in rows)
    for row in rows:
        assert 0 <= row["absorption_pct_bfloat16"] <= 100
        assert row["absorption_pct_float16"] <= row["absorption_pct_bfloat16"]
        assert row["update_ratio"] > 0


def test_the_measured_share_is_that_of_the_call():
    rng = np.random.default_rng(1)
    residual = mx.array(1e4 * rng.standard_normal((2, 3, 8))).astype(mx.bfloat16)
    gate, update = mx.array(rng.standard_normal((2, 8))), mx.array(rng.standard_normal((2, 3, 8)))
    scalars = Absorption([ADDS]).measure([residual, gate, update], GatedAdd()(residual, gate, update))
    added = np.array(gate)[:, None].astype(np.float64) * np.array(update)
    stream = np.array(residual.astype(mx.float32))
    assert scalars["absorption_pct_bfloat16"] == absorption_pct(stream, added, "bfloat16")
    assert scalars["update_amax"] == np.abs(added).max()
    assert scalars["update_ratio"] == pytest.approx(np.sqrt((added**2).mean() / (stream.astype(float) ** 2).mean()))


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 1, 8), (1, 3, 8), (2, 3, 8)])
def test_a_gate_may_have_the_axis_of_tokens(shape):
    rng = np.random.default_rng(2)
    residual, update = (mx.array(rng.standard_normal((2, 3, 8))) for _ in range(2))
    gate = mx.array(rng.standard_normal(shape))
    probe, call = Absorption([ADDS]), GatedAdd()
    scalars = probe.measure([residual, gate, update], call(residual, gate, update))
    assert scalars["update_amax"] == pytest.approx(np.abs(np.array(gate) * np.array(update)).max())


def test_other_calls_are_refused():
    with pytest.raises(InputError, match="expected residual, gate, update"):
        Absorption([ADDS]).measure([mx.ones((1, 2, 3))], mx.ones((1, 2, 3)))
