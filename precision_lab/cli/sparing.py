"""The variants of a search for culprits, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from precision_lab.cli import culprits_schema
from precision_lab.cli.candidates import build_candidates, make
from precision_lab.cli.config import build_source, plain
from precision_lab.errors import InputError, nearest
from precision_lab.instrument.sites import Components
from precision_lab.lab.candidates import SITES, Candidate
from precision_lab.lab.compute import Compute
from precision_lab.lab.groups import groups_of
from precision_lab.lab.sparing import Part, Sparing, accepting, addresses_of, differing, named_by
from precision_lab.lab.spec import Variant
from precision_lab.lab.values import one_of
from precision_lab.record.folders import user_path

_TECHNIQUES = "precision_lab.techniques"
_RESTRICTED = f"{_TECHNIQUES}.restricted.Restricted"
_OTHER_WEIGHTS = f"{_TECHNIQUES}.other_weights.OtherWeights"
PLACES = ("rest", "found")


def compares_checkpoints(settings: culprits_schema.Culprits, resolved: DictConfig) -> bool:
    """Whether `between` names two checkpoints, not two variants. Raises InputError for what is neither."""
    if settings.between is None:
        return False
    if len(settings.between) != 2 or settings.between[0] == settings.between[1]:
        raise InputError(f"between is {list(settings.between)}, expected two names or paths: between=[GOOD,BAD]")
    known = [*map(str, resolved.variants), *(["custom"] if resolved.technique else [])]
    unknown = [name for name in settings.between if name not in known]
    if not unknown:
        return False
    for name in unknown:
        if "/" not in name and not user_path(name).exists():
            raise InputError(f"between: {name!r} is no variant, and no checkpoint. {nearest(name, known)}")
    if len(unknown) == 1:
        raise InputError("between compares two variants or two checkpoints, not one of each")
    return True


def build_sparing(
    settings: culprits_schema.Culprits, resolved: DictConfig, variants: Mapping[str, Variant], components: Components
) -> tuple[Sparing, str, str]:
    """The variants, and words on what groups that are not spared and those that are have.

    variants: those of the configuration by name. Raises InputError for an unknown group, candidate or variant, and if
    nothing differs.
    """
    one_of("at", settings.at, PLACES)
    base = plain(resolved.technique or {})
    dtype = str(Compute.read("dtype", settings.dtype))
    if settings.between is None:
        parts, altered, spared = _of_candidate(settings, resolved, components)
    elif compares_checkpoints(settings, resolved):
        good, bad = settings.between
        parts, altered, spared = _of_checkpoints(bad, resolved, components), f"weights of {bad}", f"weights of {good}"
    else:
        good, bad = settings.between
        dtype, base, parts = _of_variants(variants[good], variants[bad], resolved, components)
        altered, spared = f"as in {bad}", f"as in {good}"
    sites = frozenset().union(*(part.sites for part in parts))
    by = [settings.by] if isinstance(settings.by, str) else list(settings.by)
    addresses = addresses_of(components)
    whole = Sparing(dtype, base, parts, [], addresses, components.layout.default)
    groups = groups_of(components, whole.patterns([address for address in addresses if address in sites]), by)
    return Sparing(dtype, base, parts, groups, addresses, components.layout.default), altered, spared


def _of_candidate(
    settings: culprits_schema.Culprits, resolved: DictConfig, components: Components
) -> tuple[list[Part], str, str]:
    candidates = build_candidates(resolved)
    if len(candidates) != 1:
        raise InputError(f"candidate names {len(candidates)} options, expected one, like candidate=[float16]")
    [candidate] = candidates
    of = [settings.of] if isinstance(settings.of, str) else settings.of
    if of is not None and not of:
        raise InputError("of is [], expected patterns of sites, or null")
    part = Part(candidate, settings.at == "found", accepting(candidate, components, of))
    words = f"no {candidate.name}", candidate.name
    altered, spared = words if part.spares else words[::-1]
    return [part], altered, spared


def _of_checkpoints(bad: str, resolved: DictConfig, components: Components) -> list[Part]:
    node = OmegaConf.create({**plain(resolved.model), "path": bad})
    if "name" in node:
        node.name = None
    sites = differing(components, build_source(node), "float32")
    if not sites:
        raise InputError("between: the two checkpoints hold the same weights, so that nothing explains a difference")
    template = {"_target_": _OTHER_WEIGHTS, "model": plain(node), "sites": SITES}
    return [Part(Candidate("other_weights", template, make), False, sites)]


def _of_variants(
    good: Variant, bad: Variant, resolved: DictConfig, components: Components
) -> tuple[str, dict[str, Any], list[Part]]:
    """The dtype, the techniques that both have, and those that only one has."""
    mine, theirs = (nodes_of(variant, resolved) for variant in (good, bad))
    common = {name: node for name, node in theirs.items() if mine.get(name) == node}
    parts = []
    if good.dtype != bad.dtype:
        for variant in (good, bad):
            if "+" in variant.dtype:
                raise InputError(f"between: {variant.name} has the dtypes {variant.dtype}, expected one for all")
        name = f"in_{good.dtype}"
        wide = {"_target_": f"{_TECHNIQUES}.float32.Float32", "sites": SITES}
        narrow = {"_target_": f"{_TECHNIQUES}.narrow.Narrow", "dtype": good.dtype, "sites": SITES}
        candidate = Candidate(name, wide if good.dtype == "float32" else narrow, make)
        parts.append(Part(candidate, True, accepting(candidate, components, None)))
    for spares, variant, nodes in ((False, bad, theirs), (True, good, mine)):
        for name, node in nodes.items():
            if name not in common:
                template = {"_target_": _RESTRICTED, "technique": node, "sites": SITES}
                candidate = Candidate(f"{name}_of_{variant.name}", template, make)
                parts.append(Part(candidate, spares, named_by(variant.techniques[name], components)))
    if not parts:
        raise InputError(f"between: {good.name} and {bad.name} have the same dtype and techniques")
    return bad.dtype, common, parts


def nodes_of(variant: Variant, resolved: DictConfig) -> dict[str, Any]:
    """The techniques of a variant as plain values, in order."""
    is_custom = variant.name == "custom" and "custom" not in resolved.variants
    node = resolved.technique if is_custom else (resolved.variants[variant.name] or {}).get("technique")
    found: Mapping[str, Any] = plain(node or {})
    return {name: found[name] for name in variant.techniques}
