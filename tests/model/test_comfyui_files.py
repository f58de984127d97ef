"""Single safetensors files as ComfyUI reads them, written by torch, against the technique on the folder."""

import json

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components
from precision_lab.model.stored.comfyui import ComfyFile
from precision_lab.synthetic.source import QwenImage
from precision_lab.techniques.base import applied
from precision_lab.techniques.float8_weights import Float8Weights
from tests.model.test_lone_weights import velocity

SITES = ["transformer_blocks.*.{img,txt}_mlp.net.{0.proj,2}", "transformer_blocks.*.attn.to_{q,k,v}"]
LINEARS = ("_mlp.net.0.proj.weight", "_mlp.net.2.weight", "to_q.weight", "to_k.weight", "to_v.weight")


def stored(folder):
    return load_file(next((folder / "transformer").glob("*.safetensors")))


def scaled(folder, layout, prefix=""):
    """The tensors and metadata of a file with float8 linears and a scale a tensor, in one of three layouts."""
    tensors, layers = {}, {}
    for name, tensor in stored(folder).items():
        tensors[prefix + name] = tensor
        if name.endswith(LINEARS):
            path, wide = prefix + name.removesuffix(".weight"), tensor.float()
            scale = wide.abs().max() / 448
            tensors[prefix + name] = (wide / scale).to(torch.float8_e4m3fn)
            layers[path] = {"format": "float8_e4m3fn"}
            tensors[f"{path}.{'scale_weight' if layout == 'marker' else 'weight_scale'}"] = scale
            if layout == "comfy_quant":
                quant = json.dumps(layers[path]).encode()
                tensors[f"{path}.comfy_quant"] = torch.tensor(list(quant), dtype=torch.uint8)
    if layout == "marker":
        tensors[f"{prefix}scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
    listed = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    return tensors, listed if layout == "metadata" else None


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("layout", "prefix"), [("marker", "model.diffusion_model."), ("comfy_quant", ""), ("metadata", "diffusion_model.")]
)
def test_scaled_float8_is_the_technique_bit_for_bit(small_checkpoint, tmp_path, layout, prefix, dtype):
    """In bfloat16, in which the other weights are stored, too: the scales stay in fp32, resident and streamed."""
    tensors, metadata = scaled(small_checkpoint, layout, prefix)
    save_file(tensors, tmp_path / "fp8.safetensors", metadata)
    path, base = str(tmp_path / "fp8.safetensors"), str(small_checkpoint)
    folder = QwenImage(path=base)
    model = folder.load(dtype).pipeline.transformer
    with applied(Components({"transformer": model}, folder.layout), {"fp8": Float8Weights(sites=SITES)}):
        expected = velocity(folder, dtype)
    assert mx.array_equal(velocity(QwenImage(path=path, base=base), dtype), expected)
    assert mx.array_equal(velocity(QwenImage(path=path, base=base, stream=True), dtype), expected)


def test_plain_files_are_the_folder_and_other_components_are_ignored(small_checkpoint, tmp_path):
    tensors = {"model.diffusion_model." + name: tensor for name, tensor in stored(small_checkpoint).items()}
    save_file(tensors | {"vae.x": torch.ones(2)}, tmp_path / "plain.safetensors")
    source = QwenImage(path=str(tmp_path / "plain.safetensors"), base=str(small_checkpoint))
    assert mx.array_equal(velocity(source), velocity(QwenImage(path=str(small_checkpoint))))
    assert source.checkpoint.ignored["transformer"] == ["vae.x"]


def test_a_file_all_in_float8(small_checkpoint, tmp_path):
    tensors = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in stored(small_checkpoint).items()}
    save_file(tensors, tmp_path / "all.safetensors")
    read = ComfyFile.open(tmp_path / "all.safetensors").read()
    name = "transformer_blocks.0.attn.norm_q.weight"
    assert np.array_equal(np.array(read[name].astype(mx.float32)), tensors[name].float().numpy())


def test_200_mutated_files_are_read_or_refused_in_one_line(small_checkpoint, tmp_path):
    tensors, _ = scaled(small_checkpoint, "comfy_quant")
    file = tmp_path / "mutated.safetensors"
    save_file(tensors, file)
    whole, rng = file.read_bytes(), np.random.default_rng(7)
    header = 8 + int.from_bytes(whole[:8], "little")
    refusals = []
    for case in range(200):
        content = bytearray(whole)
        if case % 4 == 0:
            content = content[: rng.integers(len(whole))]
        else:
            for at in rng.integers(8 if case % 4 < 3 else 0, header, rng.integers(1, 9)):
                content[at] = rng.integers(32, 127)
        file.write_bytes(content)
        try:
            source = QwenImage(path=str(file), base=str(small_checkpoint))
            source.opened.transformer(mx.float32)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 150
    assert all(str(file) in message and len(message.splitlines()) == 1 for message in refusals)
