"""Generates the weights of a transformer whose activations grow like those of the 20 B model.

These properties keep the network well conditioned over 60 blocks:
- The 1 + scale of adaLN brings the normalised bulk to unit size and damps the massive channels to MASSIVE_INPUT.
- Each MLP reads and writes along the same directions, because its second linear contains a multiple of the transpose of
  the first. The content of the bulk therefore grows with the stream and is not lost in the sum of 60 blocks.
- Attention subtracts a share of its average, so that 60 blocks do not make all tokens alike.
- Everything else that a block adds to the bulk is smaller and has no component along the mean activation.

Biases are normal and never zero. Their standard deviation is 0.3 for queries and keys (plus the component that text
keys share with image queries), 0.3 around +-1 for values, and 0.5 for the first linear of an MLP. For last linears it
is 0.06 of the bulk to which they add, but at most 820. In massive channels, the last bias of a branch gives up to a
quarter of its output, at most 2048. The biases of the modulation contain its means: 1 + scale and gate vary by 5 and
10 % over channels, shifts by 0.1. The model card lists the stored values.
"""

from __future__ import annotations

from collections.abc import Iterator

from precision_lab.model.qwen_image.config import TransformerConfig
from precision_lab.synthetic.qwen_image.block import block
from precision_lab.synthetic.qwen_image.growth import BULK_RATIO, INPUT_AMAX, Channels, Growth
from precision_lab.synthetic.qwen_image.modulation import Modulation, modulation
from precision_lab.synthetic.qwen_image.text_encoder import OutputNorm
from precision_lab.synthetic.tensors import Array, Source, Tensor, whole
from precision_lab.synthetic.timestep import timestep_embedding

NORM_OUT_AMAX = 16.0
"""Published largest magnitude after `norm_out`."""

VELOCITY_RMS = 0.9
"""Root mean square of the output without modulation and biases; with them about 1.1, with a maximum of 4 to 5."""


def tensors(config: TransformerConfig, factor: float, source: Source, text: OutputNorm) -> Iterator[Tensor]:
    """Yields all tensors of QwenImageTransformer2DModel, in the order of a forward pass.

    factor: growth a block. text: sizes of the output channels of the text encoder.
    """
    width = config.dim
    growth = Growth(factor, config.num_layers)
    img, txt = (Channels.draw(source, name, width) for name in ("img", "txt"))
    yield from _input("img_in", config.in_channels, img, source)
    yield whole("txt_norm.weight", (text.width,), lambda: text.levelling(source, "txt_norm.weight"))
    yield from _input("txt_in", text.width, txt, source)
    yield from timestep_embedding(width, source, biases=True)
    for i in range(config.num_layers):
        yield from block(i, config, growth, img, txt, source)
    yield from _output(config, img, source)


def _input(name: str, inner: int, channels: Channels, source: Source) -> Iterator[Tensor]:
    """Yields a linear from `inner` unit channels to a stream of INPUT_AMAX; its bias gives the massive channels."""
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
        # the massive channels carry no content and only shift the output
        columns = channels.vector(0.02, VELOCITY_RMS / width**0.5)
        return source.normal("proj_out.weight", (out, width)) * columns

    yield whole("proj_out.weight", (out, width), weight)
    yield source.tensor("proj_out.bias", (out,), 0.05)
