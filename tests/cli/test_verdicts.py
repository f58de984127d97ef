"""The published findings are judged by the numbers: on other weights the same claim goes the other way."""

import json
import shutil

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from precision_lab.cli import main
from precision_lab.model.checkpoint import Checkpoint
from precision_lab.model.transformer import Transformer

QUICK = (
    *("sampler.steps=1", "image.height=48", "image.width=48", "prompts=[a red circle]", "seeds=[0,1,2]"),
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
            weights[name] = weight.at[-weight.size // 6 :].add(1.0)  # the feed-forward's gate
    mx.save_safetensors(str(folder / "transformer" / "diffusion_pytorch_model.safetensors"), weights)
    return folder


@pytest.mark.parametrize(("bias_std", "verdict"), [(0.5, "supported"), (0.0, "refuted")])
def test_ffn_scaling_enlarges_activations_only_where_biases_do(small_checkpoint, tmp_path, bias_std, verdict):
    folder = constructed(small_checkpoint, tmp_path / "checkpoint", bias_std)
    out = tmp_path / "run"
    assert main(["+exp=ffn_scaling", f"model.path={folder}", f"out={out}", *QUICK]) == 0
    claims = {claim["id"]: claim for claim in json.loads((out / "summary.json").read_text())["claims"]}
    for name in ("S3_ffn_amax", "S3_stream_amax"):
        assert claims[name]["verdict"] == verdict, claims[name]
        lo, hi = claims[name]["ci95"]
        assert (lo > 1) if verdict == "supported" else (hi < 1 + claims[name]["noise_floor"])
    assert claims["S3_drift"]["verdict"] == "supported", "another function drifts from the reference either way"


@pytest.mark.slow
def test_findings_names_where_float16_overflows(tmp_path):
    out = tmp_path / "run"
    quick = [setting for setting in QUICK if not setting.startswith("probe")]
    assert main(["+exp=findings", "model=micro_synthetic", f"out={out}", *quick]) == 0
    summary = json.loads((out / "summary.json").read_text())
    first = summary["variants"]["float16"]["first_nonfinite"]
    assert first["component"] == "transformer"
    assert first["site"].startswith("transformer_blocks.")
    assert first["site"] in (out / "report.html").read_text()
    assert summary["variants"]["float16"]["latent_rel_l2_reason"] == "non-finite latents"
    assert {c["id"] for c in summary["claims"]} >= {"S1_drift", "S2_drift", "S3_ffn_amax", "S5_overflow"}
    others = [v for name, v in summary["variants"].items() if name != "float16"]
    assert all(v["num_nonfinite"] == 0 and v["first_nonfinite"] is None for v in others)
