"""A transformer in a single safetensors file, as ComfyUI reads it.

Names may have a prefix. Weights are bf16, fp16 or fp32, or float8 e4m3 without a scale; those of linears also float8
with `P.scale_weight` and the marker `scaled_fp8`, or in a format (`stored.formats`) that `P.comfy_quant` declares, or
`_quantization_metadata` of the header. Sources: ComfyUI's QUANTIZATION.md, comfy/ops.py (`_load_quantized_module`) and
comfy/utils.py (`convert_old_quants`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from precision_lab.errors import InputError, first_line, inline, shown
from precision_lab.model.stored.formats import described, unscaled
from precision_lab.model.stored.formatted import FormattedWeights, scales_beside
from precision_lab.model.stored.four_bits import PARTS
from precision_lab.model.stored.layer import FLOATS, Layer, Stored
from precision_lab.record.files import parse_json
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
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E8M0": 1, "I8": 1, "U8": 1}
_PLAIN = ("F32", "F16", "BF16", "F8_E4M3")
_MARKER, _LISTED = "scaled_fp8", "_quantization_metadata"
_SCALES = ("scale_weight", "weight_scale", "weight_scale_2", "scale_input", "input_scale", "pre_quant_scale", *PARTS)
"""The last parts of the names of tensors beside the weight of a linear."""
_QUANT = "comfy_quant"
_PREFERENCE = ".comfy_attention.config"
"""The end of the name of a tensor that asks for another attention; it changes no weight."""
_NUNCHAKU = (".qweight", ".wscales", ".wzeros", ".lora_down", ".smooth_orig")
"""The ends of names that only nunchaku's files have."""
_LARGEST = 1 << 16


@dataclass(frozen=True, kw_only=True)
class ComfyFile(FormattedWeights):
    """The tensors of the file."""

    @classmethod
    def open(cls, file: Path) -> ComfyFile:
        """The transformer in `file`.

        Raises InputError for a damaged file, for names of which only some have a prefix, for another format, and for a
        weight without its scales or scales without their weight.
        """
        found, metadata = read_entries(file)
        prefix = _prefix(file, found)
        entries = {name.removeprefix(prefix): entry for name, entry in found.items() if name.startswith(prefix)}
        _check(file, found)
        left_out = [name for name in found if not name.startswith(prefix) or name.endswith(_PREFERENCE)]
        declared = _declared(file, entries, metadata, prefix)
        beside = scales_beside(entries, _SCALES, FLOATS)
        marked = _MARKER in entries
        scaled = marked or bool(declared) or any(len(tensors) > 1 for tensors in beside.values())
        stored: dict[str, Stored] = {}
        for path in {**beside, **declared}:
            if f"{path}.weight" not in entries:
                raise InputError(f"{file}: tensor {inline(path)}.weight is missing, which has a format")
            tensors = beside.get(path, {"weight": entries[f"{path}.weight"]})
            if path in declared or len(tensors) > 1:
                # a marker of two elements asks ComfyUI to leave inputs alone
                wide = marked and entries[_MARKER].shape == (2,)
                about = declared.get(path, {"format": "float8_e4m3fn", "full_precision_matrix_mult": wide})
                bias = {"bias": entries[f"{path}.bias"]} if f"{path}.bias" in entries else {}
                stored[path] = described(Layer(file, path, tensors | bias, about))
            elif scaled:
                raise InputError(f"{file}: tensor {inline(path)}.weight_scale is missing")
            else:
                stored[path] = unscaled(tensors["weight"])
        names = {f"{path}.{name}" for path in stored for name in ("weight", *_SCALES)}
        parts = {name: entry for name, entry in entries.items() if name in names}
        aside = (_MARKER, f".{_QUANT}", _PREFERENCE)
        kept = {name: entry for name, entry in entries.items() if name not in names and not name.endswith(aside)}
        for name, entry in kept.items():
            if entry.dtype not in _PLAIN:
                raise InputError(
                    f"{file}: tensor {inline(name)} is {shown(entry.dtype)}, but no format is declared for it, "
                    f"expected {', '.join(_PLAIN)}"
                )
        return cls(
            source=file,
            linears={path: each.linear for path, each in stored.items()},
            input_scales=tuple(f"{prefix}{path}.{name}" for path, each in stored.items() for name in each.inputs),
            ignored=tuple(left_out),
            partial=True,
            _entries=kept,
            _prefix=prefix,
            _stored=stored,
            _parts=parts,
        )

    @property
    def layout(self) -> str:
        prefix = f", names begin with {self._prefix}" if self._prefix else ""
        forms = f", {super().layout}" if self._stored else ""
        return f"a single file of ComfyUI{forms}{prefix}"


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
        if name.endswith(_NUNCHAKU):
            raise InputError(
                f"{file}: tensor {inline(name)} is in nunchaku's own tiles, which are not read, expected svdquant_w4a4 "
                "and awq_w4a16 of ComfyUI"
            )
        if entry.dtype not in _BYTES:
            raise InputError(
                f"{file}: tensor {inline(name)} is {shown(entry.dtype)}, expected one of {', '.join(_BYTES)}"
            )
    check_extents(file, entries, _BYTES)


def _declared(
    file: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str], prefix: str
) -> dict[str, Mapping[str, Any]]:
    """What the file says of linears, by path. Raises InputError where it cannot be read."""
    layers: dict[str, Any] = {}
    if _LISTED in metadata:
        listed = _json(file, _LISTED, metadata[_LISTED].encode()).get("layers")
        if not isinstance(listed, dict):
            raise InputError(f"{file}: {_LISTED} has no layers, expected an object")
        layers |= {str(name).removeprefix(prefix): value for name, value in listed.items()}
    for name, entry in entries.items():
        path, _, last = name.rpartition(".")
        if last == _QUANT:
            if entry.size > _LARGEST:
                raise InputError(f"{file}: tensor {inline(name)} has {entry.size} bytes, expected a short JSON object")
            layers[path] = _json(file, name, entry.content())
    return {path: value if isinstance(value, Mapping) else {"format": value} for path, value in layers.items()}


def _json(file: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        value = parse_json(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: {inline(name)} is no JSON object: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: {inline(name)} is no JSON object")
    return value
