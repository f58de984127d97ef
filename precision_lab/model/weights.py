"""Strict loading of safetensors, single-file or sharded, into a module.

Headers are checked before anything is read: a truncated file, a missing shard or a tensor that does not fit is one
clear line, not a crash in the middle of a run. Tensors stay lazy until they are evaluated.
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

from precision_lab.errors import InputError, nearest

# Sanitize functions take (name -> array) as stored and return it as the module wants it, with the names left out.
Sanitize = Callable[[dict[str, mx.array]], tuple[dict[str, mx.array], list[str]]]

_FLOAT_TYPES = {"F32", "F16", "BF16"}
_MAX_HEADER = 100_000_000  # the limit of the safetensors format


def shards(folder: Path) -> list[Path]:
    """The safetensors files of a component's folder: those its index names, or the only one there is.

    Raises InputError if the folder holds none, several without an index, or the index names an absent file.
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
        found = "no *.safetensors" if not files else f"{len(files)} *.safetensors files and no index"
        raise InputError(f"{folder}: {found}, expected one file or a *.safetensors.index.json")
    return files


def read(folder: Path) -> dict[str, mx.array]:
    """All tensors of a component, lazily loaded. Raises InputError for files that are damaged or of other types."""
    tensors: dict[str, mx.array] = {}
    for file in shards(folder):
        check_header(file)
        try:
            loaded: Any = mx.load(str(file))
        except RuntimeError as error:
            raise InputError(f"{file}: not a safetensors file: {str(error).splitlines()[0]}") from error
        twice = tensors.keys() & loaded.keys()
        if twice:
            raise InputError(f"{file}: tensor {min(twice)} stands in another shard too")
        tensors.update(loaded)
    return tensors


def check_header(file: Path) -> Mapping[str, Any]:
    """The header of a safetensors file, after checking that all its tensors are floating point and present."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
        if length > min(_MAX_HEADER, size):
            raise InputError(f"{file}: not a safetensors file, or truncated at {size} bytes")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise InputError(f"{file}: not a safetensors file: its header is not JSON") from error
    try:
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        wrong = sorted(name for name, entry in tensors.items() if entry["dtype"] not in _FLOAT_TYPES)
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


def load(model: nn.Module, folder: Path, sanitize: Sanitize | None = None) -> list[str]:
    """Fills `model` with the tensors of `folder`, all of them and no others; returns the names left out by sanitize.

    Raises InputError naming the first tensor that is missing, extra or of another shape.
    """
    tensors, ignored = (sanitize or (lambda stored: (stored, [])))(read(folder))
    expected = dict(tree_flatten(model.parameters()))
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise InputError(
            f"{folder}: tensor {missing[0]} is missing ({len(missing)} missing, {len(extra)} unknown). "
            + nearest(missing[0], extra or tensors)
        )
    if extra:
        raise InputError(f"{folder}: unknown tensor {extra[0]} ({len(extra)} unknown). " + nearest(extra[0], expected))
    for name, parameter in expected.items():
        if tensors[name].shape != parameter.shape:
            raise InputError(
                f"{folder}: tensor {name} has shape {tensors[name].shape}, expected {parameter.shape} by config.json"
            )
    model.load_weights(list(tensors.items()), strict=True)
    return ignored


def cast(model: nn.Module, weights: mx.Dtype | None, compute: mx.Dtype) -> None:
    """Rounds the weights to the storage dtype `weights` (None: as stored), then fits them to the compute dtype.

    For fp32 they are left narrow, since MLX upcasts them exactly where they are used: an fp32 copy of 20 B weights
    would not fit one GPU. For 16-bit computation they are cast, or MLX would promote the product.
    """
    for dtype in (weights, None if compute == mx.float32 else compute):
        if dtype is not None:
            model.set_dtype(dtype)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError if it cannot be read or is not one."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: expected a JSON object")
    return value
