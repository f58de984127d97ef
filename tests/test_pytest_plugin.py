"""The pytest plugin, as a project that uses it sees it."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.nn as nn
import pandas as pd
import pytest

from precision_lab.analysis.gate.bands import learn
from precision_lab.analysis.stored_ranges import RangeFile, StoredRanges
from precision_lab.lab.capture import capture
from tests.spread import thinned

# tests run in this process forget what they import, and MLX cannot be imported twice
assert all((nn, capture))

pytest_plugins = ["pytester"]

MODELS = """
import mlx.core as mx
import mlx.nn as nn
import pytest


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = [nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(3)]
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def __call__(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(self.norm(x))
        return self.head(x)


@pytest.fixture
def net():
    mx.random.seed(0)
    net = Net()
    net.set_dtype(mx.bfloat16)
    return net


def images(dtype=mx.bfloat16):
    return mx.random.normal((2, 6, 6, 3), key=mx.random.key(1)).astype(dtype)
"""
TEST = """
from models import *

def test_net(activation_ranges, net):
    {change}
    activation_ranges.check(net, images())
"""
UPDATE = "--update-activation-ranges"
LAST = "blocks.1.layers.2"


@pytest.fixture
def project(pytester, monkeypatch):
    """A project whose test is `TEST` with a line that changes the model; warnings are errors, as in this one."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # other plugins take seconds to load
    pytester.makepyfile(models=MODELS)
    pytester.makeini("[pytest]\nfilterwarnings = error")

    def run(change="pass", *arguments, body=TEST):
        pytester.makepyfile(test_net=body.replace("{change}", change))
        return pytester.runpytest_inprocess("-p", "precision_lab.pytest_plugin", *arguments)

    return run


def sites_named(result):
    """The first column of the table in the failure."""
    lines = result.stdout.str().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("site "))
    return [line.split()[0] for line in lines[start + 1 : lines.index("", start)]]


def test_store_then_pass(project, pytester):
    stored = project("pass", UPDATE)
    stored.assert_outcomes(passed=1)
    stored.stdout.fnmatch_lines(["*activation_ranges/test_net.json: test_net, *, 16 sites, none were stored before"])
    text = (pytester.path / "activation_ranges" / "test_net.json").read_text()
    project().assert_outcomes(passed=1)
    again = project("pass", UPDATE)
    again.stdout.fnmatch_lines(["*test_net.json: test_net, *, 0 sites were outside the old ranges"])
    assert (pytester.path / "activation_ranges" / "test_net.json").read_text() == text
    assert [path.name for path in (pytester.path / "activation_ranges").iterdir()] == ["test_net.json"]
    # one band a line
    assert sum('"site": "blocks.0.layers.1"' in line and '"rms": [' in line for line in text.splitlines()) == 1


def test_without_stored_ranges_it_fails_and_says_what_to_run(project, pytester):
    result = project()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "No activation ranges of test_net are stored for * (activation_ranges/test_net.json).",
            f"*: pytest *::test_net {UPDATE}",
        ]
    )
    assert not (pytester.path / "activation_ranges").exists()


@pytest.mark.parametrize(
    ("change", "first", "metric"),
    thinned(
        [
            (f"net.{LAST.replace('.1.', '[1].').replace('.2', '[2]')}.weight *= 8", LAST, "log2_amax"),
            ("net.blocks[2].set_dtype(mx.float32)", "blocks.2.layers.0", "dtype"),
            ("net.stem.bias = net.stem.bias * mx.nan", "stem", "num_nonfinite"),
            ("net.norm.weight[0] = mx.inf", "norm", "num_nonfinite"),
            ("net.head.weight *= 0; net.head.bias *= 0", "head", "log2_amax"),
            ("net.blocks.pop()", "blocks.2.layers.0", "site gone"),
            ("net.blocks.append(nn.Linear(8, 8))", "blocks.3", "new site"),
            ("net.stem.weight *= 0.5; net.stem.bias *= 0.5", "stem", "log2_amax"),
        ],
        keep=4,
    ),
)
def test_a_regression_fails_and_the_guilty_site_is_named_first(project, change, first, metric):
    project("pass", UPDATE)
    result = project(change)
    result.assert_outcomes(failed=1)
    assert sites_named(result)[0].startswith(first)
    line = next(line for line in result.stdout.lines if line.startswith(first))
    assert metric in line
    result.stdout.fnmatch_lines([f"If this is meant: pytest *::test_net {UPDATE}"])
    result.stdout.no_fnmatch_line("*Error*")


def test_what_is_within_the_margin_passes(project):
    project("pass", UPDATE)
    project("net.stem.weight *= 1.1; net.stem.bias *= 1.1").assert_outcomes(passed=1)
    strict = TEST.replace("images())", "images(), margin=0.05)")
    project("net.stem.weight *= 1.1; net.stem.bias *= 1.1", body=strict).assert_outcomes(failed=1)


def test_an_update_accepts_a_change_and_says_how_many_sites_it_moved(project):
    project("pass", UPDATE)
    result = project("net.head.weight *= 8; net.head.bias *= 8", UPDATE)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*16 sites, 2 sites were outside the old ranges"])
    project("net.head.weight *= 8; net.head.bias *= 8").assert_outcomes(passed=1)


def test_ranges_of_another_backend_are_not_compared(project, pytester):
    project("pass", UPDATE)
    file = pytester.path / "activation_ranges" / "test_net.json"
    content = json.loads(file.read_text())
    ((here, entry),) = content["tests"]["test_net"].items()
    content["tests"]["test_net"] = {"another": entry}
    file.write_text(json.dumps(content))
    result = project()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"No activation ranges of test_net are stored for {here}, only for another*"])
    project("pass", UPDATE).assert_outcomes(passed=1)
    assert set(json.loads(file.read_text())["tests"]["test_net"]) == {"another", here}
    project().assert_outcomes(passed=1)


def test_another_device_or_version_is_named_in_a_failure(project, pytester):
    project("pass", UPDATE)
    file = pytester.path / "activation_ranges" / "test_net.json"
    file.write_text(re.sub(r'"mlx": "[^"]+"', '"mlx": "0.1"', file.read_text()))
    project().assert_outcomes(passed=1)
    project("net.head.weight *= 8").stdout.fnmatch_lines(["*stored on MLX 0.1, here *"])


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema_version": 0, "tests": {}}'])
def test_a_file_of_another_form_is_refused(project, pytester, text):
    (pytester.path / "activation_ranges").mkdir()
    (pytester.path / "activation_ranges" / "test_net.json").write_text(text)
    result = project()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*InputError: *test_net.json *tore*"])


SEVERAL = """
from models import *

class TestNet:
    @pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
    def test_dtypes(self, activation_ranges, net, dtype):
        net.set_dtype(dtype)
        out = activation_ranges.check(net, images(dtype), sites=["blocks.*", "head"], name="first")
        assert out.shape == (2, 4, 4, 4)
        with activation_ranges(net, name="compiled") as seen:
            seen.compile(lambda x: net(x))(images(dtype))
            net(2 * images(dtype))
        assert len(seen.of("head")) == 2

    def test_twice(self, activation_ranges, net):
        activation_ranges.check(net, images())
        activation_ranges.check(net, images())

    def test_raises(self, activation_ranges, net):
        with activation_ranges(net):
            net(images())
            raise KeyError("of the test")
"""


def test_classes_parameters_names_and_compiled_functions(project, pytester):
    result = project("pass", UPDATE, body=SEVERAL)
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(
        ["*is used twice in TestNet::test_twice: give each use a name=", "*KeyError: 'of the test'"]
    )
    content = json.loads((pytester.path / "activation_ranges" / "test_net.json").read_text())
    names = [
        f"TestNet::test_dtypes[mlx.core.{d}] [{n}]" for d in ("bfloat16", "float32") for n in ("compiled", "first")
    ]
    assert sorted(content["tests"]) == sorted([*names, "TestNet::test_twice"])
    project("pass", body=SEVERAL).assert_outcomes(passed=2, failed=2)


def test_a_file_is_shared_by_many_writers(tmp_path):
    file = RangeFile(tmp_path / "activation_ranges" / "test_net.json")
    bands = learn(
        pd.DataFrame([{"site": "a", "dtype": "float32", "amax": 2.0, "rms": 1.0, "num_nan": 0, "num_inf": 0}])
    )
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: file.store(f"test_{i}", "cpu", StoredRanges(bands, "device", "0.1")), range(40)))
    assert all(file.of(f"test_{i}")["cpu"].bands.equals(bands) for i in range(40))


@pytest.mark.slow
def test_workers_of_xdist_share_a_file(project, pytester):
    pytest.importorskip("xdist")
    body = """
from models import *

@pytest.mark.parametrize("scale", range(1, 9))
def test_net(activation_ranges, net, scale):
    activation_ranges.check(net, scale * images())
"""
    result = project("pass", UPDATE, "-p", "xdist", "-n", "2", body=body)
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines(["*: test_net[[]8[]], *16 sites*"])
    assert len(json.loads((pytester.path / "activation_ranges" / "test_net.json").read_text())["tests"]) == 8
    project("pass", body=body).assert_outcomes(passed=8)


def test_the_example_of_the_guide(project):
    page = (Path(__file__).parents[1] / "experiments" / "guide" / "any_model.md").read_text()
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "def test_" in block)
    body = "from models import *\n\ndef load():\n    return nn.Linear(8, 4)\n\n" + example
    project("", UPDATE, body=body).assert_outcomes(passed=1)


def test_unused_it_loads_nothing(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        """
        import sys

        def test_nothing():
            assert not {"mlx", "numpy", "pandas"} & set(sys.modules)
        """
    )
    result = pytester.runpytest_subprocess("-W", "error", "-p", "precision_lab.pytest_plugin")
    result.assert_outcomes(passed=1)


ATTENTION = """
from models import *


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.norm = nn.RMSNorm(32, eps=1e-6)
        self.rope = nn.RoPE(16)

    def __call__(self, x):
        x = self.norm(x)
        q, k, v = (f(x).reshape(1, -1, 2, 16).transpose(0, 2, 1, 3) for f in (self.q, self.k, self.v))
        q, k = self.rope(q), self.rope(k)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.25)
        return x + y.transpose(0, 2, 1, 3).reshape(x.shape)


class Straight(nn.Module):
    def __call__(self, x):
        return x


def test_net(activation_ranges):
    mx.random.seed(0)
    model = nn.Sequential(Attention(), Attention())
    {change}
    activation_ranges.check(model, mx.random.normal((1, 9, 32), key=mx.random.key(1)), OPTION)
"""
RANGES, SKETCHES = (ATTENTION.replace("OPTION", option) for option in ("margin=0.5", "tolerance=1e-4"))


@pytest.mark.parametrize(
    ("change", "first"),
    thinned(
        [
            ("model.layers[1].rope = Straight()", "layers.1.rope"),
            ("model.layers[0].norm.eps = 0.1", "layers.0.norm"),
            ("model.layers[1].q.weight *= 1.001", "layers.1.q"),
            ("model.layers[1].v.weight = mx.roll(model.layers[1].v.weight, 1, axis=0)", "layers.1.v"),
        ],
        keep=2,
    ),
)
def test_sketches_see_what_ranges_do_not(project, change, first):
    project("pass", UPDATE, body=SKETCHES)
    project(change, body=RANGES).assert_outcomes(passed=1)
    result = project(change, body=SKETCHES)
    result.assert_outcomes(failed=1)
    assert sites_named(result)[0] == first
    assert "within 0.0001" in next(line for line in result.stdout.lines if line.startswith(first))


def test_sketches_that_are_not_stored_fail_and_say_what_to_run(project, pytester):
    project("pass", UPDATE, body=RANGES)
    result = project("pass", body=SKETCHES)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*but no sketches, which tolerance= needs*", f"*: pytest *::test_net {UPDATE}"])
    project("pass", UPDATE, body=SKETCHES)
    project("pass", body=SKETCHES).assert_outcomes(passed=1)
    text = (pytester.path / "activation_ranges" / "test_net.json").read_text()
    assert sum('"site": "layers.0.norm"' in line and '"arrays": [' in line for line in text.splitlines()) == 1
    project("pass", body=RANGES).assert_outcomes(passed=1)


@pytest.mark.parametrize("value", ["-1", "float('nan')", "True", "'1e-4'"])
def test_a_tolerance_that_is_none(project, value):
    result = project("pass", UPDATE, body=ATTENTION.replace("OPTION", f"tolerance={value}"))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*tolerance is *, expected a number of at least 0*"])
