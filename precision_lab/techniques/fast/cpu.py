"""Fast replacements of plain modules on a CPU: the same parameters, the same roundings, different loops.

MLX's CPU kernels are single-threaded, and its exp and tanh take some 18 ns an element where NumPy's take 0.5 (measured,
MLX 0.32.4 and NumPy 2.4 on one core of Zen 4). A replacement reads the evaluated buffers of its inputs through NumPy,
works on all cores in pieces that stay in a core's cache, and writes into the buffer of an MLX array. Everything inside
is fp32 and is rounded where the plain module rounds, so the error against float64 is no larger. Products use oneDNN
where it is available (`device.onednn`); it treats subnormal bfloat16 numbers as zero. The pieces depend only on shapes
and the number of cores, so the same input gives the same bits.

Cost: a replacement waits for its inputs and for its result, so small norms, rotations, activations, attention and
products stay with MLX. For sgemm 16-bit weights are widened piece by piece at each use, at
0.1 ns each where the product of 1024 tokens takes 20 ns; permanent fp32 copies would triple the memory of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from precision_lab.device import onednn
from precision_lab.device.sgemm import cores, in_pieces, sgemm
from precision_lab.instrument.arrays import to_numpy
from precision_lab.instrument.sites import Site
from precision_lab.model.attention import Attend
from precision_lab.model.layers import GELUTanh, LayerNorm, Linear, SiLU
from precision_lab.model.paging import class_of, recast
from precision_lab.model.rotary import Rotary

# elements in a piece of an element-wise loop: 256 KiB in fp32; with one temporary, half of a core's L2 cache
_PIECE = 1 << 16
# for smaller products, norms and rotations the wait for their results costs more than the gain; exp and tanh gain most
_FEW_WEIGHTS = 1 << 18
_FEW_ELEMENTS = 1 << 15
_FEW_EXPONENTIALS = 1 << 11
_FEW_SCORES = 3 << 12
# sgemm copies the other operand once a piece, which does not pay for narrower pieces
_OUTPUTS = (128, 512)
_BFLOAT16_OUTPUTS = (256, 1024)
# scores in a piece of attention: 1 MiB
_SCORES = 1 << 18
_QUERIES = (32, 256)


class _FastLinear(Linear):
    """Pieces of output channels: product and bias in fp32, rounded once. MLX computes small linears."""

    def __call__(self, x: mx.array) -> mx.array:
        if self.weight.size < _FEW_WEIGHTS:
            return super().__call__(x)
        return _linear(x, to_numpy(self.weight), to_numpy(self.bias) if "bias" in self else None)


def _linear(x: mx.array, weight: np.ndarray, bias: np.ndarray | None) -> mx.array:
    """x @ weight.T + bias; x: (..., K), weight: (N, K), bias: (N,)."""
    outputs, channels = weight.shape
    values = _contiguous(x).reshape(-1, channels)
    result, y = _empty((*x.shape[:-1], outputs), x.dtype)
    y = y.reshape(-1, outputs)
    share = -(-outputs // cores())
    alike = all(array.dtype == y.dtype for array in (weight, bias) if array is not None)
    if alike and x.dtype in (mx.bfloat16, mx.float32) and onednn.available():
        most = _OUTPUTS if x.dtype == mx.float32 else _BFLOAT16_OUTPUTS
        in_pieces(partial(_piece, values, weight, bias, y), outputs, _between(most, share, 64))
        return result
    with np.errstate(invalid="ignore"):  # caused by a NaN in float16
        values = values.astype(np.float32, copy=False)
    in_pieces(partial(_widened_piece, values, weight, bias, y), outputs, _between(_OUTPUTS, share, 64))
    return result


def _piece(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, y: np.ndarray, piece: slice) -> None:
    onednn.linear(x, weight[piece], None if bias is None else bias[piece], y[:, piece])


def _widened_piece(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, y: np.ndarray, piece: slice) -> None:
    exact = y.dtype == np.float32
    product = y[:, piece] if exact else np.empty((len(x), piece.stop - piece.start), np.float32)
    sgemm(x, weight[piece].astype(np.float32, copy=False).T, product)
    if bias is not None:
        np.add(product, bias[piece].astype(np.float32), out=product)
    if not exact:
        y[:, piece] = product


class _FastAttend(Attend):
    """Pieces of a head's queries: scores, softmax and product with v of one piece before the next."""

    def __call__(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None = None) -> mx.array:
        batch, queries, heads, channels = q.shape
        keys, kv_heads = k.shape[1:3]
        assert heads % kv_heads == 0
        if batch * heads * queries * keys < _FEW_SCORES:
            return super().__call__(q, k, v, mask)
        q32, k32, v32 = (_float32(a) for a in (q, k, v))
        masked = None if mask is None else ~np.broadcast_to(to_numpy(mask), (batch, 1, queries, keys))[:, 0]
        result, out = _empty(q.shape, q.dtype)
        step = _between(_QUERIES, _SCORES // max(keys, 1), 32)
        tiles = -(-queries // step)

        def attend(piece: slice) -> None:
            for index in range(piece.start, piece.stop):
                pair, tile = divmod(index, tiles)
                b, h = divmod(pair, heads)
                rows, kv = slice(tile * step, (tile + 1) * step), h * kv_heads // heads
                # scaled before the product, as in MLX: unscaled products may overflow
                query = q32[b, rows, h] * np.float32(channels**-0.5)
                scores = np.empty((len(query), keys), np.float32)
                sgemm(query, k32[b, :, kv].T, scores)
                if masked is not None:
                    scores[masked[b, rows]] = np.finfo(np.float32).min
                scores -= scores.max(axis=1, keepdims=True)
                np.exp(scores, out=scores)
                weighted = np.empty((len(query), channels), np.float32)
                sgemm(scores, v32[b, :, kv], weighted)
                weighted /= scores.sum(axis=1, keepdims=True)
                out[b, rows, h] = weighted

        in_pieces(attend, batch * heads * tiles, 1)
        return result


class _FastGELUTanh(GELUTanh):
    """The plain formula, in place."""

    def __call__(self, x: mx.array) -> mx.array:
        if x.size < _FEW_EXPONENTIALS:
            return super().__call__(x)
        flat = _contiguous(x).reshape(-1)
        result, out = _empty(x.shape, x.dtype)
        out = out.reshape(-1)

        def gelu(piece: slice) -> None:
            y = flat[piece].astype(np.float32, copy=False)
            inner = y * y
            inner *= y
            inner *= np.float32(0.044715)
            inner += y
            inner *= np.float32(math.sqrt(2 / math.pi))
            np.tanh(inner, out=inner)
            inner += 1
            inner *= np.float32(0.5) * y
            out[piece] = inner

        in_pieces(gelu, flat.size, _PIECE)
        return result


class _FastSiLU(SiLU):
    """x / (1 + exp(-x)), in place."""

    def __call__(self, x: mx.array) -> mx.array:
        if x.size < _FEW_EXPONENTIALS:
            return super().__call__(x)
        flat = _contiguous(x).reshape(-1)
        result, out = _empty(x.shape, x.dtype)
        out = out.reshape(-1)

        def silu(piece: slice) -> None:
            y = flat[piece].astype(np.float32, copy=False)
            divisor = np.negative(y)
            np.exp(divisor, out=divisor)  # infinity gives 0, or NaN for -inf as in the plain module
            divisor += 1
            np.divide(y, divisor, out=divisor)
            out[piece] = divisor

        in_pieces(silu, flat.size, _PIECE)
        return result


class _FastLayerNorm(LayerNorm):
    """Uses the variance of the centred row; MLX's kernel errs by 1e-5 where some channels are massive."""

    def __init__(self, plain: LayerNorm):
        super().__init__(plain.eps)

    def __call__(self, x: mx.array) -> mx.array:
        if x.size < _FEW_ELEMENTS:
            return super().__call__(x)
        rows = _contiguous(x).reshape(-1, x.shape[-1])
        result, out = _empty(x.shape, x.dtype)
        out = out.reshape(rows.shape)

        def normalise(piece: slice) -> None:
            y = rows[piece].astype(np.float32, copy=False)
            y = y - y.mean(axis=1, keepdims=True)
            variance = np.vecdot(y, y)[:, None] / np.float32(y.shape[1])
            y *= np.float32(1) / np.sqrt(variance + np.float32(self.eps))
            out[piece] = y

        in_pieces(normalise, len(rows), max(_PIECE // rows.shape[1], 1))
        return result


class _FastRotary(Rotary):
    """The plain product of complex numbers, in pieces of tokens."""

    def __call__(self, x: mx.array, rotation: mx.array) -> mx.array:
        if x.size < _FEW_ELEMENTS:
            return super().__call__(x, rotation)
        batch, tokens, heads, channels = x.shape
        values, turns = _contiguous(x), to_numpy(rotation)[:, None, :]
        result, out = _empty(x.shape, x.dtype)

        def rotate(piece: slice) -> None:
            pairs = values[:, piece].astype(np.float32, copy=False).view(np.complex64)
            out[:, piece] = (pairs * turns[piece]).view(np.float32)

        in_pieces(rotate, tokens, max(_PIECE // max(batch * heads * channels, 1), 1))
        return result


def _empty(shape: Sequence[int], dtype: mx.Dtype) -> tuple[mx.array, np.ndarray]:
    """A new MLX array, and its buffer to write to."""
    result = mx.zeros(shape, dtype)
    return result, to_numpy(result)


def _contiguous(x: mx.array) -> np.ndarray:
    return np.ascontiguousarray(to_numpy(x))


def _float32(x: mx.array) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # caused by a NaN in float16
        return _contiguous(x).astype(np.float32, copy=False)


def _between(bounds: tuple[int, int], wanted: int, multiple: int) -> int:
    """`wanted` rounded up to a multiple of `multiple`, within `bounds`."""
    least, most = bounds
    return min(max(-(-wanted // multiple) * multiple, least), most)


_REPLACEMENTS: Mapping[type[nn.Module], Callable[[Any], nn.Module]] = {
    Attend: lambda _: _FastAttend(),
    GELUTanh: lambda _: _FastGELUTanh(),
    LayerNorm: _FastLayerNorm,
    Linear: lambda plain: recast(plain, _FastLinear),
    Rotary: lambda _: _FastRotary(),
    SiLU: lambda _: _FastSiLU(),
}


def replacement(module: nn.Module) -> nn.Module | None:
    """The fast replacement of a plain module, which shares its parameters; None for a class without one.

    Only the plain classes themselves have replacements: the module of another technique computes something else.
    """
    create = _REPLACEMENTS.get(class_of(module))
    return create(module) if create else None


@dataclass(frozen=True)
class FastCPU:
    """Replaces every module that has a fast replacement; the others stay."""

    sites: Sequence[str] = ("**",)
    preserves_function: ClassVar[bool] = True
    composes: ClassVar[bool] = True
    of_linears: ClassVar[bool] = True

    def rewrite(self, site: Site) -> nn.Module:
        fast = replacement(site.module)
        # not `fast or site.module`: a module without parameters is an empty dict, and therefore false
        return site.module if fast is None else fast
