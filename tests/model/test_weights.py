"""Strict loading of safetensors: fitting files load unchanged, others raise one clear error."""

import json
import struct

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from precision_lab.errors import InputError
from precision_lab.model import casting, weights

WIDTH = 6
FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Model(nn.Module):
    """Two layers; the second is in a list, like a block."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(WIDTH, 2 * WIDTH)
        self.blocks = [nn.Linear(2 * WIDTH, WIDTH, bias=False), nn.RMSNorm(WIDTH)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in (self.first, *self.blocks):
            x = layer(x)
        return x


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(parameter.shape, dtype=np.float32).astype(ml_dtypes.bfloat16)
        for name, parameter in tree_flatten(Model().parameters())
    }


def flat(model) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def write_sharded(folder, tensors) -> None:
    """Writes one file for each tensor, and the index."""
    weight_map = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        weight_map[name] = f"model-{i}.safetensors"
        save_file({name: tensor}, folder / weight_map[name])
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def assert_rejected(folder, *named, sanitize=None) -> None:
    """The error has one or two lines that name the fault, and the model is unchanged."""
    model = Model()
    before = {name: np.array(p) for name, p in flat(model).items()}
    with pytest.raises(InputError) as caught:
        weights.load(model, folder, sanitize)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    assert all(text in message for text in named), message
    for name, parameter in flat(model).items():
        np.testing.assert_array_equal(parameter, before[name])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda d: np.dtype(d).name)
def test_single_and_sharded_files_load_unchanged(tmp_path, tensors, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    for name, write in (
        ("single", lambda d: save_file(tensors, d / FILE)),
        ("sharded", lambda d: write_sharded(d, tensors)),
    ):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        model = Model()
        assert weights.load(model, tmp_path / name) == []
        for key, loaded in flat(model).items():
            assert str(loaded.dtype).endswith(np.dtype(dtype).name)
            np.testing.assert_array_equal(np.array(loaded.astype(mx.float32)), tensors[key].astype(np.float32))


def test_extents_locate_the_tensors(tmp_path, tensors):
    tensors["first.bias"] = tensors["first.bias"].astype(np.float32)
    for name, write in (
        ("single", lambda d: save_file(tensors, d / FILE, metadata={"format": "pt"})),
        ("sharded", lambda d: write_sharded(d, tensors)),
    ):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
        extents = weights.extents(tmp_path / name)
        assert extents.keys() == tensors.keys()
        for key, (file, offset, nbytes) in extents.items():
            assert file.read_bytes()[offset : offset + nbytes] == tensors[key].tobytes()


def test_tensors_may_differ_in_dtype(tmp_path, tensors):
    tensors["first.bias"] = tensors["first.bias"].astype(np.float32)
    save_file(tensors, tmp_path / FILE, metadata={"format": "pt"})
    model = Model()
    weights.load(model, tmp_path)
    assert model.first.bias.dtype == mx.float32
    assert model.first.weight.dtype == mx.bfloat16


def test_sanitize_renames_and_leaves_out(tmp_path, tensors):
    save_file({f"model.{name}": t for name, t in tensors.items()} | {"head": tensors["first.bias"]}, tmp_path / FILE)

    def sanitize(stored):
        return {n.removeprefix("model."): t for n, t in stored.items() if n != "head"}, ["head"]

    assert weights.load(Model(), tmp_path, sanitize) == ["head"]
    assert_rejected(tmp_path, "blocks.0.weight is missing", "4 missing, 5 unknown")


def test_missing_tensor_is_rejected(tmp_path, tensors):
    for name in tensors:
        save_file({n: t for n, t in tensors.items() if n != name}, tmp_path / FILE)
        assert_rejected(tmp_path, str(tmp_path), name, "missing", "1 missing, 0 unknown")


def test_extra_tensor_is_rejected(tmp_path, tensors):
    save_file(tensors | {"blocks.2.weight": tensors["blocks.1.weight"]}, tmp_path / FILE)
    assert_rejected(tmp_path, str(tmp_path), "unknown tensor blocks.2.weight", "Did you mean blocks.")


def test_renamed_tensor_is_rejected_with_its_likely_name(tmp_path, tensors):
    tensors["first.wieght"] = tensors.pop("first.weight")
    save_file(tensors, tmp_path / FILE)
    assert_rejected(tmp_path, "first.weight is missing", "Did you mean first.wieght")


@pytest.mark.parametrize("shape", [(2 * WIDTH, WIDTH - 1), (WIDTH, 2 * WIDTH), (2 * WIDTH * WIDTH,), (12, 6, 1), ()])
def test_misshapen_tensor_is_rejected(tmp_path, tensors, shape):
    save_file(tensors | {"first.weight": np.zeros(shape, np.float32)}, tmp_path / FILE)
    assert_rejected(tmp_path, "first.weight", str(shape), str((2 * WIDTH, WIDTH)))


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool", "float64", "float8_e4m3fn", "float8_e5m2"])
def test_other_types_are_rejected(tmp_path, tensors, dtype):
    """Such as quantised releases, whose values are meaningless without their scales."""
    numpy_dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    stored = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "bool": "BOOL", "float64": "F64"}
    stored |= {"int8": "I8", "int64": "I64", "uint8": "U8"}
    size = tensors["first.weight"].size * numpy_dtype.itemsize
    write_raw(tmp_path / FILE, {"first.weight": entry(stored[dtype], (2 * WIDTH, WIDTH), 0, size)}, bytes(size))
    assert_rejected(tmp_path, FILE, "first.weight", stored[dtype], "expected F32, F16 or BF16")


def entry(dtype, shape, start, end) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def write_raw(file, header, data=b"") -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_truncated_file_is_rejected(tmp_path, tensors):
    save_file(tensors, tmp_path / FILE)
    whole = (tmp_path / FILE).read_bytes()
    rng = np.random.default_rng(1)
    for length in (0, 1, 7, 8, 9, 100, len(whole) - 1, *rng.integers(0, len(whole), 10)):
        (tmp_path / FILE).write_bytes(whole[:length])
        assert_rejected(tmp_path, FILE)
    (tmp_path / FILE).write_bytes(whole)
    weights.load(Model(), tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        bytes(5000),
        np.random.default_rng(2).bytes(5000),
        b"\x80\x02}q\x00." * 100,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 4967215360\n",
        b"<!doctype html><html>" + b" " * 500,
        b"\xff" * 64,
    ],
    ids=["zeros", "random", "pickle", "lfs pointer", "html", "ones"],
)
def test_garbage_is_rejected(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    assert_rejected(tmp_path, FILE, "not a safetensors file")


@pytest.mark.parametrize(
    "header",
    [
        "[1, 2]",
        '"text"',
        "{",
        "{}",
        {"first.weight": None},
        {"first.weight": [1]},
        {"first.weight": {"dtype": "F32", "shape": [1]}},
        {"first.weight": {"dtype": "F32", "data_offsets": [0, 4]}},
        {"first.weight": {"shape": [1], "data_offsets": [0, 4]}},
        {"first.weight": entry("F32", [2], 0, 4)},
        {"first.weight": entry("F32", [-1], 0, 4)},
        {"first.weight": entry("F32", ["a"], 0, 4)},
        {"first.weight": entry("F32", [1], "0", "4")},
        {"first.weight": entry("F32", [1], 4, 0)},
        {"first.weight": entry("F32", [1], -4, 0)},
        {"first.weight": entry(["F32"], [1], 0, 4)},
        {"first.weight": entry("F32", [1 << 40], 0, 1 << 42)},
    ],
    ids=str,
)
def test_malformed_headers_are_rejected(tmp_path, header):
    write_raw(tmp_path / FILE, header, bytes(4))
    assert_rejected(tmp_path)


def test_index_that_names_an_absent_shard_is_rejected(tmp_path, tensors):
    write_sharded(tmp_path, tensors)
    (tmp_path / "model-1.safetensors").unlink()
    assert_rejected(tmp_path, INDEX, "model-1.safetensors", "1 absent")


@pytest.mark.parametrize(
    "content",
    ["{}", '{"metadata": {"total_size": 1}}', '{"weight_map": {}}', '{"weight_map": ["model.safetensors"]}', "[]"],
)
def test_index_without_weight_map_is_rejected(tmp_path, tensors, content):
    save_file(tensors, tmp_path / FILE)
    (tmp_path / INDEX).write_text(content)
    assert_rejected(tmp_path, INDEX)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_index_that_is_not_json_is_rejected(tmp_path, content):
    (tmp_path / INDEX).write_bytes(content)
    assert_rejected(tmp_path, INDEX, "not JSON")


def test_tensor_in_two_shards_is_rejected(tmp_path, tensors):
    write_sharded(tmp_path, tensors)
    name, tensor = next(iter(tensors.items()))
    save_file({name: tensor, "other": tensor}, tmp_path / "model-1.safetensors")
    assert_rejected(tmp_path, name, "another shard")


def test_shards_without_an_index_load_if_their_names_do_not_overlap(tmp_path, tensors):
    names = sorted(tensors)
    for file, part in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    model = Model()
    weights.load(model, tmp_path)
    for name, parameter in flat(model).items():
        np.testing.assert_array_equal(np.array(parameter.astype(mx.float32)), tensors[name].astype(np.float32))
    save_file(tensors, tmp_path / "c.safetensors")
    assert_rejected(tmp_path, str(tmp_path / "c.safetensors"), names[0], "also in another shard")


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "x.bin"])
def test_index_that_names_a_file_outside_its_folder_is_rejected(tmp_path, tensors, name):
    save_file(tensors, tmp_path / FILE)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))
    assert_rejected(tmp_path, INDEX, name, "of its folder")


def two(first, second):
    """A header of two tensors, and its data."""
    return {"first.weight": first, "first.bias": second}


@pytest.mark.parametrize(
    ("header", "named"),
    [
        (two(entry("F32", [2], 0, 8), entry("F32", [2], 4, 12)), "overlap"),
        (two(entry("F32", [4], 0, 16), entry("F32", [1], 4, 8)), "overlap"),
        (two(entry("F32", [2], 0, 8), entry("F16", [2], 8, 16)), "expected 4"),
        (two(entry("F32", [2], 0, 8), entry("F32", [0, 1 << 60], 8, 12)), "expected 0"),
        (two(entry("F32", [2], 0, 8), entry("F32", [1] * 9, 8, 12)), "malformed"),
        (two(entry("F32", [2], 0, 8), entry("F32", [True], 8, 12)), "malformed"),
    ],
    ids=str,
)
def test_headers_that_contradict_themselves_are_rejected(tmp_path, header, named):
    write_raw(tmp_path / FILE, header, bytes(64))
    assert_rejected(tmp_path, FILE, "first.", named)


def prefixed(tensors, prefix):
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "transformer."])
def test_a_common_prefix_is_named(tmp_path, tensors, prefix):
    save_file(prefixed(tensors, prefix), tmp_path / FILE)
    assert_rejected(tmp_path, str(tmp_path), f"prefix {prefix!r}", "save them without it")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("__index_timestep_zero__", "Qwen-Image-Edit-2511"),
        ("model.diffusion_model.__index_timestep_zero__", "Qwen-Image-Edit-2511"),
        ("scaled_fp8", "float8"),
        ("__some_day__", "only its writer knows"),
        ("first.weight.absmax", "bitsandbytes"),
        ("first.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("first.scale_weight", "float8"),
        ("first.qweight", "Nunchaku"),
        ("first.weight._data", "quanto"),
    ],
)
def test_tensors_of_other_programs_are_named_before_dtypes(tmp_path, tensors, name, kind):
    save_file(tensors | {name: np.zeros(1, np.int8)}, tmp_path / FILE)
    assert_rejected(tmp_path, FILE, name, kind)


@pytest.mark.parametrize("method", ["bitsandbytes", "gguf", "torchao", "quanto", "finegrained_fp8"])
@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_another_quantisation_method_is_named_before_dtypes(tmp_path, tensors, method, key):
    save_file({name: np.zeros(3, np.int8) for name in tensors}, tmp_path / FILE)
    (tmp_path / "config.json").write_text(json.dumps({key: {"quant_method": method, "load_in_4bit": True}}))
    assert_rejected(tmp_path, str(tmp_path / "config.json"), f"{key}.quant_method is '{method}'", "unquantised")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("diffusion_pytorch_model.bin", b"PK\x03\x04", "pickle"),
        ("model.ckpt", b"\x80\x02}", "pickle"),
        ("model.pt", b"", "pickle"),
        ("qwen-image-Q4_K_M.gguf", b"GGUF\x03", "GGUF"),
    ],
)
def test_weights_of_another_format_are_named(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    assert_rejected(tmp_path, str(tmp_path), "no *.safetensors", name, kind)


def test_folder_without_weights_is_rejected(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.safetensors").mkdir()
    assert_rejected(tmp_path, str(tmp_path), "no *.safetensors")


def test_absent_folder_is_rejected(tmp_path):
    assert_rejected(tmp_path / "transformer", "no folder", str(tmp_path / "transformer"))


def test_unreadable_json_is_rejected(tmp_path):
    with pytest.raises(InputError, match=r"absent\.json cannot be read: No such file"):
        weights.read_json(tmp_path / "absent.json")
    with pytest.raises(InputError, match="Is a directory"):
        weights.read_json(tmp_path)


def inputs(dtype) -> mx.array:
    return mx.array(np.random.default_rng(3).standard_normal((5, WIDTH), dtype=np.float32)).astype(dtype)


def test_narrow_weights_stay_narrow_for_fp32_and_lose_nothing(tmp_path, tensors):
    save_file(tensors, tmp_path / FILE)
    narrow, wide = Model(), Model()
    for model in (narrow, wide):
        weights.load(model, tmp_path)
    casting.cast(narrow, None, mx.float32)
    wide.set_dtype(mx.float32)
    assert {p.dtype for p in flat(narrow).values()} == {mx.bfloat16}
    x = inputs(mx.float32)
    assert narrow(x).dtype == mx.float32
    np.testing.assert_array_equal(narrow(x), wide(x))


@pytest.mark.parametrize("stored", [None, mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("compute", [mx.bfloat16, mx.float16], ids=str)
def test_16_bit_computation_has_weights_of_its_dtype(tmp_path, tensors, stored, compute):
    """Weights are first rounded to the storage dtype, so half-precision weights keep its range and step."""
    tensors = {name: tensor.astype(np.float32) * np.float32(1 + 2**-9) for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / FILE)
    model = Model()
    weights.load(model, tmp_path)
    casting.cast(model, stored, compute)
    assert model(inputs(compute)).dtype == compute
    for name, parameter in flat(model).items():
        expected = mx.array(tensors[name])
        expected = (expected if stored is None else expected.astype(stored)).astype(compute)
        assert parameter.dtype == compute
        assert mx.array_equal(parameter, expected)


def test_storage_in_float16_rounds_and_overflows(tmp_path, tensors):
    tensors["first.bias"] = np.float32([1e5, -1e5, 1 + 2**-12, 1e-9, *np.ones(2 * WIDTH - 4)])
    save_file(tensors, tmp_path / FILE)
    model = Model()
    weights.load(model, tmp_path)
    casting.cast(model, mx.float16, mx.float32)
    assert {p.dtype for p in flat(model).values()} == {mx.float16}
    np.testing.assert_array_equal(model.first.bias[:4], np.float16([np.inf, -np.inf, 1, 0]))
