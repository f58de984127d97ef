"""Linears that a file stores as one, by rows: `img_mlp.gate_up` of Qwen-Image-2.1, as ComfyUI and others store it.

Its first half is `gate_layer`, its second `proj` (ComfyUI, comfy/ldm/qwen_image21/model.py, `SwiGLUFeedForward`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields
from pathlib import Path

import mlx.core as mx

from precision_lab.device.page_cache import Extent
from precision_lab.errors import InputError, inline
from precision_lab.model.codings.base import Coding
from precision_lab.model.stored.base import StoredLinear, StoredWeights

_JOINED = {"img_mlp.gate_up": ("img_mlp.gate_layer", "img_mlp.proj")}
"""The ends of the paths of joined linears, and those of their halves."""


@dataclass(frozen=True, kw_only=True)
class SplitWeights(StoredWeights):
    """Weights whose joined linears are apart. Tensors that both halves need, like the scale of a tensor, are shared."""

    _whole: StoredWeights
    _rows: Mapping[str, int]
    """The rows of a half, by path of the joined linear."""
    _shared: frozenset[str]
    """The arrays of joined linears that belong to their channels, so that both halves have them."""

    @classmethod
    def of(cls, files: StoredWeights) -> StoredWeights:
        """The same weights with joined linears apart; `files` itself if it has none.

        Raises InputError for a joined linear with an odd number of rows.
        """
        rows: dict[str, int] = {}
        for name, shape in files.shapes().items():
            path, _, last = name.rpartition(".")
            if path.endswith(tuple(_JOINED)) and last == "weight" and len(shape) == 2:
                rows[path], rest = divmod(shape[0], 2)
                if rest:
                    raise InputError(f"{files.source}: tensor {inline(name)} has {shape[0]} rows, expected two halves")
        if not rows:
            return files
        linears: dict[str, StoredLinear] = {}
        shared: set[str] = set()
        for path, linear in files.linears.items():
            if path in rows:
                if isinstance(linear.storage, Coding):
                    shared |= {f"{path}.{array}" for array in linear.storage.of_channels}
                shape = rows[path], linear.shape[1]
                linears |= dict.fromkeys(_halves(path), linear._replace(shape=shape, multiple=1))
            else:
                linears[path] = linear
        common = {field.name: getattr(files, field.name) for field in fields(StoredWeights)}
        return cls(**common | {"linears": linears}, _whole=files, _rows=rows, _shared=frozenset(shared))

    @property
    def layout(self) -> str:
        return f"{self._whole.layout}, gate_up joined"

    @property
    def files(self) -> tuple[Path, ...]:
        return self._whole.files

    def _read(self) -> MutableMapping[str, mx.array]:
        return _Tensors(self._whole.read(), self._rows, self._shared)

    def _templates(self, paged: str) -> MutableMapping[str, mx.array]:
        return _Tensors(self._whole.templates(paged), self._rows, self._shared)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self._whole.shapes().items():
            rows = self._rows.get(_path(name), 0)
            halved = (rows, *shape[1:]) if rows and shape[:1] == (2 * rows,) else shape
            shapes |= dict.fromkeys(_names(name, self._rows), halved)
        return shapes

    def extents(self) -> dict[str, Extent]:
        extents: dict[str, Extent] = {}
        for name, extent in self._whole.extents().items():
            first, *others = _names(name, self._rows)
            extents[first] = extent
            for other in others:
                half = extent.nbytes // 2
                extents[first] = extent._replace(nbytes=half)
                extents[other] = extent._replace(offset=extent.offset + half, nbytes=extent.nbytes - half)
        return extents


class _Tensors(MutableMapping[str, mx.array]):
    """Tensors by name; a joined one is taken from `whole` when the first of its halves is."""

    def __init__(self, whole: MutableMapping[str, mx.array], rows: Mapping[str, int], shared: frozenset[str]):
        self._whole, self._rows, self._shared = whole, rows, shared
        self._joined = {half: name for name in whole if _path(name) in rows for half in _names(name, rows)}
        """The joined tensors that are not taken yet, by the names of their halves."""
        self._apart: dict[str, mx.array] = {}

    def __getitem__(self, name: str) -> mx.array:
        if name in self._joined:
            joined = self._joined[name]
            array, rows = self._whole.pop(joined), self._rows[_path(joined)]
            split = array.ndim > 0 and array.shape[0] == 2 * rows and joined not in self._shared
            halves = (array[:rows], array[rows:]) if split else (array, array)
            for half, part in zip(_names(joined, self._rows), halves, strict=True):
                if self._joined.pop(half, None) is not None:
                    self._apart[half] = part
        return self._apart[name] if name in self._apart else self._whole[name]

    def __setitem__(self, name: str, array: mx.array) -> None:
        self._joined.pop(name, None)
        self._apart[name] = array

    def __delitem__(self, name: str) -> None:
        if name in self._apart:
            del self._apart[name]
        elif self._joined.pop(name, None) is None:
            del self._whole[name]

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in self._whole if _path(name) not in self._rows)
        yield from (*self._joined, *self._apart)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        if name in self._joined or name in self._apart:
            return True
        return isinstance(name, str) and name in self._whole and _path(name) not in self._rows


def _path(name: str) -> str:
    return name.rpartition(".")[0]


def _halves(path: str) -> tuple[str, ...]:
    """The paths of the two linears that one at `path` joins."""
    end = next(end for end in _JOINED if path.endswith(end))
    return tuple(path.removesuffix(end) + half for half in _JOINED[end])


def _names(name: str, rows: Mapping[str, int]) -> tuple[str, ...]:
    """The names of the two tensors that a joined one has, or the name itself."""
    path, _, last = name.rpartition(".")
    return tuple(f"{half}.{last}" for half in _halves(path)) if path in rows else (name,)
