"""Fused blocks over weights that are stored in fewer bits, and the choice between two products of them."""

from itertools import product

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.model.codings.int8 import Int8, Int8Inputs
from precision_lab.model.layers import Linear
from precision_lab.model.quantized import Quantization, QuantizedLinear, decoded_weight
from precision_lab.techniques.base import applied, chosen
from precision_lab.techniques.coded_weights import CodedWeights
from precision_lab.techniques.fast import routes, technique
from precision_lab.techniques.fast.decoding import decoded
from precision_lab.techniques.fast.matrices import Beside, Packed, matrix
from precision_lab.techniques.fast.routes import NEVER, ROWS, Routes, measured
from precision_lab.techniques.fast.technique import Fast, FusedBlocks
from precision_lab.techniques.quantized_weights import QuantizedWeights
from tests.spread import thinned
from tests.techniques import small_model_21
from tests.techniques.small_model import components, forward, rel_l2, rewritten, small_model

EVERYWHERE = (
    "transformer_blocks.*.{attn.{to_{q,k,v,out.0,add_out},add_{q,k,v}_proj},{img,txt}_{mod.1,mlp.net.{0.proj,2}}}",
)
STORED = {
    "affine4": QuantizedWeights([{"sites": EVERYWHERE, "bits": 4}]),
    "affine8 in groups of 32": QuantizedWeights([{"sites": EVERYWHERE, "bits": 8, "group_size": 32}]),
    "mxfp8": QuantizedWeights([{"sites": EVERYWHERE, "mode": "mxfp8"}]),
    "nvfp4 with a scale a tensor": QuantizedWeights([{"sites": EVERYWHERE, "mode": "nvfp4", "tensor_scale": True}]),
    "8 bits in q, 4 in k, v as stored": QuantizedWeights(
        [{"sites": "**.to_q", "bits": 8}, {"sites": "**.to_k", "bits": 4}, {"sites": "**.net.2", "bits": 4}]
    ),
    "int8": CodedWeights(Int8(), EVERYWHERE),
    "int8 with inputs": CodedWeights(Int8(), EVERYWHERE, Int8Inputs()),
}


@pytest.mark.parametrize(("name", "masked"), thinned(product(STORED, [False, True]), keep=4))
def test_the_function_is_that_of_the_plain_blocks_with_these_weights(name, masked):
    model, stored = small_model(), STORED[name]
    plain = rewritten(model, stored, masked=masked)
    # an input at a tie between two codes may round to the other one
    bound = 2e-3 if "inputs" in name else 3e-6
    assert rel_l2(rewritten(model, stored, FusedBlocks(), masked=masked), plain) < bound
    assert rel_l2(plain, forward(model, masked=masked)) > 1e-3


@pytest.mark.parametrize("name", [name for name in STORED if "inputs" not in name])
def test_in_16_bits_it_is_at_least_as_close_to_fp32_as_the_plain_blocks(name):
    model, stored = small_model(), STORED[name]
    model.set_dtype(mx.bfloat16)
    exact = rewritten(model, stored)
    plain = rel_l2(rewritten(model, stored, dtype=mx.bfloat16), exact)
    assert 0 < rel_l2(rewritten(model, stored, FusedBlocks(), dtype=mx.bfloat16), exact) < 1.2 * plain


def test_the_model_is_the_plain_one_again_afterwards():
    model = small_model()
    before = forward(model)
    rewritten(model, STORED["affine4"], FusedBlocks())
    assert np.array_equal(forward(model), before)


@pytest.mark.parametrize("cached", [False, True], ids=["one pass", "with a prefix"])
@pytest.mark.parametrize("rule", [{"bits": 4}, {"bits": 8, "group_size": 32}, {"mode": "mxfp8"}], ids=str)
def test_the_one_stream_of_21(rule, cached):
    model = small_model_21.random_model(2)
    inputs = small_model_21.random_inputs(np.random.default_rng(2), lengths=(11, 6))
    linears = "transformer_blocks.*.**.{to_{q,k,v},to_out.0,gate_layer,proj,out}"
    stored = {"stored": QuantizedWeights([{"sites": linears, **rule}])}

    def output(**techniques):
        with applied(small_model_21.components(model), {**stored, **techniques}) as coverage:
            assert coverage["stored"].matched == 3 * 7
            return small_model_21.forward(model, inputs, cached=cached)

    assert rel_l2(output(fast=FusedBlocks()), output()) < 5e-6


def test_on_a_cpu_the_name_works_in_either_order():
    model = small_model()
    plain = rewritten(model, STORED["affine4"])
    for order in ((STORED["affine4"], Fast()), (Fast(), STORED["affine4"])):
        assert rel_l2(rewritten(model, *order), plain) < 3e-6


def test_weights_stored_after_the_blocks_are_fused_are_refused():
    with pytest.raises(InputError, match="observed or rewritten inside"):
        rewritten(small_model(), FusedBlocks(), STORED["affine4"])


class TestMatrices:
    def linears(self, *rules):
        model = small_model()
        attn = model.transformer_blocks[0].attn
        names = ("to_q", "to_k", "to_v")
        for name, rule in zip(names, rules, strict=True):
            if rule:
                attn[name] = QuantizedLinear.packed(attn[name], Quantization.checked("test", **rule))
        return [attn[name] for name in names]

    def test_linears_that_are_packed_alike_have_one_product(self):
        linears = self.linears(*[{"mode": "affine", "bits": 4}] * 3)
        before = [np.array(linear.weight) for linear in linears]
        joint = matrix(linears, lambda *_: 7)
        assert joint.stored == Packed(Quantization(64, 4, "affine"), 7)
        assert joint.arrays[0].shape[0] == 3 * 64
        for linear, weight in zip(linears, before, strict=True):
            np.testing.assert_array_equal(np.array(linear.weight), weight)

    @pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
    def test_both_products_are_the_same_function(self, mode):
        linears = self.linears(*[{"mode": mode}] * 3)
        stored, arrays = matrix(linears, lambda *_: NEVER)
        x = mx.array(np.random.default_rng(5).standard_normal((2, 9, 64)).astype(np.float32))
        packed = np.array(stored.product(x, arrays))
        assert rel_l2(np.array(Packed(stored.quantization, 0).product(x, arrays)), packed) < 1e-6
        alone = np.concatenate([np.array(linear(x) - linear.bias) for linear in linears], axis=-1)
        assert rel_l2(packed, alone) < 1e-6

    def test_linears_that_are_stored_differently_have_a_product_each(self):
        linears = self.linears({"mode": "affine", "bits": 8}, {"mode": "nvfp4", "tensor_scale": True}, None)
        stored, arrays = matrix(linears, lambda *_: 0)
        assert isinstance(stored, Beside)
        x = mx.array(np.random.default_rng(6).standard_normal((5, 64)).astype(np.float32))
        alone = np.concatenate([np.array(linear(x) - linear.bias) for linear in linears], axis=-1)
        assert rel_l2(np.array(stored.product(x, arrays)), alone) < 1e-6

    def test_alike_matrices_are_equal_so_that_blocks_share_a_compiled_function(self):
        first, second = (matrix(self.linears(*[{"mode": "nvfp4"}] * 3), lambda *_: 3).stored for _ in range(2))
        assert first == second
        assert hash(first) == hash(second)


class TestRoutes:
    arrays = tuple(mx.quantize(mx.random.normal((128, 128)), group_size=64, bits=4))
    quantization = Quantization(64, 4, "affine")

    @pytest.mark.parametrize(("slower_up_to", "chosen_rows"), [(0, ROWS[0]), (64, 256), (1024, 4096), (4096, NEVER)])
    def test_the_least_number_of_rows_from_which_decoding_is_not_slower(self, slower_up_to, chosen_rows):
        def seconds(product):
            name = getattr(product, "func", product).__name__
            rows = (product.args[0] if name == "packed_product" else product.__defaults__[0]).shape[0]
            return 2.0 if (name == "packed_product") == (rows > slower_up_to) else 1.0

        assert measured(self.quantization, self.arrays, seconds) == chosen_rows

    def test_a_time_is_measured(self):
        assert measured(self.quantization, self.arrays) in (*ROWS, NEVER)

    def test_on_a_gpu_the_choice_is_made_once_for_each_shape_and_recorded(self, monkeypatch):
        calls = []
        monkeypatch.setattr(routes, "on_cpu", lambda: False)
        monkeypatch.setattr(routes, "measured", lambda *of: calls.append(of) or 256)
        monkeypatch.setattr(technique, "on_cpu", lambda: False)
        fast = Fast()
        with applied(components(small_model()), {"stored": STORED["affine8 in groups of 32"], "fast": fast}):
            pass
        shapes = {
            f"{n} x {m}, 8 bits in groups of 32, affine": 256 for n, m in ((192, 64), (64, 64), (256, 64), (64, 256))
        }
        assert chosen({"stored": STORED["affine4"], "fast": fast}) == {"fast": shapes}
        assert len(calls) == 4

    def test_a_stated_number_is_not_measured(self, monkeypatch):
        monkeypatch.setattr(routes, "on_cpu", lambda: False)
        monkeypatch.setattr(routes, "measured", None)
        assert Routes(64)(self.quantization, self.arrays) == 64

    def test_what_has_no_packed_product_is_always_decoded(self, monkeypatch):
        monkeypatch.setattr(routes, "on_cpu", lambda: False)
        monkeypatch.setattr(routes, "measured", None)
        one_group = tuple(mx.quantize(mx.random.normal((128, 64)), group_size=64, bits=4))
        assert Routes()(self.quantization, one_group) == 0
        assert Routes(64)(Quantization(16, 4, "nvfp4", tensor_scale=True), self.arrays) == 0

    @pytest.mark.parametrize("rows", [-1, True])
    def test_a_bad_number_is_refused(self, rows):
        with pytest.raises(InputError, match="decode_from"):
            FusedBlocks(rows)


@pytest.mark.parametrize("mode", ["affine", "nvfp4"])
def test_the_decoded_weight_is_that_of_the_plain_layer(mode):
    layer = QuantizedLinear.packed(Linear(128, 32), Quantization.checked("test", mode, tensor_scale=mode == "nvfp4"))
    arrays = tuple(layer[name] for name in ("weight", "scales", "biases", "tensor_scale") if name in layer)
    quantization = Quantization.checked("test", mode, tensor_scale=mode == "nvfp4")
    np.testing.assert_array_equal(
        np.array(decoded(quantization, arrays, mx.float32)), np.array(decoded_weight(layer, mx.float32))
    )
