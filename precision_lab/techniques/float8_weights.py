"""Linear weights, and optionally their inputs, in float8 e4m3: without a scale, or with one a tensor or output channel.

vLLM-Omni quantises online like this, with one scale for a weight and one for each token of the input. Applied to every
linear it breaks Qwen-Image (issue 2728). Leaving out img_mlp gives an LPIPS of 0.39; leaving out the timestep MLP and
img_mod instead gives 0.17 (pull request 2795). The format itself: `model.codings.float8`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import mlx.nn as nn

from precision_lab.instrument.sites import Site
from precision_lab.model.coded import CodedLinear
from precision_lab.model.codings.float8 import Float8, Float8Inputs, check_scale
from precision_lab.techniques.parts.encoding import encoder
from precision_lab.techniques.parts.kinds import expect_kind


@dataclass(frozen=True)
class Float8Weights:
    """Linears in e4m3. `scale`: none (values beyond 448 saturate), tensor or channel.

    `quantize_input` quantises the inputs too, with one scale a token.
    """

    sites: Sequence[str]
    scale: str = "tensor"
    quantize_input: bool = False
    preserves_function: ClassVar[bool] = False
    composes: ClassVar[bool] = False
    of_linears: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_scale("float8_weights.scale", self.scale)

    def rewrite(self, site: Site) -> nn.Module:
        expect_kind("float8_weights", site, nn.Linear)
        linear = site.module
        inputs = Float8Inputs() if self.quantize_input else None
        coding = Float8(self.scale)

        def encode() -> nn.Module:
            return CodedLinear.encoded(coding, linear.weight, inputs=inputs)

        return encoder().encoded(linear, (coding, inputs), encode)


def float8_settings(module: nn.Module) -> tuple[str, bool] | None:
    """`scale` and `quantize_input` of the `Float8Weights` that give such a linear; None if none does."""
    if not isinstance(module, CodedLinear) or not isinstance(module.coding, Float8):
        return None
    return (module.coding.scale, module.inputs is not None) if module.inputs in (None, Float8Inputs()) else None
