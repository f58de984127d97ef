"""Properties that techniques share: places and their rewrites, the protocol, and independence of a model."""

import ast
import dataclasses
import inspect
from dataclasses import dataclass
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Wrapper
from precision_lab.techniques import (
    base,
    ffn_scaling,
    float8_weights,
    float32,
    narrow,
    narrow_accumulators,
    quantized_weights,
    reordered_sums,
)
from precision_lab.techniques.base import ByPlace, Technique, applied
from precision_lab.techniques.fast import cuda, kernels
from precision_lab.techniques.parts.casting import result_dtype
from precision_lab.techniques.quantized_weights import QuantizedWeights
from tests.techniques.configured import NAMES, named
from tests.techniques.small_model import forward, site, small_model


class Marked(Wrapper):
    def __init__(self, inner, mark):
        super().__init__(inner)
        self.mark = mark

    def __call__(self, *args):
        return self.inner(*args)


class TwoPlaces(ByPlace):
    preserves_function = True
    composes = False

    @property
    def places(self):
        return {
            "transformer_blocks.0.attn.to_q": lambda site: Marked(site.module, "first"),
            "transformer_blocks.*.attn.{to_q,to_k}": lambda site: Marked(site.module, "second"),
        }


def test_the_first_pattern_that_names_a_site_decides():
    model = small_model()
    assert isinstance(TwoPlaces(), Technique)
    plain = forward(model)
    with applied({"transformer": model}, {"t": TwoPlaces()}) as coverage:
        marks = [block.attn.to_q.mark + block.attn.to_k.mark for block in model.transformer_blocks]
        assert (forward(model) == plain).all()
    assert marks == ["firstsecond", "secondsecond", "secondsecond"]
    assert coverage["t"].matched == 6


def test_a_site_at_none_of_the_places_is_an_error_that_lists_them():
    with pytest.raises(InputError, match=r"TwoPlaces: norm_out is at none of its places.*attn\.to_q"):
        TwoPlaces().rewrite(site(small_model(), "norm_out"))


@pytest.mark.parametrize("component", ["", "decoder:"])
def test_a_pattern_without_a_component_means_the_only_one(component):
    """As in `select`, so techniques of several patterns work on models without a transformer."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    rules = [{"sites": f"{component}layers.1", "keep": True}, {"sites": f"{component}layers.*", "bits": 4}]
    with applied({"decoder": model}, {"t": QuantizedWeights(rules)}):
        assert [type(layer).__name__ for layer in model.layers] == ["QuantizedLinear", "Linear"]


@pytest.mark.parametrize("first", ["layers.1", "decoder:layers.1"])
def test_the_order_of_patterns_decides_however_they_name_the_component(first):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    second = "layers.1" if ":" in first else "decoder:layers.1"
    rules = [{"sites": first, "bits": 4}, {"sites": second, "bits": 8}]
    with applied({"decoder": model}, {"t": QuantizedWeights(rules)}):
        assert model.layers[1].bits == 4


def test_a_pattern_without_a_component_means_the_transformer_where_there_are_several():
    """The rule for `layers.*` comes first, and yet the decoder's rule decides about the decoder."""
    components = {name: nn.Sequential(nn.Linear(64, 64)) for name in ("transformer", "decoder")}
    rules = [{"sites": "layers.*", "bits": 4}, {"sites": "decoder:layers.*", "bits": 8}]
    with applied(components, {"t": QuantizedWeights(rules)}):
        assert {name: model.layers[0].bits for name, model in components.items()} == {"transformer": 4, "decoder": 8}


def test_a_rule_may_name_several_patterns():
    model = small_model()
    rule = {"sites": ["transformer_blocks.*.attn.to_q", "proj_out"], "bits": 8, "group_size": 32}
    technique = QuantizedWeights([{"sites": "transformer_blocks.0.attn.to_q", "keep": True}, rule])
    assert technique.sites == ("transformer_blocks.0.attn.to_q", *rule["sites"])
    with applied({"transformer": model}, {"t": technique}) as coverage:
        assert not isinstance(model.transformer_blocks[0].attn.to_q, nn.QuantizedLinear)
    assert coverage["t"].matched == 3
    for sites in ([], [3], None):
        with pytest.raises(InputError, match="expected a pattern or a list of patterns"):
            QuantizedWeights([{"sites": sites, "bits": 4}])


@pytest.mark.parametrize("name", NAMES)
def test_claims_belong_to_the_class_and_are_no_settings(name):
    for technique in named(name).values():
        assert isinstance(technique, Technique)
        assert isinstance(type(technique).preserves_function, bool)
        assert isinstance(type(technique).composes, bool)
        assert not {"preserves_function", "composes"} & {field.name for field in dataclasses.fields(technique)}


def test_third_parties_may_state_their_claims_as_attributes():
    @dataclass
    class Fields:
        sites: tuple[str, ...] = ("proj_out",)
        preserves_function: bool = True
        composes: bool = False

        def rewrite(self, site):
            return site.module

    plain = SimpleNamespace(sites=("proj_out",), preserves_function=True, composes=True, rewrite=Fields().rewrite)
    model = small_model()
    with applied({"transformer": model}, {"fields": Fields(), "plain": plain}) as coverage:
        assert [found.matched for found in coverage.values()] == [0, 0]


def test_the_result_has_the_dtype_of_the_first_input_unless_a_wrapper_states_another():
    class Ends(Wrapper):
        def result_dtype(self, x, y):
            return y.dtype

    wide, narrow_, tokens = mx.zeros(2), mx.zeros(2, dtype=mx.bfloat16), mx.zeros(2, dtype=mx.int32)
    plain = nn.Linear(2, 2)
    assert result_dtype(plain, tokens, narrow_, wide) == mx.bfloat16
    assert result_dtype(plain, tokens) == mx.float32
    assert result_dtype(Ends(plain), wide, narrow_) == mx.bfloat16
    assert result_dtype(Marked(Ends(Marked(plain, "")), ""), wide, narrow_) == mx.bfloat16


def test_general_techniques_know_no_model():
    modules = (
        base,
        ffn_scaling,
        float8_weights,
        float32,
        narrow,
        narrow_accumulators,
        quantized_weights,
        reordered_sums,
    )
    for module in modules:
        tree = ast.parse(inspect.getsource(module))
        imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in imported if "qwen" in name], module.__name__


def test_every_kernel_that_is_launched_has_its_source_beside_it():
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(kernels))) if isinstance(node, ast.Call)]
    launched = [call.args[0].value for call in calls if ast.unparse(call.func) == "cuda.kernel"]
    assert len(launched) == 7
    for name in launched:
        assert "precision_lab::" in cuda.source(name)
    assert "namespace precision_lab {" in cuda.source("common")
