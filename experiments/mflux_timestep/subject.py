"""mflux's Qwen-Image transformer as a subject of the laboratory: its modules over the weights of a checkpoint of ours.

Text encoder, sampler and VAE are ours, and only the transformer is mflux's, so that what differs is the transformer.
Its modules have mflux's names. Needs mflux 0.24.0 on the path, without its dependencies:

    pip install --no-deps --target MFLUX mflux==0.24.0
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import mlx.core as mx

from experiments.benchmarks.gpu.architectures.qwen_image.mflux_peer import MODULE, RENAMED
from experiments.benchmarks.gpu.mflux_model import imported_with_precision, over_arrays
from precision_lab.model.qwen_image.checkpoint import Checkpoint
from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.model.qwen_image.transformer import Transformer
from precision_lab.model.rotary import Grid
from precision_lab.record.layout import Layout, Stream
from precision_lab.synthetic.source import QwenImage

_STREAMS = {
    "img": Stream("image stream", "out.1", "**.{img_*,to_{q,k,v},norm_{q,k},attn_to_out,norm_out,proj_out}", "img_in"),
    "txt": Stream("text stream", "out.0", "**.{txt_*,add_{q,k,v}_proj,norm_added_{q,k},to_add_out}", "txt_in"),
}
"""A block of mflux returns the text first."""


class MfluxCheckpoint(Checkpoint):
    """A checkpoint of Qwen-Image 1.x whose transformer is mflux's."""

    def transformer(self, dtype: mx.Dtype) -> Any:
        config = self.transformer_config()
        model = super().transformer(dtype)
        model.set_dtype(dtype)  # mflux computes in the dtype of the weights
        return adapted(model, config)

    def layout(self) -> Layout:
        return replace(super().layout(), streams=_STREAMS, joint="**.pos_embed", adds={})


@dataclass
class Mflux(QwenImage):
    """Loads a checkpoint as `QwenImage` does, with mflux's transformer."""

    @cached_property
    def opened(self) -> Checkpoint:
        return MfluxCheckpoint(self.folder(), self._rounded(), self.stream, inflate=self.inflate)


def adapted(model: Transformer, config: TransformerConfig) -> Any:
    """mflux's transformer over the arrays of `model`, called as our pipeline calls its own."""
    module = imported_with_precision(MODULE, model.proj_out.weight.dtype)

    class Adapted(module.QwenTransformer):  # type: ignore[misc, name-defined]
        def __call__(
            self, latents: mx.array, timestep: mx.array, text: mx.array, grid: Grid, mask: mx.array | None = None
        ) -> mx.array:
            size = SimpleNamespace(height=16 * grid.height, width=16 * grid.width)
            mask = mx.ones(text.shape[:2]) if mask is None else mask
            velocity: mx.array = super().__call__(float(timestep[0].item()), size, latents, text, mask)
            return velocity

    twin = Adapted(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=len(model.transformer_blocks),
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
        joint_attention_dim=config.joint_attention_dim,
    )
    rope = type(twin.pos_embed)  # mflux has the axes of the published width; its class takes others
    twin.pos_embed = rope(theta=10_000, axes_dim=list(config.axes_dims_rope), scale_rope=True)
    return over_arrays(twin, model, RENAMED)
