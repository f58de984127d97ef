"""The Qwen-Image-2.1 diffusion transformer (QwenImage21Transformer2DModel): 32 single-stream blocks as published.

The sequence is [text, target]. With `causal_condition`, text is modulated with t = 0 and reads no token of the target,
so that its keys and values can be computed once for a prompt.

B batch, L tokens of the target, T text tokens, N tokens in the pass, D width, J width of the text embeddings.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.layers import GELUTanh, LayerNorm, Linear, Sequential, SiLU
from precision_lab.model.qwen_image_21.block import Modulate, Modulation, TransformerBlock
from precision_lab.model.qwen_image_21.config import TransformerConfig
from precision_lab.model.qwen_image_21.prefix import KeysValues, Prefix
from precision_lab.model.qwen_image_21.rope import RotaryEmbedding
from precision_lab.model.qwen_image_21.segments import Segments, target_segment, text_segment
from precision_lab.model.rotary import Grid
from precision_lab.model.timestep import TimestepEmbedding, frequencies


class TimestepProjection(nn.Module):
    """Sinusoids of the timestep: (B,) in [0, 1] to (B, 256), fp32, cosines first.

    The timestep is multiplied by 1000 before the frequencies. In 1.x it is multiplied last, which rounds differently.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frequencies = frequencies()

    def __call__(self, timestep: mx.array) -> mx.array:
        angles = (1000 * timestep.astype(mx.float32))[:, None] * self._frequencies
        return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


class TimeTextEmbedding(nn.Module):
    """Maps timesteps (B,) to the vectors (B, D) in `dtype` on which all modulations are conditioned."""

    def __init__(self, dim: int):
        super().__init__()
        self.time_proj = TimestepProjection()
        self.timestep_embedder = TimestepEmbedding(dim, bias=False)

    def __call__(self, timestep: mx.array, dtype: mx.Dtype) -> mx.array:
        return self.timestep_embedder(self.time_proj(timestep).astype(dtype))


class ZeroCentredRMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * (weight + 1)`, in fp32 and rounded once to the dtype of x."""

    def __init__(self, dims: int, eps: float):
        super().__init__()
        self.weight = mx.zeros((dims,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        scale = self.weight.astype(mx.float32) + 1
        return mx.fast.rms_norm(x.astype(mx.float32), scale, self.eps).astype(x.dtype)


class TextProjection(nn.Module):
    """Norm, linear, GELU, linear: (B, T, J) to (B, T, D)."""

    def __init__(self, text_dim: int, dim: int, eps: float):
        super().__init__()
        self.text_norm = ZeroCentredRMSNorm(text_dim, eps)
        self.in_layer = Linear(text_dim, dim, bias=False)
        self.act = GELUTanh()
        self.out_layer = Linear(dim, dim, bias=False)

    def __call__(self, text: mx.array) -> mx.array:
        return self.out_layer(self.act(self.in_layer(self.text_norm(text))))


class SplitModulation(nn.Module):
    """Splits the shared modulation (rows, 4 D) into its chunks (rows, D)."""

    def __call__(self, modulation: mx.array) -> Modulation:
        return Modulation(*mx.split(modulation, 4, axis=-1))


class AdaLayerNormContinuous(nn.Module):
    """The final LayerNorm, with a scale from the timestep and no shift."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.silu = SiLU()
        self.linear = Linear(dim, dim, bias=False)
        self.norm = LayerNorm(eps)
        self.modulate = Modulate()

    def __call__(self, x: mx.array, temb: mx.array) -> mx.array:
        return self.modulate(self.norm(x), self.linear(self.silu(temb).astype(x.dtype)))


class Transformer(nn.Module):
    """Predicts the velocity of the latents at a timestep, conditioned on a text.

    The dtype of the latents is the dtype of the computation; narrower weights are upcast where they are used.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        dim, eps = config.dim, config.eps
        self.pos_embed = RotaryEmbedding(config.axes_dims_rope)
        self.time_text_embed = TimeTextEmbedding(dim)
        self.txt_in = TextProjection(config.context_in_dim, dim, eps)
        self.img_in = Linear(config.in_channels, dim, bias=False)
        self.modulation = Sequential(SiLU(), Linear(dim, 4 * dim, bias=False))
        self.split_modulation = SplitModulation()
        self.transformer_blocks = [
            TransformerBlock(dim, config.num_attention_heads, config.hidden, eps) for _ in range(config.num_layers)
        ]
        self.norm_out = AdaLayerNormContinuous(dim, eps)
        self.proj_out = Linear(dim, config.velocity_channels, bias=False)

    def prefill(self, text: mx.array, mask: mx.array | None = None) -> Prefix:
        """Keys and values of a prompt in every block, for calls with `prefix`.

        text: (B, T, J), in the dtype of the computation; mask: (B, T), non-zero for tokens that are not padding, or
        None.
        """
        num_text = text.shape[1]
        segments = Segments((text_segment(num_text, mask),), None)
        temb = self.time_text_embed(mx.zeros((1,), text.dtype), text.dtype)
        modulation = self.split_modulation(self.modulation(temb))
        rotation = self.pos_embed(num_text, None)
        x = self.txt_in(text)
        kept: list[KeysValues] = []
        for block in self.transformer_blocks:
            x, of_block = block(x, modulation, rotation, segments)
            assert of_block is not None, "a pass of the prefix"
            kept.append(of_block)
        return Prefix(tuple(kept))

    def __call__(
        self,
        latents: mx.array,
        timestep: mx.array,
        text: mx.array,
        grid: Grid,
        mask: mx.array | None = None,
        prefix: Prefix | None = None,
    ) -> mx.array:
        """Returns the velocity (B, L, out_channels).

        latents: (B, L, in_channels) with L = grid.height * grid.width; timestep: (B,) in [0, 1]; text: (B, T, J);
        mask: (B, T), non-zero for tokens that are not padding, or None; prefix: that of `text` and `mask`. Without a
        prefix, the pass is over text and target.
        """
        num_text, num_target = text.shape[1], latents.shape[1]
        target = target_segment(num_text, num_target, mask)
        rotation = self.pos_embed(num_text, grid)
        time = timestep.astype(latents.dtype)
        of_blocks: tuple[KeysValues | None, ...]
        if prefix is None:
            segments = Segments((text_segment(num_text, mask),), target)
            x = mx.concatenate([self.txt_in(text), self.img_in(latents)], axis=1)
            time = mx.concatenate([time, mx.zeros((1,), time.dtype)])
            of_blocks = tuple(None for _ in self.transformer_blocks)
        else:
            segments = Segments((), target)
            rotation = rotation[num_text:]
            x = self.img_in(latents)
            of_blocks = prefix.blocks

        temb = self.time_text_embed(time, latents.dtype)
        modulation = self.split_modulation(self.modulation(temb))
        for block, of_block in zip(self.transformer_blocks, of_blocks, strict=True):
            x, _ = block(x, modulation, rotation, segments, of_block)
        return self.proj_out(self.norm_out(x[:, -num_target:], temb[: len(latents)]))
