"""The effect of each technique on the function, and the composition of several."""

import dataclasses

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from precision_lab.errors import InputError
from precision_lab.instrument.sites import walk
from precision_lab.instrument.tap import tapped
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.rotary import Grid
from precision_lab.record.manifest import Coverage
from precision_lab.techniques.base import Technique, applied
from precision_lab.techniques.faint_inputs import FaintInputs
from precision_lab.techniques.ffn_scaling import FFNScaling
from precision_lab.techniques.float32 import Float32
from precision_lab.techniques.pre_attention_scaling import PreAttentionScaling
from precision_lab.techniques.reordered_sums import ReorderedSums
from tests.techniques.configured import SITES

CONFIG = TransformerConfig(
    num_layers=3, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=40, axes_dims_rope=(8, 12, 12)
)
NORM_OUT = Float32(sites=("norm_out",))


@pytest.fixture
def model():
    mx.random.seed(11)
    model = Transformer(CONFIG)
    # biases of ordinary size: those of the default initialisation are too small to show the effect of scaling
    model.update(tree_map(lambda p: p if p.ndim > 1 else p + 0.3 * mx.random.normal(p.shape), model.parameters()))
    return model


def forward(model, dtype=mx.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((2, 15, 64), (2, 6, 40))
    latents, text = (mx.array(rng.standard_normal(s, dtype=np.float32)).astype(dtype) for s in shapes)
    return np.array(model(latents, mx.array([0.5, 0.25]), text, Grid(3, 5)).astype(mx.float32))


def with_techniques(model, dtype=mx.float32, **techniques):
    with applied({"transformer": model}, techniques) as coverage:
        return forward(model, dtype), coverage


def rel_l2(x, reference):
    return np.linalg.norm(x - reference) / np.linalg.norm(reference)


@pytest.mark.parametrize(
    "technique",
    [
        NORM_OUT,
        PreAttentionScaling(),
        PreAttentionScaling(q_share=1.0),
        PreAttentionScaling(q_share=0.0),
        ReorderedSums(SITES["reordered"]),
    ],
    ids=lambda t: f"{type(t).__name__}-{getattr(t, 'q_share', '')}",
)
def test_a_technique_that_claims_to_preserve_the_function_does(model, technique):
    assert technique.preserves_function
    changed, _ = with_techniques(model, t=technique)
    assert rel_l2(changed, forward(model)) < 2e-6


def test_ffn_scaling_claims_nothing_and_changes_the_function(model):
    technique = FFNScaling([SITES["feed_forwards"]])
    assert not technique.preserves_function
    changed, coverage = with_techniques(model, t=technique)
    assert rel_l2(changed, forward(model)) > 0.01
    assert coverage["t"].matched == 2 * CONFIG.num_layers


@pytest.mark.parametrize(("x_scale", "y_scale"), [(0.25, 4.0), (2.0, 0.5), (1.0, 3.0)])
def test_ffn_scaling_is_what_it_says(model, x_scale, y_scale):
    """Compares with the feed-forward written out, with both factors as parameters."""
    technique = FFNScaling(sites=("transformer_blocks.0.img_mlp",), input_scale=x_scale, output_scale=y_scale)
    seen = {}
    with applied({"transformer": model}, {"t": technique}):
        sites = [s for s in walk({"transformer": model}) if s.path == "transformer_blocks.0.img_mlp"]
        with tapped(sites, lambda call: seen.update(x=call.args[0], y=call.output)):
            forward(model)
    mlp = model.transformer_blocks[0].img_mlp.net
    expected = y_scale * mlp[2](mlp[0](x_scale * seen["x"]))
    assert mx.allclose(seen["y"], expected, rtol=1e-6, atol=1e-6)


def test_float32_computes_inside_and_returns_the_dtype(model):
    model.set_dtype(mx.bfloat16)
    inner = {}
    with applied({"transformer": model}, {"fp32": NORM_OUT}):
        sites = [s for s in walk({"transformer": model}) if s.path.startswith("norm_out")]
        with tapped(sites, lambda call: inner.update({call.site.path: call.output.dtype})):
            forward(model, mx.bfloat16)
    assert inner["norm_out.norm"] == inner["norm_out.linear"] == inner["norm_out.modulate"] == mx.float32
    assert inner["norm_out"] == mx.bfloat16


def test_float32_on_blocks_handles_named_tuples(model):
    model.set_dtype(mx.float16)
    _, coverage = with_techniques(model, mx.float16, fp32=Float32(sites=("transformer_blocks.*",)))
    assert coverage["fp32"].matched == CONFIG.num_layers


def test_the_model_is_plain_again_afterwards(model):
    def anatomy():
        sites = [(s.path, id(s.module), type(s.module)) for s in walk({"transformer": model})]
        return sites, [name for name, _ in tree_flatten(model.parameters())]

    before, plain = anatomy(), forward(model)
    with (
        pytest.raises(RuntimeError),
        applied({"transformer": model}, {"a": FFNScaling([SITES["feed_forwards"]]), "b": NORM_OUT}),
    ):
        raise RuntimeError
    assert anatomy() == before
    assert np.array_equal(forward(model), plain)


def test_coverage_counts_all_modules_of_the_component(model):
    _, coverage = with_techniques(model, t=NORM_OUT)
    assert coverage["t"] == Coverage(1, len(walk({"transformer": model})))


def test_they_compose_in_order(model):
    ffn = FFNScaling(sites=("transformer_blocks.0.img_mlp",), input_scale=0.3, output_scale=3.3)
    fp32 = Float32(sites=("transformer_blocks.0.img_mlp",))
    model.set_dtype(mx.bfloat16)
    first, _ = with_techniques(model, mx.bfloat16, ffn=ffn, fp32=fp32)
    second, _ = with_techniques(model, mx.bfloat16, fp32=fp32, ffn=ffn)
    assert rel_l2(first, second) < 0.05
    assert not np.array_equal(first, second), "scaling inside and outside of the upcast round differently"


def test_two_that_do_not_compose_are_refused(model):
    twice = dataclasses.replace(FFNScaling([SITES["feed_forwards"]]), input_scale=0.5)
    with pytest.raises(InputError, match="first and second both rewrite transformer_blocks"):
        with_techniques(model, first=FFNScaling([SITES["feed_forwards"]]), second=twice)
    assert walk({"transformer": model})[0].path == "pos_embed"


def test_two_at_different_sites_need_not_compose(model):
    a = FFNScaling(sites=("transformer_blocks.*.img_mlp",))
    b = FFNScaling(sites=("transformer_blocks.*.txt_mlp",))
    both, _ = with_techniques(model, a=a, b=b)
    assert rel_l2(both, with_techniques(model, t=FFNScaling([SITES["feed_forwards"]]))[0]) == 0


@pytest.mark.parametrize(
    "technique",
    [PreAttentionScaling(sites=("norm_out",)), ReorderedSums(sites=("norm_out.norm",))],
    ids=lambda t: type(t).__name__,
)
def test_a_site_of_the_wrong_kind_is_refused(model, technique):
    with pytest.raises(InputError, match=r"norm_out.* is \w+, expected"):
        with_techniques(model, t=technique)


def test_a_pattern_that_matches_nothing_is_refused(model):
    with pytest.raises(InputError, match="matches nothing"):
        with_techniques(model, t=Float32(sites=("norm_uot",)))


@pytest.mark.parametrize(
    "technique",
    [NORM_OUT, PreAttentionScaling(), FFNScaling([SITES["feed_forwards"]]), ReorderedSums(SITES["reordered"])],
)
def test_all_follow_the_protocol(technique):
    assert isinstance(technique, Technique)
    with pytest.raises(dataclasses.FrozenInstanceError):
        technique.sites = ()


def test_faint_inputs_scale_the_whole_input_and_keep_zeros():
    seen = []

    class Recording(nn.Module):
        def __call__(self, x, factor):
            seen.append(x)
            return x * factor

    root = {"model": nn.Sequential(Recording())}
    for dtype in (mx.float32, mx.bfloat16):
        x = mx.array(np.random.default_rng(0).standard_normal((1, 7, 5)) * 300).astype(dtype)
        with applied(root, {"faint": FaintInputs(["layers.0"], rms=2.0**-10)}):
            y = root["model"].layers[0](x, 2)
        assert y.dtype == dtype
        rms = float(mx.sqrt(mx.mean(mx.square(seen[-1].astype(mx.float32)))))
        assert rms == pytest.approx(2.0**-10, rel=1e-2)
        ratio = np.array(seen[-1].astype(mx.float32) / x.astype(mx.float32))
        assert np.allclose(ratio, ratio[0, 0, 0], rtol=1e-2)
        with applied(root, {"faint": FaintInputs(["layers.0"])}):
            root["model"].layers[0](mx.zeros_like(x), 2)
        assert float(mx.abs(seen[-1]).max()) == 0
    with pytest.raises(InputError, match="rms is 0"):
        FaintInputs(["a"], rms=0)
