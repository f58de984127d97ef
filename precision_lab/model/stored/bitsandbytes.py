"""A component with linears in NF4, as diffusers and transformers save it with bitsandbytes.

Beside `P.weight`, the packed codes of the linear P, there are `P.weight.absmax`, the table `P.weight.quant_map`, with
double quantisation `P.weight.nested_absmax` and `P.weight.nested_quant_map`, and a JSON object as bytes in
`P.weight.quant_state.bitsandbytes__nf4`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from precision_lab.device.page_cache import Extent
from precision_lab.errors import InputError, first_line, inline, shown
from precision_lab.model.codings.nf4 import NESTED, NUMBERS, SIZES, Nf4, dynamic_map
from precision_lab.model.stored.base import StoredLinear, StoredWeights
from precision_lab.model.stored.finite import Scales
from precision_lab.model.stored.formatted import read_shards
from precision_lab.record.files import parse_json
from precision_lab.record.safetensors import Entry, check_extents

CONFIG = "quantization_config"
METHOD = "bitsandbytes"
"""The entry of a configuration that describes the method, and its `quant_method`."""
_STATE = ".quant_state.bitsandbytes__"
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}
_LARGEST_STATE = 1 << 16


def wrote(config: Mapping[str, Any]) -> bool:
    """Whether the configuration of a component says that bitsandbytes wrote its weights."""
    method = config.get(CONFIG)
    return isinstance(method, Mapping) and method.get("quant_method") == METHOD


@dataclass(frozen=True, kw_only=True)
class BitsandbytesFolder(StoredWeights):
    """The tensors of a folder, and its linears in NF4 under the names of their coding."""

    _offsets: Mapping[str, float]
    """The mean magnitude of the linears with double quantisation."""
    _entries: Mapping[str, Entry]
    """By published name."""
    _stored: Mapping[str, str]
    """The name in the files of each published one."""

    @classmethod
    def open(cls, folder: Path, config: Mapping[str, Any], files: list[Path]) -> BitsandbytesFolder:
        """The safetensors `files` of a component in `folder`, whose configuration names bitsandbytes.

        Raises InputError for damaged files, another method than NF4, or a linear whose arrays contradict each other or
        are not all there.
        """
        entries, metadata = read_shards(files, _check)
        names = {name: name for name in entries}
        linears: dict[str, StoredLinear] = {}
        offsets: dict[str, float] = {}
        for name in [name for name in entries if _STATE in name]:
            path, _, kind = name.partition(f".weight{_STATE}")
            if kind != "nf4":
                raise InputError(f"{entries[name].file}: tensor {inline(name)} is of kind {shown(kind)}, expected nf4")
            linear = _Linear(path, entries)
            linears[path] = StoredLinear(linear.coding, linear.shape, linear.arrays)
            if linear.coding.nested:
                offsets[path] = linear.offset
            for used in linear.names:
                del names[used]
            names |= linear.published
        for new, old in names.items():
            if entries[old].dtype == "U8" and new.rpartition(".")[0] not in linears:
                raise InputError(f"{entries[old].file}: tensor {inline(old)} is U8, but belongs to no linear in NF4")
        return cls(
            source=folder,
            config={key: value for key, value in config.items() if key != CONFIG},
            metadata=metadata,
            linears=linears,
            _offsets=offsets,
            _entries={new: entries[old] for new, old in names.items()},
            _stored=names,
        )

    @property
    def layout(self) -> str:
        nested = ", scales quantised too" if self._offsets else ""
        return f"a folder of diffusers with linears in NF4 of bitsandbytes{nested}"

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(sorted({entry.file for entry in self._entries.values()}))

    def _read(self) -> MutableMapping[str, mx.array]:
        loaded: dict[str, mx.array] = {}
        for file in self.files:
            try:
                arrays: Any = mx.load(str(file), format="safetensors")
            except RuntimeError as error:
                raise InputError(f"{file}: not a safetensors file: {first_line(error)}") from error
            loaded |= arrays
        tensors = {name: loaded[stored] for name, stored in self._stored.items()}
        for path, linear in self.linears.items():
            outputs = linear.shape[0]
            tensors[f"{path}.weight"] = tensors[f"{path}.weight"].reshape(outputs, -1)
            tensors[f"{path}.absmax"] = tensors[f"{path}.absmax"].reshape(outputs, -1)
            if path in self._offsets:
                tensors[f"{path}.nested_offset"] = mx.array(self._offsets[path])
        return tensors

    def _scales(self) -> Mapping[str, Scales]:
        plain = (path for path in self.linears if path not in self._offsets)
        return {f"{path}.absmax": Scales.alone("F32", f"{path}.weight.absmax") for path in plain}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        weights = {f"{path}.weight": linear.shape for path, linear in self.linears.items()}
        return {name: weights.get(name, entry.shape) for name, entry in self._entries.items()}

    def extents(self) -> dict[str, Extent]:
        return {name: Extent(entry.file, entry.begin, entry.size) for name, entry in self._entries.items()}


class _Linear:
    """The tensors of one linear, checked against the state that describes them."""

    def __init__(self, path: str, entries: Mapping[str, Entry]):
        self._weight, self._entries = f"{path}.weight", entries
        state = self._state()
        self.shape = self._shape(state)
        block = self._integer(state, "blocksize")
        if block not in SIZES or self.shape[1] % block:
            raise self._wrong(
                f"has blocks of {block}, expected one of {', '.join(map(str, SIZES))} that divides its "
                f"{self.shape[1]} channels"
            )
        nested = "nested_absmax" in self._present
        self.coding = Nf4(block, nested)
        self.arrays = ("weight", "absmax", *(("nested_absmax", "nested_offset") if nested else ()))
        self.published = {f"{path}.weight": self._weight, f"{path}.absmax": f"{self._weight}.absmax"}
        blocks = math.prod(self.shape) // block
        self._expect("", "U8", math.prod(self.shape) // 2)
        self._expect("absmax", "U8" if nested else "F32", blocks)
        self._table("quant_map", NUMBERS)
        self.offset = 0.0
        if nested:
            self.published[f"{path}.nested_absmax"] = f"{self._weight}.nested_absmax"
            if self._integer(state, "nested_blocksize") != NESTED:
                raise self._wrong(f"has nested_blocksize {state['nested_blocksize']!r:.40}, expected {NESTED}")
            self._expect("nested_absmax", "F32", -(-blocks // NESTED))
            if not np.isfinite(np.frombuffer(self._entry("nested_absmax").content(), "<f4")).all():
                raise self._wrong("has nested_absmax that are not finite")
            self._table("nested_quant_map", dynamic_map())
            offset = state.get("nested_offset")
            if not isinstance(offset, int | float) or not math.isfinite(offset):
                raise self._wrong(f"has nested_offset {offset!r:.40}, expected a number")
            self.offset = float(offset)

    @property
    def names(self) -> Iterator[str]:
        """Of all its tensors in the files."""
        yield self._weight
        yield from (f"{self._weight}.{name}" for name in self._present)

    @property
    def _present(self) -> tuple[str, ...]:
        known = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", f"{_STATE[1:]}nf4")
        return tuple(name for name in known if f"{self._weight}.{name}" in self._entries)

    def _state(self) -> dict[str, Any]:
        entry = self._entry(f"{_STATE[1:]}nf4")
        try:
            if entry.dtype != "U8" or entry.size > _LARGEST_STATE:
                raise ValueError("not a short text")
            state = parse_json(entry.content())
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise self._wrong(f"has a quant_state that is not JSON: {first_line(error)}") from error
        if not isinstance(state, dict) or state.get("quant_type") != "nf4":
            raise self._wrong("has a quant_state without quant_type nf4")
        return state

    def _shape(self, state: Mapping[str, Any]) -> tuple[int, int]:
        shape = state.get("shape")
        if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
            raise self._wrong(f"has shape {shape!r:.40} in its quant_state, expected outputs and channels")
        return shape[0], shape[1]

    def _integer(self, state: Mapping[str, Any], key: str) -> int:
        value = state.get(key)
        if type(value) is not int:
            raise self._wrong(f"has {key} {value!r:.40} in its quant_state, expected an integer")
        return value

    def _expect(self, name: str, dtype: str, numbers: int) -> None:
        entry = self._entry(name)
        if (entry.dtype, math.prod(entry.shape)) != (dtype, numbers):
            what = f"{name} of " if name else ""
            raise self._wrong(
                f"has {what}{math.prod(entry.shape)} {entry.dtype}, expected {numbers} {dtype} for {self.shape} in "
                f"blocks of {self.coding.block}"
            )

    def _table(self, name: str, expected: np.ndarray) -> None:
        self._expect(name, "F32", expected.size)
        if self._entry(name).content() != expected.astype("<f4").tobytes():
            raise self._wrong(f"has another table than NF4 in {name}")

    def _entry(self, name: str) -> Entry:
        full = f"{self._weight}.{name}" if name else self._weight
        if full not in self._entries:
            raise self._wrong(f"has no {inline(full, 120)}")
        return self._entries[full]

    def _wrong(self, why: str) -> InputError:
        state = self._entries[f"{self._weight}{_STATE}nf4"]
        return InputError(f"{state.file}: tensor {inline(self._weight)} {why}")


def _check(file: Path, entries: Mapping[str, Entry]) -> None:
    """Raises InputError for a tensor of another dtype, or that is not where its shape says."""
    for name, entry in entries.items():
        if entry.dtype not in _BYTES:
            raise InputError(
                f"{file}: tensor {inline(name)} is {inline(entry.dtype, 20)}, expected {', '.join(_BYTES)}"
            )
    check_extents(file, entries, _BYTES)
