"""The header of a safetensors file, as plain data. Its tensors are not read, and it may come from anybody."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from precision_lab.errors import InputError, inline
from precision_lab.record.files import parse_json

_MAX_HEADER = 16 << 20
"""Bytes of a header, 50 times that of a transformer of 20 B weights. The format allows 100 MB, of which Python would
make 2.4 GB of objects."""

_MAX_RANK = 8

_MAX_NUMBER = 1 << 63
"""The format has 64 bits for a number. Python refuses to print one of more than 4,300 digits."""


class NotSafetensorsError(InputError):
    """A file is not a safetensors file, or not a whole one."""


class Entry(NamedTuple):
    """A tensor in a file: its dtype as the format spells it, its shape, and where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    size: int

    def content(self) -> bytes:
        """Its bytes. Raises InputError if the file does not have them."""
        try:
            with self.file.open("rb") as opened:
                opened.seek(self.begin)
                content = opened.read(self.size)
        except OSError as error:
            raise InputError(f"{self.file} cannot be read: {error.strerror}") from error
        if len(content) < self.size:
            raise InputError(f"{self.file}: truncated, {self.size - len(content)} bytes are missing")
        return content


def read_entries(file: Path) -> tuple[dict[str, Entry], Mapping[str, str]]:
    """The tensors of a safetensors file by name, and its metadata.

    Raises InputError if it is not such a file, or for a malformed entry.
    """
    header, data = read_header(file)
    metadata = header.pop("__metadata__", None) or {}
    entries = {}
    for name, entry in header.items():
        if not is_entry(entry):
            raise InputError(f"{file}: not a safetensors file: the header entry of tensor {name!r:.80} is malformed")
        entries[name] = entry_of(file, entry, data)
    return entries, metadata


def mentions(file: Path, dtype: str) -> bool:
    """Whether the header of a safetensors file names a dtype. Nothing is checked; False for a file without one."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            return length <= _MAX_HEADER and f'"{dtype}"'.encode() in opened.read(length)
    except OSError:
        return False


def entry_of(file: Path, entry: Mapping[str, Any], data: int) -> Entry:
    """A well-formed entry of the header of `file`, whose data begin at the offset `data`."""
    begin, end = entry["data_offsets"]
    return Entry(entry["dtype"], tuple(entry["shape"]), file, data + begin, end - begin)


def check_extents(file: Path, entries: Mapping[str, Entry], widths: Mapping[str, int]) -> None:
    """Checks where a file says that its tensors are. widths: bytes an element, by dtype, for all dtypes that occur.

    Raises InputError for a tensor whose extent is not that of its shape, that overlaps another, or that the file cuts
    off.
    """
    size, before, owner = file.stat().st_size, 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].size)):
        expected, end = math.prod(entry.shape) * widths[entry.dtype], entry.begin + entry.size
        if entry.size != expected:
            raise InputError(
                f"{file}: tensor {inline(name, 120)} of shape {entry.shape} has {entry.size} bytes, expected {expected}"
            )
        if entry.begin < before:
            raise InputError(f"{file}: tensors {inline(owner, 120)} and {inline(name, 120)} overlap")
        if end > size:
            raise InputError(f"{file}: truncated: {size} bytes, but tensor {inline(name, 120)} ends at {end}")
        if entry.size:
            before, owner = end, name


def is_entry(entry: Any) -> bool:
    """Whether `entry` describes a tensor: a dtype, a shape, and the first byte and the end of its data."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2 or len(shape) > _MAX_RANK:
        return False
    return all(type(n) is int and 0 <= n < _MAX_NUMBER for n in (*shape, *offsets)) and offsets[0] <= offsets[1]


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, with its metadata, and the offset of its data.

    Raises NotSafetensorsError if the file has none, and InputError if that is malformed or cannot be read.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            prefix = opened.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
            if _MAX_HEADER < length < size:
                raise NotSafetensorsError(f"{file}: a header of {length} bytes, expected at most {_MAX_HEADER}")
            if length > size - 8:
                raise NotSafetensorsError(f"{file}: not a safetensors file, or truncated at {size} bytes")
            content = opened.read(length)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    try:
        header = parse_json(content)
    except (ValueError, RecursionError) as error:
        why = f", {error}" if "is there twice" in str(error) else ""
        raise InputError(f"{file}: not a safetensors file: its header is not JSON{why}") from error
    if not isinstance(header, dict):
        raise InputError(f"{file}: not a safetensors file: its header is malformed")
    about = header.get("__metadata__")
    about = {} if about is None else about  # mx.save_safetensors writes null where it was given none
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise InputError(f"{file}: not a safetensors file: __metadata__ in its header is malformed, expected texts")
    return header, 8 + length
