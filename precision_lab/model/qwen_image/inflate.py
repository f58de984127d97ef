"""A common factor on both residual streams of the transformer, through its weights: same function, other range.

Let s_i be a stream where block i reads it. The block sees it only through LayerNorm, whose output does not change with
a common factor, and adds gate * linear(h):

    s_{i+1} = s_i + gate_i * (W_i h_i + b_i),        h_i a function of LayerNorm(s_i)

With G * s_0 for s_0 and G * gate_i * (W_i h_i + b_i) for every contribution, every s_i becomes G * s_i, and the
output, proj_out of a LayerNorm, stays the same. So a checkpoint can be taken past the limit of a format, or under it.

G is a power of two: then every product with it is exact in a binary format, at any step of the forward pass, and as
long as nothing leaves the range of the format the outputs agree bit for bit.

LayerNorm ignores a common factor only if its eps follows: x / sqrt(var + eps) becomes G x / sqrt(G^2 var + G^2 eps).
The LayerNorms on the streams are therefore given G^2 eps. Left at 1e-6, eps would change their output by the relative
size eps / (2 var) * |1 / G^2 - 1|: below rounding for G > 1, but another function where G^2 var comes near eps
(measured on the synthetic checkpoint: 1.5e-3 of the transformer's output at G = 2^-8, 0.22 at 2^-12).

What G cannot leave alone is LayerNorm's variance, fp32 in every dtype: it overflows for streams beyond 1.8e19, in
bfloat16 and fp32 alike, and the normalised stream is then zero. And an activation that is rounded to infinity or to
nothing on the way is a result like any other.

Inside a branch G is split between gate and last linear, as equally as powers of two allow. On one of the two alone, a
large G would overflow that parameter or the branch's ungated output long before the stream, which no trained model
does; split, neither is enlarged by more than sqrt(2 G), and it is the stream that leaves the format.
"""

from __future__ import annotations

import re
from math import frexp, log2

import mlx.core as mx
from mlx.utils import tree_flatten

from precision_lab.errors import InputError
from precision_lab.model.layers import LayerNorm
from precision_lab.model.qwen_image.transformer import Transformer

# a quantised linear takes the factor in scales and biases, its offsets; its packed weight stays
_TENSOR = r"\.(weight|scales|biases|bias)"
_INPUT = re.compile(r"(img|txt)_in" + _TENSOR)
_GATES = re.compile(r"transformer_blocks\.\d+\.(img|txt)_mod\.1" + _TENSOR)
_OUTPUT = re.compile(
    r"transformer_blocks\.\d+\.(attn\.to_out\.0|attn\.to_add_out|img_mlp\.net\.2|txt_mlp\.net\.2)" + _TENSOR
)
_CHUNKS = 6
_GATE_CHUNKS = (2, 5)
"""Rows of a modulation come in chunks: shift, scale, gate of attention, then shift, scale, gate of the MLP."""

_LARGEST_EXPONENT = 53
"""Down to 2^-53, and beyond 2^53, eps G^2 is a normal number of fp32."""


def exponent(factor: float) -> int:
    """log2 of a power of two. Raises InputError for any other number, naming the two nearest, and beyond 2^+-53."""
    if not 2.0**-_LARGEST_EXPONENT <= factor <= 2.0**_LARGEST_EXPONENT:  # also refuses NaN
        raise InputError(f"model.inflate is {factor}, expected a power of two from 2^-53 to 2^53, like 4096 or 0.25")
    mantissa, above = frexp(factor)
    if mantissa != 0.5:
        raise InputError(
            f"model.inflate is {factor}, expected a power of two: others are not exact. "
            f"Nearest: {_written(above - 1)} or {_written(above)}"
        )
    return above - 1


def stream_scale(factor: float) -> str:
    """`stream x4096`, for a power of two by which the residual streams are multiplied; empty for 1."""
    if factor == 1:
        return ""
    return f"stream x{factor:.0f}" if 1 < factor < 1e7 else f"stream x2^{log2(factor):.0f}"


def inflate_streams(model: Transformer, factor: float, compute: mx.Dtype) -> None:
    """Multiplies both residual streams of `model` by `factor`, a power of two, through its weights, in their dtypes.

    Raises InputError, and changes nothing, if a scaled weight is not exact in the dtype it is stored in (fp32, bf16 or
    fp16), or would be infinite in `compute`, the dtype it is to be cast to. Weights that fall below the normal numbers
    of a 16-bit `compute` are rounded when they are cast, as at factor 1.
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
                f"model.inflate={_written(power)}: {name} is quantised with scales of 8 bits, expected affine"
            )
    refused = {name: dtype for name, p in parameters.items() if (dtype := _misfit(name, p, power, compute))}
    if refused:
        name, dtype = next(iter(refused.items()))
        fitting = power
        for other in refused:
            while _misfit(other, parameters[other], fitting, compute):
                fitting -= 1 if power > 0 else -1
        extreme, verb = ("largest", "overflows") if power > 0 else ("smallest", "loses bits")
        raise InputError(
            f"model.inflate={_written(power)}: {name} {verb} in {str(dtype).rpartition('.')[2]} "
            f"({len(refused)} such tensors). The {extreme} power of two that fits is {_written(fitting)}"
        )
    for module in model.modules():
        if isinstance(module, LayerNorm):
            module.eps *= factor**2
    model.load_weights([(name, _scaled(name, p, power)) for name, p in parameters.items()], strict=False)


def _misfit(name: str, parameter: mx.array, power: int, compute: mx.Dtype) -> mx.Dtype | None:
    """The dtype in which the scaled parameter does not fit: the one it is stored in, or `compute`."""
    scaled = _scaled(name, parameter, power)
    if not mx.array_equal(_scaled(name, scaled, power, inverse=True), parameter, equal_nan=True):
        return parameter.dtype
    if compute != mx.float32:
        overflown = mx.isinf(scaled.astype(compute)) & ~mx.isinf(parameter.astype(compute))
        if overflown.any():
            return compute
    return None


def _scaled(name: str, parameter: mx.array, power: int, inverse: bool = False) -> mx.array:
    """The parameter times its share of 2^power, or divided by it, in its dtype."""
    gate = power // 2
    share = power if _INPUT.fullmatch(name) else gate if _GATES.fullmatch(name) else power - gate
    factor = 2.0 ** (-share if inverse else share)
    x = parameter.astype(mx.float32)  # the factor itself may be beyond fp16
    if not _GATES.fullmatch(name):
        return (x * factor).astype(parameter.dtype)
    factors = mx.array([factor if chunk in _GATE_CHUNKS else 1.0 for chunk in range(_CHUNKS)])
    chunks = x.reshape(_CHUNKS, -1) * factors[:, None]
    return chunks.reshape(parameter.shape).astype(parameter.dtype)


def _written(power: int) -> str:
    """2^power as a number that YAML and the command line read back exactly."""
    return f"{2.0**power:.17g}"
