"""The 4-bit formats of comfy-kitchen that other programs prepare: AWQ W4A16 and SVDQuant W4A4.

Sources: comfy-kitchen 0.2, tensor/awq_w4a16.py, tensor/svdquant_w4a4.py and backends/eager/svdquant.py; ComfyUI,
comfy/ops.py; comfy-quants, docs/formats. Groups and outputs of scales are the other way round in the files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from precision_lab.errors import InputError, inline, shown
from precision_lab.model.codings.awq import Awq
from precision_lab.model.codings.int4 import GROUP, Int4, Int4Inputs
from precision_lab.model.codings.svdquant import SVDQuant
from precision_lab.model.stored.base import StoredLinear
from precision_lab.model.stored.layer import Layer, Made, Stored, same

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TILED = "kitchen_tile_packed_w4a4"
_ROWS, _QUAD = 128, 4
"""Rows of a tile, and rows whose bytes lie side by side in it."""
GELU_SHIFT = 0.171875
"""What nunchaku adds to the result of GELU, so that inputs are positive and 4 bits have 16 levels for them."""

ZEROS = ("weight_zeros", "weight_zero")
DOWN, UP, SMOOTH = (
    (f"weight_{name}", name) for name in ("proj_down", "proj_up", "smooth_factor")
)  # ComfyUI's names, and comfy-quants'
PARTS = (*ZEROS, *DOWN, *UP, *SMOOTH)
"""The last parts of the names of tensors beside the weight and `weight_scale`."""


def awq(layer: Layer) -> Stored:
    """Two unsigned numbers a byte, the first one low; scales and centres (groups, outputs)."""
    outputs, half = layer.matrix("I8", "U8")
    channels, group = 2 * half, layer.about.get("group_size", GROUP)
    if type(group) is not int or group < 2 or group % 2 or channels % group:
        raise InputError(
            f"{layer.file}: {inline(layer.path)} has group_size {shown(group)}, expected an even number that divides "
            f"its {channels} channels"
        )
    zeros = layer.one_of(*ZEROS)
    for name in ("weight_scale", zeros):
        layer.shaped(name, channels // group, outputs)
    kind = layer.entries["weight_scale"].dtype
    arrays = {
        "weight": Made("weight", lambda codes: codes.view(mx.uint8)),
        "scale": Made("weight_scale", mx.transpose),
        "zero": Made(zeros, mx.transpose),
    }
    linear = StoredLinear(Awq(group, _DTYPES[kind]), (outputs, channels), tuple(arrays))
    return Stored("awq_w4a16", linear, arrays, blocks={"scale": kind, "zero": layer.entries[zeros].dtype})


def svdquant(layer: Layer) -> Stored:
    """Two signed numbers a byte, the first one low, and scales (groups, outputs), in rows or in tiles of 128 rows.

    Beside the residual there are the factors `proj_down` (channels, rank) and `proj_up` (outputs, rank), which take
    inputs as they are, and the vector `smooth_factor` (channels,), by which the inputs of the residual are divided.
    With `act_unsigned` the residual takes inputs plus GELU_SHIFT: the bias of the file makes up for it.
    """
    _check_about(layer)
    tiled = layer.about.get("layout") == _TILED
    outputs, channels = _tiled_shape(layer) if tiled else _rows_shape(layer)
    groups, down, up, smooth = channels // GROUP, layer.one_of(*DOWN), layer.one_of(*UP), layer.one_of(*SMOOTH)
    rank = layer.shaped(down, channels, None)[1]
    if tiled:
        layer.shaped("weight_scale", outputs // _ROWS, groups, _ROWS)
        layer.shaped(up, outputs // _ROWS, rank, _ROWS)
    else:
        layer.shaped("weight_scale", groups, outputs)
        layer.shaped(up, outputs, rank)
    values = layer.numbers(smooth, channels)
    wrong = np.flatnonzero(~np.isfinite(values) | (values == 0))
    if wrong.size:
        raise layer.wrong(smooth, f"with {values[wrong[0]]:g} at {wrong[0]}, expected finite numbers that are not zero")
    kind, unsigned = layer.entries["weight_scale"].dtype, layer.about.get("act_unsigned", False)
    if unsigned and "bias" not in layer.entries:
        raise InputError(f"{layer.file}: tensor {inline(layer.path)}.bias is missing, which act_unsigned needs")
    coding = SVDQuant(rank, Int4(GROUP, _DTYPES[kind]), shift=GELU_SHIFT if unsigned else 0.0)
    arrays = {
        "weight": Made("weight", _weight_of_tiles if tiled else lambda codes: codes.view(mx.int8)),
        "scale": Made("weight_scale", _of_tiles if tiled else mx.transpose),
        "up": Made(up, _of_tiles if tiled else same),
        "down": Made(down, same),
        "smooth": Made(smooth, same),
    }
    linear = StoredLinear(coding, (outputs, channels), tuple(arrays), Int4Inputs(unsigned=unsigned))
    form = "svdquant_w4a4" + (" in tiles" if tiled else "")
    bias = coding.unshifted if unsigned else None
    return Stored(form, linear, arrays, blocks={"scale": kind}, bias=bias)


def _check_about(layer: Layer) -> None:
    """Raises InputError for settings with which the format means something else."""
    expected: Mapping[str, tuple[object, ...]] = {
        "layout": ("natural", _TILED),
        "act_unsigned": (False, True),
        "lowrank_branch_input_basis": ("raw",),
        "proj_down_smooth_folded": (True,),
        "group_size": (GROUP,),
    }
    for name, values in expected.items():
        value = layer.about.get(name, values[0])
        if not any(type(value) is type(known) and value == known for known in values):
            raise InputError(
                f"{layer.file}: {inline(layer.path)} has {name} {shown(value)}, which is not read, expected "
                f"{' or '.join(map(shown, values))}"
            )


def _rows_shape(layer: Layer) -> tuple[int, int]:
    """Outputs and channels of a weight in rows. Raises InputError if it does not divide into groups."""
    outputs, half = layer.matrix("I8", "U8")
    if 2 * half % GROUP:
        raise layer.wrong("weight", f"expected a multiple of {GROUP} channels")
    return outputs, 2 * half


def _tiled_shape(layer: Layer) -> tuple[int, int]:
    """Outputs and channels of a weight in tiles of 128 rows and 64 channels. Raises InputError for other shapes."""
    tile = _ROWS // _QUAD, _QUAD * GROUP // 2
    shape = layer.entry("weight", "I8", "U8").shape
    if len(shape) != 4 or shape[2:] != tile or 0 in shape:
        raise layer.wrong("weight", f"expected tiles of {tile[0]} x {tile[1]}")
    return shape[0] * _ROWS, shape[1] * GROUP


def _weight_of_tiles(codes: mx.array) -> mx.array:
    """The bytes (outputs, channels / 2), int8, of tiles (outputs / 128, groups, 32, 4 * 32)."""
    tiles, groups, quads, _ = codes.shape
    rows = codes.reshape(tiles, groups, quads, _QUAD, GROUP // 2).transpose(0, 2, 3, 1, 4)
    return mx.contiguous(rows).reshape(tiles * _ROWS, math.prod((groups, GROUP // 2))).view(mx.int8)


def _of_tiles(array: mx.array) -> mx.array:
    """The rows (outputs, n) of tiles (outputs / 128, n, 128)."""
    return array.transpose(0, 2, 1).reshape(-1, array.shape[1])
