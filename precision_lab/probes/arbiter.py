"""The arbiter: recomputes single operations in NumPy float64 and measures the error of each operation itself.

Each operation is recomputed from its actual inputs, already rounded, so earlier error does not count. Drift measures
how far a value is from that of the reference. The arbiter measures which operations introduce error, and how much of it
any implementation in that dtype would introduce.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.nn as nn
import numpy as np

from precision_lab.instrument.arrays import described, dtype_name, to_numpy
from precision_lab.instrument.observation import Observation
from precision_lab.model.layers import GELUTanh, LayerNorm, RMSNorm, SiLU
from precision_lab.model.qwen_image.attention import Attend
from precision_lab.model.qwen_image.block import GatedAdd, Modulate
from precision_lab.model.qwen_image.rope import Rotary
from precision_lab.numerics import float64
from precision_lab.numerics.formats import FORMATS
from precision_lab.probes.base import ACTIVATIONS
from precision_lab.record.columns import Column

Array = np.ndarray[Any, Any]


def exact(module: nn.Module, inputs: Sequence[Array]) -> Array | None:
    """The float64 result of a call with these inputs; None for an unknown operation.

    Known operations are Linear, LayerNorm, RMSNorm, Modulate, GELUTanh, SiLU, Rotary, Attend and GatedAdd, and their
    subclasses: a technique that installs a subclass declares that it computes the same function. A subclass with state
    across calls, such as a compensated add, is judged call by call.
    """
    match module:
        case nn.Linear():
            bias = to_numpy(module.bias) if "bias" in module else None
            return float64.linear(inputs[0], to_numpy(module.weight), bias)
        case LayerNorm():
            return float64.layer_norm(inputs[0], module.eps)
        case RMSNorm():
            return float64.rms_norm(inputs[0], to_numpy(module.weight), module.eps)
        case Modulate():
            return float64.modulate(*inputs)
        case GELUTanh():
            return float64.gelu_tanh(inputs[0])
        case SiLU():
            return float64.silu(inputs[0])
        case Rotary():
            return float64.rotate(*inputs)
        case Attend():
            return float64.attention(*inputs)
        case GatedAdd():
            return float64.gated_add(*inputs)
    return None


@dataclass(frozen=True)
class Arbiter:
    """`own_ulp_max`, `own_rel_l2`, `rounding_rel_l2`, `own_misrounded_pct` and `own_overflow` of each known operation.

    Definitions: `precision_lab.numerics.float64.own_error`. Unknown operations, and calls whose inputs are not finite,
    have no row. The cost is about that of the operation in float64.
    """

    sites: Sequence[str]
    ports: Sequence[str] = ("call",)
    adds: ClassVar[Sequence[Column]] = (
        Column("own_ulp_max", unit="ulp", meaning="largest error of the operation itself, against float64"),
        Column("own_rel_l2", meaning="relative L2 error of the operation itself, against float64; lower is better"),
        Column("rounding_rel_l2", meaning="relative L2 error that rounding the exact result once would make"),
        Column("own_misrounded_pct", unit="%", meaning="results that are not the exact one rounded to nearest"),
        Column("own_overflow", meaning="results that are infinite where the exact one fits the dtype"),
    )

    def recorder(self) -> ArbiterRecorder:
        return ArbiterRecorder(self.sites, self.ports)


class ArbiterRecorder:
    """Measures each call when it is observed."""

    table = ACTIVATIONS

    def __init__(self, sites: Sequence[str], ports: Sequence[str]):
        self.sites, self.ports = sites, ports
        self.rows: list[dict[str, Any]] = []

    def observe(self, batch: Sequence[Observation]) -> None:
        for position, output, inputs, module in batch:
            operands = [to_numpy(x) for x in inputs]
            dtype = dtype_name(output)
            if module is None or dtype not in FORMATS or not all(np.isfinite(x).all() for x in operands):
                continue
            result = exact(module, operands)
            if result is not None:
                error = float64.own_error(to_numpy(output), result, dtype)
                self.rows.append({**position._asdict(), **described(output), **error})
