"""The reader of folders with linears in NF4, against bitsandbytes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from precision_lab.errors import InputError
from precision_lab.model.stored.bitsandbytes import BitsandbytesFolder
from tests.model.poisoned import check_array
from tests.model.stored_files import fp32, micro_tensors, write_nf4

pytest.importorskip("bitsandbytes")
KEPT = ("img_in.weight", "proj_out.weight")
PATH = "transformer_blocks.0.attn.to_q"
STATE = f"{PATH}.weight.quant_state.bitsandbytes__nf4"


def opened(folder):
    config = json.loads((folder / "config.json").read_text())
    return BitsandbytesFolder.open(folder, config, sorted(folder.glob("*.safetensors")))


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
def test_linears_decode_as_in_bitsandbytes(tmp_path, nested, shards):
    tensors = {name: tensor for name, tensor in micro_tensors().items() if "blocks" not in name or "blocks.1." in name}
    values = write_nf4(tmp_path / "a", tensors, {}, nested=nested, kept=KEPT, shards=shards)
    files = opened(tmp_path / "a")
    read = files.read()
    assert len(files.files) == shards
    assert {f"{path}.weight" for path in files.linears} == values.keys()
    for path, linear in files.linears.items():
        arrays = {name: read.pop(f"{path}.{name}") for name in linear.arrays}
        assert linear.shape == files.shapes()[f"{path}.weight"]
        np.testing.assert_array_equal(fp32(linear.storage.decode(arrays)), values[f"{path}.weight"])
        assert linear.storage.encode(linear.storage.decode(arrays)).keys() == arrays.keys()
    assert read.keys() == tensors.keys() - values.keys()
    for name, array in read.items():
        np.testing.assert_array_equal(fp32(array), tensors[name].float().numpy())


def test_a_magnitude_that_is_not_finite_is_refused_when_it_is_read(tmp_path):
    weight = torch.tensor(np.random.default_rng(1).standard_normal((3, 512)).astype(np.float32))
    write_nf4(tmp_path / "a", {f"{PATH}.weight": weight}, {}, nested=False)
    check_array(tmp_path / "a", f"{PATH}.absmax", "F32", f"{PATH}.weight.absmax")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nf4") / "one"
    tensors = {name: tensor for name, tensor in micro_tensors().items() if name.startswith(PATH)}
    write_nf4(folder, tensors, {})
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def state_of(tensors, **changes):
    state = json.loads(bytes(tensors[STATE].tolist())) | changes
    return {STATE: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)}


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


WEIGHT = f"{PATH}.weight"
MISTAKES = [
    (without(f"{WEIGHT}.absmax"), f"tensor {WEIGHT} has no {WEIGHT}.absmax"),
    (without(f"{WEIGHT}.quant_map"), f"has no {WEIGHT}.quant_map"),
    (without(f"{WEIGHT}.nested_quant_map"), f"has no {WEIGHT}.nested_quant_map"),
    (without(f"{WEIGHT}.nested_absmax"), "has absmax of 64 U8, expected 64 F32"),
    (without(WEIGHT), f"tensor {WEIGHT} has no {WEIGHT}"),
    (without(STATE), "is U8, but belongs to no linear in NF4"),
    (lambda t: t | state_of(t, quant_type="fp4"), "without quant_type nf4"),
    (lambda t: t | state_of(t, shape=[64, 128]), "has 2048 U8, expected 4096 U8"),
    (lambda t: t | state_of(t, shape=[64]), "expected outputs and channels"),
    (lambda t: t | state_of(t, shape=[1 << 40, 1 << 40]), "has 2048 U8, expected"),
    (lambda t: t | state_of(t, blocksize=48), "has blocks of 48, expected one of 32, 64, .* divides its 64"),
    (lambda t: t | state_of(t, blocksize="64"), "has blocksize '64'"),
    (lambda t: t | state_of(t, nested_blocksize=128), "has nested_blocksize 128, expected 256"),
    (lambda t: t | state_of(t, nested_offset="x"), "has nested_offset 'x', expected a number"),
    (lambda t: t | {STATE: t[STATE][:-3].clone()}, "quant_state that is not JSON"),
    (lambda t: t | {STATE: torch.full((4,), 200, dtype=torch.uint8)}, "quant_state that is not JSON"),
    (lambda t: t | {f"{WEIGHT}.quant_map": t[f"{WEIGHT}.quant_map"] * 2}, "another table than NF4 in quant_map"),
    (lambda t: t | {f"{WEIGHT}.nested_absmax": torch.ones(2)}, "has nested_absmax of 2 F32, expected 1 F32"),
    (lambda t: t | {"x.weight.quant_state.bitsandbytes__fp4": t[STATE].clone()}, "is of kind 'fp4', expected nf4"),
    (lambda t: t | {"x": torch.ones(2, dtype=torch.float64)}, "tensor x is F64, expected F32, F16, BF16, U8"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_contradictions_are_refused_by_name(one, tmp_path, change, message):
    save_file(change(one), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=message.replace("(", r"\(")) as caught:
        BitsandbytesFolder.open(tmp_path, {}, [tmp_path / "a.safetensors"])
    assert str(tmp_path / "a.safetensors") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tensor_in_two_shards_is_refused(one, tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        save_file(one, file)
    with pytest.raises(InputError, match=r"b\.safetensors: tensor .* is also in another shard"):
        BitsandbytesFolder.open(tmp_path, {}, files)


def test_damaged_files_give_one_line(one, tmp_path):
    rng = np.random.default_rng(5)
    file: Path = tmp_path / "a.safetensors"
    save_file(one, file)
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    messages = []
    for trial in range(100):
        damaged = bytearray(content)
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(0, len(damaged))]
        else:
            for at in rng.integers(0, header if trial % 3 == 1 else len(damaged), 1 + trial % 4):
                damaged[at] = rng.integers(0, 256)
        file.write_bytes(damaged)
        try:
            BitsandbytesFolder.open(tmp_path, {}, [file])
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all(str(file) in message and "\n" not in message for message in messages)
