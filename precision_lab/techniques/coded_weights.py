"""Linear weights, and optionally their inputs, in a format of `model.codings`.

Formats of files that people run: int8 by row, with a rotation (ConvRot), SVDQuant, GGUF's blocks, NF4. Each coding
cites its definition. Weights and inputs are switched on separately, so that the error of each can be measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Site
from precision_lab.model.coded import CodedLinear, unfit
from precision_lab.model.codings.base import Coding, Inputs
from precision_lab.techniques.parts.encoding import encoder
from precision_lab.techniques.parts.kinds import expect_kind


@dataclass(frozen=True)
class CodedWeights:
    """Linears in `coding`, their inputs rounded by `inputs` unless that is null.

    unfit: "refuse" (default) raises InputError for a linear whose shape the format cannot store; "keep" leaves it
    alone, and the coverage of the run says how many were rewritten. A model of which it can store none is refused.
    """

    coding: Coding
    sites: Sequence[str]
    inputs: Inputs | None = None
    unfit: str = "refuse"
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = False
    of_linears: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.unfit not in ("refuse", "keep"):
            raise InputError(f"coded_weights.unfit is {self.unfit!r}, expected refuse or keep")

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("coded_weights", site, nn.Linear)
        linear = site.module
        if self.kept(site) is not None:
            return linear
        why = unfit(self.coding, linear.weight.shape, self.inputs)
        if why is not None:
            raise InputError(f"coded_weights: {site} in {self.coding.name}: {why}; leave it out, or use unfit: keep")

        def encode() -> nn.Module:
            return CodedLinear.encoded(self.coding, linear.weight, inputs=self.inputs)

        return encoder().encoded(linear, (self.coding, self.inputs), encode)

    def kept(self, site: Site) -> str | None:
        """Why the format or the rounding of inputs does not fit a linear that is left alone; None if it is not."""
        return unfit(self.coding, site.module.weight.shape, self.inputs) if self.unfit == "keep" else None
