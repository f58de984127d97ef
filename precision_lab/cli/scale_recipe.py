"""The recipe of `scales`: nodes of techniques with the chosen scales, as conf/technique holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from precision_lab.analysis.scales.choice import Choice, Parameter, beyond
from precision_lab.cli.building import build
from precision_lab.cli.config import plain
from precision_lab.cli.literal import literally
from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site
from precision_lab.numerics.scales import Division, PerBlock, scale_at
from precision_lab.record.files import write_text
from precision_lab.record.glob import named_sites
from precision_lab.record.layout import Layout
from precision_lab.record.patterns import patterns_of
from precision_lab.techniques.base import Dividing, Technique, Widening

Nodes = Mapping[str, Mapping[str, Any]]
"""Nodes of techniques by name."""

FOLDER = "recipe"
"""The folder for --config-dir."""

_SITES = "sites"


@dataclass(frozen=True)
class Offered:
    """The techniques that a recipe may be made of, by name: those with open scales, and those that keep fp32."""

    scalings: Nodes
    wide: Nodes
    parameters: Sequence[Parameter]

    @classmethod
    def of(cls, config: DictConfig) -> Offered:
        """Those of a configuration. Raises InputError for none, and for one that does not say what it divides."""
        scalings, wide = plain(config.scalings or {}), plain(config.wide or {})
        if not scalings:
            raise InputError("scalings is empty, expected techniques with exact scales, like scaled_attention")
        for name in scalings:
            if name in wide:
                raise InputError(f"scalings and wide both have {name}, expected it in one of them")
        dividing = {name: _built(node, f"scalings.{name}", Dividing, "divisions") for name, node in scalings.items()}
        for name, node in wide.items():
            _built(node, f"wide.{name}", Widening, "widens")
        parameters = [
            Parameter(name, parameter, division.places)
            for name, technique in dividing.items()
            for parameter, division in technique.divisions.items()
        ]
        return cls(scalings, wide, parameters)


def recipe_of(offered: Offered, choice: Choice, ranges: pd.DataFrame, sites: Sequence[Site], layout: Layout) -> Nodes:
    """The techniques that are needed, with the chosen scales.

    A technique that names its sites keeps those in the blocks where a scale is not 1. One that keeps results in fp32 is
    needed if that helps a place which does not fit. sites: those of the plain model.
    """
    scaled = {
        name: {**offered.scalings[name], **_restricted(offered.scalings[name], tables, sites, layout), **_plain(tables)}
        for name, tables in choice.tables().items()
    }
    found: dict[str, Mapping[str, Any]] = dict(scaled)
    for name, node in offered.wide.items():
        left = beyond(ranges, *effects(scaled), choice.goal, layout)
        places = list(left[["component", "site"]].itertuples(index=False, name=None))
        widens = _built(node, f"wide.{name}", Widening, "widens").widens
        if named_sites(widens, places, layout.default):
            found = {name: node, **found}
    return found


def effects(nodes: Nodes) -> tuple[list[Division], list[str]]:
    """What the techniques divide, and the patterns of the results that they keep in fp32."""
    techniques = [build(OmegaConf.create(literally(dict(node))), Technique, name) for name, node in nodes.items()]
    divisions = [each for one in techniques if isinstance(one, Dividing) for each in one.divisions.values()]
    return divisions, [pattern for one in techniques if isinstance(one, Widening) for pattern in one.widens]


def is_known(nodes: Nodes) -> bool:
    """Whether every technique says what it divides or keeps in fp32, so that its ranges can be computed."""
    techniques = [build(OmegaConf.create(literally(dict(node))), Technique, name) for name, node in nodes.items()]
    return all(isinstance(technique, Dividing | Widening) for technique in techniques)


def write_recipe(out: Path, name: str, nodes: Nodes, remarks: Sequence[str]) -> Path:
    """Writes the recipe as the option `name` of the group `technique`; remarks: lines of a comment above it."""
    path = out / FOLDER / "technique" / f"{name}.yaml"
    comment = "".join(f"# {remark}\n" for remark in remarks)
    write_text(path, comment + OmegaConf.to_yaml(OmegaConf.create(literally({k: dict(v) for k, v in nodes.items()}))))
    return path


def _built(node: Mapping[str, Any], key: str, kind: type, member: str) -> Any:
    technique = build(OmegaConf.create(literally(dict(node))), Technique, key)
    if not isinstance(technique, kind):
        raise InputError(
            f"{key}: {type(technique).__name__} has no `{member}`, by which a technique says what it does to ranges"
        )
    return technique


def _restricted(
    node: Mapping[str, Any], tables: Mapping[str, PerBlock], sites: Sequence[Site], layout: Layout
) -> dict[str, Any]:
    """The sites of a technique that names some, in the blocks where one of its scales is not 1."""
    technique: Technique = build(OmegaConf.create(literally(dict(node))), Technique, "scalings")
    if _SITES not in getattr(type(technique), "__dataclass_fields__", {}):
        return {}
    every = [(site.component, site.path) for site in sites]
    block_of = {(site.component, site.path): site.block for site in sites}
    needed = [
        place
        for place in named_sites(technique.sites, every, layout.default)
        if any(scale_at(table, block_of[place], place[1]) != 1 for table in tables.values())
    ]
    return {_SITES: patterns_of(needed, every, layout.default)}


def _plain(tables: Mapping[str, PerBlock]) -> dict[str, Any]:
    """Scales as a yaml shows them: whole numbers."""

    def whole(scale: float) -> float:
        return int(scale) if float(scale).is_integer() else scale

    return {
        name: {block: whole(scale) for block, scale in table.items()} if isinstance(table, Mapping) else whole(table)
        for name, table in tables.items()
    }
