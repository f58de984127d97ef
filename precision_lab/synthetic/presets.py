"""The shapes that have a name."""

from __future__ import annotations

from types import MappingProxyType

from precision_lab.synthetic.qwen_image import shape as qwen_image
from precision_lab.synthetic.qwen_image_21 import shape as qwen_image_21
from precision_lab.synthetic.shape import Shape

PRESETS: MappingProxyType[str, Shape] = MappingProxyType(
    {
        "micro": qwen_image.MICRO,
        "blocks": qwen_image.BLOCKS,
        "transformer": qwen_image.TRANSFORMER,
        "full": qwen_image.QwenImageShape(),
        "micro_21": qwen_image_21.MICRO,
        "transformer_21": qwen_image_21.TRANSFORMER,
        "full_21": qwen_image_21.QwenImage21Shape(),
    }
)
"""Shapes by name; those that end in _21 are of Qwen-Image-2.1.

`full`, `full_21`: the published sizes, 57.7 and 32.4 GB. `transformer`, `transformer_21`: their transformer and VAE,
and a text encoder of the same width with 2 layers, 41.4 and 15.3 GB, for one GPU. `micro`, `micro_21`: all blocks, at
width 64, 20 and 5 MB. `blocks`: two blocks of the published width between a text encoder and a VAE like those of
`micro`, 1.4 GB, for formats that a width of 64 does not fit.
"""
