"""stable-diffusion.cpp: `--tensor-type-rules EXPRESSION=TYPE,...`; the first expression found in a name decides.

Types are those of GGML. Its affine types are not those of MLX: 32 values share a scale and an offset in q4_1 and q5_1,
and a scale alone in q8_0, and the K types have blocks of 256. A tensor that no rule names is kept as stored, and so are
some whatever a rule says (`ModelLoader::tensor_should_be_converted`).

Source: leejet/stable-diffusion.cpp 97d2990, src/model_loader.cpp, examples/common/common.cpp; ggml's type names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from precision_lab.errors import InputError, nearest
from precision_lab.numerics.packing import Quantization
from precision_lab.recipes.dialect import Dialect, Spelled, UnspeakableError
from precision_lab.recipes.documents import Document
from precision_lab.recipes.expressions import Rules
from precision_lab.recipes.globs import expression
from precision_lab.recipes.recipe import Float8, Format, Losses, Target
from precision_lab.record.patterns import patterns_of

_OPTION = "--tensor-type-rules"
_WEIGHT = ".weight"
_WIDE = ("f32", "f16", "bf16")
_BITS = {4: "q4_1", 5: "q5_1", 8: "q8_0", 2: "q2_K", 3: "q3_K", 6: "q6_K"}
_MODES = {"mxfp4": "mxfp4", "nvfp4": "nvfp4"}
_AFFINE = {
    "q4_0": (4, 32),
    "q4_1": (4, 32),
    "q5_0": (5, 32),
    "q5_1": (5, 32),
    "q8_0": (8, 32),
    "q2_K": (2, 256),
    "q3_K": (3, 256),
    "q4_K": (4, 256),
    "q5_K": (5, 256),
    "q6_K": (6, 256),
}
"""Bits and the block of a type; the channels must be a multiple of it."""
_TYPES = (*_WIDE, *_AFFINE, *_MODES)
_SAME_GRID = ("q4_1", "q5_1")
"""Types that are affine in groups of 32, with scale and offset in float16."""


class StableDiffusionCpp(Dialect):
    title = "stable-diffusion.cpp"

    def spelled(self, kind: Format, channels: int) -> Spelled:
        if isinstance(kind, Float8):
            raise UnspeakableError("GGML has no such type")
        name = _MODES.get(kind.mode) if kind.mode != "affine" else _BITS[kind.bits]
        if name is None:
            raise UnspeakableError("GGML has no such type")
        block = _AFFINE[name][1] if name in _AFFINE else 64 if name == "nvfp4" else 32
        if channels % block:
            raise UnspeakableError(f"blocks of {block} of {name} do not divide {channels} channels")
        same = name in _MODES or (name in _SAME_GRID and kind.group_size == 32)
        return Spelled(name, "" if same else f"{name}, {_described(name)}")

    def understood(self, value: Any, channels: int) -> Spelled | None:
        if value in _WIDE:
            return None
        if value in _MODES:
            return Spelled(Quantization.checked(value, value))
        bits = _AFFINE[value][0]
        if channels % 32:
            raise UnspeakableError(f"groups of 32 do not divide {channels} channels")
        change = "" if value in _SAME_GRID else f"{value}, {_described(value)}, is affine in groups of 32 here"
        return Spelled(Quantization(32, bits, "affine"), change)

    def text(self, entries: Mapping[str, Any], target: Target) -> str:
        every = [target.naming.theirs(path) for path in (*target.channels, *target.embeddings, *target.others)]
        rules = []
        for kind in dict.fromkeys(entries.values()):
            names = [("", name) for name, value in entries.items() if value == kind]
            globs = patterns_of(names, [("", name) for name in every])
            rules += [f"^{expression(glob)}{expression(_WEIGHT)}$={kind}" for glob in globs]
        return f"{_OPTION} '{','.join(rules)}'\n"

    def entries(self, document: Document, target: Target, losses: Losses) -> Mapping[str, Any]:
        rules = _rules(document)
        found = Rules([rule for rule, _ in rules], document.name)
        chosen = {name: found.first(name + _WEIGHT) for name in target.naming.ours(target.channels)}
        return {name: rules[number][1] for name, number in chosen.items() if number is not None}


def _described(name: str) -> str:
    block = _AFFINE[name][1]
    if name.endswith("_K"):
        return f"blocks of {block} with quantised scales"
    return "groups of 32 with a scale alone" if name.endswith("_0") else "groups of 32"


def _rules(document: Document) -> list[tuple[str, str]]:
    """Expressions and types, in order. Raises InputError for a text that is none."""
    text = document.words().strip().removeprefix(_OPTION).lstrip(" =").strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    rules = []
    for item in filter(None, text.split(",")):
        rule, equals, name = item.strip().partition("=")
        if not equals or "\n" in rule:
            raise InputError(f"{document.name}: {item!r:.80} is no rule, expected EXPRESSION=TYPE,... as for {_OPTION}")
        if name not in _TYPES:
            raise InputError(f"{document.name}: {rule:.80}={name:.40}: unknown type. {nearest(name, _TYPES)}")
        rules.append((rule, name))
    if not rules:
        raise InputError(f"{document.name}: no rules, expected EXPRESSION=TYPE,... as for {_OPTION}")
    return rules
