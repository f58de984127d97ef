"""Linear weights quantised by MLX, with rules that say which site gets how many bits.

Modes, and how the products are computed, stand in `model.quantized`. Recipes for this model differ in what they leave
out: img_mod at 8 bits in mflux (issues 484, 517), modulation and embedders in Draw Things' packs, boundary modules in
NF4 checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mlx.nn as nn

from precision_lab.errors import InputError, nearest
from precision_lab.instrument.sites import Site
from precision_lab.model.quantized import MODES as MODES
from precision_lab.model.quantized import Quantization, QuantizedLinear

_ENTRIES = ("sites", "bits", "mode", "group_size", "keep")


@dataclass(frozen=True)
class Rule:
    """What happens at the sites of one pattern: quantised so, or kept (None)."""

    sites: str
    quantization: Quantization | None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Rule:
        """Bits and group size default to the mode's, the mode to affine.

        Raises InputError for unknown entries, or values that the mode does not have.
        """
        for key in raw:
            if key not in _ENTRIES:
                raise InputError(f"Quantisation rule: unknown entry {key!r}. {nearest(str(key), _ENTRIES)}")
        if not isinstance(raw.get("sites"), str):
            raise InputError(f"Quantisation rule {dict(raw)}: sites is missing, expected a pattern")
        what = f"Quantisation rule for {raw['sites']}"
        quantization = Quantization.checked(what, raw.get("mode", "affine"), raw.get("bits"), raw.get("group_size"))
        return cls(raw["sites"], None if raw.get("keep") else quantization)


@dataclass(frozen=True)
class QuantizedWeights:
    """Each site is treated by the first of `rules` whose pattern names it; linears that none names stay as they are.

    A rule is a mapping with sites, bits, mode, group_size and keep, like `{sites: img_in, bits: 8}` or
    `{sites: img_in, keep: true}`.
    """

    rules: Sequence[Mapping[str, Any]]
    preserves_function: bool = False
    composes: bool = False

    def __post_init__(self) -> None:
        if not self._rules:
            raise InputError("quantized_weights: rules is empty, expected at least one")

    @cached_property
    def _rules(self) -> tuple[Rule, ...]:
        return tuple(Rule.from_dict(raw) for raw in self.rules)

    @property
    def sites(self) -> Sequence[str]:
        """Patterns of all rules, those that keep too: a pattern that names nothing is an error in either."""
        return tuple(rule.sites for rule in self._rules)

    def rewrite(self, site: Site) -> nn.Module:
        quantization = next(rule.quantization for rule in self._rules if site.named_by(rule.sites))
        if quantization is None:
            return site.module
        if isinstance(site.module, nn.QuantizedLinear):
            raise InputError(f"quantized_weights: {site} is quantised already, expected Linear; keep it")
        if not isinstance(site.module, nn.Linear):
            raise InputError(f"quantized_weights: {site} is {type(site.module).__name__}, expected Linear")
        channels = site.module.weight.shape[1]
        if channels % quantization.group_size:
            raise InputError(
                f"quantized_weights: {site} has {channels} input channels, which groups of {quantization.group_size} "
                "do not divide; keep it, or choose a smaller group_size"
            )
        return QuantizedLinear.from_linear(site.module, **quantization._asdict())
