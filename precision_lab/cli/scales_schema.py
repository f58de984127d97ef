"""The settings of `search strategy=scales` and `strategy=fp8_scales`, closed and typed as those in `cli.schema`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from precision_lab.cli.schema import Closed, Experiment, Folder, Seed

Nodes = Annotated[
    Mapping[str, Annotated[Mapping[str, Any], "a mapping with a _target_, as in conf/technique"]],
    "techniques by name, through defaults: /technique@{key}: [a, b]",
]


class ScaleMargin(Closed):
    bits: Annotated[float, "a number of bits"]


class CaseSets(Closed):
    """Cases of the strategy `scales`."""

    prompts: Sequence[str] | None
    seeds: Sequence[Seed]
    settings: Annotated[Sequence[Mapping[str, Any]], "a list of settings of a case, like [{}, {steps: 12}]"]


class Covering(CaseSets):
    runs: Annotated[Sequence[Folder], "a list of folders of runs"]


class InputScales(Closed):
    scale: str | None
    margin_bits: Annotated[float, "a number of bits"]


class Scales(Experiment):
    """conf/scales.yaml."""

    strategy: str
    margin: ScaleMargin
    coverage: Covering
    holdout: CaseSets
    scalings: Nodes
    wide: Nodes
    noise: str | None


class Fp8Scales(Experiment):
    """conf/fp8_scales.yaml."""

    strategy: str
    of: Annotated[str | Sequence[str], "a pattern of sites, or a list of patterns"]
    margin: ScaleMargin
    inputs: InputScales
    coverage: Covering
    holdout: CaseSets
    noise: str | None
