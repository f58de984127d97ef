"""A transformer block as a few fused operations, compiled once for all blocks of a model.

The function is that of the plain block, with three differences. The operation after a linear adds the bias to its
product. Normalisation, modulation, gates, GELU, RMSNorm and rotation work in fp32 and round once. A modulation depends
on the conditioning vector alone, so it is computed once for each vector instead of at each call.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import ClassVar, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from precision_lab.errors import InputError
from precision_lab.instrument.sites import Wrapper, walk
from precision_lab.model.layers import RMSNorm, on_cpu, scaled_dot_product_attention
from precision_lab.model.qwen_image.attention import JointAttention
from precision_lab.model.qwen_image.block import FeedForward, TransformerBlock
from precision_lab.model.qwen_image.streams import Streams
from precision_lab.techniques.fast import kernels as fused
from precision_lab.techniques.fast.kernels import Chunk, Projected

IN_FLIGHT = 2
"""Number of blocks that wait for the device while the next is built."""

REMEMBERED = 64
"""Number of timesteps whose modulations are kept: schedules of up to this many steps compute none of them twice."""


class _Weights(NamedTuple):
    """The weights of a stream's half of a block, under the names of the image stream; matrices are (in, out)."""

    qkv: mx.array
    qkv_bias: mx.array
    q_norm: mx.array
    k_norm: mx.array
    out: mx.array
    out_bias: mx.array
    up: mx.array
    up_bias: mx.array
    down: mx.array
    down_bias: mx.array

    @classmethod
    def of(cls, qkv: Sequence[nn.Linear], norms: Sequence[RMSNorm], out: nn.Linear, mlp: FeedForward) -> _Weights:
        up, down = mlp.net[0].proj, mlp.net[2]
        q_norm, k_norm = norms
        arrays = cls(
            qkv=_packed(qkv, "weight").T,
            qkv_bias=_packed(qkv, "bias"),
            q_norm=q_norm.weight,
            k_norm=k_norm.weight,
            out=out.weight.T,
            out_bias=out.bias,
            up=up.weight.T,
            up_bias=up.bias,
            down=down.weight.T,
            down_bias=down.bias,
        )
        mx.eval(arrays)
        return arrays

    @classmethod
    def streams(cls, block: TransformerBlock) -> tuple[_Weights, _Weights]:
        """The weights of the image stream and of the text stream."""
        attn: JointAttention = block.attn
        img = (attn.to_q, attn.to_k, attn.to_v)
        txt = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        return (
            cls.of(img, (attn.norm_q, attn.norm_k), attn.to_out[0], block.img_mlp),
            cls.of(txt, (attn.norm_added_q, attn.norm_added_k), attn.to_add_out, block.txt_mlp),
        )


def _packed(linears: Sequence[nn.Linear], name: str) -> mx.array:
    """Concatenates the linears' parameters of that name, and turns their own into views of the result.

    Values and memory stay the same; a copy would add 6.8 GB, which do not fit beside a model of 20 B parameters.
    """
    packed = mx.concatenate([linear[name] for linear in linears])
    for linear, part in zip(linears, mx.split(packed, len(linears)), strict=True):
        linear[name] = part
    mx.eval(packed, [linear[name] for linear in linears])
    return packed


class _Constants(NamedTuple):
    """The constants to which a compiled block is specialised."""

    head_dim: int
    norm1_eps: float
    norm2_eps: float
    qk_eps: float


class Pace:
    """Starts every block as soon as it is built, and builds at most IN_FLIGHT blocks ahead of the device.

    If all blocks were evaluated at the end, the device would wait until the last one is built (10 ms of 127 at
    1024 x 1024 on an H100). MLX builds several times faster than the device computes, so it would also hold the
    temporaries of dozens of blocks (12 GB).
    """

    def __init__(self) -> None:
        self._launched: deque[mx.array] = deque()

    def launch(self, *outputs: mx.array) -> None:
        """Starts the computation of one block's outputs."""
        mx.async_eval(*outputs)
        self._launched.append(outputs[0])
        if len(self._launched) > IN_FLIGHT:
            mx.eval(self._launched.popleft())


class FastBlock(Wrapper):
    """Replaces a plain TransformerBlock. Raises InputError if a module inside is rewritten or observed.

    Neither could have an effect, because of its modules the block calls only img_mod and txt_mod.
    """

    opaque: ClassVar[bool] = True

    def __init__(self, inner: TransformerBlock, address: str, pace: Pace):
        super().__init__(inner)
        self._address = address
        self._pace = pace
        self._parts = _parts(inner)
        for path, module in self._modules().items():
            if type(module) is not _plain_classes().get(path):
                raise InputError(
                    f"fast: {address}.{path} is {type(module).__name__}, expected the plain model's module: "
                    "fast does not combine with techniques or probes inside a block"
                )
        eps = inner.img_norm1.eps, inner.img_norm2.eps, inner.attn.norm_q.eps
        self._constants = _Constants(inner.attn.norm_q.weight.size, *eps)
        self._weights = _Weights.streams(inner)
        self._modulations: OrderedDict[int, tuple[mx.array, mx.array, mx.array]] = OrderedDict()

    def __call__(self, x: Streams, temb: mx.array, rotations: Streams, mask: mx.array | None = None) -> Streams:
        self._expect_untouched()
        masks = () if mask is None else (mask,)
        call = _compiled(self._constants)
        img, txt = call(*x, *self._modulation(temb), *rotations, *map(tuple, self._weights), *masks)
        self._pace.launch(img, txt)
        return Streams(img=img, txt=txt)

    def _modulation(self, temb: mx.array) -> tuple[mx.array, mx.array]:
        """The modulations of the image and the text stream, (B, 6 D) each."""
        if id(temb) not in self._modulations:
            # temb is kept with them because another array could get its id once it is freed
            self._modulations[id(temb)] = temb, self.inner.img_mod(temb), self.inner.txt_mod(temb)
            if len(self._modulations) > REMEMBERED:
                self._modulations.popitem(last=False)
        _, img, txt = self._modulations[id(temb)]
        return img, txt

    def _expect_untouched(self) -> None:
        for holder, key, module, kind in self._parts:
            if holder[key] is not module or type(module) is not kind:
                raise InputError(
                    f"fast: {self._address} is observed or rewritten inside, where a fast block calls nothing; observe "
                    "transformer_blocks.* and modules outside of them (probe.range.sites, drift.sites)"
                )

    def _modules(self) -> dict[str, nn.Module]:
        return {site.path: site.module for site in walk({"block": self.inner})}


def _parts(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module, type]]:
    """Every module below `module`, with its holder, its name in the holder and its class."""
    found = []
    for key, child in module.items():
        if isinstance(child, nn.Module):
            found += [(module, key, child, type(child)), *_parts(child)]
    return found


@lru_cache
def _plain_classes() -> dict[str, type]:
    """The classes of all modules of a plain block, by path."""
    return {site.path: type(site.module) for site in walk({"block": TransformerBlock(8, 2)})}


@lru_cache
def _compiled(constants: _Constants) -> Callable[..., tuple[mx.array, mx.array]]:
    """The block as a function of arrays, shared by all blocks so that MLX traces it once a shape."""
    call = partial(_block, constants)
    return call if on_cpu() else mx.compile(call)


def _block(
    constants: _Constants,
    img: mx.array,
    txt: mx.array,
    img_mods: mx.array,
    txt_mods: mx.array,
    img_rotation: mx.array,
    txt_rotation: mx.array,
    img_weights: Sequence[mx.array],
    txt_weights: Sequence[mx.array],
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """img: (B, L, D), txt: (B, T, D), with the modulations (B, 6 D) and rotations of each; mask: (B, 1, 1, T + L)."""
    wi, wt = _Weights(*img_weights), _Weights(*txt_weights)
    img_in = fused.norm_modulate(img, img_mods, Chunk.SHIFT_1, Chunk.SCALE_1, constants.norm1_eps)
    txt_in = fused.norm_modulate(txt, txt_mods, Chunk.SHIFT_1, Chunk.SCALE_1, constants.norm1_eps)
    q, k, v = fused.joint_qkv(
        _projected(txt_in, wt, txt_rotation), _projected(img_in, wi, img_rotation), constants.head_dim, constants.qk_eps
    )
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
    joint = scaled_dot_product_attention(q, k, v, scale=constants.head_dim**-0.5, mask=mask)
    txt_joint, img_joint = mx.split(joint.transpose(0, 2, 1, 3).flatten(2), [txt.shape[1]], axis=1)
    return (
        _second_half(img, img_joint, img_mods, wi, constants.norm2_eps),
        _second_half(txt, txt_joint, txt_mods, wt, constants.norm2_eps),
    )


def _projected(x: mx.array, w: _Weights, rotation: mx.array) -> Projected:
    return Projected(x @ w.qkv, w.qkv_bias, w.q_norm, w.k_norm, rotation)


def _second_half(residual: mx.array, attended: mx.array, mods: mx.array, w: _Weights, eps: float) -> mx.array:
    """A stream from attention's output to the end of the block."""
    residual, x = fused.gated_add_norm_modulate(
        *(residual, attended @ w.out, w.out_bias, mods), Chunk.GATE_1, Chunk.SHIFT_2, Chunk.SCALE_2, eps
    )
    hidden = fused.gelu(x @ w.up, w.up_bias)
    return fused.gated_add(residual, hidden @ w.down, w.down_bias, mods, Chunk.GATE_2)
