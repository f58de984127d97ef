"""Exponent histograms: rows computed by hand, and the separate table of a run."""

import mlx.core as mx
import numpy as np
import pandas as pd

from precision_lab.instrument.observation import Observation, Position
from precision_lab.lab.frames import frames_of
from precision_lab.lab.observing import observing
from precision_lab.lab.recorder import recorder_of
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.rotary import Grid
from precision_lab.probes.exponents import Exponents
from precision_lab.probes.ranges import RangeCatalogue
from precision_lab.record import tables


def test_rows_by_hand():
    recorder = Exponents(["transformer_blocks.*"]).recorder()
    place = Position("cond", 2, 0.5, "transformer", "transformer_blocks.3", "out.0", "img", 3, 7)
    x = mx.array([0.0, 1.0, -1.5, 2.0, 6e4, float("inf"), float("nan"), 2.0**-24], mx.float16)
    recorder.observe([Observation(place, x)])
    assert {row["exponent"]: row["count"] for row in recorder.rows} == {0: 2, 1: 1, 15: 1, -24: 1}
    for row in recorder.rows:
        assert (row["site"], row["port"], row["block"], row["order"]) == ("transformer_blocks.3", "out.0", 3, 7)
        assert (row["dtype"], row["numel"]) == ("float16", 8)


def test_they_stand_in_a_table_of_their_own(small_checkpoint, tmp_path):
    model = Checkpoint(small_checkpoint).transformer(mx.bfloat16)
    rng = np.random.default_rng(0)
    recorders = [
        recorder_of(Exponents(["transformer_blocks.*"])),
        recorder_of(RangeCatalogue(sites=["transformer_blocks.*"])),
    ]
    with observing({"transformer": model}, recorders):
        latents, text = (mx.array(rng.standard_normal((1, n, 64)).astype(np.float32)) for n in (12, 5))
        mx.eval(model(latents.astype(mx.bfloat16), mx.array([0.5]), text.astype(mx.bfloat16), Grid(3, 4)))
    found = frames_of(recorders)
    assert list(found) == ["exponents", "activations"]
    labels = {"variant": "v", "prompt_id": 0, "seed": 0}
    for table, frame in found.items():
        for part, seed in (("b", 1), ("a", 0)):
            tables.write_part(tmp_path, table, part, frame.assign(**{**labels, "seed": seed}))
    unmerged = tables.read(tmp_path, "exponents")
    tables.merge(tmp_path)
    assert not (tmp_path / "exponents").exists()
    merged, activations = tables.read(tmp_path, "exponents"), tables.read(tmp_path, "activations")
    assert len(merged) == len(unmerged)
    assert merged["seed"].is_monotonic_increasing
    assert list(merged.columns[:3]) == ["variant", "prompt_id", "seed"]
    counted = merged.groupby(["seed", "order"])["count"].sum()
    array = activations.set_index(["seed", "order"])
    assert (counted == array["numel"] - array["num_zero"]).all()
    largest = merged.groupby(["seed", "order"])["exponent"].max()
    assert (largest == np.floor(np.log2(array["amax"]))).all()


def test_a_run_without_the_probe_has_no_such_table(tmp_path):
    tables.merge(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.parquet" for name in sorted(tables.LEADING)]
    assert tables.read(tmp_path, "exponents").empty
    assert isinstance(tables.read(tmp_path, "exponents"), pd.DataFrame)
