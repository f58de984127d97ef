"""The fused block of Qwen-Image-2.1: one stream without biases and shifts, and one modulation for all blocks.

A pass is over the target with the kept keys and values of a prefix, over the prefix, or over both. In a pass of both,
the kernels choose the row of the modulation by the position of a token.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.layers import scaled_dot_product_attention
from precision_lab.model.qwen_image_21.block import FLOAT16_MAX, Modulation, TransformerBlock
from precision_lab.model.qwen_image_21.prefix import KeysValues, Output
from precision_lab.model.qwen_image_21.segments import Segment, Segments
from precision_lab.techniques.fast import kernels as fused
from precision_lab.techniques.fast.block import FusedBlock, Pace, compiled
from precision_lab.techniques.fast.kernels import Kept, Projected, SharedChunk
from precision_lab.techniques.fast.matrices import Arrays, Route, Stored, matrix
from precision_lab.techniques.fast.remembered import Recent


class _Kinds(NamedTuple):
    """How the matrices of a block are stored."""

    qkv: Stored
    out: Stored
    gate_up: Stored
    down: Stored


class _Weights(NamedTuple):
    """The weights of a block."""

    qkv: Arrays
    q_norm: mx.array
    k_norm: mx.array
    out: Arrays
    gate_up: Arrays
    down: Arrays


def _parts(block: TransformerBlock, route: Route) -> tuple[_Kinds, _Weights]:
    attn, mlp = block.attn, block.img_mlp
    linears = (attn.to_q, attn.to_k, attn.to_v), (attn.to_out[0],), (mlp.gate_layer, mlp.proj), (mlp.out,)
    matrices = [matrix(each, route) for each in linears]
    qkv, out, gate_up, down = (each.arrays for each in matrices)
    weights = _Weights(qkv, attn.norm_q.weight, attn.norm_k.weight, out, gate_up, down)
    mx.eval(weights)
    return _Kinds(*(each.stored for each in matrices)), weights


class _Constants(NamedTuple):
    """The constants to which a compiled block is specialised."""

    kinds: _Kinds
    head_dim: int
    norm1_eps: float
    norm2_eps: float
    qk_eps: float


class SharedModulations:
    """The modulations of all blocks in the form that the kernels read: (rows, 4 D) fp32, with tanh of the gates.

    It recognises a modulation by its arrays, so that the first block of a forward prepares it for the others.
    """

    def __init__(self) -> None:
        self._recent = Recent()

    def prepared(self, modulation: Modulation) -> mx.array:
        """The modulation's vectors in the order of `SharedChunk`."""
        mods: mx.array = self._recent.at(id(modulation), lambda: _prepared(modulation), modulation)
        return mods


def _prepared(modulation: Modulation) -> mx.array:
    scale1, gate1, scale2, gate2 = (chunk.astype(mx.float32) for chunk in modulation)
    return mx.concatenate([scale1, mx.tanh(gate1), scale2, mx.tanh(gate2)], axis=-1)


class OneStream(FusedBlock):
    """Replaces the plain block, of whose modules it calls none."""

    def __init__(self, inner: TransformerBlock, address: str, pace: Pace, route: Route, modulations: SharedModulations):
        super().__init__(inner, address, pace)
        eps = inner.img_norm1.eps, inner.img_norm2.eps, inner.attn.norm_q.eps
        kinds, self._weights = _parts(inner, route)
        self._constants = _Constants(kinds, inner.attn.norm_q.weight.size, *eps)
        self._modulations = modulations

    @staticmethod
    def smallest() -> nn.Module:
        return TransformerBlock(8, 2, 8, 1e-6)

    def __call__(
        self,
        x: mx.array,
        modulation: Modulation,
        rotation: mx.array,
        segments: Segments,
        prefix: KeysValues | None = None,
    ) -> Output:
        self._expect_untouched()
        bare, masks = _apart(segments)
        mods = self._modulations.prepared(modulation)
        kept = () if prefix is None else tuple(prefix)
        call = compiled(_block, self._constants, bare)
        x, *of_block = call(x, mods, rotation, tuple(self._weights), masks, _tokens_of_prefix(bare), kept)
        self._pace.launch(x)
        return Output(x, KeysValues(*of_block) if of_block else None)


def _in_pass(segments: Segments) -> tuple[Segment, ...]:
    return segments.prefix if segments.target is None else (*segments.prefix, segments.target)


def _apart(segments: Segments) -> tuple[Segments, tuple[mx.array | None, ...]]:
    """The segments without masks, to which a compiled block is specialised, and their masks."""
    prefix = tuple(segment._replace(mask=None) for segment in segments.prefix)
    target = None if segments.target is None else segments.target._replace(mask=None)
    return Segments(prefix, target), tuple(segment.mask for segment in _in_pass(segments))


def _tokens_of_prefix(segments: Segments) -> mx.array | None:
    """In a pass of prefix and target, the number of tokens that have the last row of the modulation."""
    return _number(segments.target.start) if segments.prefix and segments.target is not None else None


@lru_cache(maxsize=32)
def _number(value: int) -> mx.array:
    return mx.array([value], mx.int32)


def _block(
    constants: _Constants,
    segments: Segments,
    x: mx.array,
    mods: mx.array,
    rotation: mx.array,
    weights: tuple[Any, ...],
    masks: tuple[mx.array | None, ...],
    prefix: mx.array | None,
    kept: tuple[mx.array, ...],
) -> tuple[mx.array, ...]:
    """x: (B, N, D), with the modulations and rotations of its tokens. Returns it, and keys and values to keep."""
    w, kinds = _Weights(*weights), constants.kinds
    if segments.target is None:
        mods = mx.broadcast_to(mods, (x.shape[0], mods.shape[1]))
    y = fused.norm_modulate(x, mods, None, SharedChunk.SCALE_1, constants.norm1_eps, prefix)
    projected = Projected(kinds.qkv.product(y, w.qkv), None, w.q_norm, w.k_norm, rotation)
    q, k, v = fused.qkv(projected, constants.head_dim, constants.qk_eps, Kept(*kept) if kept else None)
    product = kinds.out.product(_attended(q, k, v, segments, masks), w.out)
    chunks = SharedChunk.GATE_1, None, SharedChunk.SCALE_2
    residual, y = fused.gated_add_norm_modulate(x, product, None, mods, *chunks, constants.norm2_eps, prefix)
    product = kinds.down.product(fused.swiglu(kinds.gate_up.product(y, w.gate_up)), w.down)
    limit = FLOAT16_MAX if x.dtype == mx.float16 else 0
    x = fused.gated_add(residual, product, None, mods, SharedChunk.GATE_2, prefix, limit)
    return (x, k, v) if segments.target is None else (x,)


def _attended(
    q: mx.array, k: mx.array, v: mx.array, segments: Segments, masks: tuple[mx.array | None, ...]
) -> mx.array:
    """The results of all segments in the pass, (B, N, D)."""
    parts = []
    for segment, mask in zip(_in_pass(segments), masks, strict=True):
        read = (segments.of(segment, q), k[:, : segment.end], v[:, : segment.end])
        of_q, of_k, of_v = (a.transpose(0, 2, 1, 3) for a in read)
        out = scaled_dot_product_attention(of_q, of_k, of_v, scale=q.shape[-1] ** -0.5, mask=mask)
        parts.append(out.transpose(0, 2, 1, 3))
    return (parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)).flatten(2)
