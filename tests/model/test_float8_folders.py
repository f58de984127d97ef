"""Folders in float8 and nvfp4, as ModelOpt, compressed-tensors and diffusers write them."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file, save_file

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Components
from precision_lab.model.codings.float8 import Float8Inputs
from precision_lab.model.codings.microscaled import Nvfp4, Nvfp4Inputs
from precision_lab.model.stored.float8_folder import Float8Folder
from precision_lab.model.stored.reading import open_weights
from precision_lab.synthetic.source import QwenImage
from precision_lab.techniques.base import applied
from precision_lab.techniques.float8_weights import Float8Weights
from tests.model.codings.kitchen import adversarial
from tests.model.stored_files import fp32
from tests.model.test_comfyui_files import LINEARS, SITES, stored
from tests.model.test_lone_weights import velocity
from tests.spread import slow

MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["proj_out"]}
FLOAT = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
PATH = "transformer_blocks.0.attn.to_q"


def compressed(weights="tensor", inputs=None, form="float-quantized"):
    """As compressed-tensors 0.20 writes it to config.json."""
    group = {"targets": ["Linear"], "weights": FLOAT | {"strategy": weights}, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": []}


def write(folder: Path, tensors, quantization=None, base=None, shards=1):
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((base / "transformer" / "config.json").read_text()) if base else {}
    config |= {} if quantization is None else {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    files = {f"diffusion_pytorch_model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)}
    for file, part in files.items():
        save_file({name: tensors[name].clone() for name in part}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def in_float8(tensors, scale, inputs=None):
    """The tensors with float8 linears and their scales, (outputs, 1) by channel."""
    found = {}
    for name, tensor in tensors.items():
        if not name.endswith(LINEARS):
            found[name] = tensor
            continue
        path, wide = name.removesuffix(".weight"), tensor.float()
        magnitude = wide.abs().max() if scale == "tensor" else wide.abs().amax(dim=1, keepdim=True)
        found[f"{path}.weight_scale"] = magnitude / 448
        found[name] = (wide / (magnitude / 448)).to(torch.float8_e4m3fn)
        if inputs is not None:
            found[f"{path}.input_scale"] = torch.tensor(inputs)
    return found


TOKENS = FLOAT | {"dynamic": True, "strategy": "token"}
FOLDERS = [
    ("tensor", MODELOPT, 0.01, 3),
    ("tensor", compressed(inputs=FLOAT), 0.01, 1),
    ("channel", compressed("channel", TOKENS, "naive-quantized"), None, 2),
    ("channel", None, None, 1),
]


# whole and alone in turn
@pytest.mark.parametrize(
    ("scale", "quantization", "inputs", "shards", "whole"),
    [
        *((*folder, at % 2 == 0) for at, folder in enumerate(FOLDERS)),
        *(slow((*folder, at % 2 == 1)) for at, folder in enumerate(FOLDERS)),
    ],
)
def test_a_folder_is_the_technique_bit_for_bit(small_checkpoint, tmp_path, scale, quantization, inputs, shards, whole):
    """Alone and in a whole checkpoint, resident and streamed; the scales of inputs are left out by default."""
    folder = tmp_path / "transformer"
    if whole:
        shutil.copytree(small_checkpoint, tmp_path, dirs_exist_ok=True)
        shutil.rmtree(folder)
    write(folder, in_float8(stored(small_checkpoint), scale, inputs), quantization, small_checkpoint, shards)
    given = {"path": str(tmp_path)} if whole else {"path": str(folder), "base": str(small_checkpoint)}
    plain = QwenImage(path=str(small_checkpoint))
    model = plain.load(mx.bfloat16).pipeline.transformer
    with applied(Components({"transformer": model}, plain.layout), {"fp8": Float8Weights(sites=SITES, scale=scale)}):
        expected = velocity(plain, mx.bfloat16)
    read = QwenImage(**given)
    assert mx.array_equal(velocity(read, mx.bfloat16), expected)
    assert mx.array_equal(velocity(QwenImage(**given, stream=True), mx.bfloat16), expected)
    assert len(open_weights(folder).files) == shards
    assert (len(read.checkpoint.ignored["transformer"]) > 10) == (inputs is not None)
    rounded = velocity(QwenImage(**given, inputs="stored"), mx.bfloat16)
    assert mx.array_equal(rounded, expected) == (quantization is None)


def test_inputs_are_those_that_the_folder_states(tmp_path):
    weights = {f"{PATH}.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), f"{PATH}.weight_scale": torch.ones(())}
    static = weights | {f"{PATH}.input_scale": torch.tensor(0.5)}
    token, tensor = (FLOAT | {"dynamic": True, "strategy": strategy} for strategy in ("token", "tensor"))
    for number, (tensors, quantization, inputs) in enumerate(
        [
            (static, MODELOPT, Float8Inputs(0.5)),
            (weights, MODELOPT, None),
            (weights, MODELOPT | {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, Float8Inputs("token")),
            (weights, compressed(inputs=token), Float8Inputs("token")),
            (weights, compressed(inputs=tensor), Float8Inputs("tensor")),
            (static, compressed(inputs=FLOAT), Float8Inputs(0.5)),
            (weights, compressed(), None),
        ]
    ):
        write(tmp_path / str(number), tensors, quantization)
        files = open_weights(tmp_path / str(number))
        assert isinstance(files, Float8Folder)
        assert files.linears[PATH].inputs == inputs
        assert files.input_scales == ((f"{PATH}.input_scale",) if tensors is static else ())


@pytest.mark.parametrize("shard", ["10GB", "300KB"])
def test_a_transformer_that_diffusers_saves_with_layerwise_casting(small_checkpoint, tmp_path, shard):
    model = QwenImageTransformer2DModel.from_pretrained(small_checkpoint / "transformer", torch_dtype=torch.bfloat16)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "saved", max_shard_size=shard)
    files = open_weights(tmp_path / "saved")
    assert (len(files.files) > 1) == (shard != "10GB")
    read, tensors = files.read(), model.state_dict()
    assert sum(tensor.dtype == torch.float8_e4m3fn for tensor in tensors.values()) > len(files.linears) > 40
    for name, tensor in tensors.items():
        path = name.removesuffix(".weight")
        if path in files.linears:
            linear = files.linears[path]
            values = linear.storage.decode({array: read[f"{path}.{array}"] for array in linear.arrays})
        else:
            values = read[name]
        np.testing.assert_array_equal(fp32(values), tensor.float().numpy())
    given = {"path": str(tmp_path / "saved"), "base": str(small_checkpoint)}
    assert mx.array_equal(velocity(QwenImage(**given)), velocity(QwenImage(**given, stream=True)))


def in_nvfp4(weight):
    """As NVFP4QTensor of ModelOpt 0.47 packs it: scales in rows, the first of two numbers low."""
    outputs, channels = weight.shape
    whole = max(weight.abs().max() / 2688, torch.tensor(1e-30))
    groups = weight.reshape(outputs, -1, 16)
    scales = (groups.abs().amax(dim=-1) / (6 * whole)).clamp(2**-9, 448).to(torch.float8_e4m3fn)
    scaled = groups / (scales.float() * whole)[..., None]
    ladder = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    codes = (scaled.abs()[..., None] - ladder).abs().argmin(dim=-1) + 8 * (scaled < 0)
    values = (ladder[codes % 8] * torch.where(codes > 7, -1, 1) * (scales.float() * whole)[..., None]).double()
    codes = codes.reshape(outputs, channels).to(torch.uint8)
    return codes[:, 1::2] << 4 | codes[:, ::2], scales, whole, values.reshape(outputs, channels).numpy()


@pytest.mark.parametrize("case", ["normal", "outliers", "some zero", "zero", "one row"])
def test_nvfp4_of_modelopt(tmp_path, case):
    weight = torch.tensor(adversarial(np.random.default_rng(8))[case])
    packed, scales, whole, expected = in_nvfp4(weight)
    tensors = {f"{PATH}.weight": packed, f"{PATH}.weight_scale": scales, f"{PATH}.weight_scale_2": whole}
    write(tmp_path, tensors | {f"{PATH}.input_scale": torch.tensor(0.5)}, MODELOPT | {"quant_algo": "NVFP4"})
    files = open_weights(tmp_path)
    linear, read = files.linears[PATH], files.read()
    assert linear.inputs == Nvfp4Inputs(stated=0.5)
    values = Nvfp4().decode({name: read[f"{PATH}.{name}"] for name in linear.arrays})
    np.testing.assert_allclose(np.array(values), expected, rtol=2**-23)


F8 = torch.ones(4, 16).to(torch.float8_e4m3fn)
BYTES = torch.ones(4, 8, dtype=torch.uint8)
WEIGHT, SCALE, SCALE_2 = (f"{PATH}.{name}" for name in ("weight", "weight_scale", "weight_scale_2"))
INPUT = f"{PATH}.input_scale"
ONE = torch.ones(())
MISTAKES = [
    ({WEIGHT: F8}, MODELOPT, "to_q.weight_scale is missing"),
    ({WEIGHT: F8, "a.weight": F8, "a.weight_scale": ONE}, None, "to_q.weight_scale is missing"),
    ({SCALE: ONE}, MODELOPT, "has no quantised weight"),
    ({WEIGHT: torch.ones(4, 16), SCALE: ONE}, MODELOPT, "has no quantised weight"),
    ({WEIGHT: F8, SCALE: torch.ones(3)}, MODELOPT, "expected 1 or 4 numbers"),
    ({WEIGHT: F8, SCALE: torch.ones(4, 1), INPUT: torch.ones(2)}, MODELOPT, "input_scale is .* expected 1 numbers"),
    ({WEIGHT: F8, SCALE: ONE, INPUT: -ONE}, MODELOPT, "input_scale is -1, expected a positive number"),
    ({WEIGHT: BYTES, SCALE: F8[:, :1]}, MODELOPT, "to_q.weight_scale_2 is missing"),
    ({WEIGHT: BYTES, SCALE: F8[:, :2], SCALE_2: ONE}, MODELOPT, "weight_scale is .* expected 4 x 1"),
    ({WEIGHT: BYTES[:, :5], SCALE: F8[:, :1], SCALE_2: ONE}, MODELOPT, "expected a multiple of 16 channels"),
    ({WEIGHT: BYTES}, None, "to_q.weight is U8"),
    ({WEIGHT: BYTES, "a.weight": F8}, None, "to_q.weight is U8, but is no weight of a linear with scales"),
    ({WEIGHT: F8, "a": torch.ones(2).double()}, MODELOPT, "tensor a is 'F64', expected one of F32"),
    ({WEIGHT: F8}, MODELOPT | {"quant_algo": "MIXED_PRECISION"}, "quant_algo is 'MIXED_PRECISION', which is not read"),
    ({WEIGHT: F8}, MODELOPT | {"quant_algo": None}, "quant_algo is None, which is not read, expected FP8 or"),
    ({WEIGHT: F8}, compressed(form="pack-quantized"), "format is 'pack-quantized', which is not read"),
    ({WEIGHT: F8}, compressed("block"), "expected float of 8 bits by tensor or channel"),
    ({WEIGHT: F8}, compressed(inputs={"num_bits": 4, "type": "int"}), "inputs are .*, expected float of 8 bits"),
    ({WEIGHT: F8, SCALE: ONE}, compressed(inputs=FLOAT), "to_q.input_scale is missing"),
    ({WEIGHT: F8}, compressed() | {"config_groups": {}}, "expected groups with weights"),
    ({WEIGHT: F8}, {"quant_method": "torchao"}, "quantised by another program"),
]


@pytest.mark.parametrize(("tensors", "quantization", "message"), MISTAKES)
def test_contradictions_are_refused_by_name(tmp_path, tensors, quantization, message):
    write(tmp_path / "a", tensors, quantization)
    with pytest.raises(InputError, match=message) as caught:
        open_weights(tmp_path / "a")
    assert str(tmp_path / "a") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_second_statement_must_agree(tmp_path):
    tensors = {WEIGHT: F8, SCALE: ONE}
    write(tmp_path, tensors)
    beside = tmp_path / "hf_quant_config.json"
    beside.write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}))
    assert open_weights(tmp_path).layout == "a folder of modelopt, float8 with weight_scale"
    write(tmp_path, tensors, MODELOPT | {"quant_algo": "NVFP4"})
    with pytest.raises(InputError, match=r"config\.json: .*algo is 'NVFP4', but hf_quant_config\.json says 'FP8'"):
        open_weights(tmp_path)


def test_pickles_beside_nothing_are_refused(tmp_path):
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin"):
        folder = tmp_path / name[:5]
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "torchao"}}))
        (folder / name).write_bytes(b"\x80\x02}q\x00.")
        with pytest.raises(InputError, match=rf"{name} is a pickle, which can run code"):
            open_weights(folder)


def test_damaged_files_give_one_line(tmp_path):
    rng = np.random.default_rng(6)
    tensors = {WEIGHT: F8, SCALE: torch.ones(4, 1), INPUT: ONE, "a.weight": BYTES, "a.weight_scale": F8[:, :1]}
    write(tmp_path, tensors | {"a.weight_scale_2": ONE}, MODELOPT)
    file = next(tmp_path.glob("*.safetensors"))
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    messages = []
    for trial in range(100):
        damaged = bytearray(content)
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(0, len(damaged))]
        else:
            for at in rng.integers(0, header, 1 + trial % 4):
                damaged[at] = rng.integers(32, 127)
        file.write_bytes(damaged)
        try:
            open_weights(tmp_path)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert all(str(tmp_path) in message and len(message.splitlines()) == 1 for message in messages)


def test_load_file_agrees(small_checkpoint, tmp_path):
    """The tensors that are in no format are those of safetensors."""
    tensors = in_float8(stored(small_checkpoint), "tensor")
    write(tmp_path, tensors, MODELOPT, shards=2)
    read = open_weights(tmp_path).read()
    for file in tmp_path.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if tensor.dtype == torch.bfloat16:
                np.testing.assert_array_equal(fp32(read[name]), tensor.float().numpy())
