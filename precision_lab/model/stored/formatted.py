"""Weights in safetensors files of which some linears are in a format of `stored.formats`, whatever declares it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from precision_lab.device.page_cache import Extent
from precision_lab.errors import InputError, first_line, inline
from precision_lab.model.stored.base import StoredWeights
from precision_lab.model.stored.finite import Scales
from precision_lab.model.stored.layer import Stored, no_scale
from precision_lab.record.safetensors import Entry, read_entries


@dataclass(frozen=True, kw_only=True)
class FormattedWeights(StoredWeights):
    """The tensors of the files by published name, linears in a format under the names of its arrays."""

    _entries: Mapping[str, Entry]
    """Those that are no part of a linear in a format, by published name."""
    _stored: Mapping[str, Stored]
    """The linears in a format, by path."""
    _parts: Mapping[str, Entry]
    """Their tensors by published name, with the last part that the file has."""
    _prefix: str = ""
    """What stands before the published names in the files."""

    @property
    def layout(self) -> str:
        return ", ".join(sorted({stored.form for stored in self._stored.values()}))

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(sorted({entry.file for entry in (*self._entries.values(), *self._parts.values())}))

    def _read(self) -> MutableMapping[str, mx.array]:
        read: dict[str, mx.array] = {}
        for file in self.files:
            try:
                arrays: Any = mx.load(str(file), format="safetensors")
            except RuntimeError as error:
                raise InputError(f"{file}: not a safetensors file: {first_line(error)}") from error
            read |= arrays
        tensors: dict[str, mx.array] = {}
        for name, entry in self._entries.items():
            array = read[self._prefix + name]
            tensors[name] = mx.from_fp8(array, mx.bfloat16) if entry.dtype == "F8_E4M3" else array
        for path, stored in self._stored.items():
            for name, (tensor, convert) in stored.arrays.items():
                tensors[f"{path}.{name}"] = convert(read[f"{self._prefix}{path}.{tensor}"])
            if stored.bias is not None:
                arrays = {name: tensors[f"{path}.{name}"] for name in stored.arrays}
                tensors[f"{path}.bias"] = stored.bias(arrays, tensors[f"{path}.bias"])
        return tensors

    def _scales(self) -> Mapping[str, Scales]:
        return {
            f"{path}.{array}": Scales.alone(kind, f"{path}.{stored.arrays[array].tensor}")
            for path, stored in self._stored.items()
            for array, kind in stored.blocks.items()
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        weights = {f"{path}.weight": linear.shape for path, linear in self.linears.items()}
        return {name: entry.shape for name, entry in self._entries.items()} | weights

    def extents(self) -> dict[str, Extent]:
        entries = dict(self._entries)
        for path, stored in self._stored.items():
            arrays = {made.tensor: name for name, made in stored.arrays.items() if made.convert is not no_scale}
            entries |= {f"{path}.{name}": self._parts[f"{path}.{tensor}"] for tensor, name in arrays.items()}
        return {name: Extent(entry.file, entry.begin, entry.size) for name, entry in entries.items()}


def read_shards(
    files: Iterable[Path], check: Callable[[Path, Mapping[str, Entry]], None]
) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of several files by name, and their metadata. check: raises InputError for a file that is refused.

    Raises InputError for a file that is no safetensors file, and for a tensor in two files.
    """
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    for file in files:
        found, about = read_entries(file)
        check(file, found)
        repeated = entries.keys() & found.keys()
        if repeated:
            raise InputError(f"{file}: tensor {inline(min(repeated))} is also in another shard")
        entries |= found
        metadata |= about
    return entries, metadata


def scales_beside(
    entries: Mapping[str, Entry], names: Iterable[str], wide: Iterable[str]
) -> dict[str, dict[str, Entry]]:
    """The tensors of linears that are packed or in float8 by path, each by the last part of its name.

    names: those of scales. wide: dtypes of weights that are neither.

    Raises InputError for a scale without such a weight.
    """
    found: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        path, _, last = name.rpartition(".")
        if last in names:
            weight = entries.get(f"{path}.weight")
            if weight is None or weight.dtype in wide:
                raise InputError(f"{entry.file}: tensor {inline(name)} has no quantised weight {inline(path)}.weight")
        elif last != "weight" or entry.dtype in wide or len(entry.shape) != 2:
            continue
        found.setdefault(path, {})[last] = entry
    return {path: {"weight": entries[f"{path}.weight"], **tensors} for path, tensors in found.items()}
