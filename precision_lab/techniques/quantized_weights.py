"""Linear weights quantised by MLX, with rules that say which site gets how many bits.

The modes are those of `mx.quantize`: affine (scale and offset for each group of a row), mxfp4 and mxfp8 (OCP
Microscaling, 32 values share a power of two) and nvfp4 (16 share an e4m3 scale). Recipes for this model differ in what
they leave out: img_mod at 8 bits in mflux (issues 484, 517), modulation and embedders in Draw Things' packs, boundary
modules in NF4 checkpoints. On a GPU the products go through `mx.quantized_matmul`; its CPU kernel accumulates in the
storage dtype (relative error 8e-2 in bf16), so there weights are decoded to 16 bits and multiplied as usual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError, nearest
from precision_lab.instrument.sites import Site
from precision_lab.model.layers import on_cpu


class Mode:
    """What `mx.quantize` offers in a mode: group sizes and bits, the default first."""

    def __init__(self, groups: Sequence[int], bits: Sequence[int]):
        self.groups, self.bits = tuple(groups), tuple(bits)


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "affine": Mode((64, 32, 128), (4, 2, 3, 5, 6, 8)),
        "mxfp4": Mode((32,), (4,)),
        "mxfp8": Mode((32,), (8,)),
        "nvfp4": Mode((16,), (4,)),
    }
)


@dataclass(frozen=True)
class Rule:
    """What happens at the sites of one pattern: quantised so, or kept; bits and group size default to the mode's."""

    sites: str
    bits: int | None = None
    mode: str = "affine"
    group_size: int | None = None
    keep: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Rule:
        """Raises InputError for unknown entries, or values that the mode does not have."""
        known = cls.__dataclass_fields__
        for key in raw:
            if key not in known:
                raise InputError(f"Quantisation rule: unknown entry {key!r}. {nearest(str(key), known)}")
        if not isinstance(raw.get("sites"), str):
            raise InputError(f"Quantisation rule {dict(raw)}: sites is missing, expected a pattern")
        mode = raw.get("mode", "affine")
        if mode not in MODES:
            raise InputError(f"Quantisation rule for {raw['sites']}: mode is {mode!r}. {nearest(str(mode), MODES)}")
        defaults = {"bits": MODES[mode].bits[0], "group_size": MODES[mode].groups[0]}
        rule = cls(**{**defaults, **{key: value for key, value in raw.items() if value is not None}})
        for name, value, choices in (
            ("bits", rule.bits, MODES[mode].bits),
            ("group_size", rule.group_size, MODES[mode].groups),
        ):
            if value not in choices:
                expected = ", ".join(map(str, sorted(choices)))
                raise InputError(f"Quantisation rule for {rule.sites}: {name} is {value}, {mode} has {expected}")
        return rule


class _QuantizedLinear(nn.QuantizedLinear):
    def __call__(self, x: mx.array) -> mx.array:
        if not on_cpu():
            return super().__call__(x)
        decoded = mx.dequantize(
            self.weight,
            self.scales,
            self.get("biases"),
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
        )
        y = x.astype(mx.float32) @ decoded.astype(mx.float32).T
        return (y + self.bias.astype(mx.float32) if "bias" in self else y).astype(x.dtype)


@dataclass(frozen=True)
class QuantizedWeights:
    """Each site is treated by the first of `rules` whose pattern names it; linears that none names stay as they are.

    A rule is a mapping with the fields of `Rule`, like `{sites: img_in, bits: 8}` or `{sites: img_in, keep: true}`.
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
        rule = next(rule for rule in self._rules if site.named_by(rule.sites))
        if rule.keep:
            return site.module
        if not isinstance(site.module, nn.Linear):
            raise InputError(f"quantized_weights: {site} is {type(site.module).__name__}, expected Linear")
        channels = site.module.weight.shape[1]
        assert rule.group_size is not None
        if channels % rule.group_size:
            raise InputError(
                f"quantized_weights: {site} has {channels} input channels, which groups of {rule.group_size} do not "
                "divide; keep it, or choose a smaller group_size"
            )
        return _QuantizedLinear.from_linear(site.module, rule.group_size, rule.bits, mode=rule.mode)
