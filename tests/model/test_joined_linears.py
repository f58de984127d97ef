"""Files of Qwen-Image-2.1 that join two linears in `gate_up`."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from precision_lab.errors import InputError
from precision_lab.model.coded import CodedLinear
from precision_lab.model.stored.reading import open_weights
from precision_lab.synthetic.source import QwenImage21
from tests.model.qwen_image_21.test_stored_21 import generated
from tests.model.stored_files import write_gguf
from tests.model.test_comfyui_formats import quantised


def joined(folder):
    """The tensors of the transformer, with gate and value of each block in one matrix, as ComfyUI stores it."""
    tensors = load_file(next((folder / "transformer").glob("*.safetensors")))
    for name in [name for name in tensors if name.endswith("gate_layer.weight")]:
        path = name.removesuffix("gate_layer.weight")
        tensors[f"{path}gate_up.weight"] = torch.cat([tensors.pop(name), tensors.pop(f"{path}proj.weight")])
    return tensors


def pictures(file, base):
    """Resident and streamed."""
    return [
        generated(QwenImage21(path=str(file), base=str(base), stream=stream).load(mx.bfloat16).pipeline)
        for stream in (False, True)
    ]


def test_halves_are_the_linears_of_the_folder(small_checkpoint_21, tmp_path):
    save_file(joined(small_checkpoint_21), tmp_path / "a.safetensors")
    expected = generated(QwenImage21(path=str(small_checkpoint_21)).load(mx.bfloat16).pipeline)
    for picture in pictures(tmp_path / "a.safetensors", small_checkpoint_21):
        np.testing.assert_array_equal(picture, expected)
    apart, whole = (open_weights(path) for path in (tmp_path / "a.safetensors", small_checkpoint_21 / "transformer"))
    assert apart.shapes() == whole.shapes()
    sizes = ({name: extent.nbytes for name, extent in files.extents().items()} for files in (apart, whole))
    assert next(sizes) == next(sizes)
    for name, array in whole.read().items():
        extent = apart.extents()[name]
        with extent.file.open("rb") as file:
            file.seek(extent.offset)
            assert file.read(extent.nbytes) == bytes(np.array(array.view(mx.uint8)).tobytes()), name


@pytest.mark.parametrize("name", ["nvfp4", "int8 of a tensor", "convrot 16"])
def test_formats_of_comfyui(small_checkpoint_21, tmp_path, name):
    """Each half has the rows of the codes, and of the scales where it has its own."""
    tensors = joined(small_checkpoint_21)
    whole = {}
    for key in [key for key in tensors if key.endswith("gate_up.weight")]:
        path = key.removesuffix(".weight")
        stored, whole[path] = quantised(tensors.pop(key).float(), name, path)
        tensors |= stored
    save_file(tensors, tmp_path / "a.safetensors")
    source = QwenImage21(path=str(tmp_path / "a.safetensors"), base=str(small_checkpoint_21), inputs="stored")
    block = source.load(mx.float32).pipeline.transformer.transformer_blocks[1].img_mlp
    decoded = [linear.coding.decode(linear.arrays) for linear in (block.gate_layer, block.proj)]
    expected = whole["transformer_blocks.1.img_mlp.gate_up"]
    np.testing.assert_allclose(np.concatenate(decoded), expected, rtol=2**-23, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_array_equal(*pictures(tmp_path / "a.safetensors", small_checkpoint_21))


def test_a_gguf_file(small_checkpoint_21, tmp_path):
    tensors = joined(small_checkpoint_21)
    write_gguf(tmp_path / "a.gguf", tensors, kept=("img_in.weight",), architecture="qwen_image21")
    source = QwenImage21(path=str(tmp_path / "a.gguf"), base=str(small_checkpoint_21))
    mlp = source.load(mx.float32).pipeline.transformer.transformer_blocks[1].img_mlp
    assert isinstance(mlp.proj, CodedLinear)
    joint = tensors["transformer_blocks.1.img_mlp.gate_up.weight"].float().numpy()
    decoded = np.concatenate([mlp.gate_layer.coding.decode(each.arrays) for each in (mlp.gate_layer, mlp.proj)])
    assert np.abs(decoded - joint).max() < 0.01 * np.abs(joint).max()
    np.testing.assert_array_equal(*pictures(tmp_path / "a.gguf", small_checkpoint_21))


def test_halves_of_an_odd_number_of_rows_are_refused(tmp_path):
    tensors = {"transformer_blocks.0.img_mlp.gate_up.weight": torch.ones(7, 8)}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"a\.safetensors: tensor .*gate_up\.weight has 7 rows, expected two halves"):
        open_weights(tmp_path / "a.safetensors")
