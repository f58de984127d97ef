"""A technique at some of its sites, and the weights of another model at some sites."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.errors import InputError
from precision_lab.techniques.float32 import Float32
from precision_lab.techniques.other_weights import OtherWeights
from precision_lab.techniques.quantized_weights import QuantizedWeights
from precision_lab.techniques.restricted import Restricted
from tests.techniques.small_model import CONFIG, forward, rewritten, small_model

QUANTIZED = QuantizedWeights([{"sites": "transformer_blocks.*.attn.to_q", "bits": 4}])


def test_a_restricted_technique_is_the_technique_at_those_sites():
    model = small_model()
    one = rewritten(model, Restricted(QUANTIZED, ["transformer_blocks.1.attn.to_q", "proj_out"]))
    assert (one == rewritten(model, QuantizedWeights([{"sites": "transformer_blocks.1.attn.to_q", "bits": 4}]))).all()
    assert (one != forward(model)).any()
    assert (rewritten(model, Restricted(QUANTIZED, ["proj_out"])) == forward(model)).all()
    assert (rewritten(model, Restricted(QUANTIZED, ["**"])) == rewritten(model, QUANTIZED)).all()
    assert not Restricted(QUANTIZED, ["**"]).preserves_function
    assert Restricted(Float32(["**"]), ["**"]).composes


class Model:
    """A source of one small model."""

    def __init__(self, seed):
        from precision_lab.model.qwen_image.layout import layout

        self.layout, self.seed, self.loads = layout(CONFIG.num_layers), seed, 0

    def __repr__(self):
        return f"Model({self.seed})"

    def load(self, dtype):
        self.loads += 1
        return type("Subject", (), {"components": {"transformer": small_model(self.seed)}})


def test_other_weights_everywhere_are_the_other_model():
    model, other = small_model(1), Model(2)
    assert (rewritten(model, OtherWeights(other, ["**"])) == forward(small_model(2))).all()
    one = rewritten(model, OtherWeights(Model(2), ["transformer_blocks.1.attn.to_q"]))
    assert other.loads == 1  # an equal source, asked for again, is not loaded again
    expected = small_model(1)
    expected.transformer_blocks[1].attn.to_q = small_model(2).transformer_blocks[1].attn.to_q
    assert (one == forward(expected)).all()
    assert np.isfinite(one).all()
    assert (forward(model) == forward(small_model(1))).all()


def test_a_module_that_the_other_model_lacks_is_an_error():
    model = small_model(1)
    model.extra = type(model.proj_out)(4, 4)
    with pytest.raises(InputError, match="extra"):
        rewritten(model, OtherWeights(Model(2), ["extra"]))
    mx.clear_cache()
