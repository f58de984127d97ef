"""Adapters against peft on the transformer of diffusers, live and fused, one and several."""

import mlx.core as mx
import numpy as np
import pytest

from precision_lab.techniques.base import applied
from precision_lab.techniques.lora import LoRA
from tests.model.adapters.peft_oracle import ATTENTION, FEED_FORWARD, WRITERS, Drawn, written
from tests.model.oracle import copy_of, ours, random_inputs, random_transformer, reference, relative_l2

FP32 = 1e-5


def outputs(transformer, technique, inputs, dtype=mx.float32):
    with applied({"transformer": transformer}, {"adapter": technique}):
        return ours(transformer, inputs, dtype)


@pytest.mark.parametrize("writer", WRITERS)
def test_an_adapter_equals_peft_under_every_naming(writer, tmp_path):
    seed = WRITERS.index(writer)
    rng = np.random.default_rng(seed)
    model = random_transformer(seed, layers=2)
    drawn = Drawn(seed, (*ATTENTION, *FEED_FORWARD), ranks={"img_in": 2}, alphas={"to_q": 1.5, "img_mod.1": 9.0})
    transformer, inputs = copy_of(model), random_inputs(rng, (4, 3), batch=2)
    plain = reference(model, inputs)
    drawn.add(model)
    expected = reference(model, inputs)
    path = written(drawn, drawn.tensors(model), writer, tmp_path)
    assert relative_l2(plain, expected) > 0.01
    assert relative_l2(outputs(transformer, LoRA(str(path)), inputs), expected) <= FP32
