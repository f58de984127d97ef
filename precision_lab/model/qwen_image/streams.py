"""The two residual streams of the transformer, and which of them a module works on."""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class Streams(NamedTuple):
    """One value for the image tokens and one for the text tokens."""

    img: Any
    txt: Any


_RULES = (
    ("joint", r"(^|\.)(attend|pos_embed)$"),
    ("txt", r"(^|\.)(txt_\w+|add_[qkv]_proj|(norm|rotary)_added_[qk]|to_add_out)(\.|$)"),
    ("img", r"(^|\.)(img_\w+|to_[qkv]|(norm|rotary)_[qk]|to_out|norm_out|proj_out)(\.|$)"),
)


def stream_of(path: str) -> str:
    """The stream of a transformer module: "img", "txt", "joint", or "-" where there is no such thing."""
    return next((stream for stream, pattern in _RULES if re.search(pattern, path)), "-")
