"""Folders of a component in float8 or nvfp4, as NVIDIA ModelOpt, compressed-tensors and diffusers write them.

- ModelOpt 0.47: `quantization_config` of config.json has the `quant_method` modelopt, or hf_quant_config.json is there.
  `P.weight` is e4m3 with `P.weight_scale`, or nvfp4 with `P.weight_scale_2` too; `P.input_scale` may be there.
- compressed-tensors 0.20: the `quant_method` is compressed-tensors, the `format` float-quantized or naive-quantized;
  `config_groups` says which scales inputs have.
- Without either: e4m3 as it is cast, as diffusers saves a transformer with layerwise casting, or with scales.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from precision_lab.errors import InputError, inline, shown
from precision_lab.model.codings.base import Inputs
from precision_lab.model.codings.float8 import Float8Inputs
from precision_lab.model.stored.formats import float8, nvfp4_rows, unscaled
from precision_lab.model.stored.formatted import FormattedWeights, read_shards, scales_beside
from precision_lab.model.stored.layer import FLOATS, Layer, Stored
from precision_lab.model.weights import read_json
from precision_lab.record.safetensors import Entry, check_extents, mentions

CONFIG = "quantization_config"
MODELOPT, COMPRESSED = "modelopt", "compressed-tensors"
_BESIDE = "hf_quant_config.json"
_ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "W4A16_NVFP4")
_FORMATS = ("float-quantized", "naive-quantized")
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1}
_SCALES = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")


def holds(folder: Path, config: Mapping[str, Any], files: Iterable[Path]) -> bool:
    """Whether the safetensors `files` of a component in `folder` are read here, by what declares them or by a dtype."""
    stated = config.get(CONFIG)
    method = stated.get("quant_method") if isinstance(stated, Mapping) else None
    if method is not None:
        return method in (MODELOPT, COMPRESSED)
    return (folder / _BESIDE).is_file() or any(mentions(file, "F8_E4M3") for file in files)


class _Declared(NamedTuple):
    """Who wrote a folder, and the rounding of the inputs of linears in float8: `inputs`, or by a stored scale.

    static: whether every such linear must have a scale of its inputs.
    """

    writer: str | None
    inputs: Inputs | None = None
    static: bool = False


@dataclass(frozen=True, kw_only=True)
class Float8Folder(FormattedWeights):
    """The tensors of a folder."""

    _writer: str

    @classmethod
    def open(cls, folder: Path, config: Mapping[str, Any], files: Iterable[Path]) -> Float8Folder:
        """The safetensors `files` of a component in `folder`.

        Raises InputError for damaged files, a format that is not read, a weight without its scales or scales without
        their weight, and tensors that contradict each other.
        """
        declared = _declared(folder, config)
        entries, metadata = read_shards(files, _check)
        beside = scales_beside(entries, _SCALES, FLOATS)
        scaled = declared.writer is not None or any(len(tensors) > 1 for tensors in beside.values())
        stored: dict[str, Stored] = {}
        for path, tensors in beside.items():
            if scaled:
                form = float8 if tensors["weight"].dtype == "F8_E4M3" else nvfp4_rows
                layer = Layer(tensors["weight"].file, path, tensors, {})
                each = form(layer)
                if declared.static:
                    layer.entry("input_scale", *FLOATS)
                if not each.inputs:  # the format's own rounding is that of ComfyUI
                    inputs = declared.inputs if form is float8 else None
                    each = each._replace(linear=each.linear._replace(inputs=inputs))
                stored[path] = each
            elif tensors["weight"].dtype == "F8_E4M3":
                stored[path] = unscaled(tensors["weight"])
        names = {f"{path}.{name}" for path in stored for name in beside[path]}
        kept = {name: entry for name, entry in entries.items() if name not in names}
        for name, entry in kept.items():
            if entry.dtype == "U8":
                raise InputError(f"{entry.file}: tensor {inline(name)} is U8, but is no weight of a linear with scales")
        return cls(
            source=folder,
            config={key: value for key, value in config.items() if key != CONFIG},
            metadata=metadata,
            linears={path: each.linear for path, each in stored.items()},
            input_scales=tuple(f"{path}.{name}" for path, each in stored.items() for name in each.inputs),
            _entries=kept,
            _stored=stored,
            _parts={name: entries[name] for name in names},
            _writer=declared.writer or "diffusers",
        )

    @property
    def layout(self) -> str:
        return f"a folder of {self._writer}, {super().layout}"


def _declared(folder: Path, config: Mapping[str, Any]) -> _Declared:
    """What the configuration says. Raises InputError for a format that is not read."""
    file, stated = folder / "config.json", config.get(CONFIG)
    if isinstance(stated, Mapping) and stated.get("quant_method") == COMPRESSED:
        return _of_groups(file, stated)
    beside = folder / _BESIDE
    if beside.is_file():
        details = read_json(beside).get("quantization")
        algorithm = details.get("quant_algo") if isinstance(details, Mapping) else None
        if isinstance(stated, Mapping) and stated.get("quant_algo", algorithm) != algorithm:
            raise InputError(
                f"{file}: {CONFIG}.quant_algo is {shown(stated['quant_algo'])}, but {_BESIDE} says {shown(algorithm)}"
            )
        file = beside
    elif isinstance(stated, Mapping):
        algorithm = stated.get("quant_algo")
    else:
        return _Declared(None)
    if algorithm not in _ALGORITHMS:
        raise InputError(f"{file}: quant_algo is {shown(algorithm)}, which is not read, expected {_or(_ALGORITHMS)}")
    return _Declared(MODELOPT, Float8Inputs("token") if algorithm == _ALGORITHMS[1] else None)


def _of_groups(file: Path, stated: Mapping[str, Any]) -> _Declared:
    """What all groups of linears say of inputs. Raises InputError if they differ, or for a format that is not read."""
    groups = stated.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, Mapping) else []
    if not schemes or not all(isinstance(scheme, Mapping) for scheme in schemes):
        raise InputError(f"{file}: {CONFIG}.config_groups is {shown(groups)}, expected groups with weights")
    found: list[_Declared] = []
    for scheme in schemes:
        form = scheme.get("format") or stated.get("format")
        if form not in _FORMATS:
            raise InputError(f"{file}: {CONFIG}.format is {shown(form)}, which is not read, expected {_or(_FORMATS)}")
        weights, inputs = scheme.get("weights"), scheme.get("input_activations")
        if not _is_float8(weights) or weights.get("strategy", "tensor") not in ("tensor", "channel"):
            raise InputError(f"{file}: weights are {shown(weights)}, expected float of 8 bits by tensor or channel")
        if inputs is None:
            found.append(_Declared(COMPRESSED))
        elif not _is_float8(inputs) or inputs.get("strategy", "tensor") not in ("tensor", "token"):
            raise InputError(f"{file}: inputs are {shown(inputs)}, expected float of 8 bits by tensor or token")
        else:
            dynamic = Float8Inputs(inputs.get("strategy", "tensor")) if inputs.get("dynamic") else None
            found.append(_Declared(COMPRESSED, dynamic, dynamic is None))
    if len(set(found)) > 1:
        raise InputError(f"{file}: {CONFIG}.config_groups round inputs in different ways, expected one")
    return found[0]


def _is_float8(scheme: Any) -> bool:
    return isinstance(scheme, Mapping) and (scheme.get("type"), scheme.get("num_bits")) == ("float", 8)


def _or(choices: Iterable[str]) -> str:
    return " or ".join(choices)


def _check(file: Path, entries: Mapping[str, Entry]) -> None:
    """Raises InputError for a tensor of another dtype, or that is not where its shape says."""
    for name, entry in entries.items():
        if entry.dtype not in _BYTES:
            raise InputError(
                f"{file}: tensor {inline(name)} is {shown(entry.dtype)}, expected one of {', '.join(_BYTES)}"
            )
    check_extents(file, entries, _BYTES)
