"""Replacing and observing modules: the observations, and the restoration of everything."""

import copy

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from precision_lab.instrument.blame import Place, place_of
from precision_lab.instrument.scope import scope
from precision_lab.instrument.sites import Components, Wrapper, select, walk
from precision_lab.instrument.swap import swapped
from precision_lab.instrument.tap import ports, tapped
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.layout import layout
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.rotary import Grid

CONFIG = TransformerConfig(
    num_layers=2, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12, axes_dims_rope=(4, 2, 2)
)


@pytest.fixture
def model():
    mx.random.seed(3)
    return Transformer(CONFIG)


def forward(model, dtype=mx.float32):
    rng = np.random.default_rng(0)
    latents, text = (
        mx.array(rng.standard_normal(s, dtype=np.float32)).astype(dtype) for s in ((1, 12, 64), (1, 5, 12))
    )
    return model(latents, mx.array([0.5]), text, Grid(3, 4))


def anatomy(model):
    """Everything that must be the same afterwards: addresses, identities, classes and parameters."""
    return [(s.path, id(s.module), type(s.module)) for s in walk({"transformer": model})], [
        (name, id(array)) for name, array in tree_flatten(model.parameters())
    ]


class Times(Wrapper):
    def __init__(self, inner, factor):
        super().__init__(inner)
        self.factor = factor

    def __call__(self, *args):
        return self.inner(*args) * self.factor


def chosen(model, *patterns):
    return select(patterns, walk(Components({"transformer": model}, layout(1))))


class TestSwap:
    def test_changes_the_output_and_is_undone(self, model):
        plain, before = forward(model), anatomy(model)
        with swapped({"transformer": model}, {s: Times(s.module, 2.0) for s in chosen(model, "proj_out")}):
            assert mx.array_equal(forward(model), 2 * plain)
        assert anatomy(model) == before
        assert mx.array_equal(forward(model), plain)

    @pytest.mark.parametrize("pattern", ["transformer_blocks.1.attn.to_out.0", "transformer_blocks.0.img_mlp.net.2"])
    def test_reaches_lists_and_numbered_layers(self, model, pattern):
        plain = forward(model)
        with swapped({"transformer": model}, {s: Times(s.module, 3.0) for s in chosen(model, pattern)}):
            assert not mx.array_equal(forward(model), plain)
        assert mx.array_equal(forward(model), plain)

    def test_inside_a_wrapper(self, model):
        before = anatomy(model)
        with swapped({"transformer": model}, {s: Times(s.module, 1.0) for s in chosen(model, "norm_out")}):
            inner = chosen(model, "norm_out.linear")
            with swapped({"transformer": model}, {s: Times(s.module, 0.0) for s in inner}):
                zeroed = forward(model)
        assert anatomy(model) == before
        assert not mx.array_equal(zeroed, forward(model))

    def test_is_undone_after_an_exception(self, model):
        before = anatomy(model)
        doubled = {s: Times(s.module, 2.0) for s in chosen(model, "**.to_q")}
        with pytest.raises(RuntimeError, match="planted"), swapped({"transformer": model}, doubled):
            raise RuntimeError("planted")
        assert anatomy(model) == before


class TestTap:
    @pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
    def test_observing_everything_changes_no_bit(self, model, dtype):
        model.set_dtype(dtype)
        plain, before, seen = forward(model, dtype), anatomy(model), []

        def look(call):
            arrays = [port.array for port in ports(call, ("in", "out"))]
            mx.eval(arrays)
            seen.append(call.site.path)

        with tapped(walk({"transformer": model}), look):
            observed = forward(model, dtype)
        assert mx.array_equal(observed, plain)
        assert anatomy(model) == before
        assert len(seen) == len(set(seen)), "an address was called twice in one forward"
        assert set(seen) >= {"img_in", "transformer_blocks.1.attn.attend", "norm_out.modulate", "proj_out"}

    def test_isinstance_and_parameters_hold_inside(self, model):
        names = [name for name, _ in tree_flatten(model.parameters())]
        with tapped(chosen(model, "**"), lambda call: None):
            assert isinstance(model.proj_out, nn.Linear)
            assert [name for name, _ in tree_flatten(model.parameters())] == names

    def test_every_operation_is_called(self, model):
        called = set()
        with tapped(walk({"transformer": model}), lambda call: called.add(call.site.path)):
            forward(model)
        idle = {site.path for site in walk({"transformer": model})} - called
        assert idle == set()

    def test_inner_modules_come_first_and_outputs_are_theirs(self, model):
        calls = []
        with tapped(chosen(model, "proj_out", "norm_out", "norm_out.norm"), calls.append):
            out = forward(model)
        assert [call.site.path for call in calls] == ["norm_out.norm", "norm_out", "proj_out"]
        assert mx.array_equal(calls[-1].output, out)
        assert mx.array_equal(calls[-1].args[0], calls[-2].output)

    def test_a_copy_made_inside_is_not_observed(self, model):
        calls = []
        with tapped(chosen(model, "proj_out"), calls.append):
            twin = copy.copy(model.proj_out)
            x = mx.ones((1, model.proj_out.weight.shape[1]))
            assert mx.array_equal(twin(x), model.proj_out(x))
        assert len(calls) == 1

    def test_streams_and_numbers_of_ports(self, model):
        calls = {}
        sites = chosen(model, "transformer_blocks.0", "transformer_blocks.0.img_add1", "transformer_blocks.0.attn")
        with tapped(sites, lambda call: calls.update({call.site.path: call})):
            forward(model)
        block = list(ports(calls["transformer_blocks.0"], ("out",)))
        assert [(p.name, p.stream) for p in block] == [("out.0", "img"), ("out.1", "txt")]
        assert [p.array.shape for p in block] == [(1, 12, 16), (1, 5, 16)]
        add = list(ports(calls["transformer_blocks.0.img_add1"], ("in", "out")))
        assert [p.name for p in add] == ["in.0", "in.1", "in.2", "out"]
        assert all(p.stream == "img" for p in add)

    def test_taps_nest(self, model):
        inner, outer = [], []
        with tapped(chosen(model, "proj_out"), outer.append), tapped(chosen(model, "proj_out"), inner.append):
            forward(model)
        assert (len(inner), len(outer)) == (1, 1)

    def test_is_undone_after_an_exception(self, model):
        before = anatomy(model)

        def fail(call):
            raise RuntimeError("planted")

        with pytest.raises(RuntimeError, match="planted"), tapped(chosen(model, "**.attend"), fail):
            forward(model)
        assert anatomy(model) == before

    def test_an_exception_carries_the_innermost_site_and_moment(self, model):
        class Failing(Wrapper):
            def __call__(self, *args):
                raise RuntimeError("planted")

        bad = {s: Failing(s.module) for s in chosen(model, "transformer_blocks.1.img_mlp.net.2")}
        for watched, named in (
            (("**",), "transformer_blocks.1.img_mlp.net.2"),
            (("transformer_blocks.*",), "transformer_blocks.1"),
        ):
            with (
                swapped({"transformer": model}, bad),
                pytest.raises(RuntimeError) as caught,
                tapped(chosen(model, *watched), lambda call: None),
                scope(step=3, branch="cond"),
            ):
                forward(model)
            assert place_of(caught.value) == Place("transformer", named, 3, "cond")
        assert place_of(RuntimeError("elsewhere")) is None

    def test_a_tapped_replacement_is_observed(self, model):
        seen = []
        doubled = {s: Times(s.module, 2.0) for s in chosen(model, "proj_out")}
        # the second context looks the sites up when it is entered, after the swap
        with swapped({"transformer": model}, doubled), tapped(chosen(model, "proj_out"), seen.append):
            out = forward(model)
        assert mx.array_equal(seen[0].output, out)
