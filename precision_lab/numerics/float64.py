"""Reference results of the transformer's operations, computed in NumPy float64 from the same (rounded) inputs.

All arithmetic, exponentials and sums are float64. B batch, L tokens, D width, H heads, C channels per head. MLX's own
float64 is no reference: its exp, erf and norms have only the accuracy of fp32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from precision_lab.numerics.formats import Format, format_named, round_to, ulp
from precision_lab.numerics.metrics import compare

Array = npt.NDArray[Any]


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """`x @ weight.T + bias`; x: (..., D), weight: (E, D), bias: (E,)."""
    y = x.astype(np.float64) @ weight.astype(np.float64).T
    return y if bias is None else y + bias.astype(np.float64)


def layer_norm(x: Array, eps: float) -> Array:
    """`(x - mean) / sqrt(variance + eps)` over the last axis, in two passes."""
    centred = x.astype(np.float64)
    centred = centred - centred.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + eps)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis."""
    y = x.astype(np.float64)
    return y / np.sqrt(np.square(y).mean(axis=-1, keepdims=True) + eps) * weight.astype(np.float64)


def modulate(x: Array, shift: Array | None, scale: Array) -> Array:
    """`x * (1 + scale) + shift`; x: (B, L, D), shift, or None for zero, and scale as `gate` in `gated_add`."""
    scaled = x.astype(np.float64) * (1 + over_tokens(scale))
    return scaled if shift is None else scaled + over_tokens(shift)


def gated_add(residual: Array, gate: Array, update: Array) -> Array:
    """`residual + gate * update`; residual and update: (B, L, D), gate: (B, D), or (B or 1, L or 1, D)."""
    return residual.astype(np.float64) + over_tokens(gate) * update.astype(np.float64)


def over_tokens(row: Array) -> Array:
    """`row` in float64 with an axis of tokens: (B, D) becomes (B, 1, D); an array that has the axis keeps its shape."""
    wide = row.astype(np.float64)
    return wide[:, None] if wide.ndim == 2 else wide


def silu(x: Array) -> Array:
    """`x / (1 + exp(-x))`."""
    y = x.astype(np.float64)
    with np.errstate(over="ignore"):  # exp(-x) is infinite where the quotient is zero
        return y / (1 + np.exp(-y))


def gelu_tanh(x: Array) -> Array:
    """`0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))` (Hendrycks and Gimpel, arXiv:1606.08415).

    Computed in the equivalent form `x / (1 + exp(-2 t))`, because 1 + tanh(t) cancels for negative x.
    """
    y = x.astype(np.float64)
    inner = math.sqrt(2 / math.pi) * (y + 0.044715 * y * y * y)
    with np.errstate(over="ignore"):
        return y / (1 + np.exp(-2 * inner))


def rotate(x: Array, rotation: Array) -> Array:
    """Multiplies interleaved channel pairs, taken as complex numbers, by `rotation`.

    x: (B, L, H, C); rotation: (L, C), real and imaginary parts interleaved.
    """
    y = x.astype(np.float64)
    a, b = y[..., ::2], y[..., 1::2]
    turn = rotation.astype(np.float64)[:, None]
    cos, sin = turn[..., ::2], turn[..., 1::2]
    return np.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(x.shape)


def rotate_halves(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates channel i with channel i + C / 2; x: (B, L, H, C), cos and sin: (L, C / 2)."""
    first, second = np.split(x.astype(np.float64), 2, axis=-1)
    turn_cos, turn_sin = (part.astype(np.float64)[:, None] for part in (cos, sin))
    turned = first * turn_cos - second * turn_sin, second * turn_cos + first * turn_sin
    return np.concatenate(turned, axis=-1)


def channel_norm(x: Array, scale: Array) -> Array:
    """`x / max(|x|, 1e-12) * sqrt(C) * scale` over the last axis."""
    y = x.astype(np.float64)
    norm = np.sqrt(np.square(y).sum(axis=-1, keepdims=True))
    return y / np.maximum(norm, 1e-12) * math.sqrt(x.shape[-1]) * scale.astype(np.float64)


def average_down(x: Array, out_dim: int, space: int, time: int) -> Array:
    """Means of groups of the values of a pixel, after squares of space x space pixels and frames became channels.

    x: (B, H, W, C); the values are ordered by channel, frame, row and column, and all frames but the last are zero.
    Returns (B, H / space, W / space, out_dim).
    """
    batch, height, width, channels = x.shape
    rows, columns = height // space, width // space
    values = np.zeros((batch, rows, columns, channels, time, space, space))
    for i in range(space):
        for j in range(space):
            values[..., -1, i, j] = x[:, i::space, j::space]
    return np.asarray(values.reshape(batch, rows, columns, out_dim, -1).mean(axis=-1))


def attention(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """`softmax(q k^T / sqrt(C)) v`; q: (B, L, H, C), k and v: (B, L, K, C) with H a multiple of K.

    mask: (B, 1, 1, L) or (B, 1, L, L), True where a query may read a key.
    """
    query, key, value = (a.astype(np.float64).transpose(0, 2, 1, 3) for a in (q, k, v))
    key, value = (a.repeat(query.shape[1] // a.shape[1], axis=1) for a in (key, value))
    scores = query @ key.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ value).transpose(0, 2, 1, 3)


def own_error(output: Array, exact: Array, fmt: Format | str) -> dict[str, float]:
    """The error of a single operation: its `output`, of dtype `fmt`, against the `exact` float64 result.

    - `own_ulp_max`: the largest |output - exact| in ulps of `fmt` at the exact value; up to 0.5 if correctly rounded.
      It is large where terms cancel, since an ulp of the difference is small compared with the rounding of the terms;
    - `own_rel_l2`: |output - exact| / |exact|;
    - `rounding_rel_l2`: |rounded - exact| / |exact| for the correctly rounded result, the least possible error;
    - `own_misrounded_pct`: percent of elements that differ from the correctly rounded result;
    - `own_overflow`: number of non-finite elements whose exact result rounds to a finite number.

    The first three cover the elements where both the output and the correctly rounded result are finite; they are NaN
    if there are none, and the relative ones also if the exact result is zero throughout. Raises InputError for an
    unknown format name.
    """
    fmt = format_named(fmt) if isinstance(fmt, str) else fmt
    y, rounded = output.astype(np.float64), round_to(exact, fmt)
    finite = np.isfinite(y) & np.isfinite(rounded)
    misrounded = (y != rounded) & ~(np.isnan(y) & np.isnan(rounded))
    finite_y, finite_rounded, finite_exact = y[finite], rounded[finite], np.asarray(exact)[finite]
    ulps = np.abs(finite_y - finite_exact) / ulp(finite_exact, fmt)
    return {
        "own_ulp_max": float(ulps.max()) if finite_y.size else math.nan,
        "own_rel_l2": float(compare(finite_y, finite_exact).values["rel_l2"]),
        "rounding_rel_l2": float(compare(finite_rounded, finite_exact).values["rel_l2"]),
        "own_misrounded_pct": 100 * float(misrounded.mean()) if y.size else math.nan,
        "own_overflow": float(np.count_nonzero(~np.isfinite(y) & np.isfinite(rounded))),
    }
