"""Shares of the final stream: on a sum known in closed form, and on a model."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.instrument.observation import Observation, Position
from precision_lab.instrument.sites import Components
from precision_lab.lab.frames import frames_of
from precision_lab.lab.observing import observing
from precision_lab.lab.recorder import ProbeRecorder
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image.layout import layout
from precision_lab.model.qwen_image_21.layout import layout as layout_21
from precision_lab.model.rotary import Grid
from precision_lab.probes.absorption import Absorption
from precision_lab.probes.contributions import Contributions
from tests.model.qwen_image_21 import oracle as oracle_21

SITES = ("{img_in,txt_in}", "transformer_blocks.*.{img,txt}_add{1,2}")


def seen(site, block, output, inputs=(), order=0, stream="img"):
    return Observation(Position("cond", 0, 1.0, "transformer", site, "out", stream, block, order), output, inputs)


def test_shares_by_hand():
    start = mx.array([[[1.0, 0.0], [0.0, 1.0]]])
    gate, update = mx.array([[2.0, 1.0]]), mx.array([[[1.0, 0.0], [0.0, 1.0]]])
    middle = start + gate[:, None] * update  # [[3, 0], [0, 2]]
    back = mx.array([[[0.0, 0.0], [0.0, -1.0]]])
    final = middle + back  # [[3, 0], [0, 1]]
    recorder = Contributions(SITES).recorder()
    recorder.observe([seen("img_in", None, start)])
    recorder.observe([seen("b.0.img_add1", 0, middle, (start, gate, update), 1)])
    recorder.observe([seen("b.0.img_add2", 0, final, (middle, mx.ones((1, 2)), back), 2)])
    shares = [row["final_share"] for row in recorder.rows]
    assert shares == pytest.approx([4 / 10, 7 / 10, -1 / 10])
    assert [row["final_amax_share"] for row in recorder.rows] == pytest.approx([1 / 3, 2 / 3, 0])


def test_tokens_that_enter_one_after_another_are_one_stream():
    text, image = mx.array([[[3.0, 0.0]]]), mx.array([[[0.0, 1.0], [1.0, 0.0]]])
    final = mx.concatenate([text, image], axis=1) + mx.ones((1, 3, 2))  # [[4, 1], [1, 2], [2, 1]]
    recorder = Contributions(SITES).recorder()
    recorder.observe([seen("txt_in", None, text), seen("img_in", None, image, order=1)])
    added = (final, mx.ones((1, 3, 2)), mx.ones((1, 3, 2)))
    recorder.observe([seen("b.0.img_add1", 0, final, added, 2)])
    shares = [row["final_share"] for row in recorder.rows]
    assert shares == pytest.approx([12 / 27, 4 / 27, 11 / 27])
    assert [row["final_amax_share"] for row in recorder.rows] == pytest.approx([3 / 4, 0, 1 / 4])


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_stream_that_is_not_finite_has_no_shares(value):
    start = mx.array([[[1.0, 2.0], [0.0, 1.0]]])
    final = start.at[0, 1, 0].add(value)
    recorder = Contributions(SITES).recorder()
    recorder.observe([seen("img_in", None, start)])
    recorder.observe([seen("b.0.img_add1", 0, final, (start, mx.ones((1, 2)), final - start), 1)])
    assert np.isnan([row["final_share"] for row in recorder.rows]).all()
    assert len(recorder.rows) == 2


@pytest.mark.parametrize("cached", [False, True])
def test_the_shares_of_a_model_of_one_stream_add_up_to_one(cached):
    model = oracle_21.copy_of(oracle_21.random_transformer(0, oracle_21.Shape(3)))
    inputs = oracle_21.random_inputs(np.random.default_rng(0), (3, 4), oracle_21.Shape(3), 2)
    sites = ("{img_in,txt_in}", "transformer_blocks.*.img_add{1,2}")
    recorder, absorption = Contributions(sites).recorder(), ProbeRecorder(Absorption(sites[1:]))
    with observing(Components({"transformer": model}, layout_21(3)), [recorder, absorption]):
        oracle_21.ours(model, inputs, cached=cached)
    rows = recorder.rows
    assert len(rows) == 8 + 6 * cached  # two entries and six adds; a pass of the prefix has six more
    updates = frames_of([absorption])["activations"]["update_rms"]
    assert len(updates) == 6 + 6 * cached
    assert (updates > 0).all()
    for name in ("final_share", "final_amax_share"):
        assert sum(row[name] for row in rows) == pytest.approx(1 + cached, rel=1e-5)


def test_the_shares_of_a_model_add_up_to_one(small_checkpoint):
    model = Checkpoint(small_checkpoint).transformer(mx.float32)
    rng = np.random.default_rng(0)
    recorder = Contributions(SITES).recorder()
    with observing(Components({"transformer": model}, layout(4)), [recorder]):
        for _ in range(2):
            latents, text = (mx.array(rng.standard_normal((1, n, 64)).astype(np.float32)) for n in (12, 5))
            mx.eval(model(latents, mx.array([0.5]), text, Grid(3, 4)))
    rows = recorder.rows
    assert len(rows) == 2 * 2 * (1 + 2 * 4)  # forwards, streams, img_in and the adds of four blocks
    for stream in ("img", "txt"):
        for name in ("final_share", "final_amax_share"):
            assert sum(row[name] for row in rows if row["stream"] == stream) == pytest.approx(2, rel=1e-5)
    assert [row["order"] for row in recorder.rows] == [row["order"] for row in rows]
