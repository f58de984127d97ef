"""ComfyUI: `_quantization_metadata`, which states the format of each quantised layer, and `LAYER.comfy_quant`.

The metadata of a safetensors file holds the object as a text; a file may have a tensor of bytes with the entry beside
each layer instead. `full_precision_matrix_mult` in an entry keeps the inputs of a layer wide.

Source: comfyanonymous/ComfyUI, QUANTIZATION.md, comfy/quant_ops.py (QUANT_ALGOS), comfy/utils.py (convert_old_quants).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from precision_lab.errors import InputError
from precision_lab.numerics.packing import Quantization
from precision_lab.recipes.dialect import Dialect, Spelled, UnspeakableError, known
from precision_lab.recipes.documents import Document, mapping, parsed_json
from precision_lab.recipes.recipe import Float8, Format, Losses, Target

_KEY = "_quantization_metadata"
_NOTE = ".comfy_quant"
_WIDE = "full_precision_matrix_mult"
_PACKED = {"nvfp4": Quantization(16, 4, "nvfp4", tensor_scale=True), "mxfp8": Quantization(32, 8, "mxfp8")}


class ComfyUI(Dialect):
    title = "ComfyUI"

    def spelled(self, kind: Format, channels: int) -> Spelled:
        if isinstance(kind, Float8):
            if kind.scale != "tensor":
                raise UnspeakableError("its float8 layers have one scale a tensor")
            if kind.inputs:
                return Spelled({"format": "float8_e4m3fn"}, "float8 e4m3 with one calibrated scale for all inputs")
            return Spelled({"format": "float8_e4m3fn", _WIDE: True})
        for name, packing in _PACKED.items():
            if isinstance(kind, Quantization) and kind._replace(tensor_scale=packing.tensor_scale) == packing:
                return Spelled({"format": name, _WIDE: True})
        raise UnspeakableError(f"it has {', '.join(('float8_e4m3fn', *_PACKED))}")

    def understood(self, value: Any, channels: int) -> Spelled | None:
        name, wide = value["format"], value.get(_WIDE, False)
        if name == "float8_e4m3fn":
            change = "" if wide else "inputs are rounded with one scale a token here, with one from a calibration there"
            return Spelled(Float8("tensor", not wide), change)
        if name in _PACKED:
            return Spelled(_PACKED[name], "" if wide else "inputs are not rounded here")
        raise UnspeakableError(f"the lab has no format {name!r:.80} of ComfyUI")

    def text(self, entries: Mapping[str, Any], target: Target) -> str:
        return json.dumps({_KEY: {"format_version": "1.0", "layers": dict(entries)}}, indent=2) + "\n"

    def entries(self, document: Document, target: Target, losses: Losses) -> Mapping[str, Any]:
        found = {}
        for name, value in _layers(document).items():
            what = f"{document.name}: {name:.80}"
            if not isinstance(mapping(value, what).get("format"), str):
                raise InputError(f'{what} is {value!r:.80}, expected an object like {{"format": "float8_e4m3fn"}}')
            found[known(name, target, document)] = value
        return found


def _layers(document: Document) -> Mapping[str, Any]:
    """The entry of each layer."""
    if document.text is not None:
        content = mapping(document.json(), document.name)
        content = mapping(content.get(_KEY, content), f"{document.name}: {_KEY}")
    elif _KEY in document.metadata:
        what = f"{document.name}: {_KEY}"
        content = mapping(parsed_json(document.metadata[_KEY], what), what)
    else:
        notes = [name for name in document.tensors if name.endswith(_NOTE)]
        content = {"layers": {name.removesuffix(_NOTE): document.note(name) for name in notes}} if notes else {}
    if "layers" not in content:
        raise InputError(f"{document.name}: no quantised layers, expected {_KEY} with layers, or tensors *{_NOTE}")
    return mapping(content["layers"], f"{document.name}: layers")
