"""Weights that are not finite are said before a run, in its summary, on its page, and by its exit code."""

import json
import shutil
from types import SimpleNamespace

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from precision_lab.cli import main
from precision_lab.instrument.arrays import to_numpy
from precision_lab.lab.outcome import Outcome
from precision_lab.lab.soundness import WeightCheck, _largest_on_device, unread_weights
from precision_lab.numerics.nonfinite import all_finite, count_nonfinite, largest_magnitude
from tests.spread import thinned
from tests.subjects import source
from tests.undrawn import unrendered

QUICK = (
    *("sampler.steps=1", "image.height=48", "image.width=48", "prompts=[a red circle]", "seeds=[0]"),
    *("latency.min_rounds=0", "latency.max_rounds=0", "pinned.cases=null", "probe.range.sites=[transformer_blocks.*]"),
)
FLOATS = [mx.float32, mx.float16, mx.bfloat16]
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [None, np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("seed", range(3))
def test_non_finite_values_of_arrays(dtype, bad, seed):
    rng = np.random.default_rng(seed)
    arrays = [
        (np.float64(rng.choice([1e-6, 1.0, 6e4])) * rng.uniform(-1, 1, rng.integers(1, 5, 3))).astype(dtype)
        for _ in range(60)
    ]
    arrays += [np.zeros((0, 3), dtype), np.arange(6), np.asfortranarray(arrays[0])]
    if bad is not None:
        spoilt = arrays[int(rng.integers(60))]
        spoilt[tuple(int(rng.integers(n)) for n in spoilt.shape)] = bad
    assert all_finite(arrays) is (bad is None)
    for x in arrays:
        wide = x.astype(np.float64)
        assert count_nonfinite(x) == (np.isnan(wide).sum(), np.isinf(wide).sum())
        if x.size and x.dtype == dtype:
            amax = largest_magnitude(x)
            assert np.isnan(amax) if np.isnan(wide).any() else amax == np.abs(wide).max()


def test_large_arrays_are_read_in_pieces():
    x = np.ones(700_001, np.float32)
    x[[-1, 300_000]] = -3.0, 2.0
    assert largest_magnitude(x) == 3.0
    x[-1] = np.nan
    assert np.isnan(largest_magnitude(x))
    assert not all_finite([x])


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_what_is_said_of_weights(dtype):
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    net.set_dtype(dtype)
    sound = WeightCheck({"net": net}, {"net": [mx.bfloat16, mx.float16]})
    assert (sound.not_finite, sound.beyond) == ([], [])
    net.layers[1].weight[1, 2] = mx.nan
    net.layers[1].bias[0] = -mx.inf
    (said,) = WeightCheck({"net": net}, {"net": [mx.float16]}).not_finite
    assert said == "weights of net: 2 of 4 tensors are not finite; the first is layers.1.weight (1 NaN)"


@pytest.mark.parametrize("bad", [None, mx.nan, -mx.inf])
def test_both_ways_to_find_the_largest_weight_agree(bad):
    arrays = [mx.random.normal((3, 5), key=mx.random.key(n)).astype(dtype) for n, dtype in enumerate(FLOATS)]
    if bad is not None:
        arrays = [mx.where(mx.arange(5) == 2, mx.array(bad), x).astype(x.dtype) for x in arrays]
    assert np.array_equal(_largest_on_device(arrays), [largest_magnitude(to_numpy(x)) for x in arrays], equal_nan=True)


def test_weights_beyond_the_range_of_a_variant():
    net = nn.Linear(4, 3)
    net.weight[0, 0] = 7e4
    assert WeightCheck({"net": net}, {"net": [mx.bfloat16]}).beyond == []
    check = WeightCheck({"net": net}, {"net": [mx.bfloat16, mx.float16]})
    assert check.not_finite == []
    (said,) = check.beyond
    assert "1 of 2 tensors exceed the range of float16" in said
    assert "weight (7e+04)" in said


def test_weights_on_disk_are_not_checked_but_counted(small_checkpoint):
    resident = source(small_checkpoint).load(mx.float32).components
    paged = source(small_checkpoint, stream=True).load(mx.float32).components
    assert unread_weights(resident) == 0
    assert unread_weights(paged) > 100
    assert WeightCheck(paged, {name: [mx.float16] for name in paged}).not_finite == []


@unrendered()
@pytest.mark.parametrize("share", thinned(["one weight", "constant picture"], keep=1))
def test_a_run_says_so_everywhere(small_checkpoint, tmp_path, capsys, share):
    folder, out = tmp_path / "checkpoint", tmp_path / "run"
    shutil.copytree(small_checkpoint, folder)
    (file,) = (folder / "vae").glob("*.safetensors")
    weights = mx.load(str(file))
    name = "decoder.conv_out.weight"
    array = np.array(weights[name].astype(mx.float32))
    if share == "one weight":
        array.flat[-1] = np.nan
    else:
        array[:] = 0
    weights[name] = mx.array(array).astype(weights[name].dtype)
    mx.save_safetensors(str(file), weights)
    assert main([f"model.path={folder}", f"out={out}", *QUICK]) == 1
    said = capsys.readouterr()
    summary = json.loads((out / "summary.json").read_text())
    page = (out / "report.html").read_text().replace("<wbr>", "")  # where names may break
    kinds = {entry["kind"] for entry in summary["health"]}
    if share == "one weight":
        assert kinds == {"weights", "reference"}
        sentence = "weights of vae: 1 of "
        assert json.loads((out / "manifest.json").read_text())["unsound_weights"][0].startswith(sentence)
    else:
        assert kinds == {"constant"}
        sentence = "reference: constant picture (prompt 0 seed 0)"
    assert sentence in page
    assert "UNSOUND: " in said.out
    assert sentence in said.out


@pytest.mark.parametrize(
    ("result", "picture", "constant"),
    [
        (np.zeros((1, 4, 2)), None, True),
        (np.ones((1, 1, 1)), None, False),
        (np.arange(4.0), None, False),
        (np.zeros((1, 4, 2)), np.arange(12.0).reshape(2, 2, 3), False),
        (np.arange(4.0), np.broadcast_to(np.array([1.0, 2.0, 3.0]), (4, 5, 3)), True),
        (np.full(4, np.nan), None, False),
    ],
)
def test_constant_outcomes(result, picture, constant):
    outcome = Outcome()
    outcome.step(0, SimpleNamespace(result=mx.array(result.astype(np.float32))))
    row = outcome.row(picture)
    assert row["is_constant"] is constant
    assert row["num_nonfinite"] == np.isnan(result).sum()
    assert row["what"] == ("result" if picture is None else "picture")


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
def test_equal_outcomes_have_equal_digests(dtype):
    def digest(x):
        outcome = Outcome()
        outcome.step(0, SimpleNamespace(result=x.astype(dtype)))
        return outcome.row(None)["digest"]

    x = mx.random.normal((2, 3), key=mx.random.key(1))
    assert digest(x) == digest(x + 0)
    assert digest(x) != digest(mx.where(mx.arange(3) == 2, x * 2, x))
