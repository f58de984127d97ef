"""Techniques on the transformer of Qwen-Image-2.1: by place, in one pass and with a prefix."""

import shutil

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from omegaconf import OmegaConf

from precision_lab.cli.config import build
from precision_lab.errors import InputError
from precision_lab.instrument.scope import scope
from precision_lab.instrument.sites import Components, select, walk
from precision_lab.instrument.tap import ports, tapped
from precision_lab.model.layers import on_cpu
from precision_lab.model.qwen_image_21.layout import layout
from precision_lab.techniques.base import Technique, applied
from precision_lab.techniques.batch_layout import BatchLayout
from precision_lab.techniques.block_end_clip import BlockEndClip
from precision_lab.techniques.chunked_attention import ChunkedAttention
from precision_lab.techniques.compensated_residual import CompensatedResidual
from precision_lab.techniques.fast.cpu import FastCPU
from precision_lab.techniques.ffn_scaling import FFNScaling
from precision_lab.techniques.float32 import Float32
from precision_lab.techniques.float32_modulation import Float32Modulation
from precision_lab.techniques.float32_residual import Float32Residual
from precision_lab.techniques.float32_swiglu import Float32SwiGLU
from precision_lab.techniques.fused_attention import FusedAttention
from precision_lab.techniques.ggml_scales import GGMLScales
from precision_lab.techniques.narrow import Narrow
from precision_lab.techniques.narrow_attention_sums import NarrowAttentionSums
from precision_lab.techniques.parts.qwen_image import ATTEND, RESIDUAL_ADDS
from precision_lab.techniques.pre_attention_scaling import PreAttentionScaling
from precision_lab.techniques.scaled_attention import ScaledAttention
from precision_lab.techniques.scaled_feed_forward import ScaledFeedForward
from precision_lab.techniques.smoothed_keys import SmoothedKeys
from precision_lab.techniques.timestep import ExactTimestep
from precision_lab.techniques.unfused_attention import UnfusedAttention
from tests.model.oracle import TORCH, relative_l2
from tests.model.qwen_image_21.oracle import (
    Shape,
    copy_of,
    in_dtype,
    ours,
    random_inputs,
    random_transformer,
    reference,
    rounded,
)
from tests.spread import slow, thinned
from tests.techniques.configured import CONF, NAMES

SHAPE = Shape(3, text_width=64)
_FILE = OmegaConf.create({"sites": OmegaConf.load(CONF / "sites" / "qwen_image_21.yaml")})
SITES_21 = OmegaConf.to_container(_FILE, resolve=True)["sites"]
ELSEWHERE = {
    "draw_things_2512": "matches nothing",
    "fp16_minimal": "matches nothing",
    "fp8_skip_img_mlp": "matches nothing",
    "fp8_skip_sensitive": "matches nothing",
    "fp32_euler_step": "unknown component",
    "fp32_guidance": "unknown component",
    "fp32_vae": "unknown component",
    "micro_lightning": "is of no linear of this model",
    "micro_lightning_fused": "is of no linear of this model",
    **dict.fromkeys(("q4_k", "q5_k", "q6_k"), "channels, expected a multiple of 256"),
}
"""Techniques for a text stream of its own or for blocks of 1.x, at components that are not loaded here, or for wider
linears."""


@pytest.fixture(scope="module")
def oracle():
    return random_transformer(0, SHAPE)


@pytest.fixture(scope="module")
def models(oracle):
    return {dtype: copy_of(in_dtype(oracle, torch_dtype)) for dtype, torch_dtype in TORCH.items()}


@pytest.fixture(scope="module")
def inputs():
    return random_inputs(np.random.default_rng(0), (5, 8), SHAPE, 2, tokens=40, lengths=(40, 17))


def components(model):
    return Components({"transformer": model}, layout(len(model.transformer_blocks)))


def shipped(name):
    node = OmegaConf.load(CONF / "technique" / f"{name}.yaml")
    found = {}
    for part in node.pop("defaults", []):
        found |= shipped(part)
    resolved = OmegaConf.to_container(OmegaConf.merge(_FILE, node), resolve=True)
    built = {key: build(OmegaConf.create(v), Technique, key) for key, v in resolved.items() if key != "sites"}
    return found | built


def rewritten(model, inputs, *techniques, dtype=mx.float32, cached=False):
    with applied(components(model), {f"t{i}": technique for i, technique in enumerate(techniques)}):
        return ours(model, rounded(inputs, dtype), dtype, cached)


def outputs(model, inputs, patterns, *techniques, dtype):
    """Outputs of the sites at port `out`, and the dtypes of all arrays that leave them, in a pass with a prefix."""
    seen = {}

    def record(call):
        for port in ports(call, ["out"]):
            seen.setdefault(str(call.site), []).append(port.array.dtype)

    whole = components(model)
    with applied(whole, {f"t{i}": t for i, t in enumerate(techniques)}), tapped(select(patterns, walk(whole)), record):
        result = ours(model, rounded(inputs, dtype), dtype, cached=True)
    return result, {kind for kinds in seen.values() for kind in kinds}


OF_A_FILE = ("lora", "lora_fused")
"""They apply a file, see tests/model/qwen_image_21/test_adapters_21.py."""


@pytest.mark.parametrize("cached", [False, True], ids=["one pass", "with a prefix"])
@pytest.mark.parametrize("name", thinned([name for name in NAMES if name not in (*ELSEWHERE, *OF_A_FILE)], 8))
def test_a_shipped_technique_applies_and_keeps_the_function_it_claims(models, inputs, name, cached):
    if name == "compiled_blocks" and on_cpu() and not shutil.which("g++"):
        pytest.skip("MLX compiles with g++ on CPUs")
    techniques = [getattr(technique, "unrounded", technique) for technique in shipped(name).values()]
    plain = ours(models[mx.float32], inputs, cached=cached)
    found = rewritten(models[mx.float32], inputs, *techniques, cached=cached)
    assert np.isfinite(found).all()
    if all(technique.preserves_function for technique in shipped(name).values()):
        assert relative_l2(found, plain) < 2e-5
    else:
        assert relative_l2(found, plain) > 1e-4 or name == "block_end_clip"


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_technique_without_a_place_says_so(models, name):
    with pytest.raises(InputError, match=ELSEWHERE[name]), applied(components(models[mx.float32]), shipped(name)):
        pass


def test_defaults_of_classes_agree_with_the_groups(models):
    sites = walk(components(models[mx.float32]))
    assert select(SITES_21["attend"], sites) == select(ATTEND, sites)
    assert select(SITES_21["residual_adds"], sites) == select(RESIDUAL_ADDS, sites)
    assert len(select(ATTEND, sites)) == len(select(RESIDUAL_ADDS, sites)) == 2 * SHAPE.layers


@pytest.mark.parametrize("hidden", [4.0, 0.125, {0: 2.0**10, 2: 2.0**-6}])
@pytest.mark.parametrize("cached", [False, True])
def test_scaling_one_factor_of_swiglu_is_exact_to_the_last_bit(models, inputs, hidden, cached):
    """silu(g) * (p / s) is (silu(g) * p) / s: the product is linear in the factor without an activation."""
    plain = ours(models[mx.float32], inputs, cached=cached)
    found = rewritten(models[mx.float32], inputs, ScaledFeedForward(hidden), cached=cached)
    np.testing.assert_array_equal(found, plain)


def test_scaling_both_factors_or_the_input_is_another_function(models, inputs):
    plain = ours(models[mx.float32], inputs)
    scaled = FFNScaling([SITES_21["feed_forwards"]])
    assert relative_l2(rewritten(models[mx.float32], inputs, scaled), plain) > 1e-2


@pytest.mark.parametrize(("qkv", "out"), [(8.0, 2.0), (2.0**-5, {0: 2.0**7, 1: 1.0})])
@pytest.mark.parametrize("cached", [False, True])
def test_scaled_attention_is_exact_to_the_last_bit(models, inputs, qkv, out, cached):
    plain = ours(models[mx.float32], inputs, cached=cached)
    found = rewritten(models[mx.float32], inputs, ScaledAttention(qkv, out), cached=cached)
    np.testing.assert_array_equal(found, plain)


def test_scales_keep_the_hidden_layer_within_float16(oracle, inputs):
    """The product of SwiGLU overflows; with one factor divided, the function is the same in float16."""
    model = copy_of(in_dtype(oracle, TORCH[mx.float16]))
    for block in model.transformer_blocks:
        block.img_mlp.proj.weight = block.img_mlp.proj.weight * 2.0**15
        block.img_mlp.out.weight = block.img_mlp.out.weight * 2.0**-12
    exact = copy_of(oracle)
    exact.update(model.parameters())
    wide = ours(exact, rounded(inputs, mx.float16))
    assert not np.isfinite(rewritten(model, inputs, dtype=mx.float16)).all()
    found = rewritten(model, inputs, ScaledFeedForward(2.0**12), dtype=mx.float16)
    assert relative_l2(found, wide) < 1e-2


class Computed(nn.Module):
    """A module that is a function."""

    def __init__(self, function):
        super().__init__()
        self._function = function

    def __call__(self, x):
        return self._function(x)


BRANCHES = "transformer_blocks.*.{attn.{to_q,to_v,attend,attend_prefix,to_out.0},img_mlp.{proj,multiply,out}}"


@pytest.mark.parametrize("dtype", [mx.float16, slow(mx.bfloat16)], ids=str)
@pytest.mark.parametrize(
    "others",
    [(), (Float32Modulation(),), (Float32(("norm_out",)),), (ScaledFeedForward(), ScaledAttention())],
    ids=["alone", "modulation", "norm_out", "scaled"],
)
def test_the_stream_is_fp32_and_the_branches_are_not(oracle, models, inputs, dtype, others):
    wide = copy_of(in_dtype(in_dtype(oracle, TORCH[dtype]), TORCH[mx.float32]))
    exact = ours(wide, rounded(inputs, dtype))
    for techniques in ([Float32Residual(), *others], [*others, Float32Residual()]):
        stream = "transformer_blocks.*.{img_norm1,img_add1,img_add2,img_clip}"
        result, kinds = outputs(models[dtype], inputs, stream, *techniques, dtype=dtype)
        assert kinds == {mx.float32}
        for pattern in (BRANCHES, "{norm_out,proj_out}"):
            assert outputs(models[dtype], inputs, pattern, *techniques, dtype=dtype)[1] == {dtype}
        plain = ours(models[dtype], rounded(inputs, dtype), dtype)
        assert relative_l2(result, exact) < 0.97 * relative_l2(plain, exact)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("others", [(), (ScaledFeedForward(), ScaledAttention())], ids=["alone", "scaled"])
def test_branches_are_narrow_from_the_norm_to_the_gate(oracle, models, inputs, dtype, others):
    recipe, wide = Float32Residual(narrow_branches=True), Float32Residual()
    narrow = f"{{norm_out.norm,transformer_blocks.*.{{img_norm1,img_norm2}},{BRANCHES}}}"
    stream = "transformer_blocks.*.{img_add1,img_add2,img_clip}"
    assert outputs(models[dtype], inputs, narrow, recipe, *others, dtype=dtype)[1] == {dtype}
    result, kinds = outputs(models[dtype], inputs, stream, recipe, *others, dtype=dtype)
    assert kinds == {mx.float32}
    exact = ours(copy_of(in_dtype(in_dtype(oracle, TORCH[dtype]), TORCH[mx.float32])), rounded(inputs, dtype))
    plain = ours(models[dtype], rounded(inputs, dtype), dtype)
    widest = outputs(models[dtype], inputs, stream, wide, *others, dtype=dtype)[0]
    assert relative_l2(widest, exact) < relative_l2(result, exact) < relative_l2(plain, exact)


@pytest.mark.parametrize(("narrow", "finite"), [(False, True), (True, False)])
def test_the_product_with_the_gate_overflows_only_where_it_is_narrow(oracle, inputs, narrow, finite):
    """tanh bounds the gate, so that the update itself must be too large; a scale would restore it in fp32."""
    model = copy_of(in_dtype(oracle, TORCH[mx.float16]))

    class Large:
        sites = ("transformer_blocks.1.img_mlp.out",)
        preserves_function, composes = False, True

        @staticmethod
        def rewrite(site):
            return Computed(lambda x: mx.full(site.module(x).shape, 6e4, x.dtype))

    class Open:
        sites = ("transformer_blocks.1.img_gate2",)
        preserves_function, composes = False, True

        @staticmethod
        def rewrite(site):
            return Computed(lambda x: mx.full(x.shape, 1.5, x.dtype))

    found = rewritten(model, inputs, Large(), Open(), Float32Residual(narrow_branches=narrow), dtype=mx.float16)
    assert np.isfinite(found).all() == finite


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("fp32", [False, True])
def test_the_product_of_swiglu_is_rounded_once(models, inputs, dtype, fp32):
    """Against float64 of the same factors; the plain model rounds the activation too."""
    whole, seen = components(models[dtype]), {}
    patterns = "transformer_blocks.1.img_mlp.{proj,gate_layer,multiply}"

    def record(call):
        name = call.site.path.rpartition(".")[2]
        seen[name] = np.array(call.output.astype(mx.float32)).astype(np.float64)

    technique = {"swiglu": Float32SwiGLU()} if fp32 else {}
    with applied(whole, technique), tapped(select(patterns, walk(whole)), record):
        ours(models[dtype], rounded(inputs, dtype), dtype)
    gate = seen["gate_layer"]
    exact = mx.array((gate / (1 + np.exp(-gate)) * seen["proj"]).astype(np.float32)).astype(dtype)
    wrong = np.mean(np.array(exact.astype(mx.float32)) != seen["multiply"])
    assert wrong < 1e-3 if fp32 else wrong > 0.1


def test_a_scaled_factor_and_fp32_of_swiglu_compose(models, inputs):
    """In bfloat16, where no scale leaves the range, the result has the same bits for any scale and in either order."""
    dtype = mx.bfloat16
    expected = rewritten(models[dtype], inputs, Float32SwiGLU(), ScaledFeedForward(1.0), dtype=dtype)
    for techniques in ((Float32SwiGLU(), ScaledFeedForward(16.0)), (ScaledFeedForward(16.0), Float32SwiGLU())):
        np.testing.assert_array_equal(rewritten(models[dtype], inputs, *techniques, dtype=dtype), expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_two_sets_of_mflux_differ_by_what_is_conditioned_on_time(models, bits):
    def packed(name):
        whole = components(models[mx.float32])
        with applied(whole, shipped(name)):
            kinds = {str(s): s.module.bits for s in walk(whole) if isinstance(s.module, nn.QuantizedLinear)}
        assert set(kinds.values()) == {bits}
        return set(kinds)

    everything, spared = packed(f"mflux_21_q{bits}_all"), packed(f"mflux_21_q{bits}_spared")
    linears = {str(s) for s in walk(components(models[mx.float32])) if isinstance(s.module, nn.Linear)}
    assert everything == linears
    assert everything - spared == {
        "modulation.1",
        "norm_out.linear",
        *(f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2)),
    }
    assert packed(f"affine{bits}_modulation") == {"modulation.1"}


def test_the_modulation_is_fp32_and_the_tokens_are_not(models, inputs):
    technique, model = Float32Modulation(), models[mx.bfloat16]
    wide = "{modulation,split_modulation,transformer_blocks.*.{img_gate1,img_gate2}}"
    assert outputs(model, inputs, wide, technique, dtype=mx.bfloat16)[1] == {mx.float32}
    narrow = "transformer_blocks.*.{img_modulate1,img_modulate2,img_add1,img_add2,img_mlp}"
    assert outputs(model, inputs, narrow, technique, dtype=mx.bfloat16)[1] == {mx.bfloat16}


@pytest.mark.parametrize(
    "technique",
    [
        *(ChunkedAttention(queries=queries, keys=keys) for queries, keys in ((7, 5), (64, 3), (1, 64))),
        *(FusedAttention(), UnfusedAttention(), PreAttentionScaling(), SmoothedKeys()),
        NarrowAttentionSums(accumulator="float32"),
        *(BatchLayout([SITES_21["attend"]], copies) for copies in (2, 3)),
        FastCPU(),
        Narrow((SITES_21["attend"],), "float32"),
    ],
    ids=lambda technique: f"{type(technique).__name__}",
)
@pytest.mark.parametrize(("batch", "padded"), [(1, False), slow((1, True)), slow((2, False)), (2, True)])
def test_attention_in_another_form_is_the_same_function(models, technique, batch, padded):
    """Masks of the text have a row for each query; without padding they have one row for all samples."""
    lengths = (40, 17)[:batch] if padded else None
    inputs = random_inputs(np.random.default_rng(1), (5, 8), SHAPE, batch, tokens=40, lengths=lengths)
    limit = 2e-3 if isinstance(technique, NarrowAttentionSums) else 1e-5  # its probabilities and V are fp16
    for cached in (False, True):
        plain = ours(models[mx.float32], inputs, cached=cached)
        assert relative_l2(rewritten(models[mx.float32], inputs, technique, cached=cached), plain) < limit


def test_block_end_clip_clips_the_stream_and_not_the_keys(models, inputs):
    found, whole = {}, components(models[mx.float32])

    def record(call):
        found.update({port.name: mx.abs(port.array).max().item() for port in ports(call, ["out"])})

    with applied(whole, {"clip": BlockEndClip(limit=0.5)}), tapped(select("transformer_blocks.1", walk(whole)), record):
        models[mx.float32].prefill(mx.array(inputs.text), mx.array(inputs.mask))
    assert found["out.0"] == 0.5
    assert min(found["out.1"], found["out.2"]) > 0.5


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=str)
def test_compensation_reaches_across_blocks(dtype):
    """Updates far below an ulp are lost one by one; the clip at the end of a block does not drop what they leave."""
    model = copy_of(in_dtype(random_transformer(3, Shape(24)), TORCH[dtype]))
    for block in model.transformer_blocks:
        for linear in (block.attn.to_out[0], block.img_mlp.out):
            linear.weight = linear.weight * (0.02 if dtype == mx.bfloat16 else 0.002)
    case = random_inputs(np.random.default_rng(3), (3, 4), Shape(24))
    wide = copy_of(random_transformer(3, Shape(24)))
    wide.update(model.parameters())
    streams = {}

    def last_stream(model, dtype, *techniques):
        whole = components(model)
        with applied(whole, {f"t{i}": t for i, t in enumerate(techniques)}):
            site = select("transformer_blocks.-1.img_clip", walk(whole))
            with tapped(site, lambda call: streams.update(x=call.output)):
                ours(model, rounded(case, dtype), dtype)
        return np.array(streams["x"].astype(mx.float32)).astype(np.float64)

    exact = last_stream(wide, mx.float32)
    plain = relative_l2(last_stream(model, dtype), exact)
    compensated = relative_l2(last_stream(model, dtype, CompensatedResidual()), exact)
    within_blocks = CompensatedResidual(sites=RESIDUAL_ADDS)
    assert compensated < 0.6 * plain
    if dtype == mx.float16:
        assert compensated < 0.8 * relative_l2(last_stream(model, dtype, within_blocks), exact)


def test_the_exact_timestep_leaves_the_row_of_the_text(oracle, models, inputs):
    """diffusers in fp32 has the exact timestep too."""
    case = inputs._replace(timestep=np.full(2, 0.7371, np.float32))
    expected = reference(oracle, case)
    coarse = rounded(case, mx.bfloat16)._replace(latents=case.latents, text=case.text)
    with scope(sigma=0.7371):
        for cached in (False, True):
            with applied(components(models[mx.float32]), {"t": ExactTimestep()}):
                found = ours(models[mx.float32], coarse, cached=cached)
            assert relative_l2(found, expected) < 1e-5
    assert relative_l2(ours(models[mx.float32], coarse), expected) > 1e-4


def test_ggml_scales_are_exact_without_biases(models, inputs):
    plain = ours(models[mx.float32], inputs)
    np.testing.assert_array_equal(rewritten(models[mx.float32], inputs, GGMLScales()), plain)


def test_a_wrong_factor_is_found_out(models, inputs):
    """If only the gate restored what nothing had divided."""
    technique = ScaledFeedForward(4.0)
    plain = ours(models[mx.float32], inputs)
    whole = components(models[mx.float32])

    class GatesOnly:
        sites = ("transformer_blocks.*.img_add2",)
        preserves_function, composes = True, False
        rewrite = staticmethod(technique.rewrite)

    with applied(whole, {"wrong": GatesOnly()}):
        assert relative_l2(ours(models[mx.float32], inputs), plain) > 0.1
