"""Scales that are not finite are refused when they are first read, by file, tensor and block; odd weights are not."""

import json

import gguf
import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from precision_lab.cli import main
from precision_lab.model.stored import finite
from precision_lab.model.stored.gguf import FORMATS
from precision_lab.model.stored.reading import open_weights
from tests.model.codings.kitchen import eager
from tests.model.poisoned import FINITE, WRONG, check_array, check_refused, patch
from tests.model.test_comfyui_formats import quantised
from tests.model.test_lone_weights import q8_file

PATH = "transformer_blocks.1.attn.to_q"
NAME = f"{PATH}.weight"
SMALL = ("sampler.steps=1", "image.height=32", "image.width=32", "prompts=[a star]", "seeds=[0]", "pinned.cases=null")


def weight(rows=3, channels=512):
    return np.random.default_rng(rows).standard_normal((rows, channels)).astype(np.float32)


def in_gguf(path, content, kind):
    writer = gguf.GGUFWriter(path, "qwen_image")
    writer.add_tensor(NAME, content, raw_dtype=gguf.GGMLQuantizationType(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("number", sorted(FORMATS))
def test_gguf(tmp_path, number):
    form = FORMATS[number]
    coded = np.array(form.encode(mx.array(weight()))["weight"])
    blocks = coded.size // form.size
    rest = np.ones((blocks, form.size), bool)
    for offset in form.halves:
        rest[:, offset : offset + 2] = False
    odd = np.where(rest, 0xFF, coded.reshape(blocks, -1)).astype(np.uint8).reshape(coded.shape)
    source = in_gguf(tmp_path / "a.gguf", odd, number)
    files = open_weights(source)
    assert mx.isfinite(form.decode({"weight": files.read()[NAME]})).all()
    extent, rng = files.extents()[NAME], np.random.default_rng(number)
    for offset in form.halves:
        before = source.read_bytes()
        for bits in WRONG["F16"]:
            block = int(rng.integers(blocks))
            patch(extent, block, bits, "F16", form.size, offset)
            check_refused(source, NAME, block, NAME)
            raw = np.frombuffer(source.read_bytes(), np.uint8, extent.nbytes, extent.offset).reshape(coded.shape)
            assert not mx.isfinite(form.decode({"weight": mx.array(raw)})).all()
            source.write_bytes(before)
        for bits in FINITE["F16"]:
            patch(extent, 1, bits, "F16", form.size, offset)
            open_weights(source).read()[NAME]
        source.write_bytes(before)


@pytest.mark.parametrize(("form", "kind"), [("nvfp4", "F8_E4M3"), ("mxfp8", "F8_E8M0")])
def test_comfyui(tmp_path, form, kind):
    eager("quantization")
    source = tmp_path / "a.safetensors"
    save_file(quantised(torch.tensor(weight(128)), form, PATH)[0], source)
    check_array(source, f"{PATH}.scales", kind, f"{PATH}.weight_scale")


def test_nvfp4_of_modelopt(tmp_path):
    method = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": method}))
    tensors = {NAME: torch.ones(4, 16, dtype=torch.uint8), f"{PATH}.weight_scale_2": torch.ones(())}
    tensors[f"{PATH}.weight_scale"] = torch.ones(4, 2).to(torch.float8_e4m3fn)
    save_file(tensors, tmp_path / "a.safetensors")
    check_array(tmp_path, f"{PATH}.scales", "F8_E4M3", f"{PATH}.weight_scale")


@pytest.mark.parametrize(
    ("mode", "group", "bits", "kind"),
    [
        ("affine", 64, 4, "F32"),
        ("affine", 32, 8, "BF16"),
        ("affine", 128, 4, "F16"),
        ("mxfp4", 32, 4, "F8_E8M0"),
        ("mxfp8", 32, 8, "F8_E8M0"),
        ("nvfp4", 16, 4, "F8_E4M3"),
    ],
)
def test_packed_by_mlx(tmp_path, mode, group, bits, kind):
    settings = {"group_size": group, "bits": bits, "mode": mode}
    (tmp_path / "config.json").write_text(json.dumps({"quantization": settings}))
    wide = mx.array(weight()).astype({"BF16": mx.bfloat16, "F16": mx.float16}.get(kind, mx.float32))
    names = ("weight", "scales", "biases")
    arrays = {f"{PATH}.{name}": array for name, array in zip(names, mx.quantize(wide, **settings), strict=False)}
    mx.save_safetensors(str(tmp_path / "a.safetensors"), arrays, {"format": "mlx"})
    for name in arrays.keys() - {NAME}:
        check_array(tmp_path, name, kind, name)


def test_a_tensor_is_checked_once(small_checkpoint, tmp_path, monkeypatch):
    checked, check = [], finite.check
    monkeypatch.setattr(finite, "check", lambda name, *rest: (checked.append(name), check(name, *rest)))
    files = open_weights(q8_file(small_checkpoint, tmp_path / "q8.gguf")).without_inputs()
    assert files.templates("transformer_blocks.").values()
    assert not [name for name in checked if name.startswith("transformer_blocks.")]
    for _ in range(3):
        assert list(files.read().values())
    assert len(checked) == len(set(checked)) == len(files.linears)


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_run_of_such_a_file_ends_with_one_line(small_checkpoint, tmp_path, capsys, stream):
    path = q8_file(small_checkpoint, tmp_path / "q8.gguf")
    patch(open_weights(path).extents()[NAME], 5, 0x7E00, "F16", 34)
    given = [
        f"model.path={path}",
        f"model.base={small_checkpoint}",
        f"model.stream={stream}",
        f"out={tmp_path / 'run'}",
    ]
    assert main(["model=qwen_image", *given, *SMALL]) == 2
    said = capsys.readouterr().err
    assert f"{path}: tensor {NAME} has the scale nan in block 5, expected a finite number" in said
    assert "Traceback" not in said
