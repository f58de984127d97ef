"""Runs that compute the same function in another way: the members of the noise floor."""

import shutil

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.instrument.sites import walk
from precision_lab.instrument.tap import tapped
from precision_lab.techniques.base import applied
from precision_lab.techniques.batch_layout import BatchLayout
from precision_lab.techniques.compiled_blocks import CompiledBlocks
from precision_lab.techniques.ffn_scaling import FFNScaling
from precision_lab.techniques.quantized_weights import QuantizedWeights
from precision_lab.techniques.sage_attention import SageAttention
from tests.spread import slow
from tests.techniques.configured import SITES
from tests.techniques.small_model import forward, rel_l2, rewritten, small_model

needs_a_compiler = pytest.mark.skipif(
    mx.default_device().type == mx.DeviceType.cpu and not shutil.which("g++"), reason="MLX compiles with g++ on CPUs"
)
OPERATIONS = (*SITES["block_linears"], SITES["attend"])
EQUIVALENT = [
    BatchLayout(OPERATIONS),
    BatchLayout(OPERATIONS, copies=5),
    pytest.param(CompiledBlocks(), marks=needs_a_compiler),
]


@pytest.mark.parametrize("technique", EQUIVALENT, ids=repr)
@pytest.mark.parametrize("masked", [False, True])
def test_the_function_stays(technique, masked):
    assert technique.preserves_function
    model = small_model()
    assert rel_l2(rewritten(model, technique, masked=masked), forward(model, masked=masked)) < 2e-6


# in fp32, above, compiled blocks run by default: on a CPU the C++ compiler takes 7 s for each dtype
@pytest.mark.parametrize("technique", [*EQUIVALENT[:-1], slow(EQUIVALENT[-1])], ids=repr)
def test_in_bf16_it_differs_by_rounding_at_most(technique):
    model = small_model()
    model.set_dtype(mx.bfloat16)
    assert rel_l2(rewritten(model, technique, dtype=mx.bfloat16), forward(model, mx.bfloat16)) < 0.02


def test_batch_layout_repeats_inside_and_keeps_the_shapes_outside():
    model, inside, outside = small_model(), [], []
    plain = walk({"transformer": model})
    linears = [s for s in plain if s.path.endswith("to_q")]
    with (
        applied({"transformer": model}, {"t": BatchLayout(OPERATIONS, copies=3)}),
        tapped(linears, lambda call: inside.append(call.output.shape)),
        tapped(
            [s for s in walk({"transformer": model}) if s.path.endswith("to_q")],
            lambda call: outside.append(call.output.shape),
        ),
    ):
        forward(model)
    assert set(inside) == {(6, 15, 64)}
    assert set(outside) == {(2, 15, 64)}


def test_batch_layout_goes_around_what_other_techniques_left():
    model = small_model()
    others = (SageAttention(), QuantizedWeights([{"sites": "transformer_blocks.*.attn.to_q", "bits": 4}]))
    together = rewritten(model, *others, BatchLayout(OPERATIONS))
    assert rel_l2(together, rewritten(model, *others)) < 1e-3


@needs_a_compiler
def test_a_compiled_block_follows_what_is_swapped_inside_it_later():
    model = small_model()
    inner = FFNScaling([SITES["feed_forwards"]])
    compiled = rewritten(model, CompiledBlocks(), inner)
    assert rel_l2(compiled, rewritten(model, inner)) < 2e-6
    assert rel_l2(compiled, forward(model)) > 0.01


@needs_a_compiler
def test_a_compiled_block_is_built_anew_when_something_is_swapped_after_its_first_call():
    model = small_model()
    with applied({"transformer": model}, {"compiled": CompiledBlocks()}):
        before = forward(model)
        with applied({"transformer": model}, {"scaled": FFNScaling([SITES["feed_forwards"]])}):
            during = forward(model)
        after = forward(model)
    assert rel_l2(during, before) > 0.01
    assert np.array_equal(after, before)


@needs_a_compiler
def test_a_compiled_block_is_observed_from_outside_only():
    model, seen = small_model(), []
    with applied({"transformer": model}, {"compiled": CompiledBlocks()}):
        sites = walk({"transformer": model})
        blocks = [s for s in sites if s.path.startswith("transformer_blocks") and s.path.count(".") == 1]
        with tapped(blocks, lambda call: seen.append(call.output)):
            forward(model)
        mx.eval(seen)
        inside = [s for s in sites if s.path == "transformer_blocks.1.img_mlp"]
        with tapped(inside, seen.append), pytest.raises(InputError, match=r"inside transformer_blocks\.1 is observed"):
            forward(model)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("technique", "expected"),
    [
        (BatchLayout(sites=("norm_out",)), "Linear, QuantizedLinear, CodedLinear or Attend"),
        (CompiledBlocks(sites=("norm_out",)), "TransformerBlock"),
    ],
)
def test_other_sites_are_refused(technique, expected):
    with pytest.raises(InputError, match=f"norm_out is AdaLayerNormContinuous, expected {expected}"):
        rewritten(small_model(), technique)


def test_no_copies_are_refused():
    with pytest.raises(InputError, match="copies is 0, expected"):
        BatchLayout(OPERATIONS, copies=0)
