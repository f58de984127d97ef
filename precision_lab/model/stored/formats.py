"""The formats in which ComfyUI and other programs store the weight of one linear beside its scales.

Each function checks the tensors of a linear against each other and says how they become the arrays of a coding or of a
packing. Sources: ComfyUI, comfy/ops.py (`_load_quantized_module`) and quant_ops.py (`QUANT_ALGOS`); comfy-kitchen 0.2,
float_utils.py and tensor/*.py. Inputs are rounded as ComfyUI rounds them on hardware with products in the format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

from precision_lab.errors import InputError, inline, nearest, shown
from precision_lab.model.codings.base import Inputs
from precision_lab.model.codings.convrot import GROUPS, ConvRot
from precision_lab.model.codings.float8 import Float8, Float8Inputs
from precision_lab.model.codings.int4 import Int4, Int4Inputs
from precision_lab.model.codings.int8 import Int8, Int8Inputs
from precision_lab.model.codings.microscaled import MXFP8, NVFP4, Mxfp8Inputs, Nvfp4Inputs
from precision_lab.model.stored.base import StoredLinear
from precision_lab.model.stored.four_bits import awq, svdquant
from precision_lab.model.stored.layer import Layer, Made, Stored, column, no_scale, same
from precision_lab.record.safetensors import Entry

INPUT_SCALES = ("scale_input", "input_scale")
"""The last parts of the names of scales of inputs."""
_TILE = (128, 4)
"""Rows and columns of a tile of scales as cuBLAS reads them."""


_BY_ROW = {"weight": Made("weight", same), "scale": Made("weight_scale", column)}


def unscaled(weight: Entry) -> Stored:
    """A linear in e4m3 without a scale; the inputs are left alone."""
    arrays = {"weight": Made("weight", same), "scale": Made("weight", no_scale)}
    linear = StoredLinear(Float8("none"), (weight.shape[0], weight.shape[1]), tuple(arrays))
    return Stored("float8 without scales", linear, arrays)


def float8(layer: Layer) -> Stored:
    """`weight` in e4m3, `weight_scale` or `scale_weight` with one number or one an output, maybe a scale of inputs."""
    outputs, channels = layer.matrix("F8_E4M3", "U8")
    name = "scale_weight" if "scale_weight" in layer.entries else "weight_scale"
    scale = "tensor" if layer.scales(name, 1, outputs) == 1 else "channel"
    given = next((name for name in INPUT_SCALES if name in layer.entries), None)
    inputs = Float8Inputs(layer.number(given) if given else 1.0)
    arrays = {"weight": Made("weight", same), "scale": Made(name, column)}
    linear = StoredLinear(Float8(scale), (outputs, channels), tuple(arrays), inputs)
    return Stored(f"float8 with {name}", linear, arrays, (given,) if given else ())


def nvfp4(layer: Layer) -> Stored:
    """Two e2m1 numbers a byte, the first one high; e4m3 scales of 16 channels in tiles; a scale a tensor."""
    outputs, half = layer.matrix("U8")
    groups = _tiled(layer, "weight_scale", ("F8_E4M3", "U8"), outputs, 2 * half, NVFP4.group_size)
    return _nvfp4(
        layer,
        Made("weight", lambda codes: ((codes << 4) | (codes >> 4)).view(mx.uint32)),
        Made("weight_scale", lambda scales: _untiled(scales, outputs, groups)),
        multiple=16,
    )


def nvfp4_rows(layer: Layer) -> Stored:
    """The same as ModelOpt stores it: the first number of a byte is low, and the scales are in rows."""
    outputs, half = layer.matrix("U8")
    groups = 2 * half // NVFP4.group_size
    if 2 * half % NVFP4.group_size:
        raise layer.wrong("weight", f"expected a multiple of {NVFP4.group_size} channels")
    if layer.entry("weight_scale", "F8_E4M3", "U8").shape != (outputs, groups):
        raise layer.wrong("weight_scale", f"expected {outputs} x {groups}")
    codes = Made("weight", lambda codes: codes.view(mx.uint32))
    return _nvfp4(layer, codes, Made("weight_scale", same), multiple=1)


def _nvfp4(layer: Layer, codes: Made, scales: Made, multiple: int) -> Stored:
    outputs, half = layer.entries["weight"].shape
    layer.scales("weight_scale_2", 1)
    if "pre_quant_scale" in layer.entries:
        raise layer.wrong("pre_quant_scale", "which is not read: it scales the channels of the inputs (AWQ)")
    given = "input_scale" in layer.entries
    inputs = Nvfp4Inputs(stated=layer.number("input_scale") if given else None)
    tensor_scale = Made("weight_scale_2", lambda scale: scale.astype(mx.float32).reshape(()))
    arrays = {"weight": codes, "scales": scales, "tensor_scale": tensor_scale}
    packing = NVFP4._replace(tensor_scale=True)
    linear = StoredLinear(packing, (outputs, 2 * half), tuple(arrays), inputs, multiple)
    return Stored("nvfp4", linear, arrays, ("input_scale",) if given else (), {"scales": "F8_E4M3"})


def mxfp8(layer: Layer) -> Stored:
    """e4m3 and the powers of two of 32 channels in tiles."""
    outputs, channels = layer.matrix("F8_E4M3", "U8")
    groups = _tiled(layer, "weight_scale", ("F8_E8M0", "U8"), outputs, channels, MXFP8.group_size)
    arrays = {
        "weight": Made("weight", lambda codes: codes.view(mx.uint32)),
        "scales": Made("weight_scale", lambda scales: _untiled(scales, outputs, groups)),
    }
    linear = StoredLinear(MXFP8, (outputs, channels), tuple(arrays), Mxfp8Inputs(), multiple=32)
    return Stored("mxfp8", linear, arrays, blocks={"scales": "F8_E8M0"})


def int8(layer: Layer) -> Stored:
    """Signed bytes, one scale or one an output; with `convrot`, of the rotated weight."""
    outputs, channels = layer.matrix("I8")
    coding = Int8("tensor" if layer.scales("weight_scale", 1, outputs) == 1 else "channel")
    rotated = _setting(layer, "convrot", False)
    storage = ConvRot(coding, _group(layer, channels)) if rotated else coding
    linear = StoredLinear(storage, (outputs, channels), tuple(_BY_ROW), Int8Inputs())
    return Stored("int8_tensorwise with convrot" if rotated else "int8_tensorwise", linear, _BY_ROW)


def convrot_int4(layer: Layer) -> Stored:
    """Two signed numbers a byte, the first one low, and one scale an output, of the rotated weight."""
    outputs, half = layer.matrix("I8", "U8")
    channels = 2 * half
    layer.scales("weight_scale", outputs)
    inputs: dict[str, Inputs] = {"int4": Int4Inputs(None), "int8": Int8Inputs()}
    multiplied = _setting(layer, "linear_dtype", "int4")
    if not isinstance(multiplied, str) or multiplied not in inputs:
        raise InputError(
            f"{layer.file}: {inline(layer.path)} has linear_dtype {shown(multiplied)}, expected {' or '.join(inputs)}"
        )
    storage = ConvRot(Int4(None), _group(layer, channels))
    arrays = {**_BY_ROW, "weight": Made("weight", lambda codes: codes.view(mx.int8))}
    linear = StoredLinear(storage, (outputs, channels), tuple(arrays), inputs[multiplied])
    return Stored("convrot_w4a4", linear, arrays)


FORMATS: Mapping[str, Callable[[Layer], Stored]] = {
    "float8_e4m3fn": float8,
    "nvfp4": nvfp4,
    "mxfp8": mxfp8,
    "int8_tensorwise": int8,
    "convrot_w4a4": convrot_int4,
    "awq_w4a16": awq,
    "svdquant_w4a4": svdquant,
}
"""The formats of ComfyUI that are read."""


def described(layer: Layer) -> Stored:
    """A linear in the format that the file says. Raises InputError for another, or for tensors that do not fit it."""
    name = layer.about.get("format")
    if not isinstance(name, str) or name not in FORMATS:
        raise InputError(
            f"{layer.file}: {inline(layer.path)} is stored as {shown(name)}, which is not read. "
            f"{nearest(str(name), FORMATS)}"
        )
    stored = FORMATS[name](layer)
    known = {made.tensor for made in stored.arrays.values()} | {"bias", *INPUT_SCALES}
    for other in layer.entries.keys() - known:
        raise layer.wrong(other, f"which {stored.form} has no use for")
    if layer.about.get("full_precision_matrix_mult"):
        return stored._replace(linear=stored.linear._replace(inputs=None))
    return stored


def _setting(layer: Layer, name: str, default: Any) -> Any:
    """A setting of a linear, which older files have in `params`."""
    older = layer.about.get("params")
    return layer.about.get(name, older.get(name, default) if isinstance(older, Mapping) else default)


def _group(layer: Layer, channels: int) -> int:
    group = _setting(layer, "convrot_groupsize", GROUPS[0])
    if type(group) is not int or group not in GROUPS or channels % group:
        raise InputError(
            f"{layer.file}: {inline(layer.path)} has convrot_groupsize {shown(group)}, expected one of "
            f"{', '.join(map(str, GROUPS))} that divides its {channels} channels"
        )
    return group


def _tiled(layer: Layer, name: str, dtypes: tuple[str, ...], outputs: int, channels: int, size: int) -> int:
    """The number of scales of a row, where one is shared by `size` channels. Raises InputError for other shapes."""
    groups, rest = divmod(channels, size)
    if rest:
        raise layer.wrong("weight", f"expected a multiple of {size} channels")
    count = math.prod(-(-n // tile) * tile for n, tile in zip((outputs, groups), _TILE, strict=True))
    if math.prod(layer.entry(name, *dtypes).shape) != count:
        raise layer.wrong(name, f"expected {count} scales in tiles of {_TILE[0]} x {_TILE[1]}")
    return groups


def _untiled(scales: mx.array, rows: int, columns: int) -> mx.array:
    """Scales (rows, columns) from tiles of 128 x 4, each as 32 x 4 x 4: row % 32, row // 32, column.

    As cuBLAS reads block scales (its documentation, "1D block scaling factors layout"; `to_blocked` of comfy-kitchen).
    """
    down, across = (-(-n // tile) for n, tile in zip((rows, columns), _TILE, strict=True))
    tiles = scales.reshape(down, across, 32, 4, 4).transpose(0, 3, 2, 1, 4)
    return tiles.reshape(down * _TILE[0], across * _TILE[1])[:rows, :columns]
