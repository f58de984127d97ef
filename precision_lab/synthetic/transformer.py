"""Weights of the transformer whose activations grow as those of the 20 B model do.

What makes the network behave, and keeps it well conditioned over 60 blocks:
- adaLN's 1 + scale brings the bulk behind LayerNorm to unit size and damps the massive channels to MASSIVE_INPUT;
- each MLP reads and writes along the same directions: its second linear holds a multiple of the transpose of the
  first, so that the content of the bulk grows with the stream instead of being drowned in what 60 blocks add;
- attention subtracts part of what it averages, so that 60 blocks do not make all tokens alike;
- everything else a block adds to the bulk is smaller and has no component along the mean activation.

Biases are normal and never zero: 0.3 for queries and keys (plus what text keys share with image queries), +-1 with 0.3
for values, 0.5 for an MLP's first linear, and for last linears 0.06 of the bulk they add to, but at most 820. Massive
channels get up to a quarter of a branch's output from its last bias, at most 2048. Biases of the modulation carry its
means: 1 + scale and gate spread by 5 and 10 % over channels, shifts by 0.1. The model card states them as stored.
"""

from __future__ import annotations

from collections.abc import Iterator

from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.synthetic.block import block
from precision_lab.synthetic.growth import BULK_RATIO, Channels, Growth
from precision_lab.synthetic.modulation import Modulation, modulation, timestep_embedding
from precision_lab.synthetic.shape import INPUT_AMAX
from precision_lab.synthetic.tensors import Array, Source, Tensor, whole
from precision_lab.synthetic.text_encoder import OutputNorm

NORM_OUT_AMAX = 16.0
"""Published largest magnitude after `norm_out`."""

VELOCITY_RMS = 0.9
"""Size of the output before modulation and biases: about 1.1 with them, and at most 4 to 5."""


def tensors(config: TransformerConfig, factor: float, source: Source, text: OutputNorm) -> Iterator[Tensor]:
    """All tensors of QwenImageTransformer2DModel, in the order of a forward pass.

    factor: growth a block. text: the sizes of the text encoder's output channels.
    """
    width = config.dim
    growth = Growth(factor, config.num_layers)
    img, txt = (Channels.draw(source, name, width) for name in ("img", "txt"))
    yield from _input("img_in", config.in_channels, img, source)
    yield whole("txt_norm.weight", (text.width,), lambda: text.levelling(source, "txt_norm.weight"))
    yield from _input("txt_in", text.width, txt, source)
    yield from timestep_embedding(width, source)
    for i in range(config.num_layers):
        yield from block(i, config, growth, img, txt, source)
    yield from _output(config, img, source)


def _input(name: str, inner: int, channels: Channels, source: Source) -> Iterator[Tensor]:
    """A linear from `inner` unit channels to a stream of INPUT_AMAX: its massive channels come from the bias."""
    bulk = BULK_RATIO * INPUT_AMAX

    def bias() -> Array:
        return source.normal(f"{name}.bias", (channels.width,), 0.1 * bulk) + channels.signed(INPUT_AMAX)

    yield source.tensor(f"{name}.weight", (channels.width, inner), bulk / inner**0.5)
    yield whole(f"{name}.bias", (channels.width,), bias)


def _output(config: TransformerConfig, channels: Channels, source: Source) -> Iterator[Tensor]:
    width, out = channels.width, config.patch_size**2 * config.out_channels
    scale = Modulation.scale(channels.normalised(NORM_OUT_AMAX, 1.0))
    yield from modulation("norm_out.linear", (scale, Modulation.shift(width)), source)

    def weight() -> Array:
        # the massive channels hold no content: they only shift the output
        columns = channels.vector(0.02, VELOCITY_RMS / width**0.5)
        return source.normal("proj_out.weight", (out, width)) * columns

    yield whole("proj_out.weight", (out, width), weight)
    yield source.tensor("proj_out.bias", (out,), 0.05)
