"""The shipped techniques of weights, sums and attention apply to a model as deep as the published one."""

import mlx.core as mx
import pytest

from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.techniques.base import Technique, applied
from precision_lab.techniques.parts.weight_storage import weight_storage
from tests.spread import thinned
from tests.techniques.configured import NAMES, named

MODULES = (
    *("fused_attention", "unfused_attention", "chunked_attention", "smoothed_keys", "narrow_attention_sums"),
    *(
        "sage_attention",
        "narrow_accumulators",
        "quantized_weights",
        "float8_weights",
        "coded_weights",
        "stochastic_residual",
    ),
    *("compensated_residual", "batch_layout", "compiled_blocks"),
)
SHIPPED = {
    name: technique
    for name in NAMES
    for technique in named(name).values()
    if type(technique).__module__.rpartition(".")[2] in MODULES
}


@pytest.fixture(scope="module")
def model():
    model = Transformer(
        TransformerConfig(
            attention_head_dim=32, num_attention_heads=2, joint_attention_dim=64, axes_dims_rope=(8, 12, 12)
        )
    )
    model.set_dtype(mx.bfloat16)
    return model


BITS = {
    "affine4": 4.5,
    "affine4_img_mod8": 5.17,
    "affine4_mod16": 8.4,
    "affine4_boundary16": 4.9,
    "affine4_modulation": 12.2,
    "affine8_modulation": 13.5,
    "mflux_21_q4_all": 4.5,
    "mflux_21_q4_spared": 8.4,
    "mflux_21_q8_all": 8.5,
    "mflux_21_q8_spared": 11.0,
    "draw_things_8_6": 7.2,
    "mxfp4": 4.3,
    "mxfp8": 8.3,
    "nvfp4": 4.5,
    "nvfp4_inputs": 4.5,
    "nvfp4_scaled": 4.5,
    "nvfp4_scaled_inputs": 4.5,
    "fp8": 8.0,
    "fp8_channel": 8.45,
    "int8": 8.45,
    "nf4": 4.6,
    "q4_0": 4.6,
    "q8_0": 8.55,
    "int4_convrot": 4.46,
    "int4_convrot_inputs": 4.46,
    "int8_convrot": 8.45,
    "int8_convrot_inputs": 8.45,
    "int8_inputs": 8.45,
    "svdquant": 5.69,
    "svdquant_inputs": 5.69,
    "only_inputs_fp8": 16.0,
    "only_inputs_int4": 16.0,
    "only_inputs_int4_convrot": 16.0,
    "only_inputs_int8": 16.0,
    "only_inputs_int8_convrot": 16.0,
    "only_inputs_mxfp4": 16.0,
    "only_inputs_mxfp8": 16.0,
    "only_inputs_nvfp4": 16.0,
    "only_inputs_nvfp4_scaled": 16.0,
}
"""Mean bits a weight over all linears of the transformer, group scales included."""


@pytest.mark.parametrize("name", thinned(SHIPPED, keep=9))  # test_matched_sites.py has all of them, on four blocks
def test_it_applies_to_all_that_it_names(model, name):
    technique = SHIPPED[name]
    assert isinstance(technique, Technique)
    with applied({"transformer": model}, {name: technique}) as coverage:
        bits = weight_storage({"transformer": model})["transformer"].bits_per_weight
    assert coverage[name].matched >= 60
    if name in BITS:
        assert bits == pytest.approx(BITS[name], abs=0.06)
