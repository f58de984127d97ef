"""A scan ranks layers that were made fragile first, wherever they are."""

import numpy as np
import pandas as pd
import pytest

from precision_lab.analysis.sensitivity import ranking
from precision_lab.cli import main, sensitivity
from tests.cli.planted_layers import OUTPUTS, VALUES, fragile, planted

CASE = ("image.height=32", "image.width=64", "sampler.steps=2", "prompts=[two red circles]", "confirm=0")
LAST = 3
"""The last block of the small checkpoint."""

SEEDS = [seed if seed < 1 else pytest.param(seed, marks=pytest.mark.slow) for seed in range(15)]


def ranked(checkpoint, out, candidate, monkeypatch, *overrides):
    monkeypatch.setattr(sensitivity, "draw_scan", lambda folder, console: None)
    assert (
        main(["sensitivity", f"model.path={checkpoint}", f"candidate=[{candidate}]", f"out={out}", *CASE, *overrides])
        == 0
    )
    return ranking(pd.read_parquet(out / "sensitivity.parquet"), candidate)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["outliers", pytest.param("overflow", marks=pytest.mark.slow)])
def test_planted_layers_come_first(small_checkpoint, tmp_path, monkeypatch, kind, seed):
    """outliers: columns 64 times as large as those that share a scale of 4 bits with them, among the linears of blocks.

    What the text stream receives reaches the output only through later blocks, so those columns of its projection are
    no matter of rank. overflow: values beyond float16, among all linears.
    """
    rng = np.random.default_rng(seed)
    blocks = [int(block) for block in rng.choice(LAST + 1, rng.integers(1, 3), replace=False)]
    channels = rng.choice(64, 2, replace=False)
    checkpoint = tmp_path / "planted"
    if kind == "outliers":
        planted(small_checkpoint, checkpoint, blocks, channels, 1 / 64)
        expected = fragile(blocks, OUTPUTS[:1], LAST)
        found = ranked(checkpoint, tmp_path / "scan", "affine4", monkeypatch, "of=[transformer_blocks.**]")
        lost = set(found.sort_values("local_error", ascending=False)["group"][: 2 * len(blocks)])
        assert lost == {f"transformer_blocks.{block}.{name}" for block in blocks for name in OUTPUTS}
    else:
        planted(small_checkpoint, checkpoint, blocks, channels, 2.0**22)
        expected = fragile(blocks, (*VALUES, *OUTPUTS), LAST)
        found = ranked(checkpoint, tmp_path / "scan", "float16", monkeypatch)
        assert (found["num_nonfinite"] > 0).sum() == len(expected)
        assert found["rank"].iloc[len(expected)] == len(expected) + 1
    assert set(found["group"][: len(expected)]) == expected, found.to_string()
