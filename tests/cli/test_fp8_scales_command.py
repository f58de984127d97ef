"""`search strategy=fp8_scales`: the kind of scale of each weight, in a checkpoint with planted weights."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from precision_lab.analysis.scales.weights import chosen
from precision_lab.cli import main
from precision_lab.numerics.formats import FORMATS, round_to

E4M3 = FORMATS["float8_e4m3fn"]
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
QUICK = (
    *("sampler.steps=1", "image.height=32", "image.width=32", 'prompts=["a red circle"]', "pinned.cases=null"),
    *("only=[baseline,fp8_channel]", "workers=1"),
)


def ranges(weights):
    """The columns that the choice reads, by NumPy."""
    rows = []
    for weight in weights:
        peak, rms = np.abs(weight).max(axis=1), np.sqrt((weight.astype(np.float64) ** 2).mean(axis=1))
        rows.append({"amax": peak.max(), "channel_rms": rms.min(), "channel_peak_rms": (rms / peak).min()})
    return pd.DataFrame(rows)


def test_the_coarsest_scale_that_keeps_every_channel_normal():
    rng = np.random.default_rng(4)
    normal = rng.standard_normal((8, 512))
    faint = normal * 2.0**-9  # subnormal without a scale
    uneven = normal * np.exp2(-np.arange(8) * 3)[:, None]  # the last channel is 21 bits below the first
    large = normal * 1000  # saturates without a scale
    found = chosen(ranges([normal, faint, uneven, large]), E4M3, 1.0)
    assert found["scale"].tolist() == ["none", "tensor", "channel", "tensor"]
    assert (found["overflow_bits"] > 0).tolist() == [False, False, False, True]
    for weight, row in zip((normal, faint, uneven, large), found.to_dict("records"), strict=True):
        amax = np.abs(weight).max(axis=1, keepdims=True)
        scale = {"none": 1.0, "tensor": amax.max() / 448, "channel": amax / 448}[row["scale"]]
        error = round_to(weight / scale, E4M3) * scale - weight
        each = np.linalg.norm(error, axis=1) / np.linalg.norm(weight, axis=1)
        assert (each < 2.0**-4).all(), "as precise as e4m3 is: half a unit in the last of 4 bits"
        bits = np.log2(np.sqrt(((weight / scale) ** 2).mean(axis=1)).min() / E4M3.smallest_normal)
        assert row[f"normal_bits_{row['scale']}"] == pytest.approx(bits, abs=1e-9)


def test_more_margin_never_takes_a_coarser_scale():
    rng = np.random.default_rng(5)
    many = ranges([rng.standard_normal((6, 64)) * np.exp2(rng.uniform(-12, 8, (6, 1))) for _ in range(60)])
    order = {"none": 0, "tensor": 1, "channel": 2}
    levels = [chosen(many, E4M3, margin)["scale"].map(order) for margin in (0, 1, 3, 6)]
    assert all((finer >= coarser).all() for coarser, finer in pairwise(levels))
    assert set(levels[1]) == {0, 1, 2}


@pytest.fixture
def lab(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(folder, *args, command=("search", "strategy=fp8_scales")):
        code = main([*command, f"model.path={folder}", *QUICK, *args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.slow
def test_planted_weights_get_the_scale_that_they_need(lab, small_checkpoint, tmp_path):
    folder = tmp_path / "planted"
    shutil.copytree(small_checkpoint, folder)
    tensors = load_file(folder / TRANSFORMER)
    rng = np.random.default_rng(6)
    wanted = {}
    for kind, site in (("none", "0.attn.to_q"), ("tensor", "1.attn.to_q"), ("channel", "3.img_mlp.net.0.proj")):
        name = f"transformer_blocks.{site}.weight"
        normal = rng.standard_normal(tensors[name].shape) * {"none": 0.5, "tensor": 1e-3, "channel": 0.5}[kind]
        if kind == "channel":
            normal[5] *= 2.0**-16
        tensors[name] = normal.astype(tensors[name].dtype)
        wanted[f"transformer_blocks.{site}"] = kind
    save_file(tensors, folder / TRANSFORMER)
    code, out, err = lab(folder, "out=one")
    assert (code, err) == (0, "")
    weights = pd.read_parquet(tmp_path / "one" / "weights.parquet").set_index("site")["scale"]
    assert weights[list(wanted)].to_dict() == wanted
    about = json.loads((tmp_path / "one" / "fp8_scales.json").read_text())
    assert about["weights"] == {kind: int((weights == kind).sum()) for kind in ("none", "tensor", "channel")}
    assert set(about["variants"]) == {"baseline", "fp8_channel"}
    assert "fp8_scales" in out
    recipe = yaml.safe_load((tmp_path / "one" / "recipe" / "technique" / "fp8_scales.yaml").read_text())
    assert {node["scale"] for node in recipe.values()} == set(weights)
    run = ("--config-dir=one/recipe", "technique=[fp8_scales]", "only=[custom]", "latency.max_rounds=0", "out=two")
    assert lab(folder, *run, command=())[::2] == (0, "")
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert sum(entry["matched"] for entry in manifest["sites"]["custom"].values()) == len(weights)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["margin.bits=-1"], "margin.bits is -1, expected a number from 0 to 15"),
        (["of=[img_inn]"], "Did you mean"),
        (["of=[transformer_blocks.*.img_norm1]"], "expected a linear that is not quantised"),
        (["technique=[fp8]"], "fp8_scales chooses the techniques"),
        (["holdout.seeds=[]"], "holdout has no cases"),
        (["coverage.seeds=[1]"], "coverage"),
    ],
)
def test_mistakes(lab, small_checkpoint, tmp_path, overrides, message):
    code, _, err = lab(small_checkpoint, "out=one", *overrides)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []
