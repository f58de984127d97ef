"""From techniques to a recipe, which states the format of each linear, and from a recipe to the node of a technique."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import mlx.nn as nn

from precision_lab.instrument.sites import Components, Site, select, walk
from precision_lab.lab.groups import linears
from precision_lab.model.coded import CodedLinear, linear_shape
from precision_lab.model.quantized import packing_of
from precision_lab.numerics.packing import MODES, Quantization
from precision_lab.recipes.naming import Naming
from precision_lab.recipes.recipe import Float8, Format, Losses, Recipe, Target
from precision_lab.techniques.base import Technique, applied, without_adapters
from precision_lab.techniques.float8_weights import Float8Weights, float8_settings
from precision_lab.techniques.lora import LoRA
from precision_lab.techniques.lora_fused import FusedLoRA
from precision_lab.techniques.quantized_weights import QuantizedWeights


class Stated(NamedTuple):
    """The recipe of techniques, and what of them is no format of a linear of the default component."""

    recipe: Recipe
    losses: Losses


def target_of(components: Components, model: str, naming: Naming) -> Target:
    """The default component of a subject; `model` is its name in messages."""
    sites = [site for site in walk(components) if site.component == components.layout.default]
    channels = {site.path: linear_shape(site.module)[1] for site in linears(sites)}
    embeddings = [site.path for site in sites if isinstance(site.module, nn.Embedding | nn.QuantizedEmbedding)]
    others = [site.path for site in sites if site.path not in channels and site.path not in embeddings]
    return Target(model, channels, naming, embeddings, others)


def stated(components: Components, techniques: Mapping[str, Technique]) -> Stated:
    """The recipe of `techniques`. The weights are not evaluated.

    What a technique leaves at a site decides, whatever its class. Raises InputError where a run would: for a pattern
    that matches nothing, or two techniques at one site.
    """
    losses, found = Losses(), dict[Site, Format]()
    plain = {site: site.module for site in walk(components)}
    sites = list(plain)
    with applied(components, techniques):
        left = {site: without_adapters(site.module) for site in walk(components)}
    for site, module in left.items():
        kind = _format(module)
        if kind is not None:
            found[site] = kind
    for name, technique in techniques.items():
        chosen = select(technique.sites, sites)
        after = {site: left.get(site) for site in chosen if site not in found}
        unstated = [module for site, module in after.items() if module is not plain[site]]
        if unstated or isinstance(technique, LoRA | FusedLoRA):
            losses.add(f"left out: technique {name}, {type(technique).__name__}: {_why(unstated)}")
    default = components.layout.default
    elsewhere = sorted({site.component for site in found if site.component != default})
    if elsewhere:
        losses.add(f"left out: the formats of {', '.join(elsewhere)}: a recipe for another program is about {default}")
    return Stated({site.path: found[site] for site in sites if site in found and site.component == default}, losses)


def _format(module: nn.Module) -> Format | None:
    """The format of a linear that is packed or in float8; None for any other module."""
    if isinstance(module, nn.QuantizedLinear):
        return packing_of(module)
    settings = float8_settings(module)
    return None if settings is None else Float8(*settings)


def _why(unstated: Iterable[nn.Module | None]) -> str:
    """Why a recipe does not state what a technique leaves."""
    formats = {
        module.coding.name + (f" with inputs in {module.inputs.name}" if module.inputs is not None else "")
        for module in unstated
        if isinstance(module, CodedLinear)
    }
    if formats:
        return f"a recipe cannot state {' or '.join(sorted(formats))}"
    return "no program takes it from a recipe"


def nodes(recipe: Recipe, target: Target, name: str) -> dict[str, Any]:
    """The techniques of a recipe, as conf/technique has them; two where it has packed and float8 weights."""
    by_format: dict[Format, list[str]] = {}
    for path, kind in recipe.items():
        by_format.setdefault(kind, []).append(path)
    rules = [
        {"sites": target.patterns(paths), **_rule(kind)}
        for kind, paths in by_format.items()
        if not isinstance(kind, Float8)
    ]
    found: dict[str, Any] = {}
    if rules:
        found[name] = {"_target_": _named(QuantizedWeights), "rules": rules}
    for kind, paths in by_format.items():
        if isinstance(kind, Float8):
            node = {"_target_": _named(Float8Weights), "scale": kind.scale, "sites": target.patterns(paths)}
            key = name if not found else f"{name}_float8" if f"{name}_float8" not in found else f"{name}_{len(found)}"
            found[key] = node | ({"quantize_input": True} if kind.inputs else {})
    return found


def _rule(kind: Quantization) -> dict[str, Any]:
    """Bits, mode and group size where they are not the mode's only one. The group size of affine is always stated."""
    mode = {} if kind.mode == "affine" else {"mode": kind.mode}
    stated_ = {"bits": kind.bits, "group_size": kind.group_size} if len(MODES[kind.mode].bits) > 1 else {}
    return mode | stated_ | ({"tensor_scale": True} if kind.tensor_scale else {})


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
