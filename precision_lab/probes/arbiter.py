"""The arbiter: recomputes single operations in NumPy float64 and measures the error of each operation itself.

Each operation is recomputed from its actual inputs, already rounded, so earlier error does not count. Drift measures
how far a value is from that of the reference. The arbiter measures which operations introduce error, and how much of it
any implementation in that dtype would introduce.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, ClassVar

import mlx.nn as nn
import numpy as np

from precision_lab.errors import InputError
from precision_lab.instrument.arrays import described, dtype_name, to_numpy
from precision_lab.instrument.observation import Observation
from precision_lab.model import attention, language_body, layers, modulation, rotary, vae_blocks
from precision_lab.model.qwen_image import block
from precision_lab.model.qwen_image_21 import block as block_21
from precision_lab.model.qwen_image_21 import transformer as transformer_21
from precision_lab.model.qwen_image_21 import vae_stages
from precision_lab.model.text_to_image import sampler
from precision_lab.numerics import float64
from precision_lab.numerics.formats import FORMATS
from precision_lab.probes.base import ACTIVATIONS
from precision_lab.record.columns import Column

Array = np.ndarray[Any, Any]


@singledispatch
def exact(module: nn.Module, inputs: Sequence[Array]) -> Array | None:
    """The float64 result of a call with these inputs; None for an unknown operation.

    Known are the operations of the model files that have one formula, and Linear, LayerNorm and RMSNorm of `mlx.nn`.
    `exact.register(YourModule)` adds a class from anywhere; its subclasses are the same operation: a technique that
    installs a subclass declares that it computes the same function. A subclass with state across calls, such as a
    compensated add, is judged call by call.
    """
    return None


@exact.register(nn.Linear)
def _linear(module: nn.Linear, inputs: Sequence[Array]) -> Array:
    bias = to_numpy(module.bias) if "bias" in module else None
    return float64.linear(inputs[0], to_numpy(module.weight), bias)


@exact.register(layers.LayerNorm)
def _layer_norm(module: layers.LayerNorm, inputs: Sequence[Array]) -> Array:
    return float64.layer_norm(inputs[0], module.eps)


@exact.register(nn.LayerNorm)
def _affine_layer_norm(module: nn.LayerNorm, inputs: Sequence[Array]) -> Array:
    y = float64.layer_norm(inputs[0], module.eps)
    if "weight" in module:
        y = y * to_numpy(module.weight).astype(np.float64)
    return y + to_numpy(module.bias).astype(np.float64) if "bias" in module else y


@exact.register(nn.RMSNorm)
@exact.register(layers.RMSNorm)
def _rms_norm(module: nn.RMSNorm | layers.RMSNorm, inputs: Sequence[Array]) -> Array:
    return float64.rms_norm(inputs[0], to_numpy(module.weight), module.eps)


@exact.register(transformer_21.ZeroCentredRMSNorm)
def _zero_centred_rms_norm(module: transformer_21.ZeroCentredRMSNorm, inputs: Sequence[Array]) -> Array:
    return float64.rms_norm(inputs[0], 1 + to_numpy(module.weight).astype(np.float64), module.eps)


@exact.register(vae_blocks.ChannelNorm)
def _channel_norm(module: vae_blocks.ChannelNorm, inputs: Sequence[Array]) -> Array:
    return float64.channel_norm(inputs[0], to_numpy(module.gamma))


@exact.register(vae_stages.AverageDown)
def _average_down(module: vae_stages.AverageDown, inputs: Sequence[Array]) -> Array:
    return float64.average_down(inputs[0], *module.stage[1:])


@exact.register(language_body.Attend)
def _causal_attention(module: language_body.Attend, inputs: Sequence[Array]) -> Array:
    q, k, v, *mask = inputs
    causal = np.tri(q.shape[1], dtype=bool)[None, None]  # without a mask among the arrays, it is "causal"
    return float64.attention(q, k, v, mask[0] if mask else causal)


@exact.register(sampler.EulerStep)
def _euler_step(module: sampler.EulerStep, inputs: Sequence[Array]) -> Array:
    latents, velocity, dt = (x.astype(np.float64) for x in inputs)
    return np.asarray(latents + dt * velocity)


@exact.register(nn.SiLU)
@exact.register(layers.SiLU)
def _silu(module: nn.Module, inputs: Sequence[Array]) -> Array:
    return float64.silu(inputs[0])


@exact.register(layers.Tanh)
def _tanh(module: layers.Tanh, inputs: Sequence[Array]) -> Array:
    return np.asarray(np.tanh(inputs[0].astype(np.float64)))


@exact.register(layers.GELUTanh)
def _gelu(module: layers.GELUTanh, inputs: Sequence[Array]) -> Array:
    return float64.gelu_tanh(inputs[0])


@exact.register(layers.Add)
def _add(module: layers.Add, inputs: Sequence[Array]) -> Array:
    return np.asarray(inputs[0].astype(np.float64) + inputs[1])


@exact.register(layers.Multiply)
def _multiply(module: layers.Multiply, inputs: Sequence[Array]) -> Array:
    return np.asarray(inputs[0].astype(np.float64) * inputs[1])


@exact.register(block.Modulate)
def _modulate(module: block.Modulate, inputs: Sequence[Array]) -> Array:
    return float64.modulate(*inputs)


@exact.register(block_21.Modulate)
def _modulate_without_shift(module: block_21.Modulate, inputs: Sequence[Array]) -> Array:
    return float64.modulate(inputs[0], None, inputs[1])


@exact.register(modulation.GatedAdd)
def _gated_add(module: modulation.GatedAdd, inputs: Sequence[Array]) -> Array:
    return float64.gated_add(*inputs)


@exact.register(rotary.Rotary)
def _rotate(module: rotary.Rotary, inputs: Sequence[Array]) -> Array:
    return float64.rotate(*inputs)


@exact.register(language_body.Rotary)
def _rotate_halves(module: language_body.Rotary, inputs: Sequence[Array]) -> Array:
    return float64.rotate_halves(*inputs)


@exact.register(attention.Attend)
def _attention(module: attention.Attend, inputs: Sequence[Array]) -> Array:
    return float64.attention(*inputs)


@dataclass(frozen=True)
class Arbiter:
    """`own_ulp_max`, `own_rel_l2`, `rounding_rel_l2`, `own_misrounded_pct` and `own_overflow` of each known operation.

    Definitions: `precision_lab.numerics.float64.own_error`. Unknown operations, and calls whose inputs are not finite,
    have no row. The cost is about that of the operation in float64.

    every: measures the first of every so many calls of a site in a generation.
    """

    sites: Sequence[str]
    ports: Sequence[str] = ("call",)
    every: int = 1
    adds: ClassVar[Sequence[Column]] = (
        Column("own_ulp_max", unit="ulp", meaning="largest error of the operation itself, against float64"),
        Column("own_rel_l2", meaning="relative L2 error of the operation itself, against float64; lower is better"),
        Column("rounding_rel_l2", meaning="relative L2 error that rounding the exact result once would make"),
        Column("own_misrounded_pct", unit="%", meaning="results that are not the exact one rounded to nearest"),
        Column("own_overflow", meaning="results that are infinite where the exact one fits the dtype"),
    )

    def __post_init__(self) -> None:
        if type(self.every) is not int or self.every < 1:
            raise InputError(f"arbiter: every is {self.every!r}, expected a whole number of at least 1")

    def recorder(self) -> ArbiterRecorder:
        return ArbiterRecorder(self.sites, self.ports, self.every)


class ArbiterRecorder:
    """Measures each call when it is observed."""

    table = ACTIVATIONS

    def __init__(self, sites: Sequence[str], ports: Sequence[str], every: int):
        self.sites, self.ports = sites, ports
        self.rows: list[dict[str, Any]] = []
        self._every = every
        self._calls: Counter[tuple[str, str]] = Counter()

    def observe(self, batch: Sequence[Observation]) -> None:
        for position, output, inputs, module in batch:
            address = position.component, position.site
            self._calls[address] += 1
            if (self._calls[address] - 1) % self._every:
                continue
            operands = [to_numpy(x) for x in inputs]
            dtype = dtype_name(output)
            if module is None or dtype not in FORMATS or not all(np.isfinite(x).all() for x in operands):
                continue
            result = exact(module, operands)
            if result is not None:
                error = float64.own_error(to_numpy(output), result, dtype)
                self.rows.append({**position._asdict(), **described(output), **error})
