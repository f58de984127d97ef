"""The published findings are judged by the numbers: on other weights the same claim goes the other way."""

import json
import re
import shutil

import mlx.core as mx
import numpy as np
import pandas as pd
import pytest
from mlx.utils import tree_flatten
from PIL import Image
from scipy import stats

from precision_lab.analysis.summary import summarize
from precision_lab.cli import main
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image.transformer import Transformer
from tests.undrawn import undrawn, unrendered

QUICK = (
    *(
        "sampler.steps=1",
        "image.height=48",
        "image.width=48",
        "prompts=[a red circle,two stars,a blue square]",
        "seeds=[0]",
    ),
    *(
        "latency.min_rounds=0",
        "latency.max_rounds=0",
        "probe.range.sites=[transformer_blocks.*,transformer_blocks.*.*_mlp]",
    ),
)


def constructed(source, folder, bias_std):
    """A copy of a checkpoint whose transformer is random, without growth; FFN output biases have that deviation."""
    shutil.copytree(source, folder)
    mx.random.seed(1)
    model = Transformer(Checkpoint(source).transformer_config())
    weights = dict(tree_flatten(model.parameters()))
    for name, weight in weights.items():
        if name.endswith("_mlp.net.2.bias"):
            weights[name] = bias_std * mx.random.normal(weight.shape)
        elif "_mlp.net." in name and name.endswith("weight"):
            weights[name] = weight * 3**0.5  # the initialisation keeps a third of the variance: keep all of it
        elif name.endswith("_mod.1.bias"):
            weights[name] = weight.at[-weight.size // 6 :].add(1.0)  # noqa: PD008 (MLX) the feed-forward's gate
    mx.save_safetensors(str(folder / "transformer" / "diffusion_pytorch_model.safetensors"), weights)
    return folder


@pytest.mark.parametrize(("bias_std", "verdict"), [(0.5, "supported"), (0.0, "refuted")])
def test_ffn_scaling_enlarges_activations_only_where_biases_do(small_checkpoint, tmp_path, bias_std, verdict):
    folder = constructed(small_checkpoint, tmp_path / "checkpoint", bias_std)
    out = tmp_path / "run"
    with undrawn():
        assert main(["+exp=ffn_scaling", f"model.path={folder}", f"out={out}", *QUICK]) == 0
    claims = {claim["id"]: claim for claim in json.loads((out / "summary.json").read_text())["claims"]}
    for name in ("S3_ffn_amax", "S3_stream_amax"):
        assert claims[name]["verdict"] == verdict, claims[name]
        lo, hi = claims[name]["ci95"]
        limit = 1 + claims[name]["noise_floor"]
        assert lo > limit if verdict == "supported" else hi < 1 / limit
    assert claims["S3_drift"]["verdict"] == "supported", "another function drifts from the reference either way"


EXPERIMENT = """\
# @package _global_
defaults:
  - /technique@variants.ffn_scaling.technique: [ffn_scaling]
  - /technique@variants.reordered.technique: [reordered_sums]
  - /technique@variants.chunked.technique: [chunked_attention]
  - /technique@factorial.factors: [fp32_residual, fp32_norms]
  - /probe@_global_.probe: [range, contributions]
  - _self_
experiment: every_kind
variants: {float16: {dtype: float16}}
"""
SCALED = {"text": "t", "source": "s", "subject": "ffn_scaling"}
AGAINST = {**SCALED, "against": "baseline"}
EVERY_KIND = {
    "amax": {**AGAINST, "metric": "amax", "sites": "transformer_blocks.*", "stream": "img", "relation": "larger"},
    "drift": {**AGAINST, "metric": "drift", "relation": "larger", "noise": ["reordered", "chunked"]},
    "latency": {**AGAINST, "metric": "latency", "relation": "not_smaller", "margin": 0.05},
    "pixels": {**SCALED, "metric": "drift", "sites": "pipeline:to_pixels", "relation": "smaller"}
    | {"bound": 0.5, "noise": "reordered"},
    "share": {**SCALED, "subject": "baseline", "metric": "largest_share", "stream": "txt"}
    | {"relation": "larger", "bound": 0.5},
    "psnr": {**SCALED, "metric": "psnr_db", "relation": "larger", "bound": 10},
    "ssim": {**SCALED, "metric": "ssim", "relation": "larger", "bound": 0.1},
    "finite": {**SCALED, "subject": "float16", "metric": "nonfinite", "relation": "zero"},
}


@pytest.fixture(scope="module")
def every_kind(small_checkpoint, tmp_path_factory):
    """A finished run with a claim of every kind; its configuration and its weights are gone."""
    folder = tmp_path_factory.mktemp("every_kind")
    experiments = folder / "conf" / "exp"
    experiments.mkdir(parents=True)
    (experiments / "every_kind.yaml").write_text(f"{EXPERIMENT}claims: {json.dumps(EVERY_KIND)}\n")
    weights = shutil.copytree(small_checkpoint, folder / "weights")
    places = [f"model.path={weights}", f"out={folder / 'run'}", "--config-dir", str(folder / "conf")]
    quick = [
        "sampler.steps=1",
        "image.height=32",
        "image.width=32",
        QUICK[3],
        "probe.range.sites=[transformer_blocks.*,norm_out,proj_out]",
        "drift.sites=[pipeline:euler_step,pipeline:to_pixels]",
        "latency.min_rounds=4",
        "latency.max_rounds=4",
    ]
    with undrawn():
        assert main(["+exp=every_kind", *quick, "seeds=[0,1]", *places]) == 0
    shutil.rmtree(weights)
    shutil.rmtree(folder / "conf")
    return folder / "run"


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def verdicts(run):
    summary = summary_of(run)
    return {key: summary[key] for key in ("claims", "factorials")}


def test_verdicts_are_recomputed_from_the_tables_alone(every_kind, tmp_path):
    before = (every_kind / "summary.json").read_bytes()
    claims = {claim["id"]: claim for claim in verdicts(every_kind)["claims"]}
    assert claims.keys() == EVERY_KIND.keys()
    assert all(claim["effect"] is not None for claim in claims.values())
    run = tmp_path / "elsewhere"
    run.mkdir()
    for name in ("manifest.json", "activations.parquet", "drift.parquet", "latency.parquet"):
        shutil.copy(every_kind / name, run)
    shutil.copytree(every_kind / "images", run / "images")
    summarize(run)
    assert verdicts(run) == verdicts(every_kind)
    (every_kind / "summary.json").unlink()
    with unrendered():
        assert main(["report", f"run={every_kind}"]) == 0
    assert (every_kind / "summary.json").read_bytes() == before


def test_claims_of_every_kind_agree_with_plain_pandas(every_kind):
    summary = verdicts(every_kind)
    claims = {claim["id"]: claim for claim in summary["claims"]}
    activations, drift, latency = (
        pd.read_parquet(every_kind / f"{name}.parquet") for name in ("activations", "drift", "latency")
    )
    case = ["prompt_id", "seed"]

    def geometric(ratios):
        return np.exp(np.mean(np.log(np.asarray(ratios, float))))

    streams = activations[activations.site.str.fullmatch(r"transformer_blocks\.\d+") & (activations.port == "out.0")]
    peaks = streams.groupby(["variant", *case, "site"]).amax.max()
    assert claims["amax"]["effect"] == pytest.approx(geometric(peaks["ffn_scaling"] / peaks["baseline"]))

    free = drift[drift["mode"] == "free"]
    ends = free[(free.site == "euler_step") & (free.step == 0)].set_index(["variant", *case]).rel_l2
    ratios = ends["ffn_scaling"] / ends["baseline"]
    assert claims["drift"]["effect"] == pytest.approx(geometric(ratios))
    logs = np.log(ratios).groupby("prompt_id").mean()
    interval = stats.t.interval(0.95, len(logs) - 1, logs.mean(), stats.sem(logs))
    assert claims["drift"]["ci95"] == pytest.approx(np.exp(interval))
    floors = [np.sqrt(np.mean(np.log(ends[name] / ends["baseline"]) ** 2)) for name in ("reordered", "chunked")]
    assert claims["drift"]["noise_floor"] == pytest.approx(np.expm1(max(floors)))

    pixels = free[free.site == "to_pixels"].set_index(["variant", *case]).rel_l2
    assert claims["pixels"]["effect"] == pytest.approx(geometric(pixels["ffn_scaling"]))
    logs = np.log(pixels["reordered"] / pixels["ffn_scaling"])
    assert claims["pixels"]["noise_floor"] == pytest.approx(np.expm1(np.sqrt(np.mean(logs**2))))

    seconds = latency[latency.what == "step"].set_index(["variant", "round"]).seconds
    assert claims["latency"]["effect"] == pytest.approx((seconds["ffn_scaling"] / seconds["baseline"]).median())

    shares = activations[(activations.variant == "baseline") & (activations.branch == "cond")]
    shares = shares[(shares.stream == "txt") & shares.final_share.notna()]
    largest = shares.groupby([*case, "step"]).final_share.max().groupby(level=case).mean()
    assert claims["share"]["effect"] == pytest.approx(geometric(largest))

    float16 = activations[activations.variant == "float16"]
    count = int((float16.num_nan + float16.num_inf).sum())
    assert claims["finite"]["effect"] == count
    assert claims["finite"]["verdict"] == ("refuted" if count else "supported")
    images = {path.stem: np.asarray(Image.open(path), int) for path in (every_kind / "images").glob("*.png")}
    errors = {
        (prompt, seed): np.mean((images[f"ffn_scaling__p{prompt}__s{seed}"] - image) ** 2.0)
        for name, image in images.items()
        for prompt, seed in re.findall(r"reference__p(\d+)__s(\d+)", name)
    }
    psnr = 10 * np.log10(255**2 / np.array(list(errors.values())))
    assert len(psnr) == 6
    assert claims["psnr"]["effect"] == pytest.approx(psnr.mean())
    lo, hi = claims["psnr"]["ci95"]
    assert claims["psnr"]["verdict"] == ("supported" if lo > 10 else "refuted" if hi < 10 else "inconclusive")
    ssim = summary_of(every_kind)["variants"]["ffn_scaling"]["ssim"]
    assert claims["ssim"]["effect"] == pytest.approx(ssim, abs=0.3)
    for claim in claims.values():
        if claim["ci95"] and claim["relation"] in ("larger", "not_smaller") and not claim["bound"]:
            lo, hi = claim["ci95"]
            floor, margin = claim["noise_floor"] or 0, 0.05 if claim["id"] == "latency" else 0
            limit = 1 + max(floor, margin)
            if claim["relation"] == "not_smaller":
                sure, never = lo >= 1 / limit, hi < 1 / limit
            else:
                sure, never = lo > limit, hi < 1 / limit if floor > margin else hi <= limit
            assert claim["verdict"] == ("supported" if sure else "refuted" if never else "inconclusive")

    (factorial,) = summary["factorials"]
    (first, *_) = factorial["effects"]
    assert first["factors"] == ["fp32_residual"]
    on = ends["baseline+fp32_residual"] * ends["baseline+fp32_residual+fp32_norms"]
    off = ends["baseline"] * ends["baseline+fp32_norms"]
    assert first["effect"] == pytest.approx(geometric(np.sqrt(on / off)))


def test_a_run_of_another_schema_is_refused_with_what_to_do(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text('{"schema_version": 1, "status": "complete"}')
    for command in (f"report run={tmp_path}", f"gate run={tmp_path}", f"compare runs=[{tmp_path},{tmp_path.parent}]"):
        assert main(command.split()) == 2
        message = capsys.readouterr().err
        assert "schema_version 1, expected 2. Run the experiment again" in message
        assert len(message.splitlines()) == 1


@pytest.mark.slow
def test_two_runs_side_by_side(every_kind, capsys):
    assert main(["compare", f"runs=[{every_kind},{every_kind}]"]) == 0
    said = capsys.readouterr().out
    assert "latent_rel_l2" in said
    assert "Largest changes of amax" in said
    assert "transformer_blocks.0 (out.0)" in said
    assert "equal to the base to the bit" in said
    assert "changed first" not in said


@pytest.mark.slow
def test_findings_names_where_float16_overflows(tmp_path):
    out = tmp_path / "run"
    quick = [setting for setting in QUICK if not setting.startswith("probe")]
    assert main(["+exp=findings", "model=micro_synthetic", f"out={out}", *quick]) == 0
    summary = json.loads((out / "summary.json").read_text())
    first = summary["variants"]["float16"]["first_nonfinite"]
    assert first["component"] == "transformer"
    assert first["site"].startswith("transformer_blocks.")
    assert first["site"] in (out / "report.html").read_text().replace("<wbr>", "")
    assert summary["variants"]["float16"]["latent_rel_l2_reason"] == "non-finite latents"
    assert {c["id"] for c in summary["claims"]} >= {"S1_drift", "S2_drift", "S3_ffn_amax", "S5_overflow"}
    others = [v for name, v in summary["variants"].items() if name != "float16"]
    assert all(v["num_nonfinite"] == 0 and v["first_nonfinite"] is None for v in others)
