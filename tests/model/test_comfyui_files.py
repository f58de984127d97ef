"""Single safetensors files as ComfyUI reads them, written by torch, against the technique on the folder."""

import json
from itertools import product

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components
from precision_lab.model.coded import CodedLinear
from precision_lab.model.codings.float8 import Float8Inputs
from precision_lab.model.codings.microscaled import Nvfp4Inputs
from precision_lab.model.quantized import QuantizedLinear
from precision_lab.model.stored.comfyui import ComfyFile
from precision_lab.synthetic.source import QwenImage
from precision_lab.techniques.base import applied
from precision_lab.techniques.float8_weights import Float8Weights
from tests.model.codings.kitchen import eager
from tests.model.test_comfyui_formats import quantised
from tests.model.test_lone_weights import velocity
from tests.spread import slow, thinned

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


@pytest.mark.parametrize(
    ("layout", "prefix", "dtype"),
    [
        ("marker", "model.diffusion_model.", mx.bfloat16),
        ("comfy_quant", "", mx.float32),
        ("metadata", "diffusion_model.", mx.bfloat16),
        slow(("marker", "model.diffusion_model.", mx.float32)),
        slow(("comfy_quant", "", mx.bfloat16)),
        slow(("metadata", "diffusion_model.", mx.float32)),
    ],
    ids=str,
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


@pytest.mark.parametrize(
    ("name", "inputs"),
    thinned(product(["nvfp4", "mxfp8", "int8 of a row", "convrot 16", "int4 16"], [None, "stored"]), 4),
)
def test_formats_stream_with_the_same_bits(small_checkpoint, tmp_path, name, inputs):
    """Also with rounded inputs, for which a packed weight becomes a coded one."""
    tensors = stored(small_checkpoint)
    for key in [key for key in tensors if key.endswith(LINEARS)]:
        tensors |= quantised(tensors.pop(key).float(), name, key.removesuffix(".weight"))[0]
    save_file(tensors, tmp_path / "a.safetensors")
    given = {"path": str(tmp_path / "a.safetensors"), "base": str(small_checkpoint), "inputs": inputs}
    source = QwenImage(**given)
    resident = velocity(source, mx.bfloat16)
    linear = source.load(mx.bfloat16).pipeline.transformer.transformer_blocks[0].attn.to_q
    assert isinstance(linear, QuantizedLinear if inputs is None and name in ("nvfp4", "mxfp8") else CodedLinear)
    assert mx.isfinite(resident).all()
    assert mx.array_equal(velocity(QwenImage(**given, stream=True), mx.bfloat16), resident)


def test_scales_of_inputs(small_checkpoint, tmp_path):
    """Float8 without one has 1, and under a marker of two elements inputs are left alone."""
    tensors, _ = scaled(small_checkpoint, "marker")
    path = next(name for name in tensors if name.endswith("to_q.weight")).removesuffix(".weight")
    tensors[f"{path}.scale_input"] = torch.tensor(0.25)
    save_file(tensors, tmp_path / "a.safetensors")
    tensors["scaled_fp8"] = torch.empty(2, dtype=torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "wide.safetensors")
    files = ComfyFile.open(tmp_path / "a.safetensors")
    assert files.input_scales == (f"{path}.scale_input",)
    assert {linear.inputs.scale for name, linear in files.linears.items() if name != path} == {1.0}
    assert files.linears[path].inputs == Float8Inputs(0.25)
    assert files.without_inputs().ignored == files.input_scales
    wide = ComfyFile.open(tmp_path / "wide.safetensors")
    assert {linear.inputs for linear in wide.linears.values()} == {None}


@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_stated_scales_round_inputs_as_in_comfy_kitchen(scale):
    """In nvfp4 the kernel rounds the product of the two scales and then its value, we the value alone."""
    kernels, rng = eager("quantization"), np.random.default_rng(5)
    x = (rng.standard_normal((40, 96)) * np.exp(rng.normal(0, 2, (40, 96)))).astype(np.float32)
    x[3], x[5, :16] = 0, 0
    given = torch.tensor(scale)
    codes, scales = kernels.quantize_nvfp4(torch.tensor(x), given)
    expected = kernels.dequantize_nvfp4(codes, given, scales, torch.float32).numpy()
    np.testing.assert_allclose(np.array(Nvfp4Inputs(stated=scale).rounded(mx.array(x))), expected, rtol=2**-23)
    expected = kernels.quantize_per_tensor_fp8(torch.tensor(x), given).float().numpy() * np.float32(scale)
    ours = np.array(Float8Inputs(scale).rounded(mx.array(x)))
    assert np.mean(ours != expected) < 0.01  # it multiplies by the reciprocal, which moves some ties
    np.testing.assert_allclose(ours, expected, rtol=2**-3, atol=scale * 2**-9)


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


@pytest.mark.parametrize("count", [40, slow(200)])
def test_mutated_files_are_read_or_refused_in_one_line(small_checkpoint, tmp_path, count):
    tensors, _ = scaled(small_checkpoint, "comfy_quant")
    for name, linear in (("nvfp4", "to_q"), ("mxfp8", "to_k"), ("convrot 16", "to_v")):
        path = f"transformer_blocks.0.attn.{linear}"
        weight = stored(small_checkpoint)[f"{path}.weight"].float()
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(path)}
        tensors |= quantised(weight, name, path)[0]
    file = tmp_path / "mutated.safetensors"
    save_file(tensors, file)
    whole, rng = file.read_bytes(), np.random.default_rng(7)
    header = 8 + int.from_bytes(whole[:8], "little")
    refusals = []
    for case in range(count):
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
    assert len(refusals) > 0.75 * count
    assert all(str(file) in message and len(message.splitlines()) == 1 for message in refusals)
