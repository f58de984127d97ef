"""Linear weights quantised by MLX, with rules that assign bits to sites.

`model.quantized` describes the modes and the computation of the products. Recipes for Qwen-Image differ in the layers
that they spare: mflux keeps img_mod at 8 bits (issues 484, 517), Draw Things' packs spare modulation and embedders, NF4
checkpoints the first and last modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import mlx.nn as nn

from precision_lab.errors import InputError, nearest
from precision_lab.instrument.sites import Site
from precision_lab.model.coded import CodedLinear
from precision_lab.model.layers import on_cpu
from precision_lab.model.quantized import MODES as MODES
from precision_lab.model.quantized import Quantization, QuantizedLinear
from precision_lab.techniques.base import first_naming
from precision_lab.techniques.parts.encoding import encoder
from precision_lab.techniques.parts.kinds import expect_kind

_ENTRIES = ("sites", "bits", "mode", "group_size", "tensor_scale", "keep")


@dataclass(frozen=True)
class Rule:
    """The quantisation at the sites of some patterns, or None to keep their weights.

    fits: whether a layer whose channels the groups do not divide may have smaller ones, since no size was stated.
    """

    sites: tuple[str, ...]
    quantization: Quantization | None
    fits: bool = True

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Rule:
        """Reads a rule. The mode defaults to affine; bits and group size default to those of the mode.

        Raises InputError for unknown entries, or values that the mode does not have.
        """
        for key in raw:
            if key not in _ENTRIES:
                raise InputError(f"Quantisation rule: unknown entry {key!r}. {nearest(str(key), _ENTRIES)}")
        sites = (raw["sites"],) if isinstance(raw.get("sites"), str) else tuple(raw.get("sites") or ())
        if not sites or not all(isinstance(pattern, str) for pattern in sites):
            raise InputError(
                f"Quantisation rule {dict(raw)}: sites is missing, expected a pattern or a list of patterns"
            )
        what = f"Quantisation rule for {', '.join(sites)}"
        quantization = Quantization.checked(
            *(what, raw.get("mode", "affine"), raw.get("bits"), raw.get("group_size"), raw.get("tensor_scale", False))
        )
        return cls(sites, None if raw.get("keep") else quantization, raw.get("group_size") is None)


@dataclass(frozen=True)
class QuantizedWeights:
    """The first of `rules` that names a site decides about it; linears that no rule names stay as they are.

    A rule is a mapping with sites (a pattern or several), bits, mode, group_size, tensor_scale and keep, such as
    `{sites: img_in, bits: 8}` or `{sites: [norm_out.linear, proj_out], keep: true}`. A rule without a group size has
    that of the mode, or the next smaller one that divides the input channels of the layer: 32 in place of 64.
    """

    rules: Sequence[Mapping[str, Any]]
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = False
    of_linears: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self._rules:
            raise InputError("quantized_weights: rules is empty, expected at least one")

    @cached_property
    def _rules(self) -> tuple[Rule, ...]:
        return tuple(Rule.from_dict(raw) for raw in self.rules)

    @cached_property
    def _by_pattern(self) -> Mapping[str, Rule]:
        """The rule for each pattern; the first with a pattern decides."""
        return {pattern: rule for rule in reversed(self._rules) for pattern in rule.sites}

    @property
    def sites(self) -> Sequence[str]:
        """The patterns of all rules, in order. Those that keep are included, so that they must match something too."""
        return tuple(pattern for rule in self._rules for pattern in rule.sites)

    def rewrite(self, site: Site) -> nn.Module:
        pattern = first_naming(self.sites, site)
        if pattern is None:
            raise InputError(f"quantized_weights: no rule names {site}, expected one of {', '.join(self.sites)}")
        rule = self._by_pattern[pattern]
        quantization = rule.quantization
        if quantization is None:
            return site.module
        if isinstance(site.module, nn.QuantizedLinear | CodedLinear):
            raise InputError(f"quantized_weights: {site} is quantised already, expected Linear; keep it")
        expect_kind("quantized_weights", site, nn.Linear)
        channels = site.module.weight.shape[1]
        if rule.fits:
            quantization = quantization.fitting(channels)
        if channels % quantization.group_size:
            raise InputError(
                f"quantized_weights: {site} has {channels} input channels, which groups of {quantization.group_size} "
                "do not divide; keep it, or give a smaller group_size"
            )
        linear, packing = site.module, quantization
        if not on_cpu():  # where `fast` joins the arrays of a block: kept ones would be a second copy
            return QuantizedLinear.packed(linear, packing)
        return encoder().encoded(linear, packing, lambda: QuantizedLinear.packed(linear, packing))
