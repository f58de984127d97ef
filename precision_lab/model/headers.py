"""The header of a safetensors file, checked before a tensor is read: the reader of MLX trusts it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from precision_lab.errors import InputError, inline
from precision_lab.model import foreign
from precision_lab.record.safetensors import NotSafetensorsError, check_extents, entry_of, is_entry, read_header

_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "U8": 1, "I64": 8, "I32": 4}
_INTEGERS = {"U32": ".weight", "U8": ".scales", "I64": ".alpha", "I32": ".alpha"}
"""Types of quantised weights, and of the alpha of an adapter, with the suffix that their names must have."""


class Header(NamedTuple):
    """The entry of each tensor by name, the metadata of the file, and the offset of the data in bytes."""

    tensors: Mapping[str, Any]
    metadata: Mapping[str, Any]
    data: int


def check_header(file: Path, refuse_names: Callable[[Iterable[str], Path], None] = foreign.refuse_names) -> Header:
    """Checks a safetensors file and returns its header.

    Supported dtypes are F32, F16 and BF16, for quantised weights U32 (`.weight`) and U8 (`.scales`), and for an adapter
    I64 and I32 (`.alpha`). Raises InputError if the file is truncated, is not a safetensors file, has a tensor of
    another dtype or a name that `refuse_names` refuses, or if shapes and offsets contradict each other.
    """
    header, data = _read(file)
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in tensors.items():
        if not is_entry(entry):
            raise InputError(f"{file}: not a safetensors file: the header entry of tensor {name!r:.80} is malformed")
    last = max(tensors, key=lambda name: tensors[name]["data_offsets"][1], default=None)
    size, end = file.stat().st_size, data if last is None else data + tensors[last]["data_offsets"][1]
    if last is not None and end > size:
        raise InputError(f"{file}: truncated: {size} bytes, but tensor {inline(last, 120)} ends at {end}")
    refuse_names(tensors, file)
    wrong = sorted(name for name, entry in tensors.items() if not _readable(name, entry["dtype"]))
    if wrong:
        raise InputError(
            f"{file}: tensor {wrong[0]:.120} is {tensors[wrong[0]]['dtype']:.40}, expected F32, F16 or BF16 "
            f"({len(wrong)} such tensors)"
        )
    check_extents(file, {name: entry_of(file, entry, data) for name, entry in tensors.items()}, _BYTES)
    metadata = header.get("__metadata__")
    return Header(tensors, metadata if isinstance(metadata, dict) else {}, data)


def _readable(name: str, dtype: str) -> bool:
    return dtype in _BYTES and name.endswith(_INTEGERS.get(dtype, ""))


def _read(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and the offset of its data. Raises InputError if it is not such a file."""
    try:
        return read_header(file)
    except NotSafetensorsError:
        if foreign.kind_of(file) != foreign.SAFETENSORS:
            foreign.refuse_file(f"{file}: not a safetensors file: it", file)
        raise
