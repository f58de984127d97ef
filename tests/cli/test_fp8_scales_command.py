"""`search strategy=fp8_scales`: the kind of scale of each weight, and static scales of inputs."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from precision_lab.analysis.scales.choice import Goal
from precision_lab.analysis.scales.heldout import failures
from precision_lab.analysis.scales.inputs import by_margin, chosen_inputs, on_cases
from precision_lab.analysis.scales.weights import chosen
from precision_lab.cli import main
from precision_lab.errors import InputError
from precision_lab.numerics.formats import FORMATS, round_to
from tests.spread import thinned

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


def recorded(amax, case=(0, 0), rms=None):
    """Ranges of the inputs of linears in one case, as `ranges_of` returns them. amax: by site."""
    places = [{"component": "transformer", "site": site, "port": "in", "block": 0} for site in amax]
    about = {"set": "coverage-0", "variant": "reference", "prompt_id": case[0], "seed": case[1], "branch": "cond"}
    rows = [{**place, **about, "step": 0, "order": 0} for place in places]
    frame = pd.DataFrame(rows).assign(amax=list(amax.values()))
    return frame.assign(rms=frame["amax"] / 4 if rms is None else rms)


def both(*ranges):
    return pd.concat(ranges, ignore_index=True)


def test_the_smallest_power_of_two_that_leaves_the_margin():
    rng = np.random.default_rng(7)
    amax = {f"l{at}": 2.0 ** rng.uniform(-30, 30) for at in range(200)} | {"zero": 0.0, "edge": 448.0}
    for margin in (0.0, 1.0, 2.5):
        found = chosen_inputs(recorded(amax), Goal(E4M3, margin)).set_index("site")
        for site, largest in amax.items():
            scale = found.loc[site, "scale"]
            assert np.log2(scale) % 1 == 0
            if largest:
                assert largest <= 448 * scale * 2**-margin < 2 * largest
        assert found.loc["zero", "scale"] == 1
        assert found.loc["edge", "scale"] == 2 ** np.ceil(margin)
    with pytest.raises(InputError, match="l0 is not finite"):
        chosen_inputs(recorded({"l0": np.inf}), Goal(E4M3, 1.0))


def test_the_held_out_case_that_saturates_is_named_with_its_site():
    goal = Goal(E4M3, 1.0)
    coverage = both(recorded({"a": 3.0, "b": 40.0}), recorded({"a": 4.0, "b": 10.0}, (1, 0)))
    scales = chosen_inputs(coverage, goal)
    assert scales.set_index("site")["prompt_id"].to_dict() == {"a": 1, "b": 0}
    large = recorded({"a": 4.0, "b": 40.0 * 4}, (2, 5))  # by two bits, of which the margin and the scale leave less
    found = failures(on_cases(both(recorded({"a": 5.0, "b": 41.0}, (2, 4)), large), scales, goal))
    assert found[["prompt_id", "seed", "site", "places"]].to_numpy().tolist() == [[2, 5, "b", 1]]
    bits = np.log2(448 * 2.0**-2 / 160)
    assert found["headroom_bits"].tolist() == pytest.approx([bits])
    failed = by_margin(coverage, large, goal, (0.0, 1.0, 2.0, 4.0))["failed"].tolist()
    assert failed == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="c has no scale"):
        on_cases(recorded({"c": 1.0}), scales, goal)


@pytest.mark.slow
def test_static_scales_of_inputs_run_by_name_and_a_small_margin_saturates(lab, small_checkpoint, tmp_path):
    own = ("learning.prompts=[a blue square]", "coverage.settings=[{}]", "coverage.seeds=[0]", "holdout.seeds=[1]")
    code, out, err = lab(small_checkpoint, "out=one", "inputs.scale=static", "inputs.margin_bits=0", *own)
    assert (code, err) == (0, "")
    about = json.loads((tmp_path / "one" / "fp8_scales.json").read_text())["inputs"]
    inputs = pd.read_parquet(tmp_path / "one" / "inputs.parquet")
    assert sum(about["scales"].values()) == about["linears"] == len(inputs)
    assert (inputs["amax"] <= 448 * inputs["scale"]).all()
    failing = pd.read_parquet(tmp_path / "one" / "input_failures.parquet")
    for by in ("arithmetic", "run"):
        assert about["saturating_cases"][by] == (failing["by"] == by).sum()
    margins = pd.read_parquet(tmp_path / "one" / "input_margins.parquet").set_index("margin_bits")["failed"]
    assert margins[4.0] == 0
    assert "a blue square" in out
    recipe = yaml.safe_load((tmp_path / "one" / "recipe" / "technique" / "fp8_scales.yaml").read_text())
    assert {node["inputs"]["scale"] for node in recipe.values()} == set(inputs["scale"])
    run = ("--config-dir=one/recipe", "technique=[fp8_scales]", "only=[custom]", "latency.max_rounds=0", "out=two")
    held = ("prompts=[a blue square]", "seeds=[1]")
    assert lab(small_checkpoint, *run, *held, command=())[::2] == (0, "")
    manifest = json.loads((tmp_path / "two" / "manifest.json").read_text())
    assert sum(entry["matched"] for entry in manifest["sites"]["custom"].values()) == len(inputs)
    drift = json.loads((tmp_path / "two" / "summary.json").read_text())["variants"]["custom"]["latent_rel_l2"]
    again = json.loads((tmp_path / "one" / "holdout-0" / "summary.json").read_text())["variants"]
    assert drift == again["fp8_scales"]["latent_rel_l2"]
    assert again["fp8_scales"]["latent_rel_l2"] != again["fp8_inputs_by_token"]["latent_rel_l2"]


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
    thinned(
        [
            (["margin.bits=-1"], "margin.bits is -1, expected a number from 0 to 15"),
            (["of=[img_inn]"], "Did you mean"),
            (["of=[transformer_blocks.*.img_norm1]"], "expected a linear that is not quantised"),
            (["technique=[fp8]"], "fp8_scales chooses the techniques"),
            (["holdout.seeds=[]"], "holdout has no cases"),
            (["coverage.seeds=[1]"], "expected inputs.scale=static with it"),
            (["inputs.scale=statik"], "Did you mean static"),
            (
                ["inputs.scale=static", "inputs.margin_bits=16"],
                "inputs.margin_bits is 16, expected a number from 0 to 15",
            ),
            (["inputs.scale=static", "holdout.prompts=[a red circle]", "holdout.seeds=[1]"], "a case of coverage"),
        ],
        keep=4,
    ),
)
def test_mistakes(lab, small_checkpoint, tmp_path, overrides, message):
    code, _, err = lab(small_checkpoint, "out=one", *overrides)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []
