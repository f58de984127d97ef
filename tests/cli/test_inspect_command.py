"""`models inspect=`: what it says of files is what is in them, and the line that it gives runs them."""

import json
import math
import shlex
import struct
import time

import pytest
import torch
from mlx.utils import tree_flatten
from safetensors.torch import load_file, save_file

from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.stored.base import StoredWeights
from precision_lab.model.stored.contents import Contents
from precision_lab.model.stored.reading import open_weights
from precision_lab.synthetic import PRESETS
from tests.malformed.harness import call, dry
from tests.model.stored_files import micro_tensors, write_gguf
from tests.model.test_comfyui_formats import quantised

__all__ = ["dry"]
TINY = ("image.height=32", "image.width=32", "sampler.steps=1", "prompts=[a star]", "seeds=[0]", "pinned.cases=null")


def inspected(path, folder) -> str:
    outcome = call(["models", f'inspect="{path}"'], folder)
    assert (outcome.code, outcome.err, outcome.raised, outcome.left) == (0, "", "", [])
    return " ".join(outcome.out.split())


def said_to_run(text):
    return shlex.split(text.partition("Run it: python -m precision_lab ")[2])


@pytest.mark.slow
def test_a_gguf_file_and_the_line_that_runs_it(tmp_path, dry):
    file = tmp_path / "it's, a {b}.gguf"
    tensors = micro_tensors()
    write_gguf(file, tensors, kept=("img_in.weight",))
    text = inspected(file, tmp_path)
    nbytes = sum(extent.nbytes for extent in open_weights(file).extents().values())
    matrices = sum(tensor.ndim == 2 for tensor in tensors.values()) - 1
    for said in (
        f"Q8_0 {matrices} ",
        "BF16 1 (",
        f"F32 {len(tensors) - matrices - 1} ",
        "QwenImagePipeline with 60 blocks, 64 wide",
        "the transformer alone",
        "Missing: nothing",
        f"{8 * nbytes / sum(tensor.numel() for tensor in tensors.values()):.4g} bits a weight",
    ):
        assert said in text
    assert call([*said_to_run(text), *TINY, "out=run"], tmp_path).code == 0


def test_a_file_that_lacks_tensors_and_has_others(tmp_path, dry):
    tensors = {f"diffusion_model.{name}": tensor for name, tensor in micro_tensors().items() if "blocks.7." not in name}
    del tensors["diffusion_model.transformer_blocks.9.attn.norm_q.weight"]
    file = tmp_path / "part.safetensors"
    save_file(tensors | {"vae.x": torch.ones(2), "diffusion_model.new": torch.ones(3)}, file, {"a": "b"})
    text = inspected(file, tmp_path)
    assert "Ignored: vae.x, new." in text
    assert "Missing: transformer_blocks.7, transformer_blocks.9.attn.norm_q.weight." in text
    assert "names begin with diffusion_model." in text
    assert "a=b" in text
    assert not said_to_run(text)
    assert call(["model=micro", f"model.path={file}", *TINY, "out=run"], tmp_path).code == 2


def test_formats_of_comfyui(tmp_path):
    """The scales count among the bits of a weight, and those of inputs are ignored."""
    path = "transformer_blocks.0.attn.to_q"
    tensors, _ = quantised(torch.ones(64, 64), "nvfp4", path)
    save_file(micro_tensors() | tensors | {f"{path}.input_scale": torch.ones(())}, tmp_path / "a.safetensors")
    text = inspected(tmp_path / "a.safetensors", tmp_path)
    assert "a single file of ComfyUI, nvfp4" in text
    assert f"Ignored: {path}.input_scale." in text
    assert "Missing: nothing" in text
    used = 64 * 32 + 128 * 4 + 4 + sum(t.nbytes for name, t in micro_tensors().items() if name != f"{path}.weight")
    assert Contents.of(open_weights(tmp_path / "a.safetensors")).used == used


def test_a_quantised_checkpoint(small_checkpoint, tmp_path):
    made = call(["models", "technique=[affine4]", f"from={small_checkpoint}", "to=made"], tmp_path)
    assert made.code == 0
    text = inspected(tmp_path / "made", tmp_path)
    count = sum(tensor.numel() for tensor in load_file(next((small_checkpoint / "transformer").glob("*.s*"))).values())
    contents = Contents.of(open_weights(tmp_path / "made" / "transformer"))
    assert sum(map(math.prod, contents.shapes.values())) == count
    assert f"{contents.bits:.4g} bits a weight" in text
    stored = load_file(tmp_path / "made" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert contents.bits == 8 * sum(tensor.nbytes for tensor in stored.values()) / count
    assert "a folder of mlx-lm, quantised" in text
    assert "It is a whole checkpoint" in text
    assert said_to_run(text) == ["model=qwen_image", f"model.path={tmp_path / 'made'}"]


def test_adapters(tmp_path):
    text = inspected("package://micro_lightning", tmp_path)
    for said in ("named as by diffusers", "rank 4 (836)", "model=micro: 836 of 836", "model=micro_21: 0 of 836"):
        assert said in text
    assert said_to_run(text)[0] == "model=micro"
    name = "transformer_blocks.0.attn.to_q"
    factors = {f"{name}.lora_down.weight": torch.ones(3, 64), f"{name}.lora_up.weight": torch.ones(64, 3)}
    factors |= {f"{name}.alpha": torch.tensor(6.0), "transformer_blocks.0.attn.to_k.lora_down.weight": torch.ones(3, 5)}
    factors |= {"transformer_blocks.0.attn.to_k.lora_up.weight": torch.ones(64, 3)}
    save_file(factors, tmp_path / "own.safetensors")
    text = inspected(tmp_path / "own.safetensors", tmp_path)
    for said in ("rank 3 (2)", "alpha 6 (1)", "model=micro: 1 of 2", "At most 1 of its 2 linears fit (model=micro)"):
        assert said in text


@pytest.mark.parametrize(
    ("key", "name", "start", "said"),
    [
        ("inspect", "model.ckpt", b"SQLite format 3\0", "Draw Things"),
        ("inspect", "model.ckpt", b"PK\3\4", "torch.save"),
        ("inspect", "model.bin", b"\x80\x02}", "a pickle"),
        ("inspect", "model.txt", b"hello", "no file of weights"),
        ("model.path", "model.ckpt", b"SQLite format 3\0", "Draw Things"),
        ("model.path", "none/model.gguf", b"", "no such file"),
    ],
)
def test_files_that_are_not_read_are_named(tmp_path, key, name, start, said):
    if start:
        (tmp_path / name).write_bytes(start + bytes(50))
    outcome = call(["models" if key == "inspect" else "model=micro", f"{key}={name}"], tmp_path)
    assert (outcome.code, outcome.left) == (2, [])
    assert said in outcome.err
    assert name in outcome.err


def test_twenty_gigabytes_take_no_time(tmp_path):
    """A file with holes for tensors: only its header can be read."""
    entries, at = {}, 0
    for name, array in tree_flatten(Transformer(PRESETS["full"].transformer).parameters()):
        size = math.prod(array.shape) * (1 if array.ndim == 2 else 2)
        dtype = "F8_E4M3" if array.ndim == 2 else "BF16"
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(entries).encode()
    with (tmp_path / "big.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + at)
    started = time.process_time()  # reading a file takes it too, and other processes do not
    text = inspected(tmp_path / "big.safetensors", tmp_path)
    assert time.process_time() - started < 2
    assert at > 20e9
    assert "60 blocks, 3072 wide" in text
    assert said_to_run(text)[2:] == ["model.base=Qwen/Qwen-Image"]


def test_every_reader_names_its_layout():
    readers = [StoredWeights]
    for reader in readers:
        readers += reader.__subclasses__()
    assert len(readers) > 4
    assert [reader for reader in readers[1:] if "layout" not in vars(reader)] == []
