"""The header of a safetensors file, checked before a tensor is read: the reader of MLX trusts it."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from precision_lab.errors import InputError
from precision_lab.model import foreign

_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1}
_PACKED_TYPES = {"U32": ".weight", "U8": ".scales"}
"""Types of quantised weights, with the suffix that their names must have."""

_MAX_HEADER = 100_000_000
"""The limit of the safetensors format."""

_MAX_RANK = 8


class Header(NamedTuple):
    """The entry of each tensor by name, the metadata of the file, and the offset of the data in bytes."""

    tensors: Mapping[str, Any]
    metadata: Mapping[str, Any]
    data: int


def check_header(file: Path) -> Header:
    """Checks a safetensors file and returns its header.

    Supported dtypes are F32, F16 and BF16, and for quantised weights U32 (`.weight`) and U8 (`.scales`). Raises
    InputError if the file is truncated, is not a safetensors file, has a tensor of another dtype or of another program,
    or if shapes and offsets contradict each other.
    """
    header, data = _read(file)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in tensors.items():
        if not _is_entry(entry):
            raise InputError(f"{file}: not a safetensors file: the header entry of tensor {name!r:.80} is malformed")
    end = data + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    size = file.stat().st_size
    if end > size:
        raise InputError(f"{file}: truncated: {size} bytes, expected {end}")
    foreign.refuse_names(tensors, file)
    wrong = sorted(name for name, entry in tensors.items() if not _readable(name, entry["dtype"]))
    if wrong:
        raise InputError(
            f"{file}: tensor {wrong[0]} is {tensors[wrong[0]]['dtype']}, expected F32, F16 or BF16 "
            f"({len(wrong)} such tensors)"
        )
    _check_extents(file, tensors)
    metadata = header.get("__metadata__")
    return Header(tensors, metadata if isinstance(metadata, dict) else {}, data)


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2 or len(shape) > _MAX_RANK:
        return False
    return all(type(n) is int and n >= 0 for n in (*shape, *offsets)) and offsets[0] <= offsets[1]


def _check_extents(file: Path, tensors: Mapping[str, Any]) -> None:
    """Raises InputError for a tensor whose extent is not that of its shape, and for two that overlap."""
    before, owner = 0, ""
    for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        expected = math.prod(entry["shape"]) * _BYTES[entry["dtype"]]
        if end - begin != expected:
            raise InputError(
                f"{file}: tensor {name} of shape {tuple(entry['shape'])} has {end - begin} bytes, expected {expected}"
            )
        if begin < before:
            raise InputError(f"{file}: tensors {owner} and {name} overlap")
        if end > begin:
            before, owner = end, name


def _readable(name: str, dtype: str) -> bool:
    return dtype in _BYTES and name.endswith(_PACKED_TYPES.get(dtype, ""))


def _read(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and the offset of its data. Raises InputError if it is not such a file."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            prefix = opened.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
            if length > min(_MAX_HEADER, size):
                if foreign.kind_of(file) != foreign.SAFETENSORS:
                    foreign.refuse_file(f"{file}: not a safetensors file: it", file)
                raise InputError(f"{file}: not a safetensors file, or truncated at {size} bytes")
            content = opened.read(length)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise InputError(f"{file}: not a safetensors file: its header is malformed")
    about = header.get("__metadata__")
    about = {} if about is None else about  # mx.save_safetensors writes null where it was given none
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise InputError(f"{file}: not a safetensors file: __metadata__ in its header is malformed, expected texts")
    return header, 8 + length
