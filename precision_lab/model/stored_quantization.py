"""Finds the quantised modules of a stored component and checks their declared packing against the tensors.

A quantised module at `path` is stored as `path.weight`, packed into uint32, `path.scales` and, in the affine mode,
`path.biases`. Two tools declare the packing:

- mlx-lm writes `"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}` to config.json. Every path that
  differs has a further entry, another such object or false. `quantization_config` repeats the whole object.
- mflux writes the level to the header of the weights, see `mflux`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError, nearest
from precision_lab.model import mflux
from precision_lab.model.quantized import MODES, Quantization, QuantizedEmbedding, QuantizedLinear

_KEY, _COPY = "quantization", "quantization_config"
_FIELDS = ("group_size", "bits", "mode")
_FLOAT_TYPES = (mx.float32, mx.float16, mx.bfloat16)

Rename = Callable[[str], str | None]
"""Maps a stored path to the path in the model, or to None if the model has no such module."""


class _Declaration(Protocol):
    """The quantisation that a folder declares for its modules."""

    def at(self, path: str, channels: int, tensors: Mapping[str, mx.array]) -> Quantization:
        """The quantisation of the module at `path`, which has `channels` input channels.

        Raises InputError if the declaration and the tensors disagree.
        """

    def check_paths(self, modules: Mapping[str, nn.Module], tensors: Mapping[str, mx.array]) -> None:
        """Raises InputError for a declared path that the model or the tensors lack."""


def quantized_modules(
    model: nn.Module,
    config: Mapping[str, Any],
    metadata: Mapping[str, str],
    tensors: Mapping[str, mx.array],
    rename: Rename,
) -> dict[str, nn.Module]:
    """Quantised replacements, by path, for the linears and embeddings of `model` that are quantised in `tensors`.

    config: the configuration of the component. metadata: the metadata of its weight files. tensors: its tensors, under
    the names of the model. Nothing is evaluated and `model` is not changed. The modules hold no weights yet, only
    parameters of the expected shapes.

    Raises InputError for packed weights without scales, for scales without packed weights, for modules that cannot be
    quantised, and if config, metadata and tensors contradict each other.
    """
    for name, tensor in tensors.items():
        path = name.rpartition(".")[0]
        if tensor.dtype == mx.uint32 and f"{path}.scales" not in tensors:
            raise InputError(f"tensor {name} is U32, expected F32, F16 or BF16: {path}.scales is missing")
    declared = _declaration(config, metadata, rename)
    modules = dict(model.named_modules())
    quantized: dict[str, nn.Module] = {}
    for path in sorted(name.removesuffix(".scales") for name in tensors if name.endswith(".scales")):
        if path not in modules:
            continue  # an unknown tensor, for the loader to report
        if declared is None:
            raise InputError(
                f"tensor {path}.scales: quantised, but config.json does not say how; expected an entry like "
                '"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}'
            )
        quantized[path] = _quantized(path, modules[path], declared, tensors)
    if declared is not None:
        declared.check_paths(modules, tensors)
    return quantized


def channels_of(config: Mapping[str, Any], metadata: Mapping[str, str], path: str, words: int, groups: int) -> int:
    """The input channels of a quantised module from the last sizes of its packed weight and its scales.

    Without a model, the header of mflux leaves two readings: that with groups of 64 is taken, as mflux writes no other.
    Raises InputError if config and metadata contradict each other or state no packing that exists.
    """
    declared = _declaration(config, metadata, lambda name: name)
    if isinstance(declared, _Listed):
        bits = (declared.paths.get(path) or declared.default).bits
        return words * 32 // bits
    level = declared.bits if isinstance(declared, _Level) else None
    read = (words * 32 // bits for bits in (level, mflux.PROTECTED_BITS) if bits)
    return next((channels for channels in read if channels == 64 * groups), words * 32 // mflux.PROTECTED_BITS)


def _quantized(path: str, module: nn.Module, declared: _Declaration, tensors: Mapping[str, mx.array]) -> nn.Module:
    if not isinstance(module, nn.Linear | nn.Embedding):
        raise InputError(f"tensor {path}.scales: {path} is {type(module).__name__}, expected a linear or an embedding")
    if f"{path}.weight" not in tensors:
        raise InputError(f"tensor {path}.weight is missing, but {path}.scales is there")
    rows, channels = module.weight.shape
    quantization = declared.at(path, channels, tensors)
    _check_types(path, quantization, tensors)
    if channels % quantization.group_size:
        raise InputError(f"{path}: {channels} input channels, which groups of {quantization.group_size} do not divide")
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(rows, channels, **quantization.arguments)
    return QuantizedLinear(channels, rows, "bias" in module, **quantization.arguments)


def _check_types(path: str, quantization: Quantization, tensors: Mapping[str, mx.array]) -> None:
    affine = quantization.mode == "affine"
    packed = tensors[f"{path}.weight"].dtype
    if packed != mx.uint32:
        raise InputError(f"tensor {path}.weight is {_spelled(packed)} but has {path}.scales, expected packed uint32")
    if affine != (f"{path}.biases" in tensors):
        fault = "is missing, which affine quantisation needs" if affine else f"is one too many: {quantization}"
        raise InputError(f"tensor {path}.biases {fault}")
    expected = _FLOAT_TYPES if affine else (mx.uint8,)
    for name in (f"{path}.scales", f"{path}.biases")[: 2 if affine else 1]:
        if tensors[name].dtype not in expected:
            raise InputError(
                f"tensor {name} is {_spelled(tensors[name].dtype)}, expected {' or '.join(map(_spelled, expected))} "
                f"for {quantization.mode}"
            )


def _spelled(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def _declaration(config: Mapping[str, Any], metadata: Mapping[str, str], rename: Rename) -> _Declaration | None:
    """The declaration in config.json, or else that of mflux in the metadata; None if there is neither.

    Raises InputError if they differ.
    """
    level = mflux.level(metadata)
    entry = _entry(config)
    if entry is None:
        return _Level(level) if mflux.wrote(metadata) else None
    listed = _Listed.of(entry, rename)
    if level not in (None, listed.default.bits):
        raise InputError(
            f"config.json says {listed.default.bits} bits (quantization.bits), the header of the weights {level} "
            "(quantization_level)"
        )
    return listed


def _entry(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    entries = {key: config[key] for key in (_KEY, _COPY) if config.get(key) is not None}
    for key, entry in entries.items():
        if not isinstance(entry, Mapping):
            raise InputError(f"config.json: {key} is {entry!r}, expected an object with {', '.join(_FIELDS)}")
    if len(entries) == 2 and entries[_KEY] != entries[_COPY]:
        differ = min(k for k in {**entries[_KEY], **entries[_COPY]} if entries[_KEY].get(k) != entries[_COPY].get(k))
        raise InputError(
            f"config.json: {differ} is {entries[_KEY].get(differ)!r} in {_KEY}, but {entries[_COPY].get(differ)!r} in "
            f"{_COPY}, expected the same"
        )
    return next(iter(entries.values()), None)


@dataclass(frozen=True)
class _Listed:
    """The declaration of mlx-lm: a default and, by path in the model, the exceptions; None means not quantised.

    As in `mlx.nn.quantize`, the entry of a path inherits nothing from the default: a missing field is MLX's default.
    """

    default: Quantization
    paths: Mapping[str, Quantization | None]

    @classmethod
    def of(cls, entry: Mapping[str, Any], rename: Rename) -> _Listed:
        common = {key: entry.get(key) for key in _FIELDS}
        for key in ("group_size", "bits"):
            if common[key] is None:
                raise InputError(f"config.json: quantization has no {key}, expected {', '.join(_FIELDS)}")
        default = _read("quantization", common)
        paths: dict[str, Quantization | None] = {}
        for key, value in entry.items():
            if key in _FIELDS:
                continue
            if not isinstance(value, Mapping | bool):
                raise InputError(
                    f"config.json: quantization.{key} is {value!r}, expected {', '.join(_FIELDS)}, or the path of a "
                    "module with an object or false"
                )
            path = rename(key)
            if path is not None:
                paths[path] = (default if value else None) if isinstance(value, bool) else _read(key, value)
        return cls(default, paths)

    def at(self, path: str, channels: int, tensors: Mapping[str, mx.array]) -> Quantization:
        quantization = self.paths.get(path, self.default)
        if quantization is None:
            raise InputError(f"tensor {path}.scales: quantised, but quantization in config.json has false for {path}")
        return quantization

    def check_paths(self, modules: Mapping[str, nn.Module], tensors: Mapping[str, mx.array]) -> None:
        for path, quantization in self.paths.items():
            if path not in modules:
                raise InputError(f"config.json: quantization names {path}, no such module. {nearest(path, modules)}")
            if quantization is not None and f"{path}.scales" not in tensors:
                raise InputError(f"tensor {path}.scales is missing: config.json says {quantization}")


def _read(what: str, entry: Mapping[str, Any]) -> Quantization:
    for key in entry:
        if key not in _FIELDS:
            raise InputError(f"config.json: quantization of {what}: unknown entry {key!r}. {nearest(key, _FIELDS)}")
    mode = "affine" if entry.get("mode") is None else entry["mode"]
    return Quantization.checked(f"config.json: {what}", mode, entry.get("bits"), entry.get("group_size"))


@dataclass(frozen=True)
class _Level:
    """The declaration of mflux: the bits of every layer that is not protected, or None if nothing is quantised."""

    bits: int | None

    def at(self, path: str, channels: int, tensors: Mapping[str, mx.array]) -> Quantization:
        if self.bits is None:
            raise InputError(f"tensor {path}.scales: quantised, but the header's quantization_level is None")
        packed, scales = (tensors[f"{path}.{name}"].shape for name in ("weight", "scales"))
        words, groups = (shape[-1] if len(shape) == 2 else 0 for shape in (packed, scales))
        for bits in MODES["affine"].bits:
            for group_size in MODES["affine"].groups:
                if words * 32 == channels * bits and groups * group_size == channels:
                    return self._allowed(path, Quantization(group_size, bits, "affine"))
        raise InputError(
            f"{path}: weight has shape {packed} and scales {scales}, but mx.quantize has no packing of "
            f"{channels} input channels with these shapes, expected {self.bits} bits"
        )

    def _allowed(self, path: str, quantization: Quantization) -> Quantization:
        if quantization.bits not in (self.bits, mflux.PROTECTED_BITS):
            raise InputError(
                f"{path}: packed with {quantization.bits} bits by its shapes, expected {self.bits} (quantization_level "
                f"in the header) or {mflux.PROTECTED_BITS}"
            )
        return quantization

    def check_paths(self, modules: Mapping[str, nn.Module], tensors: Mapping[str, mx.array]) -> None:
        """mflux declares no paths."""
