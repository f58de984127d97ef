"""mflux: a `quantization_predicate`, which its weight definitions have, and the models that it saves.

`WeightApplier` calls the predicate with each module: false keeps it, a mapping states bits and group size. It applies
with `--quantize`, whose bits a mapping overrides. A saved model has no list: mflux derives the packing of each layer
from the shapes of its weight and its scales, as is done here; it packs in the affine mode only.

A recipe is printed as that function over a table of expressions. Of such a file, only the table is read, as a literal.

Source: mflux 0.24.0, models/common/weights/loading/weight_applier.py, models/qwen*/weights/*_definition.py.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from precision_lab.errors import InputError
from precision_lab.numerics.packing import MODES, Quantization
from precision_lab.recipes.dialect import Dialect, Spelled, UnspeakableError
from precision_lab.recipes.documents import Document
from precision_lab.recipes.expressions import Rules
from precision_lab.recipes.globs import expression
from precision_lab.recipes.recipe import Float8, Format, Losses, Target
from precision_lab.record.patterns import patterns_of
from precision_lab.record.safetensors import Entry

_RULES = "RULES"
_LEVEL = "quantization_level"
_FUNCTION = '''

def quantization_predicate(path, module, bits=None):
    """For the weight definition of the model; takes effect with --quantize."""
    if not hasattr(module, "to_quantized"):
        return False
    return next((dict(packing) for rule, packing in RULES if re.fullmatch(rule, path)), False)
'''


class Mflux(Dialect):
    title = "mflux"

    def spelled(self, kind: Format, channels: int) -> Spelled:
        if isinstance(kind, Float8):
            raise UnspeakableError("it packs with mx.quantize")
        if kind.mode != "affine":
            raise UnspeakableError("it reads back only what is packed in the affine mode")
        return Spelled(kind)

    def understood(self, value: Any, channels: int) -> Spelled | None:
        assert isinstance(value, Quantization)
        return Spelled(value)

    def text(self, entries: Mapping[str, Any], target: Target) -> str:
        every = [("", target.naming.theirs(path)) for path in (*target.channels, *target.embeddings)]
        rules = []
        for packing in dict.fromkeys(entries.values()):
            names = [("", name) for name, value in entries.items() if value == packing]
            rules += [(glob, packing) for glob in patterns_of(names, every)]
        lines = [
            f'    (r"{expression(glob)}", {{"bits": {p.bits}, "group_size": {p.group_size}}}),' for glob, p in rules
        ]
        return "\n".join(("import re", "", f"{_RULES} = [", *lines, "]")) + "\n" + _FUNCTION

    def entries(self, document: Document, target: Target, losses: Losses) -> Mapping[str, Any]:
        names = target.naming.ours(target.channels)
        if document.text is None:
            return _stored(document, target, {name: paths[0] for name, paths in names.items()})
        table = _table(document)
        # fullmatch of the whole name, as in the function
        rules = Rules([f"^({rule})$" for rule, _ in table], document.name)
        chosen = {name: rules.first(name) for name in names}
        return {name: table[number][1] for name, number in chosen.items() if number is not None}


def _table(document: Document) -> list[tuple[str, Quantization]]:
    """The literal table of a text. Raises InputError if it has none."""
    expected = f'expected {_RULES} = [(r"EXPRESSION", {{"bits": 4, "group_size": 64}}), ...]'
    try:
        tree = ast.parse(document.words())
        values = [each.value for each in tree.body if isinstance(each, ast.Assign) and _is_table(each.targets)]
        table = ast.literal_eval(values[-1]) if values else None
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise InputError(f"{document.name}: no table that can be read ({type(error).__name__}), {expected}") from error
    if not isinstance(table, list) or not all(_is_rule(rule) for rule in table):
        raise InputError(f"{document.name}: no such table, {expected}")
    return [
        (rule, Quantization.checked(f"{document.name}: {rule:.80}", "affine", p.get("bits"), p.get("group_size")))
        for rule, p in table
    ]


def _is_table(targets: list[ast.expr]) -> bool:
    return len(targets) == 1 and isinstance(targets[0], ast.Name) and targets[0].id == _RULES


def _is_rule(rule: Any) -> bool:
    if not isinstance(rule, tuple | list) or len(rule) != 2:
        return False
    pattern, packing = rule
    return isinstance(pattern, str) and isinstance(packing, dict) and packing.keys() <= {"bits", "group_size"}


def _stored(document: Document, target: Target, names: Mapping[str, str]) -> dict[str, Quantization]:
    """The packing of the layers that a saved model has packed, from their shapes."""
    if _LEVEL not in document.metadata:
        raise InputError(f"{document.name}: no model that mflux saved, its header has no {_LEVEL}")
    found = {}
    for name, path in names.items():
        weight, scales = document.tensors.get(f"{name}.weight"), document.tensors.get(f"{name}.scales")
        if weight is not None and scales is not None:
            found[name] = _packing(f"{document.name}: {name}", weight, scales, target.channels[path])
    return found


def _packing(what: str, weight: Entry, scales: Entry, channels: int) -> Quantization:
    words, groups = (entry.shape[-1] if len(entry.shape) == 2 else 0 for entry in (weight, scales))
    for bits in MODES["affine"].bits:
        for group_size in MODES["affine"].groups:
            if words * 32 == channels * bits and groups * group_size == channels:
                return Quantization(group_size, bits, "affine")
    raise InputError(
        f"{what}: weight {list(weight.shape)} and scales {list(scales.shape)} pack no {channels} input channels; is it "
        "a checkpoint of this model?"
    )
