"""Scales both residual streams of the transformer by a common factor, through its weights, with the same function.

Let s_i be a stream at the input of block i. The block reads it only through LayerNorm, whose output is invariant to a
common factor, and adds gate * linear(h):

    s_{i+1} = s_i + gate_i * (W_i h_i + b_i),        h_i a function of LayerNorm(s_i)

Replacing s_0 by G * s_0 and every contribution by G * gate_i * (W_i h_i + b_i) replaces every s_i by G * s_i. The
output, proj_out of a LayerNorm, is unchanged. The streams of a checkpoint can thus be moved above the upper limit of a
format, or below it.

G is a power of two. Every product with it is then exact in a binary format, at any step of the forward pass. While
nothing leaves the range of the format, the outputs agree bit for bit.

LayerNorm is invariant to G only if its eps is scaled too: x / sqrt(var + eps) becomes G x / sqrt(G^2 var + G^2 eps).
The LayerNorms on the streams therefore get G^2 eps. With eps left at 1e-6, their output would change by the relative
size eps / (2 var) * |1 / G^2 - 1|. This is below rounding for G > 1, but the function differs where G^2 var comes near
eps (measured on the synthetic checkpoint: 1.5e-3 of the transformer's output at G = 2^-8, 0.22 at 2^-12).

The variance inside LayerNorm is fp32 in every dtype and scales with G^2. It overflows for streams beyond 1.8e19, in
bfloat16 and fp32 alike, and the normalised stream is then zero. Activations that are rounded to infinity or to zero are
not an error: they are recorded like any other result.

Inside a branch, G is split between the gate and the last linear, as equally as powers of two allow. On one of them
alone, a large G would overflow that parameter or the branch's ungated output long before the stream overflows, which no
trained model does. With the split, neither is enlarged by more than sqrt(2 G), and the stream overflows first.
"""

from __future__ import annotations

import re
from math import frexp, log2

import mlx.core as mx
from mlx.utils import tree_flatten

from precision_lab.errors import InputError
from precision_lab.model.layers import LayerNorm
from precision_lab.model.qwen_image.transformer import Transformer

# in a quantised linear the factor applies to scales and biases (the offsets), not to the packed weight
_TENSOR = r"\.(weight|scales|biases|bias)"
_INPUT = re.compile(r"(img|txt)_in" + _TENSOR)
_GATES = re.compile(r"transformer_blocks\.\d+\.(img|txt)_mod\.1" + _TENSOR)
_OUTPUT = re.compile(
    r"transformer_blocks\.\d+\.(attn\.to_out\.0|attn\.to_add_out|img_mlp\.net\.2|txt_mlp\.net\.2)" + _TENSOR
)
_CHUNKS = 6
_GATE_CHUNKS = (2, 5)
"""The rows of a modulation are six chunks: shift, scale, gate of attention, then shift, scale, gate of the MLP."""

_LARGEST_EXPONENT = 53
"""eps G^2 is a normal number in fp32 for G from 2^-53, and also beyond 2^53."""


def exponent(factor: float) -> int:
    """log2 of a power of two from 2^-53 to 2^53.

    Raises InputError for any other number; the message names the two nearest powers of two.
    """
    if not 2.0**-_LARGEST_EXPONENT <= factor <= 2.0**_LARGEST_EXPONENT:  # also rejects NaN
        raise InputError(f"model.inflate is {factor}, expected a power of two from 2^-53 to 2^53, like 4096 or 0.25")
    mantissa, above = frexp(factor)
    if mantissa != 0.5:
        raise InputError(
            f"model.inflate is {factor}, expected a power of two: others are not exact. "
            f"Nearest: {_formatted(above - 1)} or {_formatted(above)}"
        )
    return above - 1


def stream_scale(factor: float) -> str:
    """A label like `stream x4096` for the factor on the residual streams, a power of two; empty for 1."""
    if factor == 1:
        return ""
    return f"stream x{factor:.0f}" if 1 < factor < 1e7 else f"stream x2^{log2(factor):.0f}"


def inflate_streams(model: Transformer, factor: float, compute: mx.Dtype) -> None:
    """Scales the weights of `model` in place so that both residual streams are multiplied by `factor`, a power of two.

    The weights keep their dtypes. Raises InputError, and changes nothing, if a scaled weight is not exact in its stored
    dtype (fp32, bf16 or fp16), or would be infinite in `compute`, the dtype to which it will be cast. Weights below the
    normal range of a 16-bit `compute` are rounded when they are cast, as with factor 1.
    """
    power = exponent(factor)
    if power == 0:
        return
    parameters = {
        name: parameter
        for name, parameter in tree_flatten(model.parameters())
        if any(kind.fullmatch(name) for kind in (_INPUT, _GATES, _OUTPUT)) and parameter.dtype != mx.uint32
    }
    for name, parameter in parameters.items():
        if not mx.issubdtype(parameter.dtype, mx.floating):
            raise InputError(
                f"model.inflate={_formatted(power)}: {name} is quantised with scales of 8 bits, expected affine"
            )
    misfits = {name: dtype for name, p in parameters.items() if (dtype := _misfit(name, p, power, compute))}
    if misfits:
        name, dtype = next(iter(misfits.items()))
        allowed = power
        for other in misfits:
            while _misfit(other, parameters[other], allowed, compute):
                allowed -= 1 if power > 0 else -1
        extreme, verb = ("largest", "overflows") if power > 0 else ("smallest", "loses bits")
        raise InputError(
            f"model.inflate={_formatted(power)}: {name} {verb} in {str(dtype).rpartition('.')[2]} "
            f"({len(misfits)} such tensors). The {extreme} power of two that fits is {_formatted(allowed)}"
        )
    for module in model.modules():
        if isinstance(module, LayerNorm):
            module.eps *= factor**2
    model.load_weights([(name, _scaled(name, p, power)) for name, p in parameters.items()], strict=False)


def _misfit(name: str, parameter: mx.array, power: int, compute: mx.Dtype) -> mx.Dtype | None:
    """The dtype that cannot hold the scaled parameter, its stored dtype or `compute`; None if both can."""
    scaled = _scaled(name, parameter, power)
    if not mx.array_equal(_scaled(name, scaled, power, inverse=True), parameter, equal_nan=True):
        return parameter.dtype
    if compute != mx.float32:
        overflown = mx.isinf(scaled.astype(compute)) & ~mx.isinf(parameter.astype(compute))
        if overflown.any():
            return compute
    return None


def _scaled(name: str, parameter: mx.array, power: int, inverse: bool = False) -> mx.array:
    """The parameter, in its dtype, times its share of 2^power; divided by it if `inverse`."""
    gate = power // 2
    share = power if _INPUT.fullmatch(name) else gate if _GATES.fullmatch(name) else power - gate
    factor = 2.0 ** (-share if inverse else share)
    x = parameter.astype(mx.float32)  # the factor itself may be beyond fp16
    if not _GATES.fullmatch(name):
        return (x * factor).astype(parameter.dtype)
    factors = mx.array([factor if chunk in _GATE_CHUNKS else 1.0 for chunk in range(_CHUNKS)])
    chunks = x.reshape(_CHUNKS, -1) * factors[:, None]
    return chunks.reshape(parameter.shape).astype(parameter.dtype)


def _formatted(power: int) -> str:
    """2^power, formatted so that YAML and the command line read it back exactly."""
    return f"{2.0**power:.17g}"
