"""What techniques say they divide, or keep in fp32, is what they do."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.instrument.sites import walk
from precision_lab.instrument.tap import ports, tapped
from precision_lab.model.layers import Linear
from precision_lab.record.layout import Layout
from precision_lab.techniques.base import Dividing, Widening, applied
from precision_lab.techniques.float32_residual import Float32Residual
from precision_lab.techniques.ggml_scales import GGMLScales
from precision_lab.techniques.scaled_attention import ScaledAttention
from precision_lab.techniques.scaled_feed_forward import ScaledFeedForward, ScaledFirstLinear
from tests.subjects import source
from tests.techniques.evaluation import draws, evaluate, pipelines

DRAW = draws(1)[0]
SCALINGS = (ScaledAttention, ScaledFeedForward, ScaledFirstLinear, GGMLScales)


@pytest.fixture(scope="module", params=["1.x", "2.1"])
def pipeline(request, small_checkpoint, small_checkpoint_21):
    if request.param == "1.x":
        return pipelines(source(small_checkpoint))
    from precision_lab.synthetic.source import QwenImage21

    return lambda dtype: QwenImage21("small", str(small_checkpoint_21)).load(dtype).pipeline


def operations(pipeline):
    """The modules without modules inside; a wrapper that a technique puts there has one."""
    return {str(site) for site in walk(pipeline.components) if not site.module.children()}


def of_operations(pipeline, techniques, measure):
    """By site, the largest `measure` of what every operation returns in one guided step."""
    found = {}
    known = operations(pipeline)

    def note(call):
        for port in ports(call, ("out",)):
            if str(call.site) in known and port.array.dtype != mx.complex64:
                found.setdefault(str(call.site), []).append(measure(port.array))

    with applied(pipeline.components, dict(enumerate(techniques))):
        with tapped(walk(pipeline.components), note):
            evaluate(pipeline, DRAW)
        return {site: np.max([np.asarray(value) for value in values]) for site, values in found.items()}


def amax(array):
    return mx.abs(array.astype(mx.float32)).max()


def narrow(array):
    return array.dtype == mx.float16


def named(pipeline, patterns):
    every = walk(pipeline.components)
    return {str(s) for pattern in patterns for s in every if s.named_by(pattern) and not s.module.children()}


@pytest.mark.parametrize(
    ("technique", "parameter"), [(ScaledAttention, "qkv"), (ScaledAttention, "out"), (ScaledFeedForward, "hidden")]
)
def test_a_scale_divides_what_it_says_and_nothing_else(pipeline, technique, parameter):
    pipeline = pipeline(mx.float32)
    names = technique().divisions
    at_one = technique(**dict.fromkeys(names, 1))
    at_eight = technique(**{**dict.fromkeys(names, 1), parameter: 8})
    assert at_eight.divisions[parameter].by == 8
    plain, scaled = (of_operations(pipeline, [each], amax) for each in (at_one, at_eight))
    declared = named(pipeline, at_eight.divisions[parameter].places)
    assert declared
    divided = {site for site in plain if plain[site] != scaled[site]}
    assert divided == declared
    assert all(plain[site] == 8 * scaled[site] for site in divided), "exact: a power of two"


def test_a_product_that_is_restored_in_fp32_is_divided_first():
    """The place of these scales is the product in the narrow format; the module's result is the undivided number."""

    class AtBlock:
        block, path, component, layout = 0, "transformer_blocks.0.x", "transformer", Layout.of(["transformer"])
        module = Linear(4, 4)

    AtBlock.module.weight = mx.full((4, 4), 100.0, dtype=mx.float16)
    AtBlock.module.bias = mx.zeros((4,), dtype=mx.float16)
    x = mx.full((1, 4), 250.0, dtype=mx.float16)  # the product is 100000
    for technique, finite in (
        (ScaledFirstLinear(scale=1), False),
        (ScaledFirstLinear(scale=2), True),
        (GGMLScales(attention_out=1.0), False),
        (GGMLScales(attention_out=0.5), True),
    ):
        place = next(iter(technique.divisions.values())).places[0]
        rewrite = (
            technique.rewrite
            if place in getattr(technique, "sites", ())
            else technique.places["transformer_blocks.*.attn.{to_out.0,to_add_out}"]
        )
        y = rewrite(AtBlock)(x)
        assert y.dtype == mx.float32
        assert bool(mx.isfinite(y).all()) == finite
        assert not finite or y[0, 0].item() == pytest.approx(100000, rel=2**-11)


@pytest.mark.parametrize(
    ("technique", "others"),
    [
        (Float32Residual(), []),
        (Float32Residual(narrow_branches=True), []),
        (ScaledFirstLinear(), [ScaledFeedForward(hidden=1)]),  # which rounds what GELU leaves
    ],
)
def test_what_a_technique_widens_is_in_fp32(pipeline, technique, others):
    pipeline = pipeline(mx.float16)
    if not named(pipeline, technique.sites):
        pytest.skip("this architecture has no such place")
    plain = of_operations(pipeline, others, narrow)
    wide = of_operations(pipeline, [technique, *others], narrow)
    widened = {site for site in plain if plain[site] and not wide[site]}
    # the input of a branch is fp32 where it is made, and rounded where the branch reads it, so it must fit; and so must
    # a product that is restored in fp32, before it is
    rounded_later = named(pipeline, ["transformer_blocks.*.{img,txt}_modulate{1,2}", "norm_out.modulate"])
    restored = named(pipeline, technique.sites) if isinstance(technique, ScaledFirstLinear) else set()
    assert widened - rounded_later - restored == named(pipeline, technique.widens)


@pytest.mark.parametrize("technique", [each() for each in SCALINGS])
def test_they_follow_the_protocol(technique):
    assert isinstance(technique, Dividing)
    assert isinstance(technique, Widening) == isinstance(technique, ScaledFirstLinear)
    assert not isinstance(Float32Residual(), Dividing)
