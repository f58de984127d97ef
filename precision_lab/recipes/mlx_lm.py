"""mlx-lm: the object `quantization` of config.json, a default and an entry for each module that differs.

`mlx_lm.utils.quantize_model` writes a module's packing beside the default under its path, and `load_model` reads it
there; false keeps a module. The same entries serve `mlx_lm.convert` as `quant_predicate=lambda path, module:
quantization.get(path, True)`. As there, the entry of a module inherits nothing from the default.

Source: ml-explore/mlx-lm, mlx_lm/utils.py (quantize_model, load_model), 0.32.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from precision_lab.errors import InputError, nearest
from precision_lab.numerics.packing import Quantization
from precision_lab.recipes.dialect import Dialect, Spelled, UnspeakableError
from precision_lab.recipes.documents import Document, mapping
from precision_lab.recipes.recipe import Float8, Format, Losses, Target

_FIELDS = ("group_size", "bits", "mode")
_KEY = "quantization"


class MlxLm(Dialect):
    title = "mlx-lm"
    needs_naming = False

    def spelled(self, kind: Format, channels: int) -> Spelled:
        if isinstance(kind, Float8):
            raise UnspeakableError("mx.quantize has groups of 16 or more with a scale each, mxfp8 is its nearest mode")
        return Spelled(kind._replace(tensor_scale=False))

    def understood(self, value: Any, channels: int) -> Spelled | None:
        assert isinstance(value, Quantization)
        return Spelled(value)

    def text(self, entries: Mapping[str, Any], target: Target) -> str:
        default = _default(entries, target)
        every = [target.naming.theirs(path) for path in (*target.channels, *target.embeddings)]
        others = {
            name: entries[name].arguments if name in entries else False
            for name in every
            if entries.get(name) != default
        }
        return json.dumps({_KEY: {**default.arguments, **others}}, indent=2) + "\n"

    def entries(self, document: Document, target: Target, losses: Losses) -> Mapping[str, Any]:
        content = mapping(document.json(), document.name)
        entry = mapping(content.get(_KEY, content.get("quantization_config", content)), f"{document.name}: {_KEY}")
        for field in ("group_size", "bits"):
            if field not in entry:
                raise InputError(f"{document.name}: {_KEY} has no {field}, expected {', '.join(_FIELDS)}")
        default = _packing(f"{document.name}: {_KEY}", {field: entry.get(field) for field in _FIELDS})
        names = target.naming.ours(target.channels)
        others = {target.naming.theirs(path) for path in target.embeddings}
        found: dict[str, Any] = dict.fromkeys(names, default)
        for name, value in entry.items():
            if name in _FIELDS:
                continue
            what = f"{document.name}: {_KEY}.{name:.80}"
            if not isinstance(value, bool):
                value = _packing(what, mapping(value, what))
            if name in names:
                found[name] = default if value is True else value
            elif name not in others:
                raise InputError(f"{what}: {target.model} has no such linear. {nearest(name, names)}")
        return {name: value for name, value in found.items() if value is not False}


def _packing(what: str, entry: Mapping[str, Any]) -> Quantization:
    for key in entry:
        if key not in _FIELDS:
            raise InputError(f"{what}: unknown entry {key!r:.80}. {nearest(str(key), _FIELDS)}")
    mode = "affine" if entry.get("mode") is None else entry["mode"]
    return Quantization.checked(what, mode, entry.get("bits"), entry.get("group_size"))


def _default(entries: Mapping[str, Quantization], target: Target) -> Quantization:
    """The most common packing among those with the smallest groups.

    `quantize_model` skips a module, whatever its entry, if the default's groups do not divide its channels.
    """
    least = min(packing.group_size for packing in entries.values())
    return Counter(packing for packing in entries.values() if packing.group_size == least).most_common(1)[0][0]
