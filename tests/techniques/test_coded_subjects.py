"""A subject whose linears are stored in codings meets the techniques and the lab as one with plain linears does."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components, walk
from precision_lab.lab.groups import linears
from precision_lab.lab.quantized_checkpoint import write
from precision_lab.lab.recipe import stated, target_of
from precision_lab.model.coded import CodedLinear, linear_weight
from precision_lab.model.codings.float8 import Float8, Float8Inputs
from precision_lab.model.codings.int8 import Int8, Int8Inputs
from precision_lab.model.qwen_image.layout import layout
from precision_lab.recipes.naming import Naming
from precision_lab.recipes.recipe import Float8 as Float8Format
from precision_lab.techniques.base import applied
from precision_lab.techniques.batch_layout import BatchLayout
from precision_lab.techniques.coded_weights import CodedWeights
from precision_lab.techniques.narrow_accumulators import NarrowAccumulators
from precision_lab.techniques.parts.scaled_parts import ScaledLinear
from precision_lab.techniques.quantized_weights import QuantizedWeights
from precision_lab.techniques.reordered_sums import ReorderedSums

X = mx.array(np.random.default_rng(5).standard_normal((3, 5, 192)).astype(np.float32))


def subject(linear):
    holder = nn.Module()
    holder.linear = linear
    return Components({"transformer": holder}, layout(1))


def coded(coding=None, inputs=None, bias=True):
    weight = np.random.default_rng(6).normal(0, 0.3, (64, 192)).astype(np.float32)
    return CodedLinear.encoded(coding or Int8(), mx.array(weight), mx.arange(64.0) if bias else None, inputs)


def plain_like(linear):
    plain = nn.Linear(192, 64, "bias" in linear)
    plain.weight = linear_weight(linear)
    if "bias" in linear:
        plain.bias = linear.bias
    return plain


@pytest.mark.parametrize("technique", [ReorderedSums, NarrowAccumulators, BatchLayout])
@pytest.mark.parametrize("bias", [False, True])
def test_it_computes_as_a_plain_one_with_the_decoded_weights(technique, bias):
    results = []
    for linear in (coded(bias=bias), plain_like(coded(bias=bias))):
        components = subject(linear)
        with applied(components, {"t": technique(["linear"])}):
            results.append(components["transformer"].linear(X))
    np.testing.assert_array_equal(*map(np.array, results))


@pytest.mark.parametrize("technique", [ReorderedSums, NarrowAccumulators])
def test_sums_of_rounded_inputs_are_left_to_the_coding(technique):
    refusal = pytest.raises(InputError, match="linear rounds its inputs to int8, expected a linear that does not")
    with refusal, applied(subject(coded(inputs=Int8Inputs())), {"t": technique(["linear"])}):
        pass


def test_groups_recipes_and_scalings_see_a_linear():
    components = subject(coded(bias=False))
    (site,) = linears(walk(components))
    assert target_of(components, "subject", Naming()).channels == {"linear": 192}
    scaled = ScaledLinear(site, 2.0, 1.0)
    np.testing.assert_array_equal(np.array(scaled(X)), np.array(site.module(X / 2)))


def test_it_is_not_quantised_again():
    technique = QuantizedWeights([{"sites": "linear", "bits": 4}])
    refusal = pytest.raises(InputError, match="linear is quantised already, expected Linear")
    with refusal, applied(subject(coded()), {"t": technique}):
        pass


def test_a_recipe_states_float8_with_the_inputs_it_knows():
    found = {}
    for name, inputs in {"none": None, "token": Float8Inputs(), "tensor": Float8Inputs("tensor")}.items():
        technique = CodedWeights(Float8("channel"), ["linear"], inputs)
        found[name] = stated(subject(plain_like(coded())), {"t": technique})
    assert found["none"].recipe == {"linear": Float8Format("channel", False)}
    assert found["token"].recipe == {"linear": Float8Format("channel", True)}
    assert found["tensor"].recipe == {}


def test_a_copy_in_the_layout_of_mlx_lm_is_refused(tmp_path):
    class Part:
        module, stem, prefix = subject(coded())["transformer"], "model", ""

    class Source:
        layout = layout(1)

        def folder(self):
            return tmp_path

        def folders(self):
            return ["transformer"]

        def parts(self):
            return {"transformer": Part()}

    with pytest.raises(InputError, match=r"linear is stored as int8, which this layout of files cannot state"):
        write(Source(), {"t": QuantizedWeights([{"sites": "linear", "keep": True}])}, tmp_path / "out")
    assert not list(tmp_path.iterdir())
