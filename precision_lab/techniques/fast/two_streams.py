"""The fused block of Qwen-Image 1.x: two streams with weights and modulations of their own, joined in attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.layers import RMSNorm, scaled_dot_product_attention
from precision_lab.model.qwen_image.attention import JointAttention
from precision_lab.model.qwen_image.block import FeedForward, TransformerBlock
from precision_lab.model.qwen_image.streams import Streams
from precision_lab.techniques.fast import kernels as fused
from precision_lab.techniques.fast.block import FusedBlock, Pace, compiled, packed
from precision_lab.techniques.fast.kernels import Chunk, Projected
from precision_lab.techniques.fast.matrices import Arrays, Route, Stored, matrix
from precision_lab.techniques.fast.remembered import Recent


class _Kinds(NamedTuple):
    """How the matrices of a stream's half of a block are stored."""

    qkv: Stored
    out: Stored
    up: Stored
    down: Stored


class _Weights(NamedTuple):
    """The weights of a stream's half of a block, under the names of the image stream."""

    qkv: Arrays
    qkv_bias: mx.array
    q_norm: mx.array
    k_norm: mx.array
    out: Arrays
    out_bias: mx.array
    up: Arrays
    up_bias: mx.array
    down: Arrays
    down_bias: mx.array


class _Half(NamedTuple):
    """A stream's half of a block."""

    kinds: _Kinds
    weights: _Weights

    @classmethod
    def of(
        cls, qkv: Sequence[nn.Linear], norms: Sequence[RMSNorm], out: nn.Linear, mlp: FeedForward, route: Route
    ) -> _Half:
        up, down = mlp.net[0].proj, mlp.net[2]
        q_norm, k_norm = norms
        matrices = [matrix(linears, route) for linears in (qkv, [out], [up], [down])]
        of_qkv, of_out, of_up, of_down = (each.arrays for each in matrices)
        weights = _Weights(
            qkv=of_qkv,
            qkv_bias=packed(qkv, "bias"),
            q_norm=q_norm.weight,
            k_norm=k_norm.weight,
            out=of_out,
            out_bias=out.bias,
            up=of_up,
            up_bias=up.bias,
            down=of_down,
            down_bias=down.bias,
        )
        mx.eval(weights)
        return cls(_Kinds(*(each.stored for each in matrices)), weights)

    @classmethod
    def both(cls, block: TransformerBlock, route: Route) -> tuple[_Half, _Half]:
        """The halves of the image stream and of the text stream."""
        attn: JointAttention = block.attn
        img = (attn.to_q, attn.to_k, attn.to_v)
        txt = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        return (
            cls.of(img, (attn.norm_q, attn.norm_k), attn.to_out[0], block.img_mlp, route),
            cls.of(txt, (attn.norm_added_q, attn.norm_added_k), attn.to_add_out, block.txt_mlp, route),
        )


class _Constants(NamedTuple):
    """The constants to which a compiled block is specialised."""

    img: _Kinds
    txt: _Kinds
    head_dim: int
    norm1_eps: float
    norm2_eps: float
    qk_eps: float


class TwoStreams(FusedBlock):
    """Replaces the plain block; of its modules it calls only img_mod and txt_mod."""

    def __init__(self, inner: TransformerBlock, address: str, pace: Pace, route: Route):
        super().__init__(inner, address, pace)
        img, txt = _Half.both(inner, route)
        eps = inner.img_norm1.eps, inner.img_norm2.eps, inner.attn.norm_q.eps
        self._constants = _Constants(img.kinds, txt.kinds, inner.attn.norm_q.weight.size, *eps)
        self._weights = img.weights, txt.weights
        self._modulations = Recent()

    @staticmethod
    def smallest() -> nn.Module:
        return TransformerBlock(8, 2)

    def __call__(self, x: Streams, temb: mx.array, rotations: Streams, mask: mx.array | None = None) -> Streams:
        self._expect_untouched()
        # (B, 6 D) each
        mods = self._modulations.at(id(temb), lambda: (self.inner.img_mod(temb), self.inner.txt_mod(temb)), temb)
        masks = () if mask is None else (mask,)
        img, txt = compiled(_block, self._constants)(*x, *mods, *rotations, *map(tuple, self._weights), *masks)
        self._pace.launch(img, txt)
        return Streams(img=img, txt=txt)


def _block(
    constants: _Constants,
    img: mx.array,
    txt: mx.array,
    img_mods: mx.array,
    txt_mods: mx.array,
    img_rotation: mx.array,
    txt_rotation: mx.array,
    img_weights: Sequence[Any],
    txt_weights: Sequence[Any],
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """img: (B, L, D), txt: (B, T, D), with the modulations (B, 6 D) and rotations of each; mask: (B, 1, 1, T + L)."""
    wi, wt = _Weights(*img_weights), _Weights(*txt_weights)
    img_in = fused.norm_modulate(img, img_mods, Chunk.SHIFT_1, Chunk.SCALE_1, constants.norm1_eps)
    txt_in = fused.norm_modulate(txt, txt_mods, Chunk.SHIFT_1, Chunk.SCALE_1, constants.norm1_eps)
    q, k, v = fused.joint_qkv(
        *(_projected(txt_in, constants.txt, wt, txt_rotation), _projected(img_in, constants.img, wi, img_rotation)),
        *(constants.head_dim, constants.qk_eps),
    )
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
    joint = scaled_dot_product_attention(q, k, v, scale=constants.head_dim**-0.5, mask=mask)
    txt_joint, img_joint = mx.split(joint.transpose(0, 2, 1, 3).flatten(2), [txt.shape[1]], axis=1)
    return (
        _second_half(img, img_joint, img_mods, constants.img, wi, constants.norm2_eps),
        _second_half(txt, txt_joint, txt_mods, constants.txt, wt, constants.norm2_eps),
    )


def _projected(x: mx.array, kinds: _Kinds, w: _Weights, rotation: mx.array) -> Projected:
    return Projected(kinds.qkv.product(x, w.qkv), w.qkv_bias, w.q_norm, w.k_norm, rotation)


def _second_half(
    residual: mx.array, attended: mx.array, mods: mx.array, kinds: _Kinds, w: _Weights, eps: float
) -> mx.array:
    """A stream from attention's output to the end of the block."""
    chunks = Chunk.GATE_1, Chunk.SHIFT_2, Chunk.SCALE_2
    product = kinds.out.product(attended, w.out)
    residual, x = fused.gated_add_norm_modulate(residual, product, w.out_bias, mods, *chunks, eps)
    hidden = fused.gelu(kinds.up.product(x, w.up), w.up_bias)
    return fused.gated_add(residual, kinds.down.product(hidden, w.down), w.down_bias, mods, Chunk.GATE_2)
