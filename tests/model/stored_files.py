"""Files of the micro transformer as other programs write them."""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from precision_lab.cli.paths import checkpoints_dir

MICRO = checkpoints_dir() / "micro"


def micro_tensors(part="transformer"):
    """The tensors of the embedded checkpoint, in their dtype."""
    return {
        name: tensor
        for file in sorted((MICRO / part).glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def write_gguf(file: Path, tensors, kind="Q8_0", kept=(), architecture="qwen_image", **metadata):
    """A GGUF file as ComfyUI-GGUF's converter writes it.

    Weights of linears are in `kind` where their channels fit, those in `kept` in BF16, and everything else in F32.
    """
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in metadata.items():
        writer.add_array(key.replace("__", "."), list(value))
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        form = gguf.GGMLQuantizationType[kind]
        block, _ = gguf.GGML_QUANT_SIZES[form]
        if values.ndim < 2:
            writer.add_tensor(name, values)
        elif name in kept or values.shape[-1] % block:
            form = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(name, gguf.quants.quantize(values, form), raw_dtype=form)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_values(file: Path):
    """The tensors that gguf reads, in fp32."""
    tensors = {}
    for tensor in gguf.GGUFReader(file).tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        tensors[tensor.name] = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    return tensors


def write_nf4(folder: Path, tensors, config, nested=True, block=64, kept=(), shards=1):
    """A folder of a component as diffusers saves it with bitsandbytes; returns the values of its linears."""
    import bitsandbytes.functional as functional

    folder.mkdir(parents=True)
    stored, values = {}, {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or name in kept:
            stored[name] = tensor
            continue
        packed, state = functional.quantize_4bit(tensor, blocksize=block, quant_type="nf4", compress_statistics=nested)
        stored[name] = packed
        stored |= {f"{name}.{key}": value.contiguous() for key, value in state.as_dict(packed=True).items()}
        state.dtype = torch.float32
        values[name] = functional.dequantize_4bit(packed, state).numpy()
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"}
    method |= {"bnb_4bit_use_double_quant": nested, "bnb_4bit_quant_storage": "uint8"}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    names = sorted(stored)
    parts = [names[i::shards] for i in range(shards)]
    if shards == 1:
        save_file(stored, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        return values
    files = {f"diffusion_pytorch_model-{i + 1:05}-of-{shards:05}.safetensors": part for i, part in enumerate(parts)}
    for file, part in files.items():
        save_file({name: stored[name] for name in part}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return values


def fp32(tensor):
    """A tensor of MLX as a NumPy array in fp32."""
    import mlx.core as mx

    return np.array(tensor.astype(mx.float32))
