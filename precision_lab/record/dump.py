"""Named arrays of another program in a safetensors file, checked before they are read. The file may come from anybody.

An array is named by its address: the path of a module, and its port. `norm_out.linear` and `norm_out.linear.out` are
the output of that module, `norm_out.linear.in` its input, `attn.attend.in.1` its second input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from precision_lab.errors import InputError, inline
from precision_lab.numerics.formats import round_to
from precision_lab.record.safetensors import Entry, check_extents, read_entries

_DTYPES: Mapping[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_INTEGERS: Mapping[str, Any] = {
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
}
_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PORT = re.compile(r"(.+?)\.((?:in|out)(?:\.\d+)?)")


class Dump:
    """The arrays of a file by name, read when they are asked for, and its metadata."""

    def __init__(self, file: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]):
        self.file, self._entries, self.metadata = file, entries, metadata

    @classmethod
    def open(cls, file: Path, integers: bool = False) -> Dump:
        """integers: whether integers and booleans may occur, as in masks. Raises InputError for any other file."""
        if not file.is_file():
            raise InputError(f"{file}: no such file, expected a safetensors file")
        entries, metadata = read_entries(file)
        known = {**_DTYPES, **(_INTEGERS if integers else {})}
        for name, entry in entries.items():
            if entry.dtype not in known:
                raise InputError(f"{file}: {inline(name)} is {inline(entry.dtype, 20)}, expected {', '.join(known)} ")
        if not entries:
            raise InputError(f"{file}: it holds no array")
        check_extents(file, entries, {name: dtype.itemsize for name, dtype in known.items()})
        return cls(file, entries, metadata)

    @property
    def names(self) -> list[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def array(self, name: str) -> np.ndarray:
        """The values in their stored dtype."""
        entry = self._entries[name]
        return np.frombuffer(entry.content(), {**_DTYPES, **_INTEGERS}[entry.dtype]).reshape(entry.shape)

    def format(self, name: str) -> str:
        """The narrowest of bfloat16 and float16 that holds the values of a float32 array; otherwise its own dtype.

        Programs often cast what they save to float32.
        """
        own = _NAMES.get(self._entries[name].dtype, "float32")
        values = self.array(name)
        if own != "float32" or not np.isfinite(values).all() or not values.any():
            return own
        for narrow in ("bfloat16", "float16"):
            if np.array_equal(round_to(values, narrow), values.astype(np.float64)):
                return narrow
        return own


def place_of(name: str) -> tuple[str, str]:
    """The path and the port that the name of an array states."""
    found = _PORT.fullmatch(name)
    return (found[1], found[2]) if found else (name, "out")
