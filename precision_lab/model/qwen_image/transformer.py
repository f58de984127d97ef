"""The Qwen-Image diffusion transformer (QwenImageTransformer2DModel): 60 dual-stream blocks as published.

B batch, L image tokens, T text tokens, D width, J width of the text embeddings.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from precision_lab.model.layers import LayerNorm, Linear, RMSNorm, SiLU
from precision_lab.model.qwen_image.block import Modulate, TransformerBlock
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.rope import RotaryEmbedding
from precision_lab.model.qwen_image.streams import Streams
from precision_lab.model.rotary import Grid
from precision_lab.model.timestep import TimestepEmbedding, frequencies


class TimestepProjection(nn.Module):
    """Sinusoids of the timestep: (B,) in [0, 1] to (B, 256), fp32, cosines first."""

    def __init__(self) -> None:
        super().__init__()
        self._frequencies = frequencies()

    def __call__(self, timestep: mx.array) -> mx.array:
        angles = 1000 * (timestep.astype(mx.float32)[:, None] * self._frequencies)
        return mx.concatenate([mx.cos(angles), mx.sin(angles)], axis=-1)


class TimeTextEmbedding(nn.Module):
    """Maps timesteps (B,) to the vector (B, D) in `dtype` on which all modulations are conditioned."""

    def __init__(self, dim: int):
        super().__init__()
        self.time_proj = TimestepProjection()
        self.timestep_embedder = TimestepEmbedding(dim)

    def __call__(self, timestep: mx.array, dtype: mx.Dtype) -> mx.array:
        return self.timestep_embedder(self.time_proj(timestep).astype(dtype))


class AdaLayerNormContinuous(nn.Module):
    """The final LayerNorm, with scale and shift from the timestep; the scale is the first chunk."""

    def __init__(self, dim: int):
        super().__init__()
        self.silu = SiLU()
        self.linear = Linear(dim, 2 * dim)
        self.norm = LayerNorm()
        self.modulate = Modulate()

    def __call__(self, x: mx.array, temb: mx.array) -> mx.array:
        scale, shift = mx.split(self.linear(self.silu(temb).astype(x.dtype)), 2, axis=-1)
        return self.modulate(self.norm(x), shift, scale)


class Transformer(nn.Module):
    """Predicts the velocity of the latents at a timestep, conditioned on a text.

    The dtype of the latents is the dtype of the computation; narrower weights are upcast where they are used.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        dim = config.dim
        self.pos_embed = RotaryEmbedding(config.axes_dims_rope)
        self.time_text_embed = TimeTextEmbedding(dim)
        self.txt_norm = RMSNorm(config.joint_attention_dim)
        self.img_in = Linear(config.in_channels, dim)
        self.txt_in = Linear(config.joint_attention_dim, dim)
        self.transformer_blocks = [TransformerBlock(dim, config.num_attention_heads) for _ in range(config.num_layers)]
        self.norm_out = AdaLayerNormContinuous(dim)
        self.proj_out = Linear(dim, config.patch_size**2 * config.out_channels)

    def __call__(
        self,
        latents: mx.array,
        timestep: mx.array,
        text: mx.array,
        grid: Grid,
        text_mask: mx.array | None = None,
    ) -> mx.array:
        """Returns the velocity (B, L, 4 * out_channels).

        latents: (B, L, in_channels) with L = grid.height * grid.width; timestep: (B,) in [0, 1]; text: (B, T, J);
        text_mask: (B, T), non-zero for tokens that are not padding, or None.
        """
        x = Streams(img=self.img_in(latents), txt=self.txt_in(self.txt_norm(text)))
        temb = self.time_text_embed(timestep.astype(latents.dtype), latents.dtype)
        rotations = self.pos_embed(grid, text.shape[1])
        mask = None if text_mask is None else _joint_mask(text_mask, latents.shape[1])
        for block in self.transformer_blocks:
            x = block(x, temb, rotations, mask)
        return self.proj_out(self.norm_out(x.img, temb))


def _joint_mask(text_mask: mx.array, num_image: int) -> mx.array:
    image = mx.ones((text_mask.shape[0], num_image), dtype=mx.bool_)
    return mx.concatenate([text_mask.astype(mx.bool_), image], axis=1)[:, None, None, :]
