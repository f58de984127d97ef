"""Every shipped technique matches a recorded list of modules, on a model as deep as the published one."""

import hashlib

import mlx.core as mx
import pytest
from hydra import compose
from omegaconf import OmegaConf

from precision_lab.cli.paths import checkpoints_dir
from precision_lab.errors import InputError
from precision_lab.instrument.sites import select, walk
from precision_lab.model.layers import on_cpu
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.techniques.parts.qwen_image import ATTEND, RESIDUAL_ADDS
from tests.composing import configurations
from tests.techniques.configured import NAMES, NAMES_1, OF_21, SITES, described, named

MATCHED = {
    "affine4": (846, "d8b3d7fd2c8f8476"),
    "affine4_boundary16": (846, "d8b3d7fd2c8f8476"),
    "affine4_img_mod8": (846, "d8b3d7fd2c8f8476"),
    "affine4_mod16": (846, "d8b3d7fd2c8f8476"),
    "affine4_modulation": (120, "a8f2668b26a6212b"),
    "affine8": (846, "d8b3d7fd2c8f8476"),
    "affine8_modulation": (120, "a8f2668b26a6212b"),
    "batch_layout": (900, "b53fedf07044fb59"),
    "bf16_accumulators": (840, "a12380cc74987f1f"),
    "block_end_clip": (60, "86162ac338044e3b"),
    "chunked_attention": (60, "174505e124a30988"),
    "comfyui_fp16_set": (300, "202b968170e71b92"),
    "compensated_residual": (240, "7f17451206ef7479"),
    "compensated_residual_bf16": (240, "7f17451206ef7479"),
    "compiled_blocks": (60, "86162ac338044e3b"),
    "fp32_residual": (481, "ed85614326e0afa7"),
    "draw_things_attention": (960, "28e5a50f9b827bd8"),
    "draw_things_feed_forward": (360, "2febc72a89a7e08f"),
    "draw_things_first_linear": (120, "0bc9fad9bea4e1ee"),
    "draw_things_8_6": (846, "d8b3d7fd2c8f8476"),
    "draw_things_21": (722, "bafca564c207c9ab"),
    "faint_norms": (482, "62a3093f751a118c"),
    "fast": (3136, "0cd8618d967e12fa"),
    "ffn_scaling": (120, "796460027b5a2b12"),
    "ffn_scaling_exact": (360, "2febc72a89a7e08f"),
    "fp16_accumulators": (840, "a12380cc74987f1f"),
    "fp16_accumulators_promoted": (840, "a12380cc74987f1f"),
    "fp16_attention_sums": (60, "174505e124a30988"),
    "fp16_minimal": (1872, "253d2f467af574e0"),
    "fp32_euler_step": (1, "2bf5e0ea631001a6"),
    "fp32_gates": (240, "7f17451206ef7479"),
    "fp32_guidance": (1, "910ade9d9f6eb7c4"),
    "fp32_modulation": (600, "ef202160324c9bc3"),
    "fp32_norm_out": (1, "eeeb463bf8f81a73"),
    "fp32_norms": (482, "62a3093f751a118c"),
    "fp32_rope": (240, "2b6467214134b6db"),
    "fp32_time_embedding": (1, "7c244d3c5d219315"),
    "fp32_timestep": (1, "7c244d3c5d219315"),
    "fp32_vae": (1, "da70ddbabf1f731f"),
    "fp8": (846, "d8b3d7fd2c8f8476"),
    "fp8_channel": (840, "a12380cc74987f1f"),
    "fp8_skip_img_mlp": (726, "a5bbbb64f38a31ff"),
    "fp8_skip_sensitive": (780, "57d0b5ca3207774f"),
    "fp8_unscaled": (840, "a12380cc74987f1f"),
    "fused_attention": (60, "174505e124a30988"),
    "ggml_scales": (540, "6a69a56612570082"),
    "int8": (840, "a12380cc74987f1f"),
    "int4_convrot": (840, "a12380cc74987f1f"),
    "int4_convrot_inputs": (840, "a12380cc74987f1f"),
    "int8_convrot": (840, "a12380cc74987f1f"),
    "int8_convrot_inputs": (840, "a12380cc74987f1f"),
    "int8_inputs": (840, "a12380cc74987f1f"),
    "lora": (3136, "0cd8618d967e12fa"),
    "lora_fused": (3136, "0cd8618d967e12fa"),
    "mflux_21_q4_all": (846, "d8b3d7fd2c8f8476"),
    "mflux_21_q4_spared": (846, "d8b3d7fd2c8f8476"),
    "mflux_21_q8_all": (846, "d8b3d7fd2c8f8476"),
    "mflux_21_q8_spared": (846, "d8b3d7fd2c8f8476"),
    "micro_lightning": (3136, "0cd8618d967e12fa"),
    "micro_lightning_fused": (3136, "0cd8618d967e12fa"),
    "mxfp4": (840, "a12380cc74987f1f"),
    "mxfp8": (840, "a12380cc74987f1f"),
    "nf4": (840, "a12380cc74987f1f"),
    "nvfp4": (840, "a12380cc74987f1f"),
    "nvfp4_inputs": (840, "a12380cc74987f1f"),
    "nvfp4_scaled": (840, "a12380cc74987f1f"),
    "nvfp4_scaled_inputs": (840, "a12380cc74987f1f"),
    "only_inputs_fp8": (840, "a12380cc74987f1f"),
    "only_inputs_int4": (840, "a12380cc74987f1f"),
    "only_inputs_int4_convrot": (840, "a12380cc74987f1f"),
    "only_inputs_int8": (840, "a12380cc74987f1f"),
    "only_inputs_int8_convrot": (840, "a12380cc74987f1f"),
    "only_inputs_mxfp4": (840, "a12380cc74987f1f"),
    "only_inputs_mxfp8": (840, "a12380cc74987f1f"),
    "only_inputs_nvfp4": (840, "a12380cc74987f1f"),
    "only_inputs_nvfp4_scaled": (840, "a12380cc74987f1f"),
    "pre_attention_scaling": (60, "174505e124a30988"),
    "q4_0": (840, "a12380cc74987f1f"),
    "q4_k": (840, "a12380cc74987f1f"),
    "q5_k": (840, "a12380cc74987f1f"),
    "q6_k": (840, "a12380cc74987f1f"),
    "q8_0": (840, "a12380cc74987f1f"),
    "reordered_sums": (300, "aad6851442afcb1f"),
    "sage_attention": (60, "174505e124a30988"),
    "sage_attention_fp32_sums": (60, "174505e124a30988"),
    "smoothed_keys": (60, "174505e124a30988"),
    "stochastic_residual": (240, "7f17451206ef7479"),
    "svdquant": (840, "a12380cc74987f1f"),
    "svdquant_inputs": (840, "a12380cc74987f1f"),
    "unfused_attention": (60, "174505e124a30988"),
    "unfused_attention_fp32_softmax": (60, "174505e124a30988"),
}
"""Number of matched sites, and the start of the SHA-256 of their addresses in order, one a line.

Recorded before the groups of conf/sites existed, when every file listed its own patterns. `fast`: on a CPU.
"""


@pytest.fixture(scope="module")
def sites():
    return walk(Checkpoint(checkpoints_dir() / "micro").pipeline(mx.bfloat16).components)


@pytest.mark.parametrize("name", NAMES_1)
def test_a_technique_matches_the_same_sites_in_the_same_order(sites, name):
    for key, technique in named(name).items():
        if key == "fast" and not on_cpu():
            continue
        addresses = [str(site) for site in select(technique.sites, sites)]
        digest = hashlib.sha256("\n".join(addresses).encode()).hexdigest()[:16]
        assert (len(addresses), digest) == MATCHED[key], key


@pytest.mark.parametrize("name", OF_21)
def test_a_technique_for_other_modules_says_so(sites, name):
    for technique in named(name).values():
        with pytest.raises(InputError, match="matches nothing"):
            select(technique.sites, sites)


def test_the_baselines_of_the_gate_contain_this_configuration():
    expected = {"_target_": "precision_lab.techniques.float32.Float32", "sites": ["norm_out"]}
    assert described("fp32_norm_out") == {"fp32_norm_out": expected}


def test_hydra_resolves_the_groups_like_the_tests_do():
    # the recipes of Draw Things share names and would merge
    names = [name for name in NAMES if not name.startswith("draw_things_") or name == "draw_things_2512"]
    with configurations():
        composed = compose("config", overrides=[f"technique=[{','.join(names)}]"])
    resolved = OmegaConf.to_container(composed, resolve=True)
    assert resolved["sites"] == SITES
    assert resolved["technique"] == {key: value for name in names for key, value in described(name).items()}


def test_every_group_names_something_and_agrees_with_the_defaults_of_classes(sites):
    for name, patterns in SITES.items():
        assert select(patterns, sites), name
    assert select(SITES["attend"], sites) == select(ATTEND, sites)
    assert select(SITES["residual_adds"], sites) == select(RESIDUAL_ADDS, sites)
