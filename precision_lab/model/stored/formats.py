"""The formats in which ComfyUI and other programs store the weight of one linear beside its scales.

Each function checks the tensors of a linear against each other and says how they become the arrays of a coding or of a
packing. Sources: ComfyUI, comfy/ops.py (`_load_quantized_module`) and quant_ops.py (`QUANT_ALGOS`); comfy-kitchen 0.2,
float_utils.py and tensor/*.py. Inputs are rounded as ComfyUI rounds them on hardware with products in the format.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ml_dtypes
import mlx.core as mx
import numpy as np
import numpy.typing as npt

from precision_lab.errors import InputError, inline, nearest, shown
from precision_lab.model.codings.base import Inputs
from precision_lab.model.codings.convrot import GROUPS, ConvRot
from precision_lab.model.codings.float8 import Float8, Float8Inputs
from precision_lab.model.codings.int4 import Int4, Int4Inputs
from precision_lab.model.codings.int8 import Int8, Int8Inputs
from precision_lab.model.codings.microscaled import MXFP8, NVFP4, Mxfp8Inputs, Nvfp4Inputs
from precision_lab.model.stored.base import StoredLinear
from precision_lab.record.safetensors import Entry

FLOATS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
"""The types that scales have in files."""
Floats = npt.NDArray[np.float32]
INPUT_SCALES = ("scale_input", "input_scale")
"""The last parts of the names of scales of inputs."""
_TILE = (128, 4)
"""Rows and columns of a tile of scales as cuBLAS reads them."""


class Made(NamedTuple):
    """An array of a linear: the last part of the name of its tensor in the file, and what makes it from that one."""

    tensor: str
    convert: Callable[[mx.array], mx.array]


class Stored(NamedTuple):
    """A linear in a format of its file.

    form: the name of the format. arrays: those of `linear`, by name. inputs: the last parts of the names of the scales
    that `linear.inputs` has. blocks: the types of arrays of scales that are checked when they are read, by their names;
    there are many.
    """

    form: str
    linear: StoredLinear
    arrays: Mapping[str, Made]
    inputs: tuple[str, ...] = ()
    blocks: Mapping[str, str] = MappingProxyType({})


def no_scale(_: mx.array) -> mx.array:
    """The scale of a weight that has none in its file."""
    return mx.ones((1, 1))


def _same(array: mx.array) -> mx.array:
    return array


def _column(scales: mx.array) -> mx.array:
    return scales.astype(mx.float32).reshape(-1, 1)


_BY_ROW = {"weight": Made("weight", _same), "scale": Made("weight_scale", _column)}


@dataclass(frozen=True)
class Layer:
    """A linear of a file before it is checked.

    path: that of the module. entries: its tensors by the last part of their names, as `weight` or `weight_scale`.
    about: what the file says of it.
    """

    file: Path
    path: str
    entries: Mapping[str, Entry]
    about: Mapping[str, Any]

    def entry(self, name: str, *dtypes: str) -> Entry:
        """A tensor of one of these types. Raises InputError if it is missing or of another type."""
        if name not in self.entries:
            raise InputError(f"{self.file}: tensor {inline(self.path)}.{name} is missing")
        if self.entries[name].dtype not in dtypes:
            raise self.wrong(name, f"expected {' or '.join(dtypes)}")
        return self.entries[name]

    def matrix(self, *dtypes: str) -> tuple[int, int]:
        """The shape of the stored weight. Raises InputError if it is no matrix of one of these types."""
        shape = self.entry("weight", *dtypes).shape
        if len(shape) != 2 or 0 in shape:
            raise self.wrong("weight", "expected outputs and channels")
        return shape[0], shape[1]

    def scales(self, name: str, *counts: int) -> int:
        """How many numbers the scales of this name have.

        Raises InputError unless that is one of `counts` and all are finite: one scale spoils a whole tensor or row.
        """
        values = self._numbers(name, *counts)
        wrong = np.flatnonzero(~np.isfinite(values))
        if wrong.size:
            raise self.wrong(name, f"with {values[wrong[0]]:g} at {wrong[0]}, expected finite numbers")
        return len(values)

    def number(self, name: str) -> float:
        """The positive number that a tensor holds. Raises InputError if it holds anything else."""
        value = float(self._numbers(name, 1)[0])
        if not 0 < value < math.inf:
            raise InputError(f"{self.file}: tensor {inline(self.path)}.{name} is {value:g}, expected a positive number")
        return value

    def _numbers(self, name: str, *counts: int) -> Floats:
        """The values of a tensor, which must be one of these counts of floats. Raises InputError otherwise."""
        entry = self.entry(name, *FLOATS)
        if math.prod(entry.shape) not in counts:
            raise self.wrong(name, f"expected {' or '.join(map(str, sorted(set(counts))))} numbers")
        return np.frombuffer(entry.content(), FLOATS[entry.dtype]).astype(np.float32)

    def wrong(self, name: str, why: str) -> InputError:
        """The error for a tensor of this linear."""
        entry = self.entries[name]
        return InputError(
            f"{self.file}: tensor {inline(self.path)}.{name} is {shown(entry.dtype)} of shape {entry.shape}, {why}"
        )


def unscaled(weight: Entry) -> Stored:
    """A linear in e4m3 without a scale; the inputs are left alone."""
    arrays = {"weight": Made("weight", _same), "scale": Made("weight", no_scale)}
    linear = StoredLinear(Float8("none"), (weight.shape[0], weight.shape[1]), tuple(arrays))
    return Stored("float8 without scales", linear, arrays)


def float8(layer: Layer) -> Stored:
    """`weight` in e4m3, `weight_scale` or `scale_weight` with one number or one an output, maybe a scale of inputs."""
    outputs, channels = layer.matrix("F8_E4M3", "U8")
    name = "scale_weight" if "scale_weight" in layer.entries else "weight_scale"
    scale = "tensor" if layer.scales(name, 1, outputs) == 1 else "channel"
    given = next((name for name in INPUT_SCALES if name in layer.entries), None)
    inputs = Float8Inputs(layer.number(given) if given else 1.0)
    arrays = {"weight": Made("weight", _same), "scale": Made(name, _column)}
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
    return _nvfp4(layer, codes, Made("weight_scale", _same), multiple=1)


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
    known = {made.tensor for made in stored.arrays.values()} | set(INPUT_SCALES)
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
