"""A subject whose linears are stored in codings meets the techniques and the lab as one with plain linears does."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components, walk
from precision_lab.lab.candidates import Candidate
from precision_lab.lab.groups import groups_of, linears
from precision_lab.lab.injections import injections_of
from precision_lab.lab.quantized_checkpoint import write
from precision_lab.lab.recipe import stated, target_of
from precision_lab.model.coded import CodedLinear, linear_weight
from precision_lab.model.codings.float8 import Float8, Float8Inputs
from precision_lab.model.codings.gguf.super_blocks import Q4_K
from precision_lab.model.codings.int4 import Int4Inputs
from precision_lab.model.codings.int8 import Int8, Int8Inputs
from precision_lab.model.qwen_image.layout import layout
from precision_lab.recipes.naming import Naming
from precision_lab.recipes.recipe import Float8 as Float8Format
from precision_lab.techniques.base import Beside, applied
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


def two_widths():
    """A subject with linears of 192 and 256 channels."""
    holder = nn.Module()
    holder.narrow, holder.wide = nn.Linear(192, 64), nn.Linear(256, 64)
    return Components({"transformer": holder}, layout(1))


def test_what_does_not_fit_is_kept_or_refused_as_told():
    with applied(two_widths(), {"q4_k": CodedWeights(Q4_K(), ["*"], unfit="keep")}) as coverage:
        assert coverage["q4_k"].matched == 1
    refusal = pytest.raises(InputError, match="narrow in q4_k: 192 channels, expected a multiple of 256; leave it out")
    with refusal, applied(two_widths(), {"q4_k": CodedWeights(Q4_K(), ["*"])}):
        pass


@pytest.mark.parametrize(
    ("technique", "said"),
    [
        (CodedWeights(Q4_K(), ["narrow"], unfit="keep"), "1 with 192 channels, expected a multiple of 256"),
        (
            CodedWeights(Int8(), ["*"], Int4Inputs(group=100), "keep"),
            "1 with inputs in int4: .* channels, expected a multiple of 100; 1 with inputs in int4",
        ),
    ],
)
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "below an adapter"])
def test_a_technique_that_keeps_every_linear_says_so(technique, said, beside):
    class Nothing(Beside):
        def __call__(self, x):
            return self.inner(x)

        def around(self, inner):
            return Nothing(inner)

    components = two_widths()
    if beside:
        components["transformer"].narrow = Nothing(components["transformer"].narrow)
    refusal = pytest.raises(InputError, match=rf"technique t leaves all \d linears that it names as they are: {said}")
    with refusal, applied(components, {"t": technique}):
        pass


def test_a_scan_leaves_out_the_groups_that_a_candidate_keeps():
    components = two_widths()
    sites = {str(site): site for site in linears(walk(components))}
    node = {"_target_": "?", "sites": "SITES"}
    candidate = Candidate("q4_k", node, lambda name, node: CodedWeights(Q4_K(), node["sites"], unfit="keep"))
    groups = groups_of(components)
    found, unfit = injections_of(components, sites, groups, [candidate])
    assert [injection.group.operation for injection in found] == ["wide"]
    [narrow] = unfit
    assert (narrow.group.operation, narrow.candidate) == ("narrow", "q4_k")
    assert "narrow with 192 channels, expected a multiple of 256" in narrow.reason
    with pytest.raises(InputError, match=r"candidate q4_k fits none of the 1 groups: .*narrow with 192 channels"):
        injections_of(components, sites, [narrow.group], [candidate])


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

        def apart(self):
            return []

        def parts(self):
            return {"transformer": Part()}

    with pytest.raises(InputError, match=r"linear is stored as int8, which this layout of files cannot state"):
        write(Source(), {"t": QuantizedWeights([{"sites": "linear", "keep": True}])}, tmp_path / "out")
    assert not list(tmp_path.iterdir())
