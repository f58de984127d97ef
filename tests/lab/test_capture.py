"""Capture: any model is observed in place, without a change of its results."""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import precision_lab
from precision_lab.errors import InputError
from precision_lab.instrument.arrays import to_numpy
from precision_lab.instrument.scope import scope
from precision_lab.probes.exponents import TABLE as EXPONENTS
from precision_lab.probes.exponents import Exponents
from precision_lab.probes.ranges import RangeCatalogue
from precision_lab.record.layout import Layout

capture = precision_lab.capture


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def __call__(self, x):
        return x + self.mlp(self.norm(x))


class Tower(nn.Module):
    def __init__(self, width=16, depth=3):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.layers = [Block(width) for _ in range(depth)]

    def __call__(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return x


class Picture(nn.Module):
    """A convolutional net whose parts are in a dict of lists."""

    def __init__(self):
        super().__init__()
        self.stages = {"down": [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, stride=2)], "up": [nn.ConvTranspose2d(8, 3, 2)]}
        self.norm = nn.GroupNorm(2, 8)

    def __call__(self, x):
        for conv in self.stages["down"]:
            x = nn.silu(conv(x))
        return self.stages["up"][0](self.norm(x))


def tower(dtype=mx.float32, seed=0):
    mx.random.seed(seed)
    model = Tower()
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    return model


def bits(x):
    return to_numpy(x).tobytes()


INPUTS = mx.random.normal((5, 8), key=mx.random.key(1))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_outputs_and_gradients_are_the_same_bit_for_bit(dtype):
    model, x = tower(dtype), INPUTS.astype(dtype)
    step = nn.value_and_grad(model, lambda x: mx.square(model(x)).sum())
    plain = bits(model(x)), [bits(g) for _, g in tree_flatten(step(x))]
    with capture(model):
        observed = bits(model(x)), [bits(g) for _, g in tree_flatten(step(x))]
    assert observed == plain == (bits(model(x)), [bits(g) for _, g in tree_flatten(step(x))])


def test_the_table_of_a_tower():
    model = tower(mx.bfloat16)
    with capture(model) as seen:
        first = model(INPUTS.astype(mx.bfloat16))
        model(1000 * INPUTS.astype(mx.bfloat16))
    table = seen.table()
    assert list(table.columns[:8]) == ["order", "site", "port", "call", "block", "dtype", "shape", "numel"]
    assert list(table["order"]) == list(range(len(table)))
    calls = table[table["call"] == 0]
    assert list(calls["site"])[:6] == [
        "embed",
        "layers.0.norm",
        "layers.0.mlp.layers.0",
        "layers.0.mlp.layers.1",
        "layers.0.mlp.layers.2",
        "layers.0.mlp",
    ]
    assert list(calls["site"])[-1] == "."
    assert list(table["call"]) == [0] * len(calls) + [1] * len(calls)
    out = seen.of(".").iloc[0]
    assert (out["dtype"], out["shape"], out["numel"]) == ("bfloat16", "5x16", 80)
    assert out["amax"] == mx.abs(first).max().item()
    assert set(seen.of("layers.1.**")["block"]) == {1}
    assert seen.of("embed")["block"].isna().all()
    assert seen.of("layers.{0,-1}.mlp")["site"].unique().tolist() == ["layers.0.mlp", "layers.2.mlp"]
    assert seen.unseen == []
    with pytest.raises(InputError, match=r"Did you mean .*layers\.\*\.mlp"):
        seen.of("layers.1.mpl")


def test_a_model_of_one_module():
    with capture(nn.Linear(8, 4)) as seen:
        nn.Linear(8, 4)(INPUTS)
        assert seen.table().empty
        seen.sites[0].module(INPUTS)
    assert list(seen.table()["site"]) == ["."]


@pytest.mark.parametrize(
    ("path", "block"),
    [
        ("model.layers.3.mlp", 3),
        ("transformer.h.11", 11),
        ("encoder.blocks.2.attn", 2),
        ("stages.1.blocks.4", 1),
        ("up_blocks.1.conv", None),
        ("head.0", None),
    ],
)
def test_the_block_of_a_site(path, block):
    assert Layout.of(["model"]).block_of("model", path) == block


def test_a_convolutional_net():
    model = Picture()
    with capture(model, sites=["stages.**", "norm"]) as seen:
        model(mx.random.normal((2, 8, 8, 3)))
    assert list(seen.table()["site"]) == ["stages.down.0", "stages.down.1", "norm", "stages.up.0"]
    assert list(seen.table()["shape"]) == ["2x6x6x8", "2x2x2x8", "2x2x2x8", "2x3x3x3"]


class Halves(NamedTuple):
    first: mx.array
    second: mx.array


class Cache:
    """A cache that language models pass from call to call; it is neither an array nor a mapping of arrays."""

    def __init__(self):
        self.keys = []


class Odd(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = nn.Identity()
        self._make = output

    def __call__(self, x, cache=None, mask=None):
        self.output(x)
        return self._make(x, cache)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (lambda x, cache: (x, cache), ["out"]),
        (lambda x, cache: (x, None, 2 * x), ["out.0", "out.1"]),
        (lambda x, cache: {"a": x, "b": [x, (x, "text")]}, ["out.0", "out.1", "out.2"]),
        (lambda x, cache: Halves(x, x), ["out.0", "out.1"]),
        (lambda x, cache: None, []),
        (lambda x, cache: x.astype(mx.int32), ["out"]),
        (lambda x, cache: x > 0, ["out"]),
        (lambda x, cache: x[:0], ["out"]),
        (lambda x, cache: x.sum(), ["out"]),
        (lambda x, cache: mx.fft.fft(x), ["out"]),
    ],
    ids=["cache", "none inside", "nested", "named tuple", "none", "integer", "boolean", "empty", "scalar", "complex"],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_any_output(output, expected, compiled):
    model = Odd(output)
    with capture(model) as seen:
        forward = seen.compile(lambda x: model(x, mask="causal")) if compiled else lambda x: model(x, Cache(), "causal")
        forward(INPUTS)
    assert list(seen.table()["port"]) == ["out", *expected]
    assert seen.unseen == ([] if expected else ["."])


def test_inputs_by_position_and_by_name():
    model = Odd(lambda x, cache: x)
    with capture(model, ".", [RangeCatalogue((), ports=("in", "out"))]) as seen:
        model(INPUTS, mask=2 * INPUTS)
    assert list(seen.table()["port"]) == ["in.0", "in.1", "out"]
    assert seen.table()["amax"][1] == 2 * seen.table()["amax"][0]


def test_a_module_at_two_addresses_is_one_site():
    model = tower()
    model.again = model.layers[0]
    with capture(model) as seen:
        model.again(model(INPUTS))
    assert list(seen.of("layers.0")["call"]) == [0, 1]
    assert "again" not in set(seen.table()["site"])


def test_captures_nest():
    model = tower()
    plain = bits(model(INPUTS))
    with capture(model, "layers.*") as outer:
        model(INPUTS)
        with capture(model, "layers.1") as inner:
            assert bits(model(INPUTS)) == plain
    assert len(outer.table()) == 6
    assert list(inner.table()["site"]) == ["layers.1"]
    assert type(model.layers[1]) is Block


@pytest.mark.parametrize("compiled", [False, True])
def test_everything_is_as_it_was_after_an_exception(compiled):
    model = tower()
    before = [(name, id(module), type(module)) for name, module in model.named_modules()]

    def failing(x):
        model(x)
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"), capture(model) as seen:
        (step := seen.compile(failing) if compiled else failing)(INPUTS)
    with pytest.raises(InputError if compiled else KeyError):
        step(INPUTS)
    assert [(name, id(module), type(module)) for name, module in model.named_modules()] == before
    with capture(model) as seen:
        assert bits(model(INPUTS)) == bits(tower()(INPUTS))
    assert len(seen.of(".")) == 1


def test_steps_can_be_named():
    model = tower()
    with capture(model, ".") as seen:
        for step in range(3):
            with scope(step=step):
                model(INPUTS)
    assert list(seen.table()["step"]) == [0, 1, 2]
    assert "branch" not in seen.table()


def test_the_table_may_be_read_in_the_block():
    model = tower()
    with capture(model, "embed") as seen:
        assert seen.table().empty
        assert seen.unseen == ["embed"]
        model(INPUTS)
        assert len(seen.table()) == 1
        model(INPUTS)
    assert len(seen.table()) == 2


class Kurtosis:
    sites, ports = ("transformer_blocks.*",), ("out",)

    def measure(self, x):
        y = x.astype(mx.float32) - x.astype(mx.float32).mean()
        return {"kurtosis": (y**4).mean() / (y**2).mean() ** 2}


class Gain:
    sites, ports = ("layers.*.mlp.layers.0",), ("call",)

    def measure(self, inputs, output):
        return {"gain": mx.linalg.norm(output) / mx.linalg.norm(inputs[0])}


@pytest.mark.parametrize("compiled", [False, True])
def test_probes_of_ones_own(compiled):
    model = tower()
    with pytest.raises(InputError, match="transformer_blocks"), capture(model, probes=[Kurtosis()]):
        pass
    with capture(model, "layers.*.mlp.layers.0", [Kurtosis(), Gain(), RangeCatalogue(())]) as seen:
        (seen.compile(model) if compiled else model)(INPUTS)
    assert seen.table()[["kurtosis", "gain", "amax"]].notna().all().all()
    with capture(model, probes=[Gain(), RangeCatalogue(("embed",))]) as seen:
        model(INPUTS)
    assert seen.of("embed")["gain"].isna().all()
    assert len(seen.table()) == 4


def test_a_probe_with_a_table_to_itself():
    model = tower()
    with capture(model, "layers.*", [Exponents(()), RangeCatalogue(())]) as seen:
        model(INPUTS)
        model(INPUTS)
    rows = seen.table(EXPONENTS)
    assert len(seen.table()) == 6
    assert (rows.groupby(["site", "call"])["count"].sum() == 80).all()
    assert set(rows["call"]) == {0, 1}


def ulps(a, b):
    """The largest distance of two float32 arrays in units of the last place of their larger magnitude."""
    a, b = to_numpy(a), to_numpy(b)
    return np.max(np.abs(a.astype(np.float64) - b) / np.spacing(np.maximum(np.abs(a), np.abs(b))))


def test_a_compiled_function_gives_the_same_rows_and_outputs_within_an_ulp():
    model = tower()
    with capture(model) as eager:
        model(INPUTS)
        model(INPUTS[:2])
        model(INPUTS)
    with capture(model) as seen:
        forward = seen.compile(lambda x: model(x))
        outputs = [forward(x) for x in (INPUTS, INPUTS[:2], INPUTS)]
    plain = mx.compile(lambda x: model(x))
    for x, out in zip((INPUTS, INPUTS[:2], INPUTS), outputs, strict=True):
        assert ulps(out, plain(x)) <= 1
    a, b = eager.table(), seen.table()
    described = ["order", "site", "port", "call", "block", "dtype", "shape", "numel"]
    assert a[described].equals(b[described])
    np.testing.assert_allclose(a["amax"], b["amax"], rtol=1e-6)
    with pytest.raises(InputError, match="has ended"):
        forward(INPUTS)


def test_a_compiled_training_step_with_state():
    import mlx.optimizers as optim

    model = tower()
    optimizer = optim.SGD(learning_rate=1e-2)
    loss = nn.value_and_grad(model, lambda x: mx.square(model(x)).mean())

    def step(x):
        value, gradients = loss(x)
        optimizer.update(model, gradients)
        return value

    state = [model.state, optimizer.state]
    with capture(model, ".") as seen:
        compiled = seen.compile(step, inputs=state, outputs=state)
        values = [compiled(INPUTS).item() for _ in range(3)]
    assert values[0] > values[1] > values[2]
    assert seen.table()["rms"].is_monotonic_decreasing
    np.testing.assert_allclose(seen.table()["rms"] ** 2, values, rtol=1e-5)


def test_a_function_compiled_elsewhere_is_refused_and_not_silent():
    model = tower()
    fresh = mx.compile(lambda x: model(x))
    with pytest.raises(InputError, match=r"'layers\.0\.norm'.*seen\.compile"), capture(model, "layers.**"):
        fresh(INPUTS)
    used = mx.compile(lambda x: model(x))
    plain = bits(used(INPUTS))
    with pytest.raises(InputError, match=r"Nothing was captured.*seen\.compile"), capture(model):
        used(INPUTS)
    assert bits(used(INPUTS)) == plain
    with pytest.raises(InputError, match=r"mx\.vmap"), capture(model):
        mx.vmap(model)(INPUTS)


def test_a_trace_after_eager_calls_is_refused_too():
    model = tower()
    compiled = mx.compile(lambda x: model(x))
    with pytest.raises(InputError, match=r"seen\.compile"), capture(model, "layers.*"):
        compiled(model(INPUTS)[:, :8])
    assert type(model.layers[0]) is Block


class PartlyCompiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self._second = mx.compile(lambda x: self.second(x))

    def __call__(self, x):
        return self._second(self.first(x))


def test_a_model_that_compiles_a_part_of_itself():
    model = PartlyCompiled()
    with pytest.raises(InputError, match=r"'second'.*seen\.compile"), capture(model):
        model(INPUTS)
    model = PartlyCompiled()
    with capture(model) as seen:
        forward = seen.compile(model)
        forward(INPUTS)
        forward(INPUTS)
    assert list(seen.table()["site"]) == ["first", "second", "."] * 2


def test_gradient_checkpoints():
    model = tower()
    step = nn.value_and_grad(model, lambda x: mx.square(nn.utils.checkpoint(model)(x)).sum())
    plain = [bits(g) for _, g in tree_flatten(step(INPUTS))]
    with capture(model, ".") as seen:
        assert [bits(g) for _, g in tree_flatten(step(INPUTS))] == plain
    assert list(seen.table()["call"]) == [0, 1]  # recomputed for the gradient


def test_modules_that_only_a_compiled_function_calls_are_named():
    model = tower()
    layer = mx.compile(lambda x: model.layers[1](x))
    layer(model.embed(INPUTS))
    with capture(model, "layers.*") as seen:
        model.layers[0](layer(model.embed(INPUTS)))
    assert seen.unseen == ["layers.1", "layers.2"]


def test_with_compilation_disabled_a_function_compiled_elsewhere_is_seen():
    model = tower()
    used = mx.compile(lambda x: model(x))
    used(INPUTS)
    mx.disable_compile()
    try:
        with capture(model, "layers.*") as seen:
            used(INPUTS)
    finally:
        mx.enable_compile()
    assert len(seen.table()) == 3


def test_mistakes():
    with pytest.raises(InputError, match=r"tuple: expected an mlx\.nn\.Module"), capture((tower(), None)):
        pass
    with pytest.raises(InputError, match="matches nothing"), capture(tower(), "layer.*"):
        pass
    with pytest.raises(InputError, match="unknown component"), capture(tower(), "vae:layers.*"):
        pass
    with pytest.raises(InputError, match=r"table 'nothing'.*activations"), capture(tower()) as seen:
        seen.table("nothing")


def test_more_calls_than_one_group_holds():
    model = tower()
    with capture(model, ["embed", "layers.0"]) as seen:
        for _ in range(300):
            model(INPUTS)
    assert len(seen.table()) == 600


def test_large_arrays_do_not_wait_in_memory(monkeypatch):
    monkeypatch.setattr("precision_lab.lab.observing._GROUP_BYTES", 4 << 20)
    model = nn.Sequential(nn.Identity())
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    with capture(model, "layers.*") as seen:
        x = mx.zeros((1 << 15, 8))  # 1 MiB
        for _ in range(32):
            x = model(x + 1)
    assert list(seen.table()["amax"]) == [*range(1, 33)]
    assert mx.get_peak_memory() - before < 8 << 20


def test_the_examples_of_the_guide():
    page = (Path(__file__).parents[2] / "experiments" / "guide" / "any_model.md").read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[:2]:
        exec(block, names)
    assert list(names["first"]["site"]) == ["layers.0"]
    assert {"site", "port", "call", "block", "dtype", "shape", "numel", "amax", "rms", "num_nan"} <= set(names["rows"])
    assert list(names["seen"].of(".")["shape"]) == ["2x4"]


def test_importing_the_package_loads_nothing():
    code = "import precision_lab, sys; print([m for m in ('mlx', 'numpy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert callable(precision_lab.capture)
    with pytest.raises(AttributeError, match="captured"):
        _ = precision_lab.captured
