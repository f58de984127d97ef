"""Adapters of a model, LoRA and LoKr, read from safetensors files that anybody may have written."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from precision_lab.errors import InputError, first_line, nearest, shown
from precision_lab.model.adapters.deltas import Delta, Kronecker, LowRank
from precision_lab.model.adapters.names import Layer, brief, key_of, layers_of, writer_of
from precision_lab.model.adapters.scaling import Scaling
from precision_lab.model.folder import local
from precision_lab.model.headers import check_header

Shapes = Mapping[str, tuple[int, int]]
"""(outputs, channels) of the linears of a model by module path."""

_CONFIG = "adapter_config.json"
_USUAL = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}")
_FUSED = {"gate_up": ("gate_layer", "proj")}
"""A linear of ComfyUI's files, and those of the published model that it joins, in the order of its outputs."""


def read_adapter(path: str) -> Adapter:
    """The adapter in a safetensors file, or in a folder as PEFT or diffusers save it. No factor is read yet.

    path: package://NAME is an embedded one.

    Raises InputError for a path without an adapter, a damaged file, a kind of adapter that is not read, unknown or
    missing tensors, factors whose shapes contradict each other, and scales that contradict each other.
    """
    file = _located(path)
    header = check_header(file, lambda names, where: None)
    shapes = {name: tuple(entry["shape"]) for name, entry in header.tensors.items()}
    prefix, layers = layers_of(shapes, file)
    scaling = Scaling.from_metadata(header.metadata, file)
    config = file.parent / _CONFIG
    if prefix == "base_model.model." and scaling is None:
        if not config.is_file():
            raise InputError(f"{file}: no {_CONFIG} beside it, expected that of PEFT, which has the scale")
        scaling = Scaling.from_file(config)
    for layer in layers:
        _check_factors(layer, shapes, scaling, file, len(layers))
    return Adapter(file, writer_of(prefix), {layer.key: layer for layer in layers}, shapes, scaling)


@dataclass(frozen=True, eq=False)
class Adapter:
    """The layers of an adapter file by the key of their linear, see `names.key_of`.

    writer: who names tensors like this. shapes: by tensor. scaling: None where the file has an alpha a layer, or none.
    """

    file: Path
    writer: str
    layers: Mapping[str, Layer]
    shapes: Mapping[str, tuple[int, ...]]
    scaling: Scaling | None
    _unread: dict[str, mx.array] = field(default_factory=dict, repr=False)

    def deltas(self, linears: Shapes) -> dict[str, Delta]:
        """The change of every linear that the file names, by module path, in the order of `linears`.

        A delta holds no values until it is evaluated: `delta.matrix()` is (outputs, channels) in fp32, one linear at a
        time. Raises InputError as `check` does.
        """
        self.check(linears)
        found = ((path, self.delta(path, shape)) for path, shape in linears.items())
        return {path: delta for path, delta in found if delta is not None}

    def names(self, path: str) -> bool:
        """Whether the file has a change for the linear at `path`."""
        return self._place(path) is not None

    def check(self, linears: Shapes) -> None:
        """Raises InputError unless every layer of the file is a linear of the model and fits its shape.

        The message names the file, the first tensor, and how many fit.
        """
        names = _by_key(linears)
        total = len(self.layers)
        unknown = [layer for key, layer in self.layers.items() if key not in names]
        if unknown:
            choices: Iterable[str] = linears if "." in unknown[0].module else names
            raise InputError(
                f"{self.file}: tensor {brief(unknown[0].first)} is of no linear of this model "
                f"({total - len(unknown)} of {total} are). {nearest(unknown[0].module, choices)}"
            )
        unfit = [layer for key, layer in self.layers.items() if self._shape(layer) != names[key]]
        if unfit:
            expected, found = names[unfit[0].key], self._shape(unfit[0])
            raise InputError(
                f"{self.file}: tensor {brief(unfit[0].first)} and its other factors change a weight of "
                f"{found[0]} x {found[1]}, expected {expected[0]} x {expected[1]} ({total - len(unfit)} of {total} fit)"
            )

    def fitting(self, linears: Shapes) -> int:
        """How many layers of the file are linears of the model and fit their shapes."""
        names = _by_key(linears)
        return sum(names.get(key) == self._shape(layer) for key, layer in self.layers.items())

    @property
    def kinds(self) -> tuple[str, ...]:
        """LoRA, LoKr or both."""
        low = ["down" in layer.tensors for layer in self.layers.values()]
        return (*(("LoRA",) if any(low) else ()), *(("LoKr",) if not all(low) else ()))

    def ranks(self) -> Counter[int]:
        """The ranks, each with the number of its layers; a layer of whole factors has none."""
        return Counter(rank for layer in self.layers.values() if (rank := _rank(layer, self.shapes)) is not None)

    def alphas(self) -> Counter[float]:
        """The alphas that the file or a configuration states, each with the number of its layers.

        Raises InputError for an alpha that is not finite.
        """
        if self.scaling is not None:
            return Counter(self.scaling.alpha_of(layer.module) for layer in self.layers.values())
        return Counter(self._alphas.values())

    def delta(self, path: str, shape: tuple[int, int]) -> Delta | None:
        """The change of the linear at `path`, of `shape` (outputs, channels); None if the file does not name it.

        Its factors are not read yet, and the adapter does not keep them. Raises InputError if it does not fit.
        """
        place = self._place(path)
        if place is None:
            return None
        layer, part = place
        delta = self._delta(layer)
        if part is not None:
            if not isinstance(delta, LowRank):
                raise InputError(f"{self.file}: tensor {brief(layer.first)}: LoKr of joined linears is not read")
            delta = delta.rows(part * shape[0], (part + 1) * shape[0])
        if delta.shape != shape:
            raise InputError(f"{self.file}: its change of {path} is {delta.shape}, expected {shape}")
        return delta

    def _place(self, path: str) -> tuple[Layer, int | None] | None:
        """The layer for the linear at `path`, and which of the linears that the layer joins it is."""
        layer = self.layers.get(key_of(path))
        if layer is not None:
            return layer, None
        head, _, last = path.rpartition(".")
        for fused, parts in _FUSED.items():
            joined = self.layers.get(key_of(f"{head}.{fused}")) if last in parts else None
            if joined is not None:
                return joined, parts.index(last)
        return None

    def _array(self, name: str) -> mx.array:
        """A tensor of the file, which is read when it is evaluated; a new array at each call, held by the caller."""
        if name not in self._unread:
            try:
                loaded: Any = mx.load(str(self.file), format="safetensors")
            except RuntimeError as error:
                raise InputError(f"{self.file}: not a safetensors file: {first_line(error)}") from error
            self._unread.update(loaded)
        return self._unread.pop(name)

    @cached_property
    def _alphas(self) -> Mapping[str, float]:
        """The alpha tensors by layer, all read at once."""
        stored = {key: layer.tensors["alpha"] for key, layer in self.layers.items() if "alpha" in layer.tensors}
        arrays = {key: self._array(name).astype(mx.float32) for key, name in stored.items()}
        mx.eval(arrays)
        values: dict[str, Any] = {key: array.item() for key, array in arrays.items()}
        for key, value in values.items():
            if not math.isfinite(value):
                raise InputError(f"{self.file}: tensor {brief(stored[key])} is {value}, expected a finite number")
        return values

    def _delta(self, layer: Layer) -> Delta:
        factors = {part: self._array(name) for part, name in layer.tensors.items() if part != "alpha"}
        kind = LowRank if "down" in factors else Kronecker
        return kind(factors, self._factor(layer))

    def _factor(self, layer: Layer) -> float:
        alpha = self._alphas.get(layer.key)
        if self.scaling is not None:
            stated = self.scaling.factor(layer.module)
            if alpha is not None and alpha != self.scaling.alpha_of(layer.module):
                raise InputError(
                    f"{self.file}: tensor {brief(layer.tensors['alpha'])} is {alpha:g}, but {self.scaling.source} has "
                    f"an alpha of {self.scaling.alpha_of(layer.module):g}"
                )
            return stated
        rank = _rank(layer, self.shapes)
        return 1.0 if alpha is None or rank is None else alpha / rank

    def _shape(self, layer: Layer) -> tuple[int, int]:
        return _changed_shape(layer, self.shapes)


def _by_key(linears: Shapes) -> dict[str, tuple[int, int]]:
    """The shapes of linears, and of those that files join, by their keys."""
    names = {key_of(path): shape for path, shape in linears.items()}
    for path, shape in linears.items():
        for fused, parts in _FUSED.items():
            head = path.removesuffix(parts[0])
            if path.endswith(f".{parts[0]}"):
                names.setdefault(key_of(head + fused), (len(parts) * shape[0], shape[1]))
    return names


def _changed_shape(layer: Layer, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """(outputs, channels) of the weight that a layer changes."""
    sizes = {part: shapes[name] for part, name in layer.tensors.items() if part != "alpha"}
    if "down" in sizes:
        return sizes["up"][0], sizes["down"][1]
    (n1, k1), (n2, k2) = (
        sizes[name] if name in sizes else (sizes[f"{name}_a"][0], sizes[f"{name}_b"][1]) for name in ("w1", "w2")
    )
    return n1 * n2, k1 * k2


def _rank(layer: Layer, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The rank by which alpha is divided. LoKr has that of w2, or of w1; with two whole factors alpha is not used."""
    for part in ("down", "w2_b", "w1_b"):
        if part in layer.tensors:
            return shapes[layer.tensors[part]][0]
    return None


def _check_factors(
    layer: Layer, shapes: Mapping[str, tuple[int, ...]], scaling: Scaling | None, file: Path, total: int
) -> None:
    """Raises InputError for a factor that is no matrix, inner sizes that differ, and another rank than stated."""
    for part, name in layer.tensors.items():
        shape = shapes[name]
        if part == "alpha":
            if math.prod(shape) != 1:
                raise InputError(f"{file}: tensor {brief(name)} has shape {shape}, expected one number")
        elif len(shape) != 2 or 0 in shape:
            raise InputError(
                f"{file}: tensor {brief(name)} has shape {shape}, expected a matrix (one of {total} linears)"
            )
    inner = [("down", "up")] if "down" in layer.tensors else [("w1_b", "w1_a"), ("w2_b", "w2_a")]
    for right, left in inner:
        if right in layer.tensors:
            rows, columns = shapes[layer.tensors[right]][0], shapes[layer.tensors[left]][1]
            if rows != columns:
                raise InputError(
                    f"{file}: tensor {brief(layer.tensors[right])} has rank {rows}, "
                    f"but {brief(layer.tensors[left])} has rank {columns}"
                )
    if scaling is not None and "down" in layer.tensors:
        rank, stated = shapes[layer.tensors["down"]][0], scaling.rank_of(layer.module)
        if rank != stated:
            raise InputError(
                f"{file}: tensor {brief(layer.tensors['down'])} has rank {rank}, but {scaling.source} has rank {stated}"
            )


def _located(path: str) -> Path:
    """The safetensors file at `path`, or the one of a folder. Raises InputError if there is none, or several."""
    given = Path(local(path))
    if os.path.isfile(given):
        return given
    if not os.path.isdir(given):
        hub = ". Adapters are not fetched from the Hub: download the file" if _HUB_ID.fullmatch(path) else ""
        raise InputError(f"adapter {shown(path)}: no such file or folder, expected a safetensors file{hub}")
    for name in _USUAL:
        if (given / name).is_file():
            return given / name
    files = sorted(file for file in given.glob("*.safetensors") if file.is_file())
    if len(files) != 1:
        found = f"{len(files)} safetensors files, such as {files[0].name}" if files else "no safetensors file"
        raise InputError(f"adapter {shown(path)}: {found}, expected one, {' or '.join(_USUAL)}")
    return files[0]
