"""AWQ W4A16 and SVDQuant W4A4 of ComfyUI's files, against comfy-kitchen's kernels; the weights are generated."""

import json
import re

import mlx.core as mx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from precision_lab.errors import InputError
from precision_lab.model.codings.awq import Awq
from precision_lab.model.codings.int4 import Int4Inputs
from precision_lab.model.codings.svdquant import SVDQuant
from precision_lab.model.stored.comfyui import ComfyFile
from precision_lab.model.stored.four_bits import GELU_SHIFT
from precision_lab.model.stored.joined import SplitWeights
from precision_lab.synthetic.source import QwenImage
from tests.model.codings.kitchen import eager, in_torch
from tests.model.codings.next_codes import check_neighbours
from tests.model.poisoned import check_array
from tests.model.test_lone_weights import velocity

LINEAR = "transformer_blocks.0.attn.to_q"
TILES = "kitchen_tile_packed_w4a4"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def tensors_of(path, about, arrays):
    text = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    named = {f"{path}.{name}": array.contiguous() for name, array in arrays.items()}
    return named | {f"{path}.comfy_quant": text}


def in_tiles(array):
    """(outputs, n) as (outputs / 128, n, 128)."""
    return array.reshape(-1, 128, array.shape[1]).permute(0, 2, 1)


def awq(path, rng, shape=(96, 256), group=64, dtype=torch.bfloat16, zeros="weight_zeros"):
    outputs, channels = shape
    codes = torch.tensor(rng.integers(-128, 128, (outputs, channels // 2)).astype(np.int8))
    scale = torch.tensor(rng.uniform(0.01, 0.1, (channels // group, outputs))).to(dtype)
    zero = torch.tensor(rng.normal(0, 0.05, (channels // group, outputs))).to(dtype)
    arrays = {"weight": codes, "weight_scale": scale, zeros: zero}
    return tensors_of(path, {"format": "awq_w4a16", "group_size": group}, arrays)


def svdquant(path, rng, shape=(256, 192), rank=16, dtype=torch.bfloat16, before="weight_", tiled=False, unsigned=False):
    """With every code, -8 too."""
    outputs, channels = shape
    codes = rng.integers(-128, 128, (outputs, channels // 2)).astype(np.int8)
    scale = torch.tensor(rng.uniform(0.001, 0.01, (outputs, channels // 64))).to(dtype)
    up, down = (torch.tensor(rng.normal(0, 0.1, (n, rank))).to(dtype) for n in (outputs, channels))
    smooth = torch.tensor(rng.uniform(0.5, 2, channels)).to(dtype)
    about = {"format": "svdquant_w4a4"} | ({"act_unsigned": True} if unsigned else {})
    if tiled:
        tiles = codes.reshape(-1, 32, 4, channels // 64, 32).transpose(0, 3, 1, 2, 4)
        weight, about = torch.tensor(tiles.reshape(-1, channels // 64, 32, 128).copy()), about | {"layout": TILES}
    else:
        weight = torch.tensor(codes)
    arrays = {
        "weight": weight,
        "weight_scale": in_tiles(scale) if tiled else scale.T,
        f"{before}proj_up": in_tiles(up) if tiled else up,
        f"{before}proj_down": down,
        f"{before}smooth_factor": smooth,
        "bias": torch.tensor(rng.standard_normal(outputs)).to(dtype),
    }
    return tensors_of(path, about, arrays)


def opened(tmp_path, tensors):
    """The linear of a file with these tensors, its arrays, and the bias."""
    save_file(tensors, tmp_path / "a.safetensors")
    files = ComfyFile.open(tmp_path / "a.safetensors")
    linear, read = files.linears[LINEAR], files.read()
    return linear, {name: read[f"{LINEAR}.{name}"] for name in linear.arrays}, read.get(f"{LINEAR}.bias")


def wide(tensors, name):
    return tensors[f"{LINEAR}.{name}"].float()


@pytest.mark.parametrize("zeros", ["weight_zeros", "weight_zero"])
@pytest.mark.parametrize(("group", "dtype"), [(64, "F32"), (64, "BF16"), (128, "F16"), (32, "BF16")])
def test_awq(tmp_path, group, dtype, zeros):
    rng = np.random.default_rng(group)
    tensors = awq(LINEAR, rng, group=group, dtype=DTYPES[dtype], zeros=zeros)
    linear, arrays, _ = opened(tmp_path, tensors)
    assert (linear.shape, linear.inputs, linear.storage.unfit(linear.shape)) == ((96, 256), None, None)
    parts = wide(tensors, "weight_scale"), wide(tensors, zeros)
    gemv, codes = eager("awq").gemv_awq_w4a16, tensors[f"{LINEAR}.weight"]
    values = gemv(torch.eye(256), codes, *parts, group_size=group).T
    np.testing.assert_allclose(np.array(linear.storage.decode(arrays)), values, rtol=2**-23, atol=2**-26)
    x = rng.standard_normal((3, 256)).astype(np.float32)
    product = gemv(torch.tensor(x), codes, *parts, group_size=group)
    np.testing.assert_allclose(linear.storage.product(arrays, mx.array(x)), product, rtol=1e-5, atol=1e-5)
    check_neighbours(linear.storage, arrays, 0, 15, group)


@pytest.mark.parametrize("scales", ["float32", "bfloat16", "float16"])
def test_awq_rounds_to_the_nearest_of_16_values_between_the_ends_of_a_group(scales):
    weight = mx.array(np.random.default_rng(1).standard_normal((32, 256)).astype(np.float32))
    weight[3], weight[4, :64] = 0, 2.5
    coding = Awq(scales=scales)
    arrays = coding.encode(weight)
    error = mx.abs(coding.decode(arrays) - weight).reshape(32, -1, 64)
    step, zero = (arrays[name].astype(mx.float32)[..., None] for name in ("scale", "zero"))
    rounding = {"float32": 2**-22, "float16": 2**-10, "bfloat16": 2**-7}[scales]  # of the scale and the centre
    assert mx.all(error <= step / 2 + rounding * (mx.abs(zero) + 16 * step))
    again = coding.encode(coding.decode(arrays))
    np.testing.assert_allclose(coding.decode(again), coding.decode(arrays), atol=4 * rounding)


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize(("dtype", "before"), [("BF16", "weight_"), ("F16", ""), ("F32", "weight_")])
def test_svdquant(tmp_path, dtype, before, tiled, unsigned):
    """Products with the inputs in 4 bits, and without their rounding; the kernels get what the file holds, in fp32."""
    rng = np.random.default_rng(7)
    tensors = svdquant(LINEAR, rng, dtype=DTYPES[dtype], before=before, tiled=tiled, unsigned=unsigned)
    linear, arrays, bias = opened(tmp_path, tensors)
    bias = bias.astype(mx.float32)
    assert (linear.shape, linear.inputs) == ((256, 192), Int4Inputs(unsigned=unsigned))
    assert isinstance(linear.storage, SVDQuant)
    kernels = eager("svdquant")
    parts = [wide(tensors, f"{before}{name}") for name in ("smooth_factor", "proj_down", "proj_up")]
    smooth, down, up = parts
    weight, scale = tensors[f"{LINEAR}.weight"], wide(tensors, "weight_scale")
    x = np.abs(rng.standard_normal((9, 192))).astype(np.float32) - np.float32(0.1)
    shift = GELU_SHIFT if unsigned else 0
    narrow, scales, low = kernels.quantize_svdquant_w4a4(
        torch.tensor(x) + shift, smooth, down, pad_size=1, act_unsigned=unsigned, lora_x=torch.tensor(x)
    )
    given = wide(tensors, "bias")
    expected = kernels.scaled_mm_svdquant_w4a4(narrow, weight, scales, scale, low, up, given, act_unsigned=unsigned)
    ours = np.array(linear.storage.product(arrays, mx.array(x), linear.inputs) + bias)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
    exact = np.array(linear.storage.product(arrays, mx.array(x)) + bias)
    np.testing.assert_allclose(exact, x @ np.array(linear.storage.decode(arrays)).T + np.array(bias), atol=1e-4)
    assert 0 < np.linalg.norm(ours - exact) < 0.2 * np.linalg.norm(exact)  # what the rounding of inputs does
    residual = kernels._unpack_int4_row_major(kernels._tile_packed_weight_to_row_major(weight)).float()
    grouped = residual.reshape(256, 3, 64) * kernels._tile_packed_scales_to_natural(scale).T[..., None]
    rest = grouped.reshape(256, 192) / smooth
    values = rest + kernels._tile_packed_lora_up_to_natural(up) @ down.T
    np.testing.assert_allclose(np.array(linear.storage.decode(arrays)), values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.array(bias), given + shift * rest.sum(dim=1), rtol=1e-5, atol=1e-5)


def converted(weights, plain):
    """Linears of a model in the formats: AWQ for modulation, the MLPs in tiles or unsigned. plain: what they stand for.

    In nunchaku's files of Qwen-Image, the last linears of the MLPs are unsigned.
    """
    found = dict(weights)
    for name in [
        name for name in weights if re.fullmatch(r"transformer_blocks.*(to_[qkv]|_mod\.1|net.*)\.weight", name)
    ]:
        path, weight = name.removesuffix(".weight"), weights[name].float()
        if "_mod." in name:
            arrays = Awq(scales="bfloat16").encode(mx.array(weight.numpy()))
            about = {"format": "awq_w4a16"}
            stored = {
                "weight": in_torch(arrays["weight"]).view(torch.int8),
                "weight_scale": in_torch(arrays["scale"]).T,
                "weight_zeros": in_torch(arrays["zero"]).T,
            }
            plain[name] = np.array(Awq().decode(arrays))
        else:
            unsigned, tiled = name.endswith("net.2.weight"), weight.shape[0] % 128 == 0
            coding = SVDQuant(4, smooth=0.5)
            arrays = coding.encode(mx.array(weight.numpy()))
            codes, scale, up, down, smooth = map(
                in_torch, (arrays[n] for n in ("weight", "scale", "up", "down", "smooth"))
            )
            about = {"format": "svdquant_w4a4", "act_unsigned": unsigned}
            if tiled:
                about["layout"] = TILES
                codes = codes.reshape(-1, 32, 4, weight.shape[1] // 64, 32).permute(0, 3, 1, 2, 4)
                codes = codes.reshape(-1, weight.shape[1] // 64, 32, 128)
            stored = {
                "weight": codes,
                "weight_scale": in_tiles(scale) if tiled else scale.T,
                "proj_up": in_tiles(up) if tiled else up,
                "proj_down": down,
                "smooth_factor": smooth,
            }
            plain[name] = np.array(coding.decode(arrays))
            if unsigned:
                sums = coding.residual.product(arrays, GELU_SHIFT / arrays["smooth"].astype(mx.float32))
                found[f"{path}.bias"] = weights[f"{path}.bias"].float() - torch.tensor(np.array(sums))
        del found[name]
        found |= tensors_of(path, about, stored)
    return found


def test_a_model_computes_with_the_values_resident_and_streamed(small_checkpoint, tmp_path):
    weights = load_file(next((small_checkpoint / "transformer").glob("*.safetensors")))
    values = {name: tensor.float().numpy() for name, tensor in weights.items()}
    prefixed = {f"model.diffusion_model.{name}": t for name, t in converted(weights, values).items()}
    save_file({name: tensor.contiguous() for name, tensor in prefixed.items()}, tmp_path / "a.safetensors")
    sources = [
        QwenImage(path=str(tmp_path / "a.safetensors"), base=str(small_checkpoint), stream=stream, inputs=inputs)
        for stream, inputs in ((False, None), (True, None), (False, "stored"), (True, "stored"))
    ]
    resident, streamed, *narrow = map(velocity, sources)
    assert mx.array_equal(resident, streamed)
    assert mx.array_equal(*narrow)
    assert not mx.allclose(narrow[0], resident, rtol=1e-2)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_bytes((small_checkpoint / "transformer" / "config.json").read_bytes())
    save_file({name: torch.tensor(value) for name, value in values.items()}, tmp_path / "plain" / "a.safetensors")
    expected = velocity(QwenImage(path=str(tmp_path / "plain"), base=str(small_checkpoint)))
    np.testing.assert_allclose(resident, expected, rtol=1e-3, atol=1e-4 * float(mx.abs(expected).max()))


def test_halves_of_a_joined_linear_share_what_belongs_to_its_channels(tmp_path):
    """Twice the rows of a half are as many as the channels here."""
    path = "transformer_blocks.0.img_mlp.gate_up"
    save_file(svdquant(path, np.random.default_rng(4), (128, 128), 8), tmp_path / "a.safetensors")
    whole = ComfyFile.open(tmp_path / "a.safetensors")
    halves, read, joint = SplitWeights.of(whole), SplitWeights.of(whole).read(), whole.read()
    decoded = []
    for name, linear in halves.linears.items():
        arrays = {array: read[f"{name}.{array}"] for array in linear.arrays}
        assert arrays["smooth"].shape == (128,)
        decoded.append(linear.storage.decode(arrays))
        assert decoded[-1].shape == linear.shape == (64, 128)
    arrays = {array: joint[f"{path}.{array}"] for array in whole.linears[path].arrays}
    np.testing.assert_allclose(np.concatenate(decoded), whole.linears[path].storage.decode(arrays), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_scales_that_are_not_finite(tmp_path, dtype):
    file, rng = tmp_path / "a.safetensors", np.random.default_rng(5)
    save_file(svdquant(LINEAR, rng, dtype=DTYPES[dtype], tiled=True), file)
    check_array(file, f"{LINEAR}.scale", dtype, f"{LINEAR}.weight_scale")
    save_file(awq(LINEAR, rng, dtype=DTYPES[dtype]), file)
    check_array(file, f"{LINEAR}.zero", dtype, f"{LINEAR}.weight_zeros")


ONE = torch.ones(3)
MISTAKES = [
    (awq, {"weight_zeros": None}, "weight_zeros is missing"),
    (awq, {"weight_zero": torch.ones(4, 96)}, "weight_zero is .* but there is weight_zeros too"),
    (awq, {"weight_scale": None}, "weight_scale is missing"),
    (awq, {"weight_scale": ONE}, r"weight_scale is 'F32' of shape \(3,\), expected 4 x 96"),
    (awq, {"weight_zeros": torch.ones(96, 4)}, "expected 4 x 96"),
    (awq, {"weight_zeros": torch.ones(4, 96, dtype=torch.int8)}, "weight_zeros is 'I8' .* expected F32 or F16 or BF16"),
    (awq, {"about": {"group_size": 48}}, "group_size 48, expected an even number that divides its 256 channels"),
    (awq, {"about": {"group_size": "64"}}, "group_size '64'"),
    (awq, {"weight": torch.ones(96, 128)}, "has no quantised weight"),
    (awq, {"smooth_factor": ONE}, "smooth_factor is .* awq_w4a16 has no use for"),
    (svdquant, {"weight_proj_down": None}, "weight_proj_down is missing"),
    (svdquant, {"weight_proj_up": torch.ones(256, 15)}, "expected 256 x 16"),
    (svdquant, {"weight_proj_down": torch.ones(192, 0)}, "expected 192 x n"),
    (svdquant, {"weight_smooth_factor": torch.zeros(192)}, "with 0 at 0, expected finite numbers that are not zero"),
    (svdquant, {"weight_smooth_factor": torch.full((192,), np.inf)}, "with inf at 0"),
    (svdquant, {"weight_smooth_factor": ONE}, "expected 192 numbers"),
    (svdquant, {"weight_scale": torch.ones(256, 3)}, "expected 3 x 256"),
    (svdquant, {"weight": torch.ones(256, 95, dtype=torch.int8)}, "expected a multiple of 64 channels"),
    (svdquant, {"about": {"layout": TILES}}, "expected tiles of 32 x 128"),
    (svdquant, {"about": {"layout": "nunchaku"}}, "has layout 'nunchaku', which is not read, expected 'natural' or"),
    (svdquant, {"about": {"act_unsigned": 1}}, "has act_unsigned 1, which is not read, expected False or True"),
    (
        svdquant,
        {"about": {"lowrank_branch_input_basis": "post_smoothing"}},
        "lowrank_branch_input_basis 'post_smoothing'",
    ),
    (svdquant, {"about": {"act_unsigned": True}, "bias": None}, "bias is missing, which act_unsigned needs"),
    (svdquant, {"qweight": ONE}, "to_q.qweight is in nunchaku's own tiles, which are not read"),
]


@pytest.mark.parametrize(("make", "changes", "message"), MISTAKES)
def test_contradictions_are_refused_by_name(tmp_path, make, changes, message):
    tensors, file = make(LINEAR, np.random.default_rng(6)), tmp_path / "a.safetensors"
    about = json.loads(bytes(tensors[f"{LINEAR}.comfy_quant"].tolist())) | changes.get("about", {})
    tensors |= {f"{LINEAR}.{name}": tensor for name, tensor in changes.items() if name != "about"}
    tensors[f"{LINEAR}.comfy_quant"] = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)
    with pytest.raises(InputError, match=message) as caught:
        ComfyFile.open(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
