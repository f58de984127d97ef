"""Linears of ComfyUI's files in each format, written with comfy-kitchen's quantisers and decoded as it decodes them."""

import importlib
import json

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from precision_lab.errors import InputError
from precision_lab.model.codings.microscaled import Nvfp4, coding_of
from precision_lab.model.codings.padded import Padded
from precision_lab.model.stored.comfyui import ComfyFile
from precision_lab.numerics.packing import Quantization
from tests.model.codings.kitchen import adversarial, eager, in_torch

eager("quantization")  # skips where comfy-kitchen is not installed
LINEAR = "transformer_blocks.0.attn.to_q"
LAYOUTS = {
    "nvfp4": ("nvfp4.TensorCoreNVFP4Layout", {}, {}),
    "mxfp8": ("mxfp8.TensorCoreMXFP8Layout", {}, {}),
    "int8 of a tensor": ("int8.TensorWiseINT8Layout", {"is_weight": True}, {}),
    "int8 of a row": ("int8.TensorWiseINT8Layout", {"is_weight": True, "per_channel": True}, {}),
    **{
        f"convrot {group}": (
            "int8.TensorWiseINT8Layout",
            {"is_weight": True, "per_channel": True, "convrot": True, "convrot_groupsize": group},
            {"convrot": True, "convrot_groupsize": group},
        )
        for group in (256, 64, 16)
    },
    "int4 256": ("convrot_w4a4.TensorCoreConvRotW4A4Layout", {}, {"convrot_groupsize": 256}),
    "int4 16": (
        "convrot_w4a4.TensorCoreConvRotW4A4Layout",
        {"convrot_groupsize": 16},
        {"convrot_groupsize": 16, "linear_dtype": "int8"},
    ),
}
FORMATS = {"nvfp4": "nvfp4", "mxfp8": "mxfp8", "int4": "convrot_w4a4"}


def quantised(weight, name, path=LINEAR):
    """The tensors of a linear as ComfyUI saves it, what it says of it, and the values that comfy-kitchen decodes."""
    layout, settings, about = LAYOUTS[name]
    module, kind = layout.split(".")
    kind = getattr(importlib.import_module(f"comfy_kitchen.tensor.{module}"), kind)
    tensor = importlib.import_module("comfy_kitchen.tensor").QuantizedTensor.from_float(
        weight, kind.__name__, **settings
    )
    about = {"format": FORMATS.get(name.split()[0], "int8_tensorwise")} | about
    tensors = {key: value.contiguous() for key, value in tensor.state_dict(f"{path}.weight").items()}
    text = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    return tensors | {f"{path}.comfy_quant": text}, tensor.dequantize().float().numpy()


def decoded(file, shape, path=LINEAR):
    files = ComfyFile.open(file)
    linear, read = files.linears[path], files.read()
    assert linear.fits(shape)
    coding = coding_of(linear.storage) if isinstance(linear.storage, Quantization) else linear.storage
    if linear.shape != shape:
        coding = Padded(coding, shape, linear.shape)
    arrays = {name: read[f"{path}.{name}"] for name in linear.arrays}
    return np.array(coding.decode(arrays)), coding, arrays, linear


@pytest.mark.parametrize("case", sorted(adversarial(np.random.default_rng(0))))
@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_values_are_those_of_comfy_kitchen(tmp_path, name, case):
    """To the bit where a value is one product. In nvfp4 the kernel rounds the product of the two scales, we do not; a
    rotation sums; and a group whose power of two has the code 0 is zero or NaN there, by 2^-127 here, as OCP has it.
    """
    weight = adversarial(np.random.default_rng(2))[case]
    tensors, expected = quantised(in_torch(weight), name)
    save_file(tensors, tmp_path / "a.safetensors")
    if (name, case) == ("nvfp4", "zero"):  # comfy-kitchen divides zero by zero
        with pytest.raises(InputError, match=f"{LINEAR}.weight_scale has the scale nan in block 0"):
            decoded(tmp_path / "a.safetensors", weight.shape)
        return
    values, coding, arrays, _ = decoded(tmp_path / "a.safetensors", weight.shape)
    if name == "nvfp4":
        elements = Nvfp4(tensor_scale=False).decode(arrays)
        product = np.array(elements, np.float64) * float(arrays["tensor_scale"])
        np.testing.assert_array_equal(values, product.astype(np.float32)[: weight.shape[0]])
        np.testing.assert_allclose(values, expected, rtol=2**-23, atol=2e-44)
    elif name == "mxfp8":
        code_0 = np.repeat(np.array(arrays["scales"]) == 0, 32, axis=1)[: weight.shape[0]]
        np.testing.assert_array_equal(values[~code_0], expected[~code_0])
        assert np.abs(np.nan_to_num(values[code_0])).max(initial=0) <= 448 * 2.0**-127
    elif "convrot" in name or "int4" in name:
        terms = np.abs(np.array(coding.coding.decode(arrays), np.float64)).reshape(len(weight), -1, coding.group)
        sums = (terms.sum(axis=-1, keepdims=True) / coding.group**0.5).repeat(coding.group, -1).reshape(weight.shape)
        assert np.all(np.abs(values - expected) <= 2 * coding.group * 2.0**-24 * sums)  # of sums in any order
    else:
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("shape", [(16, 16), (1, 16), (33, 80), (130, 272), (100, 528), (7, 50)])
@pytest.mark.parametrize("name", ["nvfp4", "mxfp8"])
def test_padding_and_tiles_of_scales(tmp_path, name, shape):
    """Rows and channels are padded to 16 or 32, the scales to tiles of 128 x 4."""
    rng = np.random.default_rng(shape)
    weight = (rng.standard_normal(shape) * np.exp(rng.normal(0, 2, shape))).astype(np.float32)
    tensors, expected = quantised(in_torch(weight), name)
    save_file(tensors, tmp_path / "a.safetensors")
    values, coding, arrays, linear = decoded(tmp_path / "a.safetensors", shape)
    np.testing.assert_allclose(values, expected, rtol=2**-23)
    x = mx.array(rng.standard_normal((3, shape[1])).astype(np.float32))
    np.testing.assert_allclose(np.array(coding.product(arrays, x)), np.array(x) @ expected.T, rtol=1e-4, atol=1e-4)
    assert coding.product(arrays, x, linear.inputs).shape == (3, shape[0])


def edited(tensors, **changes):
    """The tensors with some of the linear removed (None) or replaced, or with other settings."""
    about = json.loads(bytes(tensors[f"{LINEAR}.comfy_quant"].tolist()))
    about |= changes.pop("about", {})
    tensors = tensors | {f"{LINEAR}.comfy_quant": torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)}
    tensors |= {f"{LINEAR}.{name}": tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


FLOAT = torch.ones(64, 64)
MISTAKES = [
    ("nvfp4", {"weight_scale": None}, "to_q.weight_scale is missing"),
    ("nvfp4", {"weight_scale_2": None}, "to_q.weight_scale_2 is missing"),
    ("nvfp4", {"weight_scale_2": torch.ones(2)}, r"weight_scale_2 is 'F32' of shape \(2,\), expected 1 numbers"),
    ("nvfp4", {"weight_scale": torch.ones(64, 4)}, "weight_scale is 'F32' .* expected F8_E4M3 or U8"),
    ("nvfp4", {"weight_scale": torch.ones(64, 4).to(torch.uint8)}, "expected 512 scales in tiles of 128 x 4"),
    ("nvfp4", {"weight": FLOAT}, "has no quantised weight"),
    ("nvfp4", {"weight": None}, "has no quantised weight"),
    ("nvfp4", {"weight": torch.ones(64, 36, dtype=torch.uint8)}, "expected a multiple of 16 channels"),
    ("nvfp4", {"pre_quant_scale": torch.ones(64)}, "pre_quant_scale is .* which is not read"),
    ("nvfp4", {"input_scale": torch.zeros(())}, "input_scale is 0, expected a positive number"),
    ("nvfp4", {"input_scale": torch.tensor(float("nan"))}, "input_scale is nan, expected a positive number"),
    ("mxfp8", {"weight_scale": None}, "to_q.weight_scale is missing"),
    ("mxfp8", {"weight_scale": torch.ones(64, 2).to(torch.uint8)}, "expected 512 scales in tiles"),
    ("int8 of a row", {"weight_scale": None}, "to_q.weight_scale is missing"),
    ("int8 of a row", {"weight_scale": torch.ones(5)}, "expected 1 or 64 numbers"),
    ("convrot 64", {"about": {"convrot_groupsize": 48}}, "convrot_groupsize 48, expected one of 256, 64, 16"),
    ("convrot 64", {"about": {"convrot_groupsize": 256}}, "convrot_groupsize 256, .* divides its 64 channels"),
    ("int8 of a row", {"about": {"format": "asym_w4a8_int8"}}, "stored as 'asym_w4a8_int8', which is not read"),
    ("int8 of a row", {"about": {"format": "int8_tensorwis"}}, "Did you mean int8_tensorwise"),
    ("int8 of a row", {"comfy_quant": None}, "weight is 'I8' .* expected F8_E4M3 or U8"),
    ("int4 16", {"about": {"linear_dtype": "fp4"}}, "linear_dtype 'fp4', expected int4 or int8"),
    ("int4 16", {"about": {"linear_dtype": ["int4"]}}, "linear_dtype \\['int4'\\], expected int4 or int8"),
    ("int4 16", {"about": {"format": {}}}, "stored as {}, which is not read"),
    ("int4 16", {"weight_scale": torch.ones(())}, "expected 64 numbers"),
]


@pytest.mark.parametrize(("name", "changes", "message"), MISTAKES)
def test_contradictions_are_refused_by_name(tmp_path, name, changes, message):
    weight = torch.tensor(np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32))
    file = tmp_path / "a.safetensors"
    save_file(edited(quantised(weight, name)[0], **changes), file)
    with pytest.raises(InputError, match=message) as caught:
        ComfyFile.open(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
