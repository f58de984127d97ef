"""Strict loading of safetensors, single-file or sharded, into a module.

Headers are checked before any tensor is read. A truncated file, a missing shard or a tensor that does not fit therefore
raises a one-line error instead of a crash in the middle of a run. Tensors stay lazy until they are evaluated.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from precision_lab.device.page_cache import Extent
from precision_lab.errors import InputError, first_line, nearest
from precision_lab.model import mflux
from precision_lab.model.stored_quantization import quantized_modules

Sanitize = Callable[[dict[str, mx.array]], tuple[dict[str, mx.array], list[str]]]
"""Maps stored tensors, by name, to those that the module expects; also returns the names that were left out."""

_FLOAT_TYPES = {"F32", "F16", "BF16"}
_PACKED_TYPES = {"U32": ".weight", "U8": ".scales"}  # of quantised weights, with the suffix that their names must have
_MAX_HEADER = 100_000_000  # the limit of the safetensors format


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a component's folder: the files in its index, or its only file.

    Raises InputError if the folder has no such file, several without an index, or an index that names an absent file.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}, expected one with config.json and *.safetensors")
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        weight_map = read_json(indices[0]).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{indices[0]}: no weight_map, expected a mapping of tensor names to files")
        names = sorted(set(map(str, weight_map.values())))
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise InputError(f"{indices[0].name} names {absent[0]}, which is not in {folder} ({len(absent)} absent)")
        return [folder / name for name in names]
    files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    if len(files) != 1:
        actual = "no *.safetensors" if not files else f"{len(files)} *.safetensors files and no index"
        raise InputError(f"{folder}: {actual}, expected one file or a *.safetensors.index.json")
    return files


def read(folder: Path) -> dict[str, mx.array]:
    """All tensors of a component under their published names, lazily loaded.

    Raises InputError for damaged files and for tensors of unsupported dtypes.
    """
    tensors: dict[str, mx.array] = {}
    for file in shards(folder):
        check_header(file)
        try:
            loaded: Any = mx.load(str(file))
        except RuntimeError as error:
            raise InputError(f"{file}: not a safetensors file: {first_line(error)}") from error
        repeated = tensors.keys() & loaded.keys()
        if repeated:
            raise InputError(f"{file}: tensor {min(repeated)} is also in another shard")
        tensors.update(loaded)
    return mflux.published_names(tensors) if mflux.wrote(metadata(folder)) else tensors


def extents(folder: Path) -> dict[str, Extent]:
    """The file, offset and size in bytes of every tensor of a component, under its published name."""
    places = {}
    for file in shards(folder):
        data = _header(file)[1]
        for name, entry in check_header(file).items():
            begin, end = entry["data_offsets"]
            places[name] = Extent(file, data + begin, end - begin)
    return mflux.published_names(places) if mflux.wrote(metadata(folder)) else places


def check_header(file: Path) -> Mapping[str, Any]:
    """Checks a safetensors file and returns the header entry of each of its tensors, by name.

    Supported dtypes are F32, F16 and BF16, and for quantised weights U32 (`.weight`) and U8 (`.scales`). Raises
    InputError if the file is truncated, is not a safetensors file or has a tensor of another dtype.
    """
    header, data = _header(file)
    size = file.stat().st_size
    try:
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = data + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        wrong = sorted(name for name, entry in tensors.items() if not _readable(name, entry["dtype"]))
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{file}: not a safetensors file: its header is malformed") from error
    if end > size:
        raise InputError(f"{file}: truncated: {size} bytes, expected {end}")
    if wrong:
        raise InputError(
            f"{file}: tensor {wrong[0]} is {tensors[wrong[0]]['dtype']}, expected F32, F16 or BF16 "
            f"({len(wrong)} such tensors)"
        )
    return tensors


def _readable(name: str, dtype: str) -> bool:
    return dtype in _FLOAT_TYPES or (dtype in _PACKED_TYPES and name.endswith(_PACKED_TYPES[dtype]))


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and the offset of its data. Raises InputError if it is not such a file."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        prefix = opened.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
        if length > min(_MAX_HEADER, size):
            raise InputError(f"{file}: not a safetensors file, or truncated at {size} bytes")
        try:
            header = json.loads(opened.read(length))
        except ValueError as error:
            raise InputError(f"{file}: not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise InputError(f"{file}: not a safetensors file: its header is malformed")
    return header, 8 + length


def metadata(folder: Path) -> dict[str, str]:
    """The metadata in the headers of a component's weight files, complemented by that in their index.

    Raises InputError if two files contradict each other.
    """
    merged: dict[str, str] = {}
    for file in shards(folder):
        own = _header(file)[0].get("__metadata__")
        for key, value in (own if isinstance(own, dict) else {}).items():
            if merged.setdefault(key, str(value)) != str(value):
                raise InputError(f"{file}: {key} is {value!r} in its header, but {merged[key]!r} in another shard's")
    for index in sorted(folder.glob("*.safetensors.index.json"))[:1]:
        own = read_json(index).get("metadata")
        for key, value in (own if isinstance(own, dict) else {}).items():
            merged.setdefault(key, str(value))
    return merged


def load(model: nn.Module, folder: Path, sanitize: Sanitize | None = None) -> list[str]:
    """Loads exactly the tensors of `folder` into `model`; returns the names that `sanitize` left out.

    A linear or an embedding that the folder stores quantised is replaced in `model` by its quantised form (see
    `stored_quantization`).

    Raises InputError that names the first tensor that is missing, unknown, of another shape, or packed differently from
    what the folder declares. `model` is unchanged in that case.
    """
    tensors, modules, ignored = _fitting(model, folder, sanitize)
    for path, module in modules.items():
        _put(model, path, module)
    model.load_weights(list(tensors.items()), strict=True)
    return ignored


def _fitting(
    model: nn.Module, folder: Path, sanitize: Sanitize | None
) -> tuple[dict[str, mx.array], dict[str, nn.Module], list[str]]:
    """The tensors for the model, the quantised modules that must replace its own, by path, and the names left out."""
    sanitize = sanitize or (lambda stored: (stored, []))
    tensors, ignored = sanitize(read(folder))

    def rename(path: str) -> str | None:
        return next((name.removesuffix(".weight") for name in sanitize({f"{path}.weight": mx.array(0.0)})[0]), None)

    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    try:
        modules = quantized_modules(model, config, metadata(folder), tensors, rename)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    expected = {name: parameter.shape for name, parameter in tree_flatten(model.parameters())}
    for path, module in modules.items():
        del expected[f"{path}.weight"]
        expected |= {f"{path}.{name}": parameter.shape for name, parameter in tree_flatten(module.parameters())}
    _check_names(folder, tensors, expected)
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            module = modules.get(name.rpartition(".")[0])
            packing = f" ({module.bits} bits in groups of {module.group_size})" if module is not None else ""
            raise InputError(
                f"{folder}: tensor {name} has shape {tensors[name].shape}, expected {shape} by config.json{packing}"
            )
    return tensors, modules, ignored


def _check_names(folder: Path, tensors: Mapping[str, mx.array], expected: Mapping[str, object]) -> None:
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise InputError(
            f"{folder}: tensor {missing[0]} is missing ({len(missing)} missing, {len(extra)} unknown). "
            + nearest(missing[0], extra or tensors)
        )
    if extra:
        raise InputError(f"{folder}: unknown tensor {extra[0]} ({len(extra)} unknown). " + nearest(extra[0], expected))


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = path.split(".")
    parent: Any = model
    for key in parents:
        parent = parent[int(key)] if isinstance(parent, list) else parent[key]
    if isinstance(parent, list):
        parent[int(name)] = module
    else:
        parent[name] = module


def cast(model: nn.Module, weights: mx.Dtype | None, compute: mx.Dtype) -> None:
    """Rounds the weights to the storage dtype `weights` (None: as stored), then casts them for the dtype `compute`.

    With fp32 computation they stay narrow, because an fp32 copy of 20 B weights would not fit one GPU; MLX upcasts them
    exactly where they are used. With 16-bit computation they are cast, because MLX would otherwise promote the product.
    Packed weights and integer scales are unchanged.
    """
    for dtype in (weights, None if compute == mx.float32 else compute):
        if dtype is not None:
            model.set_dtype(dtype)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError if the file cannot be read or holds no JSON object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: expected a JSON object")
    return value
