"""Checkpoints saved by mflux: its names for the weights of Qwen-Image 1.x and 2.1, and its quantisation metadata.

Valid for mflux 0.24.0 (qwen/weights/qwen_weight_mapping.py and qwen21/weights/qwen21_weight_mapping.py in its models).
Every file has `mflux_version` and `quantization_level` (the requested bits, or "None") in the metadata of its header,
and so does the index. The level does not apply to every layer: in a 4-bit model of 1.x img_mod has 8 bits (mflux issue
484), in 2.1 the edit command spares modulation, time_text_embed and norm_out, and text encoders may have no bits. The
bits and group size of each layer are inferred from its shapes, as mflux does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from precision_lab.errors import InputError, shown

_VERSION, _LEVEL = "mflux_version", "quantization_level"
_UNQUANTISED = ("None", "null", "")
PROTECTED_BITS = 8
"""Bits of the layers that mflux does not quantise to the requested level, because they would suffer from it."""

_RENAMED = (
    (re.compile(r"\.attn\.attn_to_out\."), ".attn.to_out."),
    (re.compile(r"\.(img|txt)_mod_linear\."), r".\1_mod.1."),
    (re.compile(r"\.(img|txt)_ff\.mlp_in\."), r".\1_mlp.net.0.proj."),
    (re.compile(r"\.(img|txt)_ff\.mlp_out\."), r".\1_mlp.net.2."),
    (re.compile(r"^modulation\.layers\.1\."), "modulation.1."),
    (re.compile(r"^encoder\.visual\."), "visual."),
    (re.compile(r"^encoder\.(?=embed_tokens\.|layers\.|norm\.|rotary_emb\.)"), "model."),
)
_COMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Constants that mflux saves as parameters and that no published checkpoint stores."""

T = TypeVar("T")


def wrote(metadata: Mapping[str, str]) -> bool:
    """Whether mflux wrote the files that have this metadata."""
    return _VERSION in metadata or _LEVEL in metadata


def level(metadata: Mapping[str, str]) -> int | None:
    """The requested bits, or None if the files are not quantised. Raises InputError for any other value."""
    value = metadata.get(_LEVEL)
    if value is None or value in _UNQUANTISED:
        return None
    if not value.isdecimal() or len(value) > 3:
        raise InputError(f"{_LEVEL} is {shown(value)} in the header of the weights, expected a number of bits or None")
    return int(value)


def published_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """`tensors` under the names of the published checkpoint, without the constants that it does not store."""
    return {_published(name): tensor for name, tensor in tensors.items() if not _COMPUTED.fullmatch(name)}


def _published(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name
