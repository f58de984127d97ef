"""A transformer in a single safetensors file, as ComfyUI reads it.

Names may have a prefix. Weights are bf16, fp16 or fp32; float8 e4m3 without a scale; float8 with `P.scale_weight` and
the marker `scaled_fp8`; or float8 with `P.weight_scale`, declared in `P.comfy_quant` or in `_quantization_metadata` of
the header. Sources: ComfyUI's QUANTIZATION.md and comfy/ops.py, `_load_quantized_module`. Scales of inputs are left
out, because ComfyUI uses them only in float8 products of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from precision_lab.device.page_cache import Extent
from precision_lab.errors import InputError, inline, shown
from precision_lab.model.codings.float8 import Float8
from precision_lab.model.stored.base import StoredLinear, StoredWeights
from precision_lab.record.safetensors import Entry, check_extents, read_entries

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
"""What the names of a transformer may begin with."""
_ROOTS = (
    "transformer_blocks.",
    "img_in.",
    "txt_in.",
    "txt_norm.",
    "time_text_embed.",
    "norm_out.",
    "proj_out.",
    "modulation.",
)
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1}
_FLOATS = ("F32", "F16", "BF16")
_MARKER, _LISTED = "scaled_fp8", "_quantization_metadata"
_SCALES = (".scale_weight", ".weight_scale")
_INPUTS = (".scale_input", ".input_scale")
_QUANT = ".comfy_quant"
_FORMAT = "float8_e4m3fn"
_LARGEST = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ComfyFile(StoredWeights):
    """The tensors of the file by published name, float8 linears under the names of their coding."""

    _entries: Mapping[str, Entry]
    _prefix: str
    _scales: Mapping[str, str | None]
    """By path of a float8 linear, the published name of its scale in the file; None without one."""

    @classmethod
    def open(cls, file: Path) -> ComfyFile:
        """The transformer in `file`.

        Raises InputError for a damaged file, for names of which only some have a prefix, for another format, and for a
        float8 weight without its scale or a scale without its weight.
        """
        found, metadata = read_entries(file)
        prefix = _prefix(file, found)
        entries = {name.removeprefix(prefix): entry for name, entry in found.items() if name.startswith(prefix)}
        left_out = [name for name in found if not name.startswith(prefix)]
        _check(file, found)
        declared = _declared(file, entries, metadata, prefix)
        scales = {name[: -len(end)]: name for name in entries for end in _SCALES if name.endswith(end)}
        for path, name in scales.items():
            weight = entries.get(f"{path}.weight")
            if weight is None or weight.dtype not in ("F8_E4M3", "U8"):
                raise InputError(f"{file}: tensor {inline(name)} has no float8 weight {inline(path)}.weight")
        linears: dict[str, StoredLinear] = {}
        used: dict[str, str | None] = {}
        scaled = bool(scales) or bool(declared) or _MARKER in entries
        for name, entry in entries.items():
            path = name.removesuffix(".weight")
            coded = entry.dtype == "F8_E4M3" or path in declared
            if path == name or len(entry.shape) != 2 or not coded:
                continue
            outputs, channels = entry.shape
            used[path] = scales.get(path)
            form = "none"
            if scaled:
                if path not in scales:
                    raise InputError(f"{file}: tensor {inline(path)}.weight_scale is missing")
                scale = entries[scales[path]]
                if scale.dtype not in _FLOATS or math.prod(scale.shape) not in (1, outputs):
                    raise InputError(
                        f"{file}: tensor {inline(scales[path])} is {scale.dtype} of shape {scale.shape}, expected "
                        f"floating-point numbers, one or {outputs}"
                    )
                form = "tensor" if math.prod(scale.shape) == 1 else "channel"
            linears[path] = StoredLinear(Float8(form), (outputs, channels), ("weight", "scale"))
        missing = sorted(declared - linears.keys())
        if missing:
            raise InputError(f"{file}: tensor {inline(missing[0])}.weight is missing, declared as {_FORMAT}")
        aside = {name for name in entries if name == _MARKER or name.endswith((*_SCALES, *_INPUTS, _QUANT))}
        kept = {name: entry for name, entry in entries.items() if name not in aside}
        bytes_left = sorted(
            name for name, e in kept.items() if e.dtype == "U8" and name[: -len(".weight")] not in linears
        )
        if bytes_left:
            raise InputError(f"{file}: tensor {inline(bytes_left[0])} is U8, expected F32, F16, BF16 or F8_E4M3")
        ignored = (*left_out, *(prefix + name for name in entries if name.endswith(_INPUTS)))
        return cls(
            source=file, linears=linears, ignored=ignored, partial=True, _entries=kept, _prefix=prefix, _scales=used
        )

    @property
    def layout(self) -> str:
        prefix = f", names begin with {self._prefix}" if self._prefix else ""
        ends = {name.rpartition(".")[2] for name in self._scales.values() if name is not None}
        scales = f" with {' and '.join(sorted(ends))}" if ends else " without scales"
        return f"a single file of ComfyUI{', float8' + scales if self.linears else ''}{prefix}"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.source,)

    def read(self) -> MutableMapping[str, mx.array]:
        stored: Any = mx.load(str(self.source), format="safetensors")
        tensors: dict[str, mx.array] = {}
        for name, entry in self._entries.items():
            array = stored[self._prefix + name]
            path = name.removesuffix(".weight")
            if path in self.linears and path != name:
                scale = self._scales[path]
                wide = mx.ones((1, 1)) if scale is None else stored[self._prefix + scale].astype(mx.float32)
                tensors[f"{path}.scale"] = wide.reshape(-1, 1)
            elif entry.dtype == "F8_E4M3":
                array = mx.from_fp8(array, mx.bfloat16)
            tensors[name] = array
        return tensors

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._entries.items()}

    def extents(self) -> dict[str, Extent]:
        return {name: Extent(self.source, entry.begin, entry.size) for name, entry in self._entries.items()}


def _prefix(file: Path, names: Mapping[str, Entry]) -> str:
    """The prefix of the transformer's names. Raises InputError if only some have one."""
    found = {
        prefix: name
        for name in names
        for prefix in PREFIXES
        if name.startswith(tuple(prefix + root for root in _ROOTS))
    }
    if not found:
        raise InputError(f"{file}: no tensor of a transformer of Qwen-Image, such as img_in.weight")
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise InputError(f"{file}: tensors {inline(first)} and {inline(second)} have different prefixes, expected one")
    return next(iter(found))


def _check(file: Path, entries: Mapping[str, Entry]) -> None:
    """Raises InputError for a tensor of another dtype or model, or that is not where its shape says."""
    for name, entry in entries.items():
        if name.endswith("__index_timestep_zero__"):
            raise InputError(f"{file}: tensor {inline(name)} marks Qwen-Image-Edit-2511, expected text to image")
        if entry.dtype not in _BYTES:
            raise InputError(
                f"{file}: tensor {inline(name)} is {shown(entry.dtype)}, expected F32, F16, BF16 or F8_E4M3"
            )
    check_extents(file, entries, _BYTES)


def _declared(file: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str], prefix: str) -> frozenset[str]:
    """The paths of the linears that the file declares as float8. Raises InputError for another format."""
    layers: dict[str, Any] = {}
    if _LISTED in metadata:
        listed = _json(file, _LISTED, metadata[_LISTED].encode()).get("layers")
        if not isinstance(listed, dict):
            raise InputError(f"{file}: {_LISTED} has no layers, expected an object")
        layers |= {str(name).removeprefix(prefix): value for name, value in listed.items()}
    for name, entry in entries.items():
        if name.endswith(_QUANT):
            if entry.size > _LARGEST:
                raise InputError(f"{file}: tensor {inline(name)} has {entry.size} bytes, expected a short JSON object")
            layers[name.removesuffix(_QUANT)] = _json(file, name, entry.content())
    for path, value in layers.items():
        form = value.get("format") if isinstance(value, dict) else value
        if form != _FORMAT:
            raise InputError(
                f"{file}: {inline(path)} is stored as {shown(form)}, which is not read, expected {_FORMAT}"
            )
    return frozenset(layers)


def _json(file: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{file}: {inline(name)} is no JSON object")
    return value
