"""Folders that mflux has saved: its names for the weights of Qwen-Image, and its record of their quantisation.

As of mflux 0.24.0. Every file carries `mflux_version` and `quantization_level` (the bits asked for, or "None") in the
metadata of its header, the index carries them too. The level is not that of every layer: img_mod has 8 bits in a
4-bit model (mflux issue 484), the text encoder is not quantised at all. Each layer's bits and group size are read off
its shapes, as mflux itself does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from precision_lab.errors import InputError

_VERSION, _LEVEL = "mflux_version", "quantization_level"
_UNQUANTISED = ("None", "null", "")
PROTECTED_BITS = 8
"""Bits of the layers that would suffer at the requested level."""

_RENAMED = (
    (re.compile(r"\.attn\.attn_to_out\."), ".attn.to_out."),
    (re.compile(r"\.(img|txt)_mod_linear\."), r".\1_mod.1."),
    (re.compile(r"\.(img|txt)_ff\.mlp_in\."), r".\1_mlp.net.0.proj."),
    (re.compile(r"\.(img|txt)_ff\.mlp_out\."), r".\1_mlp.net.2."),
    (re.compile(r"^encoder\.visual\."), "visual."),
    (re.compile(r"^encoder\.(?=embed_tokens\.|layers\.|norm\.|rotary_emb\.)"), "model."),
)
_COMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Constants that mflux keeps among its parameters, which no published checkpoint stores."""

T = TypeVar("T")


def wrote(metadata: Mapping[str, str]) -> bool:
    """Whether mflux wrote the files with that metadata."""
    return _VERSION in metadata or _LEVEL in metadata


def level(metadata: Mapping[str, str]) -> int | None:
    """The bits that were asked for; None of files that are not quantised. Raises InputError for anything else."""
    value = metadata.get(_LEVEL)
    if value is None or value in _UNQUANTISED:
        return None
    if not value.isdecimal():
        raise InputError(f"{_LEVEL} is {value!r} in the header of the weights, expected a number of bits or None")
    return int(value)


def published_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """Tensors under the names of the published checkpoint, without the constants that it does not store."""
    return {_published(name): tensor for name, tensor in tensors.items() if not _COMPUTED.fullmatch(name)}


def _published(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name
