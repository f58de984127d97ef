"""`models dtype= from= to=`: a file of another program becomes a checkpoint with the values that reading it gives."""

import json
import resource

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from safetensors.numpy import load_file

from precision_lab.model.coded import LINEARS, linear_weight
from precision_lab.record.origin import UNKNOWN
from precision_lab.synthetic.source import QwenImage
from tests.malformed.harness import call
from tests.malformed.weight_files import checkpoint_of_one_block, layouts

LAYOUTS = ("gguf", "comfy float", "comfy float8", "comfy metadata", "published", "nf4 nested", "mlx", "mflux")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint of one block."""
    return checkpoint_of_one_block(tmp_path_factory.mktemp("checkpoints") / "base")


def convert(path, base, folder, *more):
    return call(["models", f'from="{path}"', f"model.base={base}", "to=made", *more], folder)


def decoded(path, base):
    """The weights of the linears, and the other parameters, that reading gives, in fp32."""
    model = QwenImage(path=str(path), base=str(base)).opened.transformer(mx.float32)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, LINEARS)}
    values = {f"{name}.weight": linear_weight(module) for name, module in linears.items()}
    plain = nn.utils.tree_flatten(model.parameters())
    values |= {name: array for name, array in plain if name.rpartition(".")[0] not in linears or name.endswith(".bias")}
    return {name: np.array(array.astype(mx.float32)) for name, array in values.items()}


CASES = [(layout, dtype) for layout in LAYOUTS for dtype in ("float32", "bfloat16")]
QUICK = (("gguf", "bfloat16"),)


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_values_are_those_of_reading_rounded_once(base, tmp_path, layout, dtype):
    path = layouts(base)[layout]().write(tmp_path / "given")
    outcome = convert(path, base, tmp_path, f"dtype={dtype}")
    assert (outcome.code, outcome.err) == (0, "")
    stored = load_file(tmp_path / "made" / "transformer" / "diffusion_pytorch_model.safetensors")
    expected = decoded(path, base)
    assert stored.keys() == expected.keys()
    for name, array in stored.items():
        assert str(array.dtype) == dtype
        np.testing.assert_array_equal(array, expected[name].astype(array.dtype), err_msg=name)
    config = json.loads((tmp_path / "made" / "transformer" / "config.json").read_text())
    assert not config.keys() & {"quantization", "quantization_config"}
    made = QwenImage(path=str(tmp_path / "made"))
    assert made.checkpoint.weights == UNKNOWN
    assert {array.dtype for _, array in nn.utils.tree_flatten(made.opened.transformer(mx.float32).parameters())} == {
        getattr(mx, dtype)
    }


@pytest.mark.slow
def test_packed_after_decoding(base, tmp_path):
    path = layouts(base)["gguf"]().write(tmp_path / "given")
    assert convert(path, base, tmp_path, "dtype=bfloat16").code == 0
    plain = tmp_path / "made"
    plain.rename(tmp_path / "plain")
    assert convert(path, base, tmp_path, "dtype=bfloat16", "technique=[affine4]").code == 0
    twice = call(["models", f"from={tmp_path / 'plain'}", "to=twice", "technique=[affine4]"], tmp_path)
    assert twice.code == 0
    name = "transformer/diffusion_pytorch_model.safetensors"
    once = load_file(tmp_path / "made" / name)
    again = load_file(tmp_path / "twice" / name)
    assert once.keys() == again.keys()
    assert any(array.dtype == np.uint32 for array in once.values())
    for key, array in once.items():
        np.testing.assert_array_equal(array, again[key])


def test_refusals_leave_nothing(base, tmp_path):
    path = layouts(base)["gguf"]().write(tmp_path / "given")
    for arguments, said in (
        (["technique=[affine4]"], "is quantised already"),
        ([], "technique= is missing"),
        (["dtype=float8"], "dtype is 'float8'"),
        (["dtype=float16", f"to={path}"], "exists, expected a new or an empty folder"),
    ):
        outcome = convert(path, base, tmp_path, *arguments)
        assert (outcome.code, outcome.left, outcome.raised) == (2, [], ""), arguments
        assert said in outcome.err
    wide = layouts(base)["comfy float"]()
    wide.file.add("model.diffusion_model.img_in.bias", np.full(64, 1e5, np.float32))
    outcome = convert(wide.write(tmp_path / "wide"), base, tmp_path, "dtype=float16")
    assert (outcome.code, [name for name in outcome.left if "made" in name]) == (2, [])
    assert "img_in.bias" in outcome.err


@pytest.mark.parametrize(
    "most", [pytest.param(100, id="copying", marks=pytest.mark.slow), pytest.param(150_000, id="writing")]
)
def test_a_full_disk_leaves_nothing(base, tmp_path, most):
    """The largest size of a file stands in for the disk; a write beyond it fails in the same way."""
    path = layouts(base)["comfy float"]().write(tmp_path / "given")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        outcome = convert(path, base, tmp_path, "dtype=float32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (outcome.code, outcome.left, outcome.raised) == (2, [], "")
    assert "cannot be written" in outcome.err


@pytest.mark.slow
def test_diffusers_loads_it(base, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    path = layouts(base)["gguf"]().write(tmp_path / "given")
    assert convert(path, base, tmp_path, "dtype=float32").code == 0
    model = diffusers.QwenImageTransformer2DModel.from_pretrained(tmp_path / "made" / "transformer")
    theirs = {name: value.numpy() for name, value in model.state_dict().items()}
    for name, array in decoded(path, base).items():
        np.testing.assert_array_equal(theirs[name], array)
