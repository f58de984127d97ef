"""A weight that a technique encodes is encoded once while it lives, within a share of the memory."""

import gc
import subprocess
import sys
from collections import Counter

import mlx.core as mx
import mlx.nn as nn
import pytest

from precision_lab.instrument.sites import walk
from precision_lab.model.coded import CodedLinear
from precision_lab.model.codings.gguf.small import Q4_0
from precision_lab.model.codings.gguf.super_blocks import Q4_K
from precision_lab.model.codings.int4 import Int4Inputs
from precision_lab.model.codings.int8 import Int8
from precision_lab.model.quantized import QuantizedLinear
from precision_lab.techniques import coded_weights, float8_weights, quantized_weights
from precision_lab.techniques.base import applied
from precision_lab.techniques.coded_weights import CodedWeights
from precision_lab.techniques.fast.block import packed
from precision_lab.techniques.float8_weights import Float8Weights
from precision_lab.techniques.parts.encoding import Encoder
from precision_lab.techniques.quantized_weights import QuantizedWeights


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(256, 8), nn.Linear(256, 8, bias=False)


@pytest.fixture
def encoder(monkeypatch):
    own = Encoder(1 << 20)
    for module in (coded_weights, float8_weights, quantized_weights):
        monkeypatch.setattr(module, "encoder", lambda: own)
    return own


@pytest.fixture
def count(monkeypatch):
    """How often each encoder is called."""
    counted = Counter()

    def counting(kind, name):
        real = getattr(kind, name).__func__
        monkeypatch.setattr(
            kind, name, classmethod(lambda cls, *a, **k: (counted.update([kind]), real(cls, *a, **k))[1])
        )

    counting(CodedLinear, "encoded")
    counting(QuantizedLinear, "packed")
    return counted


TECHNIQUES = [
    CodedWeights(Q4_K(), ["*"]),
    CodedWeights(Int8(), ["*"], Int4Inputs()),
    Float8Weights(["*"], "channel", quantize_input=True),
    QuantizedWeights([{"sites": "*"}]),
    QuantizedWeights([{"sites": "*", "mode": "nvfp4", "tensor_scale": True}]),
]


def results(model, technique, x):
    with applied({"transformer": model}, {"t": technique}):
        return [site.module for site in walk({"transformer": model})], [model.first(x), model.second(x)]


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_the_second_time_gives_the_same_bits_in_other_modules(encoder, count, technique):
    model, x = Two(), mx.random.normal((3, 256))
    plain = [model.first, model.second]
    modules, first = results(model, technique, x)
    assert [model.first, model.second] == plain
    others, second = results(model, technique, x)
    assert count.total() == 2
    assert all(map(mx.array_equal, first, second))
    assert all(one is not other for one, other in zip(modules, others, strict=True))
    assert [("bias" in module) for module in others] == [True, False]
    encoder._budget = 0
    fresh = Two()
    fresh.first, fresh.second = (nn.Linear(256, 8, bias="bias" in module) for module in plain)
    for mine, theirs in zip((fresh.first, fresh.second), plain, strict=True):
        mine.update({name: mx.array(array) for name, array in theirs.parameters().items()})
    assert all(map(mx.array_equal, first, results(fresh, technique, x)[1]))
    assert count.total() == 4


def test_another_format_weight_or_bias_is_not_the_one_that_was_kept(encoder, count):
    model, x = Two(), mx.random.normal((3, 256))
    _, q4_k = results(model, CodedWeights(Q4_K(), ["*"]), x)
    _, q4_0 = results(model, CodedWeights(Q4_0(), ["*"]), x)
    assert not mx.array_equal(q4_k[0], q4_0[0])
    assert count.total() == 4
    model.first.bias = model.first.bias + 1
    _, moved = results(model, CodedWeights(Q4_K(), ["*"]), x)
    assert mx.allclose(moved[0], q4_k[0] + 1, atol=1e-5)
    assert count.total() == 4
    model.first.weight = 2 * model.first.weight
    _, other = results(model, CodedWeights(Q4_K(), ["*"]), x)
    assert not mx.allclose(other[0], moved[0])
    assert count.total() == 5


def test_what_is_kept_goes_with_its_weight_and_stays_within_the_budget(encoder, count):
    model, x, technique = Two(), mx.random.normal((3, 256)), CodedWeights(Int8(), ["*"])
    results(model, technique, x)
    assert encoder.nbytes == 2 * (8 * 256 + 8 * 4)
    del model
    gc.collect()
    assert encoder.nbytes == 0
    encoder._budget = 3000  # one of the two
    model = Two()
    for _ in range(3):
        results(model, technique, x)
    assert encoder.nbytes == 8 * 256 + 8 * 4
    assert count.total() == 2 + 2 + 1 + 1


def test_a_technique_that_fails_leaves_nothing(encoder, monkeypatch):
    model = Two()
    monkeypatch.setattr(Int8, "encode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        results(model, CodedWeights(Int8(), ["*"]), mx.zeros((1, 256)))
    assert encoder.nbytes == 0
    assert type(model.first) is type(model.second) is nn.Linear


def test_a_format_that_can_change_is_encoded_each_time(encoder, count):
    model = Two()
    technique = CodedWeights(Q4_0(), ["*"])
    object.__setattr__(technique, "coding", type("Changing", (Q4_0,), {"__hash__": None})())
    for _ in range(2):
        results(model, technique, mx.zeros((1, 256)))
    assert (count.total(), encoder.nbytes) == (4, 0)


def test_a_gpu_keeps_no_second_copy_of_weights_that_fast_joins(encoder, monkeypatch):
    monkeypatch.setattr(quantized_weights, "on_cpu", lambda: False)
    model = Two()
    model.first, model.second = nn.Linear(512, 512), nn.Linear(512, 512)
    mx.eval(model.parameters())
    gc.collect()
    before = mx.get_active_memory()
    with applied({"transformer": model}, {"packed": QuantizedWeights([{"sites": "*"}])}):
        joined = [packed([model.first, model.second], name) for name in ("weight", "scales", "biases")]
        gc.collect()
        own = sum(array.nbytes for array in joined)
        assert mx.get_active_memory() - before < 1.5 * own  # twice, with a second copy
    assert encoder.nbytes == 0


def test_the_end_of_a_process_says_nothing():
    """Weights that die after this module's names are gone, as at the end of the interpreter."""
    code = (
        "import mlx.core as mx, mlx.nn as nn\n"
        "from precision_lab.techniques.parts import encoding\n"
        "linear = nn.Linear(64, 8)\n"
        "own = encoding.Encoder(1 << 20)\n"
        "own.encoded(linear, 'q', lambda: nn.QuantizedLinear.from_linear(linear))\n"
        "assert own.nbytes\n"
        "for name in [name for name in vars(encoding) if not name.startswith('__')]:\n"
        "    setattr(encoding, name, None)\n"
        "del linear\n"
        "assert own.nbytes == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
